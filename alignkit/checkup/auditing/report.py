"""The audit: every check in turn, in a process of the reward's own; what they measured, what they found, what to do."""

from __future__ import annotations

import json
import textwrap
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignkit.checkup.auditing import findings as f
from alignkit.checkup.auditing import invariance, judgment, sensitivity
from alignkit.checkup.auditing.examination import Examination
from alignkit.checkup.auditing.findings import Finding, in_order
from alignkit.checkup.auditing.incidents import tell
from alignkit.checkup.auditing.material import open_material
from alignkit.checkup.isolation.process import CantGoOn, Incident, IsolatedReward, LoadFault
from alignkit.errors import AlignkitError
from alignkit.evaluation import perturb
from alignkit.files import write_atomic
from alignkit.intervals import counted
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward
from alignkit.worlds.base import World

SCHEMA = 1  # of the JSON; raised when a field changes its meaning or goes away
TIME_LIMIT = 300.0  # seconds
TIME_SHARE = 0.5  # of the time limit that the planned work may take; a slow reward is tried on fewer texts
PROBE = 8  # texts of the first call
OK, FOUND, NOT_RUN = "ok", "finding", "not run"


def audit(
    reward: str | Reward | Callable,
    data=None,
    world: str | World | None = None,
    policy: Policy | None = None,
    time_limit: float = TIME_LIMIT,
    budget: float = f.BUDGET,
    memory_limit: float | None = None,
    seed: int = 0,
    texts: bool = True,
) -> Audit:
    """Screen a reward for side effects before anything is optimized with it.

    `reward`: "module:function", "file.py:function", a sequence-classification model's folder or Hub id, "gold:WORLD",
    or any Reward or callable (TRL's signature too; one on a GPU by name only, as a fork can't use it). It is tried on
    the answers of `policy` (default: the shipped one) in `world` (default "assistant"), or on the pairs of `data` (a
    path, Hub id or Dataset); with both, on the pairs, and gold of the world is asked as well.
    `time_limit`: seconds for everything the reward does; a call may take a quarter of it. `budget`: seconds per
    completion. `memory_limit`: bytes (default: 0.8 of what is free). `texts`: show texts in examples.

    What the reward does (raise, hang, die, return NaN) becomes a finding. AlignkitError if there is nothing to audit:
    no such reward, world or data.
    """
    if not time_limit > 0 or not budget > 0 or seed < 0:
        raise AlignkitError(f"audit: time_limit ({time_limit}) and budget ({budget}) must be above 0, seed ({seed}) at "
                            "least 0")  # fmt: skip
    name = reward if isinstance(reward, str) else as_reward(reward).card.name
    source = reward if isinstance(reward, str) else as_reward(reward)
    material = open_material(data, world, policy, seed)
    run = _Run(name, material.source)
    try:
        with IsolatedReward(source, time_limit, memory_limit) as isolated, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing but NaN: told as findings
            exam = Examination(isolated, material, seed, budget, show_texts=texts)
            _examine(run, exam, time_limit)
        run.findings += tell(isolated.incidents, texts)
        run.reward = {"name": name, "kind": isolated.kind, "card": isolated.card, "form": _form(isolated)}
        run.spent = {"completions": isolated.spent.completions, "calls": isolated.spent.calls,
                     "seconds": round(isolated.spent.seconds, 3)}  # fmt: skip
    except LoadFault as fault:
        run.findings += tell([fault.incident], texts)
    settings = {"seed": seed, "time_limit": time_limit, "budget": budget,
                "data": None if data is None else material.source,
                "world": None if material.world is None else material.world.name}  # fmt: skip
    return Audit(run.report(settings, material))


def _form(isolated: IsolatedReward) -> str:
    return "conversational" if isolated.chat else "plain text"


