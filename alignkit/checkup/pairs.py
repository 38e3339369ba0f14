"""Reading a preference data set of any format and layout into one table: a prompt and two answers per row.

Three layouts are understood, row by row:

- plain: `prompt`, `chosen`, `rejected` are text; the two sides are the answers alone;
- dialogue: both sides are whole transcripts with "\\n\\nHuman:" and "\\n\\nAssistant:" turns, as in HH data
  (Bai et al. 2022, arXiv 2204.05862); what they share up to the last "\\n\\nAssistant:" is the prompt;
- messages: both sides are lists of {"role", "content"}; the leading messages they share are the prompt.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

import pandas as pd

from alignkit.checkup.sources import SIDES, Broken, Damage, open_streams, short_names
from alignkit.errors import DataError

POSITION_COLUMNS = ("chosen_first", "chosen_position", "position")  # which side the annotator saw first
ANSWER_MARK = "\n\nAssistant:"
USER_TURN = re.compile(r"(?:^|\n\n)Human:")
ASSISTANT_ROLES = {"assistant", "model"}
KINDS = {int: "a number", float: "a number", dict: "an object", list: "a list", str: "text"}

# How well the two sides agree on what they answer.
SAME, DIVERGES, DIFFERENT, BY_COLUMN = "same", "diverges", "different", "by_column"


@dataclass(frozen=True)
class Pair:
    """One comparison: two answers to one prompt.

    `prompt_match` is "same" (both sides carry the same prompt), "diverges" (they share an opening and part
    before the last answer), "different" (nothing shared, or the prompt column is not what the sides answer)
    or "by_column" (the sides carry no prompt, so the column can't be checked). `turns` counts the user's
    turns in the prompt. `messages`: prompt, chosen and rejected as the messages they came as, if they did.
    """

    prompt: str
    chosen: str
    rejected: str
    turns: int
    prompt_match: str
    layout: str
    messages: tuple[list[dict], list[dict], list[dict]] | None = None


@dataclass(frozen=True)
class PairSet:
    """A preference data set as read.

    `frame` has one row per usable pair, in the order of the source: the fields of `Pair`, `row` (its number
    in the source, from 1; "file:number" when there are several files) and the POSITION_COLUMNS as found.
    `columns`: for each pair what else its row holds, by name. `rejected`: the rows that can't be used, by reason.
    """

    source: str
    frame: pd.DataFrame
    columns: list[dict[str, Any]]
    rejected: dict[str, list[int | str]]
    notes: list[str]  # choices worth telling, such as the split taken
    damage: list[str]  # where a file broke off

    @property
    def rows_read(self) -> int:
        return len(self) + sum(map(len, self.rejected.values()))

    def __len__(self) -> int:
        return len(self.frame)


class _BadRow(Exception):
    """A row that is no usable pair; the text is the reason, the same for every row with that fault."""


def read_pairs(source: Any, limit: int | None = None, split: str | None = None) -> PairSet:
    """Read `source` (path, folder, Hub id, Dataset, DataFrame or list of rows); stop after `limit` rows, usable or not.

    Broken rows are counted with their reason and reading goes on. Raises DataError if the source is missing,
    has the wrong columns or yields no usable pair.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; it must be at least 1, or left out to read everything.")
    streams = open_streams(source, split)
    records, columns, rejected, damage, read = [], [], {}, [], 0
    for stream in streams:
        if read == limit:
            break
        before, why = len(records), None
        try:
            for number, raw in islice(stream.numbered(), None if limit is None else limit - read):
                read += 1
                place = f"{os.path.basename(stream.name)}:{number}" if len(streams) > 1 else number
                try:
                    records.append({"row": place, **vars(parse_row(raw)), **_positions(raw)})
                    columns.append(_others(raw))
                except _BadRow as reason:
                    rejected.setdefault(str(reason), []).append(place)
                    why = why or _unusable(place, reason, raw)
        except Damage as found:
            damage.append(str(found))
            why = f"yields no usable pair: {found}. Download or export it again."
        if len(records) == before:
            raise DataError(f"{stream.name} {why or 'holds no rows. Download or export it again.'}")
    rejected = dict(sorted(rejected.items(), key=lambda item: -len(item[1])))
    name = str(source) if isinstance(source, str | os.PathLike) else streams[0].name
    notes = [stream.note for stream in streams if stream.note]
    notes += [f"only the first {limit:,} rows were read"] if read == limit else []
    return PairSet(name, pd.DataFrame(records), columns, rejected, notes, damage)


def _unusable(place: int | str, reason: _BadRow, raw: object) -> str:
    found = f" Columns found: {short_names(raw)}." if isinstance(raw, dict) else ""
    return (f"yields no usable pair; first, row {place}: {reason}.{found} Needed are the columns prompt, chosen and "
            "rejected (text), or chosen and rejected as dialogues or message lists.")  # fmt: skip


# --- one row --------------------------------------------------------------------------------------


def parse_row(raw: object) -> Pair:
    """Turn one raw row into a Pair, or raise _BadRow with the reason."""
    if isinstance(raw, Broken):
        raise _BadRow(raw.reason)
    if not isinstance(raw, dict):
        raise _BadRow(f"{_kind(raw)} instead of an object with columns")
    chosen, rejected, prompt = (_column(raw, name) for name in (*SIDES, "prompt"))
    if type(chosen) is not type(rejected):
        raise _BadRow("one side is text, the other a message list")
    pair = (_text_pair if isinstance(chosen, str) else _message_pair)(prompt, chosen, rejected)
    try:
        (pair.prompt + pair.chosen + pair.rejected).encode("utf-8")
    except UnicodeEncodeError:
        raise _BadRow("not UTF-8 text") from None
    return pair


def _column(raw: dict, name: str) -> str | list | None:
    value = raw.get(name)
    if isinstance(value, Broken):
        raise _BadRow(value.reason)
    if value is None and name in SIDES:
        raise _BadRow(f"{name} is null" if name in raw else f"no column {name}")
    if value is not None and not isinstance(value, str | list):
        raise _BadRow(f"{name} is {_kind(value)}, not text or a message list")
    return value


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return KINDS.get(type(value), f"a {type(value).__name__}")


def _positions(raw: dict) -> dict[str, str | None]:
    return {name: None if raw.get(name) is None else str(raw[name]) for name in POSITION_COLUMNS}


def _others(raw: dict) -> dict[str, Any]:
    return {str(name): None if isinstance(value, Broken) else value for name, value in raw.items()
            if name not in ("prompt", *SIDES)}  # fmt: skip


def _text_pair(prompt: str | list | None, chosen: str, rejected: str) -> Pair:
    """Plain sides need a prompt column; transcripts carry their own prompt."""
    if all(USER_TURN.match(side.lstrip()) and ANSWER_MARK in side for side in (chosen, rejected)):
        return _dialogue_pair(prompt, chosen, rejected)
    if prompt is None:
        raise _BadRow("no prompt: no prompt column, and the sides are not Human/Assistant dialogues")
    if isinstance(prompt, list):
        messages = _messages(prompt, "prompt")
        prompt, turns = _transcript(messages), _user_turns(messages)
    else:
        turns = max(1, len(USER_TURN.findall(prompt)))
    return Pair(prompt.strip(), chosen.strip(), rejected.strip(), turns, BY_COLUMN, "plain")


def _dialogue_pair(prompt: str | list | None, chosen: str, rejected: str) -> Pair:
    shared = os.path.commonprefix([chosen, rejected])
    if ANSWER_MARK in shared:
        opening = shared[: shared.rfind(ANSWER_MARK)]
        answers = [side[len(opening) + len(ANSWER_MARK) :] for side in (chosen, rejected)]
        match = DIVERGES if any(ANSWER_MARK in answer for answer in answers) else SAME
    else:  # nothing is shared: take what the chosen side answers, and each side's last answer
        (opening, *_), answers = zip(*(side.rsplit(ANSWER_MARK, 1) for side in (chosen, rejected)), strict=True)
        match = DIFFERENT
    if isinstance(prompt, str) and prompt.strip() not in opening + ANSWER_MARK:
        match = DIFFERENT
    texts = (text.strip() for text in (opening, *answers))
    return Pair(*texts, len(USER_TURN.findall(opening.strip())), match, "dialogue")


# --- message lists --------------------------------------------------------------------------------


def _message_pair(prompt: str | list | None, chosen: list, rejected: list) -> Pair:
    sides = [_messages(side, name) for side, name in zip((chosen, rejected), SIDES, strict=True)]
    if any(side[-1][0] not in ASSISTANT_ROLES for side in sides):
        raise _BadRow("a side's last message is not the assistant's")
    given = chosen
    if isinstance(prompt, list):
        opening = _messages(prompt, "prompt")
        given = chosen if sides[0][: len(opening)] == opening else [*prompt, *chosen]
        sides = [side if side[: len(opening)] == opening else opening + side for side in sides]
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(*sides, strict=False))
    shared = min(len(list(alike)), *(len(side) - 1 for side in sides))
    lead, answers = sides[0][:shared], [side[shared:] for side in sides]
    carried = any(len(answer) > 1 for answer in answers)  # more than an answer is left on a side
    match = SAME if not carried else DIVERGES if shared else DIFFERENT
    if not shared:
        if prompt is None and not carried:
            raise _BadRow("no prompt: no prompt column, and the sides hold no message before the answer")
        lead = sides[0][:-1] or [("user", prompt)]
        match = match if carried else BY_COLUMN
    elif isinstance(prompt, str) and not any(prompt.strip() == text for _, text in lead):
        match = DIFFERENT
    texts = (answer[0][1] if len(answer) == 1 else _transcript(answer) for answer in answers)
    start = given[: len(lead)] if shared or carried else [{"role": "user", "content": prompt}]
    talk = (start, chosen[-len(answers[0]) :], rejected[-len(answers[1]) :])  # with all that messages carry
    return Pair(_transcript(lead), *texts, _user_turns(lead), match, "messages", talk)


def _messages(side: list, name: str) -> list[tuple[str, str]]:
    """(role, content) of each message; anything else in the list makes the row unusable."""
    if not side:
        raise _BadRow(f"{name} is an empty message list")
    for message in side:
        parts = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else [None]
        if not all(isinstance(part, str) for part in parts):
            raise _BadRow(f"{name} holds a message without role and text")
    return [(message["role"].lower(), message["content"].strip()) for message in side]


def _user_turns(messages: list[tuple[str, str]]) -> int:
    return sum(role == "user" for role, _ in messages)


def as_text(said: str | list[dict]) -> str:
    """A prompt or an answer as plain text: of one message its content, of several a transcript."""
    if isinstance(said, str):
        return said
    return said[0]["content"] if len(said) == 1 else _transcript([(m["role"], m["content"]) for m in said])


def _transcript(messages: list[tuple[str, str]]) -> str:
    return "\n\n".join(f"{role}: {text}" for role, text in messages)
