"""What the buttons do to jobs."""

from collections.abc import Callable, Mapping
from typing import Any

from pixeldance.errors import InputError
from pixeldance.jobs import Job, JobService, JobState
from pixeldance.request import GenerationRequest

__all__ = ["act", "changes_between", "running_job"]


def act(service: JobService, event: Mapping[str, Any]) -> None:
    """Do something to a job.

    Args:
        service: The service.
        event: ``do``, what shall be done, and ``job``; it comes from a browser.

    Raises:
        InputError: If there is no such action or job, or it cannot be done.
    """
    actions: dict[str, Callable[[str], object]] = {
        "finish": service.finish_early,
        "pause": service.pause,
        "resume": service.resume,
        "up": lambda job_id: _move(service, job_id, -1),
        "down": lambda job_id: _move(service, job_id, 1),
        "next": service.run_next,
        "duplicate": service.duplicate,
        "requeue": service.requeue,
        "remove": service.remove,
    }
    do = str(event.get("do"))
    if do not in actions:
        raise InputError(f"The page asked for {do[:40]!r}, which is unknown. Reload it.")
    actions[do](str(event.get("job")))


def running_job(service: JobService) -> Job | None:
    """The job that runs.

    Args:
        service: The service.

    Returns:
        The job; None if none does.
    """
    jobs = service.list(state=JobState.RUNNING, limit=1).jobs
    return jobs[0] if jobs else None


def changes_between(job: Job, request: GenerationRequest) -> dict[str, Any]:
    """What must change for a job to have another request.

    Args:
        job: The job.
        request: The request.

    Returns:
        Values by field, None for those that are to be taken out.
    """
    given = {name: getattr(request, name) for name in request.model_fields_set}
    return {**dict.fromkeys(job.request), **given}


def _move(service: JobService, job_id: str, by: int) -> None:
    job = service.get(job_id)
    if job.place is None:
        raise InputError("The job does not wait any more, so it cannot be moved.")
    service.move(job_id, max(job.place + by, 0))
