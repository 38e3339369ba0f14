"""Reading a preference data set of any format and layout into one table: a prompt and two answers per row.

Three layouts are understood, row by row:

- plain: `prompt`, `chosen`, `rejected` are text; the two sides are the answers alone;
- dialogue: both sides are whole transcripts with "\\n\\nHuman:" and "\\n\\nAssistant:" turns, as in HH data
  (Bai et al. 2022, arXiv 2204.05862); what they share up to the last "\\n\\nAssistant:" is the prompt;
- messages: both sides are lists of {"role", "content"}; the leading messages they share are the prompt.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from alignkit.checkup.sources import Broken, Damage, RowStream, open_streams, short_names
from alignkit.errors import DataError

SIDES = ("chosen", "rejected")
POSITION_COLUMNS = ("chosen_first", "chosen_position", "position")  # which side the annotator saw first
ANSWER_MARK = "\n\nAssistant:"
USER_TURN = re.compile(r"(?:^|\n\n)Human:")
ASSISTANT_ROLES = {"assistant", "model"}
KEPT_ROW_NUMBERS = 5

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


@dataclass
class RejectedRows:
    """How many rows failed for one reason, and the numbers of the first few."""

    count: int = 0
    first_rows: list[int | str] = field(default_factory=list)

    def add(self, row: int | str) -> None:
        self.count += 1
        if len(self.first_rows) < KEPT_ROW_NUMBERS:
            self.first_rows.append(row)


@dataclass(frozen=True)
class PairSet:
    """A preference data set as read.

    `frame` has one row per usable pair, in the order of the source: the fields of `Pair`, `row` (its number
    in the source, from 1; "file:number" when there are several files) and the POSITION_COLUMNS as found.
    `columns`: for each pair what else its row holds, by name.
    """

    source: str
    frame: pd.DataFrame
    columns: list[dict[str, Any]]
    rejected: dict[str, RejectedRows]
    notes: list[str]  # choices worth telling, such as the split taken
    damage: list[str]  # where a file broke off

    @property
    def rows_read(self) -> int:
        return len(self.frame) + self.rows_rejected

    @property
    def rows_rejected(self) -> int:
        return sum(rows.count for rows in self.rejected.values())

    def __len__(self) -> int:
        return len(self.frame)


class _BadRow(Exception):
    """A row that is no usable pair; the text is the reason, the same for every row with that fault."""


def read_pairs(source, limit: int | None = None, split: str | None = None, show_progress: bool = False) -> PairSet:
    """Read `source` (path, folder, Hub id, Dataset, DataFrame or list of rows); stop after `limit` rows, usable or not.

    Broken rows are counted with their reason and reading goes on. Raises DataError if the source is missing,
    has the wrong columns or yields no usable pair.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; it must be at least 1, or left out to read everything.")
    streams = open_streams(source, split)
    records, columns, faults, damages = [], [], [], []
    for stream in streams:
        left = None if limit is None else limit - len(records) - len(faults)
        if left == 0:
            break
        found, others, faulty, damage = _read_stream(stream, left, len(streams) > 1, show_progress)
        records += found
        columns += others
        faults += faulty
        damages += [damage] if damage else []
    rejected: dict[str, RejectedRows] = {}
    for place, reason in faults:
        rejected.setdefault(reason, RejectedRows()).add(place)
    rejected = dict(sorted(rejected.items(), key=lambda item: -item[1].count))
    name = str(source) if isinstance(source, str | os.PathLike) else streams[0].name
    notes = [stream.note for stream in streams if stream.note]
    if limit is not None and len(records) + len(faults) == limit:
        notes.append(f"only the first {limit:,} rows were read")
    return PairSet(name, pd.DataFrame(records), columns, rejected, notes, damages)


def _read_stream(
    stream: RowStream, limit: int | None, several: bool, show_progress: bool
) -> tuple[list[dict], list[dict], list[tuple[int | str, str]], str | None]:
    """The usable pairs of one file, what else their rows hold, (row, reason) of each row turned away, and the damage
    if there is any."""
    _check_columns(stream)
    records, others, faults, columns, damage = [], [], [], [], None
    rows = tqdm(islice(stream.numbered(), limit), desc="reading pairs", unit=" rows", disable=not show_progress)
    for number, raw in rows:
        if isinstance(raw, Damage):
            damage = raw.message
            break
        place = f"{os.path.basename(stream.name)}:{number}" if several else number
        columns = columns or (list(raw) if isinstance(raw, dict) else [])
        try:
            records.append({"row": place, **vars(parse_row(raw)), **_positions(raw)})
            others.append({str(name): None if isinstance(value, Broken) else value for name, value in raw.items()
                           if name not in ("prompt", *SIDES)})  # fmt: skip
        except _BadRow as reason:
            faults.append((place, str(reason)))
    if not records:
        raise DataError(_nothing_usable(stream.name, faults, columns, damage))
    return records, others, faults, damage


def _check_columns(stream: RowStream) -> None:
    """Where the columns are known ahead, a missing side is a fault of the file, not of its rows."""
    missing = [side for side in SIDES if stream.columns is not None and side not in stream.columns]
    if missing:
        raise DataError(
            f"{stream.name} has no column {' and no column '.join(missing)}. "
            f"Found: {short_names(stream.columns)}. Rename its columns to prompt, chosen and rejected."
        )


def _nothing_usable(name: str, faults: list, columns: list[str], damage: str | None) -> str:
    """One message for a source without a usable pair: the first fault with its row, and the columns found."""
    if damage:
        return f"{name} yields no usable pair: {damage}. Download or export it again."
    if not faults:
        return f"{name} holds no rows. Download or export it again."
    row, reason = faults[0]
    found = f" Columns found: {short_names(columns)}." if columns else ""
    return (
        f"{name} yields no usable pair: none of its {len(faults)} rows read could be used; "
        f"row {row}: {reason}.{found} Needed are the columns prompt, chosen and rejected (text), or chosen "
        "and rejected as dialogues or message lists."
    )


