"""How a reward is handed its rows and how its answer is read: TRL's conventions, in one place.

Nothing heavy is imported: an audit loads this file by itself, in the process of the reward.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from alignkit.errors import RewardError

#: What TRL hands over beside the columns of a data set: the trainer's own objects, passed on as they are.
TRAINERS = ("trainer_state", "log_extra", "log_metric", "environments")


class CallError(RewardError):
    """A reward can't be called, or its answer can't be read. `Reward` adds its name, and the row's texts."""

    def __init__(self, what: str, remedy: str, row: int | None = None):
        super().__init__(f"{what}: {remedy}")
        self.what, self.remedy, self.row = what, remedy, row


def rows_of(what: str, values: Iterable) -> list:
    """The values as a list; CallError for a string, mapping or table, whose items are letters or names."""
    named = isinstance(values, str | bytes | Mapping) or _is_of("pandas", "DataFrame", values)
    if named or not isinstance(values, Iterable):
        raise CallError(f"got a {type(values).__name__} as {what}", "give a list, one item a row")
    return list(values)


def _is_of(module: str, name: str, value: Any) -> bool:
    """isinstance, for a class of a module that need not be loaded: then nothing is of it."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def copied(rows: list) -> list:
    """The rows in a new list; what could be changed in place is copied, too, if it can be."""
    made = []
    for row in rows:
        try:
            made.append(copy.deepcopy(row))
        except (TypeError, ValueError, RuntimeError):  # an open file, a tensor within a graph
            made.append(row)
    return made


def first_change(before: list, after: list) -> int | None:
    """The first row that is not what it was; None if there is none."""
    for row, (old, new) in enumerate(zip(before, after, strict=False)):
        if not _same(old, new):
            return row
    return min(len(before), len(after)) if len(before) != len(after) else None


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, np.ndarray) or _is_of("torch", "Tensor", a):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is equal to NaN here
    if type(a).__eq__ is object.__eq__:  # nothing to compare by but the identity, which a copy does not share
        return True
    return bool(a == b) or a != a


def call_function(function: Callable, prompts: list, completions: list, columns: Mapping[str, Any]) -> Any:
    """What `function` returns for these rows; what it awaits is waited for.

    By name, as TRL does (prompts, completions, completion_ids, trainer_state, log_extra, log_metric and the columns),
    if all that it requires has such a name; else prompts and completions by place and the rest by name. It gets what
    it names, or everything if it takes **kwargs. CallError if it requires something that wasn't handed over.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions don't say
        return _waited_for(function(prompts, completions))
    every = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    places = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    known = {**columns, "prompts": prompts, "completions": completions}
    known |= {name: _stand_in(name) for name in TRAINERS[:3] if name in names and name not in columns}
    by_place = ()
    as_trl = every or names & {"prompts", "completions", "completion_ids"}
    if not (as_trl and (set(required) <= {*known} & names or places[:1] in (["completions"], ["completion_ids"]))):
        by_place = (completions, prompts) if places[1:2] == ["prompts"] else (prompts, completions)
        known = {name: known[name] for name in known if name not in ("prompts", "completions", *places[:2])}
    missing = [name for name in required if name not in {*known, *places[: len(by_place)]}]
    if missing:
        raise CallError(f"asks for {missing[0]!r}, but no such column was handed over (there are: "
                        f"{', '.join(columns) or 'none'})", f"give it by name, {missing[0]}=..., or give a data set "
                        "that has it")  # fmt: skip
    return _waited_for(function(*by_place, **{name: known[name] for name in known if every or name in names}))


def _stand_in(name: str) -> Any:
    """What a trainer would hand over, where there is none: a state before the first step, and loggers that are deaf."""
    if name != "trainer_state":
        return lambda *_, **__: None
    from transformers import TrainerState  # brings in the trainers' callbacks

    return TrainerState()


def _waited_for(out: Any) -> Any:
    if not inspect.isawaitable(out):
        return out

    async def wait():
        return await out

    with ThreadPoolExecutor(1) as other:  # a notebook's own loop is running, and a loop can't be run inside a loop
        return other.submit(asyncio.run, wait()).result()


def row_numbers(out: Any, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A reward's answer as numbers (rows,), float64, and where there is one (rows,), bool: None says "not my row".

    Takes lists, tuples, generators, arrays, pandas and tensors of any type, (rows,) or (rows, 1). A true answer counts
    1, a false one 0. NaN and infinities pass; the caller judges them. CallError says what is no row of numbers.
    """
    if _is_of("torch", "Tensor", out):
        out = out.detach().cpu()
        out = (out if out.is_complex() else out.double()).numpy()
    elif hasattr(out, "to_numpy"):  # of pandas
        out = out.to_numpy()
    elif not isinstance(out, np.ndarray):
        if not isinstance(out, Iterable) or isinstance(out, str | bytes | Mapping):
            raise CallError(f"returned {out!r:.60} for {rows} completions", "it must return one number for each")
        out = list(out)
    shape = out.shape if isinstance(out, np.ndarray) else (len(out),)
    if shape not in ((rows,), (rows, 1)):
        raise CallError(f"returned scores of shape {tuple(shape)} for {rows} completions",
                        "it must return one number for each")  # fmt: skip
    if isinstance(out, np.ndarray):
        out = out.reshape(rows)
        if out.dtype.kind in "biuf":
            return out.astype(np.float64), np.ones(rows, dtype=bool)
    present = np.array([value is not None for value in out], dtype=bool)
    return np.array([_number(row, value) for row, value in enumerate(out)], dtype=np.float64).reshape(rows), present


def _number(row: int, value: Any) -> float:
    if value is None:
        return np.nan
    try:
        one = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
        one = one.item() if hasattr(one, "item") else one  # of arrays and tensors that hold one number
        if isinstance(one, str | bytes):
            raise TypeError
        return float(one)
    except (TypeError, ValueError, RuntimeError):
        raise CallError(f"returned {value!r:.60} for row {row}", "every score must be a number", row) from None
