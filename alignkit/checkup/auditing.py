"""The audit of a reward: every check in turn, in a process of the reward's own; what they measured, what they found."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from alignkit.checkup import findings as f
from alignkit.checkup import invariance, judgment, sensitivity
from alignkit.checkup.examination import Examination, open_material, smaller
from alignkit.checkup.findings import SERIOUS, WARN, Example, Finding, Report, concluded, cut, plain
from alignkit.checkup.isolation import CantGoOn, Incident, IsolatedReward
from alignkit.errors import check_at_least, check_positive
from alignkit.evaluation import perturb
from alignkit.intervals import counted
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward
from alignkit.rewards.texts import text_of
from alignkit.worlds.base import World

SCHEMA = 1  # of the JSON; raised when a field changes its meaning or goes away
TIME_LIMIT = 300.0  # seconds
TIME_SHARE = 0.5  # of the time limit that the planned work may take; a slow reward is tried on fewer texts
PROBE = 8  # texts of the first call
SHOWN = 160  # characters of a text
OK, FOUND, NOT_RUN = "ok", "finding", "not run"
OTHER_FORM = ("TypeError", "KeyError", "AttributeError", "IndexError", "ValueError")  # raised by what reads another one

#: Texts a policy may write at any time: failing on them stops a run. What only a perturbation makes (a text twice as
#: long, invented words) is worth a warning.
ORDINARY = ("load", "answers", "determinism", "accuracy", "batch", "position", "empty", "truncation")

#: What must never happen while scoring, by its kind: what happened, what to do.
TOLD = {
    "import": ("The reward can't be imported", "Run its module by itself and mend what it raises."),
    "raised": ("The reward raises", "Catch it inside the reward and return a score; in training it would end the run."),
    "contract": ("The reward can't be used as it is",
                 "Return one number, or None, for each completion; take columns of the data by their names."),
    "hangs": ("The reward hangs", "Give what it waits for (network, input, a lock) a time limit of its own."),
    "died": ("The reward's process dies", "Look for os._exit, native code that crashes, or too little memory."),
    "garbled": ("The reward writes into the pipe through which it is asked",
                "Look for code that writes to open file descriptors, or forks and goes on in both processes."),
    "memory": ("The reward takes too much memory", "Score in smaller batches, free what is kept between calls."),
    "changes_inputs": ("The reward changes its inputs in place",
                       "Work on a copy: the trainer goes on with the lists that it handed over."),
    "not_finite": ("The reward returns NaN or infinity",
                   "Return a finite score for every text; None, where a row is not the reward's to score."),
    "left_out": ("The reward says None to texts in rows that it scores otherwise",
                 "Score them: a trainer leaves such rows out, so that nobody learns to avoid them."),
}  # fmt: skip


def audit(
    reward: str | Reward | Callable,
    data: Any = None,
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
    the answers of `policy` (default: the shipped one) in `world` (default "assistant"), or on the pairs of `data`
    (whatever `read_pairs` takes), whose other columns are handed over by name, and messages as messages; with both, on
    the pairs, and gold of the world is asked as well.
    `time_limit`: seconds for everything the reward does; a call may take a quarter of it. `budget`: seconds per
    completion. `memory_limit`: bytes (default: 0.8 of what is free). `texts`: show texts in examples.

    What the reward does (raise, hang, die, return NaN) becomes a finding. AlignkitError if there is nothing to audit:
    no such reward, world or data.
    """
    check_positive("audit", time_limit=time_limit, budget=budget)
    check_at_least("audit", 0, seed=seed)
    source = reward if isinstance(reward, str) else as_reward(reward)
    material = open_material(data, world, policy, seed)
    about = {"name": source if isinstance(source, str) else source.card.name, "kind": None, "card": {}, "form": None}
    checks, spent = [], {"completions": 0, "calls": 0, "seconds": 0.0}
    try:
        with IsolatedReward(source, time_limit, memory_limit) as isolated, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing but NaN: told as findings
            exam = Examination(isolated, material, seed, budget, time_limit, texts)
            findings, checks = _examine(exam)
        findings += _told(isolated.incidents, texts) + _incomplete(checks)
        about |= {"kind": isolated.kind, "card": isolated.card, "form": "conversational" if exam.chat else "plain text"}
        spent = {"completions": isolated.completions, "calls": isolated.calls, "seconds": round(isolated.seconds, 3)}
    except Incident as fault:
        findings = _told([fault], texts)
    return Audit(plain({
        "report": "reward audit", "schema": SCHEMA, "reward": about,
        "material": {"source": material.source, "prompts": int(material.group.max() + 1),
                     "completions": len(material.completions), "pairs": len(material.chosen),
                     "gold": material.world is not None},
        "settings": {"seed": seed, "time_limit": time_limit, "budget": budget,
                     "data": None if data is None else material.source,
                     "world": None if material.world is None else material.world.name},
        **concluded(findings), "checks": checks, "spent": spent,
    }))  # fmt: skip


def _told(incidents: list[Incident], texts: bool) -> list[Finding]:
    """One finding for each kind of incident and type of error; its example is the first case."""
    groups: dict[tuple[str, str], list[Incident]] = {}
    for one in incidents:
        groups.setdefault((one.kind, one.type), []).append(one)
    out = []
    for (kind, _), cases in groups.items():
        what, action = TOLD[kind]
        rows, checks = sum(one.rows for one in cases), list(dict.fromkeys(one.check for one in cases))
        grave = kind in ("died", "memory", "garbled") or any(check in ORDINARY for check in checks)
        where = "" if kind == "import" else f" ({counted(rows, 'text')}; checks: {', '.join(checks)})"
        first = cases[0]
        prompt, completion = (cut(text_of(said, ""), SHOWN) for said in first.row[:2])  # the last message
        example = Example(prompt, completion, completion) if texts and (prompt or completion) else None
        id = f"{'load' if kind == 'import' else 'robustness'}.{kind}"
        out.append(Finding(id, SERIOUS if grave else WARN, f"{what}{where}: {first.message}", action, {"n": rows},
                           example))  # fmt: skip
    return out


