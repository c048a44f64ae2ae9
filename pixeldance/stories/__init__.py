"""Films of several shots, loops and time-lapses: longer than what the model makes at once.

story = read_story("story.yaml")
plan = plan_story(story, Target.of(model))
cache = ClipCache("film.clips")
make_clips(plan, cache, model)
write_film("film.mp4", plan, cache)
"""

from pixeldance.stories.cache import ClipCache
from pixeldance.stories.forms import LOOP_STRENGTH, loop_story, morph_story, redone
from pixeldance.stories.make import (
    ShotState,
    StoryEvent,
    StoryListener,
    film_frames,
    make_clips,
    shot_states,
    write_film,
)
from pixeldance.stories.plan import PlannedClip, PlannedShot, StoryPlan, Target, plan_story
from pixeldance.stories.reading import read_story
from pixeldance.stories.recipe import film_recipe, read_film_recipe, story_of_recipe
from pixeldance.stories.story import Shot, Story, Transition

__all__ = [
    "LOOP_STRENGTH",
    "ClipCache",
    "PlannedClip",
    "PlannedShot",
    "Shot",
    "ShotState",
    "Story",
    "StoryEvent",
    "StoryListener",
    "StoryPlan",
    "Target",
    "Transition",
    "film_frames",
    "film_recipe",
    "loop_story",
    "make_clips",
    "morph_story",
    "plan_story",
    "read_film_recipe",
    "read_story",
    "redone",
    "shot_states",
    "story_of_recipe",
    "write_film",
]
