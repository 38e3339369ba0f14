"""The literature table `data/catalog.csv`: load, check, query, cross-tabulate, quote as further reading.

One row per paper, classified in the words of `alignkit.taxonomy`; `year` and `month` are those of the arXiv
id (the first submission). `notebook` and `implemented_by` say where this series runs a paper's idea and are
often empty. The papers were picked for coverage, not sampled: shares by year describe this table, not the
field.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path

import pandas as pd

from alignkit import taxonomy
from alignkit.errors import AlignkitError, DataError
from alignkit.files import DATA

CATALOG = DATA / "catalog.csv"
ENUMS: dict[str, type[StrEnum]] = {
    "phase": taxonomy.Phase,
    "feedback_source": taxonomy.FeedbackSource,
    "feedback_type": taxonomy.FeedbackType,
    "construction_basis": taxonomy.ConstructionBasis,
    "format": taxonomy.Format,
    "expression": taxonomy.Expression,
    "granularity": taxonomy.Granularity,
    "optimization": taxonomy.Optimization,
    "objective": taxonomy.Objective,
    "modality": taxonomy.Modality,
    "confidence": taxonomy.Confidence,
}
NUMBERS = ("year", "month")
MAY_BE_EMPTY = ("notebook", "implemented_by")
COLUMNS = (
    *("id", "name", "title", "first_author", "year", "month", "arxiv_id"),
    *ENUMS,
    *("arxiv_url", "notebook", "implemented_by"),
)
COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq}
CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|>|<|=)\s*(.*?)\s*")


def load(path: str | Path = CATALOG) -> pd.DataFrame:
    """The whole table, checked. Raises DataError naming the row, the column and what is allowed there."""
    path = Path(path)
    try:
        # everything as text: ids must not become numbers, "none" and empty cells must stay what they are
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"can't read the catalog {path}: {error}") from error
    if tuple(table.columns) != COLUMNS:
        odd = sorted(set(table.columns) ^ set(COLUMNS)) or "the order"
        raise DataError(f"{path.name}: columns differ in {odd}; they must be {', '.join(COLUMNS)}")
    for row in table.to_dict("records"):
        _check_row(row, path.name)
    for column in ("id", "arxiv_id"):
        twice = table[column][table[column].duplicated()]
        if len(twice):
            raise DataError(f"{path.name}: {column} {twice.iloc[0]!r} is there twice; each paper has one row")
    return table.astype({column: int for column in NUMBERS})


def _check_row(row: Mapping[str, str], file: str) -> None:
    def fail(column: str, remedy: str) -> None:
        raise DataError(f"{file}, row {row['id'] or row['title']!r}, column {column}: {row[column]!r} {remedy}")

    for column in COLUMNS:
        if not row[column] and column not in MAY_BE_EMPTY:
            fail(column, "is empty; fill it in")
    for column, words in ENUMS.items():
        if row[column] not in list(words):
            fail(column, f"is not one of {', '.join(words)}")
    arxiv_id = row["arxiv_id"]
    number = re.fullmatch(r"(\d\d)(\d\d)\.\d{4,5}", arxiv_id)
    if not number:
        fail("arxiv_id", "is not an arXiv id such as 2305.18290")
    follows = {"year": f"20{number[1]}", "month": f"{int(number[2])}", "arxiv_url": f"https://arxiv.org/abs/{arxiv_id}"}
    for column, value in follows.items():
        if row[column] != value:
            fail(column, f"should be {value}, as the arXiv id is {arxiv_id}")


def query(where: Iterable[str] | Mapping[str, object] = ()) -> pd.DataFrame:
    """The rows that meet all conditions.

    Conditions are texts (`granularity=step`, `format=vector|textual` for either, `year>=2024`) or a mapping
    (`{"format": ["vector", "textual"]}`). An unknown field or value raises AlignkitError with the ones there are.
    """
    table = load()
    selected = pd.Series(True, index=table.index)
    for field, sign, values in _conditions(where):
        if field not in COLUMNS:
            raise AlignkitError(f"the catalog has no field {field!r}; it has {', '.join(COLUMNS)}")
        selected &= _matches(table[field], sign, values)
    return table[selected].reset_index(drop=True)


def _conditions(where: Iterable[str] | Mapping[str, object]) -> list[tuple[str, str, list[str]]]:
    """(field, sign, values) for each condition."""
    if isinstance(where, Mapping):
        where = [f"{field}={_joined(value)}" for field, value in where.items()]
    parsed = []
    for text in [where] if isinstance(where, str) else where:
        match = CONDITION.fullmatch(text)
        if not match:
            raise AlignkitError(f"can't read condition {text!r}; write field=value, field=a|b or year>=2024")
        parsed.append((match[1], match[2], [value.strip() for value in match[3].split("|")]))
    return parsed


def _joined(value: object) -> str:
    return "|".join(map(str, value)) if isinstance(value, (list, tuple, set)) else str(value)


def _matches(column: pd.Series, sign: str, values: list[str]) -> pd.Series:
    """Which rows of a column meet one condition; several values mean any of them."""
    field = column.name
    if field in NUMBERS:
        odd = next((value for value in values if not value.isdigit()), None)
        if odd is not None:
            raise AlignkitError(f"{field} is compared with {odd!r}; give a whole number")
        return pd.concat([COMPARE[sign](column, int(value)) for value in values], axis=1).any(axis=1)
    if sign != "=":
        raise AlignkitError(f"{field}{sign}{values[0]}: only year and month can be compared; use {field}=...")
    known = list(ENUMS[field]) if field in ENUMS else sorted(set(column))
    for value in values:
        if value not in known:
            # thousands of titles are no help: name the nearest, unless the field has a short vocabulary
            shown = known if field in ENUMS else difflib.get_close_matches(value, known, n=5, cutoff=0.4)
            raise AlignkitError(f"{field} is never {value!r}; try {', '.join(shown) or 'another value'}")
    return column.isin(values)


def crosstab(rows: str, columns: str, where: Iterable[str] | Mapping[str, object] = ()) -> pd.DataFrame:
    """How many papers there are for each pair of values of two fields, in the taxonomy's order."""
    table = query(where)
    for field in (rows, columns):
        if field not in (*ENUMS, "year"):
            raise AlignkitError(f"can't tabulate {field!r}; use two of {', '.join(ENUMS)}, year")
    counts = pd.crosstab(table[rows], table[columns])

    def in_order(field: str, present: pd.Index) -> list:
        return sorted(present, key=list(ENUMS[field]).index if field in ENUMS else None)

    return counts.reindex(index=in_order(rows, counts.index), columns=in_order(columns, counts.columns))


class Reading(str):
    """A list of papers in Markdown, which a notebook renders with its links."""

    def _repr_markdown_(self) -> str:
        return str(self)


def reading(limit: int = 8, **where: object) -> Reading:
    """Further reading for a notebook, for example `reading(granularity="step", year=2024)`.

    Papers whose idea this series runs come first, then the newest; at most `limit` of them.
    """
    found = query(where)
    found = found.assign(elsewhere=found["notebook"] == "").sort_values(
        ["elsewhere", "arxiv_id"], ascending=[True, False]
    )
    lines = [
        f"- [{row.title}]({row.arxiv_url}) (first author {row.first_author}, {row.year})"
        + (f", run in `{row.notebook}`" if row.notebook else "")
        for row in found.head(limit).itertuples()
    ]
    if len(found) > limit:
        conditions = " ".join(f"'{field}={_joined(value)}'" for field, value in where.items())
        lines.append(f"\n{limit} of {len(found)}; all of them: `alignkit catalog {conditions}`".rstrip())
    return Reading("\n".join(lines))
