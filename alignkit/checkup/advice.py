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
#: share of what was counted, severity above it and below it (None: no finding)
DEFECT, COPIES = (MANY_ROWS, SERIOUS, WARN), (SOME_ROWS, WARN, INFO)


def advise(report: dict) -> list[Finding]:
    """All findings the report calls for."""
    rules = (_rows, judge_labels, _length, _format, _position)
    found = [finding for rule in rules for finding in rule(report)]
    if (used := report["rows"]["used"]) < FEW_PAIRS:
        action = "Read the intervals, not the values: at this size they are wide."
        found.append(Finding("rows.few", INFO, f"{counted(used, 'pair')} only.", action, {"n": used}))
    return found


def _rows(report: dict) -> Iterator[Finding]:
    rows, sides, copies, loops = (report[part] for part in ("rows", "sides", "duplicates", "consistency"))
    for message in rows["damage"]:
        yield Finding("rows.damaged", SERIOUS, f"The source breaks off: {message}.", "Download or export it again.")
    used, empty = rows["used"], sides["empty_chosen"] + sides["empty_rejected"]
    apart, same, opposed = report["prompts"]["not_shared"], sides["identical"], loops["pairs_in_contradictions"]
    exact, near = copies["pairs_extra_copies"], copies["pairs_near_duplicates"]
    repeated, slots = copies["pairs_on_repeated_prompts"], copies["slots_of_repeated_answers"]
    worst = rows["reasons"][0] if rows["reasons"] else {"reason": "", "count": 0, "first_rows": []}

    def share(count: int) -> str:
        return f"{counted(count, 'pair')} ({100 * count / used:.1f}%)"

    table = [  # id, count, of how many, where it matters, finding, action
        ("rows.rejected", rows["rejected"], rows["read"], DEFECT,
         f"{rows['rejected']:,} of {rows['read']:,} rows can't be used; most often: {worst['reason']} "
         f"({worst['count']:,}, first in row {', '.join(map(str, worst['first_rows']))}).",
         "Mend or drop these rows before training; a trainer may fail on them, or read them wrongly."),
        ("prompts.not_shared", apart, used, DEFECT,
         f"In {share(apart)} chosen and rejected do not answer the same prompt.",
         f"Drop the {counted(apart, 'pair')} or cut both sides at the last turn they share: losses such as DPO's "
         "assume one prompt."),
        ("sides.identical", same, used, DEFECT,
         f"The two sides are identical in {share(same)}.",
         f"Drop the {counted(same, 'pair')}: no preference can be learned from them."),
        ("sides.empty", empty, used, DEFECT,
         f"{counted(empty, 'empty side')}: {sides['empty_chosen']:,} chosen, {sides['empty_rejected']:,} rejected.",
         "Drop these pairs, unless saying nothing is an answer you want to be judged."),
        ("duplicates.exact", exact, used, COPIES, f"Exact copies of another pair: {share(exact)}.",
         f"Drop the {counted(exact, 'extra copy', 'extra copies')}: repeated pairs weigh more, "
         "and leak from training into test."),
        ("duplicates.near", near, used, COPIES,
         f"Near copies of another pair: {share(near)}, with a Jaccard similarity of at least "
         f"{copies['near_threshold_jaccard']}.",
         "Drop them, or keep each with its original on one side of the train/test split. A long text common to many "
         "prompts has the same effect."),
        ("duplicates.prompts", repeated, used, (SOME_ROWS, INFO, None),
         f"{share(repeated)} share their prompt with another.", "Split into training and test by prompt, not by row."),
        ("duplicates.answers", slots, 2 * used, (MANY_ROWS, INFO, None),
         f"{copies['answers_repeated']:,} answers occur more than once and fill {slots:,} of {2 * used:,} places.",
         "Look for stock answers: a model may learn to tell them apart from the rest, and nothing more."),
        ("consistency.both_ways", opposed, used, DEFECT,
         f"{counted(loops['contradictory_comparisons'], 'comparison')} judged both ways ({counted(opposed, 'pair')}).",
         "Have them judged again, or keep the majority; no model can be right on both."),
    ]  # fmt: skip
    for name, count, n, (limit, above, below), finding, action in table:
        severity = above if count > limit * n else below
        if count and severity:
            yield Finding(name, severity, finding, action, {"count": count, "n": n})
    if count := loops["loops_of_three_or_more"]:
        yield Finding("consistency.loops", WARN,
                      f"In {counted(count, 'loop')}, three or more answers to one prompt beat each other in a circle "
                      f"({counted(loops['pairs_in_loops'], 'pair')} in loops, contradictions included).",
                      "Expect a ceiling below 100%: no single score can rank these answers. Have them judged again.",
                      {"count": count})  # fmt: skip


