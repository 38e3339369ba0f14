"""Surface biases: is the chosen side longer, shown first, or formatted differently, and in which words?"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from alignkit.checkup.pairs import POSITION_COLUMNS
from alignkit.intervals import clear_of, cluster_bootstrap, generator, wilson

WORD = r"(?u)\b\w+(?:'\w+)*\b"
LONGEST_WORD = 30  # characters; longer tokens are links or keys, not words
FEWEST_ANSWERS = 5  # a listed word occurs in at least as many answers: no single person's name or number
TOP_WORDS = 15
PRIOR_WORDS = 1000.0  # weight of the prior, in words; larger shrinks rare words more
BINS = 41

FORMATS = {
    "list": r"^[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]+\S",
    "heading": r"^#{1,6}[ \t]+\S",
    "code block": r"```",
    "bold": r"\*\*[^*\n]+\*\*",
    "question mark": r"\?",
    "exclamation mark": r"!",
    "digit": r"\d",
    "refusal phrase": r"\b(?:i'm sorry|i am sorry|i apologi[sz]e|as an ai|i won't|i will not"
    r"|i can't|i cannot|i can not|i'm (?:not able|unable)|i am (?:not able|unable)"
    r"|i'm not (?:comfortable|going to)|i am not (?:comfortable|going to))\b",
}


def word_counts(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Length of chosen and rejected in words (runs of characters between white space)."""
    chosen, rejected = (frame[side].map(lambda text: len(text.split())) for side in ("chosen", "rejected"))
    return chosen.to_numpy(), rejected.to_numpy()


def check_length(frame: pd.DataFrame, groups: np.ndarray, seed: int) -> dict:
    """How often and by how much the chosen side is the longer one, in words.

    The histogram of the difference is symmetric about 0; the 2% farthest out join its outer bins.
    """
    chosen, rejected = word_counts(frame)
    difference = chosen - rejected
    longer, shorter = int((difference > 0).sum()), int((difference < 0).sum())
    reach = max(10.0, float(np.quantile(np.abs(difference), 0.98)))
    counts, edges = np.histogram(np.clip(difference, -reach, reach), np.linspace(-reach, reach, BINS + 1))
    return {
        "longer": longer,
        "shorter": shorter,
        "equal": len(frame) - longer - shorter,
        "chosen_longer": wilson(longer, len(frame)),
        "chosen_longer_without_ties": wilson(longer, longer + shorter),
        "difference_words": cluster_bootstrap(difference, groups, generator(seed, "length")),
        "median_difference_words": float(np.median(difference)),
        "mean_words_chosen": round(float(chosen.mean()), 4),
        "mean_words_rejected": round(float(rejected.mean()), 4),
        "histogram": {"edges": [round(edge, 4) for edge in edges.tolist()], "counts": counts.tolist()},
    }


def check_position(frame: pd.DataFrame) -> dict:
    """Was the side shown first preferred more often than chance? Needs a column that says which it was."""
    column = next((name for name in POSITION_COLUMNS if frame[name].notna().any()), None)
    if column is None:
        return {"recorded": False, "why": "not recorded"}
    first = chosen_was_first(column, frame[column].dropna())
    if first is None:
        return {"recorded": False, "why": f"column {column!r} does not say first or second"}
    return {"recorded": True, "column": column, "chosen_first": wilson(int(first.sum()), len(first))}


def chosen_was_first(column: str, values: pd.Series) -> np.ndarray | None:
    """True where the chosen side was shown first; None where the column's values can't be told apart.

    `chosen_first` holds yes or no. The other columns hold the place of the chosen side: first/second, a/b,
    left/right, 0/1 or 1/2. A column of ones alone could mean either, and stays unread.
    """
    values = values.str.strip().str.lower().str.removesuffix(".0")
    found = set(values)
    if column == "chosen_first":
        codes = [({"true", "yes", "1"}, {"false", "no", "0"})]
    else:
        codes = [({"first", "a", "left"}, {"second", "b", "right"})]
        codes += [({"0"}, {"1"})] if "0" in found else [({"1"}, {"2"})] if "2" in found else []
    return next((values.isin(first).to_numpy() for first, second in codes if found <= first | second), None)


