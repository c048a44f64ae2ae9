"""Descriptions of stories: what is allowed, what is said about the rest."""

from pathlib import Path
from typing import Any

import pytest
from story_helpers import three_shots
from tiny import picture

from pixeldance.errors import InputError
from pixeldance.stories import Shot, Story, loop_story, morph_story, read_story, redone


def test_first_shot_is_a_cut_and_the_others_go_on() -> None:
    story = Story.parse({"shots": [Shot(prompt="a"), {"prompt": "b"}, Shot(transition="cut")]})
    assert [shot.transition for shot in story.shots] == ["cut", "continue", "cut"]
    assert [shot.name for shot in story.shots] == ["shot-1", "shot-2", "shot-3"]


@pytest.mark.parametrize(
    ("transition", "duration", "num_frames"),
    [("cut", 2.0, 25), ("cut", 0.1, 5), ("continue", 2.0, 24), ("continue", 0.1, 4)],
)
def test_duration_gives_the_nearest_possible_number_of_frames(
    transition: Any, duration: float, num_frames: int
) -> None:
    shot = Shot(transition=transition, duration=duration)
    assert shot.resolved_num_frames(fps=12) == num_frames


def test_keyframes_are_at_frames_or_seconds_of_the_shot() -> None:
    keyframes: Any = {12: picture(0), "0.5s": picture(1), -1: picture(2)}
    shot = Shot(transition="cut", num_frames=25, keyframes=keyframes)
    assert shot.keyframe_numbers(fps=12) == {
        6: "keyframe:0.5s",
        12: "keyframe:12",
        24: "keyframe:-1",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shots": []}, "shots must be a list of at least one shot"),
        ({"shots": [{"promt": "a"}]}, "Shot 1: Unknown field 'promt'. Did you mean 'prompt'"),
        ({"shot": [{}]}, "Unknown field 'shot'. Did you mean 'shots'"),
        ({"shots": [{"transition": "morph"}]}, "Shot 1: the first shot has nothing to morph"),
        ({"shots": [{}, {"transition": "morph"}]}, "Shot 2: transition morph needs a last_frame"),
        ({"shots": [{}, {"transition": "fade"}]}, "Shot 2: transition must be 'cut', 'continue'"),
        ({"shots": [{}, {"first_frame": "a.png"}]}, "Shot 2: first_frame is given with transition"),
        ({"shots": [{"num_frames": 24}]}, "Shot 1: num_frames must be one more .* Use 21 or 25"),
        ({"shots": [{}, {"num_frames": 25}]}, "Shot 2: num_frames must be a multiple .* Use 24 or"),
        ({"shots": [{"duration": 1, "num_frames": 5}]}, "Shot 1: duration and num_frames are both"),
        (
            {"shots": [{"last_frame_strength": 0.5}]},
            "Shot 1: last_frame_strength is 0.5, which has",
        ),
        (
            {"shots": [{"keyframes": {"1,5s": "a.png"}}]},
            "Shot 1: keyframes must have frame numbers",
        ),
        ({"shots": [{"keyframes": {"9s": "a.png"}}]}, "Shot 1: keyframe:9s: "),
        ({"shots": [{"keyframes": {6: "a", "0.5s": "b"}}]}, "both at frame 6"),
        ({"shots": [{"name": "a"}, {"name": "a"}]}, "Shots 1 and 2 are both called 'a'"),
        ({"shots": [{}], "fps": 0}, "fps must be at least 1, got 0"),
        ({"shots": [{}], "fps": 12.5}, "fps must be a whole number, got 12.5"),
        ({"shots": [{}], "height": 64}, "height is given without width"),
        ({"shots": [{}], "loop": True}, "loop needs a picture as first_frame"),
        ({"shots": [{}], "clip_frames": 9, "window": 3}, "clip_frames .9. leaves nothing to make"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_shot(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        Story.parse(fields)
    assert "\n" not in str(raised.value)


def test_yaml_pictures_are_looked_for_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "story.yaml"
    path.write_text(
        "shots:\n- first_frame: a.png\n  keyframes: {1.5s: b.png, 20: /c.png}\n- duration: 3\n"
    )
    shot, _ = read_story(path).shots
    assert shot.first_frame == tmp_path / "a.png"
    assert shot.keyframes == {"1.5s": tmp_path / "b.png", "20": Path("/c.png")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("shots: [", "is not valid YAML"),
        ("- a", "A story must map field names"),
        ("shots:\n- prompt: 3\n", "Shot 1: prompt must be text, got 3"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "story.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=f"'{path}'.*{message}"):
        read_story(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_story(tmp_path / "none.yaml")


def test_redone_changes_the_seed_of_one_shot_only() -> None:
    story = three_shots(seed=7)
    again = redone(story, "shot-2", seed=99)
    assert [shot.seed for shot in again.shots] == [None, 99, None]
    assert again.with_shot("shot-2", seed=None) == story.with_shot("shot-2", seed=None)
    assert redone(story, "shot-2").shots[1].seed is not None
    with pytest.raises(InputError, match="There is no shot 'x'"):
        redone(story, "x")


def test_time_lapse_goes_from_picture_to_picture() -> None:
    a, b, c = (picture(i) for i in range(3))
    first, second = morph_story([a, b, c], ["up", "down"]).shots
    assert (first.transition, first.first_frame, first.last_frame, first.prompt) == (
        *("cut", a, b, "up"),
    )
    assert (second.transition, second.last_frame, second.prompt) == ("morph", c, "down")
    with pytest.raises(InputError, match="2 ways between 3 pictures and 1 prompts"):
        morph_story([a, b, c], ["up"])
    with pytest.raises(InputError, match="needs at least 2 pictures, got 1"):
        morph_story([a])


def test_loop_is_steered_back_to_its_picture() -> None:
    story = loop_story(picture(0), "jumps", strength=0.25, duration=1)
    assert story.loop
    assert story.shots[0].last_frame_strength == 0.25
    assert story.shots[0].first_frame is story.shots[0].last_frame
