"""What a result depended on (notebook, package, worlds, models), and whether that is still what is there.

Prose, outputs, comments and blank lines are left out: rewording an explanation must not void evidence.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import re
import subprocess
import sys
import tokenize
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.errors import AlignkitError
from alignkit.files import NOTEBOOKS, ROOT

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Code that shows, judges or starts results but does not make them. The ledger keeps raw values and judges
# them anew each time, so a change here voids nothing. (What `build` makes, models, has its own hash.)
VIEWS = {"build", "catalog", "claims", "cli", "errors", "files", "plots", "runner", "taxonomy"}
VERSION = re.compile(r"(.+?)-v\d+")
PARAMETER_TAGS = {"parameters", "injected-parameters"}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


@lru_cache(maxsize=256)
def code_lines(source: str) -> str:
    """Python source without comment-only lines, blank lines and trailing whitespace; strings are kept."""
    lines = source.splitlines()
    dropped = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT and not lines[row - 1][:column].strip():
            dropped.add(row)
        elif token.type == tokenize.NL and not lines[row - 1].strip():
            dropped.add(row)
    return "\n".join(line.rstrip() for row, line in enumerate(lines, 1) if row not in dropped)


def notebook_hash(path: str | Path) -> str:
    """The `code_hash` of a notebook file."""
    import nbformat

    try:
        return code_hash(nbformat.read(path, as_version=4))
    except OSError as error:
        raise AlignkitError(f"can't read the notebook {path}: {error.strerror}") from error
    except Exception as error:  # nbformat raises several kinds for files that are no notebooks
        raise AlignkitError(f"{path} is not a notebook: {error}") from error


def code_hash(notebook: NotebookNode) -> str:
    """Hash of a notebook's code cells, without the parameters cell and what a runner injected after it."""
    code = [
        "\n".join(line.rstrip() for line in cell.source.splitlines())
        for cell in notebook.cells
        if cell.cell_type == "code" and not PARAMETER_TAGS & set(cell.metadata.get("tags", []))
    ]
    return sha("\n# %%\n".join(code))


def module_path(name: str) -> Path:
    """The source file of an alignkit module, found without importing it."""
    return ROOT.joinpath(*name.split(".")).with_suffix(".py")


def module_hash(name: str) -> str | None:
    """Hash of a module's code, or None if the file is not there."""
    path = module_path(name)
    return sha(code_lines(path.read_text(encoding="utf-8"))) if path.is_file() else None


def is_view(name: str) -> bool:
    """Whether a module is one of VIEWS or a part of it (`alignkit.claims.statistics`)."""
    return name.split(".")[1].split("_")[0] in VIEWS


def loaded_modules() -> dict[str, str]:
    """The alignkit modules this process has loaded, with their hashes; no packages' `__init__`, no views."""
    names = sorted(name for name in sys.modules if name.startswith("alignkit.") and not is_view(name))
    hashes = {name: module_hash(name) for name in names}
    return {name: value for name, value in hashes.items() if value is not None}


def model_hash(path: str | Path) -> str:
    """sha256 of the weights (`model.safetensors`) in a model's folder."""
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise AlignkitError(f"no model weights at {path}; give the folder that holds model.safetensors")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def portable(path: str | Path) -> str:
    """A path relative to the project, or absolute if it lies elsewhere."""
    path = Path(path).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


@lru_cache
def world_version(name: str) -> str | None:
    """The present version of a world, or None if there is no such world any more."""
    try:
        return full_version(importlib.import_module("alignkit.worlds").load(name))[1]
    except Exception:  # whatever is wrong with it, it is not the world of the recorded run
        return None


def full_version(world: object) -> tuple[str, str]:
    """("assistant", "assistant-v1") for a world, or for its version as a text.

    What a version says beyond its number (a bandit's size) is set by the notebook, which has its own hash.
    """
    version = world if isinstance(world, str) else f"{getattr(world, 'version', '')}"
    name = "" if isinstance(world, str) else f"{getattr(world, 'name', '')}"
    if name and not version.startswith(f"{name}-"):
        version = f"{name}-{version}"  # a world may call its version just "v1"
    match = VERSION.match(version)
    if not match or (name and match[1] != name):
        raise AlignkitError(f"{world!r} is no world; it needs a version such as 'assistant-v1'")
    return match[1], match[0]


def stale_reasons(result: dict, notebook: str | Path | None = None) -> list[str]:
    """Why a recorded result no longer describes what is in the working tree; empty if it does.

    `notebook` is where the notebook is now (default: among the project's notebooks).
    """
    recorded = result["fingerprint"]
    reasons = []
    notebook = Path(notebook) if notebook else NOTEBOOKS / f"{result['notebook']}.ipynb"
    if not notebook.is_file():
        reasons.append("notebook is gone")
    elif notebook_hash(notebook) != recorded["notebook"]:
        reasons.append("notebook code changed")
    for name, value in recorded["modules"].items():
        if module_hash(name) != value:
            reasons.append(f"{name} changed")
    for name, version in recorded["world"].items():
        now = world_version(name)
        if now != version:
            reasons.append(f"world {version} -> {now.removeprefix(name + '-') if now else 'gone'}")
    for name, value in recorded["model"].items():
        path = ROOT / recorded["model_files"][name]
        if not path.exists() or model_hash(path) != value:
            reasons.append(f"model {name} changed")
    return reasons


def git_state() -> dict[str, object]:
    """The commit, and whether tracked files were modified since.

    Recorded results and notebooks don't count: a sweep rewrites them itself, and a notebook's code has its
    own hash.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None  # no git here: an unpacked archive
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!data/results", ":!notebooks")
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}


def versions() -> dict[str, str]:
    """What the run was made with: for information, a new release does not void evidence."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("torch", "transformers", "datasets"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
