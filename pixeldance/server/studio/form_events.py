"""What the buttons in and around the form do to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from pixeldance.errors import InputError
from pixeldance.request import GenerationRequest
from pixeldance.server.studio.context import StudioContext, View
from pixeldance.server.studio.drafts import DraftPicture
from pixeldance.server.studio.form import CENTRE, FormPictures, Role
from pixeldance.server.studio.restore import Settings, settings_of_job, settings_of_recipe
from pixeldance.server.studio.uploads import Upload, uploaded_file

__all__ = ["FormChange", "FormEvents", "example_request"]

EXAMPLES = Path(__file__).parents[2] / "examples"

MAX_KEYFRAMES = 16


@dataclass(frozen=True, kw_only=True)
class FormChange:
    """What becomes of the form.

    Attributes:
        pictures: Its pictures.
        view: What the tab looks at.
        values: New values of widgets by name; the others stay.
        message: What a person should know; may be empty.
    """

    pictures: FormPictures
    view: View
    values: Mapping[str, Any]
    message: str = ""


class FormEvents:
    """Changes a form as its events say. Events come from a browser and are not trusted.

    Args:
        context: The service and what goes with it.
    """

    def __init__(self, context: StudioContext) -> None:
        self._context = context
        self._drafts = context.drafts

    def handle(
        self, event: Mapping[str, Any], pictures: FormPictures, view: View, *, num_frames: int
    ) -> FormChange:
        """Carry out an event.

        Args:
            event: ``do``, the name of the event, and what belongs to it.
            pictures: Pictures of the form.
            view: What the tab looks at.
            num_frames: Frames of the clip.

        Returns:
            The change.

        Raises:
            InputError: If there is no such event, or it cannot be carried out.
        """
        do = str(event.get("do"))
        changed = self._picture_events(event, num_frames).get(do)
        if changed is not None:
            return FormChange(pictures=changed(pictures), view=view, values={})
        taken = self._settings_events(event).get(do)
        if taken is not None:
            return self._take(taken(), view, editing=event["job"] if do == "edit" else None)
        if do == "drop":
            return self._drop(_upload(event), pictures, view)
        if do == "stop_editing":
            return FormChange(pictures=pictures, view=replace(view, editing=None), values={})
        raise InputError(f"The page asked for {do[:40]!r}, which is unknown. Reload it.")

    def add_picture(self, upload: Upload) -> DraftPicture:
        """Keep a picture, or the last frame of a clip, that was dropped.

        Args:
            upload: The file.

        Returns:
            The picture.
        """
        if upload.kind == "clip":
            return self._drafts.add_clip(upload.path, name=upload.name)
        return self._drafts.add(upload.path, name=upload.name)

    def _picture_events(
        self, event: Mapping[str, Any], num_frames: int
    ) -> dict[str, Callable[[FormPictures], FormPictures]]:
        return {
            "file": lambda old: self._with_file(old, event, num_frames),
            "clear": lambda old: old.with_picture(_role(event), None),
            "swap": lambda old: replace(
                old, first_frame=old.last_frame, last_frame=old.first_frame, focus=CENTRE
            ),
            "pick": lambda old: self._with_pick(old, event),
            "focus": lambda old: replace(old, focus=_focus(event)),
            "keyframe_move": lambda old: _with_keyframe(
                old, _number(event, "index"), frame=_number(event, "value")
            ),
            "keyframe_remove": lambda old: _with_keyframe(old, _number(event, "index"), frame=None),
            "use_frame": lambda old: old.with_picture(_role(event), self._frame_of_clip(event)),
            "continue": lambda old: replace(
                old,
                first_frame=self._frame_of_clip({**event, "frame": -1}),
                last_frame=None,
                keyframes=(),
                focus=CENTRE,
            ),
        }

    def _settings_events(self, event: Mapping[str, Any]) -> dict[str, Callable[[], Settings]]:
        return {
            "settings": lambda: self._settings_of_clip(event),
            "edit": lambda: self._settings_of_job(str(event.get("job"))),
            "example": self._example,
        }

    def _with_file(
        self, pictures: FormPictures, event: Mapping[str, Any], num_frames: int
    ) -> FormPictures:
        picture = self.add_picture(_upload(event))
        if event.get("role") != "keyframe":
            return pictures.with_picture(_role(event), picture)
        if len(pictures.keyframes) >= MAX_KEYFRAMES:
            raise InputError(f"There are {MAX_KEYFRAMES} key frames already. Remove one first.")
        keyframes = (*pictures.keyframes, (num_frames // 2, picture))
        return replace(pictures, keyframes=keyframes)

    def _with_pick(self, pictures: FormPictures, event: Mapping[str, Any]) -> FormPictures:
        role = _role(event)
        given = pictures.first_frame if role == "first_frame" else pictures.last_frame
        if given is None:
            raise InputError("There is no clip to pick a frame from. Drop one.")
        picture = self._drafts.pick(given, _number(event, "value"))
        if role == "first_frame":  # of the same shape, so the focus stays
            return replace(pictures, first_frame=picture)
        return replace(pictures, last_frame=picture)

    def _frame_of_clip(self, event: Mapping[str, Any]) -> DraftPicture:
        """A frame of a finished clip; the last one without loss."""
        job_id, number, frame = (
            str(event.get("job")),
            _number(event, "clip"),
            _number(event, "frame"),
        )
        files = self._context.service.clip_files(job_id, number)
        clip = next(one for one in self._context.service.get(job_id).clips if one.number == number)
        if frame in (-1, clip.num_frames - 1):
            return self._drafts.add(files.last_frame, name=f"seed-{clip.seed}-last.png")
        return self._drafts.add_clip(files.clip, name=f"seed-{clip.seed}.mp4", frame=frame)

    def _settings_of_clip(self, event: Mapping[str, Any]) -> Settings:
        job_id, seed = str(event.get("job")), None
        if "clip" in event:
            number = _number(event, "clip")
            clips = self._context.service.get(job_id).clips
            seed = next((clip.seed for clip in clips if clip.number == number), None)
        return self._settings_of_job(job_id, seed)

    def _settings_of_job(self, job_id: str, seed: int | None = None) -> Settings:
        return settings_of_job(
            self._context.service, job_id, self._drafts, models=self._context.models, seed=seed
        )

    def _example(self) -> Settings:
        request = example_request()
        first, last = (
            self._drafts.add(EXAMPLES / f"{name}.png", name=f"{name}.png")
            for name in ("first", "last")
        )
        values = {"prompt": request.prompt, "is_loop": False, "last_frame_strength": 1.0}
        return Settings(values, FormPictures(first_frame=first, last_frame=last), "")

    def _drop(self, upload: Upload, pictures: FormPictures, view: View) -> FormChange:
        """A file that was dropped beside the wells: settings if it has some, else a picture."""
        recipe = upload.recipe()
        if recipe is not None:
            models = self._context.models
            return self._take(settings_of_recipe(recipe, self._drafts, models=models), view)
        role: Role = "first_frame" if pictures.first_frame is None else "last_frame"
        changed = pictures.with_picture(role, self.add_picture(upload))
        return FormChange(pictures=changed, view=view, values={})

    def _take(self, settings: Settings, view: View, *, editing: str | None = None) -> FormChange:
        return FormChange(
            pictures=settings.pictures,
            view=replace(view, editing=editing),
            values=settings.values,
            message=settings.message,
        )


def example_request() -> GenerationRequest:
    """The request that the package comes with.

    Returns:
        Two pictures and a sentence; the rest is left to the defaults.
    """
    return GenerationRequest(
        prompt=(EXAMPLES / "prompt.txt").read_text(encoding="utf-8").strip(),
        first_frame=EXAMPLES / "first.png",
        last_frame=EXAMPLES / "last.png",
    )


def _upload(event: Mapping[str, Any]) -> Upload:
    return uploaded_file(event.get("path"), event.get("name"))


def _role(event: Mapping[str, Any]) -> Role:
    role = event.get("role")
    if role not in ("first_frame", "last_frame"):
        raise InputError("The page named no picture. Reload it.")
    return cast("Literal['first_frame', 'last_frame']", role)


def _number(event: Mapping[str, Any], name: str) -> int:
    try:
        return int(event.get(name))  # type: ignore[arg-type]  # whatever it is, it is tried
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} must be a whole number, got {event.get(name)!r:.40}.") from None


def _focus(event: Mapping[str, Any]) -> tuple[float, float]:
    try:
        x, y = (min(max(float(event.get(axis)), 0.0), 1.0) for axis in "xy")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError("The point to keep must be two numbers from 0 to 1.") from None
    if x != x or y != y:
        raise InputError("The point to keep must be two numbers from 0 to 1.")
    return x, y


def _with_keyframe(pictures: FormPictures, index: int, *, frame: int | None) -> FormPictures:
    if not 0 <= index < len(pictures.keyframes):
        raise InputError("There is no such key frame any more.")
    keyframes = list(pictures.keyframes)
    if frame is None:
        del keyframes[index]
    else:
        keyframes[index] = (frame, keyframes[index][1])
    return replace(pictures, keyframes=tuple(keyframes))
