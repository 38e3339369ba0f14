"""The audit of a reward: every check in turn, in a process of the reward's own; what they measured, what they found."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from alignkit.checkup import findings as f
from alignkit.checkup import invariance, judgment, sensitivity
from alignkit.checkup.examination import Examination, Material, open_material
from alignkit.checkup.findings import SERIOUS, WARN, Example, Finding, Report, concluded, cut, plain
from alignkit.checkup.isolation import CantGoOn, Incident, IsolatedReward, LoadFault
from alignkit.errors import AlignkitError
from alignkit.evaluation import perturb
from alignkit.intervals import counted
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward
from alignkit.worlds.base import World

SCHEMA = 1  # of the JSON; raised when a field changes its meaning or goes away
TIME_LIMIT = 300.0  # seconds
TIME_SHARE = 0.5  # of the time limit that the planned work may take; a slow reward is tried on fewer texts
PROBE = 8  # texts of the first call
SHOWN = 160  # characters of a text
OK, FOUND, NOT_RUN = "ok", "finding", "not run"

#: Texts a policy may write at any time: failing on them stops a run. What only a perturbation makes (a text twice as
#: long, invented words) is worth a warning.
ORDINARY = ("load", "answers", "determinism", "accuracy", "batch", "position", "empty", "truncation")

#: What must never happen while scoring: id of the finding, what happened, what to do.
TOLD = {
    "import": ("load.import", "The reward can't be imported", "Run its module by itself and mend what it raises."),
    "raised": ("robustness.raised", "The reward raises",
               "Catch it inside the reward and return a score; in training it would end the run."),
    "contract": ("robustness.contract", "The reward can't be used as it is",
                 "Return one number, or None, for each completion; take columns of the data by their names."),
    "hangs": ("robustness.hangs", "The reward hangs",
              "Give what it waits for (network, input, a lock) a time limit of its own."),
    "died": ("robustness.died", "The reward's process dies",
             "Look for os._exit, native code that crashes, or too little memory."),
    "garbled": ("robustness.garbled", "The reward writes into the pipe through which it is asked",
                "Look for code that writes to open file descriptors, or forks and goes on in both processes."),
    "memory": ("robustness.memory", "The reward takes too much memory",
               "Score in smaller batches, free what is kept between calls."),
    "changes": ("robustness.changes_inputs", "The reward changes its inputs in place",
                "Work on a copy: the trainer goes on with the lists that it handed over."),
    "not finite": ("robustness.not_finite", "The reward returns NaN or infinity",
                   "Return a finite score for every text; None, where a row is not the reward's to score."),
    "left out": ("robustness.left_out", "The reward says None to texts in rows that it scores otherwise",
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
    if not time_limit > 0 or not budget > 0 or seed < 0:
        raise AlignkitError(f"audit: time_limit ({time_limit}) and budget ({budget}) must be above 0, seed ({seed}) at "
                            "least 0")  # fmt: skip
    source = reward if isinstance(reward, str) else as_reward(reward)
    name = source if isinstance(source, str) else source.card.name
    material = open_material(data, world, policy, seed)
    run = _Run(name)
    try:
        with IsolatedReward(source, time_limit, memory_limit) as isolated, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing but NaN: told as findings
            exam = Examination(isolated, material, seed, budget, texts, chat=material.messages is not None)
            _examine(run, exam, time_limit)
        run.findings += _told(isolated.incidents, texts)
        form = "conversational" if exam.chat else "plain text"
        run.reward = {"name": name, "kind": isolated.kind, "card": isolated.card, "form": form}
        run.spent = {"completions": isolated.spent.completions, "calls": isolated.spent.calls,
                     "seconds": round(isolated.spent.seconds, 3)}  # fmt: skip
    except LoadFault as fault:
        run.findings += _told([fault.incident], texts)
    settings = {"seed": seed, "time_limit": time_limit, "budget": budget,
                "data": None if data is None else material.source,
                "world": None if material.world is None else material.world.name}  # fmt: skip
    return Audit(run.report(settings, material))


def _told(incidents: list[Incident], texts: bool) -> list[Finding]:
    """One finding for each kind of incident and type of error; its example is the first case."""
    groups: dict[tuple[str, str], list[Incident]] = {}
    for one in incidents:
        groups.setdefault((one.kind, one.type), []).append(one)
    out = []
    for (kind, _), cases in groups.items():
        name, what, action = TOLD[kind]
        rows, checks = sum(one.rows for one in cases), list(dict.fromkeys(one.check for one in cases))
        grave = kind in ("died", "memory", "garbled") or any(check in ORDINARY for check in checks)
        where = "" if kind == "import" else f" ({counted(rows, 'text')}; checks: {', '.join(checks)})"
        first = cases[0]
        prompt, completion = cut(first.prompt, SHOWN), cut(first.completion, SHOWN)
        example = Example(prompt, completion, completion) if texts and (prompt or completion) else None
        out.append(Finding(name, SERIOUS if grave else WARN, f"{what}{where}: {first.message}", action, {"n": rows},
                           example))  # fmt: skip
    return out


@dataclass
class _Run:
    """Collects what checks yield: a dict is what was measured, a Finding a finding."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    checks: list[dict] = field(default_factory=list)
    stopped: str = ""

    def __post_init__(self):
        self.reward: dict = {"name": self.name, "kind": None, "card": {}, "form": None}
        self.spent: dict = {"completions": 0, "calls": 0, "seconds": 0.0}

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

    def report(self, settings: dict, material: Material) -> dict:
        skipped = [check["name"] for check in self.checks if check["status"] == NOT_RUN]
        if skipped and self.stopped:
            self.findings.append(Finding(
                "audit.incomplete", WARN, f"{counted(len(skipped), 'check')} of {len(self.checks)} could not be run "
                f"({self.stopped}): {', '.join(skipped)}.",
                "Allow more time (--time-limit), or mend what is found above first.", {"n": len(skipped)},
            ))  # fmt: skip
        return plain({
            "report": "reward audit", "schema": SCHEMA, "reward": self.reward,
            "material": {"source": material.source, "prompts": int(material.group.max() + 1),
                         "completions": len(material.completions), "pairs": len(material.chosen),
                         "gold": material.world is not None},
            "settings": settings, **concluded(self.findings), "checks": self.checks, "spent": self.spent,
        })  # fmt: skip


