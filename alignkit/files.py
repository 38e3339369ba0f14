"""Where the project's files are, and how a file is written so that a crash leaves the old one intact."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from alignkit.errors import AlignkitError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent  # of a clone; or the folder that packages are installed in
INSTALLED = (PACKAGE / "data").is_dir()  # a wheel carries models, catalog, ledger, results and notebooks inside
HOME = PACKAGE if INSTALLED else ROOT  # what `data/...` and `notebooks/...` are relative to
DATA = HOME / "data"
NOTEBOOKS = HOME / "notebooks"


def write_atomic(path: str | Path, text: str | bytes) -> Path:
    """Write text (as UTF-8) or bytes to `path` whole or not at all (temporary file in the same folder, then rename).

    Raises AlignkitError, naming the path, if the disk is full or the folder can't be written; what was there stays.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8") if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files private
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise AlignkitError(
            f"could not write {path}: {error.strerror or error}. What was there before is kept; "
            "free some space or choose another folder, and run again."
        ) from error
    return path


def start(folder: str | Path) -> list[Path]:
    """Copy the series (notebooks with their outputs and figures) into a new or empty folder; returns the notebooks.

    Raises AlignkitError if there is something in the folder already, or it can't be written; then nothing is left.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise AlignkitError(f"{folder} is not empty; name a new folder, so that nothing of yours is written over")
    check_folder(folder)
    shipped = sorted([*NOTEBOOKS.glob("[0-9]*.ipynb"), *NOTEBOOKS.glob("figures/*.*")])
    try:
        return [write_atomic(folder / path.relative_to(NOTEBOOKS), path.read_bytes()) for path in shipped]
    except AlignkitError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_folder(folder: str | Path) -> None:
    """Make a folder if it isn't there, and see that files can be written in it; AlignkitError if not."""
    write_atomic(Path(folder) / ".alignkit", "").unlink()


def choose(names: Iterable[str], stems: Sequence[str], what: str) -> list[str]:
    """Those of the notebooks that are named, by stem or number ("02" or "2"); without names, all."""
    chosen: list[str] = []
    for name in names:
        numbers = {stem: stem.partition("_")[0] for stem in stems}
        found = [stem for stem, number in numbers.items() if name in (stem, number, number.removeprefix("0"))]
        if not found:
            raise AlignkitError(f"no {what} {name!r}; there are {', '.join(stems) or 'none'}")
        chosen += found
    return list(dict.fromkeys(chosen)) or list(stems)
