"""Labels for steps and outcomes: by people who read each step, by rollouts that see how it ends, by a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset

from alignkit.errors import DataError, check_at_least
from alignkit.feedback.annotator import Annotator
from alignkit.feedback.answers import SINGLE, People, ask, bits, one_by_one
from alignkit.policy import Policy
from alignkit.worlds.base import World, require


def mark_steps(world: World, answers: Dataset, annotator: People, seed: int = 0) -> Dataset:
    """Is each step right? TRL's process labels: columns `prompt/completions/labels` (steps, bools), `annotator`, cost.

    A step is a segment of the completion, and right if it has no fault; each label is flipped with the probability
    error of the annotator whose turn it is (temperature plays no part). Completions without a step are left out.
    """
    require(world, "marking steps", "segments", "faults")
    singles = one_by_one(answers)
    kept = [i for i, text in enumerate(singles["completion"]) if world.segments(text)]
    asked = ask(singles.select(kept), SINGLE, annotator)
    rng = np.random.default_rng([seed, 9])
    steps, labels, told = [], [], []
    for person, prompt, text, _ in asked.each():
        right = np.array([name == "" for name in world.faults(prompt, text)])
        flip = rng.random(len(right)) < person.error
        steps.append(world.segments(text))
        labels.append((right ^ flip).tolist())
        told.append(bits(1.0, np.where(flip, person.error, 1 - person.error)).sum())
    columns = {"prompt": asked.about["prompt"], "completions": steps, "labels": labels}
    return asked.answered(columns, [len(marks) for marks in labels], 1, told)


def verify(answers: Dataset, verifier: Callable, name: str = "verifier") -> Dataset:
    """Outcomes checked by a program: columns `prompt/completion/label`, `annotator` and cost.

    `verifier(prompts, completions)` returns one of 0, 1, true, false for each (say `world.correct`, or a unit test).
    """
    asked = ask(one_by_one(answers), SINGLE, Annotator(name=name))
    verdicts, n = np.asarray(verifier(*asked.about.values())), len(asked.who)
    if verdicts.shape != (n,) or not np.isin(verdicts, (0, 1)).all():
        raise DataError(f"{name} must return 0 or 1 for each of {n} completions; it returned {verdicts!r:.80}")
    return asked.answered({**asked.about, "label": (verdicts == 1).tolist()}, 1, 1, np.ones(n))


def rollout_labels(policy: Policy, prompts: Sequence[str], completions: Sequence[Sequence[str]], verifier: Callable,
                   n: int = 8, hard: bool = False, seed: int = 0, **options) -> Dataset:  # fmt: skip
    """Monte-Carlo labels (Math-Shepherd, 2312.08935): how often `policy` gets to a right answer from after each step.

    `completions`: a list of steps for each prompt. `verifier(prompts, completions)` gives 1 for a right whole answer,
    0 for a wrong one. Returns `prompt/completions/labels` as `mark_steps` does, labels in [0, 1]: the share of n
    continuations that are right (soft estimation), or with `hard` whether any is. The last step needs no continuation:
    its label is the verdict on the answer itself. Equal beginnings are continued once; column `rollouts` counts the
    continuations paid for by each row. Further options go to `policy.rollout`.
    """
    check_at_least("rollout_labels", 1, n=n)
    for row, (prompt, steps) in enumerate(zip(prompts, completions, strict=True)):
        if not isinstance(prompt, str):
            raise DataError(f"row {row}: the prompt is {type(prompt).__name__}; write messages out as one string")
        if isinstance(steps, str) or not len(steps):
            raise DataError(f"row {row}: a list of steps is needed, at least one; got {steps!r}")
    starts = [[(prompt, " ".join(steps[:i])) for i in range(1, len(steps))]
              for prompt, steps in zip(prompts, completions, strict=True)]  # fmt: skip
    worth: dict[tuple[str, str], float] = {}
    if asked := list(dict.fromkeys(start for row in starts for start in row)):
        ends = policy.rollout([f"{prompt} {start}" for prompt, start in asked], n, seed=seed, **options).completions
        owner = [start for start in asked for _ in range(n)]
        whole = [f"{start} {end}".strip() for (_, start), end in zip(owner, ends, strict=True)]
        right = np.asarray(verifier([prompt for prompt, _ in owner], whole), dtype=float).reshape(-1, n)
        worth = dict(zip(asked, (right.max(1) if hard else right.mean(1)).tolist(), strict=True))
    last = np.asarray(verifier(list(prompts), [" ".join(steps) for steps in completions]), dtype=float)
    labels = [[*map(worth.get, row), verdict] for row, verdict in zip(starts, last.tolist(), strict=True)]
    spent, paid = [], set()
    for row in starts:
        spent.append(n * len(set(row) - paid))
        paid.update(row)
    return Dataset.from_dict({"prompt": list(prompts), "completions": [list(steps) for steps in completions],
                              "labels": labels, "rollouts": spent})  # fmt: skip
