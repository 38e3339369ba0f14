"""How learnable the labels are: a linear Bradley-Terry model on words, and a rule that sees only length.

Both are judged on prompts they were not fitted on. They read the two answers and not the prompt, so their
accuracy is a floor for what a reward model can reach, not a ceiling.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, diags_array, vstack
from scipy.special import logit
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from alignkit.checkup.surface import count_words, word_counts
from alignkit.intervals import cluster_bootstrap, generator
from alignkit.rewards.scalar import calibration_error

FOLDS = 5
FEWEST_PAIRS, FEWEST_GROUPS = 50, 10
EQUAL_LENGTH = 0.1  # lengths within 10% of the longer one, and always within one word, are about equal

# from the positions of training and held-out pairs to the features of both
Features = Callable[[np.ndarray, np.ndarray], tuple]


def check_labels(frame: pd.DataFrame, groups: np.ndarray, grouped_by: str, seed: int) -> dict:
    """Out-of-fold accuracy and calibration of both baselines, over the pairs whose two sides differ."""
    differ = frame["chosen"].ne(frame["rejected"]).to_numpy()
    frame, groups = frame[differ], groups[differ]
    why = _not_measurable(len(frame), len(np.unique(groups)))
    counts = None if why else count_words(frame)
    if why or counts is None:
        return {"measured": False, "why": why or "no word occurs in two answers", "pairs": len(frame)}
    probability = out_of_fold(_word_differences(*counts[:2]), groups)
    by_length = out_of_fold(_length_differences(frame), groups)
    return {
        "measured": True,
        "pairs": len(frame),
        "groups": len(np.unique(groups)),
        "folds": FOLDS,
        "grouped_by": grouped_by,
        **_accuracies(frame, groups, probability, by_length, seed),
        "brier": round(float(np.mean((1 - probability) ** 2)), 6),  # 0.25 for a coin
        "expected_calibration_error": round(calibration_error(logit(np.clip(probability, 1e-12, 1 - 1e-12))), 6),
    }


def _not_measurable(pairs: int, groups: int) -> str | None:
    if pairs < FEWEST_PAIRS:
        return f"{pairs} pairs with two different sides are too few (at least {FEWEST_PAIRS})"
    if groups < FEWEST_GROUPS:
        return f"{groups} independent prompts are too few to hold some out (at least {FEWEST_GROUPS})"
    return None


def _word_differences(chosen: csr_matrix, rejected: csr_matrix) -> Features:
    """TF-IDF of chosen minus rejected, word weights from the training part alone."""

    def features(train: np.ndarray, test: np.ndarray) -> tuple[csr_matrix, csr_matrix]:
        weigh = TfidfTransformer(sublinear_tf=True)
        weigh.fit(vstack([chosen[train], rejected[train]]))
        known, unseen = (weigh.transform(chosen[i]) - weigh.transform(rejected[i]) for i in (train, test))
        return known, unseen

    return features


def _length_differences(frame: pd.DataFrame) -> Features:
    """The difference in length in words, scaled by its spread in the training part."""
    chosen, rejected = word_counts(frame)
    difference = (chosen - rejected).astype(float)[:, None]

    def features(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = difference[train].std() or 1.0
        return difference[train] / scale, difference[test] / scale

    return features


def out_of_fold(features: Features, groups: np.ndarray) -> np.ndarray:
    """P(chosen preferred) for each pair from a Bradley-Terry model fitted on the other groups' pairs.

    Logistic regression without intercept on feature differences is Bradley-Terry with a linear score (Bradley
    & Terry 1952): swapping the sides turns p into 1 - p. Every second pair is swapped, since the classifier
    needs both classes; the fit is the same whichever are.
    """
    probability = np.full(len(groups), np.nan)
    for train, test in GroupKFold(FOLDS).split(groups, groups=groups):
        known, unseen = features(train, test)
        sign = np.where(np.arange(len(train)) % 2, 1, -1)
        model = LogisticRegression(fit_intercept=False, solver="liblinear")
        model.fit(diags_array(sign.astype(float)) @ known, sign)
        probability[test] = model.predict_proba(unseen)[:, 1]
    return probability


def correct(probability: np.ndarray) -> np.ndarray:
    """1 where the chosen side is preferred, 0 where not, 0.5 where the model can't tell the sides apart."""
    return np.where(np.isclose(probability, 0.5, atol=1e-9), 0.5, probability > 0.5)


def _accuracies(
    frame: pd.DataFrame, groups: np.ndarray, by_words: np.ndarray, by_length: np.ndarray, seed: int
) -> dict:
    words, length, equal = correct(by_words), correct(by_length), about_equal_length(frame)
    rng = [generator(seed, f"accuracy {i}") for i in range(4)]
    return {
        "accuracy_words": cluster_bootstrap(words, groups, rng[0], share=True),
        "accuracy_length": cluster_bootstrap(length, groups, rng[1], share=True),
        "words_minus_length": cluster_bootstrap(words - length, groups, rng[2]),
        "accuracy_words_equal_length": cluster_bootstrap(words[equal], groups[equal], rng[3], share=True),
    }


def about_equal_length(frame: pd.DataFrame) -> np.ndarray:
    """True where length can't be what decides."""
    chosen, rejected = word_counts(frame)
    return np.abs(chosen - rejected) <= np.maximum(1, EQUAL_LENGTH * np.maximum(chosen, rejected))
