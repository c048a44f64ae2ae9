"""The world's pictures: what is missing or damaged is said, and unpacking gives known pixels."""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixeldance.errors import DataError
from pixeldance.worlds import assets
from pixeldance.worlds.assets import Package, cache_folder, fetch, load_assets


def write_cache(folder: Path, layout_version: int = 1) -> None:
    np.save(folder / "sprites.npy", np.full((3, 128, 128, 4), 7, np.uint8))
    index = {"layout_version": layout_version, "fps": 12, "slices": {"1f600": [1, 2]}}
    (folder / "sprites.json").write_text(json.dumps(index))
    with (folder / "panoramas.npz").open("wb") as stream:
        np.savez_compressed(stream, **{"city-512": np.full((4, 8, 3), 9, np.uint8)})


def test_cached_pictures_are_opened(tmp_path: Path) -> None:
    write_cache(tmp_path)
    opened = load_assets(tmp_path)
    assert opened.slices == {"1f600": (1, 2)}
    assert opened.sprites.shape == (3, 128, 128, 4)
    assert isinstance(opened.sprites, np.memmap)
    assert opened.panoramas["city-512"].tolist() == np.full((4, 8, 3), 9).tolist()


def test_missing_pictures_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not in .*python -m pixeldance\.worlds\.assets"):
        load_assets(tmp_path)


def test_another_layout_is_refused(tmp_path: Path) -> None:
    write_cache(tmp_path, layout_version=0)
    with pytest.raises(DataError, match=r"layout 0, this version needs 1\. Delete the folder"):
        load_assets(tmp_path)


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIXELDANCE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "worlds"
    monkeypatch.delenv("PIXELDANCE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "pixeldance" / "worlds"


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    write_cache(tmp_path)
    assert fetch(tmp_path, downloads=tmp_path / "absent") == tmp_path


def test_a_changed_download_is_refused(tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    first = assets.PACKAGES[0]
    (downloads / first.file).write_bytes(b"something else")
    with pytest.raises(DataError, match=rf"{first.file} has sha256 .* expected {first.sha256}"):
        fetch(tmp_path / "cache", downloads=downloads)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(DataError, match=r"npm is needed to fetch .* --downloads"):
        fetch(tmp_path)


def test_a_failing_client_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="first\nno network\n")

    monkeypatch.setattr(shutil, "which", lambda program: program)
    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(DataError, match=r"npm could not fetch @lobehub/.*: no network$"):
        fetch(tmp_path)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def animation(*colors: tuple[int, int, int, int]) -> bytes:
    stream = io.BytesIO()
    first, *others = (Image.new("RGBA", (256, 256), color) for color in colors)
    first.save(stream, "webp", save_all=True, append_images=others, lossless=True, duration=42)
    return stream.getvalue()


def exr(radiance: np.ndarray, path: Path) -> bytes:
    openexr = pytest.importorskip("OpenEXR")
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    openexr.File(header, {"RGB": radiance.astype(np.float32)}).write(str(path))
    return path.read_bytes()


def make_packages(folder: Path, radiance: np.ndarray) -> tuple[Package, ...]:
    """Small stand-ins for the six downloads, with their layout."""
    loop = animation((255, 0, 0, 51), (0, 0, 0, 255), (0, 255, 0, 255), (0, 0, 9, 255))
    sprites = folder / "sprites.tgz"
    with tarfile.open(sprites, "w:gz") as tar:
        add(tar, "package/assets/1f600.webp", loop)
        add(tar, "package/assets/1f44b-1f3fb.webp", loop)  # a skin tone
        add(tar, "package/assets/1f6d1.webp", animation((1, 2, 3, 255)))  # does not move
        add(tar, "package/README.md", b"not a picture")
    empty = folder / "empty.tgz"
    with tarfile.open(empty, "w:gz") as tar:
        add(tar, "package/assets/1f98a.webp", animation((9, 9, 9, 255), (8, 8, 8, 255)))
    pictures = folder / "pictures.tgz"
    sky = base64.b64encode(exr(radiance, folder / "sky.exr")).decode()
    with tarfile.open(pictures, "w:gz") as tar:
        add(tar, "package/hdri/city.exr.js", f'export default "data:;base64,{sky}"'.encode())
    tree = folder / "tree"
    world = tree / "usr/share/blender/datafiles/studiolights/world"
    world.mkdir(parents=True)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: m <m@example.org>\nDescription: d\n"
    )
    exr(radiance, world / "forest.exr")
    deb = folder / "world.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(deb)], check=True, capture_output=True)
    files = (sprites, empty, empty, empty, pictures, deb)
    return tuple(
        Package("npm", f.stem, f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files
    )


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_packages_are_unpacked_into_known_pixels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    radiance = np.full((8, 16, 3), 0.5)
    radiance[2, 2] = np.nan  # the sun
    radiance[5, 9] = -3.0  # a ring around a lamp
    radiance[5, 10] = 40.0
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    monkeypatch.setattr(assets, "PACKAGES", make_packages(downloads, radiance))
    opened = load_assets(fetch(tmp_path / "cache", downloads=downloads))

    assert opened.slices == {"1f600": (0, 2), "1f98a": (4, 1)}
    loop = opened.sprites[0:2]  # every second frame of 24 frames/s, colours times alpha
    assert loop[0, 64, 64].tolist() == [51, 0, 0, 51]
    assert loop[1, 64, 64].tolist() == [0, 255, 0, 255]

    assert sorted(opened.panoramas) == ["city-512", "forest-1024"]
    city = opened.panoramas["city-512"]
    assert np.array_equal(city, opened.panoramas["forest-1024"])
    assert city.shape == (8, 16, 3)
    assert city[2, 2].min() == 255
    assert city[5, 9].min() == city[5, 10].min() > 230
    assert 120 < city[0, 0].min() == city[7, 15].max() < 200
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [
        "panoramas.npz",
        "sprites.json",
        "sprites.npy",
    ]
