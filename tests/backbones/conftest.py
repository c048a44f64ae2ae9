"""Checkpoints are written once for all tests, and loaded once for each kind."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from tiny_wan import write_checkpoint
from transformers.utils import logging as transformers_logging

from pixeldance.pipeline import PixelDancePipeline


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind's checkpoint."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    return cache(lambda kind: write_checkpoint(tmp_path_factory.mktemp("models") / kind, kind))


@pytest.fixture(scope="session")
def ours(checkpoint: Callable[[str], Path]) -> Callable[[str], PixelDancePipeline]:
    """Our pipeline of a kind."""

    def load(kind: str) -> PixelDancePipeline:
        pipeline = PixelDancePipeline.from_pretrained(checkpoint(kind))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return cache(load)


@pytest.fixture(scope="session")
def stock(checkpoint: Callable[[str], Path]) -> Callable[[str], DiffusionPipeline]:
    """diffusers' pipeline of a kind."""

    def load(kind: str) -> DiffusionPipeline:
        pipeline = DiffusionPipeline.from_pretrained(checkpoint(kind))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return cache(load)
