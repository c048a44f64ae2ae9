"""Two processes make the clip of one.

Bit for bit where tokens and branches are shared: every token goes through the same kernels with the
same neighbours in its sums, only elsewhere, and nothing is summed across processes. Tensor
parallelism sums across processes, and a band of rows may be decoded by another kernel than the
whole: both round otherwise, and that is all.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from parallel_helpers import (
    among,
    make_alone_then_together,
    make_released_alone_then_together,
    refuse_what_cannot_be_shared,
    run_command,
    save_unseeded,
    stop_from_the_second,
)
from processes import run_together
from tiny import tiny_pipeline
from tiny_wan import write_checkpoint
from typer.testing import CliRunner

from pixeldance.cli import app
from pixeldance.errors import InputError
from pixeldance.parallel import check_processes
from pixeldance.video import read_recipe

LAUNCHED = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


# --- the same clip


@pytest.mark.parametrize("mode", ["context", "guidance", "tensor"])
def test_two_processes_make_the_clip_of_one(mode: str) -> None:
    assert run_together(2, make_alone_then_together, mode, torch.float32, None) == [0, 0]


@pytest.mark.slow
def test_two_processes_make_the_clip_of_one_in_bfloat16() -> None:
    assert run_together(2, make_alone_then_together, "context", torch.bfloat16, None) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["context", "guidance"])
def test_the_step_cache_skips_the_same_steps_in_every_process(mode: str) -> None:
    assert run_together(2, make_alone_then_together, mode, torch.float32, 0.1) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["guidance", "guidance+tensor"])
def test_four_processes_share_branches_and_more(mode: str) -> None:
    codes = run_together(4, make_alone_then_together, mode, torch.float32, None)
    assert codes == [0, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("ti2v-5b", "context"),
        ("ti2v-5b", "tensor"),
        ("flf2v-14b", "context"),
        ("i2v-a14b", "guidance"),
        ("t2v-a14b", "context"),
    ],
)
def test_wan_checkpoints_are_shared_too(tmp_path: Path, kind: str, mode: str) -> None:
    folder = write_checkpoint(tmp_path / kind, kind)
    assert run_together(2, make_released_alone_then_together, folder, mode) == [0, 0]


def test_a_seed_that_was_not_given_is_the_same_in_all(tmp_path: Path) -> None:
    assert run_together(2, save_unseeded, tmp_path) == [0, 0]
    one, two = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert one["seed"] == two["seed"]
    np.testing.assert_array_equal(one["frames"], two["frames"])


@pytest.mark.slow
def test_a_stop_in_one_process_stops_all(tmp_path: Path) -> None:
    assert run_together(2, stop_from_the_second, tmp_path) == [0, 0]
    said = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert said == ["Generation was stopped after step 2 of 3."] * 2


@pytest.mark.slow
def test_the_first_process_alone_writes_and_reports(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    clip = tmp_path / "clip.mp4"
    arguments = (
        *("generate", "--model", str(tmp_path / "tiny"), "--output", str(clip), "--json"),
        *("--height", "32", "--width", "64", "--num-frames", "5", "--steps", "1"),
        *("--parallel", "context"),
    )
    assert run_together(2, run_command, tmp_path, *arguments) == [0, 0]
    assert [each["path"] for each in json.loads((tmp_path / "0").read_text())["clips"]] == [
        str(clip)
    ]
    assert (tmp_path / "1").read_text() == ""
    assert read_recipe(clip)["model"]["parallel"] == "context, 2 processes"


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "torchrun --nproc-per-node 2",
        # --cpu would start one process: it is for MPI. --multi_gpu is torchrun, on CPUs too.
        "accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
        "--dynamo_backend no",
    ],
    ids=lambda launcher: launcher.split()[0],
)
def test_launchers_start_the_processes(tmp_path: Path, launcher: str) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    clip = tmp_path / "clip.mp4"
    program, *options = launcher.split()
    arguments = (
        *("-m", "pixeldance", "generate", "--model", str(tmp_path / "tiny"), "--output", str(clip)),
        *("--height", "32", "--width", "64", "--num-frames", "5", "--steps", "1"),
        *("--parallel", "tensor"),
    )
    command = [str(Path(sys.executable).with_name(program)), *options, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert read_recipe(clip)["model"]["parallel"] == "tensor, 2 processes"


# --- what is refused


@pytest.mark.parametrize(
    ("mode", "environment", "said"),
    [
        ("ring", {"WORLD_SIZE": "2"}, "context, guidance, tensor or guidance+tensor, got 'ring'."),
        ("context", {}, "needs several processes, this is one. Start it with 'torchrun"),
        ("guidance", {"WORLD_SIZE": "3", **LAUNCHED}, "number, or use parallel context."),
        ("guidance+tensor", {"WORLD_SIZE": "3", **LAUNCHED}, "number, or use parallel tensor."),
        ("context", {"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT is"),
    ],
)
def test_processes_that_do_not_fit_are_refused(
    mode: str, environment: Mapping[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        check_processes(mode, environment)


def test_processes_that_fit_are_taken() -> None:
    check_processes(None, {"WORLD_SIZE": "1"})
    check_processes("context", {"WORLD_SIZE": "3", **LAUNCHED})
    check_processes("guidance", {"WORLD_SIZE": "4", **LAUNCHED})
    check_processes("tensor", {"WORLD_SIZE": "3", **LAUNCHED})


def test_heads_must_be_shared_evenly() -> None:
    with pytest.raises(InputError, match="has 2 attention heads, which 3 processes cannot share"):
        among(1, 3).apply(tiny_pipeline())


def test_tokens_must_be_shared_evenly() -> None:
    among(1, 3).check_call((2, 3, 5), is_guided=False)
    with pytest.raises(InputError, match="2 x 4 x 5 = 40 tokens, which 3 processes cannot share"):
        among(1, 3).check_call((2, 4, 5), is_guided=False)
    among(1, 3, mode="tensor").check_call((2, 4, 5), is_guided=False)  # it shares none


@pytest.mark.parametrize("mode", ["guidance", "guidance+tensor"])
def test_guidance_needs_guidance(mode: str) -> None:
    among(2, 1, mode=mode).check_call((1, 1, 1), is_guided=True)
    with pytest.raises(InputError, match=re.escape(f"{mode} needs a guidance_scale above 1")):
        among(2, 1, mode=mode).check_call((1, 1, 1), is_guided=False)


@pytest.mark.slow
def test_the_pipeline_asks_before_it_computes(tmp_path: Path) -> None:
    assert run_together(2, refuse_what_cannot_be_shared, tmp_path) == [0, 0]
    for rank in range(2):
        assert "needs a guidance_scale above 1" in (tmp_path / str(rank)).read_text()


@pytest.mark.parametrize(
    ("options", "processes", "said"),
    [
        ((), "2", "2 processes were started for one request. Say how they share it with"),
        (("--parallel", "context"), "1", "parallel context needs several processes"),
    ],
)
def test_the_command_says_how_to_start_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: tuple[str, ...],
    processes: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", processes)
    result = CliRunner().invoke(app, ["generate", *options])
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert said in result.stderr


# --- sharing out


@pytest.mark.parametrize(
    ("count", "processes", "bounds"),
    [(7, 2, [0, 3, 7]), (6, 3, [0, 2, 4, 6]), (1, 2, [0, 0, 1]), (2, 4, [0, 0, 1, 1, 2])],
)
def test_parts_are_as_even_as_can_be(count: int, processes: int, bounds: list[int]) -> None:
    assert among(1, processes).bounds(count) == bounds


def test_names_say_what_is_shared() -> None:
    assert str(among(1, 2)) == "context, 2 processes"
    assert str(among(2, 2, mode="guidance+tensor")) == "guidance+tensor, 4 processes"
    assert (among(2, 2).num_branches, among(2, 2, rank=3).branch, among(2, 2).degree) == (2, 1, 2)
