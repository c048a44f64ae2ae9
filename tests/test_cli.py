import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tiny import picture, tiny_pipeline
from typer.testing import CliRunner, Result

from pixeldance import __version__
from pixeldance.api import Model, StepEvent, load
from pixeldance.cli import app
from pixeldance.errors import GenerationCancelled
from pixeldance.request import GenerationRequest
from pixeldance.video import read_clip, read_recipe

SMALL = (
    *("--model", "tiny", "--height", "32", "--width", "48"),
    *("--num-frames", "9", "--steps", "2", "--seed", "1"),
)


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A test run that a shell started in the background would ignore SIGINT, its children too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model in it, called tiny."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_pipeline().save_pretrained(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def model(weights: Path) -> Model:
    return load(weights / "tiny", device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXELDANCE_WEIGHTS", str(weights))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, model: Model) -> Model:
    """The model is loaded once for all tests that take this."""
    monkeypatch.setattr("pixeldance.api.load", lambda *args, **options: model)
    return model


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GenerationRequest]]:
    """What the model is asked for, in place of asking it."""
    received: list[GenerationRequest] = []

    def generate_many(request: GenerationRequest, **options: object) -> None:
        received.append(request)
        raise GenerationCancelled("enough")

    Path("pixeldance-mini").mkdir()
    Path("pixeldance-mini", "model_index.json").touch()
    stub = SimpleNamespace(generate_many=generate_many, memory_plan=None)
    monkeypatch.setattr("pixeldance.api.load", lambda *args, **options: stub)
    return received


