"""What to do about a data set: each finding is triggered by a measured number and names it."""

from __future__ import annotations

from collections.abc import Iterator

from alignkit.checkup.findings import INFO, SERIOUS, WARN, Finding
from alignkit.intervals import as_number, as_percent, clear_of, counted

# Where a finding begins to matter. Conventions, not laws: they decide the color, the report shows the number.
MANY_ROWS = 0.05  # share of rows from which a defect is serious
SOME_ROWS = 0.01  # share of rows from which repetition is worth a warning
LENGTH_LEAN, LENGTH_SKEW = 0.05, 0.15  # distance of the share "chosen longer" from one half
POSITION_SKEW = 0.10  # the same for "chosen was shown first"
FORMAT_LEAN, FORMAT_SKEW = 0.03, 0.10  # difference between shares in chosen and rejected
LEARNABLE, GIVEAWAY = 0.60, 0.95  # held-out accuracy of the word model
MISCALIBRATED = 0.10  # expected calibration error
FEW_PAIRS = 500  # a share near one half is then known to +-4 points at best

JUDGED = "If people or models judged these pairs, have some 200 of them judged again and measure agreement"


def advise(report: dict) -> list[Finding]:
    """All findings the report calls for."""
    return [finding for rule in RULES for finding in rule(report)]


def _share(count: int, report: dict) -> str:
    return f"{counted(count, 'pair')} ({100 * count / report['rows']['used']:.1f}%)"


def _defect(name: str, count: int, report: dict, finding: str, action: str) -> Finding:
    """A defect of rows: serious where many have it."""
    used = report["rows"]["used"]
    return Finding(name, SERIOUS if count > MANY_ROWS * used else WARN, finding, action, {"count": count, "n": used})


# --- the rows -----------------------------------------------------------------------------------


def _rows(report: dict) -> Iterator[Finding]:
    rows = report["rows"]
    for message in rows["damage"]:
        yield Finding("rows.damaged", SERIOUS, f"The source breaks off: {message}.", "Download or export it again.")
    if rows["rejected"]:
        most = rows["reasons"][0]
        first = ", ".join(str(row) for row in most["first_rows"])
        yield Finding(
            "rows.rejected", SERIOUS if rows["rejected"] > MANY_ROWS * rows["read"] else WARN,
            f"{rows['rejected']:,} of {rows['read']:,} rows can't be used; most often: {most['reason']} "
            f"({most['count']:,}, first in row {first}).",
            "Mend or drop these rows before training; a trainer may fail on them, or read them wrongly.",
            {"count": rows["rejected"], "n": rows["read"]},
        )  # fmt: skip


def _few_pairs(report: dict) -> Iterator[Finding]:
    used = report["rows"]["used"]
    if used < FEW_PAIRS:
        yield Finding("rows.few", INFO, f"{counted(used, 'pair')} only.",
                      "Read the intervals, not the values: at this size they are wide.", {"n": used})  # fmt: skip


def _sides(report: dict) -> Iterator[Finding]:
    if count := report["prompts"]["not_shared"]:
        yield _defect("prompts.not_shared", count, report,
                      f"In {_share(count, report)} chosen and rejected do not answer the same prompt.",
                      f"Drop the {counted(count, 'pair')} or cut both sides at the last turn they share: "
                      "losses such as DPO's assume one prompt.")  # fmt: skip
    sides = report["sides"]
    if count := sides["identical"]:
        yield _defect("sides.identical", count, report,
                      f"The two sides are identical in {_share(count, report)}.",
                      f"Drop the {counted(count, 'pair')}: no preference can be learned from them.")  # fmt: skip
    if count := sides["empty_chosen"] + sides["empty_rejected"]:
        yield _defect("sides.empty", count, report,
                      f"{counted(count, 'empty side')}: {sides['empty_chosen']:,} chosen, "
                      f"{sides['empty_rejected']:,} rejected.",
                      "Drop these pairs, unless saying nothing is an answer you want to be judged.")  # fmt: skip


