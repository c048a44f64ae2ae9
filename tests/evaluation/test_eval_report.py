"""The report, its tables and the page: known numbers, hostile names, nothing from outside."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from eval_helpers import SmallI3d, SmallModel, small_lpips, small_settings, small_world

from pixeldance.errors import InputError
from pixeldance.evaluation.evaluate import Evaluation, evaluate
from pixeldance.evaluation.page import render_page
from pixeldance.evaluation.report import build_report, figures
from pixeldance.evaluation.results import Results
from pixeldance.evaluation.settings import Sampling, Sweep
from pixeldance.evaluation.suite import EvalClip, Skipped, Suite
from pixeldance.evaluation.targets import TARGETS, judged
from pixeldance.evaluation.text import markdown, table

HOSTILE = '<script>alert("1")</script> & <img src=http://x.example/y.png>'

MODEL = {"name": "small", "sha256": "ab" * 32, "dtype": "float32", "device": "cpu"}


def scores(lpips: float, **changes: float) -> dict[str, float]:
    fixed = {"psnr": 20.0, "ssim": 0.5, "first_psnr": 100.0, "last_psnr": 31.0}
    jumps = {"start_jump": 1.0, "end_jump": 1.5, "stillness": 0.0, "loop_seam": 9.0}
    rest = {"first_lpips": 0.0, "last_lpips": 0.1, "colour_drift": 1.0, "seconds": 2.0}
    return {"lpips": lpips, **fixed, **jumps, **rest, **changes}


@pytest.fixture
def known(tmp_path: Path) -> dict:
    """The report of four clips with round numbers."""
    settings = small_settings(methods=("ours", "rife"), num_clips=4)
    clips = tuple(
        EvalClip(f"k{i}", f"clip {i}", i, HOSTILE, lambda: np.zeros(0), {"motion": motion})
        for i, motion in enumerate(("arc", "spin", "arc", "still"))
    )
    results = Results(tmp_path, {}, overwrite=False)
    for clip, ours, rife in zip(clips, (1, 2, 3, 4), (2, 4, 6, 8), strict=True):
        results.add(("clip", clip.key, "truth"), {"end_jump": 1.0})
        results.add(("clip", clip.key, "ours"), scores(ours / 10))
        results.add(("clip", clip.key, "rife"), scores(rife / 10))
    suite = Suite(clips, (Skipped(HOSTILE, "It is no video."),))
    return build_report(settings, suite, results, model=MODEL)


def test_means_ratios_and_groups(known: dict) -> None:
    lpips = known["methods"]["ours"]["lpips"]
    assert (lpips["mean"], lpips["num"]) == (pytest.approx(0.25), 4)
    assert lpips["low"] < 0.25 < lpips["high"]
    (ratio,) = known["ratios"]
    assert (ratio["other"], ratio["num_better"]) == ("rife", 4)
    assert ratio["ratio"] == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5, "num": 4})
    groups = {group["name"]: group for group in known["groups"]}
    assert list(groups) == ["arc", "spin", "still"]
    assert groups["arc"]["num"] == 2
    assert groups["arc"]["methods"]["rife"]["mean"] == pytest.approx(0.4)
    assert known["methods"]["truth"].keys() == {"end_jump"}


def test_targets_are_met_missed_or_not_measured(known: dict) -> None:
    met = {row["figure"]: row["met"] for row in known["targets"]}
    assert met["ratio/lpips/rife"] is True  # 0.5 <= 0.75
    assert met["mean/last_psnr"] is True  # 31 >= 30
    assert met["mean/end_jump"] is False  # 1.5 > 1.2
    assert met["ratio/lpips/crossfade"] is met["fvd/rife"] is met["adherence/order"] is None
    assert len(met) == len(TARGETS)


def test_a_limit_itself_is_enough() -> None:
    values = {target.figure: {"mean": target.limit} for target in TARGETS}
    assert all(row["met"] for row in judged(values))
    worse = {
        target.figure: {"mean": target.limit * (1.001 if target.is_ceiling else 0.999)}
        for target in TARGETS
    }
    assert not any(row["met"] for row in judged(worse))


def test_the_last_frame_counts_at_full_strength_only(known: dict) -> None:
    assert "mean/last_psnr" in figures(known)
    known["settings"]["sampling"]["last_frame_strength"] = 0.5
    assert figures(known).keys() & {"mean/last_psnr", "mean/end_jump"} == set()


def test_few_clips_are_called_an_indication(known: dict) -> None:
    assert known["warnings"][0] == "4 clips are an indication; results need at least 256."
    assert known["warnings"][-1].startswith("1 files could not be used")


def test_markdown_holds_what_a_reader_needs(known: dict) -> None:
    text = " ".join(markdown(known).split())
    assert "4 clips of 9 frames, 48x32 (stickers)" in text
    assert "| ours | 0.2500 [0.1500, 0.3500] | 20.00 [20.00, 20.00] | 0.500" in text
    assert "| exact | 31.0 [31.0, 31.0] |" in text
    assert "| LPIPS: ours / rife | 0.500 [0.500, 0.500] | 4 of 4 |" in text
    assert "| motion: arc | 2 | 0.2000 | 0.4000 |" in text
    assert "| end-jump ratio | 1.50 | <= 1.20 | no |" in text


def test_table_lines_are_even() -> None:
    assert table([["a", "long title"], ["word", "1"]]).splitlines() == [
        "| a    | long title |",
        "| ---- | ---------: |",
        "| word |          1 |",
    ]
    with pytest.raises(InputError, match="equal length"):
        table([["a"], ["b", "c"]])


# ---- the page


class References(HTMLParser):
    """Collects what a browser would fetch or run, and whether tags are closed."""

    VOID = frozenset({"meta", "img", "link", "br", "use", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.found += [
            value
            for name, value in attrs
            if name.rpartition(":")[2] in {"src", "href", "srcset", "action", "data", "poster"}
        ]

    def handle_endtag(self, tag) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_hostile_names_and_prompts_are_text(known: dict) -> None:
    html = render_page(known, [{"name": HOSTILE, "prompt": HOSTILE, "rows": []}])
    references = References(html)
    assert {"script", "img"}.isdisjoint(references.tags)
    assert "&lt;script&gt;" in html
    assert references.open == []


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """An evaluation with everything in it."""
    settings = small_settings(
        methods=("ours", "hold-first", "crossfade"),
        use_fvd=True,
        num_adherence=2,
        sweeps=(Sweep("steps", (2, 8)), Sweep("strength", (0.0, 1.0))),
        reference=Sampling(num_inference_steps=50, guidance_scale=3.0),
    )
    with pytest.MonkeyPatch.context() as patch:
        module = "pixeldance.evaluation.evaluate"
        patch.setattr(f"{module}.StickerWorld", lambda split: small_world())
        patch.setattr(f"{module}.load_lpips", small_lpips)
        patch.setattr(f"{module}.load_i3d", SmallI3d)
        return evaluate(settings, tmp_path_factory.mktemp("full"), load_model=SmallModel)


def test_the_file_holds_the_report(full: Evaluation) -> None:
    assert json.loads(full.report_path.read_text(encoding="utf-8")) == full.report
    assert full.report["schema"] == "pixeldance.eval"
    assert full.report["model"] == MODEL
    assert full.report["versions"].keys() >= {"pixeldance", "torch"}
    assert [clip["seed"] for clip in full.report["clips"]] == [0, 1, 2]


def test_fvd_is_quoted_with_its_floor(full: Evaluation) -> None:
    fvd = full.report["fvd"]
    assert fvd["num"] == fvd["floor"]["num"] == 3
    assert fvd["distances"].keys() == {"ours", "hold-first", "crossfade"}
    assert "fvd/crossfade" in figures(full.report)
    assert any(warning.startswith("FVD of fewer than 256") for warning in full.report["warnings"])


def test_sweeps_and_the_reference_are_compared_on_their_clips(full: Evaluation) -> None:
    steps, strength = full.report["sweeps"]
    assert [point["value"] for point in steps["points"]] == [2, 8]
    assert steps["num"] == 2
    # the small model makes clips brighter with more steps
    assert [p["measures"]["first_psnr"]["mean"] > 35 for p in steps["points"]] == [True, False]
    assert strength["peers"].keys() == {"hold-first", "crossfade"}
    assert full.report["reference"]["ratio"]["mean"] < 1
    assert figures(full.report)["reference/lpips"] == full.report["reference"]["ratio"]


def test_adherence_counts_what_was_seen(full: Evaluation) -> None:
    tables = {(each["kind"], each["method"]): each for each in full.report["adherence"]}
    assert len(tables) == 6
    camera = tables["camera", "ours"]  # the small model never moves
    assert camera["share"]["mean"] == 0
    assert camera["confusion"] == {
        "expected": ["pan left", "pan right"],
        "seen": ["static"],
        "counts": [[1], [1]],
        "right": [0, 0],
    }
    assert figures(full.report)["reference/camera"] == {"mean": 0}


def test_the_page_needs_nothing_from_outside(full: Evaluation) -> None:
    html = full.page_path.read_text(encoding="utf-8")
    references = References(html)
    assert references.open == []
    assert "script" not in references.tags
    pictures = [found for found in references.found if found.startswith("data:image/webp;base64,")]
    assert len(pictures) == 2  # of the first clip: truth and ours
    assert all(found.startswith("#") for found in references.found if found not in pictures)
    assert re.search(r"https?:|//\w+\.\w+|@import|url\((?!#)", html) is None
    assert references.tags.count("svg") == 3 + 1 + 3
    assert "currentColor" in html
    assert "(τ)" in html


def test_the_folder_holds_what_the_page_says(full: Evaluation) -> None:
    names = {path.name for path in full.page_path.parent.iterdir()}
    assert names == {"eval.html", "eval.json", "results.jsonl", "features", "filmstrips"}


def test_fvd_needs_longer_clips(tmp_path: Path) -> None:
    settings = small_settings(num_frames=5, use_fvd=True)
    with pytest.raises(InputError, match="at least 9 frames, got 5"):
        evaluate(settings, tmp_path / "new", load_model=SmallModel)
    assert not (tmp_path / "new").exists()
