"""The reward's side of an audit: what runs in the process that is watched and may be killed.

`isolation` runs this file as a script in a fresh Python (rewards by name), or calls `keep` in a forked copy of the
audit's process (rewards that exist only in memory). Two processes result: a keeper, which leads the session, adopts
what the reward leaves behind and tells when the reward's process ends, and the reward's own, which answers requests.

At the top nothing heavy is imported, and as a script this file is not reached through its package, so that a plain
function is loaded within a fraction of a second, again after each crash. Messages are lines of JSON: nothing the reward
sends back can be more than data.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import inspect
import json
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from itertools import chain
from operator import attrgetter
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from alignkit.errors import AlignkitError

LONGEST_MESSAGE = 300  # characters of an error's own words
LONGEST_LITERAL = 40  # characters; longer strings in a function's code are messages, not keywords
MOST_LITERALS = 40
FAULTS = ("no such reward", "import", "contract", "raised")  # what an answer may say instead of scores
DIE_WITH_PARENT, ADOPT_ORPHANS = 1, 36  # prctl's PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER, of Linux


#: A loaded reward: how it is asked for the scores of prompts, completions and columns, and what it is.
Served = tuple[Callable[[list, list, dict[str, list]], dict], dict]


class NoSuchReward(AlignkitError):
    """The reward was not named well; nothing can be audited."""


# --- the two processes


def keep(channel: socket.socket, load: Callable[[], Served]) -> None:
    """Be the keeper: start the reward's process, tell how it ends, wait to be killed. Does not return."""
    os.setsid()
    _control(DIE_WITH_PARENT, signal.SIGKILL)
    _control(ADOPT_ORPHANS, 1)
    own = os.fork()
    if own == 0:
        _control(DIE_WITH_PARENT, signal.SIGKILL)
        serve(channel, load)
        os._exit(0)
    while True:
        try:
            ended, status = os.wait()  # what the reward left behind is waited for, too
        except ChildProcessError:
            signal.pause()
        else:
            if ended == own:
                _send(channel, {"exit": os.waitstatus_to_exitcode(status)})


def _control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def serve(channel: socket.socket, load: Callable[[], Served]) -> None:
    """Say what was loaded, then answer until the other side closes. Every fault of the reward becomes an answer, if
    Python lives to give it."""
    own, ask = os.getpid(), None
    for call, line in enumerate(chain([b"[]"], channel.makefile("rb"))):
        rows, started = json.loads(line), time.perf_counter()
        try:
            if ask is None:
                ask, answer = load()
            else:
                prompts, completions, held = map(list, zip(*rows, strict=True))
                answer = ask(prompts, completions, {name: [row[name] for row in held] for name in held[0]})
        except BaseException as error:  # noqa: BLE001 (a module may raise anything, SystemExit included)
            answer = _fault(error, loading=ask is None)
        if os.getpid() != own:  # a copy that the reward has forked, and forgotten to end
            os._exit(0)
        _send(channel, {"call": call, "seconds": time.perf_counter() - started, **answer})


def _fault(error: BaseException, loading: bool) -> dict[str, str]:
    kind, message = type(error).__name__, " ".join(str(error).split())[:LONGEST_MESSAGE]
    if isinstance(error, NoSuchReward):
        return {"fault": "no such reward", "type": kind, "message": str(error)}
    if loading:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(last.filename)}, line {last.lineno}"
        return {"fault": "import", "type": kind, "message": f"{kind}: {message} ({where})"}
    if kind == "CallError":
        return {"fault": "contract", "type": kind, "message": message}
    return {"fault": "raised", "type": kind, "message": f"{kind}: {message}"}


def _send(channel: socket.socket, message: dict) -> None:
    try:
        channel.sendall(json.dumps(message).encode() + b"\n")
    except OSError:  # the audit is over
        os._exit(0)


# --- rewards


