"""Rule-based rewards: weighted checks that anyone can read, rubrics with gates in front, and verdicts of programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from alignkit.errors import AlignkitError
from alignkit.rewards.base import Judgement, Reward
from alignkit.rewards.calling import CallError, call_function, row_numbers
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


class Rubric(RuleReward):
    """Points by rules, if all gates are open; `shut` points if one of them is not (2507.17746; gates are ours).

    `require` and `forbid` name checks that must answer yes, or no. AlignkitError if the rubric contradicts itself: a
    check is both required and forbidden, or a rule rewards what a gate forbids or punishes what a gate requires.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        require: Mapping[str, Check | Asks] | None = None,
        forbid: Mapping[str, Check | Asks] | None = None,
        shut: float = 0.0,
        name: str = "rubric",
    ):
        super().__init__(rules, name)
        self.require, self.forbid = ({gate: Check.of(check) for gate, check in (gates or {}).items()}
                                     for gates in (require, forbid))  # fmt: skip
        self.shut = float(shut)
        both = [*self.require, *self.forbid, *(rule.name for rule in rules)]
        if len(set(both)) < len(both):
            raise AlignkitError(f"Rubric {name!r}: rules and gates need distinct names, got {both}")
        self._check_gates()

    def _check_gates(self) -> None:
        """A closed gate is the opposite of an open one, so all of them are read as things forbidden."""
        banned = {**{name: ~check for name, check in self.require.items()}, **self.forbid}
        for gate, check in banned.items():
            for other, second in banned.items():
                if ~check == second:
                    raise AlignkitError(f"gates {gate!r} and {other!r} contradict each other: no answer can pass both")
            for rule in self.rules:
                if (rule.check == check and rule.weight > 0) or (~rule.check == check and rule.weight < 0):
                    raise AlignkitError(f"rule {rule.name!r} rewards what gate {gate!r} rules out; drop one of them")
                if rule.only_if == check:
                    raise AlignkitError(f"rule {rule.name!r} needs what gate {gate!r} rules out: it can never count")

    def gates(self, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
        """Which gates each completion passes, by name."""
        rows = list(zip(prompts, completions, strict=True))
        passed = {name: [bool(check(p, c)) for p, c in rows] for name, check in self.require.items()}
        kept = {name: [not check(p, c) for p, c in rows] for name, check in self.forbid.items()}
        return {name: np.array(values, dtype=bool) for name, values in {**passed, **kept}.items()}

    def judge(self, prompts: list[str], completions: list[str]) -> Judgement:
        judgement = super().judge(prompts, completions)
        passed = self.gates(prompts, completions)
        open_ = np.all(list(passed.values()), axis=0) if passed else np.ones(len(completions), dtype=bool)
        aspects = {name: points * open_ for name, points in judgement.aspects.items()}
        return Judgement(np.where(open_, judgement.scores, self.shut), aspects={
            **aspects, **{f"gate: {name}": ok.astype(float) for name, ok in passed.items()}})  # fmt: skip

    def report(self, prompt: str, completion: str) -> pd.DataFrame:
        """Rule by rule and gate by gate: what was found, and what it is worth."""
        gates = {name: bool(ok[0]) for name, ok in self.gates([prompt], [completion]).items()}
        opened = all(gates.values())
        rows = [{"name": name, "kind": "gate", "found": "open" if ok else "shut", "points": np.nan}
                for name, ok in gates.items()]  # fmt: skip
        for rule in self.rules:
            value = rule(prompt, completion)
            rows.append({"name": rule.name, "kind": "rule", "found": f"{value:g}",
                         "points": rule.weight * value * opened + 0.0})  # fmt: skip
        total = self([prompt], [completion]).scores[0]
        rows.append({"name": "total", "kind": "", "found": "", "points": total})
        return pd.DataFrame(rows).set_index("name")


class Verifiable(Reward):
    """1 where the verifier accepts the completion, 0 where it doesn't; partial credit between them is allowed.

    `verifier(prompts, completions)` compares with a known answer, runs tests, or solves the task itself, as
    `world.correct` does. It looks at the outcome and at nothing else. It is called as reward functions are, so it may
    take columns of the data set (`answer`, say) by name, and say None about rows that are not its own.
    """

    reads = "as given"

    def __init__(self, verifier: Callable, name: str = "verifiable"):
        self.verifier = verifier
        self.card = RewardCard(name=name, construction_basis="rule-based", format="scalar", expression="explicit",
                               granularity="response", source="2411.15124")  # fmt: skip

    def judge(self, prompts: list, completions: list, **columns) -> Judgement:
        scores, present = row_numbers(call_function(self.verifier, prompts, completions, columns), len(completions))
        outside = np.flatnonzero(present & ~((scores >= 0) & (scores <= 1)))
        if len(outside):
            raise CallError(f"got {scores[outside[0]]} from its verifier about row {outside[0]}",
                            "a verdict lies between 0 (wrong) and 1 (right)", outside[0])  # fmt: skip
        return Judgement(scores, present=present)


# -- checks -----------------------------------------------------------------------------------------------------------


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
        said = sentences(completion)
        return len(said) - len(set(said))

    return Check("repeats sentences", count)


def verified(verifier: Callable, says: str = "verified") -> Check:
    """The verifier as a check, to be used in rules and rubrics; equal checks need equal `says`."""
    return Check(says, lambda prompt, completion: float(np.asarray(verifier([prompt], [completion]))[0]))


def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise AlignkitError(f"{pattern!r} is not a regular expression: {error}") from error
