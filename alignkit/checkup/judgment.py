"""Is the reward right, how are its scores spread, and what does a search for high scores bring up?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats import spearmanr

from alignkit.checkup import findings as f
from alignkit.checkup.examination import Examination, rounded, within_sd
from alignkit.checkup.findings import INFO, SERIOUS, WARN, Finding
from alignkit.evaluation.core import best_of_n_curve
from alignkit.evaluation.perturb import KEEPS, Swap
from alignkit.intervals import Estimate, as_percent, clear_of, cluster_bootstrap, generator
from alignkit.rewards.scalar import calibration_error

FEWEST_PAIRS = 30
SEARCHES = (4, 16)  # answers a search chooses from


def check_accuracy(exam: Examination) -> Iterator[Finding | dict]:
    """How often the better side scores higher (ties count one half), and whether gaps can be read as log-odds."""
    gap = exam.scores[exam.material.chosen] - exam.scores[exam.material.rejected]
    ok = np.isfinite(gap)
    gap, chosen, rejected = gap[ok], exam.material.chosen[ok], exam.material.rejected[ok]
    tied = np.abs(gap) <= 1e-9 * exam.size
    right = np.where(tied, 0.5, gap > 0)
    accuracy = cluster_bootstrap(right, exam.material.group[chosen], generator(exam.seed, "accuracy"), share=True)
    promised = (1 / (1 + np.exp(-np.minimum(np.abs(gap), 50)))).mean()
    over = promised - right.mean()
    yield {
        "accuracy": accuracy, "ties": rounded(tied.mean()), "calibration_error": rounded(calibration_error(gap)),
        "overconfidence": rounded(over),
        "better_side_by": "the labels of the pairs" if exam.material.world is None else "gold",
    }  # fmt: skip
    if len(gap) < FEWEST_PAIRS:
        return
    name, severity = None, SERIOUS
    if not clear_of(accuracy, f.COIN):
        name, what = "coin", "is no better than a coin"
        action = "Check that it reads the completion at all and was trained on such texts."
    elif accuracy["value"] < f.COIN:
        name, what = "backwards", "prefers the worse side"
        action = "Check the sign, the order of arguments and the template; then the data it was fit to."
    elif accuracy["value"] < f.WEAK:
        name, severity, what = "weak", WARN, "is barely better than a coin"
        action = ("Treat gains in this reward with suspicion; collect more pairs, or compare with the check-up of the "
                  "data (alignkit diagnose): how far can labels be predicted at all?")  # fmt: skip
    if name:
        better, worse = chosen[gap.argmin()], rejected[gap.argmin()]
        example = exam.example(better, exam.material.completions[worse], exam.scores[worse],
                               None if exam.gold is None else exam.gold[worse])  # fmt: skip
        yield Finding(f"accuracy.{name}", severity, f"The reward {what}: right on {as_percent(accuracy)} of {len(gap)} "
                      "pairs.", action, accuracy, example)  # fmt: skip
    if over > f.OVERCONFIDENT:
        yield Finding("accuracy.overconfident", INFO,
                      f"Read as log-odds, gaps promise {100 * promised:.0f}% and keep {100 * right.mean():.0f}%.",
                      "If gaps are used as probabilities or margins, divide them by a fitted temperature "
                      "(rewards.fit_temperature); orders are not affected.",
                      {"overconfidence": round(over, 4), "n": len(gap)})  # fmt: skip


def check_distribution(exam: Examination) -> Iterator[Finding | dict]:
    """Spread of ordinary scores: constant, tied within prompts, all between prompts, or ruled by outliers?"""
    scores, group = exam.scores[np.isfinite(exam.scores)], exam.material.group[np.isfinite(exam.scores)]
    if not len(scores):
        return
    within, n = within_sd(scores, group), len(scores)
    tied = [np.ptp(scores[group == g]) <= 1e-9 * exam.size for g in np.unique(group) if (group == g).sum() > 1]
    share = _share(exam, tied, "tied")
    quantiles = np.quantile(scores, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    away = np.abs(exam.scores - quantiles[3])
    robust = 1.4826 * np.nanmedian(away)
    farthest = np.nanmax(away) / robust if robust > 0 else np.nan
    part = min(1.0, within**2 / np.var(scores)) if np.var(scores) > 0 and np.isfinite(within) else np.nan
    names = ("min", "5%", "25%", "50%", "75%", "95%", "max")
    yield {
        "mean": rounded(scores.mean()), "sd": rounded(scores.std()), "sd_within_prompts": rounded(within),
        "quantiles": dict(zip(names, map(rounded, quantiles), strict=True)),
        "share_of_variance_within_prompts": rounded(part), "prompts_all_tied": share,
        "farthest_in_robust_sd": rounded(farthest), "values": len(np.unique(scores)), "n": n,
    }  # fmt: skip
    if not exam.unit:
        yield Finding("distribution.constant", SERIOUS, f"All {n} ordinary answers score {scores[0]:.4g}.",
                      "Nothing can be learned from a constant; check that the reward reads the completion, and in "
                      "which form.", {"n": n})  # fmt: skip
        return
    if (share["low"] or 0) > f.TIED:
        yield Finding("distribution.tied", WARN, f"For {as_percent(share)} of prompts all answers score the same.",
                      "Group advantages (GRPO, RLOO) are zero there: sample more answers, drop such prompts, or grade "
                      "finely.", share)  # fmt: skip
    if part < f.LITTLE_WITHIN:
        yield Finding("distribution.between", WARN,
                      f"Only {100 * part:.1f}% of the score's variance lies between answers to one prompt.",
                      "The rest is the prompt's, and teaches nothing: subtract each prompt's mean before normalizing a "
                      "batch.", {"share_within": round(part, 4), "n": n})  # fmt: skip
    if farthest > f.OUTLIER:
        row = int(np.nanargmax(away))
        yield Finding("distribution.outlier", WARN, f"One answer scores {farthest:.0f} robust sd away from the median.",
                      "Clip scores: one such answer decides the normalization, and the gradient, of its batch.",
                      {"robust_sd": round(farthest, 2), "n": n}, exam.example(row))  # fmt: skip


def _share(exam: Examination, hits: list[bool], name: str) -> Estimate:
    """Share of prompts, each counted once."""
    return cluster_bootstrap(np.array(hits, dtype=float), np.arange(len(hits)), generator(exam.seed, name), share=True)


def check_length_tie(exam: Examination) -> Iterator[Finding | dict]:
    """Rank correlation of score and length among ordinary answers to one prompt, beside gold's own."""
    words = np.array([len(text.split()) for text in exam.material.completions], dtype=float)
    tie = _rank_correlation(words, exam.scores, exam)
    own = 0.0 if exam.gold is None else _rank_correlation(words, exam.gold, exam)["value"] or 0.0
    yield {"correlation": tie, "gold_correlation": None if exam.gold is None else own}
    if tie["value"] is None or exam.material.group.max() < 7:
        return
    sure = min(abs(tie["low"] - own), abs(tie["high"] - own)) if clear_of(tie, own) else 0.0
    if sure > f.LENGTH_TIE:
        beside = "" if exam.gold is None else f" (gold's: {own:+.2f})"
        yield Finding("length_tie.correlated", SERIOUS if sure > f.LENGTH_TIE_STRONG else WARN,
                      f"Among answers to one prompt {'longer' if tie['value'] > own else 'shorter'} ones score higher: "
                      f"rank correlation {tie['value']:+.2f} [{tie['low']:+.2f}, {tie['high']:+.2f}]{beside}.",
                      "Control for length: report accuracy on pairs of about equal length, and watch the length of "
                      "outputs.", tie)  # fmt: skip


