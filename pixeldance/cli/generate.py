"""Commands that make one clip or tell of one: generate, demo, info, rerun, models."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixeldance.cli.app import JsonOption, OverwriteOption, command, print_json
from pixeldance.cli.loading import LoraOption, MemoryOption, is_main, load_model
from pixeldance.cli.options import checked_request, with_request_options
from pixeldance.cli.screen import FAILED, progress, tell
from pixeldance.errors import CheckpointError, InputError
from pixeldance.request import GenerationRequest

if TYPE_CHECKING:
    from pixeldance.api import Clip

__all__ = ["demo", "generate", "info", "models", "rerun"]

EXAMPLES = Path(__file__).parents[1] / "examples"


@command
@with_request_options
def generate(
    fields: dict[str, Any],
    *,
    output: Annotated[
        Path, typer.Option(help="Where the clip goes, ending in .mp4; its recipe goes beside it.")
    ] = Path("clip.mp4"),
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Where to write a picture of its frames, ending in .png.")
    ] = None,
    memory: MemoryOption = "auto",
    lora: LoraOption = [],  # noqa: B006 - typer reads it
    parallel: Annotated[
        str | None,
        typer.Option(
            metavar="context|tensor|guidance|guidance+tensor",
            help="How the processes that torchrun or accelerate launch started share one clip: by "
            "its tokens, by the model's heads and weights, or one half doing the negative prompt.",
        ),
    ] = None,
    step_cache: Annotated[
        float | None,
        typer.Option(
            help="Skip steps that change little, for 10 steps and more: greater than 0, at most 1;"
            " 0.1 is a start. Faster, and a slightly different clip."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a clip from a prompt, pictures, both or neither.

    Prints the path of the clip, and of the contact sheet if one is asked for. Several clips are
    numbered: clip-1.mp4, clip-2.mp4, ...
    """
    request = checked_request(fields)
    _check_launch(parallel)
    options = {"memory": memory, "loras": lora, "parallel": parallel, "step_cache": step_cache}
    files = _generate(request, output, contact_sheet, overwrite=overwrite, options=options)
    if is_main():
        _print_files(files, as_json=as_json)


