"""Commands about jobs: a queue that outlives every program. jobs list, add, show, run, ..."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixeldance.backbones.facts import ModelFacts
from pixeldance.backbones.options import ModelOptions
from pixeldance.cli.app import JsonOption, app, command_of, print_json
from pixeldance.cli.loading import (
    DeviceOption,
    DtypeOption,
    LoraOption,
    MemoryOption,
    load_model,
)
from pixeldance.cli.options import checked_request, with_request_options
from pixeldance.cli.screen import FAILED, progress, tell
from pixeldance.request import GenerationRequest

if TYPE_CHECKING:
    from pixeldance.api import Model
    from pixeldance.jobs import Job, JobService

__all__ = ["jobs"]

SECONDS_PER_DAY = 86400.0
PROMPT_WIDTH = 60

jobs = typer.Typer(
    name="jobs", help="A queue of clips to be made, kept on the disk.", no_args_is_help=True
)
app.add_typer(jobs)

DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the queue; $PIXELDANCE_DATA or the user's data folder if absent."),
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job.")]
JobsArgument = Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of jobs.")]


@command_of(jobs, "list")
def list_jobs(
    *,
    state: Annotated[
        list[str] | None,
        typer.Option(help="Only queued, running, done, failed, cancelled or interrupted ones."),
    ] = None,
    search: Annotated[str, typer.Option(help="Only jobs with this in their prompt.")] = "",
    limit: Annotated[int, typer.Option(help="How many at most, 1 to 1000.")] = 100,
    offset: Annotated[int, typer.Option(help="How many to leave out at the start.")] = 0,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs: what runs, what waits in the order of the queue, what is over, latest first."""
    with _opened(data_dir) as service:
        page = service.list(state=state, search=search, limit=limit, offset=offset)
        if as_json:
            print_json({"jobs": [job.to_json() for job in page.jobs], "total": page.total})
            return
        for job in page.jobs:
            typer.echo(_line(service, job))
        if len(page.jobs) < page.total:
            tell(f"{len(page.jobs)} of {page.total} jobs; see --limit and --offset.")


