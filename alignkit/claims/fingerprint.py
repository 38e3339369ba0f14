"""What a result depends on (notebook, package, worlds, models), and whether that is still what is there.

Code is compared as a syntax tree over the *static* import closure of the notebook: prose, outputs, comments,
docstrings, messages and layout are left out. A difference is a gate and no verdict: `alignkit attest` compares values.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import platform
import re
import subprocess
import sys
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.errors import AlignkitError
from alignkit.files import HOME, INSTALLED, NOTEBOOKS, ROOT

if TYPE_CHECKING:
    from nbformat import NotebookNode

# What shows, judges, names or starts results but does not make them. The ledger keeps raw values and judges them anew
# each time, so a change here voids nothing. (The models that `lab.build` makes have their own hashes.)
VIEWS = {"catalog", "claims", "errors", "files", "lab", "plots", "taxonomy"}
VERSION = re.compile(r"(.+?)-v\d+")


def sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


# --- code as a syntax tree


class _Bare(ast.NodeTransformer):
    """Leaves out what no value depends on: docstrings and the words of errors and warnings."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "warnings.warn":
            return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)


def _told(node: object) -> str:
    """A syntax tree as text, fields that are empty left out: Python versions differ in those."""
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, []) and name != "ctx"]
        return f"{type(node).__name__}({','.join(f'{name}={_told(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_told, node))}]"
    return repr(node)


@lru_cache(maxsize=512)
def code_hash(source: str) -> str:
    """Hash of Python source as a syntax tree. A notebook's magics are no Python: such source counts as it is."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return sha(source)
    return sha(_told(_Bare().visit(tree)))


def has_tag(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def code_of(notebook: NotebookNode) -> str:
    """A notebook's code cells, without the parameters cell."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and not has_tag(cell, "parameters")]
    return "\n# %%\n".join(cell.source for cell in code)


def read_notebook(path: str | Path) -> NotebookNode:
    """The notebook in a file. Raises AlignkitError naming the file where it is none."""
    import nbformat

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise AlignkitError(f"can't read the notebook {path}: {error}") from error
    conflict = re.search(r"^(<{7}|>{7}) ", text, flags=re.MULTILINE)
    if conflict:
        line = text.count("\n", 0, conflict.start()) + 1
        raise AlignkitError(f"{path} has the conflict marks of a merge (line {line}); choose a side and save it again")
    try:
        return nbformat.reads(text, as_version=4)
    except Exception as error:  # nbformat raises several kinds for files that are no notebooks
        raise AlignkitError(f"{path} is not a notebook: {error}") from error


def read_code(path: str | Path) -> str:
    """The `code_of` a notebook file."""
    path = Path(path)
    return _read_code(path, path.stat().st_mtime_ns if path.exists() else None)


@cache
def _read_code(path: Path, changed: int | None) -> str:
    return code_of(read_notebook(path))


# --- what it imports


def _module_file(name: str, root: Path) -> Path | None:
    """The source of a module of the package below `root`, or None if there is none of that name."""
    base = root.joinpath(*name.split("."))
    return next(filter(Path.is_file, (base.with_suffix(".py"), base / "__init__.py")), None)


@lru_cache(maxsize=1024)
def _imported(source: str, root: Path) -> frozenset[str]:
    """The alignkit modules that this source names in its imports, wherever in it they stand."""
    from alignkit import HOMES as homes

    try:
        tree = ast.parse(source)
    except SyntaxError:
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {node.module, *(homes[alias.name] for alias in node.names if alias.name in homes)}
            names |= {name for name in inner if _module_file(name, root)}
    return frozenset(name for name in names if name.split(".")[0] == "alignkit")