@command
def demo(
    *,
    output_dir: Annotated[
        Path, typer.Option(help="Folder for the clip and the contact sheet; made if missing.")
    ] = Path("pixeldance-demo"),
    model: Annotated[
        str, typer.Option(help=GenerationRequest.model_fields["model"].description)
    ] = GenerationRequest.model_fields["model"].default,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a clip from the two example pictures and print where it and its contact sheet are."""
    prompt = (EXAMPLES / "prompt.txt").read_text(encoding="utf-8").strip()
    request = GenerationRequest(
        prompt=prompt,
        first_frame=EXAMPLES / "first.png",
        last_frame=EXAMPLES / "last.png",
        seed=0,
        model=model,
    )
    tell(f"Making a clip of {prompt!r}")
    with _folder(output_dir):
        clip, sheet = output_dir / "clip.mp4", output_dir / "contact-sheet.png"
        files = _generate(request, clip, sheet, overwrite=overwrite)
    _print_files(files, as_json=as_json)


@command
def info(
    file: Annotated[Path, typer.Argument(help="A clip, or the .json file beside one.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Print how a clip was made: its request, seed, model, versions and timings."""
    from pixeldance.video import read_recipe, summarize_recipe

    recipe = read_recipe(file)
    if as_json:
        print_json(recipe)
    else:
        typer.echo(summarize_recipe(recipe))


@command
def rerun(
    file: Annotated[Path, typer.Argument(help="A clip, or the .json file beside one.")],
    *,
    output: Annotated[
        Path | None, typer.Option(help="Where the new clip goes; nothing is written without it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder of the model, if it is not found by its name.")
    ] = None,
    memory: MemoryOption = "auto",
    lora: LoraOption = [],  # noqa: B006 - typer reads it
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a clip again from its recipe and say whether its frames are the same.

    A clip that was made with LoRAs needs them again, see `pixeldance info`.
    The exit code is 0 if they are and 1 if they differ.
    """
    from pixeldance.video import check_clip_path, decode_pictures, read_recipe

    recipe = read_recipe(file)
    GenerationRequest.from_recipe(recipe["request"], decode_pictures(recipe))
    if output is not None:
        check_clip_path(output, overwrite=overwrite)
    recorded = recipe["model"]
    device = "cpu" if recorded.get("device") == "cpu" else "auto"
    dtype = recorded.get("dtype", "auto")
    from pixeldance import api
    from pixeldance.backbones.step_cache import recorded_threshold

    loaded = load_model(
        model or _installed(recorded["name"]),
        device=device,
        dtype=dtype,
        memory=memory,
        loras=lora,
        step_cache=recorded_threshold(recorded),
    )

    if "finishing" in recipe:
        tell("The clip was finished afterwards; it is made again as it was generated.")
    with progress() as on_step:
        clip = api.rerun(recipe, model=loaded, on_step=on_step)
    if output is not None:
        clip.save(output, overwrite=overwrite)
    _report_rerun(recipe, clip, output, as_json=as_json)


@command
def models(*, as_json: JsonOption = False) -> None:
    """List the models that are found by name: size, sha256 and folder."""
    from pixeldance.models.loading import available_models, search_folders, weights_sha256

    found: list[dict[str, Any]] = [
        {
            "name": name,
            "folder": str(folder),
            "num_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            "sha256": weights_sha256(folder),
        }
        for name, folder in available_models().items()
    ]
    if as_json:
        print_json({"models": found})
        return
    if not found:
        tell(f"No models in {', '.join(map(str, search_folders()))}.")
    for model in found:
        size = f"{model['num_bytes'] / 1e6:.1f} MB"
        typer.echo(f"{model['name']}  {size}  {model['sha256'][:12]}  {model['folder']}")


# ---- steps of the commands


def _check_launch(parallel: str | None) -> None:
    """Several processes must not make the same clip side by side and write it over each other's."""
    count = os.environ.get("WORLD_SIZE", "1")
    if parallel is None and count != "1":
        raise InputError(
            f"{count} processes were started for one request. Say how they share it with --parallel"
            " context, tensor or guidance, or start one."
        )


def _generate(
    request: GenerationRequest,
    output: Path,
    contact_sheet: Path | None,
    *,
    overwrite: bool,
    options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Make and save the clips of a request whose pictures are known to be readable.

    Returns:
        What was written, one mapping of JSON values per clip.
    """
    from pixeldance.video import check_clip_path
    from pixeldance.video.files import check_output_path

    outputs = _numbered(output, request.num_videos)
    sheets = [] if contact_sheet is None else _numbered(contact_sheet, request.num_videos)
    for path in outputs:
        check_clip_path(path, overwrite=overwrite)
    for path in sheets:
        check_output_path(path, suffix=".png", overwrite=overwrite)
    model = load_model(request.model, **(options or {}))
    if not is_main():  # it computes its share of the clips; the first process saves them
        model.generate_many(request, on_step=lambda _: None)
        return []
    with progress() as on_step:
        clips = model.generate_many(request, on_step=on_step)
    with _removed_on_failure([*outputs, *sheets]):
        for number, clip in enumerate(clips):
            sheet = sheets[number] if sheets else None
            clip.save(outputs[number], overwrite=overwrite, contact_sheet=sheet)
    return [
        _describe(clip, outputs[number], sheets[number] if sheets else None)
        for number, clip in enumerate(clips)
    ]


def _numbered(path: Path, count: int) -> list[Path]:
    if count == 1 or not path.name:
        return [path]
    return [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, count + 1)]


@contextmanager
def _removed_on_failure(paths: Sequence[Path]) -> Iterator[None]:
    """If not all of several files can be written, leave none; those that were there stay."""
    recipes = [path.with_suffix(".json") for path in paths if path.suffix.lower() == ".mp4"]
    new = [path for path in (*paths, *recipes) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder, and remove it again if nothing came of it."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The folder '{path}' cannot be made ({error.strerror}). Choose another --output-dir."
        ) from error
    try:
        yield
    except BaseException:
        for folder in missing:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _describe(clip: "Clip", path: Path, sheet: Path | None) -> dict[str, Any]:
    return {
        "path": str(path),
        "contact_sheet": None if sheet is None else str(sheet),
        "seed": clip.seed,
        "fps": clip.fps,
        "duration": clip.duration,
        **{key: clip.recipe["frames"][key] for key in ("num_frames", "height", "width", "sha256")},
    }


def _print_files(files: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json({"clips": files})
        return
    for file in files:
        typer.echo(file["path"])
        if file["contact_sheet"] is not None:
            typer.echo(file["contact_sheet"])


def _installed(name: str) -> str:
    """The folder of a recipe's model. A file must not make us load anything but what is installed.

    Raises:
        CheckpointError: If no model is found by that name.
    """
    from pixeldance.models.loading import available_models

    known = available_models()
    if name not in known:
        raise CheckpointError(
            f"The clip was made with the model {name!r}, which is not found by that name. "
            "Give its folder with --model."
        )
    return str(known[name])


def _report_rerun(
    recipe: Mapping[str, Any], clip: "Clip", output: Path | None, *, as_json: bool
) -> None:
    recorded, made = recipe["frames"]["sha256"], clip.recipe["frames"]["sha256"]
    is_equal = recorded == made
    if as_json:
        path = None if output is None else str(output)
        print_json({"equal": is_equal, "recorded": recorded, "made": made, "path": path})
    else:
        typer.echo(f"{'equal' if is_equal else 'different'} {made}")
        if output is not None:
            typer.echo(output)
    if not is_equal:
        tell(f"The frames differ from those of the recipe ({recorded}).{_changes(recipe, clip)}")
        raise typer.Exit(FAILED)


def _changes(recipe: Mapping[str, Any], clip: "Clip") -> str:
    """Which versions are others than those of a recipe, as a sentence."""
    from pixeldance.video.schema import printable

    then, now = recipe["versions"], clip.recipe["versions"]
    changes = [
        f"{name} {printable(then[name])} then, {version} now"
        for name, version in now.items()
        if name in then and then[name] != version
    ]
    return f" Other versions: {'; '.join(changes)}." if changes else ""
