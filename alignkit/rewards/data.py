"""What a data set must look like before anything is fit to it, and its rows as tokens.

TRL's formats are taken as they are: sides and completions may be text or messages, and pairs may lack a column
`prompt`, which is then what both sides begin with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from torch import Tensor

from alignkit.errors import DataError
from alignkit.policy import Policy
from alignkit.tokens import Batch

HOW_TO = {
    "DataFrame": "Dataset.from_pandas(...) makes one of it",
    "list": "Dataset.from_list(...) makes one of a list of rows",
    "dict": "Dataset.from_dict(...) makes one of a dict of columns",
    "DatasetDict": "name one of its splits, as in data['train']",
}


def check_columns(data: Dataset, needed: Sequence[str], what: str) -> None:
    """DataError if this is no data set, lacks a column or has no rows. `what`: for the message ("pairs")."""
    if not isinstance(data, Dataset):
        kind = type(data).__name__
        raise DataError(f"{what} must be a datasets.Dataset, not {kind}; {HOW_TO.get(kind, 'see datasets.Dataset')}")
    missing = [name for name in needed if name not in data.column_names]
    if missing:
        raise DataError(f"{what} need the columns {list(needed)}; missing {missing}, found {data.column_names}")
    if not len(data):
        raise DataError(f"there are no {what} to fit: the data set is empty")


def is_messages(said) -> bool:
    """Whether this is a list of messages, each a dict with a role."""
    return isinstance(said, list) and all(isinstance(message, dict) and "role" in message for message in said)


def check_texts(data: Dataset, *sides: str) -> None:
    """DataError naming the row if its prompt (where there is one) or one of the sides is neither text nor messages."""
    for column in ("prompt", *sides):
        for row, said in enumerate(data[column] if column in data.column_names else []):
            if not isinstance(said, str) and not is_messages(said):
                raise DataError(f"row {row}: {column!r} is {type(said).__name__}, not text; drop or mend that row")


def check_numbers(data: Dataset, column: str, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """The column as float64, shape (N,). DataError naming the row if a value is no finite number in [low, high]."""
    for row, value in enumerate(data[column]):
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise DataError(f"row {row}: {column!r} is {value!r}, not a finite number; drop or mend that row")
        if not low <= value <= high:
            raise DataError(f"row {row}: {column!r} is {value!r}, off the scale from {low:g} to {high:g}; drop or mend "
                            "that row, or name the right scale")  # fmt: skip
    return np.array(data[column][:], dtype=np.float64)


def check_ratings(
    ratings: Dataset, columns: Sequence[str], low: float = -np.inf, high: float = np.inf
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers beside `prompt/completion`, each column standardized, shape (N, K), and the means and spreads, (K,).
    DataError as of `check_numbers`, or if a column is the same in all rows."""
    check_columns(ratings, ["prompt", "completion", *columns], "ratings")
    check_texts(ratings, "completion")
    values = np.stack([check_numbers(ratings, name, low, high) for name in columns], axis=1)
    mean, spread = values.mean(0), values.std(0)
    for name, s, first in zip(columns, spread, values[0], strict=True):
        if s == 0:
            raise DataError(f"all {len(values)} ratings of {name!r} are {first:g}: there is nothing to learn from them")
    return (values - mean) / spread, mean, spread


def check_pairs(pairs: Dataset, *numbers: str | None) -> Dataset:
    """The pairs, all columns kept, with a column `prompt` if they had none: what both sides begin with, as in TRL.
    DataError naming the column or row if these are not usable pairs; `numbers`: further columns that are needed."""
    numbers = [name for name in numbers if name]
    check_columns(pairs, ["chosen", "rejected", *numbers], "pairs")
    if "prompt" not in pairs.column_names:
        pairs = _with_prompts(pairs)
    check_texts(pairs, "chosen", "rejected")
    for name in numbers:
        check_numbers(pairs, name)
    return pairs


def _with_prompts(pairs: Dataset) -> Dataset:
    """What both sides of each pair begin with as the prompt, and the sides without it (TRL's `extract_prompt`)."""
    check_texts(pairs, "chosen", "rejected")
    rows = []
    for row in pairs:
        chosen, rejected = row["chosen"], row["rejected"]
        shorter = min(len(chosen), len(rejected))
        n = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter - 1)
        n -= isinstance(chosen, str) and chosen[max(n - 1, 0) : n] == " "
        rows.append({**row, "prompt": chosen[:n], "chosen": chosen[n:], "rejected": rejected[n:]})
    return Dataset.from_list(rows)


def check_labels(labels: Dataset, what: str = "labels") -> None:
    """DataError naming the row if these are not TRL's unpaired labels, `prompt/completion/label`, true or false."""
    check_columns(labels, ["prompt", "completion", "label"], what)
    check_texts(labels, "completion")
    for row, label in enumerate(labels["label"]):
        if not isinstance(label, bool):
            raise DataError(f"row {row}: 'label' is {label!r}; it must be true or false")


def check_rankings(rankings: Dataset) -> None:
    """DataError naming the row if these are no rankings: `prompt/ranked`, two completions a row or more, best first."""
    check_columns(rankings, ["prompt", "ranked"], "rankings")
    check_texts(rankings)
    for row, ranked in enumerate(rankings["ranked"]):
        texts = isinstance(ranked, list) and all(isinstance(said, str) or is_messages(said) for said in ranked)
        if not texts or len(ranked) < 2:
            raise DataError(f"row {row}: 'ranked' must list at least two texts, best first; it is {ranked!r:.80}")


def check_steps(steps: Dataset) -> list[list[float]]:
    """The labels of TRL's stepwise format, `prompt/completions/labels`, as numbers: true, false or in [0, 1].
    DataError naming the row if steps and labels do not match or are not what they should be."""
    check_columns(steps, ["prompt", "completions", "labels"], "steps")
    check_texts(steps)
    for row, (texts, labels) in enumerate(zip(steps["completions"], steps["labels"], strict=True)):
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts)):
            raise DataError(f"row {row}: 'completions' must be a list of steps, at least one, none of them empty")
        if not isinstance(labels, list) or len(labels) != len(texts):
            raise DataError(f"row {row}: {len(texts)} steps, labels {labels!r:.60}; give one label for each step")
        for label in labels:
            if not isinstance(label, bool | int | float) or not 0 <= label <= 1:
                raise DataError(f"row {row}: label {label!r}; a label is true, false or a number from 0 to 1")
    return [[float(label) for label in labels] for labels in steps["labels"]]


def encode_pairs(policy: Policy, pairs: Dataset) -> Batch:
    """The chosen sides, then the rejected sides, as one token batch of 2N rows."""
    return policy.encode_pairs(pairs["prompt"][:], pairs["chosen"][:], pairs["rejected"][:])


def pair_lengths(both: Batch) -> Tensor:
    """Tokens of the longer side of each pair, shape (N,)."""
    return both.attention.sum(1).view(2, -1).amax(0)