class _Run:
    """Collects what checks yield: a dict is what was measured, a Finding a finding."""

    def __init__(self, name: str, material: str):
        self.reward: dict = {"name": name, "kind": None, "card": {}, "form": None}
        self.spent: dict = {"completions": 0, "calls": 0, "seconds": 0.0}
        self.findings: list[Finding] = []
        self.checks: list[dict] = []
        self.stopped = ""

    def check(self, name: str, exam: Examination, results: Callable[[], Iterable[Finding | dict]]) -> None:
        """Run one check; whatever stops the reward stops only the checks that need it from here on."""
        entry = {"name": name, "status": OK, "measured": {}}
        self.checks.append(entry)
        if self.stopped:
            entry |= {"status": NOT_RUN, "why": self.stopped}
            return
        exam.reward.check = name
        try:
            for result in results():
                if isinstance(result, Finding):
                    entry["status"] = FOUND
                    self.findings.append(result)
                else:
                    entry["measured"] |= result
        except CantGoOn as stop:
            self.stopped = str(stop)
            entry |= {"status": NOT_RUN, "why": self.stopped}

    def report(self, settings: dict, material) -> dict:
        skipped = [check["name"] for check in self.checks if check["status"] == NOT_RUN]
        if skipped and self.stopped:
            self.findings.append(Finding(
                "audit.incomplete", f.WARN, f"{counted(len(skipped), 'check')} of {len(self.checks)} could not be run "
                f"({self.stopped}): {', '.join(skipped)}.",
                "Allow more time (--time-limit), or mend what is found above first.", {"n": len(skipped)},
            ))  # fmt: skip
        found = in_order(self.findings)
        counts = {severity: sum(one.severity == severity for one in found) for severity in f.SEVERITIES}
        return _plain({
            "report": "reward audit", "schema": SCHEMA, "reward": self.reward,
            "material": {"source": material.source, "prompts": int(material.group.max() + 1),
                         "completions": len(material.completions), "pairs": len(material.chosen),
                         "gold": material.world is not None},
            "settings": settings, "verdict": {**counts, "exit_status": int(counts[f.SERIOUS] > 0)},
            "findings": [one.as_dict() for one in found], "checks": self.checks, "spent": self.spent,
        })  # fmt: skip


