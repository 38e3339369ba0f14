"""The reward's side of the pipe: load it, then score what is asked until the pipe closes.

Messages are JSON, so that nothing the reward sends back can be more than data.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from alignkit.checkup.isolation.source import UsageError, literals, raw_scores
from alignkit.rewards.base import Reward

LONGEST_MESSAGE = 300  # characters of an error's own words


def serve(connection: Connection, load: Callable[[], Reward]) -> None:
    """Answer until the other side closes. Every fault of the reward becomes an answer, if Python lives to give it."""
    started = time.perf_counter()
    try:
        reward = load()
    except UsageError as error:
        return _send(connection, {"fault": "usage", "message": str(error)})
    except BaseException as error:  # noqa: BLE001 (a module may raise anything, SystemExit included)
        return _send(connection, {"fault": "import", **_told(error)})
    card = {key: str(value) for key, value in vars(reward.card).items() if value is not None}
    _send(connection, {"card": card, "kind": type(reward).__name__, "words": literals(reward),
                       "seconds": time.perf_counter() - started})  # fmt: skip
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return None
        _send(connection, _answer(reward, request))


def _answer(reward: Reward, request: dict) -> dict:
    prompts, completions = request["prompts"], request["completions"]
    if request["chat"]:
        prompts = [[{"role": "user", "content": text}] for text in prompts]
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    started = time.perf_counter()
    try:
        out = raw_scores(reward, prompts, completions)
    except BaseException as error:  # noqa: BLE001
        return {"fault": "raised", **_told(error), "seconds": time.perf_counter() - started}
    seconds = time.perf_counter() - started
    if len(out) != len(completions):
        told = f"{len(out)} scores for {len(completions)} completions"
        return {"fault": "wrong length", "message": told, "seconds": seconds}
    return {"scores": out, "seconds": seconds}


def _told(error: BaseException) -> dict:
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}" if frames else ""
    return {"type": type(error).__name__, "message": " ".join(str(error).split())[:LONGEST_MESSAGE], "where": where}


def _send(connection: Connection, message: dict) -> None:
    try:
        connection.send_bytes(json.dumps(message).encode())
    except OSError:  # the audit is over
        os._exit(0)


def serve_forked(connection: Connection, reward: Reward, log: str) -> None:
    """The same in a forked copy of the audit's process: for rewards that exist only in memory.

    Its own session, so that it can be ended with all that it started; one thread, as those of a fork's parent are
    gone, and OpenMP would wait for them forever.
    """
    os.setsid()
    sink = os.open(log, os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (sink, 1), (sink, 2)):
        os.dup2(source, target)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    serve(connection, lambda: reward)
    os._exit(0)