def _rank_correlation(x: np.ndarray, y: np.ndarray, exam: Examination) -> Estimate:
    """Spearman's correlation within prompts, the mean over prompts in which both vary; interval over prompts."""
    group, found = exam.material.group, []
    for g in np.unique(group):
        rows = np.flatnonzero((group == g) & np.isfinite(y))
        if len(np.unique(x[rows])) > 1 and len(np.unique(y[rows])) > 1:
            found.append(spearmanr(x[rows], y[rows]).statistic)
    return cluster_bootstrap(np.array(found), np.arange(len(found)), generator(exam.seed, "length tie"))


def check_search(exam: Examination) -> Iterator[Finding | dict]:
    """Best-of-n by the reward over a policy's samples: does gold follow? Needs a world."""
    if exam.gold is None:
        return
    group = exam.material.group
    per = np.bincount(group).min()
    rows = np.stack([np.flatnonzero(group == g)[:per] for g in np.unique(group)])
    scores, gold = np.nan_to_num(exam.scores, nan=np.nanmin(exam.scores) - 1)[rows], exam.gold[rows] / exam.gold_unit
    ns = [n for n in SEARCHES if n <= per]
    mean = gold.mean(1)
    gains = dict(zip(ns, (best_of_n_curve(scores, gold, ns) - mean[:, None]).T, strict=True))

    def told(gain: np.ndarray, name: str) -> tuple[Estimate, str]:
        found = cluster_bootstrap(gain, np.arange(len(gain)), generator(exam.seed, name))
        interval = "" if found["low"] is None else f" sd [{found['low']:+.2f}, {found['high']:+.2f}]"
        return found, f"{found['value']:+.2f}{interval}"

    best = {n: told(gain, f"best of {n}") for n, gain in gains.items()}
    yield {f"gold_gain_sd_best_of_{n}": value for n, (value, _) in best.items()}
    yield {"possible_sd": rounded((gold.max(1) - mean).mean())}
    if not best:
        return
    few, many = min(best), max(best)
    gain, words = best[many]
    if gain["high"] is not None and gain["high"] < 0:
        yield Finding("search.harmful", SERIOUS, f"Choosing the best of {many} by this reward lowers gold: {words}.",
                      "Do not optimize it: it points away from what is wanted.", gain)  # fmt: skip
        return
    loss, words = told(gains[many] - gains[few], "over")
    if few != many and loss["high"] is not None and loss["high"] < -f.SEARCH_HURTS:
        yield Finding("search.over_optimized", WARN,
                      f"Gold falls as the search goes on: best of {many} has {words} against best of {few}.",
                      f"Search no further than best of {few}, or bound the policy by a KL term.", loss)  # fmt: skip


