"""People who mark the steps of an answer, and programs that check how it ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import Dataset

from alignkit.errors import DataError
from alignkit.feedback.answers import People, assign, one_by_one
from alignkit.feedback.cost import bits, with_cost
from alignkit.feedback.critiques import faults
from alignkit.worlds.base import World


def mark_steps(world: World, answers: Dataset, annotator: People, seed: int = 0) -> Dataset:
    """Is each step right? TRL's process labels: columns `prompt/completions/labels` (steps, bools), `annotator`, cost.

    A step is a segment of the completion, and right if it has no fault; each label is flipped with the probability
    error of the annotator whose turn it is (temperature plays no part). Completions without a step are left out.
    """
    singles = one_by_one(answers)
    rows = [(p, text) for p, text in zip(singles["prompt"], singles["completion"], strict=True) if world.segments(text)]
    people, _, who = assign(annotator, len(rows))
    rng = np.random.default_rng([seed, 9])
    labels, said = [], []
    for (prompt, text), number in zip(rows, who, strict=True):
        right, error = np.array([name == "" for name in faults(world, prompt, text)]), people[number].error
        flip = rng.random(len(right)) < error
        labels.append((right ^ flip).tolist())
        said.append(bits(1.0, np.where(flip, error, 1 - error)).sum())
    steps = [world.segments(text) for _, text in rows]
    columns = {"prompt": [prompt for prompt, _ in rows], "completions": steps, "labels": labels}
    columns["annotator"] = [people[k].name for k in who]
    return with_cost(columns, [len(s) for s in steps], 1, np.array(said))


def verify(answers: Dataset, verifier: Callable, name: str = "verifier") -> Dataset:
    """Outcomes checked by a program: columns `prompt/completion/label`, `annotator` and cost.

    `verifier(prompts, completions)` returns one of 0, 1, true, false for each (say `world.correct`, or a unit test).
    """
    singles = one_by_one(answers)
    prompts, texts = singles["prompt"][:], singles["completion"][:]
    verdicts = np.asarray(verifier(prompts, texts))
    if verdicts.shape != (len(texts),) or not np.isin(verdicts, (0, 1)).all():
        raise DataError(f"{name} must return 0 or 1 for each of {len(texts)} completions; it returned {verdicts!r:.80}")
    columns = {"prompt": prompts, "completion": texts, "label": (verdicts == 1).tolist()}
    return with_cost({**columns, "annotator": [name] * len(texts)}, 1, 1, np.ones(len(texts)))