def _repetition(report: dict) -> Iterator[Finding]:
    found, used = report["duplicates"], report["rows"]["used"]
    if copies := found["pairs_extra_copies"]:
        yield Finding("duplicates.exact", WARN if copies > SOME_ROWS * used else INFO,
                      f"Exact copies of another pair: {_share(copies, report)}.",
                      f"Drop the {counted(copies, 'extra copy', 'extra copies')}: repeated pairs weigh more, and leak "
                      "from training into test.", {"count": copies, "n": used})  # fmt: skip
    if near := found["pairs_near_duplicates"]:
        yield Finding("duplicates.near", WARN if near > SOME_ROWS * used else INFO,
                      f"Near copies of another pair: {_share(near, report)}, with a Jaccard similarity of at "
                      f"least {found['near_threshold_jaccard']}.",
                      "Drop them, or keep each with its original on one side of the train/test split. A long text "
                      "common to many prompts has the same effect.", {"count": near, "n": used})  # fmt: skip
    if (shared := found["pairs_on_repeated_prompts"]) > SOME_ROWS * used:
        yield Finding("duplicates.prompts", INFO, f"{_share(shared, report)} share their prompt with another.",
                      "Split into training and test by prompt, not by row.", {"count": shared, "n": used})  # fmt: skip
    if (slots := found["slots_of_repeated_answers"]) > MANY_ROWS * 2 * used:
        yield Finding("duplicates.answers", INFO,
                      f"{found['answers_repeated']:,} answers occur more than once and fill {slots:,} of "
                      f"{2 * used:,} places.",
                      "Look for stock answers: a model may learn to tell them apart from the rest, and nothing more.",
                      {"count": slots, "n": 2 * used})  # fmt: skip


def _consistency(report: dict) -> Iterator[Finding]:
    found = report["consistency"]
    pairs = found["pairs_in_contradictions"]
    if count := found["contradictory_comparisons"]:
        yield _defect("consistency.both_ways", pairs, report,
                      f"{counted(count, 'comparison')} judged both ways ({counted(pairs, 'pair')}).",
                      "Have them judged again, or keep the majority; no model can be right on both.")  # fmt: skip
    if loops := found["loops_of_three_or_more"]:
        yield Finding("consistency.loops", WARN,
                      f"In {counted(loops, 'loop')}, three or more answers to one prompt beat each other in a circle "
                      f"({counted(found['pairs_in_loops'], 'pair')} in loops, contradictions included).",
                      "Expect a ceiling below 100%: no single score can rank these answers. Have them judged again.",
                      {"count": loops})  # fmt: skip


# --- the labels ---------------------------------------------------------------------------------


def judge_labels(report: dict) -> Iterator[Finding]:
    found = report["labels"]
    if not found["measured"]:
        yield Finding("labels.unmeasured", INFO, f"Learnability was not measured: {found['why']}.",
                      "Collect more pairs.")  # fmt: skip
        return
    accuracy = found["accuracy_words"]
    reached = f"held-out accuracy of a linear model on words is {as_percent(accuracy)}"
    if accuracy["value"] >= GIVEAWAY:
        yield Finding("labels.given_away", SERIOUS, f"The labels are almost given away: {reached}.",
                      "Look at the words below for a mark of one side (a signature phrase, one model per side); a "
                      "reward model would learn that mark.", accuracy)  # fmt: skip
    elif not clear_of(accuracy, 0.5) or accuracy["value"] < 0.5:
        sure = accuracy["high"] is not None and accuracy["high"] < LEARNABLE
        yield Finding("labels.coin", SERIOUS if sure else WARN,
                      f"The labels can't be told from a coin by words: {reached}.",
                      f"{JUDGED} before training. Labels that a program verified need no second judge: what they "
                      "reward is then not in single words, and the reward must read the prompt.", accuracy)  # fmt: skip
    elif accuracy["value"] < LEARNABLE:
        yield Finding("labels.weak", WARN, f"The labels are barely learnable from words: {reached}.",
                      f"{JUDGED}. Expect a reward model to need much data.", accuracy)  # fmt: skip
    else:
        yield Finding("labels.learnable", INFO, f"The labels are learnable: {reached}.",
                      "Take this as the floor: a reward model that reads the prompt and stays below it is broken.",
                      accuracy)  # fmt: skip
    yield from _beyond_length(found)


