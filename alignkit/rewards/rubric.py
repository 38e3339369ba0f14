"""A rubric: rules, and gates in front of them - what must be there, and what must not, before anything else counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from alignkit.errors import AlignkitError
from alignkit.rewards.base import Judgement
from alignkit.rewards.rules import Asks, Check, Rule, RuleReward


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

