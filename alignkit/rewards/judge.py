"""Generative judges: language models that write a verdict, from which a score is read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from scipy.special import softmax
from torch import Tensor

from alignkit.errors import DataError, RewardError
from alignkit.policy import Policy
from alignkit.rewards.base import Judgement, Reward, unique_rows
from alignkit.rewards.comparator import PairReward, shown
from alignkit.rewards.data import check_columns, check_numbers, check_pairs, check_texts
from alignkit.rewards.model import RewardModel, read_rows
from alignkit.rewards.texts import read_faults, reader, sentences, write_faults
from alignkit.taxonomy import RewardCard

FINE = "fine"  # the note on a sentence without a fault


class WrittenReward(Reward):
    """What judges share: a policy of their own that reads a text and is trained to write single words into it.

    A *script* is a list of (text, written): words that are given, and words that the judge writes. Each piece is read
    by the tokenizer on its own, in the fit as in use. What was learned is all in `policy`: save that, and build the
    judge anew around `load_policy(folder)`.
    """

    train = RewardModel.train  # the loop all fits share

    def __init__(self, policy: Policy, name: str, source: str):
        self.policy, self.model, self.history = policy, policy.model, pd.DataFrame()
        self.card = RewardCard(name, "data-driven", "textual", source=source)

    def imitate(self, prompts: list[str], scripts: list[list[tuple[str, bool]]], seed: int, **options):
        """Maximize the likelihood of the written words (2408.15240, eq. 3), averaged over them. Returns self."""
        pieces = [[(token, flag) for text, flag in script for token in self._ids(text)] for script in scripts]
        batch = self.policy.encode(prompts, [[token for token, _ in row] for row in pieces])
        written = torch.zeros_like(batch.mask)
        for row, flags in enumerate(pieces):
            written[row, : len(flags)] = torch.tensor([flag for _, flag in flags])

        def loss(part: Tensor, whole: Tensor) -> tuple[Tensor, dict]:
            rows = batch.rows(part)
            mine = written[part, : rows.mask.shape[1]]
            return -(self.policy.token_logprobs(rows) * mine).sum() / written[whole].sum(), {}

        return self.train(loss, batch.attention.sum(1), seed=seed, **options)

    def next_word(self, prompts: list, said: list[list[str]], words: list[str]) -> tuple[list[int | None], np.ndarray]:
        """After the pieces `said`: which of `words` (by place) is likeliest of the whole vocabulary, None if another
        word is, and the logits of `words`, shape (N, words), float64."""
        anything, ids = self.policy.tokenizer.eos_token_id, [self._ids(word)[0] for word in words]
        tails = [[token for text in pieces for token in self._ids(text)] + [anything] for pieces in said]

        def read(rows, _) -> Tensor:
            last = self.policy.logits(rows)[torch.arange(len(rows)), rows.mask.sum(1) - 1].double()
            return torch.cat([last.argmax(-1, keepdim=True), last[:, ids]], 1).cpu()

        values = torch.stack(read_rows(self.policy.encode(prompts, tails), self.model, read)).numpy()
        place = {token: k for k, token in enumerate(ids)}
        return [place.get(int(token)) for token in values[:, 0]], values[:, 1:]

    def _ids(self, text: str) -> list[int]:
        return self.policy.completion_ids(text, ended=False)


class Judge(WrittenReward):
    """Reads an answer sentence by sentence, writes a note after each, then a grade (2408.11791, 2408.15240).

    The written words are turned into text: "sentence 2 is rude . grade 2 of 5 ."; these are the `critiques`. Notes are
    written greedily; the score is the expected grade under the probabilities of the grade's word. Nothing keeps the
    judge from writing other words. A verdict with such a word does not parse: it gets the middle grade and its text
    holds a "?" (see `parses`). Is their share above `max_unparsed` (of 20 completions or more), the call is a
    RewardError. With `names` None the judge writes the grade alone.
    """

    max_unparsed = 0.2

    def __init__(self, policy: Policy, names: list[str] | None, grades: int = 5):
        super().__init__(policy, "judge", "2408.11791")
        self.names, self.grades = names, grades

    @classmethod
    def fit(
        cls, verdicts: Dataset, backbone: Policy | str, grades: int = 5, context: int = 128, seed: int = 0, **options
    ) -> Judge:
        """Fit to `prompt/completion/rating`, whole numbers from 1 to `grades`, and to `critique` if there is one.

        Critiques as from `write_faults`; without that column the judge writes the grade alone. `context`: tokens for
        prompt, answer and verdict. Options as in `RewardModel.train`.
        """
        check_columns(verdicts, ["prompt", "completion", "rating"], "verdicts")
        check_texts(verdicts, "completion")
        rating = check_numbers(verdicts, "rating", 1, grades)
        if (rows := np.flatnonzero(rating != rating.round())).size:
            raise DataError(f"row {rows[0]}: 'rating' is {rating[rows[0]]:g}; a judge writes whole grades, so round it")
        texts = [sentences(completion) for completion in verdicts["completion"]]
        notes = _notes(verdicts["critique"], texts) if "critique" in verdicts.column_names else None
        names = sorted({note for row in notes for note in row} - {FINE}) if notes is not None else None
        words = [FINE, *(names or []), "grade", *map(str, range(1, grades + 1))]
        judge = cls(reader(backbone, words, context, seed), names, grades)
        scripts = [_script(said, notes[row] if notes is not None else [], str(int(rating[row])))
                   for row, said in enumerate(texts)]  # fmt: skip
        return judge.imitate(verdicts["prompt"][:], scripts, seed, **options)

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        written, scores = self.write(prompts, completions)
        return Judgement(scores, critiques=[self._text(notes, grade) for notes, grade in written])

    def write(self, prompts: list, completions: list[str]) -> tuple[list[tuple[list[str], str]], np.ndarray]:
        """The words of each verdict, one note a sentence and a grade ("?": no such word), and the expected grades."""
        which, back = unique_rows(prompts, completions)
        if not which:
            return [], np.zeros(0)
        asked, texts = [prompts[i] for i in which], [sentences(completions[i]) for i in which]
        notes = self._take_notes(asked, texts)
        said = [[*(text for text, _ in _script(t, n)), "grade"] for t, n in zip(texts, notes, strict=True)]
        grades = [str(grade) for grade in range(1, self.grades + 1)]
        best, logits = self.next_word(asked, said, grades)
        scores = softmax(logits, axis=1) @ np.arange(1, self.grades + 1)
        written = [([note or "?" for note in row], "?" if place is None else grades[place])
                   for row, place in zip(notes, best, strict=True)]  # fmt: skip
        good = np.array(["?" not in (*row, grade) for row, grade in written])
        scores[~good] = (1 + self.grades) / 2
        unparsed = float(np.mean(~good[back]))
        if unparsed > self.max_unparsed and len(back) >= 20:
            example = self._text(*written[np.flatnonzero(~good)[0]])
            raise RewardError(
                f"reward {self.card.name!r}: {unparsed:.0%} of {len(back)} verdicts do not parse, such as "
                f"{example!r:.80}; train longer, or raise max_unparsed to give them the middle grade"
            )
        return [written[k] for k in back], scores[back]

    def _take_notes(self, prompts: list, texts: list[list[str]]) -> list[list[str | None]]:
        """One note a sentence, each after reading the text so far and the notes before; None: no known word."""
        notes: list[list[str | None]] = [[] for _ in texts]
        if self.names is None:
            return notes
        words = [FINE, *self.names]
        for k in range(max(map(len, texts), default=0)):
            going = [i for i, text in enumerate(texts) if len(text) > k]
            said = [[text for text, _ in _script(texts[i][: k + 1], notes[i])] for i in going]
            best, _ = self.next_word([prompts[i] for i in going], said, words)
            for i, place in zip(going, best, strict=True):
                notes[i].append(None if place is None else words[place])
        return notes

    def _text(self, notes: list[str], grade: str) -> str:
        critique = "" if self.names is None else write_faults(["" if note == FINE else note for note in notes]) + " "
        return f"{critique}grade {grade} of {self.grades} ."


def _script(texts: list[str], notes: list[str | None], grade: str | None = None) -> list[tuple[str, bool]]:
    """Sentences and notes in turn (a sentence without a note goes without), then "grade" and the grade if given."""
    noted = [piece for text, note in zip(texts, notes, strict=False) for piece in ((text, False), (note or FINE, True))]
    rest = [(text, False) for text in texts[len(notes) :]]
    return [*noted, *rest, *([("grade", False), (grade, True)] if grade else [])]


def _notes(critiques: list[str], texts: list[list[str]]) -> list[list[str]]:
    """One note for each sentence from a critique such as "sentence 2 is rude ."."""
    notes = []
    for row, (critique, said) in enumerate(zip(critiques, texts, strict=True)):
        faults = read_faults(critique) if isinstance(critique, str) else None
        if faults is None or any(not 1 <= place <= len(said) for place, _ in faults):
            raise DataError(
                f"row {row}: can't read the critique {critique!r:.60} of {len(said)} sentences; write it as "
                "'sentence 2 is rude .' (rewards.write_faults)"
            )
        named = dict(faults)
        notes.append([named.get(place, FINE) for place in range(1, len(said) + 1)])
    return notes


class PairJudge(WrittenReward, PairReward):
    """A judge that writes about both answers first, then reads what it wrote and says which is better (2410.12832).

    It is shown "first fine rude grade 2 second fine grade 4 better" and writes "first" or "second"; the logit is the
    difference of their log-probabilities. Like judges at large (2306.05685), it may heed the order.
    """

    def __init__(self, policy: Policy, judge: Judge, seed: int = 0):
        super().__init__(policy, "pair judge", "2410.12832")
        self.alone, self.seed = judge, seed

    @classmethod
    def fit(cls, pairs: Dataset, judge: Judge, seed: int = 0, keep_order: bool = False, **options) -> PairJudge:
        """Fit to `prompt/chosen/rejected`, from the weights of `judge`; arguments as for `Comparator.fit`."""
        pairs = check_pairs(pairs)
        prompts, first, second, chose_first = shown(pairs, seed, keep_order)
        pair_judge = cls(reader(judge.policy, ["first", "second", "better"], seed=seed), judge, seed)
        said = pair_judge.readings(prompts, first, second)
        scripts = [[(text, False), ("first" if took else "second", True)]
                   for text, took in zip(said, chose_first, strict=True)]  # fmt: skip
        return pair_judge.imitate(prompts, scripts, seed, **options)

    def readings(self, prompts: list, first: list[str], second: list[str]) -> list[str]:
        """What the judge reads after the prompt: its own verdicts, notes and grade without the sentences."""
        written, _ = self.alone.write([*prompts, *prompts], [*first, *second])
        said = [" ".join([*notes, "grade", grade]) for notes, grade in written]
        return [f"first {a} second {b} better" for a, b in zip(said[: len(prompts)], said[len(prompts) :], strict=True)]

    def first_better(self, prompts: list, first: list[str], second: list[str]) -> np.ndarray:
        if not prompts:
            return np.zeros(0)
        said = [[text] for text in self.readings(prompts, first, second)]
        logits = self.next_word(prompts, said, ["first", "second"])[1]
        return logits[:, 0] - logits[:, 1]
