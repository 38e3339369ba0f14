"""Errors a user can act on: each message names the place and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class AlignkitError(ValueError):
    """Something the caller can mend. The command line prints it as one line, without a traceback."""


class DataError(AlignkitError):
    """A file, row or column is not what it should be."""


class RewardError(AlignkitError):
    """A reward raised, or returned something that is not one finite score per completion."""


class ContextError(AlignkitError):
    """A prompt with its completion does not fit into the model's context."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """`with needs("checkup"): import datasketch`: where a package of an extra is missing, the error names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "alignkit").split(".")[0]
        if package == "alignkit":
            raise
        raise AlignkitError(f"this needs {package}; install it with: pip install 'alignkit[{extra}]'") from error


def printable(text: str) -> str:
    """Text from elsewhere as a terminal may show it: escapes and other control characters are spelled out."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def check_positive(where: str, **values: float) -> None:
    """AlignkitError naming the first of the values that is not finite and above 0 (for counts: at least 1)."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise AlignkitError(f"{where}: {name} must be a finite number above 0, not {value}")


def check_at_least(where: str, least: float, **values: float) -> None:
    """AlignkitError naming the first of the values that is not finite and at least so much."""
    for name, value in values.items():
        if not least <= value < float("inf"):
            raise AlignkitError(f"{where}: {name} must be at least {least}, not {value}")


def check_choice(where: str, name: str, value: object, allowed: Iterable[object]) -> None:
    """AlignkitError listing what is allowed, if the value is not among it."""
    if value not in (allowed := list(allowed)):
        raise AlignkitError(f"{where}: {name} must be one of {', '.join(map(str, allowed))}, not {value!r}")