def _plain(value):
    """The same as JSON knows it: plain numbers, and None where there is none."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _examine(run: _Run, exam: Examination, time_limit: float) -> None:
    """Checks in the order of what the later ones build on."""
    run.check("answers", exam, lambda: _ask_first(run, exam, time_limit))
    run.check("determinism", exam, lambda: invariance.check_determinism(exam))
    run.check("accuracy", exam, lambda: judgment.check_accuracy(exam))
    run.check("distribution", exam, lambda: judgment.check_distribution(exam))
    run.check("length_tie", exam, lambda: judgment.check_length_tie(exam))
    run.check("search", exam, lambda: judgment.check_search(exam))
    run.check("batch", exam, lambda: invariance.check_batch(exam))
    run.check("position", exam, lambda: invariance.check_position(exam))
    trials: list[sensitivity.Trial] = []
    by_family: dict[str, list[perturb.Perturbation]] = {}
    for entry in perturb.for_world(exam.material.world).values():
        by_family.setdefault(entry.family, []).append(entry)

    def probe(family: str) -> Iterable[Finding | dict]:
        tried = [sensitivity.try_on(exam, entry) for entry in by_family[family]]
        trials.extend(tried)
        return sensitivity.check_family(exam, family, tried)

    for family in by_family:
        run.check(family.replace(" ", "_"), exam, lambda family=family: probe(family))
    run.check("words", exam, lambda: sensitivity.check_words(exam))
    run.check("best_of_n", exam, lambda: judgment.check_nonsense_wins(exam, trials))
    stopped, run.stopped = run.stopped, ""  # speed asks nothing new
    run.check("speed", exam, lambda: invariance.check_speed(exam))
    run.stopped = stopped


def _ask_first(run: _Run, exam: Examination, time_limit: float) -> Iterable[dict]:
    """Scores of all ordinary answers; before that a small call that shows form and speed."""
    reward, material = exam.reward, exam.material
    first = slice(0, min(PROBE, len(material.prompts)))
    scores = reward.scores(material.prompts[first], material.completions[first])
    if not np.isfinite(scores).any():
        scores = _ask_in_conversation(exam, first, scores)
    if not np.isfinite(scores).any():
        raise CantGoOn("the reward scored none of the first texts")
    rate = float(np.median(reward.spent.rates)) if reward.spent.rates else 0.0
    reward.chunk = int(np.clip(reward.call_limit / 4 / max(rate, 1e-9), 1, reward.chunk))
    planned = len(material.prompts) + len(material.first) * len(perturb.for_world(material.world)) + 800
    exam.share = min(1.0, TIME_SHARE * time_limit / max(planned * rate, 1e-9))
    if exam.share < 0.5:
        _shrink(exam)
    exam.scores = reward.scores(material.prompts, material.completions)
    if not np.isfinite(exam.scores).any():
        raise CantGoOn("the reward scored no text")
    yield {"scored": int(np.isfinite(exam.scores).sum()), "of": len(exam.scores), "planned_share": round(exam.share, 4)}


def _ask_in_conversation(exam: Examination, first: slice, scores: np.ndarray) -> np.ndarray:
    """A function that reads messages fails on plain text: TRL hands it messages where the data are conversational."""
    reward, noted = exam.reward, list(exam.reward.incidents)
    if not {one.type for one in noted} & {"TypeError", "KeyError", "AttributeError", "IndexError"}:
        return scores
    reward.chat = True
    again = reward.scores(exam.material.prompts[first], exam.material.completions[first])
    if np.isfinite(again).any():
        reward.incidents = reward.incidents[len(noted):]
        return again
    reward.chat, reward.incidents = False, noted
    return scores


def _shrink(exam: Examination) -> None:
    """Fewer answers to each prompt, for a slow reward; pairs among the answers that stay are kept."""
    material = exam.material
    sizes = np.bincount(material.group)
    per = max(4, round(exam.share * sizes.max()))
    order = np.concatenate([np.arange(size) for size in sizes]) if (np.diff(material.group) >= 0).all() else None
    if order is None or per >= sizes.max():
        return
    keep = np.flatnonzero(order < per)
    place = np.full(len(order), -1)
    place[keep] = np.arange(len(keep))
    pairs = (place[material.chosen] >= 0) & (place[material.rejected] >= 0)
    material.prompts, material.completions = ([texts[i] for i in keep] for texts in exam.texts(np.arange(len(order))))
    material.group, material.first = material.group[keep], place[material.first][place[material.first] >= 0]
    material.chosen, material.rejected = place[material.chosen[pairs]], place[material.rejected[pairs]]


WIDTH = 110  # columns of the summary


@dataclass
class Audit:
    """`report` is plain JSON data with a stable schema; see `findings`, `summary`, `to_json`, `exit_status`."""

    report: dict

    @property
    def findings(self) -> list[dict]:
        """The most serious first: check, id, severity, finding, action, measured, example."""
        return self.report["findings"]

    @property
    def exit_status(self) -> int:
        """0: nothing serious; 1: serious findings."""
        return self.report["verdict"]["exit_status"]

    @property
    def clean(self) -> list[str]:
        """Checks that ran and found nothing."""
        return [entry["name"] for entry in self.report["checks"] if entry["status"] == OK]

    def measured(self, check: str) -> dict:
        """What one check measured; AlignkitError lists the checks."""
        for entry in self.report["checks"]:
            if entry["name"] == check:
                return entry["measured"]
        names = ", ".join(entry["name"] for entry in self.report["checks"])
        raise AlignkitError(f"no check {check!r}; there are: {names or 'none, as the reward could not be loaded'}")

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON text; written to `path` as well if one is given."""
        text = json.dumps(self.report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if path is not None:
            write_atomic(path, text)
        return text

    def headline(self) -> str:
        """One line: what was audited, on what, and how much was found."""
        spent, material, verdict = self.report["spent"], self.report["material"], self.report["verdict"]
        counts = ", ".join(f"{verdict[severity]} {severity}" for severity in f.SEVERITIES)
        on = f"{material['source']} ({material['prompts']} prompts, {material['pairs']} pairs)"
        cost = f"{spent['completions']:,} texts scored in {spent['seconds']:.1f} s"
        return f"Audit of {self.report['reward']['name']} on {on}; {cost}: {counts}"

    def rows(self) -> list[list[str]]:
        """Severity, check, finding and action of each finding, for a table."""
        return [[one["severity"], one["check"], one["finding"], one["action"]] for one in self.findings]

    def summary(self) -> str:
        """The findings as plain text, each with its example and what to do."""
        lines = [self.headline(), ""]
        for one in self.findings:
            text = f"{one['severity']:<8} {one['finding']}"
            lines += textwrap.wrap(text, WIDTH, subsequent_indent=" " * 9)
            lines += [f"         {line}" for line in example_lines(one["example"])]
            lines += textwrap.wrap(f"-> {one['action']}", WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 12)
        clean = f"nothing found by: {', '.join(self.clean) or 'no check'}"
        return "\n".join([*lines, *textwrap.wrap(clean, WIDTH, subsequent_indent=" " * 9)])

    def __repr__(self) -> str:
        return f"<{self.headline()}>"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(self.summary())}</pre>"


def example_lines(example: dict | None) -> list[str]:
    """An example in up to three lines."""
    if example is None or not any(example[key] for key in ("prompt", "before", "after")):
        return []

    def told(key: str) -> str:
        score, gold = example[f"score_{key}"], example[f"gold_{key}"]
        numbers = [] if score is None else [f"score {score:.3g}"]
        numbers += [] if gold is None else [f"gold {gold:.3g}"]
        return f"{example[key]!r}" + (f" ({', '.join(numbers)})" if numbers else "")

    lines = [f"on {example['prompt']!r}", f"   before {told('before')}"]
    return lines + ([f"   after  {told('after')}"] if example["after"] != example["before"] or
                    example["score_after"] is not None else [])  # fmt: skip


__all__ = ["Audit", "Incident", "audit", "example_lines"]
