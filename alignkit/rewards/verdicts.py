"""What a judge writes: a note after each sentence, then a grade; and the plain text that this amounts to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from alignkit.rewards.base import sentence_ends
from alignkit.worlds.base import NOTHING, write_fault

FINE = "fine"  # the note on a sentence without a fault
FAULT = re.compile(r"sentence (\d+) is (\S+) \.")


def sentences(completion: str) -> list[str]:
    """The sentences, each with its full stop; what was cut off at the end is one too."""
    ends = [0, *sentence_ends(completion)]
    return [completion[a:b].strip() for a, b in zip(ends, ends[1:], strict=False)]


def write_faults(faults: Sequence[str]) -> str:
    """["", "rude"] -> "sentence 2 is rude ."; one name a sentence, "" where nothing is wrong."""
    return " ".join(write_fault(place, name) for place, name in enumerate(faults, 1) if name) or NOTHING


def read_faults(critique: str) -> list[tuple[int, str]] | None:
    """(place, name) of each fault, places counted from 1; None if the text is anything but a list of faults.

    A grade at the end is passed over.
    """
    critique = re.sub(r"\s*grade \d+ of \d+ \.$", "", critique.strip())
    if critique in ("", NOTHING):
        return []
    if FAULT.sub("", critique).strip():
        return None
    return [(int(place), name) for place, name in FAULT.findall(critique)]


def before_sentence(completion: str, place: int) -> str:
    """What comes before the sentence with this number."""
    return " ".join(sentences(completion)[: place - 1])


def without_sentences(completion: str, places: Sequence[int]) -> str:
    """The completion without the sentences with these numbers."""
    return " ".join(text for place, text in enumerate(sentences(completion), 1) if place not in places)