def _beyond_length(found: dict) -> Iterator[Finding]:
    gain = found["words_minus_length"]
    against = f"{as_percent(found['accuracy_words'])} against {as_percent(found['accuracy_length'])}"
    if clear_of(found["accuracy_length"], 0.5) and not (clear_of(gain, 0.0) and gain["value"] > 0):
        if clear_of(gain, 0.0):
            yield Finding("labels.length_beats_words", SERIOUS, f"Length predicts better than words: {against}.",
                          "Expect a reward model to learn length. Balance length, or collect pairs of equal length.",
                          gain)  # fmt: skip
        else:
            yield Finding("labels.length_or_words", INFO,
                          f"Words don't clearly predict better than length: {against}.",
                          "The difference may be chance. Look at the accuracy on pairs of about equal length, and "
                          "compare a reward model with the length rule before you trust it.", gain)  # fmt: skip
    if found["expected_calibration_error"] > MISCALIBRATED:
        yield Finding("labels.calibration", INFO,
                      f"The word model's confidence is off by {100 * found['expected_calibration_error']:.0f} points "
                      "on average (expected calibration error).",
                      "Do not use margins of such a model as weights without calibrating them first.",
                      {"value": found["expected_calibration_error"]})  # fmt: skip


# --- the biases ---------------------------------------------------------------------------------


def _length(report: dict) -> Iterator[Finding]:
    found = report["length"]
    share = found["chosen_longer_without_ties"]
    lean = 0.0 if share["value"] is None else abs(share["value"] - 0.5)
    if not clear_of(share, 0.5) or lean < LENGTH_LEAN:
        return
    rule = report["labels"].get("accuracy_length")
    reach = f"; a rule that sees only length is right on {as_percent(rule)} of held-out pairs" if rule else ""
    side = "longer" if share["value"] > 0.5 else "shorter"
    yield Finding("length.skewed", SERIOUS if lean >= LENGTH_SKEW else WARN,
                  f"The chosen side tends to be the {side} one: longer in {as_percent(share)} of pairs of unequal "
                  f"length; mean difference {as_number(found['difference_words'])} words{reach}.",
                  "Control for length: report accuracy on pairs of about equal length, and watch the length of outputs "
                  "while optimizing.", share)  # fmt: skip


def _position(report: dict) -> Iterator[Finding]:
    found = report["position"]
    if not found["recorded"]:
        yield Finding("position.unrecorded", INFO, f"Position bias can't be checked: {found['why']}.",
                      "Record which side was shown first when you next collect comparisons, and randomize it.",
                      )  # fmt: skip
    elif clear_of(share := found["chosen_first"], 0.5):
        yield Finding("position.skewed", SERIOUS if abs(share["value"] - 0.5) >= POSITION_SKEW else WARN,
                      f"The side shown first is preferred in {as_percent(share)} of pairs.",
                      "Balance the order, or judge a sample in both orders and drop the pairs that flip.",
                      share)  # fmt: skip


def _format(report: dict) -> Iterator[Finding]:
    for mark in report["format"]:
        gap, only = mark["difference"], mark["chosen_when_only_one_has_it"]
        if mark["clear"] and abs(gap["value"]) >= FORMAT_LEAN:
            yield Finding("format.skewed", SERIOUS if abs(gap["value"]) >= FORMAT_SKEW else WARN,
                          f"Format goes with the label, {mark['name']}: in {as_percent(mark['chosen'])} of chosen and "
                          f"{as_percent(mark['rejected'])} of rejected answers; where only one side has it, it is the "
                          f"chosen one in {as_percent(only)} (n = {only['n']:,}).",
                          "Decide whether this is the preference you want; if not, balance it or test the reward with "
                          "the mark added and removed.", gap)  # fmt: skip


RULES = (_rows, _sides, _repetition, _consistency, judge_labels, _length, _format, _position, _few_pairs)
