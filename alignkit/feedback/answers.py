"""What people are asked about, who looks at what, and what an answer costs: the ground of every form of feedback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError, DataError
from alignkit.feedback.annotator import Annotator
from alignkit.worlds.base import World

People = Annotator | Sequence[Annotator]
SINGLE = ("prompt", "completion")
COST = ("decisions", "items", "bits")  # columns, one number a row


def one_by_one(answers: Dataset) -> Dataset:
    """`prompt/completion`, one row a completion, from groups (`prompt/completions`) or from such rows themselves.

    Further columns go along. DataError names the columns if these are neither.
    """
    return answers if {*SINGLE} <= set(answers.column_names) else spread(answers)


def spread(groups: Dataset) -> Dataset:
    """One row for each completion of `prompt/completions`."""
    if not {"prompt", "completions"} <= set(groups.column_names):
        raise DataError(f"need the columns prompt and completion (or completions); found {groups.column_names}")
    texts = groups["completions"][:]
    row = [i for i, some in enumerate(texts) for _ in some]
    along = further(groups, ("completions", "completion"), row)
    return Dataset.from_dict({**along, "completion": [text for some in texts for text in some]})


def further(data: Dataset, used: Sequence[str], rows: Sequence[int] | None = None) -> dict[str, list]:
    """The columns of `data` besides those `used`, at these rows (default: all): they go along with each answer."""
    columns = {name: data[name][:] for name in data.column_names if name not in used}
    return columns if rows is None else {name: [values[i] for i in rows] for name, values in columns.items()}


@dataclass(frozen=True)
class Asked:
    """Answers to be given: what each is about, and who gives it."""

    people: list[Annotator]
    who: np.ndarray  # number of the person, by answer
    row: np.ndarray  # what is asked about: row of the data set, by answer
    about: dict[str, list]  # the columns asked about, by answer
    along: dict[str, list]  # the data set's further columns, by answer

    def of(self, setting: str) -> np.ndarray:
        """A setting of the person who answers, by answer."""
        return np.array([getattr(person, setting) for person in self.people])[self.who]

    def each(self) -> Iterator[tuple]:
        """Of each answer: the person, what it is about, and a dict of the further columns."""
        for i, k in enumerate(self.who):
            about = (values[i] for values in self.about.values())
            yield self.people[k], *about, {name: values[i] for name, values in self.along.items()}

    def numbers(self, question: str, world: World) -> np.ndarray:
        """For the question "worth": `person.worth(world, *columns, **further)` person by person; shape (N,)."""
        out = np.zeros(len(self.who))
        for k, person in enumerate(self.people):
            mine = np.flatnonzero(self.who == k)
            about = ([values[i] for i in mine] for values in self.about.values())
            further = {name: [values[i] for i in mine] for name, values in self.along.items()}
            out[mine] = getattr(person, question)(world, *about, **further)
        return out

    def answered(self, columns: dict, decisions: int | Sequence[int], items: int, bits: Sequence) -> Dataset:
        """The answers' columns as a Dataset, with `annotator`, what each cost (choices made, completions read, at
        most so many bits said) and, where names are free, the further columns."""
        n = len(self.who)
        spent = {"decisions": np.broadcast_to(decisions, n).tolist(), "items": [items] * n, "bits": [*map(float, bits)]}
        columns = {**columns, "annotator": self.of("name").tolist(), **spent}
        return Dataset.from_dict({**columns, **{k: v for k, v in self.along.items() if k not in columns}})


def ask(data: Dataset, used: Sequence[str], people: People, everyone: bool = False, together: int = 1) -> Asked:
    """Who looks at what: in turn, one person a row, or `together` rows; or `everyone` looks at every row."""
    people = [people] if isinstance(people, Annotator) else list(people)
    if not people:
        raise AlignkitError("give at least one annotator")
    row, who = np.arange(len(data)), np.arange(len(data)) // together % len(people)
    if everyone:
        row, who = np.tile(row, len(people)), np.repeat(np.arange(len(people)), len(data))
    columns = further(data, (), row)
    about = {name: columns.pop(name) for name in used}
    return Asked(people, who, row, about, columns)


def bits(log2_answers: np.ndarray | float, p_answer: np.ndarray | float) -> np.ndarray:
    """log2(number of possible answers) + log2 p(answer given), for each answer.

    Its mean is log2 K - H(answer | question): the most that an answer can tell about what was asked, since the mutual
    information is H(answer) - H(answer | question) and H(answer) is at most log2 K. A coin says 0 bits, a sure choice
    between two 1 bit; a single answer that was unlikely counts below 0.
    """
    return np.asarray(log2_answers) + np.log2(np.asarray(p_answer, dtype=float))


def cost(answers: Dataset) -> dict[str, float]:
    """Totals of a data set of feedback: answers, decisions, items read, bits.

    Decisions are choices among alternatives: 1 for a pair, k-1 for a ranking of k, 1 for a rating, one an aspect or a
    step. Labels of `compare` say it by their column `p_chosen`. DataError if neither is there.
    """
    n = len(answers)
    if set(COST) <= set(answers.column_names):
        decisions, items, said = (float(np.sum(answers[name][:])) for name in COST)
    elif "p_chosen" in answers.column_names:
        decisions, items, said = n, 2 * n, float(bits(1.0, answers["p_chosen"][:]).sum())
    else:
        raise DataError(f"cost needs the columns {list(COST)} or 'p_chosen'; found {answers.column_names}")
    return {"answers": float(n), "decisions": float(decisions), "items read": float(items), "bits": said}
