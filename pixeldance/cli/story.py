"""Commands for films: story, loop, morph."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixeldance.backbones.facts import ModelFacts
from pixeldance.backbones.options import ModelOptions
from pixeldance.cli.app import JsonOption, OverwriteOption, command, print_json
from pixeldance.cli.loading import LoraOption, MemoryOption, load_model
from pixeldance.cli.screen import INTERRUPTED, progress, tell
from pixeldance.errors import GenerationCancelled
from pixeldance.request import GenerationRequest

if TYPE_CHECKING:
    from pixeldance.stories import ClipCache, Story, StoryEvent, StoryListener, StoryPlan

__all__ = ["loop", "morph", "story"]

ClipsOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the finished clips, by which a film is gone on with or changed; beside "
        "the film if not given."
    ),
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="Where the film goes, ending in .mp4.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be made and make nothing.")
]
DurationOption = Annotated[float | None, typer.Option(help="Seconds; about 2 if not given.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the film.")]
FpsOption = Annotated[int, typer.Option(help="Frames per second, 1 to 60.")]
StepsOption = Annotated[int, typer.Option(help="Sampling steps, 1 to 200.")]
SideOption = Annotated[int | None, typer.Option(help="In pixels; height and width go together.")]
GuidanceOption = Annotated[
    float, typer.Option(help="How strongly the prompt is followed, 1 (off) to 100.")
]
SecondGuidanceOption = Annotated[
    float | None,
    typer.Option("--guidance-scale-2", help="That of the second expert, for models with two."),
]
ModelOption = Annotated[str, typer.Option(help="Name of the model, or a local folder with one.")]

_DEFAULTS = {name: field.default for name, field in GenerationRequest.model_fields.items()}


@command
def story(
    file: Annotated[Path, typer.Argument(help="The story in YAML, or the .json beside a film.")],
    *,
    output: OutputOption = Path("film.mp4"),
    redo: Annotated[
        list[str], typer.Option(help="A shot to make with another seed; may be repeated.")
    ] = [],  # noqa: B006 - typer's convention, never changed
    memory: MemoryOption = "auto",
    lora: LoraOption = [],  # noqa: B006 - typer reads it
    clips: ClipsOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a film of several shots from a story.

    Finished clips are kept beside the film: a run that was stopped goes on, and after a change only
    the shots that depend on it are made again.
    """
    from pixeldance.stories import read_film_recipe, read_story, redone, story_of_recipe

    is_recipe = file.suffix.lower() == ".json"
    told = story_of_recipe(read_film_recipe(file)) if is_recipe else read_story(file)
    for name in redo:
        told = redone(told, name)
        tell(f"{name}: seed {told.shots[told.number_of(name)].seed}")
    _make_film(
        told,
        output,
        ModelOptions(memory=memory, loras=tuple(lora)),
        clips=clips,
        dry_run=dry_run,
        overwrite=overwrite,
        as_json=as_json,
    )


