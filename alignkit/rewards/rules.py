"""Rule-based rewards: a weighted list of checks that anyone can read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from alignkit.errors import AlignkitError
from alignkit.rewards.base import Judgement, Reward, sentence_ends
from alignkit.taxonomy import RewardCard

Asks = Callable[[str, str], float]  # (prompt, completion) -> value


@dataclass(frozen=True)
class Check:
    """A question about a completion with its answer as a number, usually 0 or 1; `~check` is its opposite.

    Two checks are equal if they say the same, so that a list of rules can be searched for contradictions.
    """

    says: str
    function: Asks = field(compare=False, repr=False)
    opposite: Check | None = field(default=None, compare=False, repr=False)

    def __call__(self, prompt: str, completion: str) -> float:
        return float(self.function(prompt, completion))

    @classmethod
    def of(cls, asks: Check | Asks) -> Check:
        """A plain function as a check; it equals no check but itself."""
        return asks if isinstance(asks, Check) else cls(f"{getattr(asks, '__name__', asks)} ({id(asks):x})", asks)

    def __invert__(self) -> Check:
        return self.opposite or Check(f"not: {self.says}", lambda p, c: float(not self(p, c)), opposite=self)


@dataclass(frozen=True)
class Rule:
    """`weight` times the value of `check`; where `only_if` is given and answers 0, the rule is silent."""

    name: str
    check: Check | Asks
    weight: float = 1.0
    only_if: Check | Asks | None = None

    def __post_init__(self) -> None:
        # the only way to set a field of a frozen dataclass
        object.__setattr__(self, "check", Check.of(self.check))
        if self.only_if is not None:
            object.__setattr__(self, "only_if", Check.of(self.only_if))

    def __call__(self, prompt: str, completion: str) -> float:
        """The value before weighting."""
        if self.only_if is not None and not self.only_if(prompt, completion):
            return 0.0
        return self.check(prompt, completion)


class RuleReward(Reward):
    """Sum of weighted rules; each rule is also an aspect of the judgement. Exact where it applies, blind elsewhere.

    AlignkitError if the rules contradict each other: the same check rewarded and punished.
    """

    reads = "text"

    def __init__(self, rules: Sequence[Rule], name: str = "rules"):
        names = [rule.name for rule in rules]
        if not rules or len(set(names)) < len(names):
            raise AlignkitError(f"RuleReward {name!r} needs at least one rule and distinct names, got {names}")
        check_consistent(rules)
        self.rules = list(rules)
        self.card = RewardCard(
            name=name,
            construction_basis="rule-based",
            format="scalar",
            expression="explicit",
            granularity="response",
            objective="multi" if len(rules) > 1 else "single",
        )

    def values(self, prompts: list[str], completions: list[str]) -> np.ndarray:
        """What each rule says before weighting, shape (N, rules)."""
        rows = [[rule(p, c) for rule in self.rules] for p, c in zip(prompts, completions, strict=True)]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.rules))

    def judge(self, prompts: list[str], completions: list[str]) -> Judgement:
        points = self.values(prompts, completions) * [rule.weight for rule in self.rules]
        return Judgement(points.sum(1), aspects={rule.name: points[:, k] for k, rule in enumerate(self.rules)})


def check_consistent(rules: Sequence[Rule]) -> None:
    """AlignkitError naming two rules that pull the same check in opposite directions, or a rule that never counts."""
    for i, a in enumerate(rules):
        if a.only_if == ~a.check:
            raise AlignkitError(f"rule {a.name!r} can never count: it needs the opposite of what it checks")
        for b in rules[:i]:
            if a.only_if != b.only_if:
                continue  # under different conditions the same thing may be good here and bad there
            same, opposed, product = a.check == b.check, a.check == ~b.check, a.weight * b.weight
            if (same and product < 0) or (opposed and product > 0):
                raise AlignkitError(
                    f"rules {b.name!r} and {a.name!r} contradict each other: one rewards what the other punishes "
                    f"({a.check.says}); keep one, or give them different `only_if`"
                )


def contains(pattern: str) -> Check:
    """1 if the completion matches the regular expression anywhere (case ignored)."""
    compiled = _compiled(pattern)
    return Check(f"contains /{pattern}/", lambda prompt, completion: compiled.search(completion) is not None)


def has_form(pattern: str) -> Check:
    """1 if the whole completion, blanks at its ends aside, has the form of the regular expression (case ignored)."""
    compiled = _compiled(pattern)
    return Check(f"has the form /{pattern}/", lambda p, completion: compiled.fullmatch(completion.strip()) is not None)


def asked(pattern: str) -> Check:
    """1 if the prompt matches the regular expression anywhere (case ignored)."""
    compiled = _compiled(pattern)
    return Check(f"asked for /{pattern}/", lambda prompt, completion: compiled.search(prompt) is not None)


def prompt_contains(pattern: str, then: Check | Asks) -> Check:
    """`then`, only where the prompt matches; 0 elsewhere."""
    where, then = asked(pattern), Check.of(then)
    return Check(f"{then.says}, where {where.says}", lambda p, c: then(p, c) if where(p, c) else 0.0)


def words_over(limit: int) -> Check:
    """Number of words beyond the limit."""
    return Check(f"words over {limit}", lambda prompt, completion: max(0, len(completion.split()) - limit))


def ends_with(mark: str) -> Check:
    """1 if the completion ends with the mark."""
    return Check(f"ends with {mark!r}", lambda prompt, completion: completion.rstrip().endswith(mark))


def repeats() -> Check:
    """Number of sentences that were said before in the same completion."""

    def count(prompt: str, completion: str) -> int:
        ends = [0, *sentence_ends(completion)]
        said = [completion[a:b].strip() for a, b in zip(ends, ends[1:], strict=False)]
        return len(said) - len(set(said))

    return Check("repeats sentences", count)


def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise AlignkitError(f"{pattern!r} is not a regular expression: {error}") from error