def judge_labels(report: dict) -> Iterator[Finding]:
    found = report["labels"]
    if not found["measured"]:
        yield Finding("labels.unmeasured", INFO, f"Learnability was not measured: {found['why']}.",
                      "Collect more pairs.")  # fmt: skip
        return
    accuracy, by_length = found["accuracy_words"], found["accuracy_length"]
    sure = accuracy["high"] is not None and accuracy["high"] < LEARNABLE
    if accuracy["value"] >= GIVEAWAY:
        name, severity, what = "given_away", SERIOUS, "are almost given away"
        action = ("Look at the words below for a mark of one side (a signature phrase, one model per side); a reward "
                  "model would learn that mark.")  # fmt: skip
    elif not clear_of(accuracy, 0.5) or accuracy["value"] < 0.5:
        name, severity, what = "coin", SERIOUS if sure else WARN, "can't be told from a coin by words"
        action = (f"{JUDGED} before training. Labels that a program verified need no second judge: what they reward is "
                  "then not in single words, and the reward must read the prompt.")  # fmt: skip
    elif accuracy["value"] < LEARNABLE:
        name, severity, what = "weak", WARN, "are barely learnable from words"
        action = f"{JUDGED}. Expect a reward model to need much data."
    else:
        name, severity, what = "learnable", INFO, "are learnable"
        action = "Take this as the floor: a reward model that reads the prompt and stays below it is broken."
    yield Finding(f"labels.{name}", severity, f"The labels {what}: held-out accuracy of a linear model on words is "
                  f"{as_percent(accuracy)}.", action, accuracy)  # fmt: skip
    gain, against = found["words_minus_length"], f"{as_percent(accuracy)} against {as_percent(by_length)}"
    if clear_of(by_length, 0.5) and not (clear_of(gain, 0.0) and gain["value"] > 0):
        if clear_of(gain, 0.0):
            yield Finding("labels.length_beats_words", SERIOUS, f"Length predicts better than words: {against}.",
                          "Expect a reward model to learn length. Balance length, or collect pairs of equal length.",
                          gain)  # fmt: skip
        else:
            yield Finding("labels.length_or_words", INFO,
                          f"Words don't clearly predict better than length: {against}.",
                          "The difference may be chance. Look at the accuracy on pairs of about equal length, and "
                          "compare a reward model with the length rule before you trust it.", gain)  # fmt: skip
    if (error := found["expected_calibration_error"]) > MISCALIBRATED:
        yield Finding("labels.calibration", INFO, f"The word model's confidence is off by {100 * error:.0f} points on "
                      "average (expected calibration error).",
                      "Do not use margins of such a model as weights without calibrating them first.",
                      {"value": error})  # fmt: skip


def _length(report: dict) -> Iterator[Finding]:
    found = report["length"]
    share = found["chosen_longer_without_ties"]
    lean = 0.0 if share["value"] is None else abs(share["value"] - 0.5)
    if not clear_of(share, 0.5) or lean < LENGTH_LEAN:
        return
    rule = report["labels"].get("accuracy_length")
    reach = f"; a rule that sees only length is right on {as_percent(rule)} of held-out pairs" if rule else ""
    yield Finding("length.skewed", SERIOUS if lean >= LENGTH_SKEW else WARN,
                  f"The chosen side tends to be the {'longer' if share['value'] > 0.5 else 'shorter'} one: longer in "
                  f"{as_percent(share)} of pairs of unequal length; mean difference "
                  f"{as_number(found['difference_words'])} words{reach}.",
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
