"""Where preference pairs come from: each file, saved data set or Hub id becomes a stream of numbered raw rows.

`datasets` reads what it can read safely (saved data sets, the Hub). Files are read here, since `load_dataset` gives up
on a whole file for one bad row: a row that can't be read becomes `Broken` and reading goes on, and a file that ends too
early raises `Damage` after its last whole row. Rows count from 1; in JSON Lines a row's number is its line.

A new container is a function in `READERS`; a new layout of the rows is a matter of `pairs.parse_row`.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow
import pyarrow.parquet

from alignkit.errors import DataError

SIDES = ("chosen", "rejected")
# side files of the `datasets` library
NOT_PAIRS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
LONGEST_FIELD = 2**31 - 1  # csv's own limit, 128 KiB, is shorter than a long conversation
LONGEST_LINE = 2**28  # bytes of a row in JSON Lines: more is no pair, but a packed file that bursts
OUT_OF_RANGE = (ValueError, OverflowError, pyarrow.ArrowException)  # values that Python can't hold
TORN = (EOFError, zlib.error, gzip.BadGzipFile, csv.Error, *OUT_OF_RANGE)  # what a file that is not whole raises
Rows = Iterable[tuple[int, object]]


@dataclass(frozen=True)
class Broken:
    """A row, or one of its values, that could not be read, and why."""

    reason: str


class Damage(Exception):
    """The stream stops here before its proper end; the rows before it are good."""


@dataclass(frozen=True)
class RowStream:
    """One file or data set: its name in messages, its rows with their numbers, and a choice worth telling."""

    name: str
    rows: Rows
    note: str | None = None

    def numbered(self) -> Iterator[tuple[int, object]]:
        """(number, row); a file that breaks off raises Damage after its last whole row."""
        number = 0
        try:
            for number, row in self.rows:
                yield number, row
        except DataError:
            raise
        except TORN as error:
            why = f"{os.path.basename(self.name)} is damaged after row {number} ({_first_line(error)})"
            raise Damage(f"{why}; the rows before it are kept") from error
        except OSError as error:
            raise DataError(f"{self.name} can't be read: {error.strerror or error}.") from error


def open_streams(source: Any, split: str | None = None) -> list[RowStream]:
    """Every stream of rows behind `source`: a path, a Hub id, a data set of `datasets`, a table or a list of rows."""
    if not isinstance(source, str | Path):
        return [_from_memory(source, f"a {type(source).__name__} in memory", split)]
    name = str(source)
    if not name:
        raise DataError("the source is an empty text. Give a file, a folder, or a name on the Hub.")
    if os.path.isdir(source):
        return _open_folder(Path(source), split)
    if os.path.exists(source):
        if split is not None:
            raise DataError(f"{source} is one file and has no split {split!r}. Leave the split out.")
        return [_open_file(Path(source))]
    if name.lower().endswith(tuple(READERS)) or not HUB_ID.fullmatch(name) or len(name) > 200:
        raise DataError(f"{name[:200]}: no such file or directory. Check the path (relative paths start in "
                        f"{Path.cwd()}).")  # fmt: skip
    return [_from_memory(load_from_hub(name), name, split)]


# --- files ----------------------------------------------------------------------------------------


def _open_file(path: Path) -> RowStream:
    reader = next((READERS[end] for end in READERS if path.name.lower().endswith(end)), None)
    if reader is None:
        raise DataError(f"{path} has an unknown format. Supported are: {', '.join(READERS)}, or a folder of these.")
    return RowStream(str(path), reader(path))


def _json_lines(path: Path) -> Rows:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            if len(line) == LONGEST_LINE:
                raise EOFError(f"a line of more than {LONGEST_LINE // 2**20} MiB")
            if line.strip():
                yield number, _json_line(line)


def _json_line(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Broken("not UTF-8 text")
    except (ValueError, RecursionError):
        return Broken("not valid JSON (half a line?)")


def _json(path: Path) -> Rows:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON in UTF-8 ({_first_line(error)}). If each line is an object of its "
                        "own, name it .jsonl; otherwise download or export it again.") from error  # fmt: skip
    if not isinstance(content, list):
        found = f"an object with the keys {short_names(content)}" if isinstance(content, dict) else "a single value"
        raise DataError(f"{path} holds {found}, not a list of pairs. Save it as a list of objects, one per pair.")
    yield from enumerate(content, start=1)


def _csv(path: Path) -> Rows:
    csv.field_size_limit(LONGEST_FIELD)
    # surrogateescape lets one badly encoded row be turned away later without losing the rest of the file
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=1):
            whole = None not in row and None not in row.values()
            yield number, row if whole else Broken("wrong number of fields")


def _parquet(path: Path) -> Rows:
    batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024)
    yield from enumerate((row for batch in batches for row in _batch_rows(batch)), start=1)


def _batch_rows(batch: pyarrow.RecordBatch) -> list[dict]:
    """The rows as dicts; a value that is no UTF-8 text or out of Python's range becomes `Broken`."""
    try:
        return batch.to_pylist()
    except OUT_OF_RANGE:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        return [{name: _value(column[i]) for name, column in columns.items()} for i in range(len(batch))]


