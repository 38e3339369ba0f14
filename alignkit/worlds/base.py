"""What a world offers: prompts in splits, a known gold reward with named aspects, and more where it has more.

A world of your own is one object of class `AspectWorld`, or anything that has the members of `World`; hand it to
whatever takes a world, or give it a name with `worlds.register`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from alignkit.errors import AlignkitError

NOTHING = "nothing is wrong ."  # the critique of a completion without a fault


@runtime_checkable
class World(Protocol):
    """A small task whose true reward is known because we wrote it. Every function that takes a world needs this.

    `gold`, `gold_aspects` and `symptoms` may ask for further columns of the rows they judge (a reference answer, say)
    by naming them as parameters: see `judge_rows`.
    """

    name: str
    version: str  # recorded with every result; a changed world voids recorded evidence
    aspects: tuple[str, ...]
    weights: dict[str, float]  # gold = sum of weight * aspect

    def prompts(self, split: str = "treatment") -> list[str]:
        """The prompts of one split; splits are disjoint. AlignkitError names the splits if there is no such one."""

    def gold(self, prompts: list[str], completions: list[str]) -> np.ndarray:
        """The true reward, shape (N,), float64."""

    def gold_aspects(self, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
        """The named parts of gold, each of shape (N,)."""

    def symptoms(self, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
        """Visible faults, 1 where present, 0 where absent, NaN where the question does not arise; shape (N,)."""


@runtime_checkable
class HasSteps(Protocol):
    """A world whose completions fall into steps that are right or wrong: for process labels and critiques."""

    def segments(self, completion: str) -> list[str]:
        """The completion's sentences in order, each with its end mark; joined by spaces they are the completion."""

    def step_labels(self, prompt: str, completion: str) -> list[bool]:
        """Whether each of `segments` is right where it stands."""


@runtime_checkable
class HasFaults(Protocol):
    """A world that names what is wrong with a sentence: for critiques, corrections, judges and reward benchmarks."""

    fault_names: tuple[str, ...]

    def segments(self, completion: str) -> list[str]:
        """As in `HasSteps`."""

    def faults(self, prompt: str, completion: str) -> list[str]:
        """One of `fault_names` for each of `segments`, "" where nothing is wrong."""


@runtime_checkable
class HasCorpus(Protocol):
    """A world that a policy can be pretrained in, and whose best answers are known: for demonstrations, corrections."""

    def corpus(self, n: int, seed: int, **habits: float) -> list[tuple[str, str]]:
        """n documents (prompt, completion) by authors whose faults occur as often as `habits` says."""

    def vocabulary(self) -> list[str]:
        """Every word of the world, sorted."""

    def ideal(self, prompt: str) -> str:
        """A completion with the highest gold there is."""


def require(world: object, kind: type, purpose: str) -> None:
    """AlignkitError naming the first member that `purpose` needs and this world lacks (`kind`: `HasFaults`, say)."""
    if isinstance(world, kind):
        return
    members = [name for name in [*getattr(kind, "__annotations__", ()), *vars(kind)] if not name.startswith("_")]
    missing = next(name for name in members if not hasattr(world, name))
    name = getattr(world, "name", type(world).__name__)
    raise AlignkitError(f"{purpose} needs a world with {', '.join(members)} (worlds.{kind.__name__}); {name!r} has no "
                        f"{missing!r}")  # fmt: skip


class AspectWorld:
    """A world whose gold is the weighted sum of named aspects, read off one completion at a time.

    Subclass it, set `name`, `version` and `aspects`, and write `prompts` and `judge_one`. Aspects count alike unless
    `weights` says otherwise; there are no symptoms unless `symptoms` is overridden.
    """

    name: str
    version: str
    aspects: tuple[str, ...]

    def __init__(self):
        self.weights = {name: 1.0 for name in self.aspects}

    def prompts(self, split: str = "treatment") -> list[str]:
        raise NotImplementedError

    def judge_one(self, prompt: str, completion: str) -> Sequence[float]:
        """The value of each of `aspects` for one completion, in that order; larger is better."""
        raise NotImplementedError

    def gold_aspects(self, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
        rows = [self.judge_one(p, c) for p, c in zip(prompts, completions, strict=True)]
        table = np.array(rows, dtype=np.float64).reshape(len(rows), len(self.aspects))
        return {name: table[:, i] for i, name in enumerate(self.aspects)}

    def gold(self, prompts: list[str], completions: list[str]) -> np.ndarray:
        aspects = self.gold_aspects(prompts, completions)
        return sum(self.weights[name] * values for name, values in aspects.items())

    def symptoms(self, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
        return {}


def judge_rows(judge: Callable, prompts: list, completions: list[str], columns: Mapping[str, Sequence]) -> Any:
    """`judge(prompts, completions)`, where `judge` is a world's `gold`, `gold_aspects` or `symptoms`, with those of the
    data set's further `columns` (one entry a row) that it names as parameters: `def gold(self, prompts, completions,
    answer)` is given the column `answer`."""
    wanted = inspect.signature(judge).parameters if columns else {}
    return judge(prompts, completions, **{name: values for name, values in columns.items() if name in wanted})


def gold_by_step(world: World, prompt: str, completion: str, ends: list[int]) -> np.ndarray:
    """What each step adds to gold: gold up to its end minus gold up to the step before, shape (steps,).

    `ends`: where each step ends in the completion, in characters. The numbers telescope: they sum to gold of the whole
    minus gold of the empty completion, so as a reward they have the same optimum (a shaping by potentials, Ng et al.
    1999).
    """
    parts = [completion[:end] for end in [0, *ends]]
    return np.diff(world.gold([prompt] * len(parts), parts))


def write_fault(place: int, name: str) -> str:
    """A critique of one sentence, places counted from 1: "sentence 2 is rude ."; place 0 says that nothing is wrong."""
    return f"sentence {place} is {name} ." if place else NOTHING
