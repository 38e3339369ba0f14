"""The world "arithmetic": three-digit sums worked column by column, where every step and the outcome can be checked.

    prompt      4 3 7 + 1 8 5 =
    completion  7 + 5 + 0 = 1 2 . 3 + 8 + 1 = 1 2 . 4 + 1 + 1 = 0 6 . answer 6 2 2 .

A step adds two digits and what is carried (ones first) and writes a two-digit sum; its tens are carried on.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from alignkit.errors import AlignkitError
from alignkit.worlds.base import AspectWorld

COLUMNS = 3
SIZES = {"feedback": 600, "treatment": 400, "seen": 200, "test": 200}  # prompts in each split
CHATTER = ("let me see .", "this is easy .")
STEP = re.compile(r"\d \+ \d \+ \d = \d \d \.")
PROMPT = re.compile(r"(\d) (\d) (\d) \+ (\d) (\d) (\d) =")

#: How often the simulated authors of the pretraining corpus go wrong: the base policy's errors come from here.
HABITS = {
    "chatter": 0.12,  # before the first step
    "bare": 0.08,  # no steps at all, just an answer, mostly a wrong one
    "slip": 0.04,  # each step: the sum is off by one
    "forget": 0.12,  # each carry that is due
    "misread": 0.03,  # each step: a digit of another column
    "misstate": 0.1,  # each step: a digit is written wrong but added right, so that a right answer can follow
    "guess_right": 0.3,  # a bare answer
    "miscopy": 0.03,  # a digit of the answer
    "unfinished": 0.06,  # no answer
}


class Working(NamedTuple):
    """The one right way to work a sum: a sentence (with its full stop) for each column, and the answer's."""

    steps: tuple[str, ...]
    answer: str
    carries: int


@lru_cache(maxsize=100_000)
def work(prompt: str) -> Working:
    """The right working of a prompt; AlignkitError if it is not a prompt of this world."""
    match = PROMPT.fullmatch(prompt.strip())
    if not match:
        raise AlignkitError(
            f"not a prompt of world 'arithmetic': {prompt!r}. It must look like '4 3 7 + 1 8 5 ='; "
            f"see world.prompts(split), split one of {', '.join([*SIZES])}."
        )
    digits = [int(d) for d in match.groups()]
    steps, carry, carries = [], 0, 0
    for a, b in zip(digits[COLUMNS - 1 :: -1], digits[: COLUMNS - 1 : -1], strict=True):
        steps.append(_step(a, b, carry, a + b + carry))
        carry = (a + b + carry) // 10
        carries += carry
    total = int("".join(map(str, digits[:COLUMNS]))) + int("".join(map(str, digits[COLUMNS:])))
    return Working(tuple(steps), _answer(total), carries)


def _step(a: int, b: int, carry: int, total: int) -> str:
    return f"{a} + {b} + {carry} = {total // 10} {total % 10} ."


def _answer(total: int) -> str:
    return f"answer {' '.join(str(total))} ."


