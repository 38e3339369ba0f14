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
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from alignkit.errors import AlignkitError

LONGEST_MESSAGE = 300  # characters of an error's own words
LONGEST_LITERAL = 40  # characters; longer strings in a function's code are messages, not keywords
MOST_LITERALS = 40
DIE_WITH_PARENT, ADOPT_ORPHANS = 1, 36  # prctl's PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER, of Linux


class NoSuchReward(AlignkitError):
    """The reward was not named well; nothing can be audited."""


# --- the two processes


def keep(channel: socket.socket, load: Callable[[], Served]) -> None:
    """Be the keeper: start the reward's process, tell how it ends, wait to be killed. Does not return."""
    if os.getpgid(0) != os.getpid():
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


class Served:
    """A loaded reward: its card, its class, the words in its code, and `ask(prompts, completions, columns)`, which
    returns the scores (None: not its row) and what it changed in place ("" if nothing)."""

    def __init__(self, ask: Callable, card: dict[str, str], kind: str, words: list[str]):
        self.ask, self.card, self.kind, self.words = ask, card, kind, words


def serve(channel: socket.socket, load: Callable[[], Served]) -> None:
    """Answer until the other side closes. Every fault of the reward becomes an answer, if Python lives to give it."""
    own, started = os.getpid(), time.perf_counter()
    try:
        served = load()
        hello = {"card": served.card, "kind": served.kind, "words": served.words}
    except NoSuchReward as error:
        hello = {"fault": "no such reward", "message": str(error)}
    except BaseException as error:  # noqa: BLE001 (a module may raise anything, SystemExit included)
        hello = {"fault": "import", **_words_of(error)}
    if os.getpid() != own:  # a copy that the reward has forked, and forgotten to end
        os._exit(0)
    _send(channel, {"call": 0, "seconds": time.perf_counter() - started, **hello})
    for line in channel.makefile("rb"):
        request = json.loads(line)
        started = time.perf_counter()
        try:
            scores, changed = served.ask(request["prompts"], request["completions"], request["columns"])
            answer = {"scores": scores, "changed": changed}
        except BaseException as error:  # noqa: BLE001
            answer = {"fault": "contract" if type(error).__name__ == "CallError" else "raised", **_words_of(error)}
        if os.getpid() != own:
            os._exit(0)
        _send(channel, {"call": request["call"], "seconds": time.perf_counter() - started, **answer})


def _words_of(error: BaseException) -> dict[str, str]:
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}" if frames else ""
    return {"type": type(error).__name__, "message": " ".join(str(error).split())[:LONGEST_MESSAGE], "where": where}


def _send(channel: socket.socket, message: dict) -> None:
    try:
        channel.sendall(json.dumps(message).encode() + b"\n")
    except OSError:  # the audit is over
        os._exit(0)


# --- functions


def calling() -> ModuleType:
    """`alignkit.rewards.calling`, without the package around it, which brings in torch."""
    name = "alignkit.rewards.calling"
    if name in sys.modules:
        return sys.modules[name]
    import alignkit

    return _execute("alignkit_calling", Path(alignkit.__file__).parent / "rewards" / "calling.py")


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve_function(function: Callable, name: str) -> Served:
    """A function, called in the manner of TRL, on copies of its rows."""
    calls = calling()

    def ask(prompts: list, completions: list, columns: dict[str, list]) -> tuple[list, str]:
        given = {"prompts": prompts, "completions": completions, **columns}
        kept = {key: calls.copied(rows) for key, rows in given.items()}
        others = {key: given[key] for key in columns}
        out = calls.call_function(function, given["prompts"], given["completions"], others)
        scores, present = calls.row_numbers(getattr(out, "scores", out), len(kept["completions"]))
        changed = [key for key, rows in kept.items() if calls.first_change(rows, given[key]) is not None]
        return _listed(scores, present), ", ".join(changed)

    return Served(ask, {"name": name}, "FunctionReward", literals(function))


def serve_reward(reward: Any) -> Served:
    """A Reward of alignkit's; one that is a function underneath as that function."""
    if (function := getattr(reward, "function", None)) is not None and type(reward).__name__ == "FunctionReward":
        served = serve_function(function, reward.card.name)
    else:
        served = Served(lambda *rows: _judged(reward, *rows), {}, type(reward).__name__, [])
    served.card = {key: str(value) for key, value in vars(reward.card).items() if value is not None}
    return served


def _judged(reward: Any, prompts: list, completions: list, columns: dict[str, list]) -> tuple[list, str]:
    judgement = reward.raw(prompts, completions, **columns)
    return _listed(judgement.scores, judgement.present), ""


def _listed(scores: Any, present: Any) -> list[float | None]:
    return [float(score) if there else None for score, there in zip(scores, present, strict=True)]


def open_function(name: str) -> Any:
    """The function (or Reward) behind "module:function" or "file.py:function"."""
    place, _, attribute = name.rpartition(":")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            own = [key for key, value in vars(module).items()
                   if callable(value) and getattr(value, "__module__", "") == module.__name__]  # fmt: skip
            raise NoSuchReward(f"{place!r} has no {attribute!r}; it defines: {', '.join(own[:12]) or 'no function'}")
        found = getattr(found, part)
    if inspect.isclass(found):
        raise NoSuchReward(f"{name!r} is a class; name a function, or an object made from the class")
    if not callable(found):
        raise NoSuchReward(f"{name!r} is a {type(found).__name__}, not a function of prompts and completions")
    return found


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise NoSuchReward(f"there is no file {path} (relative paths start in {Path.cwd()})")
    sys.path.insert(0, str(path.parent.resolve()))
    return _execute(f"audited_{path.stem}", path)


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        known = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        known = None
    if known is None:
        raise NoSuchReward(f"there is no module {name!r} to import (from {Path.cwd()} and the installed packages)")
    return importlib.import_module(name)


def literals(function: Any) -> list[str]:
    """Short strings in the code of a function, and in the lists it names: words it may be looking for."""
    code, known = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None:
        return []
    held = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    found = [*_constants(code), *held, *(function.__defaults__ or ()), *(known.get(name) for name in code.co_names)]
    texts = [t for value in found for t in (value if isinstance(value, list | tuple | set | frozenset) else [value])]
    texts += [t for value in found if isinstance(value, dict) for t in value]
    words = [t.strip() for t in texts if isinstance(t, str) and len(t) <= LONGEST_LITERAL and re.search(r"\w\w", t)]
    return sorted(dict.fromkeys(words))[:MOST_LITERALS]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _constants(code: CodeType) -> list:
    inner = [value for value in code.co_consts if isinstance(value, CodeType)]
    return [*code.co_consts, *(constant for part in inner for constant in _constants(part))]


def open_served(name: str) -> Served:
    """Whatever an audit can be asked for by name. NoSuchReward if there is nothing of that name."""
    if os.path.isdir(name) or name.startswith("gold:") or ":" not in name:
        from alignkit.checkup.models import open_model

        return serve_reward(open_model(name))
    found = open_function(name)
    return serve_reward(found) if hasattr(found, "judge") and hasattr(found, "card") else serve_function(found, name)


if __name__ == "__main__":
    sys.modules["alignkit.checkup.serving"] = sys.modules["__main__"]  # one module, one NoSuchReward
    keep(socket.socket(fileno=int(sys.argv[1])), lambda: open_served(sys.argv[2]))