def _incomplete(checks: list[dict]) -> list[Finding]:
    skipped = [entry for entry in checks if entry["status"] == NOT_RUN]
    if not skipped:
        return []
    return [Finding(
        "audit.incomplete", WARN, f"{counted(len(skipped), 'check')} of {len(checks)} could not be run "
        f"({skipped[0]['why']}): {', '.join(entry['name'] for entry in skipped)}.",
        "Allow more time (--time-limit), or mend what is found above first.", {"n": len(skipped)},
    )]  # fmt: skip


def _examine(exam: Examination) -> tuple[list[Finding], list[dict]]:
    """What the checks yield, in turn: a Finding, or a dict of what was measured. Whatever stops the reward stops only
    the checks that need it from there on."""
    findings, checks, stopped = [], [], ""
    for name, check in _checks(exam.material.world).items():
        entry = {"name": name, "status": OK, "measured": {}}
        checks.append(entry)
        exam.reward.check = name
        try:
            if stopped and name != "speed":  # which asks nothing new
                raise CantGoOn(stopped)
            for result in check(exam):
                if isinstance(result, Finding):
                    entry["status"] = FOUND
                    findings.append(result)
                else:
                    entry["measured"] |= result
        except CantGoOn as stop:
            stopped = str(stop)
            entry |= {"status": NOT_RUN, "why": stopped}
    return findings, checks


def _checks(world: World | None) -> dict[str, Callable[[Examination], Iterator[Finding | dict]]]:
    """In the order of what the later ones build on."""
    families: dict[str, list[perturb.Perturbation]] = {}
    for entry in perturb.for_world(world).values():
        families.setdefault(entry.family, []).append(entry)
    return {
        "answers": _check_answers, "determinism": invariance.check_determinism, "accuracy": judgment.check_accuracy,
        "distribution": judgment.check_distribution, "length_tie": judgment.check_length_tie,
        "search": judgment.check_search, "batch": invariance.check_batch, "position": invariance.check_position,
        **{family.replace(" ", "_"): partial(sensitivity.check_family, family=family, entries=entries)
           for family, entries in families.items()},
        "words": sensitivity.check_words, "best_of_n": judgment.check_nonsense_wins, "speed": invariance.check_speed,
    }  # fmt: skip


def _check_answers(exam: Examination) -> Iterator[Finding | dict]:
    """Scores of all ordinary answers; before that a small call that shows form and speed."""
    reward, material = exam.reward, exam.material
    if not _finds_form(exam):
        raise CantGoOn("the reward scored none of the first texts")
    if material.chat and not exam.chat:
        yield Finding(
            "answers.form", SERIOUS, "The reward reads plain text and fails on messages; these data are messages.",
            "Take the text out of the messages (completion[-1]['content']): a trainer hands over what the data hold. "
            "The other checks were done on plain text.",
        )  # fmt: skip
    rate = max(reward.rate, 1e-9)
    reward.chunk = int(np.clip(reward.call_limit / 4 / rate, 1, reward.chunk))
    planned = len(material.prompts) + len(material.first) * len(perturb.for_world(material.world)) + 800
    exam.share = min(1.0, TIME_SHARE * exam.time_limit / (planned * rate))
    if exam.share < 0.5:
        exam.material = smaller(material, exam.share)
    exam.scores = exam.ask(np.arange(len(exam.material.prompts)))
    scored = int(np.isfinite(exam.scores).sum())
    if not scored:
        raise CantGoOn("the reward scored no text")
    yield {"scored": scored, "of": len(exam.scores), "left_out": int(exam.left_out.sum()),
           "planned_share": round(exam.share, 4)}  # fmt: skip


def _finds_form(exam: Examination) -> bool:
    """Does it score the first texts? A function that reads messages fails on plain text, and the other way round: then
    `exam` takes the other form."""
    first = np.arange(min(PROBE, len(exam.material.prompts)))
    if np.isfinite(exam.ask(first)).any():
        return True
    noted = exam.reward.incidents
    if any(one.type in OTHER_FORM for one in noted):
        exam.chat, exam.reward.incidents = not exam.chat, []
        if np.isfinite(exam.ask(first)).any():
            return True
        exam.chat, exam.reward.incidents = not exam.chat, noted
    return False


@dataclass(repr=False)
class Audit(Report):
    """What an audit found."""

    @property
    def clean(self) -> list[str]:
        """Checks that ran and found nothing."""
        return [entry["name"] for entry in self.report["checks"] if entry["status"] == OK]

    def headline(self) -> str:
        spent, material = self.report["spent"], self.report["material"]
        on = f"{material['source']} ({material['prompts']} prompts, {material['pairs']} pairs)"
        cost = f"{spent['completions']:,} texts scored in {spent['seconds']:.1f} s"
        return f"Audit of {self.report['reward']['name']} on {on}; {cost}"

    def closing(self) -> str:
        return f"nothing found by: {', '.join(self.clean) or 'no check'}"

    def sections(self) -> dict[str, list]:
        rows = {entry["name"]: (entry["status"], entry.get("why", "")) for entry in self.report["checks"]}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=["result", ""]).rename_axis("check")
        return {**super().sections(), "Checks": [table]}
