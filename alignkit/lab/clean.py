"""Executed notebooks without the traces of the run, so that a diff shows what changed for the reader.

Gone are timings, widgets, progress bars, harmless warnings, absolute paths, memory addresses
and the language's version; execution counts run from 1, cell ids stay as they were.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbformat import NotebookNode, from_dict

from alignkit.claims.fingerprint import has_tag
from alignkit.files import ROOT

WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"
    },
}  # fmt: skip
PROGRESS = re.compile(r"\d+%\|.*\||\d+(it|\S+) \[\d\d:\d\d.*\]|\[A$")
HARMLESS = re.compile(r"TqdmWarning|IProgress not found|from \.autonotebook import|^\s*warnings\.warn\($")


def assignments(source: str) -> list[tuple[str, ast.expr]]:
    """(name, value) of each plain assignment, in order."""
    found = []
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        found += [(t.id, value) for t in targets if isinstance(t, ast.Name) and value is not None]
    return found


def set_parameters(source: str, values: Mapping[str, Any]) -> str:
    """The parameters cell with new values in place of the old ones; comments and layout stay."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]  # ast counts columns in bytes
    starts = [sum(map(len, lines[:i])) for i in range(len(lines))]
    text = source.encode()
    for name, node in reversed(assignments(source)):
        if name in values and ast.unparse(node) != repr(values[name]):  # the same value keeps its spelling
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            text = text[:begin] + repr(values[name]).encode() + text[end:]
    return text.decode()


def clean(notebook: NotebookNode) -> NotebookNode:
    """Strip an executed notebook in place."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata |= from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    for number, cell in enumerate(notebook.cells, 1):
        cell.setdefault("id", f"cell-{number:02d}")
        cell.metadata.pop("execution", None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            # a cell that was never reached (the run failed before it) keeps no number
            count += 1
            _clean_code(cell, count if cell.execution_count is not None else None)
    return notebook


def with_outputs(notebook: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """The notebook as it is now, with the outputs and parameters of a copy executed from the same code.

    So prose can be reworded without running anything again.
    """
    old, new = ([c for c in nb.cells if c.cell_type == "code"] for nb in (executed, notebook))
    for before, now in zip(old, new, strict=True):
        now.outputs, now.execution_count = before.outputs, before.execution_count
        if has_tag(now, "parameters"):
            now.source = before.source
    return clean(notebook)


def _clean_code(cell: NotebookNode, count: int | None) -> None:
    cell.execution_count = count
    outputs: list[NotebookNode] = []
    for output in cell.outputs:
        if WIDGET in output.get("data", {}):
            continue
        if output.output_type == "stream" and outputs and outputs[-1].get("name") == output.name:
            outputs[-1].text += output.text  # the kernel cuts streams at arbitrary points
        else:
            outputs.append(output)
    cell.outputs = [output for output in outputs if _clean_output(output, count)]


def _clean_output(output: NotebookNode, count: int | None) -> bool:
    """Mend one output; False if nothing is left of it."""
    if output.output_type == "execute_result":
        output.execution_count = count
    if output.output_type == "stream":
        output.text = without_paths(_without_noise(output.text, output.name))
        return bool(output.text.strip())
    if output.output_type == "error":
        output.evalue = without_paths(output.evalue)
        output.traceback = [without_paths(line) for line in output.traceback]
    for kind, content in output.get("data", {}).items():
        if isinstance(content, str) and not kind.startswith("image/"):
            output.data[kind] = without_paths(content)
    return True


def _without_noise(text: str, name: str) -> str:
    """A stream as a terminal shows it in the end; on stderr without progress bars and harmless warnings."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    if name == "stderr":
        lines = [line for line in lines if not PROGRESS.search(line) and not HARMLESS.search(line)]
    return "\n".join(lines)


def without_paths(text: str) -> str:
    """Paths relative to the project, no memory addresses: the same run gives the same text everywhere."""
    text = text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    home = str(Path.home())
    if len(home) > 1:  # in some containers home is "/"
        text = text.replace(f"{home}/", "~/")
    text = re.sub(r"[^\s\"'(]*/site-packages/", "site-packages/", text)
    text = re.sub(r"/\S*/ipykernel_\d+/\d+\.py", "cell", text)
    return re.sub(r"\bat 0x[0-9a-f]+", "at 0x...", text)
