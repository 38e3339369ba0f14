"""A preference data set as a case: which rows to mend, which to hold out, and which reward the rest speaks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow
from datasets import Dataset

from alignkit.checkup.diagnosis import Diagnosis
from alignkit.checkup.labels import about_equal_length
from alignkit.checkup.pairs import ANSWER_MARK, PairSet, as_text
from alignkit.checkup.surface import word_counts
from alignkit.errors import AlignkitError, DataError
from alignkit.intervals import Estimate, clear_of, cluster_bootstrap, generator
from alignkit.policy import Policy
from alignkit.rewards.base import Reward
from alignkit.rewards.scalar import calibration_error, score_pairs

#: Findings whose rows teach no preference, or one that another row takes back. Near copies stay: they are real answers.
UNUSABLE = ("exact_duplicates", "identical_sides", "empty_side", "contradictory", "not_shared_prompt")
FEWEST = 20  # pairs below which no accuracy is given


def mend(pairs: PairSet, diagnosis: Diagnosis) -> tuple[Dataset, dict[str, int]]:
    """The pairs without the rows that the check-up found unusable, and how many rows each finding names.

    Columns `prompt/chosen/rejected`, `row` (text), `turns`, and whatever else the data hold. Pairs that came as
    messages are messages. A prompt cut from a transcript gets its closing "Assistant:" back, so that a policy can go on
    from there. DataError if nothing would be left.
    """
    bad = {row for name in UNUSABLE for row in diagnosis.rows[name]}
    kept = pairs.frame[~pairs.frame["row"].isin(bad)]
    if not len(kept):
        raise DataError(f"mend: the check-up finds all {len(pairs)} rows of {pairs.source} unusable; see its report")
    texts = kept["prompt"].where(kept["layout"].ne("dialogue"), kept["prompt"] + ANSWER_MARK)
    sides = kept["messages"] if all(kept["messages"]) else zip(texts, kept["chosen"], kept["rejected"], strict=True)
    columns = dict(zip(("prompt", "chosen", "rejected"), map(list, zip(*sides, strict=True)), strict=True))
    columns |= {"turns": kept["turns"].tolist(), "row": [str(row) for row in kept["row"]]}
    others = [pairs.columns[i] for i in kept.index]
    for name in dict.fromkeys(name for row in others for name in row):
        if name not in columns:
            columns[name] = _one_type([row.get(name) for row in others])
    return Dataset.from_dict(columns), {name: len(diagnosis.rows[name]) for name in UNUSABLE}


def _one_type(values: list) -> list:
    """The values, or, where Arrow finds no type for all of them, each as JSON."""
    try:
        Dataset.from_dict({"values": values})
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
        return [json.dumps(value, default=str) for value in values]
    return values


def fitting(pairs: Dataset, policy: Policy, max_new_tokens: int = 0) -> Dataset:
    """The pairs that fit into the policy's context on both sides, with room for an answer of `max_new_tokens`."""
    rows = []
    for i, row in enumerate(pairs):
        (head, *_), tails = policy.tokenize([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        if len(head) + max(max_new_tokens, *map(len, tails)) <= policy.context:
            rows.append(i)
    if not rows:
        raise DataError(f"no pair fits into the context of {policy.name!r} ({policy.context} tokens); take a model "
                        "with a longer one")  # fmt: skip
    return pairs.select(rows)


def split_by_prompt(pairs: Dataset, share: float = 0.25, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(rest, held out): about `share` of the pairs held out, no prompt on both sides (case and spacing make no new
    prompt). AlignkitError if there are too few prompts."""
    if not 0 < share < 1:
        raise AlignkitError(f"split_by_prompt: share must be between 0 and 1, not {share}")
    prompts = [" ".join(as_text(prompt).lower().split()) for prompt in pairs["prompt"]]
    known, group = np.unique(prompts, return_inverse=True)
    order = np.random.default_rng([seed, 16]).permutation(len(known))
    before = np.cumsum(np.bincount(group)[order]) - np.bincount(group)[order]
    chosen = np.isin(group, order[before < share * len(group)])
    if chosen.all() or not chosen.any():
        raise AlignkitError(f"split_by_prompt: {len(known)} prompts can't be split with a share of {share}")
    return pairs.select(np.flatnonzero(~chosen)), pairs.select(np.flatnonzero(chosen))


@dataclass
class HeldOut:
    """How rewards do on the same held-out pairs. `table`: one row a reward (shares as estimates with intervals);
    `right`: 1, 0 or 0.5 for each pair, by reward; `prompts`: whose pairs belong together."""

    table: pd.DataFrame
    right: dict[str, np.ndarray]
    prompts: list[str]

    def shown(self) -> pd.DataFrame:
        """The table in words."""
        return self.table.map(in_words)

    def against(self, one: str, other: str) -> Estimate:
        """Accuracy of `one` minus that of `other` on the same pairs, with an interval over prompts."""
        gap = self.right[one] - self.right[other]
        return cluster_bootstrap(gap, np.array(self.prompts), generator(0, f"{one} {other}"))

    def choose(self, among: Sequence[str] | None = None) -> tuple[str, str]:
        """The first of the rewards (give the simplest first; `among`: only these) that is above a coin and that the
        most accurate one does not clearly beat; and why. AlignkitError if none is: there is nothing to prescribe."""
        names = list(among or self.right)
        best = max(names, key=lambda name: self.right[name].mean())
        for name in names:
            number, gap = self.table.loc[name, "accuracy"], self.against(best, name)
            if not clear_of(number, 0.5) or number["value"] < 0.5 or (name != best and clear_of(gap, 0.0)):
                continue
            beaten = f"; {best} is ahead by {in_words(gap, signed=True)}, which may be chance" * (name != best)
            return name, f"right on {in_words(number)} of held-out pairs{beaten}"
        raise AlignkitError("none of these rewards is clearly above a coin on the held-out pairs: don't treat with "
                            "any; have a sample judged again")  # fmt: skip


def held_out(rewards: Mapping[str, Reward], pairs: Dataset, seed: int = 0) -> HeldOut:
    """Accuracy of each reward, with 95 % intervals over prompts:

    - *accuracy*: the preferred side scores higher (a tie counts one half); *equal length*: on pairs of about equal
      length only; *length out*: of what is left of the gap after least squares on the difference in length (in words
      and its log);
    - *one turn*, *more turns*: by the user's turns, where the data have a column `turns` that varies;
    - *calibration error*: of sigmoid(gap), for learned rewards.
    """
    prompts = np.array([as_text(prompt) for prompt in pairs["prompt"]])
    frame = pd.DataFrame({side: [as_text(text) for text in pairs[side]] for side in ("chosen", "rejected")})
    if "turns" in pairs.column_names:
        frame["turns"] = pairs["turns"][:]
    masks = {"accuracy": np.ones(len(pairs), bool), "equal length": about_equal_length(frame)}
    if "turns" in frame and frame["turns"].nunique() > 1:
        masks |= {"one turn": frame["turns"].le(1).to_numpy(), "more turns": frame["turns"].gt(1).to_numpy()}
    rows, right = {}, {}
    for name, reward in rewards.items():
        gap = np.subtract(*score_pairs(reward, pairs))
        right[name] = _right(gap)
        judged = {column: (right[name][mask], prompts[mask]) for column, mask in masks.items()}
        judged["length out"] = _right(_length_out(gap, frame)), prompts
        rows[name] = {column: Estimate(None, n=len(hits)) if len(hits) < FEWEST else
                      cluster_bootstrap(hits, groups, generator(seed, column), share=True)
                      for column, (hits, groups) in judged.items()}  # fmt: skip
        learned = reward.card.construction_basis != "rule-based"
        rows[name]["calibration error"] = calibration_error(gap) if learned else None
    return HeldOut(pd.DataFrame.from_dict(rows, orient="index"), right, prompts.tolist())


def learning_curve(
    fit: Callable[[Dataset], Reward], pairs: Dataset, held: Dataset, sizes: Sequence[int], seed: int = 0
) -> pd.DataFrame:
    """Held-out accuracy of `fit(the first n of the shuffled pairs)` for each n: columns pairs, accuracy, low, high."""
    order = np.random.default_rng([seed, 17]).permutation(len(pairs))
    rows = []
    for n in sizes:
        number = held_out({"fit": fit(pairs.select(order[:n]))}, held, seed).table.loc["fit", "accuracy"]
        rows.append((min(n, len(pairs)), number["value"], number["low"], number["high"]))
    return pd.DataFrame(rows, columns=["pairs", "accuracy", "low", "high"])


def in_words(value: object, signed: bool = False) -> str:
    """An estimate as '62 % [58, 66]' ('+3 points [-1, +7]' if signed), a number to three digits, the rest as it is."""
    if isinstance(value, Mapping) and "value" in value:
        form, unit = ("{:+.1f}", " points") if signed else ("{:.0f}", " %")
        shown = {name: form.format(100 * value[name]) for name in ("value", "low", "high") if value[name] is not None}
        interval = f" [{shown['low']}, {shown['high']}]" if "low" in shown else ""
        return shown["value"] + unit + interval if shown else "too few pairs"
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    if isinstance(value, float | np.floating):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int | np.integer) and not isinstance(value, bool) else str(value)


def _right(gap: np.ndarray) -> np.ndarray:
    return np.where(np.isclose(gap, 0, atol=1e-9), 0.5, gap > 0).astype(float)


def _length_out(gap: np.ndarray, frame: pd.DataFrame) -> np.ndarray:
    """The gap without what the difference in length explains of it (least squares through the origin)."""
    chosen, rejected = (count.astype(float) for count in word_counts(frame))
    length = np.stack([chosen - rejected, np.log1p(chosen) - np.log1p(rejected)], axis=1)
    rest = gap - length @ np.linalg.lstsq(length, gap, rcond=None)[0]
    return np.where(np.abs(rest) < 1e-9 * max(1.0, np.abs(gap).max()), 0.0, rest)
