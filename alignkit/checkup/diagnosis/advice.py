"""What to do about it: each piece of advice is triggered by a measured number and names it.

Severities: "serious" (do not train before it is mended or understood), "warn" (mend it or control for it),
"info" (worth knowing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from alignkit.intervals import as_number, as_percent, clear_of, counted

SERIOUS, WARN, INFO = "serious", "warn", "info"
SEVERITIES = (SERIOUS, WARN, INFO)

# Where a finding begins to matter. Conventions, not laws: they decide the color, the report shows the number.
MANY_ROWS = 0.05  # share of rows from which a defect is serious
SOME_ROWS = 0.01  # share of rows from which repetition is worth a warning
LENGTH_LEAN, LENGTH_SKEW = 0.05, 0.15  # distance of the share "chosen longer" from one half
POSITION_SKEW = 0.10  # the same for "chosen was shown first"
FORMAT_LEAN, FORMAT_SKEW = 0.03, 0.10  # difference between shares in chosen and rejected
LEARNABLE, GIVEAWAY = 0.60, 0.95  # held-out accuracy of the word model
MISCALIBRATED = 0.10  # expected calibration error
FEW_PAIRS = 500  # a share near one half is then known to +-4 points at best

Advice = dict[str, str]


def advise(report: dict) -> list[Advice]:
    """All advice the report calls for, the most serious first."""
    found = [advice for rule in RULES for advice in rule(report)]
    return sorted(found, key=lambda advice: SEVERITIES.index(advice["severity"]))


def _advice(severity: str, finding: str, action: str) -> Advice:
    return {"severity": severity, "finding": finding, "action": action}


def _share_of_rows(count: int, report: dict) -> str:
    return f"{counted(count, 'pair')} ({100 * count / report['rows']['used']:.1f}%)"


def _weight(count: int, report: dict) -> str:
    return SERIOUS if count > MANY_ROWS * report["rows"]["used"] else WARN


# --- the rows -----------------------------------------------------------------------------------


def _damage(report: dict) -> Iterator[Advice]:
    for message in report["rows"]["damage"]:
        yield _advice(SERIOUS, f"The source breaks off: {message}.", "Download or export it again.")


def _rejected_rows(report: dict) -> Iterator[Advice]:
    rows = report["rows"]
    if rows["rejected"]:
        most = rows["reasons"][0]
        first = ", ".join(str(row) for row in most["first_rows"])
        yield _advice(
            SERIOUS if rows["rejected"] > MANY_ROWS * rows["read"] else WARN,
            f"{rows['rejected']:,} of {rows['read']:,} rows can't be used; most often: {most['reason']} "
            f"({most['count']:,}, first in row {first}).",
            "Mend or drop these rows before training; a trainer may fail on them, or read them wrongly.",
        )


def _few_pairs(report: dict) -> Iterator[Advice]:
    used = report["rows"]["used"]
    if used < FEW_PAIRS:
        yield _advice(
            INFO,
            f"{counted(used, 'pair')} only.",
            "Read the intervals, not the values: at this size they are wide.",
        )


def _prompts(report: dict) -> Iterator[Advice]:
    count = report["prompts"]["not_shared"]
    if count:
        yield _advice(
            _weight(count, report),
            f"In {_share_of_rows(count, report)} chosen and rejected do not answer the same prompt.",
            f"Drop the {counted(count, 'pair')} or cut both sides at the last turn they share: "
            "losses such as DPO's assume one prompt.",
        )


def _sides(report: dict) -> Iterator[Advice]:
    identical = report["sides"]["identical"]
    if identical:
        yield _advice(
            _weight(identical, report),
            f"The two sides are identical in {_share_of_rows(identical, report)}.",
            f"Drop the {counted(identical, 'pair')}: no preference can be learned from them.",
        )
    empty = report["sides"]["empty_chosen"] + report["sides"]["empty_rejected"]
    if empty:
        yield _advice(
            _weight(empty, report),
            f"{counted(empty, 'empty side')}: {report['sides']['empty_chosen']:,} chosen, "
            f"{report['sides']['empty_rejected']:,} rejected.",
            "Drop these pairs, unless saying nothing is an answer you want to be judged.",
        )


def _repetition(report: dict) -> Iterator[Advice]:
    found, used = report["duplicates"], report["rows"]["used"]
    copies, near = found["pairs_extra_copies"], found["pairs_near_duplicates"]
    if copies:
        yield _advice(
            WARN if copies > SOME_ROWS * used else INFO,
            f"Exact copies of another pair: {_share_of_rows(copies, report)}.",
            f"Drop the {counted(copies, 'extra copy', 'extra copies')}: repeated pairs weigh more, and leak "
            "from training into test.",
        )
    if near:
        yield _advice(
            WARN if near > SOME_ROWS * used else INFO,
            f"Near copies of another pair: {_share_of_rows(near, report)}, with a Jaccard similarity of at "
            f"least {found['near_threshold_jaccard']}.",
            "Drop them, or keep each with its original on one side of the train/test split. A long text "
            "common to many prompts has the same effect.",
        )
    if found["pairs_on_repeated_prompts"] > SOME_ROWS * used:
        yield _advice(
            INFO,
            f"{_share_of_rows(found['pairs_on_repeated_prompts'], report)} share their prompt with another.",
            "Split into training and test by prompt, not by row.",
        )
    if found["slots_of_repeated_answers"] > MANY_ROWS * 2 * used:
        yield _advice(
            INFO,
            f"{found['answers_repeated']:,} answers occur more than once and fill "
            f"{found['slots_of_repeated_answers']:,} of {2 * used:,} places.",
            "Look for stock answers: a model may learn to tell them apart from the rest, and nothing more.",
        )


def _consistency(report: dict) -> Iterator[Advice]:
    found = report["consistency"]
    if found["contradictory_comparisons"]:
        yield _advice(
            _weight(found["pairs_in_contradictions"], report),
            f"{counted(found['contradictory_comparisons'], 'comparison')} judged both ways "
            f"({counted(found['pairs_in_contradictions'], 'pair')}).",
            "Have them judged again, or keep the majority; no model can be right on both.",
        )
    if found["loops_of_three_or_more"]:
        yield _advice(
            WARN,
            f"In {counted(found['loops_of_three_or_more'], 'loop')}, three or more answers to one "
            f"prompt beat each other in a circle ({counted(found['pairs_in_loops'], 'pair')} in loops, "
            "contradictions included).",
            "Expect a ceiling below 100%: no single score can rank these answers. Have them judged again.",
        )


# --- the biases ---------------------------------------------------------------------------------


def _length(report: dict) -> Iterator[Advice]:
    found = report["length"]
    share = found["chosen_longer_without_ties"]
    lean = 0.0 if share["value"] is None else abs(share["value"] - 0.5)
    if not clear_of(share, 0.5) or lean < LENGTH_LEAN:
        return
    rule = report["labels"].get("accuracy_length")
    reach = f"; a rule that sees only length is right on {as_percent(rule)} of held-out pairs" if rule else ""
    side = "longer" if share["value"] > 0.5 else "shorter"
    yield _advice(
        SERIOUS if lean >= LENGTH_SKEW else WARN,
        f"The chosen side tends to be the {side} one: longer in {as_percent(share)} of pairs of unequal "
        f"length; mean difference {as_number(found['difference_words'])} words{reach}.",
        "Control for length: report accuracy on pairs of about equal length, and watch the length of outputs "
        "while optimizing.",
    )


def _position(report: dict) -> Iterator[Advice]:
    found = report["position"]
    if not found["recorded"]:
        yield _advice(
            INFO,
            f"Position bias can't be checked: {found['why']}.",
            "Record which side was shown first when you next collect comparisons, and randomize it.",
        )
        return
    share = found["chosen_first"]
    if clear_of(share, 0.5):
        yield _advice(
            SERIOUS if abs(share["value"] - 0.5) >= POSITION_SKEW else WARN,
            f"The side shown first is preferred in {as_percent(share)} of pairs.",
            "Balance the order, or judge a sample in both orders and drop the pairs that flip.",
        )


def _format(report: dict) -> Iterator[Advice]:
    marks = [mark for mark in report["format"] if mark["clear"] and abs(mark["difference"]["value"]) >= FORMAT_LEAN]
    for mark in marks:
        only = mark["chosen_when_only_one_has_it"]
        yield _advice(
            SERIOUS if abs(mark["difference"]["value"]) >= FORMAT_SKEW else WARN,
            f"Format goes with the label, {mark['name']}: in {as_percent(mark['chosen'])} of chosen and "
            f"{as_percent(mark['rejected'])} of rejected answers; where only one side has it, it is the "
            f"chosen one in {as_percent(only)} (n = {only['n']:,}).",
            "Decide whether this is the preference you want; if not, balance it or test the reward with the "
            "mark added and removed.",
        )


# --- the labels ---------------------------------------------------------------------------------


def _labels(report: dict) -> Iterator[Advice]:
    found = report["labels"]
    if not found["measured"]:
        yield _advice(INFO, f"Learnability was not measured: {found['why']}.", "Collect more pairs.")
        return
    accuracy = found["accuracy_words"]
    reached = f"held-out accuracy of a linear model on words is {as_percent(accuracy)}"
    if accuracy["value"] >= GIVEAWAY:
        yield _advice(
            SERIOUS,
            f"The labels are almost given away: {reached}.",
            "Look at the words below for a mark of one side (a signature phrase, one model per side); a "
            "reward model would learn that mark.",
        )
    elif not clear_of(accuracy, 0.5) or accuracy["value"] < 0.5:
        yield _advice(
            SERIOUS,
            f"The labels can't be told from a coin by words: {reached}.",
            "Have a sample of some 200 pairs judged again and measure agreement before training. A model "
            "that reads the prompt may find more, but do not count on it.",
        )
    elif accuracy["value"] < LEARNABLE:
        yield _advice(
            WARN,
            f"The labels are barely learnable from words: {reached}.",
            "Have a sample judged again and measure agreement; expect a reward model to need much data.",
        )
    else:
        yield _advice(
            INFO,
            f"The labels are learnable: {reached}.",
            "Take this as the floor: a reward model that reads the prompt and stays below it is broken.",
        )
    yield from _beyond_length(found)


def _beyond_length(found: dict) -> Iterator[Advice]:
    gain = found["words_minus_length"]
    if clear_of(found["accuracy_length"], 0.5) and not (clear_of(gain, 0.0) and gain["value"] > 0):
        yield _advice(
            SERIOUS,
            f"Words predict no better than length: {as_percent(found['accuracy_words'])} against "
            f"{as_percent(found['accuracy_length'])}.",
            "Expect a reward model to learn length. Balance length, or collect pairs of equal length.",
        )
    if found["expected_calibration_error"] > MISCALIBRATED:
        yield _advice(
            INFO,
            f"The word model's confidence is off by {100 * found['expected_calibration_error']:.0f} points "
            "on average (expected calibration error).",
            "Do not use margins of such a model as weights without calibrating them first.",
        )


RULES: tuple[Callable[[dict], Iterator[Advice]], ...] = (
    _damage,
    _rejected_rows,
    _prompts,
    _sides,
    _repetition,
    _consistency,
    _labels,
    _length,
    _format,
    _position,
    _few_pairs,
)