def _value(scalar: pyarrow.Scalar) -> object:
    try:
        return scalar.as_py()
    except OUT_OF_RANGE as error:
        return Broken("not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "a value out of range")


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_lines, ".jsonl.gz": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet,
}  # fmt: skip


# --- folders, data sets in memory, the Hub --------------------------------------------------------


def _open_folder(path: Path, split: str | None) -> list[RowStream]:
    if not os.access(path, os.R_OK | os.X_OK):
        raise DataError(f"{path} can't be read: Permission denied.")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        try:
            loaded = datasets.load_from_disk(str(path))
        except Exception as error:  # `datasets` passes on whatever Arrow, JSON or the file system raised
            raise DataError(f"{path} looks like a saved data set but can't be loaded: {_first_line(error)}.") from error
        return [_from_memory(loaded, str(path), split)]
    files = sorted(file for file in path.rglob("*") if _holds_pairs(file, path))
    if not files:
        raise DataError(f"{path} holds no data file. Expected {', '.join(READERS)}, or a data set saved to disk.")
    chosen = [file for file in files if split is None or re.match(rf"{re.escape(split)}\b", file.name)]
    if not chosen:
        names = short_names((file.name for file in files), most=8)
        raise DataError(f"{path} has no file whose name starts with {split!r}. It holds: {names}.")
    return [_open_file(file) for file in chosen]


def _holds_pairs(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.is_file() and file.name.lower().endswith(tuple(READERS)) and not hidden and file.name not in NOT_PAIRS


def load_from_hub(name: str):
    """`datasets.load_dataset` without running code from the Hub; any failure becomes one DataError."""
    try:
        return datasets.load_dataset(name)
    except Exception as error:  # network, permission, format: `datasets` has no common base class for these
        raise DataError(
            f"{name}: no such file or directory here, and loading it from the Hugging Face Hub failed "
            f"({_first_line(error)}). Check the name; if this machine is offline, give a local path instead."
        ) from error


def _from_memory(loaded: Any, name: str, split: str | None) -> RowStream:
    note = None
    if isinstance(loaded, datasets.DatasetDict):
        names = ", ".join(loaded)
        split = split or (names if len(loaded) == 1 else "train")
        if split not in loaded:
            raise DataError(f"{name} has no split {split!r}. Its splits are: {names}. Name one of them.")
        note = f"split {split!r} of: {names}" if len(loaded) > 1 else None
        loaded = loaded[split]
    elif split is not None and str(getattr(loaded, "split", None)) != split:
        raise DataError(f"{name} has no split {split!r}; it is a single table. Leave the split out.")
    if isinstance(loaded, pd.DataFrame):
        loaded = loaded.to_dict("records")
    is_rows = isinstance(loaded, list) and all(isinstance(row, dict) for row in loaded)
    if not is_rows and not isinstance(loaded, datasets.Dataset):
        raise DataError(f"{name} is not a source of pairs. Give a path, a Hub id, or a datasets.Dataset.")
    return RowStream(name, enumerate(loaded, start=1), note)


def short_names(names: Iterable, most: int = 12) -> str:
    """Column names for a message: at most `most`, each cut to 40 characters."""
    names = [str(name)[:40] for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def _first_line(error: Exception) -> str:
    """An error of another library in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__
