"""A Bradley-Terry reward on words alone: seconds on a CPU, no backbone, and every weight can be read.

What it reaches is the floor for a reward model that reads the prompt; what it weighs is what the labels reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.sparse import csr_matrix, hstack, vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from alignkit.errors import DataError
from alignkit.rewards.base import Judgement, Reward
from alignkit.rewards.data import check_pairs
from alignkit.rewards.scalar import temperature_of
from alignkit.rewards.texts import text_of
from alignkit.taxonomy import RewardCard

WORD = r"(?u)\b\w+(?:'\w+)*\b"
FOLDS, FEWEST = 5, 2  # of answers in which a word must occur


class BagOfWords(Reward):
    """r(y) = w . tf-idf(y) + v * log(1 + words(y)), fit to pairs; the prompt is not read.

    P(y1 > y2) = sigmoid(r(y1) - r(y2)) is logistic regression without intercept on the differences of the features
    (Bradley & Terry 1952), so swapping the sides turns p into 1 - p. Scores are log-odds, calibrated: divided by the
    temperature that fits gaps on prompts left out of the fit best. Unseen words count nothing.
    """

    def __init__(self, words: TfidfVectorizer, weights: np.ndarray, temperature: float):
        self.words, self.weights, self.temperature = words, weights, temperature
        self.card = RewardCard("bag of words", "data-driven", notes="reads the answer's words, not the prompt")

    @classmethod
    def fit(cls, pairs: Dataset) -> BagOfWords:
        """Fit to `prompt/chosen/rejected`: words and pairs of neighbors that occur in two answers or more. Nothing is
        random. DataError if no word occurs often enough, or the sides of no pair differ."""
        pairs = check_pairs(pairs)
        prompts = np.array([repr(prompt) for prompt in pairs["prompt"]])
        sides = [[text_of(said, "assistant") for said in pairs[side]] for side in ("chosen", "rejected")]
        return cls(*_weigh_words(*sides), _left_out_temperature(prompts, *sides))

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        if not completions:
            return Judgement(np.zeros(0))
        return Judgement(_features(self.words, completions) @ self.weights / self.temperature)

    def at_equal_length(self) -> BagOfWords:
        """The same reward with the weight of the length set to zero: what it would say were both sides equally long.
        (Length-controlled AlpacaEval does so with its regression: 2404.04475.)"""
        other = BagOfWords(self.words, np.append(self.weights[:-1], 0.0), self.temperature)
        other.card = replace(self.card, name=f"{self.card.name}, length out")
        return other

    def coefficients(self, most: int = 10) -> pd.DataFrame:
        """What the reward weighs, log-odds for one unit of each feature: so many of the most punished, then so many of
        the most rewarded. Words of the data show here; mind who reads them."""
        names = [*self.words.get_feature_names_out(), "(length: log of words)"]
        table = pd.DataFrame({"term": names, "weight": self.weights / self.temperature})
        table, place = table.sort_values("weight", kind="stable"), np.arange(len(table))
        return table[(place < most) | (place >= len(table) - most)].reset_index(drop=True)


def _plain(text: str) -> str:
    return text.lower().replace("\u2019", "'")


def _features(words: TfidfVectorizer, texts: Sequence[str]) -> csr_matrix:
    """tf-idf of each text and, last, the log of its length in words; shape (N, terms + 1)."""
    length = np.log1p([[len(text.split())] for text in texts])
    return hstack([words.transform(texts), csr_matrix(length)], format="csr")


def _weigh_words(chosen: Sequence[str], rejected: Sequence[str]) -> tuple[TfidfVectorizer, np.ndarray]:
    """The words, and the weights of their features."""
    words = TfidfVectorizer(preprocessor=_plain, token_pattern=WORD, ngram_range=(1, 2), min_df=FEWEST,
                            sublinear_tf=True)  # fmt: skip
    try:
        words.fit([*chosen, *rejected])
    except ValueError:  # scikit-learn's way to say that nothing is left
        raise DataError(f"BagOfWords: no word occurs in {FEWEST} of the {2 * len(chosen)} answers: give more "
                        "pairs") from None  # fmt: skip
    gap = _features(words, chosen) - _features(words, rejected)
    if not gap.count_nonzero():
        raise DataError(f"BagOfWords: the two sides of all {len(chosen)} pairs have the same words: there is no "
                        "preference to learn")  # fmt: skip
    # the classifier needs both classes: every pair is told from both sides, at half its weight
    model = LogisticRegression(fit_intercept=False, C=0.5, solver="liblinear", random_state=0)
    return words, model.fit(vstack([gap, -gap]), np.repeat([1, 0], len(chosen))).coef_[0]


def _left_out_temperature(prompts: np.ndarray, *sides: list[str]) -> float:
    """The temperature that fits the gaps on prompts left out best; 1 where there are too few prompts to leave any out.
    Between 0.05 and 20: where words carry nothing, or everything, there is no best one."""
    if len(set(prompts)) < 2 * FOLDS:
        return 1.0
    gaps = np.zeros(len(prompts))
    for train, held in GroupKFold(FOLDS).split(prompts, groups=prompts):
        try:
            words, weights = _weigh_words(*([side[i] for i in train] for side in sides))
        except DataError:  # too little is left
            return 1.0
        better, worse = (_features(words, [side[i] for i in held]) @ weights for side in sides)
        gaps[held] = better - worse
    return temperature_of(gaps, 0.05, 20)
