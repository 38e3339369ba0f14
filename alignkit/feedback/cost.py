"""What an answer costs and how much it can say, by one definition for every form of feedback."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from alignkit.errors import DataError

COST = ("decisions", "items", "bits")  # columns, one number a row


def bits(log2_answers: np.ndarray | float, p_answer: np.ndarray | float) -> np.ndarray:
    """log2(number of possible answers) + log2 p(answer given), for each answer.

    Its mean is log2 K - H(answer | question): the most that an answer can tell about what was asked, since the mutual
    information is H(answer) - H(answer | question) and H(answer) is at most log2 K. A coin says 0 bits, a sure choice
    between two 1 bit; a single answer that was unlikely counts below 0.
    """
    return np.asarray(log2_answers) + np.log2(np.asarray(p_answer, dtype=float))


def with_cost(columns: dict, decisions: int | Sequence[int], items: int, bits: np.ndarray) -> Dataset:
    """The columns as a Dataset, with what each row cost: choices made, completions read, bits said (at most)."""
    n = len(bits)
    choices = np.broadcast_to(decisions, n).tolist()
    return Dataset.from_dict({**columns, "decisions": choices, "items": [items] * n, "bits": [float(b) for b in bits]})


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