def check_format(frame: pd.DataFrame, groups: np.ndarray, seed: int) -> list[dict]:
    """Share of answers with each format mark among chosen and rejected, and the paired difference."""
    rows, n = [], len(frame)
    sides = [frame[side].map(_plain) for side in ("chosen", "rejected")]
    for name, pattern in FORMATS.items():
        has_mark = re.compile(pattern, re.MULTILINE | re.IGNORECASE).search
        chosen, rejected = (np.array([has_mark(text) is not None for text in side], dtype=int) for side in sides)
        difference = chosen - rejected
        interval = cluster_bootstrap(difference, groups, generator(seed, f"format {name}"))
        rows.append({
            "name": name,
            "chosen": wilson(chosen.sum(), n),
            "rejected": wilson(rejected.sum(), n),
            "difference": interval,
            "chosen_when_only_one_has_it": wilson((difference > 0).sum(), (difference != 0).sum()),
            "clear": clear_of(interval, 0.0),
        })  # fmt: skip
    return rows


def _plain(text: str) -> str:
    """In small letters, typographic apostrophes as plain ones."""
    return text.lower().replace("\u2019", "'")


def count_words(frame: pd.DataFrame) -> tuple[csr_matrix, csr_matrix, np.ndarray] | None:
    """Word counts of the chosen and the rejected answers, and the words; None where no word occurs twice."""
    counter = CountVectorizer(preprocessor=_plain, token_pattern=WORD, min_df=2, dtype=np.float64)
    try:
        counts = counter.fit_transform([*frame["chosen"], *frame["rejected"]])
    except ValueError:  # the vocabulary is empty
        return None
    return counts[: len(frame)], counts[len(frame) :], counter.get_feature_names_out()


def check_words(chosen: csr_matrix, rejected: csr_matrix, words: np.ndarray) -> dict:
    """The words that most set chosen from rejected answers apart, by z-score of the log-odds ratio.

    Each word counts once per answer, so that one long answer can't decide.
    """
    in_chosen, in_rejected = (np.asarray((side > 0).sum(axis=0)).ravel() for side in (chosen, rejected))
    z = log_odds_z(in_chosen, in_rejected)
    short = np.char.str_len(words.astype(str)) <= LONGEST_WORD
    listed = np.flatnonzero((in_chosen + in_rejected >= FEWEST_ANSWERS) & short)
    order = listed[np.argsort(-z[listed], kind="stable")]
    toward, away = order[z[order] > 0], order[::-1][z[order[::-1]] < 0]

    def entries(positions: np.ndarray) -> list[dict]:
        return [{"word": str(words[i]), "z": round(float(z[i]), 4), "chosen": int(in_chosen[i]),
                 "rejected": int(in_rejected[i])} for i in positions[:TOP_WORDS]]  # fmt: skip

    return {"counted": "answers containing the word", "chosen": entries(toward), "rejected": entries(away)}


def log_odds_z(chosen: np.ndarray, rejected: np.ndarray, prior_words: float = PRIOR_WORDS) -> np.ndarray:
    """z-scores of the log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi & Quinn 2008).

    The prior is each word's share in both sides together, worth `prior_words` words in all.
    """
    if len(chosen) < 2:  # the odds of the only word there is are infinite on both sides
        return np.zeros(len(chosen))
    prior = prior_words * (chosen + rejected) / max(1, (chosen + rejected).sum())
    one, other = chosen + prior, rejected + prior
    log_odds = [np.log(side) - np.log(side.sum() - side) for side in (one, other)]
    return (log_odds[0] - log_odds[1]) / np.sqrt(1 / one + 1 / other)
