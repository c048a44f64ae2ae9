"""Plans: which clips, of which length, given which frames, under which keys."""

from dataclasses import replace
from pathlib import Path

import pytest
from story_helpers import SMALL, TARGET, keys, plan, three_shots
from tiny import picture, tiny_pipeline

from pixeldance.api import load
from pixeldance.errors import CheckpointError, InputError
from pixeldance.geometry import Size
from pixeldance.stories import Story, Target, plan_story


def test_frames_add_up_and_no_frame_is_shown_twice() -> None:
    planned = plan(three_shots(window=2))
    assert [(shot.start, shot.num_frames) for shot in planned.shots] == [(0, 9), (9, 8), (17, 8)]
    assert planned.num_frames == 25
    # the overlap is made again
    assert [clip.request.num_frames for clip in planned.clips] == [9, 13, 9]
    assert [clip.overlap for clip in planned.clips] == [0, 5, 1]


def test_window_is_no_longer_than_what_there_is_since_the_cut() -> None:
    shots = [{"num_frames": 5}, {"num_frames": 4}, {"num_frames": 4}, {"transition": "cut"}, {}]
    planned = plan(Story.parse({**SMALL, "clip_frames": 25, "window": 3, "shots": shots}))
    assert [shot.clips[0].window for shot in planned.shots] == [0, 2, 3, 0, 3]
    assert [len(shot.clips[0].history) for shot in planned.shots[:3]] == [0, 1, 2]


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("groups", [1, 4, 6, 7, 10, 13, 39])
def test_long_shots_are_made_of_few_even_clips(window: int, groups: int) -> None:
    shots = [
        {"num_frames": 4 * groups + 1},
        {"num_frames": 4 * groups},
        {"num_frames": 4 * groups, "transition": "morph", "last_frame": picture(1)},
    ]
    fields = {**SMALL, "clip_frames": 25, "window": window, "shots": shots}
    later = 7 - window  # groups of four in a clip with a window; 6 in one without
    for shot, free in zip(plan(Story.parse(fields)).shots, (6, later, 6), strict=True):
        lengths = [clip.num_new // 4 for clip in shot.clips]
        assert all((clip.request.num_frames or 99) <= 25 for clip in shot.clips)
        assert sum(clip.num_new for clip in shot.clips) == shot.num_frames
        assert len(lengths) == 1 + -(-max(0, groups - free) // later)
        assert max(lengths) - min(lengths) <= 1 or max(lengths) > later


def test_a_clip_led_on_by_a_picture_goes_on_from_one_frame() -> None:
    shots = [
        {"num_frames": 13},
        {"num_frames": 8},
        {"num_frames": 8, "keyframes": {5: picture(1)}},
        {"num_frames": 12, "transition": "morph", "last_frame": picture(2)},
    ]
    planned = plan(Story.parse({**SMALL, "window": 2, "shots": shots}))
    assert [[clip.window for clip in shot.clips] for shot in planned.shots] == [
        [0],
        [2],
        [1],
        [1],
    ]


def test_pictures_go_to_the_clip_and_the_frame_where_they_belong() -> None:
    shot = {"num_frames": 20, "keyframes": {"0.5s": picture(5)}, "last_frame": picture(6)}
    story = Story.parse({**SMALL, "window": 2, "shots": [{"num_frames": 9}, shot]})
    one, two = plan(story).shots[1].clips
    assert (one.num_new, two.num_new) == (8, 12)
    assert list(one.pictures) == [1 + 6]  # after one frame of overlap
    assert one.last_frame is None
    assert not two.pictures
    assert two.last_frame is not None


def test_a_change_gives_new_keys_to_a_shot_and_to_what_goes_on_from_it() -> None:
    shots = [
        {"first_frame": picture(1), "num_frames": 9},
        {"prompt": "jumps", "num_frames": 8},
        {"num_frames": 8, "transition": "morph", "last_frame": picture(2)},
        {"num_frames": 9, "transition": "cut"},
        {"num_frames": 8},
    ]
    story = Story.parse({**SMALL, "shots": shots})
    before = keys(story)
    assert keys(Story.parse({**SMALL, "shots": shots})) == before

    def changed(name: str, **changes: object) -> list[bool]:
        after = keys(story.with_shot(name, **changes))
        return [one != other for one, other in zip(before, after, strict=True)]

    assert changed("shot-2", prompt="runs") == [False, True, True, False, False]
    assert changed("shot-2", seed=5) == [False, True, True, False, False]
    assert changed("shot-3", last_frame=picture(3)) == [False, False, True, False, False]
    assert changed("shot-1", first_frame=picture(3)) == [True, True, True, False, False]
    assert changed("shot-4", prompt="x") == [False, False, False, True, True]
    # what changes no frame of a shot changes no key
    assert keys(story.with_shot("shot-5", name="renamed")) == before


def test_keys_depend_on_the_weights_and_on_what_clips_share() -> None:
    story = three_shots()
    before = keys(story)
    other = plan_story(story, replace(TARGET, sha256="1" * 64))
    assert not {clip.key for clip in other.clips} & {clip.key for clip in plan(story).clips}
    assert all(a != b for a, b in zip(keys(three_shots(fps=10)), before, strict=True))
    # the first shot knows neither window nor anchor
    assert keys(three_shots(window=1))[0] == before[0]
    assert keys(three_shots(window=1))[1] != before[1]
    assert keys(three_shots(colour_anchor=0.5))[0] == before[0]
    assert keys(three_shots(colour_anchor=0.5))[1] != before[1]


def test_colours_are_held_from_cut_to_cut_and_renewed_by_a_morph() -> None:
    shots = [
        {"num_frames": 9},
        {"num_frames": 8},
        {"num_frames": 8, "transition": "morph", "last_frame": picture(2)},
        {"num_frames": 8},
        {"num_frames": 9, "transition": "cut"},
        {"num_frames": 8},
    ]
    one, two, three, four, five, six = plan(Story.parse({**SMALL, "shots": shots})).clips
    assert one.anchor is None
    assert two.anchor == (one.key, 0)
    assert three.anchor is None
    assert four.anchor == (three.key, -1)
    assert five.anchor is None
    assert six.anchor == (five.key, 0)


def test_size_is_that_of_the_earliest_picture_and_pictures_are_fitted() -> None:
    shots = [{"num_frames": 5}, {"num_frames": 4, "last_frame": picture(1, 30, 60)}]
    planned = plan(Story.parse({"shots": shots}))
    assert planned.size == Size(64, 32)
    assert [each.size for each in planned.pictures.values()] == [(32, 64)]


def test_what_cannot_be_made_is_found_before_anything_is() -> None:
    missing = Story.parse({"shots": [{}, {"last_frame": "none.png"}]})
    with pytest.raises(InputError, match="Shot 2, last_frame: Picture 'none"):
        plan(missing)
    near = {"num_frames": 9, "keyframes": {5: picture(1), 6: picture(2)}}
    with pytest.raises(InputError, match="Shot 1: the pictures at frames 5 and 6 of one clip"):
        plan(Story.parse({**SMALL, "shots": [near]}))
    both = {"num_frames": 9, "first_frame": picture(1), "keyframes": {0: picture(2)}}
    with pytest.raises(InputError, match="first_frame and keyframe:0 are both at frame 0"):
        plan(Story.parse({**SMALL, "shots": [both]}))
    unequal = {"first_frame": picture(1), "last_frame": picture(2)}
    with pytest.raises(InputError, match="loop needs the same picture"):
        plan(Story.parse({**SMALL, "loop": True, "shots": [unequal]}))


def test_the_facts_of_a_model_are_known_without_loading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    monkeypatch.setenv("PIXELDANCE_WEIGHTS", str(tmp_path))
    loaded = load(tmp_path / "tiny", device="cpu", dtype="float32")
    assert Target.find("tiny") == Target.find(str(tmp_path / "tiny")) == Target.of(loaded)
    (tmp_path / "tiny" / "vae" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="The configuration of 'tiny' is damaged"):
        Target.find("tiny")