def closure(source: str, root: Path = ROOT) -> dict[str, str]:
    """{module: hash} of every alignkit module that this source can reach by imports, views left out."""
    found: dict[str, str] = {}
    todo = set(_imported(source, root))
    while todo:
        name = todo.pop()
        parents = {".".join(name.split(".")[:depth]) for depth in range(2, name.count(".") + 1)}
        todo |= parents - found.keys()
        file = _module_file(name, root)
        if name in found or name == "alignkit" or file is None or name.split(".")[1] in VIEWS:
            continue
        found[name], reached = _read_module(file, file.stat().st_mtime_ns, root)
        todo |= reached - found.keys()
    return found


@cache
def _read_module(file: Path, changed: int, root: Path) -> tuple[str, frozenset[str]]:
    """A module's hash and what it imports; `changed`, the time of its last change, keeps the cache honest."""
    source = file.read_text(encoding="utf-8")
    return code_hash(source), _imported(source, root)


def fingerprint_of(source: str, root: Path = ROOT) -> dict[str, str]:
    """The gate of a notebook's code: a hash of its own cells, and one over everything that they can reach."""
    package = sorted(closure(source, root).items())
    return {"notebook": code_hash(source), "package": sha(repr(package))}


# --- models and worlds


def model_hash(path: str | Path) -> str:
    """sha256 of the weights (`model.safetensors`) in a model's folder."""
    weights = Path(path) / "model.safetensors"
    if not weights.is_file():
        raise AlignkitError(f"no model weights at {path}; give the folder that holds model.safetensors")
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def portable(path: str | Path) -> str:
    """A path relative to the project, or absolute if it lies elsewhere."""
    path = Path(path).resolve()
    return path.relative_to(HOME).as_posix() if path.is_relative_to(HOME) else path.as_posix()


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
    name, version = "", world
    if not isinstance(world, str):
        name, version = str(getattr(world, "name", "")), str(getattr(world, "version", ""))
    if name and not version.startswith(f"{name}-"):
        version = f"{name}-{version}"  # a world may call its version just "v1"
    match = VERSION.match(version)
    if not match or (name and match[1] != name):
        raise AlignkitError(f"{world!r} is no world; it needs a version such as 'assistant-v1'")
    return match[1], match[0]


def stale_reasons(result: dict, notebook: str | Path | None = None) -> list[str]:
    """Why a recorded result may no longer describe what is in the working tree; empty if it does.

    `notebook` is where the notebook is now (default: among the project's notebooks).
    """
    recorded = result["fingerprint"]
    notebook = Path(notebook or NOTEBOOKS / f"{result['notebook']}.ipynb")
    if notebook.is_file():
        now = fingerprint_of(read_code(notebook))
        reasons = [f"{part} code changed" for part in now if now[part] != recorded.get(part)]
    else:
        reasons = ["notebook is gone"]
    for name, version in recorded["world"].items():
        present = world_version(name)
        if present != version:
            reasons.append(f"world {version} -> {present.removeprefix(name + '-') if present else 'gone'}")
    for name, value in recorded["model"].items():
        path = HOME / recorded["model_files"][name]
        if not path.exists() or model_hash(path) != value:
            reasons.append(f"model {name} changed")
    return reasons


# --- where and with what


def git(*arguments: str, cwd: Path = ROOT) -> str | None:
    """What git says, or None if it fails or is not here (an unpacked archive)."""
    try:
        done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_state() -> dict[str, object]:
    """The commit, and whether tracked files were modified since.

    Recorded results and notebooks don't count: a sweep rewrites them itself, and a notebook's code has its own hash.
    """
    if INSTALLED:  # whatever repository a virtual environment may lie in, it is not this project's
        return {"commit": None, "dirty": False}
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!data/results", ":!notebooks")
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}


def processor() -> str:
    """The processor's name and the instructions that torch uses: digits of a training run depend on both."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine() or "unknown"
    torch = sys.modules.get("torch")  # a run that made values has loaded it
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}" if torch else name


def versions() -> dict[str, str]:
    """What the run was made with: for information, a new release does not void evidence."""
    packages = ("torch", "transformers", "datasets")
    return {"python": platform.python_version()} | {package: metadata.version(package) for package in packages}
