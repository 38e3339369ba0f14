"""What people are asked about, who looks at what, and what an answer costs: the ground of every form of feedback."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError, DataError
from alignkit.feedback.annotator import Annotator

People = Annotator | Sequence[Annotator]
COST = ("decisions", "items", "bits")  # columns, one number a row


def one_by_one(answers: Dataset) -> Dataset:
    """`prompt/completion`, one row a completion, from groups (`prompt/completions`) or from such rows themselves.

    Further columns go along. DataError names the columns if these are neither.
    """
    if {"prompt", "completion"} <= set(answers.column_names):
        return answers
    if not {"prompt", "completions"} <= set(answers.column_names):
        raise DataError(f"need the columns prompt and completion (or completions); found {answers.column_names}")
    prompts, groups = answers["prompt"][:], answers["completions"][:]
    row = [i for i, texts in enumerate(groups) for _ in texts]
    texts = [text for texts in groups for text in texts]
    columns = {"prompt": [prompts[i] for i in row], "completion": texts}
    return Dataset.from_dict({**columns, **further(answers, ("prompt", "completions"), row)})


def asked_of(prompts: Sequence | Dataset) -> tuple[list, dict[str, list]]:
    """The prompts of a list, or of a Dataset with a column `prompt`, and the Dataset's further columns."""
    if not isinstance(prompts, Dataset):
        if isinstance(prompts, str):
            raise DataError("prompts must be a list of prompts, or a Dataset with a column 'prompt', not one string")
        return list(prompts), {}
    if "prompt" not in prompts.column_names:
        raise DataError(f"prompts need the column 'prompt'; found {prompts.column_names}")
    return prompts["prompt"][:], further(prompts, ("prompt",))


def further(data: Dataset, used: Sequence[str], rows: Sequence[int] | None = None) -> dict[str, list]:
    """The columns of `data` besides those `used`, at these rows (default: all): they go along with each answer."""
    columns = {name: data[name][:] for name in data.column_names if name not in used}
    return columns if rows is None else {name: [values[i] for i in rows] for name, values in columns.items()}


def assign(people: People, n: int, everyone: bool = False) -> tuple[list[Annotator], np.ndarray, np.ndarray]:
    """Who looks at what: the people, the row of each answer and the number of the person who gives it.

    In turn, one person a row; or `everyone` looks at every row.
    """
    people = [people] if isinstance(people, Annotator) else list(people)
    if not people:
        raise AlignkitError("give at least one annotator")
    if everyone:
        return people, np.tile(np.arange(n), len(people)), np.repeat(np.arange(len(people)), n)
    return people, np.arange(n), np.arange(n) % len(people)


def bits(log2_answers: np.ndarray | float, p_answer: np.ndarray | float) -> np.ndarray:
    """log2(number of possible answers) + log2 p(answer given), for each answer.

    Its mean is log2 K - H(answer | question): the most that an answer can tell about what was asked, since the mutual
    information is H(answer) - H(answer | question) and H(answer) is at most log2 K. A coin says 0 bits, a sure choice
    between two 1 bit; a single answer that was unlikely counts below 0.
    """
    return np.asarray(log2_answers) + np.log2(np.asarray(p_answer, dtype=float))


def with_cost(
    columns: dict, decisions: int | Sequence[int], items: int, bits: np.ndarray, along: dict | None = None
) -> Dataset:
    """The columns as a Dataset, with what each row cost: choices made, completions read, bits said (at most).

    `along`: further columns, kept where the new ones have no such name.
    """
    n = len(bits)
    choices = np.broadcast_to(decisions, n).tolist()
    columns = {**columns, "decisions": choices, "items": [items] * n, "bits": [float(b) for b in bits]}
    return Dataset.from_dict({**columns, **{k: v for k, v in (along or {}).items() if k not in columns}})


def cost(answers: Dataset) -> dict[str, float]:
    """Totals of a data set of feedback: answers, decisions, items read, bits.

    Decisions are choices among alternatives: 1 for a pair, k-1 for a ranking of k, 1 for a rating, one an aspect or a
    step. Labels of `compare` say it by their column `p_chosen`. DataError if neither is there.
    """
    n = len(answers)
    if set(COST) <= set(answers.column_names):
        decisions, items, said = (float(np.sum(answers[name][:])) for name in COST)
    elif "p_chosen" in answers.column_names:
        decisions, items, said = n, 2 * n, float(bits(1.0, answers["p_chosen"][:]).sum())
    else:
        raise DataError(f"cost needs the columns {list(COST)} or 'p_chosen'; found {answers.column_names}")
    return {"answers": float(n), "decisions": float(decisions), "items read": float(items), "bits": said}
