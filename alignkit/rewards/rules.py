"""Rule-based rewards: weighted checks that anyone can read, rubrics with gates in front, and verdicts of programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from alignkit.errors import AlignkitError
from alignkit.rewards.base import FunctionReward, Judgement, Reward
from alignkit.rewards.calling import CallError
from alignkit.rewards.texts import sentences
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


@dataclass
class Rule:
    """`weight` times the value of `check`; where `only_if` is given and answers 0, the rule is silent."""

    name: str
    check: Check | Asks
    weight: float = 1.0
    only_if: Check | Asks | None = None

    def __post_init__(self) -> None:
        self.check, self.only_if = Check.of(self.check), self.only_if and Check.of(self.only_if)

    def __call__(self, prompt: str, completion: str) -> float:
        """The value before weighting."""
        silent = self.only_if is not None and not self.only_if(prompt, completion)
        return 0.0 if silent else self.check(prompt, completion)


class RuleReward(Reward):
    """Sum of weighted rules; each rule is also an aspect of the judgement. Exact where it applies, blind elsewhere.

    AlignkitError if the rules contradict each other: the same check rewarded and punished.
    """

    reads = "text"

    def __init__(self, rules: Sequence[Rule], name: str = "rules"):
        names = [rule.name for rule in rules]
        if not rules or len(set(names)) < len(names):
            raise AlignkitError(f"RuleReward {name!r} needs at least one rule and distinct names, got {names}")
        for k, rule in enumerate(rules):
            if rule.only_if == ~rule.check:
                raise AlignkitError(f"rule {rule.name!r} can never count: it needs the opposite of what it checks")
            for other in rules[:k]:  # under different conditions the same thing may be good here and bad there
                if rule.only_if == other.only_if and _oppose(rule, other):
                    raise AlignkitError(
                        f"rules {other.name!r} and {rule.name!r} contradict each other: one rewards what the other "
                        f"punishes ({rule.check.says}); keep one, or give them different `only_if`"
                    )
        self.rules = list(rules)
        self.card = RewardCard(name, "rule-based", objective="multi" if len(rules) > 1 else "single")

    def values(self, prompts: list[str], completions: list[str]) -> np.ndarray:
        """What each rule says before weighting, shape (N, rules)."""
        rows = [[rule(p, c) for rule in self.rules] for p, c in zip(prompts, completions, strict=True)]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.rules))

    def judge(self, prompts: list[str], completions: list[str]) -> Judgement:
        points = self.values(prompts, completions) * [rule.weight for rule in self.rules]
        return Judgement(points.sum(1), aspects={rule.name: points[:, k] for k, rule in enumerate(self.rules)})


def _oppose(one: Rule, other: Rule) -> bool:
    """Whether they pull the same check in opposite directions."""
    product = one.weight * other.weight
    return (one.check == other.check and product < 0) or (one.check == ~other.check and product > 0)


class Rubric(RuleReward):
    """Points by rules, if all gates are open; `shut` points if one of them is not (2507.17746; gates are ours).

    `require` and `forbid` name checks that must answer yes, or no. AlignkitError if the rubric contradicts itself: a
    check is both required and forbidden, or a rule rewards what a gate forbids or punishes what a gate requires.
    """

    def __init__(
        self, rules: Sequence[Rule], require: Mapping[str, Check | Asks] | None = None,
        forbid: Mapping[str, Check | Asks] | None = None, shut: float = 0.0,
    ):  # fmt: skip
        super().__init__(rules, "rubric")
        self.shut = float(shut)
        gates = [Rule(gate, check) for gate, check in (require or {}).items()]  # rules whose answer must be yes
        self.gates = gates + [Rule(gate, ~Check.of(check)) for gate, check in (forbid or {}).items()]
        names = [rule.name for rule in (*self.gates, *rules)]
        if len(set(names)) < len(names):
            raise AlignkitError(f"Rubric: rules and gates need distinct names, got {names}")
        for gate in self.gates:
            for rule in (*self.gates, *rules):
                for asks, clash in (("rewards", _oppose(gate, rule)), ("needs", rule.only_if == ~gate.check)):
                    if clash:
                        raise AlignkitError(f"rule {rule.name!r} {asks} what gate {gate.name!r} rules out; drop one of "
                                            "them")  # fmt: skip

    def judge(self, prompts: list[str], completions: list[str]) -> Judgement:
        judgement, rows = super().judge(prompts, completions), list(zip(prompts, completions, strict=True))
        passed = {f"gate: {gate.name}": np.array([float(gate(p, c) != 0) for p, c in rows]) for gate in self.gates}
        opened = np.all([np.ones(len(rows)), *passed.values()], axis=0)
        aspects = {name: points * opened for name, points in judgement.aspects.items()}
        return Judgement(np.where(opened, judgement.scores, self.shut), aspects={**aspects, **passed})

    def report(self, prompt: str, completion: str) -> pd.DataFrame:
        """Rule by rule and gate by gate: what was found, and what it is worth."""
        said = self([prompt], [completion])
        points = {name: values[0] + 0.0 for name, values in said.aspects.items()}
        rows = [(gate.name, "gate", "open" if points[f"gate: {gate.name}"] else "shut", np.nan) for gate in self.gates]
        rows += [(rule.name, "rule", f"{rule(prompt, completion):g}", points[rule.name]) for rule in self.rules]
        table = pd.DataFrame([*rows, ("total", "", "", said.scores[0])], columns=["name", "kind", "found", "points"])
        return table.set_index("name")


class Verifiable(FunctionReward):
    """1 where the verifier accepts the completion, 0 where it doesn't; partial credit between them is allowed.

    `verifier(prompts, completions)` compares with a known answer, runs tests, or solves the task itself, as
    `world.correct` does. It looks at the outcome and at nothing else. It is called as reward functions are, so it may
    take columns of the data set (`answer`, say) by name, and say None about rows that are not its own.
    """

    def __init__(self, verifier: Callable):
        super().__init__(verifier, RewardCard("verifiable", "rule-based", source="2411.15124"))

    def judge(self, prompts: list, completions: list, **columns) -> Judgement:
        judgement = super().judge(prompts, completions, **columns)
        outside = np.flatnonzero(judgement.present & ~((judgement.scores >= 0) & (judgement.scores <= 1)))
        if len(outside):
            raise CallError(f"got {judgement.scores[outside[0]]} from its verifier about row {outside[0]}",
                            "a verdict lies between 0 (wrong) and 1 (right)", outside[0])  # fmt: skip
        return judgement


# -- checks -----------------------------------------------------------------------------------------------------------


def contains(pattern: str) -> Check:
    """1 if the completion matches the regular expression anywhere (case ignored)."""
    found = _compiled(pattern).search
    return Check(f"contains /{pattern}/", lambda prompt, completion: found(completion) is not None)


def has_form(pattern: str) -> Check:
    """1 if the whole completion, blanks at its ends aside, has the form of the regular expression (case ignored)."""
    fits = _compiled(pattern).fullmatch
    return Check(f"has the form /{pattern}/", lambda prompt, completion: fits(completion.strip()) is not None)


def asked(pattern: str) -> Check:
    """1 if the prompt matches the regular expression anywhere (case ignored)."""
    found = _compiled(pattern).search
    return Check(f"asked for /{pattern}/", lambda prompt, completion: found(prompt) is not None)


def words_over(limit: int) -> Check:
    """Number of words beyond the limit."""
    return Check(f"words over {limit}", lambda prompt, completion: max(0, len(completion.split()) - limit))


def ends_with(mark: str) -> Check:
    """1 if the completion ends with the mark."""
    return Check(f"ends with {mark!r}", lambda prompt, completion: completion.rstrip().endswith(mark))


def repeats() -> Check:
    """Number of sentences that were said before in the same completion."""
    return Check("repeats sentences", lambda p, completion: len(said := sentences(completion)) - len(set(said)))


def verified(verifier: Callable, says: str = "verified") -> Check:
    """The verifier as a check, to be used in rules and rubrics; equal checks need equal `says`."""
    return Check(says, lambda prompt, completion: float(np.asarray(verifier([prompt], [completion]))[0]))


def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise AlignkitError(f"{pattern!r} is not a regular expression: {error}") from error
