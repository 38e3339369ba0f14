"""AI feedback and rules: anything that scores completions can answer as an annotator does, in every form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError
from alignkit.feedback.annotator import Annotator
from alignkit.worlds.base import World

Scorer = Callable[[list[str], list[str]], object]  # (prompts, completions) -> scores, or an object with `.scores`


def scores_of(scorer: Scorer, prompts: list[str], completions: list[str]) -> np.ndarray:
    """The scorer's numbers as float64, shape (N,); AlignkitError if they are not one finite number for each."""
    said = scorer(prompts, completions)
    values = np.asarray(getattr(said, "scores", said), dtype=np.float64)
    if values.shape != (len(completions),) or not np.isfinite(values).all():
        raise AlignkitError(
            f"a scorer must return one finite number for each of {len(completions)} completions; it returned shape "
            f"{values.shape}"
        )
    return values


@dataclass(frozen=True)
class ModelAnnotator(Annotator):
    """An annotator whose utility is what `scorer(prompts, completions)` says, not the world's gold.

    A reward model, a model that reads a principle in its prompt (`with_principle`), or a rule. temperature is in units
    of the scorer: 1 for a Bradley-Terry model samples from its own probabilities, 1e-6 always takes the larger score.
    """

    scorer: Scorer | None = None

    def __post_init__(self):
        super().__post_init__()
        if not callable(self.scorer):
            raise AlignkitError(f"{self.name}: scorer must be callable on (prompts, completions)")

    def utility(self, world: World, prompts: list[str], completions: list[str]) -> np.ndarray:
        return scores_of(self.scorer, prompts, completions)


def under(principle: str, data: Dataset) -> Dataset:
    """The same feedback with a principle put before each prompt: what a model that reads principles learns from."""
    columns = {name: data[name][:] for name in data.column_names}
    return Dataset.from_dict({**columns, "prompt": [f"{principle} {prompt}" for prompt in columns["prompt"]]})


def with_principle(scorer: Scorer, principles: str | Sequence[str]) -> Scorer:
    """A scorer that is asked with a principle before each prompt; with several, the sum of its answers.

    (Constitutional AI's labels, 2212.08073, from a model that need not know the world.)
    """
    said = [principles] if isinstance(principles, str) else list(principles)
    if not said:
        raise AlignkitError("with_principle: give at least one principle")

    def ask(prompts: list[str], completions: list[str]) -> np.ndarray:
        return sum(scores_of(scorer, [f"{text} {prompt}" for prompt in prompts], completions) for text in said)

    return ask


def label_by_rule(pairs: Dataset, rule: Scorer, name: str = "rule") -> Dataset:
    """Labels where a rule has something to say: of `prompt/first/second`, the side that scores higher.

    Pairs on which it scores both sides the same are left out. Columns as `label` gives them, and `task`: the row of the
    pair.
    """
    prompts, first, second = pairs["prompt"][:], pairs["first"][:], pairs["second"][:]
    gap = scores_of(rule, prompts, first) - scores_of(rule, prompts, second)
    rows = np.flatnonzero(gap)
    sides = [(first[i], second[i]) if gap[i] > 0 else (second[i], first[i]) for i in rows]
    return Dataset.from_dict(
        {
            "prompt": [prompts[i] for i in rows],
            "chosen": [chosen for chosen, _ in sides],
            "rejected": [rejected for _, rejected in sides],
            "position": ["first" if gap[i] > 0 else "second" for i in rows],
            "p_chosen": [1.0] * len(rows),
            "annotator": [name] * len(rows),
            "task": rows.tolist(),
        }
    )
