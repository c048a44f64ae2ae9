"""Films as jobs: the story as the store keeps it, and how the worker makes it.

Clips of films lie in one cache in the data folder, by their keys. So a film that was stopped or
whose worker died goes on where it was, and of a changed story only what differs is made.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pixeldance.jobs.folders import ClipFiles, DataFolder
from pixeldance.jobs.job import Job, JobClip, Phase
from pixeldance.jobs.pictures import StoredPicture, save_thumbnail
from pixeldance.jobs.requests import StoredRequest, absolute_model
from pixeldance.request import GenerationRequest
from pixeldance.stories import (
    ClipCache,
    Shot,
    Story,
    StoryEvent,
    StoryPlan,
    Target,
    make_clips,
    plan_story,
    write_film,
)
from pixeldance.video.files import new_files

if TYPE_CHECKING:
    from pixeldance.api import Model
    from pixeldance.jobs.progress import JobProgress, Previews

__all__ = [
    "MAX_CACHE_BYTES",
    "StoredStory",
    "film_cache",
    "make_film",
    "stored_form",
    "story_from_json",
]

MAX_CACHE_BYTES = 4 * 1024**3
"""What the clips of films take at most; beyond it those go that were longest unused."""

_MAX_TITLE = 300
_PICTURES = ("first_frame", "last_frame")


class StoredStory:
    """A checked story whose pictures are in the data folder.

    Args:
        story: The story.
        folder: Where its pictures go.

    Raises:
        InputError: If a picture cannot be read, or no film can be made of the story.
        CheckpointError: If its model is not there.
    """

    def __init__(self, story: Story, folder: DataFolder) -> None:
        num_clips = len(plan_story(story, Target.find(story.model)).clips)
        self.num_steps = story.num_inference_steps * num_clips
        self.seed = story.seed
        self.prompt = _title(story)
        self.pictures = {
            (number, role): StoredPicture(source, folder)
            for number, shot in enumerate(story.shots)
            for role, source in shot.pictures.items()
        }
        given = {name: getattr(story, name) for name in sorted(story.model_fields_set)}
        del given["shots"]
        self.fields: dict[str, Any] = {
            "prompt": self.prompt,
            "model": absolute_model(given.pop("model", story.model)),
            "num_inference_steps": story.num_inference_steps,
            "story": {
                **given,
                "shots": [self._shot(number, shot) for number, shot in enumerate(story.shots)],
            },
        }

    @property
    def text(self) -> str:
        """The fields as JSON text; equal stories have equal texts."""
        return json.dumps(self.fields, sort_keys=True, ensure_ascii=False)

    def _shot(self, number: int, shot: Shot) -> dict[str, Any]:
        fields = {name: getattr(shot, name) for name in shot.model_fields_set}
        records = {role: self.pictures[number, role].record for role in shot.pictures}
        fields |= {role: records[role] for role in _PICTURES if role in records}
        if shot.keyframes:
            fields["keyframes"] = {key: records[f"keyframe:{key}"] for key in shot.keyframes}
        return {name: value for name, value in fields.items() if value is not None}


def stored_form(
    request: GenerationRequest | Story, folder: DataFolder
) -> StoredRequest | StoredStory:
    """What was asked for as the store keeps it.

    Args:
        request: A request, or the story of a film.
        folder: Where its pictures go.

    Returns:
        Its stored form.
    """
    if isinstance(request, Story):
        return StoredStory(request, folder)
    return StoredRequest(request, folder)


def _title(story: Story) -> str:
    count = len(story.shots)
    prompts = " · ".join(shot.prompt for shot in story.shots if shot.prompt)
    title = f"Film of {count} shot{'s' if count > 1 else ''}"
    return (f"{title}: {prompts}" if prompts else title)[:_MAX_TITLE]


def story_from_json(fields: Mapping[str, Any], folder: DataFolder) -> Story:
    """The story that was stored.

    Args:
        fields: ``StoredStory.fields``.
        folder: Where its pictures are.

    Returns:
        The story, with the paths of its pictures.
    """

    def path_of(record: Mapping[str, Any]) -> Path:
        return folder.picture(record["sha256"])

    shots = []
    for shot in fields["story"]["shots"]:
        paths: dict[str, Any] = {role: path_of(shot[role]) for role in _PICTURES if role in shot}
        if "keyframes" in shot:
            paths["keyframes"] = {key: path_of(one) for key, one in shot["keyframes"].items()}
        shots.append({**shot, **paths})
    return Story.parse({**fields["story"], "model": fields["model"], "shots": shots})


def film_cache(folder: DataFolder) -> ClipCache:
    """The finished clips of all films.

    Args:
        folder: The data folder.

    Returns:
        The cache.
    """
    return ClipCache(folder.film_clips)


def make_film(
    job: Job,
    story: Story,
    folder: DataFolder,
    model: "Model",
    *,
    progress: "JobProgress",
    previews: "Previews",
) -> JobClip:
    """Make what is missing of a film, and its files.

    Args:
        job: The running job.
        story: Its story.
        folder: Where clips and the film go.
        model: Makes the clips.
        progress: Is told of each step; may stop the film, whose finished clips stay.
        previews: Of the model.

    Returns:
        The record of the film, whose files are on the disk.
    """
    plan, cache = plan_story(story, Target.of(model)), film_cache(folder)
    num_clips, num_steps = len(plan.clips), story.num_inference_steps
    num_before = sum(clip.key in cache for clip in plan.clips)

    def begin(num_made: int) -> None:
        if num_before + num_made < num_clips:
            progress.begin_clip(num_before + num_made + 1, num_steps, previews)

    def listen(event: StoryEvent) -> None:
        if event.step is None:
            begin(event.num_made)
        else:
            progress.on_step(event.step)

    progress.expect(num_clips)
    begin(0)
    make_clips(plan, cache, model, on_event=listen)
    progress.enter(Phase.SAVING)
    files = folder.clip_files(job.id, 1)
    sha256 = _save_film(plan, cache, files)
    _make_room(cache, plan)
    return JobClip(
        number=1,
        seed=story.seed,
        num_frames=plan.num_frames,
        height=plan.size.height,
        width=plan.size.width,
        fps=story.fps,
        num_steps_done=job.num_steps,
        num_bytes=files.num_bytes,
        sha256=sha256,
    )


def _save_film(plan: StoryPlan, cache: ClipCache, files: ClipFiles) -> str:
    """Write the files of a film, each complete or not at all; returns its fingerprint."""
    files.clip.parent.mkdir(mode=0o700, exist_ok=True)
    first = cache.frame(plan.clips[0].key, 0)
    # In a loop the very last frame is the first one again and left out.
    last = cache.frame(plan.clips[-1].key, -2 if plan.story.loop else -1)
    with new_files(files.thumbnail, files.last_frame, overwrite=True) as (thumbnail, last_frame):
        save_thumbnail(Image.fromarray(first), thumbnail)
        Image.fromarray(last).save(last_frame, format="PNG")
    recipe = write_film(files.clip, plan, cache, overwrite=True)
    return str(recipe["film"]["sha256"])


def _make_room(cache: ClipCache, plan: StoryPlan) -> None:
    """Remove the clips of other films that were longest unused, as far as there is no room."""
    own = {cache.path_of(clip.key) for clip in plan.clips}
    for path in own:
        os.utime(path)
    clips = [(path.stat(), path) for path in cache.folder.glob("*.zip")]
    num_bytes = sum(stat.st_size for stat, _ in clips)
    for stat, path in sorted(clips, key=lambda clip: clip[0].st_mtime):
        if num_bytes <= MAX_CACHE_BYTES:
            return
        if path not in own:
            path.unlink(missing_ok=True)
            num_bytes -= stat.st_size