@command
def loop(
    picture: Annotated[Path, typer.Argument(help="What the loop starts and ends with.")],
    prompt: Annotated[str, typer.Argument(help="What happens, in words.")] = "",
    *,
    output: OutputOption = Path("loop.mp4"),
    strength: Annotated[
        float | None,
        typer.Option(help="How strongly it is steered back to the picture, 0 to 1."),
    ] = None,
    duration: DurationOption = None,
    seed: SeedOption = 0,
    fps: FpsOption = _DEFAULTS["fps"],
    steps: StepsOption = _DEFAULTS["num_inference_steps"],
    guidance_scale: GuidanceOption = _DEFAULTS["guidance_scale"],
    guidance_scale_2: SecondGuidanceOption = None,
    height: SideOption = None,
    width: SideOption = None,
    model: ModelOption = _DEFAULTS["model"],
    memory: MemoryOption = "auto",
    lora: LoraOption = [],  # noqa: B006 - typer reads it
    clips: ClipsOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a clip that can be shown over and over: it ends where it began.

    Prints the path, how much moves and how well the end goes over into the beginning.
    """
    from pixeldance.stories import LOOP_STRENGTH, loop_story

    told = loop_story(
        picture,
        prompt,
        strength=LOOP_STRENGTH if strength is None else strength,
        duration=duration,
        seed=seed,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        guidance_scale_2=guidance_scale_2,
        height=height,
        width=width,
        model=model,
    )
    _make_film(
        told,
        output,
        ModelOptions(memory=memory, loras=tuple(lora)),
        clips=clips,
        dry_run=dry_run,
        overwrite=overwrite,
        as_json=as_json,
    )


@command
def morph(
    pictures: Annotated[list[Path], typer.Argument(help="Two or more pictures, in order.")],
    *,
    output: OutputOption = Path("morph.mp4"),
    prompt: Annotated[str, typer.Option(help="What happens between the pictures.")] = "",
    duration: Annotated[
        float | None, typer.Option(help="Seconds from picture to picture; about 2 if not given.")
    ] = None,
    seed: SeedOption = 0,
    fps: FpsOption = _DEFAULTS["fps"],
    steps: StepsOption = _DEFAULTS["num_inference_steps"],
    guidance_scale: GuidanceOption = _DEFAULTS["guidance_scale"],
    guidance_scale_2: SecondGuidanceOption = None,
    height: SideOption = None,
    width: SideOption = None,
    model: ModelOption = _DEFAULTS["model"],
    memory: MemoryOption = "auto",
    lora: LoraOption = [],  # noqa: B006 - typer reads it
    clips: ClipsOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a time-lapse that goes from picture to picture."""
    from pixeldance.stories import morph_story

    told = morph_story(
        pictures,
        prompt,
        duration=duration,
        seed=seed,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        guidance_scale_2=guidance_scale_2,
        height=height,
        width=width,
        model=model,
    )
    _make_film(
        told,
        output,
        ModelOptions(memory=memory, loras=tuple(lora)),
        clips=clips,
        dry_run=dry_run,
        overwrite=overwrite,
        as_json=as_json,
    )


# ---- steps of the commands


def _make_film(
    story: "Story",
    output: Path,
    options: ModelOptions,
    *,
    clips: Path | None,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Plan, make what is missing, write the film and print what it is."""
    from pixeldance.stories import ClipCache, Target, make_clips, plan_story, write_film
    from pixeldance.video import check_clip_path

    facts = ModelFacts.read(story.model, loras=options.loras)
    options.check(facts)
    plan = plan_story(story, Target.described(facts))
    cache = ClipCache(output.with_suffix(".clips") if clips is None else clips)
    if dry_run:
        _print_plan(plan, cache, as_json=as_json)
        return
    check_clip_path(output, overwrite=overwrite)
    if any(clip.key not in cache for clip in plan.clips):
        model = load_model(story.model, **options.to_load())
        with _kept_on_stop(cache), _progress() as on_event:
            make_clips(plan, cache, model, on_event=on_event)
    recipe = write_film(output, plan, cache, overwrite=overwrite)
    result = {"path": str(output), "clips": str(cache.folder), **recipe["film"]}
    if story.loop:
        result |= _measured(plan, cache)
    if as_json:
        print_json({"film": result})
        return
    typer.echo(output)
    if story.loop:
        tell(f"motion {result['motion']:.2f}, seam {result['seam']:.2f} (1 = cannot be seen)")


def _print_plan(plan: "StoryPlan", cache: "ClipCache", *, as_json: bool) -> None:
    from pixeldance.stories import shot_states

    fps = plan.story.fps
    states = shot_states(plan, cache)
    if as_json:
        shots = [
            {
                "name": state.shot.name,
                "transition": state.shot.shot.transition,
                "start": state.shot.start,
                "num_frames": state.shot.num_frames,
                "num_clips": len(state.shot.clips),
                "num_made": state.num_made,
            }
            for state in states
        ]
        whole = {"num_frames": plan.num_frames, "fps": fps, **plan.size._asdict()}
        print_json({"plan": {**whole, "shots": shots}})
        return
    for shot, num_made in states:
        missing = len(shot.clips) - num_made
        to_do = f"{missing} of {len(shot.clips)} clips to make" if missing else "made"
        typer.echo(
            f"{shot.start / fps:7.2f} s  {shot.num_frames / fps:6.2f} s  "
            f"{shot.shot.transition:<8}  {shot.name}  {to_do}"
        )
    size = f"{plan.size.width}x{plan.size.height}"
    typer.echo(f"{plan.num_frames / fps:7.2f} s, {plan.num_frames} frames, {size} pixels")


@contextmanager
def _kept_on_stop(cache: "ClipCache") -> Iterator[None]:
    """Say what a stopped run leaves behind: all clips that were finished."""
    try:
        yield
    except (KeyboardInterrupt, GenerationCancelled):
        if not cache.folder.is_dir():
            raise
        tell(f"Stopped. Finished clips are in {cache.folder}; the same command goes on from there.")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _progress() -> "Iterator[StoryListener]":
    """Show on stderr which clip of which shot is made."""
    with progress() as show:

        def listen(event: "StoryEvent") -> None:
            if event.step is not None and event.step.step == 1:
                tell(
                    f"{event.shot.name}, clip {event.clip} of {len(event.shot.clips)} "
                    f"({event.num_made + 1} of {event.num_clips} to make)"
                )
            if event.step is not None:
                show(event.step)

        yield listen


def _measured(plan: "StoryPlan", cache: "ClipCache") -> dict[str, float]:
    """How much moves in a loop and how big its seam is."""
    import numpy as np

    from pixeldance.evaluation.metrics import loop_seam, stillness
    from pixeldance.stories import film_frames

    frames = np.stack(list(film_frames(plan, cache)))
    return {"motion": 1 - stillness(frames), "seam": loop_seam(frames)}
