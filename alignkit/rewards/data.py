"""What a data set must look like before anything is fit to it, and its rows as tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from torch import Tensor

from alignkit.errors import ContextError, DataError
from alignkit.policy import Batch, Policy


def check_columns(data: Dataset, needed: Sequence[str], what: str) -> None:
    """DataError if a column is missing, or there are no rows. `what`: for the message ("pairs", "ratings")."""
    missing = [name for name in needed if name not in data.column_names]
    if missing:
        raise DataError(f"{what} need the columns {list(needed)}; missing {missing}, found {data.column_names}")
    if not len(data):
        raise DataError(f"there are no {what} to fit: the data set is empty")


def check_texts(data: Dataset, *sides: str) -> None:
    """DataError naming the row if a prompt is neither text nor messages, or one of the sides is not text."""
    for column in ("prompt", *sides):
        allowed = (str, list) if column == "prompt" else str
        for row, text in enumerate(data[column]):
            if not isinstance(text, allowed):
                raise DataError(f"row {row}: {column!r} is {type(text).__name__}, not text; drop or mend that row")


def check_numbers(data: Dataset, column: str, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """The column as float64, shape (N,). DataError naming the row if a value is no finite number in [low, high]."""
    for row, value in enumerate(data[column]):
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise DataError(f"row {row}: {column!r} is {value!r}, not a finite number; drop or mend that row")
        if not low <= value <= high:
            raise DataError(
                f"row {row}: {column!r} is {value!r}, off the scale from {low:g} to {high:g}; "
                "drop or mend that row, or name the right scale"
            )
    return np.array(data[column][:], dtype=np.float64)


def check_pairs(pairs: Dataset, *numbers: str | None) -> None:
    """DataError naming the column or row if these are not usable pairs; `numbers`: further columns that are needed."""
    numbers = [name for name in numbers if name]
    check_columns(pairs, ["prompt", "chosen", "rejected", *numbers], "pairs")
    check_texts(pairs, "chosen", "rejected")
    for name in numbers:
        check_numbers(pairs, name)


def encode_pairs(codec: Policy, pairs: Dataset) -> Batch:
    """The chosen sides, then the rejected sides, as one token batch of 2N rows."""
    prompts, chosen, rejected = pairs["prompt"][:], pairs["chosen"][:], pairs["rejected"][:]
    try:
        return codec.encode(prompts * 2, chosen + rejected)
    except ContextError:
        codec.encode(prompts, chosen)  # raises again, naming the row of the data set
        codec.encode(prompts, rejected)
        raise


def pair_lengths(both: Batch) -> Tensor:
    """Tokens of the longer side of each pair, shape (N,)."""
    return both.attention.sum(1).view(2, -1).amax(0)
