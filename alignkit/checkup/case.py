"""The file of a case: what was decided at each step and on what evidence, as a report that can be sent.

Numbers in, numbers out: the report holds measured values and sentences written around them, never a row of the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from alignkit.checkup.findings import Page
from alignkit.checkup.holdout import in_words
from alignkit.errors import AlignkitError, DataError, check_choice

STEPS = {"feedback": "Diagnosis", "reward": "Prescription", "optimization": "Treatment", "evaluation": "Follow-up"}
RUN = 8  # words in a row that, if they stand in the data, must not stand in the report


@dataclass(repr=False)
class Case(Page):
    """`about`: facts for the head of the report, {name: value}. `private`: texts that must not appear in it.

    `decisions`: by phase of `STEPS`, what was asked, decided and why, and the table (texts) it rests on; `decide`,
    `risk` and `limit` file more and return the case itself.
    """

    title: str
    about: Mapping[str, object] = field(default_factory=dict)
    private: Iterable[str] = ()
    decisions: dict[str, list[list]] = field(default_factory=lambda: {phase: [] for phase in STEPS})
    risks: dict[str, str] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.about = {name: in_words(value) for name, value in self.about.items()}
        self._runs = {run for text in self.private for run in _runs(text)}
        self.private = ()  # only needed as hashes

    def decide(
        self, phase: str, question: str, decision: str, why: str, evidence: pd.DataFrame | Mapping[str, object]
    ) -> Case:
        """File a decision with its evidence, a table or {name: value}. AlignkitError if the phase is unknown, or the
        evidence is empty: a decision without any is an opinion."""
        check_choice("Case", "phase", phase, STEPS)
        if not isinstance(evidence, pd.DataFrame):
            evidence = pd.DataFrame({"": dict(evidence)})
        if evidence.empty:
            raise AlignkitError(f"Case: the decision {decision[:60]!r} has no evidence; give the numbers it rests on")
        table = evidence.astype(object).map(in_words)
        table.index, table.columns = table.index.map(in_words), table.columns.map(str)
        cells = [*table.index, *table.columns, *table.to_numpy().ravel()]
        self._refuse_raw(f"the decision under {STEPS[phase]!r}", question, decision, why, *cells)
        self.decisions[phase] += [{question: decision}, why, table]
        return self

    def risk(self, what: str, watch: str) -> Case:
        """Something that may go wrong, and what to watch for it."""
        self._refuse_raw("a risk", what, watch)
        self.risks[what] = f"Watch: {watch}"
        return self

    def limit(self, text: str) -> Case:
        """Something this case can't say."""
        self._refuse_raw("a limit", text)
        self.limits.append(text)
        return self

    def headline(self) -> str:
        return self.title

    def sections(self) -> dict[str, list]:
        """AlignkitError where a step, a risk or a limit is missing."""
        missing = [STEPS[phase] for phase, found in self.decisions.items() if not found]
        if missing:
            raise AlignkitError(f"Case {self.title!r}: nothing was decided under {', '.join(missing)}; if a step was "
                                "left out, file that as a decision, too")  # fmt: skip
        if not self.risks or not self.limits:
            raise AlignkitError(f"Case {self.title!r}: name at least one risk and one limit before you send it")
        self._refuse_raw("the head", self.title, *self.about.values())
        steps = {f"{i}. {name}": self.decisions[phase] for i, (phase, name) in enumerate(STEPS.items(), start=1)}
        return {**steps, "Risks, and what to watch": [self.risks], "What this report can't say": self.limits}

    def _refuse_raw(self, where: str, *texts: str) -> None:
        """DataError if a text repeats RUN words in a row of the private texts. The message does not quote them."""
        if any(run in self._runs for text in texts for run in _runs(text)):
            raise DataError(f"Case: {where} repeats {RUN} words in a row from the data; report counts and shares, not "
                            "rows")  # fmt: skip


def _runs(text: str) -> list[int]:
    words = str(text).lower().split()
    return [hash(tuple(words[i : i + RUN])) for i in range(len(words) - RUN + 1)]
