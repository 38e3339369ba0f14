"""Labels for steps from rollouts, which see how it ends (people who read each step: `mark_steps`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError, DataError
from alignkit.policy import Policy


def rollout_labels(
    policy: Policy,
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
    verifier: Callable[[list[str], list[str]], Sequence[float]],
    k: int = 8,
    hard: bool = False,
    seed: int = 0,
    **options,
) -> Dataset:
    """Monte-Carlo labels (Math-Shepherd, 2312.08935): how often `policy` gets to a right answer from after each step.

    `completions`: a list of steps for each prompt. `verifier(prompts, completions)` gives 1 for a right whole answer,
    0 for a wrong one. Returns `prompt/completions/labels` as `mark_steps` does, labels in [0, 1]: the share of k
    continuations that are right (soft estimation), or with `hard` whether any is. The last step needs no continuation:
    its label is the verdict on the answer itself. Equal beginnings are continued once; column `rollouts` counts the
    continuations paid for by each row. Further options go to `policy.rollout`.
    """
    if k < 1:
        raise AlignkitError(f"rollout_labels: k must be at least 1, not {k}")
    for row, (prompt, steps) in enumerate(zip(prompts, completions, strict=True)):
        if not isinstance(prompt, str):
            raise DataError(f"row {row}: the prompt is {type(prompt).__name__}, but beginnings are written after it; "
                            "write messages out as one string")  # fmt: skip
        if isinstance(steps, str) or not len(steps):
            raise DataError(f"row {row}: a list of steps is needed, at least one; got {steps!r}")
    starts = {(p, " ".join(steps[:i])): 0.0 for p, steps in zip(prompts, completions, strict=True)
              for i in range(1, len(steps))}  # fmt: skip
    if starts:
        asked = list(starts)
        ends = policy.rollout([f"{prompt} {start}" for prompt, start in asked], k, seed=seed, **options).completions
        owner = [row for row in asked for _ in range(k)]
        whole = [f"{start} {end}".strip() for (_, start), end in zip(owner, ends, strict=True)]
        right = np.asarray(verifier([prompt for prompt, _ in owner], whole), dtype=float).reshape(-1, k)
        starts = dict(zip(asked, (right.max(1) if hard else right.mean(1)).tolist(), strict=True))
    last = np.asarray(verifier(list(prompts), [" ".join(steps) for steps in completions]), dtype=float)
    labels, spent, paid = [], [], set()
    for prompt, steps, verdict in zip(prompts, completions, last.tolist(), strict=True):
        keys = [(prompt, " ".join(steps[:i])) for i in range(1, len(steps))]
        labels.append([*(starts[key] for key in keys), verdict])
        spent.append(k * len(set(keys) - paid))
        paid.update(keys)
    return Dataset.from_dict({"prompt": list(prompts), "completions": [list(steps) for steps in completions],
                              "labels": labels, "rollouts": spent})  # fmt: skip