def serve_function(function: Callable, name: str) -> Served:
    """A function, called in the manner of TRL, on copies of its rows."""
    # without the package around it, which brings in torch
    calls = sys.modules.get("alignkit.rewards.calling") or _execute(
        "alignkit_calling", Path(__file__).parents[1] / "rewards" / "calling.py"
    )

    def ask(prompts: list, completions: list, columns: dict[str, list]) -> dict:
        given = {"prompts": prompts, "completions": completions, **columns}
        kept = {key: calls.copied(rows) for key, rows in given.items()}
        out = calls.call_function(function, prompts, completions, columns)
        scores, present = calls.row_numbers(getattr(out, "scores", out), len(kept["completions"]))
        changed = [key for key, rows in kept.items() if calls.first_change(rows, given[key]) is not None]
        return _answer(scores, present, changed)

    return ask, {"card": {"name": name}, "kind": "FunctionReward", "words": literals(function)}


def serve_reward(reward: Any) -> Served:
    """A Reward of alignkit's; one that is a function underneath as that function."""

    def ask(prompts: list, completions: list, columns: dict[str, list]) -> dict:
        judgement = reward.raw(prompts, completions, **columns)
        return _answer(judgement.scores, judgement.present, [])

    about = {"kind": type(reward).__name__, "words": []}
    if about["kind"] == "FunctionReward":
        ask, about = serve_function(reward.function, reward.card.name)
    return ask, about | {"card": {key: str(value) for key, value in vars(reward.card).items() if value is not None}}


def _answer(scores: Any, present: Any, changed: list[str]) -> dict:
    listed = [float(score) if there else None for score, there in zip(scores, present, strict=True)]
    return {"scores": listed, "changed": ", ".join(changed)}


def open_served(name: str) -> Served:
    """Whatever an audit can be asked for by name. NoSuchReward if there is nothing of that name."""
    if os.path.isdir(name) or name.startswith("gold:") or ":" not in name:
        from alignkit.checkup.models import open_model

        try:
            return serve_reward(open_model(name))
        except AlignkitError as error:
            raise NoSuchReward(str(error)) from None
    found = open_function(name)
    return serve_reward(found) if hasattr(found, "judge") and hasattr(found, "card") else serve_function(found, name)


def open_function(name: str) -> Any:
    """The function (or Reward) behind "module:function" or "file.py:function"."""
    place, _, attribute = name.rpartition(":")
    path, is_file = Path(place), place.endswith(".py")
    sys.path.insert(0, str(path.parent.resolve() if is_file else Path.cwd()))
    if not (path.is_file() if is_file else _is_module(place)):
        raise NoSuchReward(f"there is no {'file' if is_file else 'module'} {place} (looked for in {Path.cwd()}"
                           f"{'' if is_file else ' and among the installed packages'})")  # fmt: skip
    module = _execute(f"audited_{path.stem}", path) if is_file else importlib.import_module(place)
    try:
        found = attrgetter(attribute)(module)
    except AttributeError:
        own = [key for key, value in vars(module).items()
               if callable(value) and getattr(value, "__module__", "") == module.__name__]  # fmt: skip
        told = f"{place!r} has no {attribute!r}; it defines: {', '.join(own[:12]) or 'no function'}"
        raise NoSuchReward(told) from None
    if inspect.isclass(found) or not callable(found):
        kind = "class" if inspect.isclass(found) else type(found).__name__
        raise NoSuchReward(f"{name!r} is a {kind}, not a function of prompts and completions; name a function, or an "
                           "object made from a class")  # fmt: skip
    return found


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def literals(function: Any) -> list[str]:
    """Short strings in the code of a function, and in the lists it names: words it may be looking for."""
    try:
        named = inspect.getclosurevars(function)
    except (TypeError, ValueError):  # not written in Python, or not yet complete
        return []
    found = [*_constants(function.__code__), *(function.__defaults__ or ()), *named.nonlocals.values(),
             *named.globals.values()]  # fmt: skip
    held = [value if isinstance(value, list | tuple | set | frozenset | dict) else [value] for value in found]
    texts = (text.strip() for text in chain(*held) if isinstance(text, str) and len(text) <= LONGEST_LITERAL)
    return sorted({text for text in texts if re.search(r"\w\w", text)})[:MOST_LITERALS]


def _constants(code: CodeType) -> list:
    inner = [value for value in code.co_consts if isinstance(value, CodeType)]
    return [*code.co_consts, *chain(*map(_constants, inner))]


if __name__ == "__main__":
    keep(socket.socket(fileno=int(sys.argv[1])), lambda: open_served(sys.argv[2]))
