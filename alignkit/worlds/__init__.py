"""Small worlds whose true reward is known."""

from __future__ import annotations

from functools import cache

from alignkit.errors import AlignkitError
from alignkit.worlds.arithmetic import ArithmeticWorld
from alignkit.worlds.assistant import AssistantWorld
from alignkit.worlds.bandit import BanditWorld
from alignkit.worlds.base import World, gold_by_step


def _shapes() -> World:
    from alignkit.worlds.shapes import ShapesWorld  # only where there are pictures: evidence depends on what is loaded

    return ShapesWorld()


WORLDS = {"arithmetic": ArithmeticWorld, "assistant": AssistantWorld, "bandit": BanditWorld, "shapes": _shapes}


@cache
def load(name: str) -> World:
    """The world of that name; AlignkitError lists what there is."""
    if name not in WORLDS:
        raise AlignkitError(f"no world {name!r}; there are: {', '.join(WORLDS)}")
    return WORLDS[name]()


__all__ = ["ArithmeticWorld", "AssistantWorld", "BanditWorld", "World", "gold_by_step", "load"]
