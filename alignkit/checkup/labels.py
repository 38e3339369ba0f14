"""How learnable the labels are: a linear Bradley-Terry model on words, and a rule that sees only length.

Both are judged on prompts they were not fitted on. They read the two answers and not the prompt, so their
accuracy is a floor for what a reward model can reach, not a ceiling.
"""

from __future__ import annotations

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


def check_labels(frame: pd.DataFrame, groups: np.ndarray, grouped_by: str, seed: int) -> dict:
    """Out-of-fold accuracy and calibration of both baselines, over the pairs whose two sides differ."""
    differ = frame["chosen"].ne(frame["rejected"]).to_numpy()
    frame, groups = frame[differ], groups[differ]
    pairs, prompts = len(frame), len(np.unique(groups))
    counts, why = count_words(frame), None
    if pairs < FEWEST_PAIRS:
        why = f"{pairs} pairs with two different sides are too few (at least {FEWEST_PAIRS})"
    elif prompts < FEWEST_GROUPS:
        why = f"{prompts} independent prompts are too few to hold some out (at least {FEWEST_GROUPS})"
    elif counts is None:
        why = "no word occurs in two answers"
    if why:
        return {"measured": False, "why": why, "pairs": pairs}
    probability = out_of_fold(*counts[:2], groups)
    words = np.where(np.isclose(probability, 0.5, atol=1e-9), 0.5, probability > 0.5)
    length, equal = _right_by_length(frame, groups), about_equal_length(frame)
    rng = [generator(seed, f"accuracy {i}") for i in range(4)]
    return {
        "measured": True,
        "pairs": pairs,
        "groups": prompts,
        "folds": FOLDS,
        "grouped_by": grouped_by,
        "accuracy_words": cluster_bootstrap(words, groups, rng[0], share=True),
        "accuracy_length": cluster_bootstrap(length, groups, rng[1], share=True),
        "words_minus_length": cluster_bootstrap(words - length, groups, rng[2]),
        "accuracy_words_equal_length": cluster_bootstrap(words[equal], groups[equal], rng[3], share=True),
        "brier": round(float(np.mean((1 - probability) ** 2)), 6),  # 0.25 for a coin
        "expected_calibration_error": round(calibration_error(logit(np.clip(probability, 1e-12, 1 - 1e-12))), 6),
    }


def out_of_fold(chosen: csr_matrix, rejected: csr_matrix, groups: np.ndarray) -> np.ndarray:
    """P(chosen preferred) for each pair from a Bradley-Terry model fitted on the other groups' word counts.

    Logistic regression without intercept on feature differences is Bradley-Terry with a linear score (Bradley
    & Terry 1952): swapping the sides turns p into 1 - p. Every second pair is swapped, since the classifier
    needs both classes; the fit is the same whichever are. Features: TF-IDF, word weights from the training part alone.
    """
    probability = np.full(len(groups), np.nan)
    for train, test in GroupKFold(FOLDS).split(groups, groups=groups):
        weigh = TfidfTransformer(sublinear_tf=True).fit(vstack([chosen[train], rejected[train]]))
        known, unseen = (weigh.transform(chosen[i]) - weigh.transform(rejected[i]) for i in (train, test))
        sign = np.where(np.arange(len(train)) % 2, 1, -1)
        model = LogisticRegression(fit_intercept=False, solver="liblinear")
        model.fit(diags_array(sign.astype(float)) @ known, sign)
        probability[test] = model.predict_proba(unseen)[:, 1]
    return probability


def _right_by_length(frame: pd.DataFrame, groups: np.ndarray) -> np.ndarray:
    """1 where the rule "the longer one", or "the shorter one", is right, 0 where not, 0.5 at equal length.

    The other groups' mean difference says which rule: it has the sign of the weight that a Bradley-Terry model on
    length alone would learn.
    """
    chosen, rejected = word_counts(frame)
    margin = chosen - rejected
    for train, test in GroupKFold(FOLDS).split(groups, groups=groups):
        margin[test] = np.sign((chosen - rejected)[train].sum()) * (chosen - rejected)[test]
    return (1 + np.sign(margin)) / 2


def about_equal_length(frame: pd.DataFrame) -> np.ndarray:
    """True where length can't be what decides."""
    chosen, rejected = word_counts(frame)
    return np.abs(chosen - rejected) <= np.maximum(1, EQUAL_LENGTH * np.maximum(chosen, rejected))
