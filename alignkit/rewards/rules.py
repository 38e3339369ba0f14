"""Rule-based rewards: a weighted list of checks that anyone can read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alignkit.errors import AlignkitError
from alignkit.rewards.base import Judgement, Reward
from alignkit.taxonomy import RewardCard

Check = Callable[[str, str], float]  # (prompt, completion) -> value


@dataclass(frozen=True)
class Rule:
    """`weight` times the value of `check`, which is usually 0 or 1."""

    name: str
    check: Check
    weight: float = 1.0


class RuleReward(Reward):
    """Sum of weighted rules; each rule is also an aspect of the judgement. Exact where it applies, blind elsewhere."""

    def __init__(self, rules: list[Rule], name: str = "rules"):
        names = [rule.name for rule in rules]
        if not rules or len(set(names)) < len(names):
            raise AlignkitError(f"RuleReward {name!r} needs at least one rule and distinct names, got {names}")
        self.rules = rules
        self.card = RewardCard(
            name=name,
            construction_basis="rule-based",
            format="scalar",
            expression="explicit",
            granularity="response",
            objective="multi" if len(rules) > 1 else "single",
        )

    def judge(self, prompts: list[str], completions: list[str]) -> Judgement:
        pairs = list(zip(prompts, completions, strict=True))
        aspects = {
            rule.name: rule.weight * np.array([rule.check(p, c) for p, c in pairs], dtype=float) for rule in self.rules
        }
        return Judgement(sum(aspects.values()), aspects=aspects)


def contains(pattern: str) -> Check:
    """1 if the completion matches the regular expression anywhere (case ignored)."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda prompt, completion: float(compiled.search(completion) is not None)


def prompt_contains(pattern: str, then: Check) -> Check:
    """`then`, only where the prompt matches; 0 elsewhere."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda prompt, completion: then(prompt, completion) if compiled.search(prompt) else 0.0


def words_over(limit: int) -> Check:
    """Number of words beyond the limit."""
    return lambda prompt, completion: float(max(0, len(completion.split()) - limit))


def ends_with(mark: str) -> Check:
    """1 if the completion ends with the mark."""
    return lambda prompt, completion: float(completion.rstrip().endswith(mark))