def _examine(run: _Run, exam: Examination, time_limit: float) -> None:
    """Checks in the order of what the later ones build on."""
    run.check("answers", exam, lambda: _ask_first(exam, time_limit))
    for name, check in {
        "determinism": invariance.check_determinism, "accuracy": judgment.check_accuracy,
        "distribution": judgment.check_distribution, "length_tie": judgment.check_length_tie,
        "search": judgment.check_search, "batch": invariance.check_batch, "position": invariance.check_position,
    }.items():  # fmt: skip
        run.check(name, exam, lambda check=check: check(exam))
    effects: list[sensitivity.Effect] = []
    by_family: dict[str, list[perturb.Perturbation]] = {}
    for entry in perturb.for_world(exam.material.world).values():
        by_family.setdefault(entry.family, []).append(entry)

    def probe(family: str) -> Iterable[Finding | dict]:
        tried = [sensitivity.try_on(exam, entry) for entry in by_family[family]]
        effects.extend(tried)
        return sensitivity.check_family(exam, family, tried)

    for family in by_family:
        run.check(family.replace(" ", "_"), exam, lambda family=family: probe(family))
    run.check("words", exam, lambda: sensitivity.check_words(exam))
    run.check("best_of_n", exam, lambda: judgment.check_nonsense_wins(exam, effects))
    stopped, run.stopped = run.stopped, ""  # speed asks nothing new
    run.check("speed", exam, lambda: invariance.check_speed(exam))
    run.stopped = stopped


def _ask_first(exam: Examination, time_limit: float) -> Iterable[Finding | dict]:
    """Scores of all ordinary answers; before that a small call that shows form and speed."""
    reward = exam.reward
    found = np.isfinite(exam.ask(np.arange(min(PROBE, len(exam.material.prompts))))).any()
    if not found and _other_form_works(exam):
        found = True
        if exam.material.messages is not None:
            yield Finding(
                "answers.form", SERIOUS, "The reward reads plain text and fails on messages; these data are messages.",
                "Take the text out of the messages (completion[-1]['content']): a trainer hands over what the data "
                "hold. The other checks were done on plain text.",
            )  # fmt: skip
    if not found:
        raise CantGoOn("the reward scored none of the first texts")
    rate = float(np.median(reward.spent.rates)) if reward.spent.rates else 0.0
    reward.chunk = int(np.clip(reward.call_limit / 4 / max(rate, 1e-9), 1, reward.chunk))
    material = exam.material
    planned = len(material.prompts) + len(material.first) * len(perturb.for_world(material.world)) + 800
    exam.share = min(1.0, TIME_SHARE * time_limit / max(planned * rate, 1e-9))
    if exam.share < 0.5:
        exam.material = _smaller(material, exam.share)
    exam.scores = exam.ask(np.arange(len(exam.material.prompts)))
    scored = int(np.isfinite(exam.scores).sum())
    if not scored:
        raise CantGoOn("the reward scored no text")
    yield {"scored": scored, "of": len(exam.scores), "left_out": int(exam.left_out.sum()),
           "planned_share": round(exam.share, 4)}  # fmt: skip


def _other_form_works(exam: Examination) -> bool:
    """A function that reads messages fails on plain text, and the other way round; then `exam` takes the other form."""
    noted = exam.reward.incidents
    if not {one.type for one in noted} & {"TypeError", "KeyError", "AttributeError", "IndexError", "ValueError"}:
        return False
    exam.chat, exam.reward.incidents = not exam.chat, []
    if np.isfinite(exam.ask(np.arange(min(PROBE, len(exam.material.prompts))))).any():
        return True
    exam.chat, exam.reward.incidents = not exam.chat, noted
    return False


def _smaller(material: Material, share: float) -> Material:
    """Fewer answers to each prompt, for a slow reward."""
    sizes = np.bincount(material.group)
    per = max(4, round(share * sizes.max()))
    if (np.diff(material.group) < 0).any() or per >= sizes.max():
        return material
    order = np.concatenate([np.arange(size) for size in sizes])
    return material.part(np.flatnonzero(order < per))


@dataclass(repr=False)
class Audit(Report):
    """What an audit found; see also `clean` and `measured`."""

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
