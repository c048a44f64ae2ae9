"""The board that the worker shares with its watchers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixeldance.jobs.job import Phase
from pixeldance.jobs.live import CAPACITY, BoardReader, BoardWriter, Note


def note(**changes: Any) -> Note:
    given = Note(
        job_id="a",
        attempt=1,
        number=3,
        phase=Phase.DENOISING,
        step=2,
        num_steps=8,
        clip=1,
        num_clips=1,
        seconds_per_step=0.5,
        remaining_s=3.0,
        preview_number=2,
        preview=None,
    )
    return given._replace(**changes)


def test_a_late_reader_finds_the_last_note(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    with BoardWriter(tmp_path / "live") as writer:
        writer.write(note(step=1))
        writer.write(note(preview=frames))
    with BoardReader(tmp_path / "live") as reader:
        found = reader.read()
    assert found is not None
    assert found._replace(preview=None) == note()
    np.testing.assert_array_equal(found.preview, frames)


def test_news_change_the_sequence_and_clearing_takes_all_down(tmp_path: Path) -> None:
    secret = np.full((2, 4, 6, 3), 77, np.uint8)
    with BoardWriter(tmp_path / "live") as writer, BoardReader(tmp_path / "live") as reader:
        assert reader.read() is None
        seen = {reader.sequence}
        for step in range(3):
            writer.write(note(step=step, preview=secret))
            seen.add(reader.sequence)
        writer.clear()
        seen.add(reader.sequence)
        assert len(seen) == 5
        assert reader.read() is None
    assert bytes([77] * 8) not in (tmp_path / "live").read_bytes()


def test_a_preview_that_is_too_large_is_left_out(tmp_path: Path) -> None:
    huge = np.zeros((1, 1, CAPACITY, 3), np.uint8)
    with BoardWriter(tmp_path / "live") as writer, BoardReader(tmp_path / "live") as reader:
        writer.write(note(preview=huge))
        assert reader.read() == note()


@pytest.mark.parametrize("place", [0, 12, 30])
def test_a_note_that_was_half_written_is_never_shown(tmp_path: Path, place: int) -> None:
    path = tmp_path / "live"
    with BoardWriter(path) as writer:
        writer.write(note())
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with BoardReader(path) as reader:
        assert reader.read() is None
    with BoardWriter(path) as writer, BoardReader(path) as reader:
        writer.write(note(step=5))
        assert reader.read() == note(step=5)
