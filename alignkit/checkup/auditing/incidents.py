"""What must never happen while scoring, told as findings: one for each kind and place."""

from __future__ import annotations

from alignkit.checkup.auditing.findings import SERIOUS, WARN, Example, Finding
from alignkit.checkup.isolation.process import Incident
from alignkit.intervals import counted

SHOWN = 160  # characters of a text

#: Texts a policy may write at any time: failing on them stops a run. What only a perturbation makes (a text twice as
#: long, invented words) is worth a warning.
ORDINARY = ("load", "answers", "determinism", "accuracy", "batch", "position", "empty", "truncation")

TOLD = {
    "import": ("The reward can't be imported", "Run its module by itself and mend what it raises."),
    "raised": ("The reward raises", "Catch it inside the reward and return a score; in training it would end the run."),
    "hangs": ("The reward hangs", "Give what it waits for (network, input, a lock) a time limit of its own."),
    "died": ("The reward's process dies", "Look for os._exit, native code that crashes, or too little memory."),
    "memory": ("The reward takes too much memory", "Score in smaller batches, free what is kept between calls."),
    "wrong length": ("The reward returns the wrong number of scores", "Return one for each completion, in order."),
    "not finite": ("The reward returns NaN, infinity or None", "Return a finite score for every text."),
}


def tell(incidents: list[Incident], texts: bool = True) -> list[Finding]:
    """One finding for each kind of incident and type of error; its example is the first case."""
    groups: dict[tuple[str, str], list[Incident]] = {}
    for one in incidents:
        groups.setdefault((one.kind, one.type), []).append(one)
    out = []
    for (kind, _), cases in groups.items():
        rows, checks = sum(one.rows for one in cases), list(dict.fromkeys(one.check for one in cases))
        what, action = TOLD[kind]
        first = cases[0]
        where = "" if kind == "import" else f" ({counted(rows, 'text')}; checks: {', '.join(checks)})"
        out.append(Finding(
            f"{_ID[kind]}.{kind.replace(' ', '_')}",
            SERIOUS if kind in ("died", "memory") or any(check in ORDINARY for check in checks) else WARN,
            f"{what}{where}: {first.message}",
            action,
            {"n": rows},
            Example(first.prompt[:SHOWN], first.completion[:SHOWN], first.completion[:SHOWN])
            if texts and (first.prompt or first.completion) else None,
        ))  # fmt: skip
    return out


_ID = {"import": "load", "raised": "robustness", "hangs": "robustness", "died": "robustness", "memory": "robustness",
       "wrong length": "robustness", "not finite": "robustness"}  # fmt: skip
