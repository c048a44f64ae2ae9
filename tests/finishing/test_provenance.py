"""Content credentials: what is signed, what a change breaks, what is refused."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("c2pa")

from certificates import write_certificate
from clip_helpers import make_recipe, moving_square
from cryptography.x509.oid import ExtendedKeyUsageOID

from pixeldance.errors import DataError, InputError
from pixeldance.finishing.provenance import SOURCE_TYPE, read_credentials, sign_clip
from pixeldance.stories.recipe import FILM_SCHEMA
from pixeldance.video import export_clip, read_recipe
from pixeldance.video.write import write_frames

FRAMES = moving_square(3)


def write(path: Path, **changes: object) -> Path:
    return export_clip(path, FRAMES, fps=12, recipe={**make_recipe(frames=FRAMES), **changes})


def signed(path: Path, output: Path) -> Path:
    folder = path.parent
    return sign_clip(path, output, certificate=folder / "chain.pem", key=folder / "key.pem")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_certificate(tmp_path)
    return tmp_path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".gif", ".webp"])
def test_a_signed_clip_says_that_a_model_made_it(folder: Path, suffix: str) -> None:
    clip = write(folder / f"a{suffix}")
    assert read_credentials(clip) is None
    found = read_credentials(signed(clip, folder / f"b{suffix}"))
    assert found is not None
    assert (found.is_intact, found.state) == (True, "Valid")
    assert found.signer == "Test Signer, Test"
    assert found.source_types == [SOURCE_TYPE]
    assert found.actions == ["c2pa.created"]
    assert found.problems == ["signingCredential.untrusted"]  # nobody vouches for a test
    assert "trainedAlgorithmicMedia" in found.summary()
    assert read_recipe(folder / f"b{suffix}") == read_recipe(clip)


def test_a_change_breaks_the_signature(folder: Path) -> None:
    path = signed(write(folder / "a.mp4"), folder / "b.mp4")
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    found = read_credentials(path)
    assert found is not None
    assert not found.is_intact
    assert "assertion.bmffHash.mismatch" in found.problems


def test_finishing_is_among_the_actions(folder: Path) -> None:
    step = {
        "fps_factor": 2,
        "upscale": 4,
        "format": "mp4",
        "weights": {},
        "source_sha256": "0" * 64,
        "frames": make_recipe(frames=FRAMES)["frames"],
    }
    found = read_credentials(signed(write(folder / "a.mp4", finishing=[step]), folder / "b.mp4"))
    assert found is not None
    assert found.state == "Valid"
    assert found.actions == ["c2pa.created", "c2pa.edited", "c2pa.resized"]


def test_a_film_can_be_signed(folder: Path) -> None:
    comment = json.dumps({"schema": FILM_SCHEMA, "shots": []})
    film = write_frames(folder / "film.mp4", FRAMES, fps=12, comment=comment)
    found = read_credentials(signed(film, folder / "b.mp4"))
    assert found is not None
    assert (found.state, found.actions) == ("Valid", ["c2pa.created"])


def test_what_cannot_be_signed_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="WebM files cannot carry C2PA"):
        signed(write(folder / "a.webm"), folder / "b.webm")
    unknown = export_clip(folder / "foreign.mp4", FRAMES, fps=12)
    with pytest.raises(InputError, match="holds no pixeldance recipe"):
        signed(unknown, folder / "b.mp4")
    clip = write(folder / "a.mp4")
    with pytest.raises(InputError, match="is the clip itself"):
        sign_clip(
            clip,
            clip,
            certificate=folder / "chain.pem",
            key=folder / "key.pem",
            overwrite=True,
        )
    assert not list(folder.glob("b.*"))


def test_certificates_that_are_not_for_signing_are_refused(folder: Path) -> None:
    clip = write(folder / "a.mp4")
    write_certificate(folder, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    with pytest.raises(InputError, match="certificate must be for signing"):
        signed(clip, folder / "b.mp4")
    (folder / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----")
    with pytest.raises(InputError, match="damaged or has a password"):
        signed(clip, folder / "b.mp4")
    (folder / "key.pem").write_text("x")
    with pytest.raises(InputError, match="no PEM file"):
        signed(clip, folder / "b.mp4")
    assert not list(folder.glob("b.*"))
    assert not list(folder.glob(".*"))


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write(folder / "a.mp4")
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(DataError, match=r"pip install 'pixeldance\[c2pa\]'"):
        signed(clip, folder / "b.mp4")
