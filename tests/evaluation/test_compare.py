"""The comparison on a small made-up world: fairness, scores, tables, files, command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pixeldance.errors import DataError, InputError
from pixeldance.evaluation import __main__ as command
from pixeldance.evaluation.compare import (
    METHODS,
    PEERS,
    Comparison,
    HeldoutClip,
    Scores,
    Settings,
    compare,
    heldout_clips,
    load_methods,
    our_method,
    peer_method,
)
from pixeldance.evaluation.metrics import MAX_PSNR, Lpips
from pixeldance.evaluation.peers import Frames
from pixeldance.evaluation.report import (
    draw_sheet,
    groups,
    markdown,
    paired_difference,
    table,
    to_json,
    write_json,
    write_sheet,
)
from pixeldance.worlds.assets import SPRITE_SIZE, WorldAssets
from pixeldance.worlds.captions import describe
from pixeldance.worlds.stickers import StickerWorld, is_heldout, read_characters

SMALL = Settings(num_clips=3, width=48, height=32, num_frames=5, num_inference_steps=1)


@pytest.fixture(scope="module")
def world() -> StickerWorld:
    """The held-out split with one flat picture for all characters, and one panorama of noise."""
    sprite = np.full((2, SPRITE_SIZE, SPRITE_SIZE, 4), 255, np.uint8)
    sprite[..., 1] = 0
    heldout = [c.id for c in read_characters() if is_heldout(c.id)]
    noise = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    assets = WorldAssets(
        sprites=sprite, slices=dict.fromkeys(heldout, (0, 2)), panoramas={"dawn-512": noise}
    )
    return StickerWorld("heldout", assets)


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    """A network of the right shape with few channels and random weights."""
    generator = torch.Generator().manual_seed(0)
    kernels = ((4, 3, 11), (4, 4, 5), (4, 4, 3), (4, 4, 3), (4, 4, 3))
    return Lpips(
        convolutions=[
            (torch.randn(c, b, k, k, generator=generator), torch.zeros(c)) for c, b, k in kernels
        ],
        heads=[torch.ones(1, 4, 1, 1)] * 5,
    )


def truth(clip: HeldoutClip) -> Frames:
    return clip.frames


@pytest.fixture(scope="module")
def comparison(world: StickerWorld, lpips: Lpips) -> Comparison:
    peers = ("hold-first", "crossfade")
    methods = {"ours": truth, **{name: peer_method(PEERS[name]()) for name in peers}}
    return compare(methods, SMALL, world=world, lpips=lpips)


def test_the_methods() -> None:
    assert METHODS == ("ours", "hold-first", "crossfade", "rife")


def test_clips_depend_on_their_seed_alone(world: StickerWorld) -> None:
    clips = list(heldout_clips(world, SMALL))
    assert [clip.seed for clip in clips] == [0, 1, 2]
    captions = [describe(clip.scene, clip.seed) for clip in clips]
    assert [clip.caption for clip in clips] == captions
    assert clips[0].frames.shape == (5, 32, 48, 3)
    assert not np.array_equal(clips[0].frames[0], clips[0].frames[-1])
    later = Settings(num_clips=1, width=48, height=32, num_frames=5, seed_offset=2)
    (third,) = heldout_clips(world, later)
    np.testing.assert_array_equal(third.frames, clips[2].frames)
    assert third.caption == clips[2].caption


def test_the_truth_scores_best_and_ends_are_measured_apart(comparison: Comparison) -> None:
    for score in comparison.scores["ours"]:
        assert score[:5] == (0, MAX_PSNR, pytest.approx(1), MAX_PSNR, MAX_PSNR)
    for score in comparison.scores["crossfade"]:
        assert (score.first_psnr, score.last_psnr) == (MAX_PSNR, MAX_PSNR)
        assert score.lpips > 0
        assert score.psnr < 60
    for score in comparison.scores["hold-first"]:
        assert score.first_psnr == MAX_PSNR
        assert score.last_psnr < 60


def test_only_the_inner_frames_are_compared(world: StickerWorld, lpips: Lpips) -> None:
    def wrong_ends(clip: HeldoutClip) -> Frames:
        made = clip.frames.copy()
        made[[0, -1]] = 255 - made[[0, -1]]
        return made

    one = Settings(num_clips=1, width=48, height=32, num_frames=5)
    (score,) = compare({"x": wrong_ends}, one, world=world, lpips=lpips).scores["x"]
    assert score[:3] == (0, MAX_PSNR, pytest.approx(1))
    assert max(score.first_psnr, score.last_psnr) < 30


def test_peers_see_the_end_frames_only(world: StickerWorld) -> None:
    seen = []

    def interpolate(first_frame, last_frame, num_frames):
        seen.append((first_frame, last_frame, num_frames))
        return np.zeros((num_frames, *first_frame.shape), np.uint8)

    clip = next(heldout_clips(world, SMALL))
    peer_method(interpolate)(clip)
    np.testing.assert_array_equal(seen[0][0], clip.frames[0])
    np.testing.assert_array_equal(seen[0][1], clip.frames[-1])
    assert seen[0][2] == 5


def test_the_model_is_asked_for_the_clip(world: StickerWorld) -> None:
    clip = list(heldout_clips(world, SMALL))[2]
    requests = []

    class Model:
        def generate(self, request, *, on_step):
            requests.append(request)
            return clip

    assert our_method(Model(), SMALL)(clip) is clip.frames
    (request,) = requests
    assert (request.prompt, request.seed) == (clip.caption, 2)
    assert (request.width, request.height, request.num_frames) == (48, 32, 5)
    assert (request.num_inference_steps, request.guidance_scale) == (1, SMALL.guidance_scale)
    np.testing.assert_array_equal(np.asarray(request.first_frame), clip.frames[0])
    np.testing.assert_array_equal(np.asarray(request.last_frame), clip.frames[-1])


def test_a_clip_of_another_shape_is_refused(world: StickerWorld, lpips: Lpips) -> None:
    with pytest.raises(InputError, match=r"short made uint8 of shape \(4, 32, 48, 3\)"):
        compare({"short": lambda clip: clip.frames[1:]}, SMALL, world=world, lpips=lpips)


def test_the_model_is_loaded_only_if_it_is_compared() -> None:
    def load_model():
        raise DataError("not to be loaded")

    assert list(load_methods(["crossfade", "hold-first"], SMALL, load_model)) == [
        "crossfade",
        "hold-first",
    ]
    with pytest.raises(DataError, match="not to be loaded"):
        load_methods(["ours"], SMALL, load_model)


@pytest.mark.parametrize("names", [[], ["ours", "ours"], ["film"]])
def test_unknown_methods_are_refused(names: list[str]) -> None:
    with pytest.raises(InputError, match="some of ours, hold-first, crossfade, rife"):
        load_methods(names, SMALL, lambda: None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_clips", 0, "at least 1, got 0"),
        ("num_frames", 1, "at least 5"),
        ("num_frames", 24, "num_frames"),
        ("width", 16, "at least 32"),
        ("height", 50, "height"),
        ("num_inference_steps", 0, "num_inference_steps"),
        ("guidance_scale", 0.5, "guidance_scale"),
    ],
)
def test_settings_are_checked(field: str, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**{field: value})


def scores(*distances: float) -> list[Scores]:
    return [Scores(d, 20.0, 0.5, MAX_PSNR, 30.0, 1.0) for d in distances]


@pytest.fixture
def known() -> Comparison:
    """Four clips with round numbers; the second has a cut."""
    picture = np.zeros((25, 20, 30, 3), np.uint8)
    return Comparison(
        Settings(num_clips=4),
        seeds=[0, 1, 2, 3],
        captions=["a fox spins", "a cat stays", "a dog leaps left", "a dog leaps right"],
        motions=["spin", "still", "arc left", "arc right"],
        cameras=["static", "pan left", "static", "follow"],
        cuts=[False, True, False, False],
        scores={"ours": scores(0.1, 0.2, 0.3, 0.4), "rife": scores(0.2, 0.3, 0.4, 0.3)},
        sheet=[(picture, picture + 255)] * 3,
    )


def test_groups_join_sides_and_hold_every_clip(known: Comparison) -> None:
    assert groups(known) == {
        "camera: moving": [1, 3],
        "camera: static": [0, 2],
        "motion: arc": [2, 3],
        "motion: spin": [0],
        "motion: still": [1],
        "with a cut": [1],
    }


def test_differences_are_paired(known: Comparison) -> None:
    assert paired_difference(known, "ours", "rife").mean == pytest.approx(-0.05)
    shifted = {"ours": scores(0.1, 0.5, 0.9), "rife": scores(0.2, 0.6, 1.0)}
    same = paired_difference(Comparison(Settings(), scores=shifted), "ours", "rife")
    assert same == pytest.approx((-0.1, -0.1, -0.1))  # however much the clips differ


def test_markdown_holds_what_a_reader_needs(known: Comparison) -> None:
    text = " ".join(markdown(known).split())
    assert "4 held-out clips (1 with a cut) of 25 frames, 192x192" in text
    assert "the 23 inner frames compared" in text
    assert "| ours | 0.2500 [0.1500, 0.3500] | 20.00 [20.00, 20.00] | 0.500" in text
    assert "| exact | 30.0 [30.0, 30.0] | 1.0 |" in text
    assert "| ours minus rife | -0.0500 [-0.1000, +0.0500] | 3 of 4 |" in text
    assert "| motion: arc | 2 | 0.3500 | 0.3500 |" in text


def test_markdown_without_the_model_compares_nothing_with_it(known: Comparison) -> None:
    known.scores.pop("ours")
    assert "ours" not in markdown(known).lower()


def test_table_lines_are_even() -> None:
    assert table([["a", "long title"], ["word", "1"]]).splitlines() == [
        "| a    | long title |",
        "| ---- | ---------: |",
        "| word |          1 |",
    ]
    with pytest.raises(InputError, match="equal length"):
        table([["a"], ["b", "c"]])


def test_json_holds_every_clip(known: Comparison, tmp_path: Path) -> None:
    path = write_json(tmp_path / "scores.json", to_json(known, model={"name": "mini"}))
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values["settings"]["num_clips"] == 4
    assert values["model"] == {"name": "mini"}
    assert values["methods"]["ours"]["lpips"]["mean"] == pytest.approx(0.25)
    assert values["lpips_ours_minus"]["rife"]["mean"] == pytest.approx(-0.05)
    assert values["clips"][1]["has_cut"] is True
    assert values["clips"][3]["scores"]["rife"]["lpips"] == 0.3
    with pytest.raises(InputError, match="already exists"):
        write_json(path, values)


def test_sheet_shows_truth_above_the_first_method(known: Comparison, tmp_path: Path) -> None:
    sheet = np.asarray(draw_sheet(known))
    # Three clips in two columns, six frames each, black above white.
    black, white = (sheet == 0).all(axis=2), (sheet == 255).all(axis=2)
    tile = 20 * 30
    assert black.sum() == white.sum() == 3 * 6 * tile
    assert np.argwhere(black)[:, 0].min() < np.argwhere(white)[:, 0].min()
    path = write_sheet(tmp_path / "sheet.png", known)
    assert path.stat().st_size > 500


def test_command_writes_tables_and_files(
    world: StickerWorld, lpips: Lpips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("pixeldance.evaluation.metrics.load_lpips", lambda: lpips)
    monkeypatch.setattr("pixeldance.worlds.stickers.StickerWorld", lambda split: world)
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", "--num-clips", "2", "--size", "48x32", "--num-frames", "5"]
    arguments += ["--methods", "crossfade, hold-first", "--sheet", "sheet.png"]
    assert command.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "2 held-out clips" in out
    assert out.index("| crossfade") < out.index("| hold-first")
    assert "clip 2/2, 0:00 min left" in err
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.json", "sheet.png"}
    assert command.main(arguments) == 2  # a second run replaces nothing
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "192"], "WIDTHxHEIGHT"),
        (["--methods", "ours,film"], "some of ours"),
        (["--num-clips", "0"], "at least 1"),
        (["--sheet", "sheet.jpg"], r".png"),
    ],
)
def test_command_explains_wrong_options(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
