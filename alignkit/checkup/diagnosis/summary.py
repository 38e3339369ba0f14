"""The check-up as plain text for a terminal."""

from __future__ import annotations

import textwrap

from alignkit.intervals import as_number, as_percent, counted

WIDTH = 100  # columns
SHOWN_WORDS = 8


def summarize(report: dict, show_words: bool) -> str:
    """The main numbers, one line each, and the advice."""
    title = f"Check-up of {report['source']['name']}"
    return "\n".join([title, *_numbers(report, show_words), "", *_advice(report)])


def _numbers(report: dict, show_words: bool) -> list[str]:
    rows, turns, found = report["rows"], report["turns"], report["duplicates"]
    sides, loops, length = report["sides"], report["consistency"], report["length"]
    lines = {
        "rows": f"{rows['read']:,} read, {rows['used']:,} used, {rows['rejected']:,} rejected",
        "prompts": f"{found['prompts_distinct']:,} distinct; "
        f"not shared by both sides in {counted(report['prompts']['not_shared'], 'pair')}",
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
        "position": _position(report["position"]),
        "learnability": _labels(report["labels"]),
    }
    if show_words and report["words"]:
        for side in ("chosen", "rejected"):
            lines[f"words {side}"] = ", ".join(entry["word"] for entry in report["words"][side][:SHOWN_WORDS]) or "none"
    if report["source"]["notes"]:
        lines["notes"] = "; ".join(report["source"]["notes"])
    return [f"  {name:<15} {text}" for name, text in lines.items()]


def _position(position: dict) -> str:
    if not position["recorded"]:
        return position["why"]
    return f"shown first and chosen in {as_percent(position['chosen_first'])} of pairs"


def _labels(labels: dict) -> str:
    if not labels["measured"]:
        return f"not measured: {labels['why']}"
    by_words, by_length = as_percent(labels["accuracy_words"]), as_percent(labels["accuracy_length"])
    return f"{by_words} held-out accuracy by words, {by_length} by length alone"


def _advice(report: dict) -> list[str]:
    lines = ["What to do about it"]
    for advice in report["advice"]:
        text = f"{advice['severity']:<8} {advice['finding']} -> {advice['action']}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent=" " * 11)
    return lines
