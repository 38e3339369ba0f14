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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from alignkit.checkup import serving
from alignkit.checkup.serving import NoSuchReward
from alignkit.errors import AlignkitError
from alignkit.rewards.base import Reward
from alignkit.rewards.texts import text_of

CHUNK = 64  # rows a call at most: what a hang or a crash can cost
CALL_SHARE = 0.25  # of the time limit is what one call may take before it counts as hanging
LOAD_SHARE = 0.5  # ... and loading
RESTARTS = 4  # after this many deaths and hangs the audit goes no further
MEMORY_SHARE = 0.8  # of the memory free at the start is what the reward may take
POLL = 0.1  # seconds between two looks at the process
LARGEST = 1e100  # scores beyond overflow in any variance, and count as infinite
LONGEST_ANSWER = 2**24  # bytes of a line
SCRIPT = Path(serving.__file__)


@dataclass
class Incident:
    """Something that must not happen; `kind` is a key of `auditing.TOLD`."""

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
        self.check, self.chunk = "load", CHUNK
        self.card: dict[str, str] = {}
        self.kind, self.words = "", []
        self._restarts = self._calls = 0
        self._keeper: psutil.Process | None = None

    # --- life

    def __enter__(self) -> IsolatedReward:
        self._folder = tempfile.TemporaryDirectory(prefix="alignkit-audit-", ignore_cleanup_errors=True)
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
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(POLL)
        self._held, self._calls, self._seen = b"", 0, set()
        with open(self._log, "wb") as log, theirs:
            pid, self._reap = (_spawn if isinstance(self.reward, str) else _fork)(self.reward, theirs, log.fileno())
        self._keeper = psutil.Process(pid)
        self._at_start = 0 if isinstance(self.reward, str) else math.inf
        hello = self._receive(min(self.load_limit, self._left()), self._is_hello)
        fault = hello.get("fault")
        if fault == "no such reward":
            raise NoSuchReward(hello["message"])
        if fault == "import":
            where = f" ({hello['where']})" if hello["where"] else ""
            told = f"{hello['type']}: {hello['message']}{where}"
            raise LoadFault(Incident("import", told, "load", type=hello["type"]))
        if fault:
            raise LoadFault(Incident(fault, f"while loading: {hello['message']}", "load"))
        if not isinstance(self.reward, str):  # a fork shares its parent's memory until it writes into it
            self._at_start = self._memory()
        self.card, self.kind, self.words = hello["card"], hello["kind"], hello["words"]
        self.spent.load_seconds += hello["seconds"]

    def _end(self) -> None:
        """End the reward with everything it started, and wait for it: nothing stays, not even a zombie.

        On Linux the keeper adopts what the reward left behind, so its children are all there is; elsewhere those that
        were seen while they were the reward's children are ended.
        """
        if self._keeper is None:
            return
        keeper, self._keeper = self._keeper, None
        for _ in range(50):  # they may start others while they are ended
            kin = [one for one in self._kin_of(keeper) if one != keeper]
            for one in kin:
                _kill(one)
            if not kin:
                break
            time.sleep(0.02)
        try:
            os.killpg(keeper.pid, signal.SIGKILL)  # it leads a group of its own
        except (ProcessLookupError, PermissionError):
            pass
        _kill(keeper)
        self._reap()
        for one in self._seen:
            _kill(one)
        self._channel.close()

    def _kin_of(self, keeper: psutil.Process) -> list[psutil.Process]:
        try:
            kin = [keeper, *keeper.children(recursive=True)]
        except psutil.Error:
            return []
        self._seen.update(kin)
        return [one for one in kin if _is_alive(one)]

    def _memory(self) -> int:
        return sum(_resident(one) for one in self._kin_of(self._keeper) if one != self._keeper)

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    # --- talk

    def _receive(self, limit: float, is_answer: Callable[[dict], bool]) -> dict:
        """The answer, or {"fault", "message"}; after such a fault the process is gone."""
        looked = time.monotonic()
        until = looked + max(limit, 0)
        while b"\n" not in self._held:
            if time.monotonic() >= until:
                return self._ended("hangs", f"no answer in {limit:.3g} s")
            if time.monotonic() - looked > POLL:
                looked, taken = time.monotonic(), self._memory() - self._at_start
                if taken > self.memory_limit:
                    taken, allowed = taken / 2**30, self.memory_limit / 2**30
                    return self._ended("memory", f"it took {taken:.2f} GiB of memory; {allowed:.2f} GiB are allowed")
            try:
                part = self._channel.recv(2**16)
            except TimeoutError:
                continue
            except OSError:
                part = b""
            if not part:
                return self._ended("died", self._how_it_died(None))
            self._held += part
            if len(self._held) > LONGEST_ANSWER:
                return self._ended("garbled", "it wrote megabytes that are no answer")
        line, self._held = self._held.split(b"\n", 1)
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict) and isinstance(answer.get("exit"), int):
            return self._ended("died", self._how_it_died(answer["exit"]))
        if not isinstance(answer, dict) or not is_answer(answer):
            return self._ended("garbled", f"it wrote something that is no answer: {line[:60]!r}")
        return answer

    def _is_hello(self, answer: dict) -> bool:
        if answer.get("call") != 0 or not _is_amount(answer.get("seconds")):
            return False
        if "fault" in answer:
            return _are_texts(answer, "fault", "message") and (answer["fault"] == "no such reward"
                                                               or _are_texts(answer, "type", "where"))  # fmt: skip
        card, words = answer.get("card"), answer.get("words")
        return (_are_texts(answer, "kind") and isinstance(card, dict) and _are_texts(card, *card)
                and isinstance(words, list) and all(isinstance(word, str) for word in words))  # fmt: skip

    def _is_answer(self, answer: dict, rows: int) -> bool:
        if answer.get("call") != self._calls or not _is_amount(answer.get("seconds")):
            return False
        if "fault" in answer:
            return answer["fault"] in ("raised", "contract") and _are_texts(answer, "message", "type")
        scores = answer.get("scores")
        return (_are_texts(answer, "changed") and isinstance(scores, list) and len(scores) == rows
                and all(score is None or type(score) in (int, float) for score in scores))  # fmt: skip

    def _ended(self, fault: str, message: str) -> dict:
        self._end()
        return {"fault": fault, "message": message}

    def _how_it_died(self, code: int | None) -> str:
        how = "was ended" if code is None else f"ended with {f'signal {-code}' if code < 0 else f'exit status {code}'}"
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = f"; its last words: {lines[-1][:160]}" if lines else ""
        return f"the process {how}{said}"

    def _call(self, rows: dict) -> dict:
        """One call: {"scores"} or {"fault", "message"}. CantGoOn if there is no time, or no process, to make it."""
        if self._left() <= 0:
            raise CantGoOn("out of time")
        if self._keeper is None:
            self._restart()
        self._calls += 1
        n, limit = len(rows["completions"]), min(self.call_limit, self._left())
        if self._send(json.dumps({"call": self._calls, **rows}).encode() + b"\n", limit):
            answer = self._receive(limit, lambda answer: self._is_answer(answer, n))
        else:
            answer = self._ended("hangs", f"it took no request in {limit:.3g} s")
        if answer.get("fault") == "hangs" and self._left() <= 0:
            raise CantGoOn("out of time")
        self.spent.calls += 1
        self.spent.completions += n
        if "seconds" in answer:
            self.spent.seconds += answer["seconds"]
            self.spent.rates.append(answer["seconds"] / max(1, n))
        return answer

    def _send(self, message: bytes, limit: float) -> bool:
        self._channel.settimeout(max(limit, POLL))
        try:
            self._channel.sendall(message)
        except TimeoutError:
            return False
        except OSError:  # it died: `_receive` will see it
            pass
        finally:
            self._channel.settimeout(POLL)
        return True

    def _restart(self) -> None:
        self._restarts += 1
        if self._restarts > RESTARTS:
            raise CantGoOn(f"its process had to be started {RESTARTS} times again")
        try:
            self._start()
        except LoadFault as fault:
            raise CantGoOn(str(fault)) from fault

    # --- scores

    def scores(
        self, prompts: list, completions: list, columns: dict[str, list] | None = None, whole: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shape (N,), NaN where there is none, and where the reward says None, "not my row", bool.

        Prompts and completions may be text or messages. `whole`: as one call, for checks of what else is in the batch.
        """
        rows = {"prompts": prompts, "completions": completions, "columns": columns or {}}
        n = len(completions)
        size = max(1, n) if whole else self.chunk
        parts = [self._scores(_part(rows, i, i + size), splits=not whole) for i in range(0, n, size)]
        scores, absent = zip(*parts, strict=True) if parts else ([np.empty(0)], [np.zeros(0, dtype=bool)])
        return np.concatenate(scores), np.concatenate(absent)

    def _scores(self, rows: dict, splits: bool) -> tuple[np.ndarray, np.ndarray]:
        answer = self._call(rows)
        n = len(rows["completions"])
        if "scores" in answer:
            if answer["changed"]:
                self._note("changes", f"it changed {answer['changed']}", rows, 0, n)
            absent = np.array([score is None for score in answer["scores"]], dtype=bool)
            found = np.array([math.nan if s is None else s for s in answer["scores"]], dtype=np.float64)
            bad = np.flatnonzero(~absent & ~(np.abs(found) < LARGEST))  # NaN is not below it either
            if len(bad):
                self._note("not finite", f"{answer['scores'][bad[0]]}", rows, bad[0], len(bad))
            found[bad] = math.nan
            return found, absent
        if answer["fault"] == "raised" and splits and n > 1:  # which row is it?
            halves = (self._scores(_part(rows, *ends), True) for ends in ((0, n // 2), (n // 2, n)))
            return tuple(np.concatenate(each) for each in zip(*halves, strict=True))
        told = f"{answer['type']}: {answer['message']}" if answer["fault"] == "raised" else answer["message"]
        self._note(answer["fault"], told, rows, 0, n, answer.get("type", ""))
        return np.full(n, math.nan), np.zeros(n, dtype=bool)

    def _note(self, kind: str, message: str, rows: dict, row: int, n: int, type: str = "") -> None:
        texts = (text_of(rows[f"{role}s"][row], role) for role in ("prompt", "completion"))
        self.incidents.append(Incident(kind, message, self.check, *texts, int(n), type))


def _part(rows: dict, start: int, end: int) -> dict:
    columns = {name: values[start:end] for name, values in rows["columns"].items()}
    return {"prompts": rows["prompts"][start:end], "completions": rows["completions"][start:end], "columns": columns}


def _spawn(name: str, theirs: socket.socket, log: int) -> tuple[int, Callable]:
    """A fresh Python that loads the reward of that name: its process number, and how to wait for it."""
    root = str(SCRIPT.parent.parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        # -P: a file of the current folder must not stand in for a module of the audit's own
        [sys.executable, "-P", str(SCRIPT), str(theirs.fileno()), name],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()], start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    return process.pid, process.wait


def _fork(reward: Reward, theirs: socket.socket, log: int) -> tuple[int, Callable]:
    """A copy of this process that serves the reward: its process number, and how to wait for it.

    It computes with one thread, as those of a fork's parent are gone, and OpenMP would wait for them forever.
    """
    pid = os.fork()
    if pid:
        return pid, lambda: os.waitpid(pid, 0)
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        serving.keep(theirs, lambda: serving.serve_reward(reward))
    finally:
        os._exit(1)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        pass


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def _are_texts(answer: dict, *names: str) -> bool:
    return all(isinstance(answer.get(name), str) for name in names)


def _is_amount(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9
