"""What a world offers: prompts in splits, a known gold reward with named aspects, and more where it has more."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from alignkit.errors import AlignkitError, check_choice

NOTHING = "nothing is wrong ."  # the critique of a completion without a fault
MEMBERS = ("name", "version", "aspects", "weights", "prompts", "gold", "gold_aspects", "symptoms")  # of every world


class World:
    """A small task whose true reward is known because we wrote it: the weighted sum of named aspects.

    For a world of your own subclass it, set `name`, `version` and `aspects`, and write `prompts` and `judge_one`;
    aspects count alike unless `weights` says otherwise. For symptoms, set `signs` and write `look_at`. Any object with
    the `MEMBERS` will do as well; hand it to whatever takes a world, or give it a name in `worlds.WORLDS`.

    `gold`, `gold_aspects` and `symptoms` may ask for further columns of the rows they judge (a reference answer, say)
    by naming them as parameters: see `judge_rows`. What some functions need beside (`require`):

    - marks, critiques, corrections: `segments(completion)`, its sentences in order, joined by spaces the completion
      again; `faults(prompt, completion)`, what is wrong with each, "" or one of `fault_names`;
    - demonstrations, corrections, policies: `ideal(prompt)`, a completion with the highest gold there is;
      `corpus(n, seed, **habits)`, documents (prompt, completion) by authors whose faults occur as often as `habits`
      says; `vocabulary()`, every word of the world, sorted.
    """

    name: str
    version: str  # recorded with every result; a changed world voids recorded evidence
    aspects: tuple[str, ...]
    signs: tuple[str, ...] = ()

    def __init__(self):
        self.weights = {name: 1.0 for name in self.aspects}

    def prompts(self, split: str = "treatment") -> list[str]:
        """The prompts of one split; splits are disjoint. AlignkitError names the splits if there is no such one."""
        raise NotImplementedError

    def judge_one(self, prompt: str, completion: str) -> Sequence[float]:
        """The value of each of `aspects` for one completion, in that order; larger is better."""
        raise NotImplementedError

    def look_at(self, prompt: str, completion: str) -> Sequence[float]:
        """Whether one completion shows each of `signs`, in that order; NaN where the question does not arise."""
        return ()

    def gold(self, prompts: list[str], completions: list[str]) -> np.ndarray:
        """The true reward, shape (N,), float64."""
        aspects = self.gold_aspects(prompts, completions)
        return sum(self.weights[name] * values for name, values in aspects.items())

    def gold_aspects(self, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
        """The named parts of gold, each of shape (N,)."""
        return _columns(self.aspects, self.judge_one, prompts, completions)

    def symptoms(self, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
        """Visible faults, shape (N,): 1 where present, 0 where absent, NaN where the question does not arise."""
        return _columns(self.signs, self.look_at, prompts, completions)


def _columns(names: tuple[str, ...], judge: Callable, prompts: list[str], completions: list[str]) -> dict:
    rows = [judge(p, c) for p, c in zip(prompts, completions, strict=True)]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    return {name: table[:, i] for i, name in enumerate(names)}


def require(world: object, purpose: str, *members: str) -> None:
    """AlignkitError naming the first member that `purpose` needs and this world lacks; see `World`."""
    missing = [name for name in members if not hasattr(world, name)]
    if missing:
        name = getattr(world, "name", type(world).__name__)
        raise AlignkitError(f"{purpose} needs a world with {', '.join(members)}; {name!r} has no {missing[0]!r}")


class DrawnWorld(World):
    """A world whose prompts are drawn at random. Splits: `feedback` (to be labeled), `treatment` and `seen` are of one
    kind; `test` holds only prompts that are `hard`, and no other split holds any.

    Beside the rest, write `draw(rng, to_ask)`, a prompt for a split or (not `to_ask`) for the corpus; `hard(prompt)`;
    and `write(prompt, rng, habits)`, an answer by an author with these habits.
    """

    seed: int
    sizes: dict[str, int]  # prompts in each split; `test` comes last
    habits: dict[str, float]  # how often the authors of the corpus go wrong: the base policy's symptoms come from here

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        rng = np.random.default_rng(self.seed)
        tests = self.sizes["test"]
        others = sum(self.sizes.values()) - tests
        easy, hard = {}, {}  # dicts keep the order, and what was drawn before
        while len(easy) < others or len(hard) < tests:
            prompt = self.draw(rng, to_ask=True)
            (hard if self.hard(prompt) else easy)[prompt] = None
        prompts = iter([*list(easy)[:others], *hard])
        return {name: list(islice(prompts, size)) for name, size in self.sizes.items()}

    def prompts(self, split: str = "treatment") -> list[str]:
        check_choice(f"world {self.name!r}", "split", split, self.sizes)
        return list(self._splits[split])

    def corpus(self, n: int, seed: int, **habits: float) -> list[tuple[str, str]]:
        """n documents (prompt, completion) by authors with these habits, on prompts of all kinds, none of a split's."""
        rng, habits = np.random.default_rng(seed), {**self.habits, **habits}
        kept = {prompt for prompts in self._splits.values() for prompt in prompts}
        documents = []
        while len(documents) < n:
            if (prompt := self.draw(rng, to_ask=False)) not in kept:
                documents.append((prompt, self.write(prompt, rng, habits)))
        return documents


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
