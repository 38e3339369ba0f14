"""A reward in a process of its own: with a time limit, a memory limit, and nothing left behind.

A named reward is loaded by a fresh Python (nothing is inherited, no `__main__` is imported again as
multiprocessing's spawn would do); an object in memory, which may be a closure, is served by a forked copy of this
process. Needs a POSIX system.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from alignkit.checkup.isolation.source import UsageError
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
PIPE_HOLDS = 60_000  # bytes; a longer message may block, and is sent from a thread


@dataclass
class Incident:
    """Something that must not happen: `kind` is "raised", "hangs", "died", "memory", "wrong length" or "not finite"."""

    kind: str
    message: str
    check: str
    prompt: str = ""
    completion: str = ""
    rows: int = 1
    type: str = ""


class CantGoOn(Exception):
    """The reward can't be asked any more: out of time, or dead too often. The text says which."""


class LoadFault(Exception):
    """The reward could not be loaded: an Incident."""

    def __init__(self, incident: Incident):
        super().__init__(incident.message)
        self.incident = incident


@dataclass
class Spent:
    """What the audit asked of the reward."""

    completions: int = 0
    calls: int = 0
    seconds: float = 0.0
    load_seconds: float = 0.0
    rates: list[float] = field(default_factory=list)  # seconds per completion of each call


