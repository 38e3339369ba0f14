"""A check-up of a preference data set before anyone trains on it.

`diagnose` reads the data and measures; the Diagnosis it returns holds plain numbers and shows them as text,
JSON, HTML or figures. Texts of the data stay out of it, single words apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from alignkit.checkup import figures, structure, surface
from alignkit.checkup.advice import advise
from alignkit.checkup.findings import Report, concluded
from alignkit.checkup.labels import check_labels
from alignkit.checkup.pairs import PairSet, read_pairs
from alignkit.errors import DataError
from alignkit.intervals import as_number, as_percent, counted

SCHEMA = 2  # of the JSON; raised when a field changes its meaning or goes away
FIRST_ROWS = 5
SHOWN_WORDS = 8  # of a side, in the summary

METHOD = [
    "Brackets hold 95% intervals: Wilson's for shares; for differences and accuracies a bootstrap that resamples "
    "groups of pairs with a common prompt, which leaves out what another choice of folds would change. Words are runs "
    "of characters between white space, so lengths mean little in languages written without spaces.",
    "Learnability is the accuracy, on prompts not trained on, of a logistic regression without intercept on the "
    "difference of the two answers' TF-IDF word weights: a Bradley-Terry model with a linear score. It does not read "
    "the prompt, so it is a floor for what a reward model can reach. About equal length means within 10% or one word.",
    "Near duplicates are proposed by MinHash (Broder 1997) and confirmed by the Jaccard similarity of word triples. "
    "Words are ranked by the log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi & Quinn 2008), each "
    "counted once per answer. A difference between the sides is an association: it does not say what the annotators "
    "looked at.",
]


def diagnose(source: Any, limit: int | None = None, seed: int = 0, show_words: bool = True) -> Diagnosis:
    """Check a preference data set: whatever `read_pairs` takes, or a PairSet already read.

    `limit`: read that many rows at most. `seed`: of the bootstrap and of the hashing for near duplicates.
    `show_words`: show the words that set the sides apart in text, figures and HTML; the JSON holds them in any case.
    Raises DataError if there is nothing to check.
    """
    if seed < 0:
        raise DataError(f"seed is {seed}; it must be 0 or more.")
    pairs = source if isinstance(source, PairSet) else read_pairs(source, limit)
    # sorted by text, so that no number depends on the order of rows; `order` remembers it
    frame = pairs.frame.rename_axis("order").sort_values(structure.PAIR).reset_index()
    leaders = structure.near_duplicates(frame, seed)
    groups, grouped_by = structure.independent_groups(frame, leaders)
    counts = surface.count_words(frame)
    parts = {
        "prompts": structure.check_prompts(frame),
        "sides": structure.check_sides(frame),
        "duplicates": structure.check_duplicates(frame, leaders),
        "consistency": structure.check_consistency(frame),
    }
    rows = {finding: frame[mask].sort_values("order")["row"].tolist()
            for _, masks in parts.values() for finding, mask in masks.items()}  # fmt: skip
    report = {
        "report": "preference data check-up",
        "schema": SCHEMA,
        "source": {
            "name": pairs.source,
            "layouts": {str(layout): int(n) for layout, n in frame["layout"].value_counts().sort_index().items()},
            "notes": pairs.notes,
            "limit": limit,
            "seed": seed,
        },
        "rows": {
            "read": pairs.rows_read,
            "used": len(pairs),
            "rejected": pairs.rows_read - len(pairs),
            "reasons": [{"reason": reason, **_told(found)} for reason, found in pairs.rejected.items()],
            "damage": pairs.damage,
        },
        "turns": structure.check_turns(frame),
        **{name: part for name, (part, _) in parts.items()},
        "length": surface.check_length(frame, groups, seed),
        "position": surface.check_position(frame),
        "format": surface.check_format(frame, groups, seed),
        "labels": check_labels(frame, groups, grouped_by, seed),
        "words": surface.check_words(*counts) if counts else None,
        "flagged": {name: _told(found) for name, found in rows.items()},
    }
    return Diagnosis({**report, **concluded(advise(report))}, rows, show_words)


def _told(rows: list[int | str]) -> dict:
    return {"count": len(rows), "first_rows": rows[:FIRST_ROWS]}


@dataclass(repr=False)
class Diagnosis(Report):
    """What the check-up found. `rows` lists all row numbers of each finding."""

    rows: dict[str, list[int | str]] = field(default_factory=dict)
    show_words: bool = True

    def headline(self) -> str:
        return f"Check-up of {self.report['source']['name']}"

    def facts(self) -> dict[str, str]:
        rows, turns, prompts, found = (self.report[part] for part in ("rows", "turns", "prompts", "duplicates"))
        sides, loops, length = (self.report[part] for part in ("sides", "consistency", "length"))
        position, labels = self.report["position"], self.report["labels"]
        facts = {
            "rows": f"{rows['read']:,} read, {rows['used']:,} used, {rows['rejected']:,} rejected",
            "prompts": f"{found['prompts_distinct']:,} distinct, {found['prompts_repeated']:,} used more than once; "
            f"the same on both sides in {counted(prompts['same'], 'pair')}, parting before the last answer in "
            f"{prompts['diverge_before_last_answer']:,}, different in {prompts['different']:,}, only in a column of "
            f"their own in {prompts['not_checkable']:,}",
            "turns": f"median {turns['median']:g}, up to {turns['max']}; "
            f"{100 * turns['share_multi_turn']:.0f}% of pairs have more than one",
            "sides": f"{counted(sides['identical'], 'pair')} identical, "
            f"{counted(sides['empty_chosen'] + sides['empty_rejected'], 'side')} empty",
            "repetition": f"{counted(found['pairs_extra_copies'], 'exact copy', 'exact copies')}, "
            f"{counted(found['pairs_near_duplicates'], 'near duplicate')}; of {found['answers_distinct']:,} distinct "
            f"answers {found['answers_repeated']:,} are used more than once",
            "contradictions": f"{loops['contradictory_comparisons']:,} judged both ways (in "
            f"{counted(loops['pairs_in_contradictions'], 'pair')}), {counted(loops['loops_of_three_or_more'], 'loop')} "
            f"of three or more; {counted(loops['largest_loop'], 'answer')} in the largest",
            "length": f"chosen longer in {as_percent(length['chosen_longer'])} of pairs, "
            f"{as_percent(length['chosen_longer_without_ties'])} without ties; {length['mean_words_chosen']:.1f} words "
            f"(chosen), {length['mean_words_rejected']:.1f}, mean difference {as_number(length['difference_words'])}",
            "position": f"shown first and chosen in {as_percent(position['chosen_first'])} of pairs"
            if position["recorded"] else position["why"],
        }  # fmt: skip
        if not labels["measured"]:
            facts["learnability"] = f"not measured: {labels['why']}"
        else:
            equal, error = labels["accuracy_words_equal_length"], labels["expected_calibration_error"]
            facts |= {
                "learnability": f"{as_percent(labels['accuracy_words'])} held-out accuracy by words (linear "
                f"Bradley-Terry), {as_percent(labels['accuracy_length'])} by length alone, difference "
                f"{as_number(labels['words_minus_length'], times=100)} points; by words on pairs of about equal length "
                f"{as_percent(equal)}, n = {equal['n']:,}",
                "calibration": f"of the words' model: Brier score {labels['brier']:.3f} (a coin: 0.250), expected "
                f"calibration error {error:.3f}",
                "held out by": f"{labels['grouped_by']}, {labels['folds']} folds, {labels['groups']:,} groups",
            }
        if self.show_words and self.report["words"]:
            for side in ("chosen", "rejected"):
                words = ", ".join(entry["word"] for entry in self.report["words"][side][:SHOWN_WORDS])
                facts[f"words {side}"] = words or "none"
        if self.report["source"]["notes"]:
            facts["notes"] = "; ".join(self.report["source"]["notes"])
        return facts

    def sections(self) -> dict[str, list]:
        picture = self.plot()
        picture.set_label("; ".join(self.facts().values()))
        return {
            **super().sections(),
            "Figures": [picture],
            "Format": [self._format()],
            "Words that set the sides apart": self._words(),
            "Rows to look at": [*self.report["rows"]["damage"], *self.report["source"]["notes"], self._flagged()],
            "How this was measured": METHOD,
        }

    def plot(self) -> Figure:
        """Accuracy, length, format and turns at a glance."""
        return figures.overview(self.report)

    # The parts of the HTML

    def _format(self) -> pd.DataFrame | str:
        rows = {mark["name"]: (as_percent(mark["chosen"]), as_percent(mark["rejected"]), as_percent(only), only["n"])
                for mark in self.report["format"] if (only := mark["chosen_when_only_one_has_it"])["n"]}  # fmt: skip
        header = ["in chosen", "in rejected", "where only one side has it, it is the chosen one in", "pairs"]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=header).rename_axis("mark")
        return table if rows else "None of the marks sets sides apart."

    def _words(self) -> list:
        """More in chosen, then more in rejected; all but the first letter masked if they are not to be shown."""
        if self.report["words"] is None:
            return ["No word occurs in two answers."]
        tables = []
        for side in ("chosen", "rejected"):
            entries = self.report["words"][side]
            rows = [(f"{e['z']:.1f}", f"{e['chosen']:,}", f"{e['rejected']:,}") for e in entries]
            names = [e["word"] if self.show_words else e["word"][0] + "•" * (len(e["word"]) - 1) for e in entries]
            header = pd.Index(names, name=f"more in {side}")
            tables.append(pd.DataFrame(rows, header, ["z", "in chosen", "in rejected"]))
        return tables

    def _flagged(self) -> pd.DataFrame:
        named = {f"rejected: {reason['reason']}": reason for reason in self.report["rows"]["reasons"]}
        named |= {name.replace("_", " "): found for name, found in self.report["flagged"].items() if found["count"]}
        rows = {name: (f"{found['count']:,}", ", ".join(map(str, found["first_rows"])))
                for name, found in named.items()} or {"none": ("", "")}  # fmt: skip
        header = ["rows", "first row numbers"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=header).rename_axis("finding")
