"""A check-up of a preference data set before anyone trains on it.

`diagnose` reads the data and measures; the Diagnosis it returns holds plain numbers and shows them as text,
JSON, HTML or figures. Texts of the data stay out of it, single words apart, unless examples are asked for.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from alignkit.checkup import figures
from alignkit.checkup.advice import advise
from alignkit.checkup.findings import Block, Report, Section, concluded, cut
from alignkit.checkup.labels import check_labels
from alignkit.checkup.pairs import PairSet, read_pairs
from alignkit.checkup.structure import (
    PAIR,
    Masks,
    check_consistency,
    check_duplicates,
    check_prompts,
    check_sides,
    check_turns,
    independent_groups,
    near_duplicates,
)
from alignkit.checkup.surface import check_format, check_length, check_position, check_words, count_words
from alignkit.errors import DataError
from alignkit.intervals import as_number, as_percent, as_points, counted

SCHEMA = 1  # of the JSON; raised when a field changes its meaning or goes away
EXAMPLE_CHARACTERS = 120
FIRST_ROWS = 5
SHOWN_WORDS = 8  # of a side, in the summary

METHOD = (
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
)


def diagnose(
    source: Any,
    limit: int | None = None,
    seed: int = 0,
    split: str | None = None,
    examples: int = 0,
    show_words: bool = True,
    show_progress: bool = False,
) -> Diagnosis:
    """Check a preference data set: whatever `read_pairs` takes, or a PairSet already read.

    `limit`: read that many rows at most. `seed`: of the bootstrap and of the hashing for near duplicates.
    `examples`: show up to that many shortened rows per finding (none by default). `show_words`: show the
    words that set the sides apart in text, figures and HTML; the JSON holds them in any case. Raises
    DataError if there is nothing to check.
    """
    if seed < 0:
        raise DataError(f"seed is {seed}; it must be 0 or more.")
    pairs = source if isinstance(source, PairSet) else read_pairs(source, limit, split, show_progress)
    # sorted by text, so that no number depends on the order of rows; `order` remembers it
    frame = pairs.frame.assign(order=np.arange(len(pairs.frame))).sort_values([*PAIR, "order"]).reset_index(drop=True)
    leaders = near_duplicates(frame, seed)
    groups, grouped_by = independent_groups(frame, leaders)
    counts = count_words(frame)
    singled_out = {
        "prompts": check_prompts(frame),
        "sides": check_sides(frame),
        "duplicates": check_duplicates(frame, leaders),
        "consistency": check_consistency(frame),
    }
    masks = {finding: mask for _, found in singled_out.values() for finding, mask in found.items()}
    rows = {finding: frame[mask].sort_values("order")["row"].tolist() for finding, mask in masks.items()}
    report = {
        "report": "preference data check-up",
        "schema": SCHEMA,
        "source": {
            "name": pairs.source,
            "layouts": {str(layout): int(n) for layout, n in frame["layout"].value_counts().sort_index().items()},
            "notes": pairs.notes,
            "limit": limit,
            "split": split,
            "seed": seed,
        },
        "rows": {
            "read": pairs.rows_read,
            "used": len(pairs),
            "rejected": pairs.rows_rejected,
            "reasons": [{"reason": reason, **vars(found)} for reason, found in pairs.rejected.items()],
            "damage": pairs.damage,
        },
        "turns": check_turns(frame),
        **{name: part for name, (part, _) in singled_out.items()},
        "length": check_length(frame, groups, seed),
        "position": check_position(frame),
        "format": check_format(frame, groups, seed),
        "labels": check_labels(frame, groups, grouped_by, seed),
        "words": check_words(*counts) if counts else None,
        "flagged": {name: {"count": len(found), "first_rows": found[:FIRST_ROWS]} for name, found in rows.items()},
        "examples": _examples(frame, masks, examples),
    }
    return Diagnosis({**report, **concluded(advise(report))}, rows, show_words)


def _examples(frame: pd.DataFrame, masks: Masks, most: int) -> dict[str, list[dict]]:
    """Up to `most` shortened rows per finding; nothing at all unless asked for."""
    if most < 1:
        return {}
    ordered = {finding: frame[mask].sort_values("order") for finding, mask in masks.items() if mask.any()}
    return {
        name: [dict(row, **{side: cut(row[side], EXAMPLE_CHARACTERS) for side in PAIR})
               for row in rows[["row", *PAIR]].head(most).to_dict("records")]
        for name, rows in ordered.items()
    }  # fmt: skip


@dataclass(repr=False)
class Diagnosis(Report):
    """What the check-up found. `rows` lists all row numbers of each finding."""

    rows: dict[str, list[int | str]] = field(default_factory=dict)
    show_words: bool = True

    def headline(self) -> str:
        return f"Check-up of {self.report['source']['name']}"

    def facts(self) -> dict[str, str]:
        rows, turns, found = self.report["rows"], self.report["turns"], self.report["duplicates"]
        sides, loops, length = self.report["sides"], self.report["consistency"], self.report["length"]
        position, labels = self.report["position"], self.report["labels"]
        facts = {
            "rows": f"{rows['read']:,} read, {rows['used']:,} used, {rows['rejected']:,} rejected",
            "prompts": f"{found['prompts_distinct']:,} distinct; "
            f"not shared by both sides in {counted(self.report['prompts']['not_shared'], 'pair')}",
            "turns": f"median {turns['median']:g}, up to {turns['max']}; "
            f"{100 * turns['share_multi_turn']:.0f}% of pairs have more than one",
            "sides": f"{counted(sides['identical'], 'pair')} identical, "
            f"{counted(sides['empty_chosen'] + sides['empty_rejected'], 'side')} empty",
            "repetition": f"{counted(found['pairs_extra_copies'], 'exact copy', 'exact copies')}, "
            f"{counted(found['pairs_near_duplicates'], 'near duplicate')}",
            "contradictions": f"{loops['contradictory_comparisons']:,} judged both ways, "
            f"{counted(loops['loops_of_three_or_more'], 'loop')} of three or more",
            "length": f"chosen longer in {as_percent(length['chosen_longer'])} of pairs, "
            f"mean difference {as_number(length['difference_words'])} words",
            "position": f"shown first and chosen in {as_percent(position['chosen_first'])} of pairs"
            if position["recorded"] else position["why"],
            "learnability": f"{as_percent(labels['accuracy_words'])} held-out accuracy by words, "
            f"{as_percent(labels['accuracy_length'])} by length alone"
            if labels["measured"] else f"not measured: {labels['why']}",
        }  # fmt: skip
        if self.show_words and self.report["words"]:
            for side in ("chosen", "rejected"):
                words = ", ".join(entry["word"] for entry in self.report["words"][side][:SHOWN_WORDS])
                facts[f"words {side}"] = words or "none"
        if self.report["source"]["notes"]:
            facts["notes"] = "; ".join(self.report["source"]["notes"])
        return facts

    def sections(self) -> list[Section]:
        report = self._shown()
        return [
            Section("Figures", [Block(picture=self.plot(), shows="; ".join(self.facts().values()))]),
            Section("How learnable are the labels?", [_learnability(report["labels"])]),
            Section("Length", [_length(report["length"])]),
            Section("Format", [_format(report["format"])]),
            Section("Prompts and repetition", [_repetition(report)]),
            Section("Words that set the sides apart", _words(report["words"])),
            Section("Rows to look at", [_flagged(report)]),
            *([Section("Examples from the data", _shown_rows(report["examples"]))] if report["examples"] else []),
            Section("How this was measured", [Block(note=text) for text in METHOD]),
        ]

    def plot(self) -> Figure:
        """Accuracy, length, format and turns at a glance."""
        return figures.overview(self.report)

    def _shown(self) -> dict:
        """The report as people see it: with the words masked if they are not to be shown."""
        if self.show_words or self.report["words"] is None:
            return self.report
        report = copy.deepcopy(self.report)
        for entry in report["words"]["chosen"] + report["words"]["rejected"]:
            entry["word"] = entry["word"][0] + "•" * (len(entry["word"]) - 1)
        return report


# --- the parts of the HTML ----------------------------------------------------------------------


def _learnability(labels: dict) -> Block:
    if not labels["measured"]:
        return Block(note=f"Not measured: {labels['why']}.")
    equal = labels["accuracy_words_equal_length"]
    return Block(rows=[
        ("linear Bradley-Terry model on words", as_percent(labels["accuracy_words"])),
        ("the same, on pairs of about equal length", f"{as_percent(equal)}, n = {equal['n']:,}"),
        ("rule that sees only length", as_percent(labels["accuracy_length"])),
        ("words minus length, percentage points", as_points(labels["words_minus_length"])),
        ("calibration of the word model", f"Brier score {labels['brier']:.3f} (a coin: 0.250), expected calibration "
         f"error {labels['expected_calibration_error']:.3f}"),
        ("held out by", f"{labels['grouped_by']}, {labels['folds']} folds, {labels['groups']:,} groups"),
    ])  # fmt: skip


def _length(length: dict) -> Block:
    return Block(rows=[
        ("chosen side longer", as_percent(length["chosen_longer"])),
        ("chosen side longer, ties aside", as_percent(length["chosen_longer_without_ties"])),
        ("mean difference in words", as_number(length["difference_words"])),
        ("mean length in words", f"{length['mean_words_chosen']:.1f} (chosen), {length['mean_words_rejected']:.1f}"),
    ])  # fmt: skip


def _format(marks: list[dict]) -> Block:
    rows = [
        (mark["name"], as_percent(mark["chosen"]), as_percent(mark["rejected"]), as_percent(only), f"{only['n']:,}")
        for mark in marks if (only := mark["chosen_when_only_one_has_it"])["n"]
    ]  # fmt: skip
    header = ("mark", "in chosen", "in rejected", "where only one side has it, it is the chosen one in", "pairs")
    return Block(header=header if rows else (), rows=rows, note="" if rows else "None of the marks sets sides apart.")


def _repetition(report: dict) -> Block:
    prompts, copies, loops = report["prompts"], report["duplicates"], report["consistency"]
    counts = {
        "both sides carry the same prompt": prompts["same"],
        "sides part before the last answer": prompts["diverge_before_last_answer"],
        "different prompts": prompts["different"],
        "prompt only in its own column": prompts["not_checkable"],
        "prompts used more than once": copies["prompts_repeated"],
        "distinct answers": copies["answers_distinct"],
        "answers used more than once": copies["answers_repeated"],
        "pairs judged both ways": loops["pairs_in_contradictions"],
        "answers in the largest loop": loops["largest_loop"],
    }
    return Block(rows=[(name, f"{count:,}") for name, count in counts.items()])


def _words(words: dict | None) -> list[Block]:
    if words is None:
        return [Block(note="No word occurs in two answers.")]
    header = ("word", "z", "in chosen", "in rejected")
    return [
        Block(lead=f"More in {side}", header=header,
              rows=[(e["word"], f"{e['z']:.1f}", f"{e['chosen']:,}", f"{e['rejected']:,}") for e in words[side]])
        for side in ("chosen", "rejected")
    ]  # fmt: skip


def _flagged(report: dict) -> Block:
    named = {f"rejected: {reason['reason']}": reason for reason in report["rows"]["reasons"]}
    named |= {name.replace("_", " "): found for name, found in report["flagged"].items() if found["count"]}
    rows = [(name, f"{found['count']:,}", ", ".join(map(str, found["first_rows"]))) for name, found in named.items()]
    return Block(header=("finding", "rows", "first row numbers"), rows=rows or [("none", "", "")],
                 note="; ".join([*report["rows"]["damage"], *report["source"]["notes"]]))  # fmt: skip


def _shown_rows(examples: dict[str, list[dict]]) -> list[Block]:
    return [Block(lead=name.replace("_", " "), header=("row", *PAIR), rows=[tuple(row.values()) for row in found])
            for name, found in examples.items()]  # fmt: skip
