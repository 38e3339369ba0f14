"""Small worlds whose true reward is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from alignkit.errors import AlignkitError
from alignkit.worlds.arithmetic import ArithmeticWorld
from alignkit.worlds.assistant import AssistantWorld
from alignkit.worlds.bandit import BanditWorld
from alignkit.worlds.base import MEMBERS, World, gold_by_step, require
from alignkit.worlds.shapes import ShapesWorld

#: What `load` makes by name; put a world of your own in, its class, say.
WORLDS: dict[str, Callable[[], World]] = {
    "arithmetic": ArithmeticWorld, "assistant": AssistantWorld, "bandit": BanditWorld, "shapes": ShapesWorld,
}  # fmt: skip


@cache
def load(name: str) -> World:
    """The world of that name; AlignkitError lists what there is, or says what the world made lacks."""
    if name not in WORLDS:
        raise AlignkitError(f"no world {name!r}; there are: {', '.join(WORLDS)}")
    world = WORLDS[name]()
    require(world, f"the name {name!r}", *MEMBERS)
    return world
