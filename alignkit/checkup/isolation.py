"""A reward in a process of its own: with a time limit, a memory limit, and nothing left behind.

A named reward is loaded by a fresh Python (nothing is inherited, no `__main__` is imported again as
multiprocessing's spawn would do); an object in memory, which may be a closure, is served by a forked copy of this
process. Needs a POSIX system. What comes back is read as JSON, within the time limit, and taken for an answer only if
it looks like one: a reward may write into the pipe what it likes.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NoReturn

import psutil

from alignkit.checkup import serving
from alignkit.errors import AlignkitError
from alignkit.files import ROOT
from alignkit.rewards.base import Reward

CHUNK = 64  # rows a call at most: what a hang or a crash can cost
CALL_SHARE = 0.25  # of the time limit is what one call may take before it counts as hanging
LOAD_SHARE = 0.5  # ... and loading
RESTARTS = 4  # after this many deaths and hangs the audit goes no further
MEMORY_SHARE = 0.8  # of the memory free at the start is what the reward may take
POLL = 0.1  # seconds between two looks at the process
LARGEST = 1e100  # scores beyond overflow in any variance, and count as infinite
LONGEST_ANSWER = 2**24  # bytes of a line
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)

Row = tuple[str | list[dict], str | list[dict], dict[str, Any]]  # prompt, completion (text or messages), columns


@dataclass(eq=False)
class Incident(Exception):
    """Something that must not happen, in so many rows, of which `row` is the first; `kind` is a key of `auditing.TOLD`,
    `type` that of the error."""

    kind: str
    message: str
    type: str = ""
    check: str = "load"
    row: Row = ("", "", {})
    rows: int = 1


class CantGoOn(Exception):
    """The reward can't be asked any more: out of time, or dead too often. The text says which."""