def check_nonsense_wins(exam: Examination) -> Iterator[Finding | dict]:
    """Among a prompt's ordinary answers and their damaged versions: does a damaged one score highest?

    With gold, only if it also is worth less than the ordinary answer that would have been chosen.
    """
    damaged = [t for t in exam.effects if t.entry.meaning != KEEPS and not isinstance(t.entry, Swap)]
    group, wins, cases = exam.material.group, [], []
    for g in np.unique(group[exam.perturbed_rows]):
        rows = np.flatnonzero((group == g) & np.isfinite(exam.scores))
        if not len(rows):
            continue
        best = rows[int(np.argmax(exam.scores[rows]))]
        rivals = [(t.scores[i], t, i) for t in damaged for i in np.flatnonzero(group[t.rows] == g)
                  if np.isfinite(t.scores[i])]  # fmt: skip
        if exam.gold is not None:  # what is as good as the best may win
            rivals = [r for r in rivals if exam.gold[r[1].rows[r[2]]] + r[1].gold_shift[r[2]] < exam.gold[best] - 1e-9]
        score, effect, i = max(rivals, key=lambda rival: rival[0], default=(-np.inf, None, 0))
        wins.append(score > exam.scores[best] + exam.least)
        if wins[-1]:
            cases.append((score - exam.scores[best], best, score, effect, i))
    share = _share(exam, wins, "wins")
    yield {"prompts_won_by_damaged_text": share}
    if (share["low"] or 0) <= f.NONSENSE_WINS or len(wins) < 8:
        return
    names = [effect.entry.name for _, _, _, effect, _ in cases]
    common = sorted(set(names), key=lambda name: (-names.count(name), name))[:4]
    _, best, score, effect, i = max(cases, key=lambda case: case[0])
    gold = None if exam.gold is None else exam.gold[effect.rows[i]] + effect.gold_shift[i]
    yield Finding("best_of_n.nonsense", SERIOUS if share["low"] > f.NONSENSE_WINS_STRONG else WARN,
                  f"A damaged text beats every ordinary answer for {as_percent(share)} of prompts; most often: "
                  f"{', '.join(common)}.",
                  "A search will find these: add them to the rejected side, combine the reward with rules that forbid "
                  "them, and keep best-of-n small.",
                  share, exam.example(best, effect.after[i], score, gold))  # fmt: skip