class IsolatedReward:
    """A context manager; `scores` never raises for what the reward does, but notes an Incident and returns NaN."""

    def __init__(self, reward: str | Reward, time_limit: float, memory_limit: float | None = None):
        if os.name != "posix":
            raise AlignkitError("an audit needs a POSIX system (Linux, macOS, WSL): it forks and kills process groups")
        self.reward = reward
        self.call_limit, self.load_limit = CALL_SHARE * time_limit, LOAD_SHARE * time_limit
        self.deadline = time.monotonic() + time_limit
        self.memory_limit = memory_limit or MEMORY_SHARE * psutil.virtual_memory().available
        self.incidents: list[Incident] = []
        self.spent = Spent()
        self.check, self.chat, self.chunk = "load", False, CHUNK
        self.card: dict[str, str] = {}
        self.kind, self.words = "", []
        self._restarts = 0
        self._process = self._pipe = None

    # --- life

    def __enter__(self) -> IsolatedReward:
        self._folder = tempfile.TemporaryDirectory(prefix="alignkit-audit-")
        self._log = Path(self._folder.name) / "output"
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._end()
        self._folder.cleanup()

    def _start(self) -> None:
        self._log.write_bytes(b"")
        mine, theirs = multiprocessing.Pipe()
        try:
            if isinstance(self.reward, str):
                self._process = self._spawn(theirs)
            else:
                self._process = self._fork(theirs)
        finally:
            theirs.close()
        self._pipe = mine
        self._watched = psutil.Process(self._process.pid)
        self._at_start = self._memory()
        hello, fault = self._receive(min(self.load_limit, self._left()))
        if fault:
            raise LoadFault(Incident(fault, f"while loading: {hello['message']}", "load"))
        if hello.get("fault") == "usage":
            raise UsageError(hello["message"])
        if "fault" in hello:
            told = f"{hello['type']}: {hello['message']}"
            raise LoadFault(Incident("import", told + (f" ({hello['where']})" if hello["where"] else ""), "load",
                                     type=hello["type"]))  # fmt: skip
        self.card, self.kind, self.words = hello["card"], hello["kind"], hello["words"]
        self.spent.load_seconds += hello["seconds"]

    def _spawn(self, theirs):
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(self._log, "ab") as log:
            return subprocess.Popen(
                # -P: a file of the current folder must not stand in for a module of the audit's own
                [sys.executable, "-P", "-m", "alignkit.checkup.isolation.worker", str(theirs.fileno()), self.reward],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path},
            )

    def _fork(self, theirs):
        from alignkit.checkup.isolation.serving import serve_forked

        process = multiprocessing.get_context("fork").Process(
            target=serve_forked, args=(theirs, self.reward, str(self._log)), daemon=True
        )
        process.start()
        return process

    def _end(self) -> None:
        """End the process with everything it started, and wait for it: nothing stays, not even a zombie."""
        if self._process is None:
            return
        process, self._process = self._process, None
        self._pipe.close()
        kin = self._kin()
        try:
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own
        except (ProcessLookupError, PermissionError):
            pass
        for one in kin:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                pass
        if isinstance(process, subprocess.Popen):
            process.wait()
        else:
            process.join()
            process.close()

    def _kin(self) -> list[psutil.Process]:
        try:
            return [self._watched, *self._watched.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _memory(self) -> int:
        total = 0
        for process in self._kin():
            try:
                total += process.memory_info().rss
            except psutil.Error:
                pass
        return total

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    # --- talk

    def _receive(self, limit: float) -> tuple[dict, str]:
        """The answer, or ({"message": ...}, kind of fault); after a fault the process is gone."""
        until = time.monotonic() + max(limit, 0)
        while time.monotonic() < until:
            try:
                if self._pipe.poll(min(POLL, max(until - time.monotonic(), 0))):
                    return json.loads(self._pipe.recv_bytes()), ""
            except (EOFError, OSError):
                return self._ended("died", self._how_it_died())
            except ValueError:
                return self._ended("died", "it answered something that is no message")
            if not self._watched.is_running() or self._watched.status() == psutil.STATUS_ZOMBIE:
                if not self._pipe.poll(0):
                    return self._ended("died", self._how_it_died())
            taken = self._memory() - self._at_start
            if taken > self.memory_limit:
                taken, allowed = taken / 2**30, self.memory_limit / 2**30
                return self._ended("memory", f"it took {taken:.2f} GiB of memory; {allowed:.2f} GiB are allowed")
        return self._ended("hangs", f"no answer in {limit:.3g} s")

    def _ended(self, kind: str, message: str) -> tuple[dict, str]:
        self._end()
        return {"message": message}, kind

    def _how_it_died(self) -> str:
        if isinstance(self._process, subprocess.Popen):
            try:
                code = self._process.wait(2)
            except subprocess.TimeoutExpired:
                code = None
        else:
            self._process.join(2)
            code = self._process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = f"; its last words: {lines[-1][:160]}" if lines else ""
        return f"the process ended with {how}{said}"

    def _call(self, prompts: list[str], completions: list[str]) -> dict:
        """One call: {"scores"} or {"fault", "message"}. CantGoOn if there is no time, or no process, to make it."""
        if self._left() <= 0:
            raise CantGoOn("out of time")
        if self._process is None:
            self._restart()
        request = {"prompts": prompts, "completions": completions, "chat": self.chat}
        self._send(json.dumps(request).encode())
        answer, fault = self._receive(min(self.call_limit, self._left()))
        if fault == "hangs" and self._left() <= 0:
            raise CantGoOn("out of time")
        self.spent.calls += 1
        self.spent.completions += len(completions)
        if fault:
            return {"fault": fault, **answer}
        self.spent.seconds += answer["seconds"]
        self.spent.rates.append(answer["seconds"] / max(1, len(completions)))
        return answer

    def _send(self, message: bytes) -> None:
        def send():
            try:
                self._pipe.send_bytes(message)
            except OSError:  # it died: `_receive` will see it
                pass

        if len(message) < PIPE_HOLDS:
            return send()
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        thread.join(self.call_limit)

    def _restart(self) -> None:
        self._restarts += 1
        if self._restarts > RESTARTS:
            raise CantGoOn(f"its process had to be started {RESTARTS} times again")
        try:
            self._start()
        except LoadFault as fault:
            raise CantGoOn(str(fault)) from fault

    # --- scores

    def scores(self, prompts: list[str], completions: list[str], whole: bool = False) -> np.ndarray:
        """Shape (N,), NaN where there is none. `whole`: as one call, for checks of what else is in the batch."""
        size = max(1, len(completions)) if whole else self.chunk
        parts = [slice(i, i + size) for i in range(0, len(completions), size)]
        out = [self._scores(prompts[part], completions[part], splits=not whole) for part in parts]
        return np.concatenate(out) if out else np.empty(0)

    def _scores(self, prompts: list[str], completions: list[str], splits: bool) -> np.ndarray:
        answer = self._call(prompts, completions)
        if "scores" in answer:
            found = np.array([math.nan if s is None else s for s in answer["scores"]], dtype=np.float64)
            bad = np.flatnonzero(~(np.abs(found) < LARGEST))  # NaN is not below it either
            if len(bad):
                value = answer["scores"][bad[0]]
                self._note("not finite", f"{value}", prompts, completions, bad[0], len(bad))
            found[bad] = math.nan
            return found
        if answer["fault"] == "raised" and splits and len(completions) > 1:  # which row is it?
            half = len(completions) // 2
            parts = slice(half), slice(half, None)
            return np.concatenate([self._scores(prompts[part], completions[part], True) for part in parts])
        told = f"{answer['type']}: {answer['message']}" if "type" in answer else answer["message"]
        self._note(answer["fault"], told, prompts, completions, 0, len(completions), answer.get("type", ""))
        return np.full(len(completions), math.nan)

    def _note(self, kind, message, prompts, completions, row, rows, type="") -> None:
        self.incidents.append(Incident(kind, message, self.check, prompts[row], completions[row], int(rows), type))