class ArithmeticWorld(AspectWorld):
    """See `alignkit.worlds.World`. Aspects (larger is better):

    - correct: 1 if the completion ends with its only answer, and that is the sum.
    - steps: 0.5 times the share of columns whose right step is in its place.
    - tidy: -0.25 for each sentence that is neither a step in its place (right or wrong) nor the answer.
    """

    name = "arithmetic"
    version = "arithmetic-v1"
    aspects = ("correct", "steps", "tidy")

    # -- prompts -------------------------------------------------------------------------------------------------

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        """Disjoint sums. `test` holds only sums that carry at every column, and no other split holds any."""
        rng = np.random.default_rng(2505)
        splits: dict[str, list[str]] = {name: [] for name in SIZES}
        taken: set[str] = set()
        while any(len(prompts) < SIZES[name] for name, prompts in splits.items()):
            prompt = self._prompt(*rng.integers(100, 1000, 2))
            hard = work(prompt).carries == COLUMNS
            name = "test" if hard else next((s for s in SIZES if s != "test" and len(splits[s]) < SIZES[s]), None)
            if name and prompt not in taken and len(splits[name]) < SIZES[name]:
                splits[name].append(prompt)
                taken.add(prompt)
        return splits

    @staticmethod
    def _prompt(a: int, b: int) -> str:
        return f"{' '.join(str(a))} + {' '.join(str(b))} ="

    def prompts(self, split: str = "treatment") -> list[str]:
        """Disjoint splits: `feedback` (to be labeled), `treatment` and `seen` are of one kind; `test` is harder: its
        sums carry at every column, and no other split has such sums."""
        if split not in SIZES:
            raise AlignkitError(f"no split {split!r} in world 'arithmetic'; there are: {', '.join(SIZES)}")
        return list(self._splits[split])

    # -- reading -------------------------------------------------------------------------------------------------

    def segments(self, completion: str) -> list[str]:
        """The completion's sentences, each with its full stop; what was cut off at the end stays without one."""
        parts = [part.strip() for part in f" {' '.join(completion.split())} ".split(" . ")]
        *whole, tail = parts
        return [f"{part} ." for part in whole if part] + ([tail] if tail else [])

    def step_labels(self, prompt: str, completion: str) -> list[bool]:
        """Whether each sentence is right where it stands, in the order of `segments`.

        The k-th step must be the k-th column's one right step (so a digit carried wrongly makes the next step wrong as
        well); an answer must be the sum, whatever the steps before it say, and stand last. Chatter is not wrong.
        """
        right, sentences, labels, k = work(prompt), self.segments(completion), [], 0
        for place, sentence in enumerate(sentences):
            if self.is_step(sentence):
                labels.append(k < COLUMNS and sentence == right.steps[k])
                k += 1
            else:
                last = place == len(sentences) - 1
                labels.append(sentence in CHATTER or (last and sentence == right.answer))
        return labels

    @staticmethod
    def is_step(sentence: str) -> bool:
        """Whether a sentence has the form of a step, right or wrong."""
        return STEP.fullmatch(sentence) is not None

    def answer(self, completion: str) -> str | None:
        """The stated sum as digits ("622"), or None unless the completion ends with its one and only answer."""
        stated = [s for s in self.segments(completion) if s.startswith("answer")]
        match = re.fullmatch(r"answer ((?:\d )+)\.", stated[0]) if len(stated) == 1 else None
        return match[1].replace(" ", "") if match and self.segments(completion)[-1] == stated[0] else None

    def correct(self, prompts: list[str], completions: list[str]) -> np.ndarray:
        """The verifiable outcome: 1 where the stated answer is the sum, else 0; shape (N,)."""
        stated = [self.answer(c) for c in completions]
        return np.array([s is not None and f"answer {' '.join(s)} ." == work(p).answer
                         for p, s in zip(prompts, stated, strict=True)], dtype=np.float64)  # fmt: skip

    def _working(self, prompt: str, completion: str) -> list[bool]:
        """The labels of the steps alone."""
        rows = zip(self.step_labels(prompt, completion), self.segments(completion), strict=True)
        return [label for label, sentence in rows if self.is_step(sentence)]

    def _untidy(self, completion: str) -> int:
        """Sentences that are neither one of the first `COLUMNS` steps nor the answer at the end."""
        sentences = self.segments(completion)
        steps = min(sum(map(self.is_step, sentences)), COLUMNS)
        return len(sentences) - steps - (self.answer(completion) is not None)

    # -- gold ----------------------------------------------------------------------------------------------------

    def judge_one(self, prompt: str, completion: str) -> tuple[float, float, float]:
        share = sum(self._working(prompt, completion)[:COLUMNS]) / COLUMNS
        return self.correct([prompt], [completion])[0], 0.5 * share, -0.25 * self._untidy(completion)

    def symptoms(self, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
        """wrong answer (or none), wrong step, untidy, no working: any completion; lucky: right answers only."""
        right = self.correct(prompts, completions) > 0
        working = [self._working(p, c) for p, c in zip(prompts, completions, strict=True)]
        flawed = np.array([not all(labels) for labels in working], dtype=np.float64)
        bare = np.array([not labels for labels in working], dtype=np.float64)
        return {
            "wrong answer": 1.0 - right,
            "wrong step": flawed,
            "no working": bare,
            "untidy": np.array([self._untidy(c) > 0 for c in completions], dtype=np.float64),
            "lucky": np.where(right, np.maximum(flawed, bare), np.nan),
        }

    def ideal(self, prompt: str) -> str:
        """The completion with the highest gold there is."""
        right = work(prompt)
        return " ".join([*right.steps, right.answer])

    # -- corpus --------------------------------------------------------------------------------------------------

    def corpus(self, n: int, seed: int, **habits: float) -> list[tuple[str, str]]:
        """n documents (prompt, completion) by authors with HABITS, on sums of all kinds but none of the splits'."""
        habits = {**HABITS, **habits}
        rng = np.random.default_rng(seed)
        kept = {prompt for prompts in self._splits.values() for prompt in prompts}
        documents = []
        while len(documents) < n:
            a, b = rng.integers(100, 1000, 2)
            if (prompt := self._prompt(a, b)) not in kept:
                documents.append((prompt, self.write(int(a), int(b), rng, habits)))
        return documents

    def write(self, a: int, b: int, rng: np.random.Generator, habits: dict[str, float]) -> str:
        """A working of a + b by an author with these habits (all of `HABITS`)."""

        def chance(habit):
            return rng.random() < habits[habit]

        said = [str(rng.choice(CHATTER))] if chance("chatter") else []
        if chance("bare"):
            total = a + b + (0 if chance("guess_right") else int(rng.choice([-100, -10, -1, 1, 10, 100])))
            return " ".join([*said, _answer(total)])
        digits = [[n // 10**k % 10 for k in range(COLUMNS)] for n in (a, b)]
        carry = written = 0
        for k in range(COLUMNS):
            one, two = (row[(k + 1) % COLUMNS if chance("misread") else k] for row in digits)
            used = 0 if chance("forget") else carry
            total = one + two + used + int(rng.choice([-1, 1])) * chance("slip")
            total = min(max(total, 0), 19)
            if chance("misstate"):
                one = (one + int(rng.integers(1, 10))) % 10
            said.append(_step(one, two, used, total))
            carry, written = total // 10, written + total % 10 * 10**k
        written += carry * 10**COLUMNS
        if chance("miscopy"):
            written += int(rng.choice([-10, -1, 1, 10]))
        if not chance("unfinished"):
            said.append(_answer(max(written, 0)))
        return " ".join(said)

    def vocabulary(self) -> list[str]:
        """Every word of the world, sorted."""
        words = " ".join(CHATTER).split()
        return sorted({*map(str, range(10)), "+", "=", ".", "answer", *words})

    def pretty(self, completion: str) -> str:
        """For showing only: 7+5+0=12. 3+8+1=12. 4+1+1=06. Answer 622."""
        text = re.sub(r"(?<=[\d+=]) (?=[\d+=.])", "", " ".join(completion.split()))
        return re.sub(r"(^|\. )([a-z])", lambda m: m[1] + m[2].upper(), text.replace(" .", "."))