def run(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def error_of(result: Result, exit_code: int) -> str:
    """The one line of a failed command."""
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    return result.stderr


# ---- generate


def test_a_clip_is_written_and_its_path_is_all_of_stdout(loaded: Model, tmp_path: Path) -> None:
    picture(1).save("first.png")
    result = run("generate", "--prompt", "a red fox", "--first-frame", "first.png", *SMALL)
    assert (result.exit_code, result.stdout) == (0, "clip.mp4\n"), result.stderr
    assert names(tmp_path) == ["clip.json", "clip.mp4", "first.png"]
    clip = read_clip("clip.mp4")
    assert (clip.frames.shape, clip.fps) == ((9, 32, 48, 3), Fraction(12))
    assert clip.recipe is not None
    assert clip.recipe["request"]["prompt"] == "a red fox"


def test_progress_is_all_of_stderr(loaded: Model) -> None:
    lines = run("generate", *SMALL).stderr.splitlines()
    assert lines[0] == "Loading tiny"
    assert [line.split(",")[0] for line in lines[1:]] == ["step 1/2", "step 2/2"]
    assert "s per step" in lines[1]
    assert lines[1].endswith(" s left")
    assert lines[2].endswith("decoding")


def test_json_names_what_was_written(loaded: Model, tmp_path: Path) -> None:
    arguments = ("--num-videos", "2", "--contact-sheet", "sheet.png", "--json")
    result = run("generate", *SMALL, *arguments)
    clips = json.loads(result.stdout)["clips"]
    assert [(clip.pop("path"), clip.pop("contact_sheet")) for clip in clips] == [
        ("clip-1.mp4", "sheet-1.png"),
        ("clip-2.mp4", "sheet-2.png"),
    ]
    hashes = [read_recipe(f"clip-{number}.mp4")["frames"]["sha256"] for number in (1, 2)]
    shape = {"fps": 12, "duration": 0.75, "num_frames": 9, "height": 32, "width": 48}
    assert clips == [
        {"seed": seed, "sha256": sha256, **shape} for seed, sha256 in enumerate(hashes, start=1)
    ]
    files = [f"clip-{i}.{end}" for i in (1, 2) for end in ("json", "mp4")]
    assert names(tmp_path) == [*files, "sheet-1.png", "sheet-2.png"]


def test_without_options_the_request_has_its_defaults(requests: list[GenerationRequest]) -> None:
    assert run("generate").exit_code == 130
    assert requests == [GenerationRequest()]


def test_every_field_of_a_request_has_an_option(requests: list[GenerationRequest]) -> None:
    picture(1).save("a=b.png")
    fields: dict[str, Any] = {
        "prompt": "a fox",
        "negative_prompt": "a cat",
        "first_frame": "a=b.png",
        "last_frame": "a=b.png",
        "keyframes": {5: "a=b.png", 9: "a=b.png"},
        "last_frame_strength": 0.5,
        "aspect_ratio": "1:1",
        "fit": "cover",
        "focus": (0.25, 1.0),
        "duration": 2.0,
        "fps": 8,
        "num_inference_steps": 3,
        "guidance_scale": 4.5,
        "guidance_scale_2": 2.5,
        "seed": 7,
        "num_videos": 2,
        "model": "tiny",
    }
    given = (
        "--prompt|a fox|--negative-prompt|a cat|--first-frame|a=b.png|--last-frame|a=b.png|"
        "--keyframe|5=a=b.png|--keyframe|9=a=b.png|--last-frame-strength|0.5|--aspect-ratio|1:1|"
        "--fit|cover|--focus|0.25,1|--duration|2|--fps|8|--steps|3|--guidance-scale|4.5|"
        "--guidance-scale-2|2.5|"
        "--seed|7|--num-videos|2|--model|tiny"
    )
    run("generate", *given.split("|"))
    sizes = {"height": 16, "width": 32, "num_frames": 5}
    run("generate", "--height", 16, "--width", 32, "--num-frames", 5)
    assert requests == [GenerationRequest(**fields), GenerationRequest(**sizes)]
    assert fields.keys() | sizes.keys() == GenerationRequest.model_fields.keys()


def test_help_texts_and_defaults_are_those_of_the_request() -> None:
    shown = " ".join(run("generate", "--help").stdout.split())
    for name in ("prompt", "first_frame", "fps", "last_frame_strength"):
        assert GenerationRequest.model_fields[name].description in shown
    assert "[default: 8]" in shown
    assert "needs a --guidance-scale above 1" in shown


# ---- what is refused, before a model is looked for


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def bomb(path: Path) -> None:
    """A header that promises 50000 x 50000 pixels."""
    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def truncated(path: Path) -> None:
    picture(1).save(path)
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (bomb, "Scale it down"),
        (truncated, "Export it again"),
        (lambda path: path.write_text("no picture"), "Export it as PNG"),
        (lambda path: Image.new("RGB", (1, 1)).save(path), "Use a larger picture"),
        (lambda path: None, "Check the path"),
    ],
    ids=["bomb", "truncated", "text", "one pixel", "missing"],
)
@pytest.mark.parametrize("option", ["--first-frame", "--last-frame", "--keyframe"])
def test_a_bad_picture_is_one_line_and_leaves_no_file(
    make: Callable[[Path], object], remedy: str, option: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    make(bad)
    before = names(tmp_path)
    source = f"4={bad}" if option == "--keyframe" else bad
    error = error_of(run("generate", option, source, *SMALL), 2)
    assert "bad.png" in error
    assert remedy in error
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps 500", "--steps must be at most 200, got 500. Use 200 or less."),
        ("--num-frames 10", "Use 9 or 13"),
        ("--last-frame-strength 0.5", "without a --last-frame. Give a --last-frame"),
        ("--fit first_frame", "got 'first_frame'"),
        ("--focus left", "focus must be two numbers from 0 to 1 like 0.5,0.3, got 'left'"),
        ("--keyframe fox.png", "--keyframe must be FRAME=PICTURE like 12=fox.png, got 'fox.png'"),
        ("--keyframe 4=a.png --keyframe 4=b.png", "gives frame 4 twice. Leave one out"),
        ("--keyframe x=a.png", "frame numbers as keys, got 'x'"),
        ("--output clip.avi", "must end in '.mp4'"),
        ("--output missing/clip.mp4", "mkdir -p 'missing'"),
        ("--output taken.mp4", "'taken.mp4' already exists"),
        ("--output free.mp4 --contact-sheet taken.png", "'taken.png' already exists"),
        ("--contact-sheet sheet.jpg", "must end in '.png'"),
        ("--output many.mp4 --num-videos 2", "'many-2.mp4' already exists"),
        ("--output recipe.mp4", "'recipe.json' already exists"),
    ],
)
def test_a_wrong_request_is_refused(arguments: str, message: str, tmp_path: Path) -> None:
    for name in ("taken.mp4", "taken.png", "many-2.mp4", "recipe.json"):
        Path(name).touch()
    before = names(tmp_path)
    assert message in error_of(run("generate", *arguments.split()), 2)
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--promt", "a fox"], "No such option: --promt"),
        (["generate", "--steps", "many"], "Invalid value for '--steps'"),
        (["generate", "surplus"], "unexpected extra argument"),
        (["genrate"], "No such command 'genrate'"),
        (["info"], "Missing argument"),
    ],
)
def test_wrong_usage_is_told_on_stderr(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "\x1b" not in result.stderr


def test_a_missing_model_is_a_failure() -> None:
    result = run("generate", "--model", "tinny")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: There is no model 'tinny'. Did you mean 'tiny'?" in result.stderr


def test_existing_files_are_replaced_on_demand(loaded: Model) -> None:
    for name in ("clip.mp4", "clip.json", "sheet.png"):
        Path(name).write_text("old")
    result = run("generate", *SMALL, "--contact-sheet", "sheet.png", "--overwrite")
    assert (result.exit_code, result.stdout) == (0, "clip.mp4\nsheet.png\n"), result.stderr
    assert read_clip("clip.mp4").recipe == json.loads(Path("clip.json").read_text())
    with Image.open("sheet.png") as sheet:
        assert sheet.format == "PNG"


# ---- failures on the way


def stub_model(monkeypatch: pytest.MonkeyPatch, generate_many: Callable[..., Any]) -> None:
    stub = SimpleNamespace(generate_many=generate_many, memory_plan=None)
    monkeypatch.setattr("pixeldance.api.load", lambda *args, **options: stub)


def test_if_one_of_several_clips_cannot_be_written_none_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def save(path: Path, **options: object) -> None:
        if path.name == "clip-2.mp4":
            raise KeyboardInterrupt
        path.touch()
        path.with_suffix(".json").touch()

    clips = [SimpleNamespace(save=save)] * 3
    stub_model(monkeypatch, lambda *args, **options: clips)
    result = run("generate", *SMALL, "--num-videos", "3")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.endswith("Stopped. Nothing was written.\n")
    assert names(tmp_path) == []


def fail(*args: object, **options: object) -> None:
    raise RuntimeError("two\nlines")


def test_an_unforeseen_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_model(monkeypatch, fail)
    result = run("generate", *SMALL)
    assert result.exit_code == 1
    assert result.stderr == (
        "Loading tiny\nerror: RuntimeError: two lines. Add --debug to see where it comes from.\n"
    )


def test_debug_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_model(monkeypatch, fail)
    result = run("generate", *SMALL, "--debug")
    assert result.exit_code == 1
    assert "in fail\n" in result.stderr
    assert result.stderr.endswith("error: RuntimeError: two lines.\n")


def test_on_a_terminal_progress_is_one_line_that_ends_before_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate_many(request: GenerationRequest, *, on_step: Callable[..., Any]) -> None:
        on_step(StepEvent(1, 20, 2.0, 38.0))
        on_step(StepEvent(10, 20, 20.0, 20.0))
        fail()

    stub_model(monkeypatch, generate_many)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        app(["generate", *SMALL])
    output = capsys.readouterr()
    _, first, second = output.err.split("\r")
    assert first.rstrip() == f"[#{'.' * 23}] step 1/20, 2.00 s per step, 38 s left"
    line, error, end = second.split("\n")
    assert line.rstrip() == f"[{'#' * 12}{'.' * 12}] step 10/20, 2.00 s per step, 20 s left"
    assert error.startswith("error: ")
    assert (end, output.out) == ("", "")


def test_a_long_generation_reports_tenths(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate_many(request: GenerationRequest, *, on_step: Callable[..., Any]) -> None:
        for step in range(1, 201):
            on_step(StepEvent(step, 200, step, 200 - step))
        fail()

    stub_model(monkeypatch, generate_many)
    lines = run("generate", *SMALL).stderr.splitlines()[1:-1]
    assert [line.split(",")[0] for line in lines] == [f"step {20 * i}/200" for i in range(1, 11)]


def python(code: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_help_and_wrong_requests_import_nothing_heavy() -> None:
    code = """
import sys
from pixeldance.cli import app
for arguments in (["--help"], ["generate", "--help"], ["generate", "--first-frame", "missing.png"]):
    try:
        app(arguments)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
print({"av", "diffusers", "gradio", "torch", "transformers"} & set(sys.modules), file=sys.stderr)
"""
    with python(["-c", code]) as process:
        _, errors = process.communicate(timeout=120)
    assert errors.splitlines() == [
        "0",
        "0",
        "error: Picture 'missing.png' does not exist. Check the path.",
        "2",
        "set()",
    ]


def test_ctrl_c_while_sampling_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, model: Model, tmp_path: Path
) -> None:
    steps: list[int] = []

    def generate_many(request: GenerationRequest, **options: object) -> object:
        def interrupt(event: StepEvent) -> None:
            steps.append(event.step)
            os.kill(os.getpid(), signal.SIGINT)

        return model.generate_many(request, on_step=interrupt)

    stub_model(monkeypatch, generate_many)
    result = run("generate", *SMALL, "--steps", "200", "--contact-sheet", "sheet.png")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "Loading tiny\nStopped. Nothing was written.\n"
    assert steps == [1]
    assert names(tmp_path) == []


def test_ctrl_c_ends_the_process_without_a_traceback(tmp_path: Path) -> None:
    code = f"""
import sys, time, types
class Model:
    memory_plan = None

    def generate_many(request, on_step):
        print("running", file=sys.stderr, flush=True)
        time.sleep(60)
sys.modules["pixeldance.api"] = types.SimpleNamespace(load=lambda *args, **options: Model)
from pixeldance.cli import main
sys.argv[1:] = ["generate", *{SMALL}]
main()
"""
    interrupted(["-c", code], "running")
    assert names(tmp_path) == []


@pytest.mark.slow
def test_ctrl_c_stops_the_real_process(tmp_path: Path) -> None:
    arguments = ["generate", *SMALL, "--steps", "200", "--contact-sheet", "sheet.png"]
    interrupted(["-m", "pixeldance", *arguments], "step 20/200")
    assert names(tmp_path) == []


def interrupted(code: Sequence[str], running: str) -> None:
    """Start Python, press Ctrl-C once it tells that it is running, and look at how it ends."""
    with python(code) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline(), process.stderr.readline()]
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert lines[0] == "Loading tiny\n"
    assert lines[1].startswith(running)
    assert errors.splitlines()[-1] == "Stopped. Nothing was written."
    assert "Traceback" not in errors
    assert (process.returncode, output) == (130, "")


# ---- info and rerun


@pytest.fixture(scope="module")
def original(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    clip = model.generate(
        first_frame=picture(1), height=32, width=48, num_frames=9, num_inference_steps=2, seed=1
    )
    return clip.save(tmp_path_factory.mktemp("original") / "clip.mp4")


@pytest.fixture
def clip(loaded: Model, original: Path, tmp_path: Path) -> Path:
    """A clip with its recipe beside it."""
    for path in (original, original.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    return tmp_path / "clip.mp4"


def test_info_tells_how_a_clip_was_made(clip: Path) -> None:
    result = run("info", clip)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "9 frames, 48 x 32 pixels" in result.stdout
    assert "seed      1\n" in result.stdout


@pytest.mark.parametrize("name", ["clip.mp4", "clip.json"])
def test_info_as_json_is_the_recipe(clip: Path, name: str) -> None:
    assert json.loads(run("info", clip.with_name(name), "--json").stdout) == read_recipe(clip)


def test_info_about_something_else_is_wrong_input(tmp_path: Path) -> None:
    Path("text.mp4").write_text("no clip")
    assert "'text.mp4' is not an MP4" in error_of(run("info", "text.mp4"), 2)
    assert "'missing.mp4' does not exist" in error_of(run("info", "missing.mp4"), 2)


def test_a_rerun_makes_equal_frames_and_writes_nothing(clip: Path, tmp_path: Path) -> None:
    before = names(tmp_path)
    result = run("rerun", clip)
    sha256 = read_recipe(clip)["frames"]["sha256"]
    assert (result.exit_code, result.stdout) == (0, f"equal {sha256}\n"), result.stderr
    assert names(tmp_path) == before


def test_a_rerun_can_be_written_and_told_as_json(clip: Path, tmp_path: Path) -> None:
    assert "already exists" in error_of(run("rerun", clip, "--output", clip), 2)
    result = run("rerun", clip, "--output", "again.mp4", "--json")
    sha256 = read_recipe("again.mp4")["frames"]["sha256"]
    assert json.loads(result.stdout) == {
        "equal": True,
        "recorded": sha256,
        "made": sha256,
        "path": "again.mp4",
    }


def test_a_rerun_loads_the_recorded_model_in_the_recorded_way(
    weights: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(
        model: str, *, device: str, dtype: str, memory: str, loras: list[str], step_cache: Any
    ) -> None:
        calls.append((model, device, dtype, memory, loras, step_cache))
        raise GenerationCancelled("enough")

    monkeypatch.setattr("pixeldance.api.load", record)
    run("rerun", clip)
    run("rerun", clip, "--model", weights / "tiny", "--lora", "a.safetensors", "--memory", "8gb")
    found = (str(weights / "tiny"), "cpu", "float32")
    assert calls == [(*found, "auto", [], None), (*found, "8gb", ["a.safetensors"], None)]


def tamper(clip: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    recipe = json.loads(clip.with_suffix(".json").read_text())
    change(recipe)
    path = clip.with_name("tampered.json")
    path.write_text(json.dumps(recipe))
    return path


def test_a_rerun_of_a_changed_recipe_says_that_the_frames_differ(clip: Path) -> None:
    def change(recipe: dict[str, Any]) -> None:
        recipe["seed"] = 2
        recipe["versions"]["torch"] = "1.0"

    result = run("rerun", tamper(clip, change))
    assert result.exit_code == 1
    assert result.stdout.startswith("different ")
    last = result.stderr.splitlines()[-1]
    assert read_recipe(clip)["frames"]["sha256"] in last
    assert "Other versions: torch 1.0 then," in last


@pytest.mark.parametrize(
    ("change", "exit_code", "message"),
    [
        (lambda recipe: recipe["model"].update(name="other"), 1, "'other', which is not found"),
        (lambda recipe: recipe["model"].update(name="owner/name"), 1, "a name without folders"),
        (lambda recipe: recipe["request"].update(promt="a fox"), 2, "Did you mean 'prompt'?"),
        (lambda recipe: recipe["request"].update(first_frame="/etc/passwd"), 2, "no sha256"),
        (lambda recipe: recipe.update(pictures={}), 2, "needs pictures that are not given"),
        (lambda recipe: recipe.update(seed="one"), 1, "'seed' must be a whole number"),
        (lambda recipe: recipe.update(schema_version=99), 1, "Update pixeldance"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_before_loading(
    clip: Path, change: Callable[[dict[str, Any]], object], exit_code: int, message: str
) -> None:
    assert message in error_of(run("rerun", tamper(clip, change)), exit_code)


def test_a_rerun_with_other_weights_is_refused(clip: Path) -> None:
    changed = tamper(clip, lambda recipe: recipe["model"].update(sha256="0" * 64))
    result = run("rerun", changed)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "its frames would differ" in result.stderr


# ---- models, demo, version


def test_models_are_listed_with_size_fingerprint_and_folder(weights: Path, model: Model) -> None:
    files = [path for path in (weights / "tiny").rglob("*") if path.is_file()]
    listed = json.loads(run("models", "--json").stdout)["models"]
    assert {
        "name": "tiny",
        "folder": str(weights / "tiny"),
        "num_bytes": sum(path.stat().st_size for path in files),
        "sha256": model.sha256,
    } in listed
    lines = run("models").stdout.splitlines()
    assert len(lines) == len(listed)
    assert f"tiny  0.2 MB  {model.sha256[:12]}  {weights / 'tiny'}" in lines


def test_the_demo_uses_the_example_pictures(tmp_path: Path, loaded: Model) -> None:
    arguments = ("demo", "--model", "tiny", "--output-dir", "new/folder")
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == ["new/folder/clip.mp4", "new/folder/contact-sheet.png"]
    assert names(tmp_path / "new" / "folder") == ["clip.json", "clip.mp4", "contact-sheet.png"]
    request = read_recipe("new/folder/clip.mp4")["request"]
    assert request["prompt"]
    assert [request[role]["name"] for role in ("first_frame", "last_frame")] == [
        "first.png",
        "last.png",
    ]
    assert request["first_frame"]["sha256"] != request["last_frame"]["sha256"]
    assert "--overwrite" in run(*arguments).stderr


def test_a_demo_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    assert run("demo", "--model", "none", "--output-dir", "new/folder").exit_code == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize("argument", ["version", "--version"])
def test_the_version_is_printed(argument: str) -> None:
    assert run(argument).stdout == f"{__version__}\n"
