"""How a sweep shows itself while it runs: bars in a terminal, plain lines where there is none (a log, CI)."""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class PlainLines:
    """One line on standard error when a notebook starts and one when it ends."""

    def __init__(self, total: int) -> None:
        self.total, self.ended = total, 0
        self._lock = threading.Lock()  # several notebooks report at a time

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def start(self, name: str, cells: int) -> None:
        print(f"      {name}: {cells} code cells", file=sys.stderr, flush=True)

    def cell(self, name: str, done: int) -> None:
        pass  # a line for each cell would drown the log

    def end(self, name: str, what: str) -> None:
        with self._lock:
            self.ended += 1
            print(f"[{self.ended}/{self.total}] {name}: {what}", file=sys.stderr, flush=True)


class Bars(PlainLines):
    """One bar for each running notebook (its cells) and one for the whole sweep."""

    def __init__(self, total: int, console: Console) -> None:
        super().__init__(total)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        self._overall = self._progress.add_task("notebooks", total=self.total)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def start(self, name: str, cells: int) -> None:
        self._tasks[name] = self._progress.add_task(name, total=cells)

    def cell(self, name: str, done: int) -> None:
        self._progress.update(self._tasks[name], completed=done)

    def end(self, name: str, what: str) -> None:
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))
        self._progress.console.print(f"{name}: {what}", markup=False, highlight=False)
        self._progress.advance(self._overall)


def show(total: int) -> PlainLines:
    """Bars if a person is watching, else lines."""
    console = Console(stderr=True)
    return Bars(total, console) if console.is_terminal else PlainLines(total)