# --- one row --------------------------------------------------------------------------------------


def parse_row(raw: object) -> Pair:
    """Turn one raw row into a Pair, or raise _BadRow with the reason."""
    if isinstance(raw, Broken):
        raise _BadRow(raw.reason)
    if not isinstance(raw, dict):
        raise _BadRow(f"{_kind(raw)} instead of an object with columns")
    chosen, rejected = (_side(raw, name) for name in SIDES)
    prompt = raw.get("prompt")
    if isinstance(prompt, Broken):
        raise _BadRow(prompt.reason)
    if prompt is not None and not isinstance(prompt, str | list):
        raise _BadRow(f"prompt is {_kind(prompt)}, not text or a message list")
    if type(chosen) is not type(rejected):
        raise _BadRow("one side is text, the other a message list")
    to_pair = _text_pair if isinstance(chosen, str) else _message_pair
    pair = to_pair(prompt, chosen, rejected)
    _check_unicode(pair)
    return pair


def _side(raw: dict, name: str) -> str | list:
    if name not in raw:
        raise _BadRow(f"no column {name}")
    side = raw[name]
    if side is None or isinstance(side, Broken):
        raise _BadRow(f"{name} is null" if side is None else side.reason)
    if not isinstance(side, str | list):
        raise _BadRow(f"{name} is {_kind(side)}, not text or a message list")
    return side


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {int: "a number", float: "a number", dict: "an object", list: "a list", str: "text"}
    return names.get(type(value), f"a {type(value).__name__}")


def _check_unicode(pair: Pair) -> None:
    try:
        (pair.prompt + pair.chosen + pair.rejected).encode("utf-8")
    except UnicodeEncodeError:
        raise _BadRow("not UTF-8 text") from None


def _positions(raw: object) -> dict[str, str | None]:
    return {name: None if raw.get(name) is None else str(raw[name]) for name in POSITION_COLUMNS}


def _text_pair(prompt: str | list | None, chosen: str, rejected: str) -> Pair:
    """Plain sides need a prompt column; transcripts carry their own prompt."""
    carried = all(USER_TURN.match(side.lstrip()) and ANSWER_MARK in side for side in (chosen, rejected))
    if carried:
        return _dialogue_pair(prompt, chosen, rejected)
    if prompt is None:
        raise _BadRow("no prompt: no prompt column, and the sides are not Human/Assistant dialogues")
    turns = 1
    if isinstance(prompt, list):
        messages = _messages(prompt, "prompt")
        prompt, turns = _transcript(messages), _user_turns(messages)
    else:
        turns = max(1, len(USER_TURN.findall(prompt)))
    return Pair(prompt.strip(), chosen.strip(), rejected.strip(), turns, BY_COLUMN, "plain")


def _dialogue_pair(prompt: str | list | None, chosen: str, rejected: str) -> Pair:
    shared = os.path.commonprefix([chosen, rejected])
    cut = shared.rfind(ANSWER_MARK) + len(ANSWER_MARK) if ANSWER_MARK in shared else 0
    answers = chosen[cut:], rejected[cut:]
    match = DIVERGES if any(ANSWER_MARK in answer for answer in answers) else SAME
    opening = chosen[:cut]
    if cut == 0:  # nothing is shared: take what the chosen side answers, and each side's last answer
        match = DIFFERENT
        opening = chosen[: chosen.rfind(ANSWER_MARK)]
        answers = tuple(side[side.rfind(ANSWER_MARK) + len(ANSWER_MARK) :] for side in (chosen, rejected))
    if isinstance(prompt, str) and prompt.strip() not in opening:
        match = DIFFERENT
    opening = opening.removesuffix(ANSWER_MARK).strip()
    chosen, rejected = (answer.strip() for answer in answers)
    return Pair(opening, chosen, rejected, len(USER_TURN.findall(opening)), match, "dialogue")


# --- message lists --------------------------------------------------------------------------------


def _message_pair(prompt: str | list | None, chosen: list, rejected: list) -> Pair:
    sides = [_messages(side, name) for side, name in zip((chosen, rejected), SIDES, strict=True)]
    if any(side[-1][0] not in ASSISTANT_ROLES for side in sides):
        raise _BadRow("a side's last message is not the assistant's")
    asked = sides
    if isinstance(prompt, list):
        opening = _messages(prompt, "prompt")
        sides = [side if side[: len(opening)] == opening else opening + side for side in sides]
    shared = min(_shared_length(*sides), *(len(side) - 1 for side in sides))
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
    given = chosen if not isinstance(prompt, list) or sides[0] == asked[0] else [*prompt, *chosen]
    opening = given[: len(lead)] if shared or carried else [{"role": "user", "content": prompt}]
    talk = (opening, chosen[-len(answers[0]) :], rejected[-len(answers[1]) :])  # with all that messages carry
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


def _shared_length(one: list, other: list) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _user_turns(messages: list[tuple[str, str]]) -> int:
    return sum(role == "user" for role, _ in messages)


def as_text(said: str | list[dict]) -> str:
    """A prompt or an answer as plain text: of one message its content, of several a transcript."""
    if isinstance(said, str):
        return said
    return said[0]["content"] if len(said) == 1 else _transcript([(m["role"], m["content"]) for m in said])


def _transcript(messages: list[tuple[str, str]]) -> str:
    return "\n\n".join(f"{role}: {text}" for role, text in messages)
