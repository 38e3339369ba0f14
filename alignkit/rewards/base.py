"""What a reward is: a callable on (prompts, completions) that returns a Judgement and carries a RewardCard."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alignkit.errors import RewardError
from alignkit.taxonomy import RewardCard
from alignkit.worlds.base import World


@dataclass
class Judgement:
    """`scores`: shape (N,), float64, larger is better. Richer or finer credit where the reward gives it:

    - `aspects` {name: (N,)}; `critiques`, N texts; `ranks`, shape (N,): place among the completions of the same prompt,
      1 = best;
    - `steps`, N arrays, one number for each step or segment, and `ends`, N lists: where in the completion each of them
      ends, in characters;
    - `tokens`, N arrays, one number for each token of the policy, its end-of-sequence token included.
    """

    scores: np.ndarray
    aspects: dict[str, np.ndarray] | None = None
    critiques: list[str] | None = None
    ranks: np.ndarray | None = None
    steps: list[np.ndarray] | None = None
    ends: list[list[int]] | None = None
    tokens: list[np.ndarray] | None = None


def once(*columns: list) -> tuple[list[int], list[int]]:
    """Samples repeat, and need scoring once: the rows that differ, and for each row which of them (by place) it is."""
    place: dict[str, int] = {}
    which, back = [], []
    for row, key in enumerate(map(repr, zip(*columns, strict=True))):
        if key not in place:
            place[key] = len(which)
            which.append(row)
        back.append(place[key])
    return which, back


def sentence_ends(completion: str) -> list[int]:
    """Where each sentence ends, in characters: after its full stop, or where the text was cut off."""
    ends = [match.end() for match in re.finditer(r"[.?!](?=\s|$)", completion)]
    return ends if completion[ends[-1] if ends else 0 :].strip() == "" else [*ends, len(completion)]


class Reward:
    """Subclasses set `card` and define `judge`; calling the reward checks what `judge` returned.

    Raises RewardError, naming the reward, the row and the remedy, if it raises, or does not return one finite score
    for each completion.
    """

    card: RewardCard

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        raise NotImplementedError

    def __call__(self, prompts: list, completions: list[str]) -> Judgement:
        if len(prompts) != len(completions):
            raise RewardError(
                f"reward {self.card.name!r} got {len(prompts)} prompts but {len(completions)} completions: give one "
                "prompt for each completion"
            )
        try:
            judgement = self.judge(prompts, completions)
        except RewardError:
            raise
        except Exception as error:  # whatever a user's function raises is a fact about that function
            raise RewardError(
                f"reward {self.card.name!r} raised {type(error).__name__}: {error} "
                f"(on {len(completions)} completions); "
                "try it on one completion by itself"
            ) from error
        if not isinstance(judgement, Judgement):
            kind = type(judgement).__name__
            raise RewardError(f"reward {self.card.name!r}: judge returned {kind}, not a Judgement")
        judgement.scores = self._checked(judgement.scores, prompts, completions)
        return judgement

    def _checked(self, scores, prompts, completions) -> np.ndarray:
        try:
            scores = np.asarray(scores, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RewardError(f"reward {self.card.name!r} returned scores that are not numbers: {error}") from error
        if scores.shape != (len(completions),):
            raise RewardError(
                f"reward {self.card.name!r} returned scores of shape {scores.shape} for {len(completions)} "
                "completions: it must return one number for each"
            )
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            raise RewardError(
                f"reward {self.card.name!r} returned {scores[bad[0]]} for row {bad[0]} ({len(bad)} such rows), prompt "
                f"{str(prompts[bad[0]])[:60]!r}, completion {completions[bad[0]][:60]!r}: every score must be finite"
            )
        return scores


class FunctionReward(Reward):
    """Any function of (prompts, completions) that returns scores or a Judgement, with the card you give it."""

    def __init__(self, function: Callable, card: RewardCard):
        self.function, self.card = function, card

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        out = _call(self.function, prompts, completions)
        return out if isinstance(out, Judgement) else Judgement(out)


def _call(function: Callable, prompts: list, completions: list[str]):
    """By place; in TRL's manner if `completions` comes first or must be named (then `prompts` may be missing)."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions do not say
        parameters = {}
    named = parameters.get("completions")
    if named is None or not (named.kind is named.KEYWORD_ONLY or next(iter(parameters)) == "completions"):
        return function(prompts, completions)
    takes_rest = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    both = {"prompts": prompts, "completions": completions}
    return function(**{name: value for name, value in both.items() if name in parameters or takes_rest})


def as_reward(reward: Reward | Callable, name: str | None = None) -> Reward:
    """`reward` itself, or a plain function wrapped; a function is taken to be a rule on whole responses.

    Functions in the manner of TRL (`prompts=`, `completions=`, `**kwargs`) work as they are.
    """
    if isinstance(reward, Reward):
        return reward
    if not callable(reward):
        raise RewardError(f"a reward must be callable on (prompts, completions), not {type(reward).__name__}")
    card = RewardCard(
        name=name or getattr(reward, "__name__", type(reward).__name__),
        construction_basis="rule-based",
        format="scalar",
        expression="explicit",
        granularity="response",
    )
    return FunctionReward(reward, card)


def to_trl(reward: Reward | Callable) -> Callable[..., list[float]]:
    """The reward as a TRL `reward_func`: keyword arguments, plain or conversational completions, list of floats."""
    wrapped = as_reward(reward)

    def reward_func(prompts, completions, **_) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        return wrapped(prompts, texts).scores.tolist()

    reward_func.__name__ = wrapped.card.name
    return reward_func


class GoldReward(Reward):
    """The world's own truth as a reward, with its aspects: the upper bound of what feedback could say."""

    def __init__(self, world: World):
        self.world = world
        self.card = RewardCard(
            name=f"gold:{world.name}",
            construction_basis="rule-based",
            format="scalar",
            expression="explicit",
            granularity="response",
            objective="multi" if len(world.aspects) > 1 else "single",
        )

    def judge(self, prompts: list[str], completions: list[str]) -> Judgement:
        return Judgement(self.world.gold(prompts, completions), aspects=self.world.gold_aspects(prompts, completions))


class RandomReward(Reward):
    """The null control: noise from N(0, 1) that depends on (seed, prompt, completion) and on nothing else.

    The same text always gets the same score, so that this reward can be optimized - and says nothing.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.card = RewardCard(
            name=f"random:{seed}",
            construction_basis="rule-based",
            format="scalar",
            expression="explicit",
            granularity="response",
            notes="null control",
        )

    def judge(self, prompts: list[str], completions: list[str]) -> Judgement:
        return Judgement(np.array([self._noise(f"{p}\0{c}") for p, c in zip(prompts, completions, strict=True)]))

    def _noise(self, text: str) -> float:
        digest = hashlib.blake2b(text.encode(), digest_size=8, key=self.seed.to_bytes(8, "little")).digest()
        return np.random.default_rng(int.from_bytes(digest, "little")).standard_normal()
