"""Who answers: simulated people, by a Bradley-Terry choice with the biases people have; and models that score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError, check_positive
from alignkit.worlds.base import World, judge_rows

Scorer = Callable[[list[str], list[str]], object]  # (prompts, completions) -> scores, or an object with `.scores`


@dataclass(frozen=True)
class Annotator:
    """Chooses the first of two shown completions with probability

        p = error + (1 - 2 error) * sigmoid((u_1 - u_2) / temperature + position_bias + length_bias * (l_1 - l_2))

    where u is the utility this person sees (gold's aspects with the person's own weights) and l is the length in words.
    temperature > 0 is in units of gold (small = consistent, 1e-6 = no noise); error in [0, 0.5] is the rate of slips
    that no difference can prevent; position_bias is in logits; length_bias in logits a word. (Bradley & Terry 1952;
    position bias: 2306.05685; length bias: 2310.03716)

    The same person answers in every other form of feedback (`rank`, `rate`, `critique`, ...) by one model: an
    impression of each completion, `worth` plus Gumbel noise, and an answer read off it; with probability 2 error, any
    answer whatever. For pairs that is the equation above. `shift` and `stretch` are this person's use of a rating
    scale: points added, and how far ratings spread.

    With a `scorer(prompts, completions)`, utility is what that says, not the world's gold: a reward model, a model that
    reads a principle in its prompt (`with_principle`), or a rule. temperature is then in units of the scorer: 1 for a
    Bradley-Terry model samples from its own probabilities, 1e-6 always takes the larger score.
    """

    temperature: float = 0.5
    error: float = 0.0
    position_bias: float = 0.0
    length_bias: float = 0.0
    weights: dict[str, float] = field(default_factory=dict)  # own weights; aspects not named keep gold's
    name: str = "annotator"
    group: str = ""  # of a `crowd`
    shift: float = 0.0
    stretch: float = 1.0
    scorer: Scorer | None = None

    def __post_init__(self):
        check_positive("Annotator", temperature=self.temperature, stretch=self.stretch)
        if not 0 <= self.error <= 0.5:
            raise AlignkitError(f"Annotator: error must be between 0 and 0.5, not {self.error}")
        if not (self.scorer is None or callable(self.scorer)):
            raise AlignkitError(f"{self.name}: scorer must be callable on (prompts, completions)")

    def but(self, **changes) -> Annotator:
        """The same person with some settings changed."""
        return replace(self, **changes)

    def utility(self, world: World, prompts: list[str], completions: list[str], **columns) -> np.ndarray:
        """What a completion is worth to this person, shape (N,). `columns`: further columns of the rows (see
        `worlds.base.judge_rows`), here as in the next two."""
        if self.scorer is not None:
            return scores_of(self.scorer, prompts, completions, **columns)
        if unknown := set(self.weights) - set(world.aspects):
            raise AlignkitError(f"{self.name}: no aspect {sorted(unknown)[0]!r} in world {world.name!r}; "
                                f"it has {', '.join(world.aspects)}")  # fmt: skip
        weights = {**world.weights, **self.weights}
        aspects = judge_rows(world.gold_aspects, prompts, completions, columns)
        return sum(weights[name] * aspects[name] for name in world.aspects)

    def worth(self, world: World, prompts: list[str], completions: list[str], **columns) -> np.ndarray:
        """The impression without its noise, in logits, shape (N,): utility / temperature + length_bias * words."""
        length = np.array([len(text.split()) for text in completions], dtype=float)
        return self.utility(world, prompts, completions, **columns) / self.temperature + self.length_bias * length

    def prefers_first(
        self, world: World, prompts: list[str], first: list[str], second: list[str], **columns
    ) -> np.ndarray:
        """Probability of choosing the completion shown first, shape (N,)."""
        gap = self.utility(world, prompts, first, **columns) - self.utility(world, prompts, second, **columns)
        longer = np.array([len(a.split()) - len(b.split()) for a, b in zip(first, second, strict=True)], dtype=float)
        logit = gap / self.temperature + self.position_bias + self.length_bias * longer
        sigmoid = 0.5 * (1 + np.tanh(logit / 2))  # does not overflow
        return self.error + (1 - 2 * self.error) * sigmoid


def scores_of(scorer: Scorer, prompts: list[str], completions: list[str], **columns) -> np.ndarray:
    """The scorer's numbers as float64, shape (N,); AlignkitError if they are not one finite number for each."""
    said = judge_rows(scorer, prompts, completions, columns)
    values = np.asarray(getattr(said, "scores", said), dtype=np.float64)
    if values.shape != (len(completions),) or not np.isfinite(values).all():
        raise AlignkitError(f"a scorer must return one finite number for each of {len(completions)} completions; it "
                            f"returned shape {values.shape}")  # fmt: skip
    return values


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