@command_of(jobs, "add")
@with_request_options
def add_job(
    fields: dict[str, Any],
    *,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Adding again with the same key adds nothing.")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a clip to be made at the end of the queue and print the id of its job.

    It is made by a server that runs, or with `pixeldance jobs run`.
    """
    request = checked_request(fields)
    with _opened(data_dir) as service:
        _print_job(service.add(request, idempotency_key=idempotency_key), as_json=as_json)


@command_of(jobs, "show")
def show_job(
    job_id: JobArgument, *, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Print all about a job: how far it is, its request, its files, why it failed."""
    with _opened(data_dir) as service:
        job, event = service.get(job_id), service.event(job_id)
        if as_json:
            print_json(
                {
                    **_with_files(service, job),
                    "traceback": job.traceback,
                    "event": event.to_json(),
                }
            )
            return
        typer.echo(_line(service, job))
        if job.error is not None:
            typer.echo(f"error: {job.error}")
        typer.echo(f"seed: {job.seed}")
        for name, value in job.request.items():
            if value not in ("", {}):
                typer.echo(f"{name}: {_shown(value)}")
        for path in _clips(service, job):
            typer.echo(path)


@command_of(jobs, "stop")
def stop_jobs(
    job_ids: JobsArgument, *, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Stop jobs: queued ones at once, a running one after its step."""
    _for_each(job_ids, lambda service, job_id: service.stop(job_id), data_dir, as_json=as_json)


@command_of(jobs, "finish")
def finish_job(
    job_id: JobArgument, *, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Have a running job make its clip of what there is after its step."""
    _for_each([job_id], lambda service, one: service.finish_early(one), data_dir, as_json=as_json)


@command_of(jobs, "pause")
def pause_jobs(
    job_ids: JobsArgument, *, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Pause jobs: queued ones are passed over, a running one waits after its step."""
    _for_each(job_ids, lambda service, job_id: service.pause(job_id), data_dir, as_json=as_json)


@command_of(jobs, "resume")
def resume_jobs(
    job_ids: JobsArgument, *, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Have paused jobs go on."""
    _for_each(job_ids, lambda service, job_id: service.resume(job_id), data_dir, as_json=as_json)


@command_of(jobs, "next")
def run_job_next(
    job_id: JobArgument, *, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Move a queued job to the head of the queue."""
    _for_each([job_id], lambda service, one: service.run_next(one), data_dir, as_json=as_json)


@command_of(jobs, "requeue")
def requeue_jobs(
    job_ids: JobsArgument, *, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Put jobs that failed, were stopped or interrupted back at the end of the queue."""
    _for_each(job_ids, lambda service, job_id: service.requeue(job_id), data_dir, as_json=as_json)


@command_of(jobs, "remove")
def remove_jobs(
    job_ids: JobsArgument, *, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Remove jobs that do not run, with their clips."""
    with _opened(data_dir) as service:
        for job_id in job_ids:
            service.remove(job_id)
    _print_ids("removed", job_ids, as_json=as_json)


@command_of(jobs, "clean")
def clean_jobs(
    *,
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Only jobs that ended so long ago.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(help="Only jobs beyond this many; the latest are kept.")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove jobs that are over, with their clips, and print their ids."""
    seconds = None if older_than is None else older_than * SECONDS_PER_DAY
    with _opened(data_dir) as service:
        removed = service.clean_up(older_than_s=seconds, keep=keep)
    _print_ids("removed", removed, as_json=as_json)


@command_of(jobs, "run")
def run_jobs(
    *,
    data_dir: DataDirOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    memory: MemoryOption = "auto",
    lora: LoraOption = [],  # noqa: B006 - typer reads it
    model: Annotated[
        str, typer.Option(help="The model that --lora is for; others are loaded without.")
    ] = GenerationRequest.model_fields["model"].default,
    as_json: JsonOption = False,
) -> None:
    """Make the clips of the queue here and now, until it is empty, and print their paths.

    The exit code is 1 if a job failed.
    """
    from pixeldance.jobs import JobState, Worker
    from pixeldance.jobs.requests import absolute_model

    options = ModelOptions(device=device, dtype=dtype, memory=memory, loras=tuple(lora))

    def load(name: str) -> "Model":
        facts = ModelFacts.read(name)
        return load_model(name, **options.of_model(facts, main=absolute_model(model)).to_load())

    done: list[Job] = []
    with _opened(data_dir) as service, Worker(service.store, load_model=load) as worker:
        while (job := worker.claim()) is not None:
            tell(f"Job {job.id}: {_short(job.request.get('prompt', ''))}")
            with progress() as on_step:
                done.append(worker.run_job(job, on_step=on_step))
            if done[-1].error is not None:
                tell(f"error: job {job.id}: {done[-1].error}")
            if not as_json:
                for path in _clips(service, done[-1]):
                    typer.echo(path)
        if as_json:
            print_json({"jobs": [_with_files(service, job) for job in done]})
    _fail_if(any(job.state is JobState.FAILED for job in done))


# ---- steps of the commands


@contextmanager
def _opened(data_dir: Path | None) -> "Iterator[JobService]":
    from pixeldance.jobs import JobService, JobStore

    with JobService(JobStore(data_dir)) as service:
        yield service


def _fail_if(has_failed: bool) -> None:
    if has_failed:
        raise typer.Exit(FAILED)


def _for_each(
    job_ids: Iterable[str],
    change: "Callable[[JobService, str], Job]",
    data_dir: Path | None,
    *,
    as_json: bool,
) -> None:
    """Change some jobs and print what became of them."""
    with _opened(data_dir) as service:
        changed = [change(service, job_id) for job_id in job_ids]
        if as_json:
            print_json({"jobs": [job.to_json() for job in changed]})
            return
        for job in changed:
            typer.echo(_line(service, job))


def _print_job(job: "Job", *, as_json: bool) -> None:
    if as_json:
        print_json(job.to_json())
    else:
        typer.echo(job.id)


def _print_ids(what: str, job_ids: Iterable[str], *, as_json: bool) -> None:
    if as_json:
        print_json({what: list(job_ids)})
        return
    for job_id in job_ids:
        typer.echo(job_id)


def _line(service: "JobService", job: "Job") -> str:
    """A job in one line."""
    from pixeldance.jobs import JobState

    state = job.state.value
    if job.state is JobState.QUEUED:
        state = f"queued {job.place}"
    elif job.state is JobState.RUNNING:
        event = service.event(job.id)
        state = f"{event.phase.value} {event.step}/{event.num_steps}"
    asked = (
        ("paused", job.is_paused),
        ("stopping", job.is_stopping),
        ("finishing", job.is_finishing),
    )
    state += "".join(f" {name}" for name, is_asked in asked if is_asked)
    return f"{job.id}  {state:<20}  {_short(job.request.get('prompt', ''))}".rstrip()


def _short(prompt: str) -> str:
    from pixeldance.video.schema import printable

    text = printable(" ".join(prompt.split()))
    return text if len(text) <= PROMPT_WIDTH else text[: PROMPT_WIDTH - 3] + "..."


def _shown(value: object) -> str:
    from pixeldance.video.schema import printable

    if isinstance(value, Mapping) and "sha256" in value:
        return f"{value['name'] or 'a picture'} {value['width']}x{value['height']}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_shown(one)}" for key, one in value.items())
    return printable(str(value))


def _clips(service: "JobService", job: "Job") -> list[str]:
    return [str(service.clip_files(job.id, clip.number).clip) for clip in job.clips]


def _with_files(service: "JobService", job: "Job") -> dict[str, Any]:
    """A job as JSON values, with the paths of its files."""
    files = [service.clip_files(job.id, clip.number)._asdict() for clip in job.clips]
    return {
        **job.to_json(),
        "files": [{name: str(path) for name, path in each.items()} for each in files],
    }
