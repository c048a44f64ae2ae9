"""Wan checkpoints wherever a model can be given: batches, jobs, films, the server and its page."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tiny import picture
from tiny_wan import write_lora
from typer.testing import CliRunner

from pixeldance import api, batch
from pixeldance.backbones.lora import parse_lora
from pixeldance.backbones.options import ModelOptions
from pixeldance.cli import app
from pixeldance.errors import CheckpointError, InputError
from pixeldance.jobs import JobService, JobState, JobStore, ResidentModel, Worker, WorkerProcess
from pixeldance.jobs import __main__ as jobs_process
from pixeldance.request import GenerationRequest
from pixeldance.server import launch
from pixeldance.server.app import create_app
from pixeldance.server.settings import ServerSettings
from pixeldance.server.studio.context import StudioContext
from pixeldance.server.studio.form import FormPictures, clip_size, request_of, values_of
from pixeldance.server.studio.model_panel import model_html
from pixeldance.server.studio.presets import Preset, presets_of
from pixeldance.server.studio.restore import settings_of_job, settings_of_recipe
from pixeldance.server.studio.story_panel import story_html
from pixeldance.server.studio.story_view import StoryView
from pixeldance.server.studio.widgets import default_values
from pixeldance.stories import Story, Target, plan_story
from pixeldance.video import read_recipe

Checkpoint = Callable[[str], Path]

SMALL = {"height": 32, "width": 64, "num_frames": 5, "num_inference_steps": 2, "seed": 3}


@pytest.fixture
def experts(checkpoint: Checkpoint) -> str:
    """A checkpoint with two experts."""
    return str(checkpoint("i2v-a14b"))


@pytest.fixture
def loras(tmp_path: Path) -> tuple[str, str]:
    """One for each expert."""
    path = write_lora(tmp_path / "fox.safetensors", "diffusers")
    return f"high:{path}:0.5", f"low:{path}:0.25"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[JobService]:
    with JobService(JobStore(tmp_path / "data")) as service:
        yield service


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def worker_of(service: JobService, options: ModelOptions | None = None) -> Worker:
    def load(name: str) -> api.Model:
        return api.load(name, **(options or ModelOptions(device="cpu", dtype="float32")).to_load())

    return Worker(service.store, load_model=load)


# ---- the request


def test_the_second_scale_counts_and_is_in_the_recipe(experts: str) -> None:
    model = api.load(experts, device="cpu", dtype="float32")
    plain = model.generate(prompt="a red fox", guidance_scale=4.0, **SMALL)
    own = model.generate(prompt="a red fox", guidance_scale=4.0, guidance_scale_2=9.0, **SMALL)
    same = model.generate(prompt="a red fox", guidance_scale=4.0, guidance_scale_2=4.0, **SMALL)
    assert (own.frames != plain.frames).any()
    assert (same.frames == plain.frames).all()
    assert "guidance_scale_2" not in plain.recipe["request"]
    assert own.recipe["request"]["guidance_scale_2"] == 9.0
    assert (api.rerun(own.recipe, model=model).frames == own.frames).all()


def test_a_model_with_one_expert_refuses_it(checkpoint: Checkpoint) -> None:
    for folder in (str(checkpoint("fun-inp")), "pixeldance-mini"):
        model = api.load(folder, device="cpu", dtype="float32")
        with pytest.raises(InputError, match="guidance_scale_2 is for models with two experts"):
            model.generate(guidance_scale_2=2.0, **SMALL)


def test_recipes_name_the_loras_without_folders(experts: str, loras: tuple[str, str]) -> None:
    model = api.load(experts, device="cpu", dtype="float32", loras=loras)
    facts = model.generate(**SMALL).recipe["model"]
    assert facts["loras"] == "high:fox.safetensors:0.5, low:fox.safetensors:0.25"
    assert facts["memory"] == "all on the device"


def test_a_rerun_takes_the_loras(
    checkpoint: Checkpoint, loras: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXELDANCE_WEIGHTS", str(checkpoint("i2v-a14b").parent))
    model = api.load(checkpoint("i2v-a14b"), device="cpu", dtype="float32", loras=loras)
    clip = model.generate(**SMALL).save(tmp_path / "clip.mp4")
    refused = run("rerun", clip)
    assert refused.exit_code == 1
    assert "LoRAs high:fox.safetensors:0.5, low:fox.safetensors:0.25" in refused.stderr
    made = run("rerun", clip, "--lora", loras[0], "--lora", loras[1])
    assert (made.exit_code, made.stdout[:5]) == (0, "equal")


# ---- batches


def test_a_batch_with_loras_and_two_scales(
    experts: str, loras: tuple[str, str], tmp_path: Path
) -> None:
    rows = [
        {"id": "one", "prompt": "a red fox", "guidance_scale": 4.0, "guidance_scale_2": 2.0},
        {"id": "two", "prompt": "a cat", "guidance_scale": 4.0, "guidance_scale_2": 2.0},
        {"id": "three", "prompt": "a cat", "guidance_scale": 4.0},
    ]
    manifest = tmp_path / "jobs.jsonl"
    manifest.write_text("\n".join(json.dumps({**SMALL, **row}) for row in rows))
    options: dict[str, Any] = {"model": experts, "device": "cpu", "dtype": "float32"}
    summary = batch.run(manifest, tmp_path / "out", **options, loras=loras, batch_size=2)
    assert (len(summary.clips), summary.failed) == (3, [])
    recipes = {name: read_recipe(path) for name, path in summary.clips.items()}
    model = api.load(experts, device="cpu", dtype="float32", loras=loras)
    assert {recipe["model"]["sha256"] for recipe in recipes.values()} == {model.sha256}
    alone = model.generate(**{**SMALL, **{k: v for k, v in rows[2].items() if k != "id"}})
    assert recipes["three"]["frames"]["sha256"] == alone.recipe["frames"]["sha256"]
    assert recipes["one"]["request"]["guidance_scale_2"] == 2.0
    # Without its LoRAs it is another model, whose clips are not those.
    with pytest.raises(InputError, match="it was made with other weights"):
        batch.run(manifest, tmp_path / "out", **options)


def test_a_batch_refuses_what_the_model_cannot_do(checkpoint: Checkpoint, tmp_path: Path) -> None:
    manifest, folder = tmp_path / "jobs.csv", str(checkpoint("fun-inp"))
    manifest.write_text("prompt,guidance_scale_2\na fox,2\na cat,\n")
    plan = batch.make_plan(manifest, tmp_path / "out", model=folder)
    (rejected,) = plan.rejected
    assert "guidance_scale_2 is for models with two experts" in rejected.reason
    manifest.write_text("prompt\na fox\n")
    with pytest.raises(InputError, match="memory 8gb is for Wan checkpoints"):
        batch.run(manifest, tmp_path / "out", memory="8gb")
    command = ["batch", manifest, "--output-dir", tmp_path / "out", "--dry-run"]
    refused = run(*command, "--memory", "8gb")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert run(*command, "--model", folder, "--memory", "8gb").exit_code == 0
    assert not (tmp_path / "out").exists()


# ---- films


def test_a_film_with_loras_and_two_scales(
    experts: str, loras: tuple[str, str], tmp_path: Path
) -> None:
    picture(1, 64, 32).save(tmp_path / "first.png")
    command = ["loop", tmp_path / "first.png", "a red fox", "--model", experts, "--height", 32]
    command += ["--width", 64, "--duration", 0.4, "--steps", 1, "--guidance-scale", 3]
    command += ["--output", tmp_path / "loop.mp4", "--overwrite", "--json"]
    styled = [*command, "--lora", loras[0], "--lora", loras[1], "--guidance-scale-2", 2]
    films = [json.loads(run(*each).stdout)["film"]["sha256"] for each in (command, styled)]
    assert films[0] != films[1]
    # The LoRAs are in the keys of its clips: nothing is taken for what was made without them.
    assert len(list((tmp_path / "loop.clips").iterdir())) == 2
    again = run(*styled)
    assert json.loads(again.stdout)["film"]["sha256"] == films[1]
    assert "Loading" not in again.stderr


def test_a_film_refuses_what_the_model_cannot_do(checkpoint: Checkpoint) -> None:
    shots = [{"prompt": "a fox", "num_frames": 5}]
    one_expert = Target.find(str(checkpoint("fun-inp")))
    with pytest.raises(InputError, match="guidance_scale_2 is for models with two experts"):
        plan_story(Story.parse({"shots": shots, "guidance_scale_2": 2.0}), one_expert)
    words_alone = Target.find(str(checkpoint("t2v-1.3b")))
    plan_story(Story.parse({"shots": shots}), words_alone)
    with pytest.raises(InputError, match="Shot 2: This checkpoint makes clips from text alone"):
        plan_story(Story.parse({"shots": [*shots, {"num_frames": 4}]}), words_alone)


# ---- jobs


def test_a_job_keeps_the_second_scale(experts: str, service: JobService) -> None:
    request = GenerationRequest(model=experts, guidance_scale=3.0, guidance_scale_2=2.0, **SMALL)
    job = service.add(request)
    assert job.request["guidance_scale_2"] == 2.0
    with worker_of(service) as worker:
        claimed = worker.claim()
        assert claimed is not None
        assert ResidentModel.read(service.store.folder) is None
        assert worker.run_job(claimed).state is JobState.DONE
        resident = ResidentModel.read(service.store.folder)
        assert resident is not None
        assert (resident.model, resident.facts["dtype"]) == (experts, "float32")
        assert resident.memory is not None
        assert "all parts stay on the device" in resident.memory
    assert ResidentModel.read(service.store.folder) is None
    recipe = read_recipe(service.clip_files(job.id, 1).clip)
    assert recipe["request"]["guidance_scale_2"] == 2.0
    drafts = StudioContext(service, ServerSettings(model=experts)).drafts
    for settings in (
        settings_of_job(service, job.id, drafts, models=[experts]),
        settings_of_recipe(recipe, drafts, models=["pixeldance-mini", experts]),
    ):
        assert settings.values["guidance_scale_2"] == 2.0
        assert settings.values["model"] == experts
    other = settings_of_job(service, job.id, drafts, models=["pixeldance-mini"])
    assert other.values["guidance_scale_2"] is None
    assert "The guidance of its second expert is left out" in other.message


def test_a_job_that_cannot_be_made_is_not_taken(
    checkpoint: Checkpoint, service: JobService
) -> None:
    for model in (str(checkpoint("fun-inp")), "pixeldance-mini"):
        with pytest.raises(InputError, match="guidance_scale_2 is for models with two experts"):
            service.add(GenerationRequest(model=model, guidance_scale_2=2.0))
    with pytest.raises(InputError, match="takes no pictures"):
        service.add(GenerationRequest(model=str(checkpoint("t2v-1.3b")), first_frame=picture(1)))
    assert service.list().total == 0


def test_jobs_run_with_the_loras_of_the_model_named(
    experts: str, loras: tuple[str, str], service: JobService, tmp_path: Path
) -> None:
    job = service.add(GenerationRequest(model=experts, **SMALL))
    options = ["--model", experts, "--lora", loras[0], "--device", "cpu", "--dtype", "float32"]
    done = run("jobs", "run", "--data-dir", tmp_path / "data", *options)
    assert done.exit_code == 0
    assert "Memory: all parts stay on the device" in done.stderr
    recipe = read_recipe(service.clip_files(job.id, 1).clip)
    assert recipe["model"]["loras"] == "high:fox.safetensors:0.5"


def test_the_worker_process_loads_with_the_options_of_the_server(
    experts: str, loras: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ModelOptions(dtype="float32", memory="12gb", loras=loras)
    process = WorkerProcess(tmp_path / "data", options=options, model=experts)
    loaded: dict[str, dict[str, Any]] = {}

    def load_both(worker: Worker) -> None:
        worker._load_model(experts)
        worker._load_model("pixeldance-mini")

    monkeypatch.setattr("sys.argv", process._command[2:])
    monkeypatch.setattr(api, "load", lambda name, **given: loaded.update({name: given}))
    monkeypatch.setattr(jobs_process, "run_until_told", load_both)
    jobs_process.main()
    assert ModelOptions(**loaded[experts]) == options
    assert ModelOptions(**loaded["pixeldance-mini"]) == ModelOptions(dtype="float32")


# ---- the server and its page


def test_the_server_hands_its_options_to_the_worker(
    experts: str, loras: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[ServerSettings] = []
    monkeypatch.setattr(launch, "serve", lambda settings, **_: served.append(settings))
    done = run("serve", "--model", experts, "--memory", "12gb", "--lora", loras[0])
    assert done.exit_code == 0
    (settings,) = served
    lora = str(parse_lora(loras[0]))
    assert settings.model_options == ModelOptions(memory="12gb", loras=(lora,))
    assert (settings.loras_of(experts), settings.loras_of("pixeldance-mini")) == ((lora,), ())


def test_a_server_does_not_start_with_options_without_effect(tmp_path: Path) -> None:
    settings = ServerSettings(model_options=ModelOptions(memory="8gb"))
    with pytest.raises(InputError, match="memory 8gb is for Wan checkpoints"):
        launch.serve(settings, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_api_takes_and_refuses_the_second_scale(experts: str, service: JobService) -> None:
    settings = ServerSettings(model=experts)
    application = create_app(service, settings, has_page=False)
    http = TestClient(application, base_url="http://127.0.0.1:7860")
    form = {"prompt": "a fox", "guidance_scale": "3", "guidance_scale_2": "2.5"}
    taken = http.post("/v1/videos", data=form)
    assert taken.status_code == 200, taken.text
    assert taken.json()["request"]["guidance_scale_2"] == 2.5
    refused = http.post("/v1/videos", data={**form, "model": "pixeldance-mini"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "guidance_scale_2"


def test_the_form_of_a_model_with_two_experts(experts: str, service: JobService) -> None:
    context = StudioContext(service, ServerSettings(model=experts))
    facts = context.facts()
    assert facts is not None
    values = default_values(experts, facts)
    assert (values["num_inference_steps"], values["guidance_scale"], values["fps"]) == (40, 3.5, 16)
    assert presets_of(facts) == {"Draft": Preset(20, 3.5), "Standard": Preset(40, 3.5)}
    assert clip_size(values, FormPictures(), facts) == facts.size_for("auto", None)

    def request(**changes: Any) -> GenerationRequest:
        chosen = {**values, **changes}
        known = context.facts(chosen["model"])
        given = FormPictures()
        return request_of(chosen, given, context.drafts, models=context.models, facts=known)

    assert request(guidance_scale_2=2.0).guidance_scale_2 == 2.0
    assert values_of(request(guidance_scale_2=2.0))["guidance_scale_2"] == 2.0
    # Another model has no such widget.
    assert request(guidance_scale_2=2.0, model="pixeldance-mini").guidance_scale_2 is None


def test_the_page_says_what_is_loaded(
    experts: str, loras: tuple[str, str], service: JobService
) -> None:
    settings = ServerSettings(model=experts, model_options=ModelOptions(loras=loras))
    context = StudioContext(service, settings)
    facts = context.facts()
    html = model_html(experts, facts, None)
    for words in ("<b>i2v-a14b</b>", "licence not stated", "two experts", "fox.safetensors:0.5"):
        assert words in html
    assert "loaded with the next clip" in html
    told = {"name": "i2v-a14b", "device": "cuda", "dtype": "bfloat16"}
    html = model_html(experts, facts, ResidentModel(experts, told, "parts <one> at a time"))
    assert "Loaded on cuda in bfloat16. Memory: parts &lt;one&gt; at a time" in html
    other = ResidentModel("pixeldance-mini", told, None)
    assert "pixeldance-mini is loaded on cuda" in model_html(experts, facts, other)
    assert "pixeldance fetch Wan-AI/Wan" in model_html("Wan-AI/Wan", None, None)


def test_the_storyboard_knows_the_loras(
    experts: str, loras: tuple[str, str], service: JobService
) -> None:
    options = ModelOptions(device="cpu", dtype="float32", loras=loras)
    settings = ServerSettings(model=experts, model_options=options)
    view = StoryView(StudioContext(service, settings))
    film = {"height": 32, "width": 64, "num_inference_steps": 1, "guidance_scale_2": 2.0}
    draft = {"film": film, "shots": [{"prompt": "a fox", "duration": 0.4}]}
    job = view.make(draft)
    assert job.request["story"]["guidance_scale_2"] == 2.0
    with worker_of(service, options) as worker:
        claimed = worker.claim()
        assert claimed is not None
        done = worker.run_job(claimed)
    assert done.state is JobState.DONE, done.traceback
    seen = view.look({**draft, "jobs": [job.id]})
    assert [shot["state"] for shot in seen["shots"]] == ["made"]
    plain = StoryView(StudioContext(service, ServerSettings(model=experts)))
    assert [shot["state"] for shot in plain.look(draft)["shots"]] == ["missing"]
    assert 'data-film="guidance_scale_2"' in story_html([experts], has_two_experts=True)
    assert 'data-film="guidance_scale_2"' not in story_html(["pixeldance-mini"])


def test_a_missing_model_is_no_secret(service: JobService, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(hub_id: str, **_: Any) -> str:
        raise FileNotFoundError(hub_id)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    context = StudioContext(service, ServerSettings(model="Wan-AI/Wan"))
    assert context.facts() is None
    with pytest.raises(CheckpointError):
        Target.find("Wan-AI/Wan")
