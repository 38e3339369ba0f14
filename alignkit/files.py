"""Where the project's files are, and how a file is written so that a crash leaves the old one intact."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from alignkit.errors import AlignkitError

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
NOTEBOOKS = ROOT / "notebooks"


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


def check_folder(folder: str | Path) -> None:
    """Make a folder if it isn't there, and see that files can be written in it; AlignkitError if not."""
    write_atomic(Path(folder) / ".alignkit", "").unlink()