class IsolatedReward:
    """A context manager that raises an Incident if the reward can't be loaded. `scores` never raises for what the
    reward does, but notes an Incident and returns NaN."""

    def __init__(self, reward: str | Reward, time_limit: float, memory_limit: float | None = None):
        if os.name != "posix":
            raise AlignkitError("an audit needs a POSIX system (Linux, macOS, WSL): it forks and kills process groups")
        self.reward = reward
        self.call_limit, self.load_limit = CALL_SHARE * time_limit, LOAD_SHARE * time_limit
        self.deadline = time.monotonic() + time_limit
        self.memory_limit = memory_limit or MEMORY_SHARE * psutil.virtual_memory().available
        self.incidents: list[Incident] = []
        self.calls = self.completions = 0  # what was asked of the reward, and how long that took
        self.seconds = self.load_seconds = 0.0
        self.check, self.chunk = "load", CHUNK
        self.card, self.kind, self.words = {}, "", []
        self._starts, self._keeper = 0, None

    # --- life

    def __enter__(self) -> IsolatedReward:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._end()

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()
        self._held, self._call, self._seen = b"", 0, set()
        self._starts += 1
        named = isinstance(self.reward, str)
        self._at_start = 0 if named else math.inf
        with theirs:
            self._keeper = (_spawn if named else _fork)(self.reward, theirs, self._log.fileno())
        self.card, self.kind, self.words = self._receive(min(self.load_limit, self._left()), _read_hello)
        if not named:  # a fork shares its parent's memory until it writes into it
            self._at_start = self._memory()

    def _end(self) -> None:
        """End the reward with everything it started, and wait for it: nothing stays, not even a zombie.

        On Linux the keeper adopts what the reward left behind, so its children are all there is; elsewhere those that
        were seen while they were the reward's children are ended.
        """
        if self._keeper is None:
            return
        for _ in range(50):  # they may start others while they are ended
            for one in (kin := self._kin()):
                with suppress(psutil.Error):
                    one.kill()
            if not kin:
                break
            time.sleep(0.02)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._keeper.pid, signal.SIGKILL)  # it leads a group of its own
        self._keeper.kill()
        self._keeper.wait()
        self._keeper = None
        self._channel.close()
        self._log.close()

    def _kin(self) -> list[psutil.Process]:
        """What the keeper, or what it started, has started and is alive."""
        with suppress(psutil.Error):
            self._seen.update(self._keeper.children(recursive=True))
        return [one for one in self._seen if one.is_running()]

    def _memory(self) -> int:
        taken = 0
        for one in self._kin():
            with suppress(psutil.Error):
                taken += one.memory_info().rss
        return taken

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def rate(self) -> float:
        """Seconds per completion."""
        return self.seconds / max(1, self.completions)

    # --- talk

    def _ask(self, rows: list[Row]) -> tuple[list[float | None], str]:
        """One call: scores, and what was changed. CantGoOn if there is no time, or no process, to make it."""
        if self._left() <= 0:
            raise CantGoOn("out of time")
        if self._keeper is None:
            if self._starts > RESTARTS:
                raise CantGoOn(f"its process had to be started {RESTARTS} times again")
            try:
                self._start()
            except Incident as fault:
                raise CantGoOn(fault.message) from fault
        self._call += 1
        self.calls += 1
        self.completions += len(rows)
        limit = min(self.call_limit, self._left())
        self._channel.settimeout(max(limit, POLL))
        try:
            self._channel.sendall(json.dumps(rows).encode() + b"\n")
        except TimeoutError:
            self._fail("hangs", f"it took no request in {limit:.3g} s")
        except OSError:  # it died: `_line` will see it
            pass
        return self._receive(limit, lambda answer: _read_scores(answer, len(rows)))

    def _receive(self, limit: float, read: Callable[[dict], Any]) -> Any:
        """What `read` finds in the answer. An Incident if there is none; the process is gone then, unless the answer
        itself gave the reason."""
        line = self._line(limit)
        try:
            answer = json.loads(line)
            if "exit" in answer:
                self._fail("died", self._how_it_died(int(answer["exit"])))
            seconds, fault = answer["seconds"], answer.get("fault")
            if answer["call"] != self._call or not 0 <= seconds < 1e9 or fault not in (None, *serving.FAULTS):
                raise ValueError
            found = (str(answer["message"]), str(answer["type"])) if fault else read(answer)
        except MALFORMED:
            self._fail("garbled", f"it wrote something that is no answer: {line[:60]!r}")
        if self._call:
            self.seconds += seconds
        else:
            self.load_seconds += seconds
        if fault == "no such reward":
            raise serving.NoSuchReward(found[0])
        if fault:
            raise Incident(fault, *found)
        return found

    def _line(self, limit: float) -> bytes:
        until = time.monotonic() + max(limit, 0)
        self._channel.settimeout(POLL)
        while b"\n" not in self._held:
            if time.monotonic() >= until:
                self._fail("hangs", f"no answer in {limit:.3g} s")
            try:
                part = self._channel.recv(2**16)
            except TimeoutError:
                if (taken := self._memory() - self._at_start) > self.memory_limit:
                    self._fail("memory", f"it took {taken / 2**30:.2f} GiB of memory; {self.memory_limit / 2**30:.2f} "
                                         "GiB are allowed")  # fmt: skip
                continue
            except OSError:
                part = b""
            if not part:
                self._fail("died", self._how_it_died(None))
            self._held += part
            if len(self._held) > LONGEST_ANSWER:
                self._fail("garbled", "it wrote megabytes that are no answer")
        line, self._held = self._held.split(b"\n", 1)
        return line

    def _fail(self, kind: str, message: str) -> NoReturn:
        self._end()
        if kind == "hangs" and self._call and self._left() <= 0:
            raise CantGoOn("out of time")
        raise Incident(kind, message if self._call else f"while loading: {message}")

    def _how_it_died(self, code: int | None) -> str:
        how = "was ended" if code is None else f"ended with {f'signal {-code}' if code < 0 else f'exit status {code}'}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        said = f"; its last words: {lines[-1][:160]}" if lines else ""
        return f"the process {how}{said}"

    # --- scores

    def scores(self, rows: list[Row], whole: bool = False) -> list[float | None]:
        """One for each row: NaN where there is none, None where the reward says it, "not my row".

        `whole`: as one call, for checks of what else is in the batch.
        """
        size = max(1, len(rows)) if whole else self.chunk
        return list(chain(*(self._scores(rows[i : i + size], splits=not whole) for i in range(0, len(rows), size))))

    def _scores(self, rows: list[Row], splits: bool) -> list[float | None]:
        try:
            found, changed = self._ask(rows)
        except Incident as one:
            if one.kind == "raised" and splits and len(rows) > 1:  # which row is it?
                half = len(rows) // 2
                return self._scores(rows[:half], True) + self._scores(rows[half:], True)
            self.note(one, rows[0], len(rows))
            return [math.nan] * len(rows)
        if changed:
            self.note(Incident("changes_inputs", f"it changed {changed}"), rows[0], len(rows))
        bad = [i for i, score in enumerate(found) if score is not None and not abs(score) < LARGEST]  # NaN is not below
        if bad:
            self.note(Incident("not_finite", f"{found[bad[0]]}"), rows[bad[0]], len(bad))
        return [math.nan if i in bad else score for i, score in enumerate(found)]

    def note(self, incident: Incident, row: Row, n: int) -> None:
        self.incidents.append(replace(incident, check=self.check, row=row, rows=n))


def _read_hello(answer: dict) -> tuple[dict[str, str], str, list[str]]:
    card = {str(name): str(value) for name, value in answer["card"].items()}
    return card, str(answer["kind"]), [str(word) for word in answer["words"]]


def _read_scores(answer: dict, n: int) -> tuple[list[float | None], str]:
    scores = [None if score is None else float(score) for score in answer["scores"]]
    if len(scores) != n:
        raise ValueError
    return scores, str(answer["changed"])


def _spawn(name: str, theirs: socket.socket, log: int) -> psutil.Process:
    """A fresh Python that loads the reward of that name."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return psutil.Popen(
        # -P: a file of the current folder must not stand in for a module of the audit's own
        [sys.executable, "-P", serving.__file__, str(theirs.fileno()), name],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()],
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def _fork(reward: Reward, theirs: socket.socket, log: int) -> psutil.Process:
    """A copy of this process that serves the reward.

    It computes with one thread, as those of a fork's parent are gone, and OpenMP would wait for them forever.
    """
    pid = os.fork()
    if pid:
        return psutil.Process(pid)
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        serving.keep(theirs, lambda: serving.serve_reward(reward))
    finally:
        os._exit(1)
