"""Where preference pairs come from: each file format, saved data set or Hub id becomes a stream of raw rows.

A row that can't be read becomes `Broken` and reading goes on; a file that ends too early becomes `Damage`
after its last whole row. Rows count from 1; in JSON Lines a row's number is its line in the file.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from alignkit.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
# side files of the `datasets` library
NOT_PAIRS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
LONGEST_FIELD = 2**31 - 1  # csv's own limit, 128 KiB, is shorter than a long conversation


@dataclass(frozen=True)
class Broken:
    """A row that could not be read, and why."""

    reason: str


@dataclass(frozen=True)
class Damage:
    """The stream stops here before its proper end; the rows before it are good."""

    message: str


@dataclass(frozen=True)
class RowStream:
    """One file or data set: its name in messages, its numbered rows, its columns where known ahead."""

    name: str
    rows: Iterable[tuple[int, object]]
    columns: list[str] | None = None
    note: str | None = None


def open_streams(source, split: str | None = None) -> list[RowStream]:
    """Every stream of rows behind `source`: a path, a Hub id, or a data set of the `datasets` library."""
    if not isinstance(source, str | Path):
        return [_from_dataset(source, f"a {type(source).__name__} in memory", split)]
    path = Path(source)
    if path.is_dir():
        return _open_directory(path, split)
    if path.is_file():
        if split is not None:
            raise DataError(f"{path} is one file and has no split {split!r}. Leave the split out.")
        return [_open_file(path)]
    return [_open_hub(str(source), split)]


def is_readable_name(path: Path) -> bool:
    """Does the file's name end in one of the supported formats?"""
    return path.name.lower().endswith(SUFFIXES)


# --- files ----------------------------------------------------------------------------------------


def _open_file(path: Path) -> RowStream:
    name = path.name.lower()
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes). Download or export it again.")
    if name.endswith((".jsonl", ".jsonl.gz")):
        return RowStream(str(path), _jsonl_rows(path))
    if name.endswith(".json"):
        return RowStream(str(path), list(enumerate(_json_list(path), start=1)))
    if name.endswith(".csv"):
        return RowStream(str(path), _csv_rows(path), columns=_csv_columns(path))
    if name.endswith(".parquet"):
        return _open_parquet(path)
    raise DataError(f"{path} has an unknown format. Supported are: {', '.join(SUFFIXES)}, or a directory of these.")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, object]]:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _parse_json_line(line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield number + 1, _damage(path, number, error)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error


def _parse_json_line(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Broken("not UTF-8 text")
    except (ValueError, RecursionError):
        return Broken("not valid JSON (half a line?)")


def _json_list(path: Path) -> list:
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
    return content


def _csv_reader(file) -> csv.DictReader:
    csv.field_size_limit(LONGEST_FIELD)
    return csv.DictReader(file)


def _csv_columns(path: Path) -> list[str]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return list(_csv_reader(file).fieldnames or [])


def _csv_rows(path: Path) -> Iterator[tuple[int, object]]:
    # surrogateescape lets one badly encoded row be turned away later without losing the rest of the file
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        number = 0
        try:
            for number, row in enumerate(_csv_reader(file), start=1):
                whole = None not in row and None not in row.values()
                yield number, row if whole else Broken("wrong number of fields")
        except csv.Error as error:
            yield number + 1, _damage(path, number, error)


def _open_parquet(path: Path) -> RowStream:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole Parquet file ({_first_line(error)}). Download it again.") from error
    return RowStream(str(path), _parquet_rows(path, table), columns=table.schema_arrow.names)


def _parquet_rows(path: Path, table) -> Iterator[tuple[int, object]]:
    import pyarrow

    number = 0
    try:
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        yield number + 1, _damage(path, number, error)


# --- directories, data sets in memory, the Hub ----------------------------------------------------


def _open_directory(path: Path, split: str | None) -> list[RowStream]:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return [_open_saved(path, split)]
    files = sorted(file for file in path.rglob("*") if _holds_pairs(file, path))
    if not files:
        raise DataError(f"{path} holds no data file. Expected {', '.join(SUFFIXES)}, or a data set saved to disk.")
    chosen = [file for file in files if split is None or re.match(rf"{re.escape(split)}\b", file.name)]
    if not chosen:
        names = ", ".join(file.name for file in files[:8])
        raise DataError(f"{path} has no file whose name starts with {split!r}. It holds: {names}.")
    return [_open_file(file) for file in chosen]


def _holds_pairs(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.is_file() and is_readable_name(file) and not hidden and file.name not in NOT_PAIRS


def _open_saved(path: Path, split: str | None) -> RowStream:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # `datasets` passes on whatever Arrow, JSON or the file system raised
        raise DataError(f"{path} looks like a saved data set but can't be loaded: {_first_line(error)}.") from error
    return _from_dataset(loaded, str(path), split)


def _open_hub(name: str, split: str | None) -> RowStream:
    if name.lower().endswith(SUFFIXES) or not HUB_ID.fullmatch(name):
        raise DataError(f"{name}: no such file or directory. Check the path (relative paths start in {Path.cwd()}).")
    return _from_dataset(load_from_hub(name), name, split)


def load_from_hub(name: str):
    """`datasets.load_dataset` without running code from the Hub; any failure becomes one DataError."""
    import datasets

    try:
        return datasets.load_dataset(name)
    except Exception as error:  # network, permission, format: `datasets` has no common base class for these
        raise DataError(
            f"{name}: no such file or directory here, and loading it from the Hugging Face Hub failed "
            f"({_first_line(error)}). Check the name; if this machine is offline, give a local path instead."
        ) from error


def _from_dataset(loaded, name: str, split: str | None) -> RowStream:
    note = None
    if isinstance(loaded, dict):  # DatasetDict
        split = _pick_split(list(loaded), name, split)
        note = f"split {split!r} of: {', '.join(loaded)}" if len(loaded) > 1 else None
        loaded = loaded[split]
    elif split is not None and str(getattr(loaded, "split", None)) != split:
        raise DataError(f"{name} has no split {split!r}; it is a single table. Leave the split out.")
    if not hasattr(loaded, "column_names"):
        raise DataError(f"{name} is not a source of pairs. Give a path, a Hub id, or a datasets.Dataset.")
    return RowStream(name, enumerate(loaded, start=1), columns=loaded.column_names, note=note)


def _pick_split(names: list[str], source: str, wanted: str | None) -> str:
    if wanted in names:
        return wanted
    if wanted is None and (len(names) == 1 or "train" in names):
        return names[0] if len(names) == 1 else "train"
    asked = f"no split {wanted!r}" if wanted else "no split 'train', and none was named"
    raise DataError(f"{source} has {asked}. Its splits are: {', '.join(names)}. Name one of them.")


# --- wording --------------------------------------------------------------------------------------


def short_names(names: Iterable, most: int = 12) -> str:
    """Column names for a message: at most `most`, each cut to 40 characters."""
    names = [str(name)[:40] for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def _damage(path: Path, last_good: int, error: Exception) -> Damage:
    found = _first_line(error)
    return Damage(f"{path.name} is damaged after row {last_good} ({found}); the rows before it are kept")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__
