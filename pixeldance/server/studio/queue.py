"""The queue as HTML: what waits, what went wrong, and what can be done about it."""

from collections.abc import Callable, Sequence

from pixeldance.jobs import Job, JobState
from pixeldance.server.studio.markup import button, text

__all__ = ["queue_html"]

STATES = {
    JobState.QUEUED: "Waiting",
    JobState.RUNNING: "Running",
    JobState.DONE: "Done",
    JobState.FAILED: "Failed",
    JobState.CANCELLED: "Stopped",
    JobState.INTERRUPTED: "Interrupted",
}


def queue_html(
    jobs: Sequence[Job], *, total: int, editing: str | None, url_of: Callable[[str], str]
) -> str:
    """Rows of the jobs that run, wait or went wrong.

    Args:
        jobs: The jobs, in order.
        total: How many there are in all; the others are counted.
        editing: The job that is being edited in the form.
        url_of: Address of the small copy of a picture, by its fingerprint.

    Returns:
        HTML.
    """
    if not jobs:
        return '<p class="st-empty">Nothing is waiting. Generate adds to this queue.</p>'
    rows = "".join(_row(job, is_edited=job.id == editing, url_of=url_of) for job in jobs)
    more = f'<p class="st-empty">and {total - len(jobs)} more</p>' if total > len(jobs) else ""
    return f'<ol class="st-queue">{rows}</ol>{more}'


def _row(job: Job, *, is_edited: bool, url_of: Callable[[str], str]) -> str:
    state = STATES[job.state]
    if job.is_paused:
        state = "Paused"
    elif job.state is JobState.QUEUED:
        state = "Next" if job.place == 0 else f"Waiting, {job.place} before it"
    pictures = "".join(
        f'<img src="{text(url_of(job.request[role]["sha256"]))}" alt="{alt}">'
        if role in job.request
        else '<span class="st-none" aria-hidden="true"></span>'
        for role, alt in (("first_frame", "First picture"), ("last_frame", "Last picture"))
    )
    error = f'<p class="st-problem">{text(job.error)}</p>' if job.error else ""
    prompt = text(job.request.get("prompt") or "No prompt")
    return (
        f'<li class="st-row st-{job.state.value}{" st-edited" if is_edited else ""}">'
        f'<div class="st-pair">{pictures}</div><div class="st-what"><p class="st-prompt" '
        f'title="{prompt}">{prompt}</p>'
        f'<p class="st-meta"><b>{text(state)}</b> · {_settings(job)}</p>'
        f'{error}</div><div class="st-buttons">{"".join(_buttons(job))}</div></li>'
    )


def _settings(job: Job) -> str:
    if job.is_film:
        return f"{job.num_steps} steps in all · seed {job.seed}"
    request = job.request
    count = request.get("num_videos", 1)
    parts = [f"{job.num_steps // count} steps", f"seed {job.seed}"]
    if count > 1:
        parts.insert(0, f"{count} clips")
    return text(" · ".join(parts))


def _buttons(job: Job) -> list[str]:
    copy = button("", "act", "duplicate", sign="copy", title="Add a copy to the queue", job=job.id)
    edit = button("", "form", "edit", sign="edit", title="Edit in the form", job=job.id)
    remove = button("", "act", "remove", sign="close", title="Remove from the queue", job=job.id)
    if job.state is JobState.RUNNING:
        return [] if job.is_film else [copy]
    if job.state is JobState.QUEUED:
        pause = (
            button("", "act", "resume", sign="play", title="Let it run again", job=job.id)
            if job.is_paused
            else button(
                "", "act", "pause", sign="pause", title="Pass it over until resumed", job=job.id
            )
        )
        is_first = job.place == 0
        return [
            button(
                "", "act", "up", sign="up", title="Move up", job=job.id, is_enabled=not is_first
            ),
            button("", "act", "down", sign="down", title="Move down", job=job.id),
            button(
                "", "act", "next", sign="top", title="Run next", job=job.id, is_enabled=not is_first
            ),
            pause,
            *([] if job.is_film else [edit, copy]),
            remove,
        ]
    retry = button(
        "", "act", "requeue", sign="retry", title="Put it back into the queue", job=job.id
    )
    settings = button("", "form", "settings", sign="edit", title="Use its settings", job=job.id)
    return [retry, *([] if job.is_film else [settings]), remove]
