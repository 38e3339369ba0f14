"""Where preference pairs come from: each file, saved data set or Hub id becomes a stream of numbered raw rows.

`datasets` reads what it can read safely (saved data sets, the Hub). Files are read here, since `load_dataset` gives up
on a whole file for one bad row: a row that can't be read becomes `Broken` and reading goes on, and a file that ends too
early becomes `Damage` after its last whole row. Rows count from 1; in JSON Lines a row's number is its line.

A new container is a function in `OPENERS`; a new layout of the rows is a matter of `pairs.parse_row`.
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

# side files of the `datasets` library
NOT_PAIRS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
LONGEST_FIELD = 2**31 - 1  # csv's own limit, 128 KiB, is shorter than a long conversation
LONGEST_LINE = 2**28  # bytes of a row in JSON Lines: more is no pair, but a packed file that bursts
TORN = (EOFError, zlib.error, gzip.BadGzipFile, csv.Error, pyarrow.ArrowException)  # a file that is not whole
OUT_OF_RANGE = (ValueError, OverflowError, pyarrow.ArrowException)  # values that Python can't hold


@dataclass(frozen=True)
class Broken:
    """A row, or one of its values, that could not be read, and why."""

    reason: str


@dataclass(frozen=True)
class Damage:
    """The stream stops here before its proper end; the rows before it are good."""

    message: str


@dataclass(frozen=True)
class RowStream:
    """One file or data set: its name in messages, its rows, its columns where known ahead."""

    name: str
    rows: Iterable[object]
    columns: list[str] | None = None
    note: str | None = None

    def numbered(self) -> Iterator[tuple[int, object]]:
        """(number, row); a file that breaks off ends in (number, Damage)."""
        number = 0
        try:
            for number, row in enumerate(self.rows, start=1):
                if row is not None:  # an empty line
                    yield number, row
        except (*TORN, *OUT_OF_RANGE) as error:
            why = f"{os.path.basename(self.name)} is damaged after row {number} ({first_line(error)})"
            yield number + 1, Damage(f"{why}; the rows before it are kept")
        except OSError as error:
            raise DataError(f"{self.name} can't be read: {error.strerror or error}.") from error


def open_streams(source: Any, split: str | None = None) -> list[RowStream]:
    """Every stream of rows behind `source`: a path, a Hub id, a data set of `datasets`, a table or a list of rows."""
    if not isinstance(source, str | Path):
        return [_from_memory(source, f"a {type(source).__name__} in memory", split)]
    if not str(source):
        raise DataError("the source is an empty text. Give a file, a folder, or a name on the Hub.")
    if os.path.isdir(source):
        return _open_folder(Path(source), split)
    if os.path.exists(source):
        if split is not None:
            raise DataError(f"{source} is one file and has no split {split!r}. Leave the split out.")
        return [_open_file(Path(source))]
    name = str(source)
    if name.lower().endswith(tuple(OPENERS)) or not HUB_ID.fullmatch(name) or len(name) > 200:
        raise DataError(f"{name[:200]}: no such file or directory. Check the path (relative paths start in "
                        f"{Path.cwd()}).")  # fmt: skip
    return [_from_memory(load_from_hub(name), name, split)]


# --- files ----------------------------------------------------------------------------------------


def _open_file(path: Path) -> RowStream:
    opener = next((OPENERS[end] for end in OPENERS if path.name.lower().endswith(end)), None)
    if opener is None:
        raise DataError(f"{path} has an unknown format. Supported are: {', '.join(OPENERS)}, or a folder of these.")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes). Download or export it again.")
        return opener(path)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error


def _open_lines(path: Path) -> RowStream:
    return RowStream(str(path), _json_lines(path))


def _json_lines(path: Path) -> Iterator[object]:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as file:
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise EOFError(f"a line of more than {LONGEST_LINE // 2**20} MiB")
            yield _json_line(line) if line.strip() else None


def _json_line(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Broken("not UTF-8 text")
    except (ValueError, RecursionError):
        return Broken("not valid JSON (half a line?)")


def _open_json(path: Path) -> RowStream:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}. If each "
            "line is an object of its own, name it .jsonl; otherwise download or export it again."
        ) from error
    except RecursionError as error:
        raise DataError(f"{path} nests too deeply to be read as JSON. Export it as a flat list of objects.") from error
    if not isinstance(content, list):
        found = f"an object with the keys {short_names(content)}" if isinstance(content, dict) else "a single value"
        raise DataError(f"{path} holds {found}, not a list of pairs. Save it as a list of objects, one per pair.")
    return RowStream(str(path), [Broken("null instead of an object with columns") if row is None else row
                                 for row in content])  # fmt: skip


def _open_csv(path: Path) -> RowStream:
    csv.field_size_limit(LONGEST_FIELD)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            columns = list(csv.DictReader(file).fieldnames or [])
        except csv.Error as error:
            raise DataError(f"{path} is no CSV file ({first_line(error)}).") from error
    return RowStream(str(path), _csv_rows(path), columns)


def _csv_rows(path: Path) -> Iterator[object]:
    # surrogateescape lets one badly encoded row be turned away later without losing the rest of the file
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file):
            yield row if None not in row and None not in row.values() else Broken("wrong number of fields")


def _open_parquet(path: Path) -> RowStream:
    try:
        table = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole Parquet file ({first_line(error)}). Download it again.") from error
    rows = (row for batch in table.iter_batches(batch_size=1024) for row in _batch_rows(batch))
    return RowStream(str(path), rows, table.schema_arrow.names)


def _batch_rows(batch: pyarrow.RecordBatch) -> list[dict]:
    """The rows as dicts; a value that is no UTF-8 text or out of Python's range becomes `Broken`."""
    try:
        return batch.to_pylist()
    except OUT_OF_RANGE:
        columns = [[_value(scalar) for scalar in column] for column in batch.columns]
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _value(scalar: pyarrow.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return Broken("not UTF-8 text")
    except OUT_OF_RANGE:
        return Broken("a value out of range")


OPENERS: dict[str, Callable[[Path], RowStream]] = {
    ".jsonl": _open_lines, ".jsonl.gz": _open_lines, ".json": _open_json, ".csv": _open_csv, ".parquet": _open_parquet,
}  # fmt: skip


# --- folders, data sets in memory, the Hub --------------------------------------------------------


def _open_folder(path: Path, split: str | None) -> list[RowStream]:
    if not os.access(path, os.R_OK | os.X_OK):
        raise DataError(f"{path} can't be read: Permission denied.")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        try:
            loaded = datasets.load_from_disk(str(path))
        except Exception as error:  # `datasets` passes on whatever Arrow, JSON or the file system raised
            raise DataError(f"{path} looks like a saved data set but can't be loaded: {first_line(error)}.") from error
        return [_from_memory(loaded, str(path), split)]
    files = sorted(file for file in path.rglob("*") if _holds_pairs(file, path))
    if not files:
        raise DataError(f"{path} holds no data file. Expected {', '.join(OPENERS)}, or a data set saved to disk.")
    chosen = [file for file in files if split is None or re.match(rf"{re.escape(split)}\b", file.name)]
    if not chosen:
        names = short_names((file.name for file in files), most=8)
        raise DataError(f"{path} has no file whose name starts with {split!r}. It holds: {names}.")
    return [_open_file(file) for file in chosen]


def _holds_pairs(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.is_file() and file.name.lower().endswith(tuple(OPENERS)) and not hidden and file.name not in NOT_PAIRS


def load_from_hub(name: str):
    """`datasets.load_dataset` without running code from the Hub; any failure becomes one DataError."""
    try:
        return datasets.load_dataset(name)
    except Exception as error:  # network, permission, format: `datasets` has no common base class for these
        raise DataError(
            f"{name}: no such file or directory here, and loading it from the Hugging Face Hub failed "
            f"({first_line(error)}). Check the name; if this machine is offline, give a local path instead."
        ) from error


def _from_memory(loaded: Any, name: str, split: str | None) -> RowStream:
    note = None
    if isinstance(loaded, datasets.DatasetDict):
        split = _pick_split(list(loaded), name, split)
        note = f"split {split!r} of: {', '.join(loaded)}" if len(loaded) > 1 else None
        loaded = loaded[split]
    elif split is not None and str(getattr(loaded, "split", None)) != split:
        raise DataError(f"{name} has no split {split!r}; it is a single table. Leave the split out.")
    if isinstance(loaded, pd.DataFrame):
        return RowStream(name, loaded.to_dict("records"), [str(column) for column in loaded.columns])
    if isinstance(loaded, list) and loaded and all(isinstance(row, dict) for row in loaded):
        return RowStream(name, loaded)
    if not isinstance(loaded, datasets.Dataset):
        raise DataError(f"{name} is not a source of pairs. Give a path, a Hub id, or a datasets.Dataset.")
    return RowStream(name, loaded, loaded.column_names, note)


def _pick_split(names: list[str], source: str, wanted: str | None) -> str:
    if wanted in names:
        return wanted
    if wanted is None and (len(names) == 1 or "train" in names):
        return names[0] if len(names) == 1 else "train"
    asked = f"no split {wanted!r}" if wanted else "no split 'train', and none was named"
    raise DataError(f"{source} has {asked}. Its splits are: {', '.join(names)}. Name one of them.")


def short_names(names: Iterable, most: int = 12) -> str:
    """Column names for a message: at most `most`, each cut to 40 characters."""
    names = [str(name)[:40] for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def first_line(error: Exception) -> str:
    """An error of another library in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__
