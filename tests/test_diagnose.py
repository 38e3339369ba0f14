"""The check-up finds what was planted and nothing else, and keeps the texts of the data to itself."""

import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.sparse import csr_matrix

from alignkit import intervals
from alignkit.checkup import advice, diagnose
from alignkit.checkup import structure as checks
from alignkit.checkup.labels import out_of_fold
from alignkit.checkup.pairs import read_pairs
from alignkit.checkup.surface import chosen_was_first, log_odds_z
from alignkit.errors import DataError

VOCABULARY = np.array([f"word{i}" for i in range(400)])


def sentence(rng, words=12):
    return " ".join(rng.choice(VOCABULARY, words))


def random_pairs(n=120, seed=0, words=12):
    """Pairs without any preference in them: all sides are random words of the same number."""
    rng = np.random.default_rng(seed)
    return [{side: sentence(rng, words) for side in ("prompt", "chosen", "rejected")} for _ in range(n)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def check(tmp_path, rows, **options):
    return diagnose(write(tmp_path / "pairs.jsonl", rows), **options)


def severities(diagnosis, phrase):
    return [advice["severity"] for advice in diagnosis.report["findings"] if phrase in advice["finding"]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return check(tmp_path_factory.mktemp("sound"), random_pairs(200))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Random pairs with known faults: the row numbers of each are in the test that looks for it."""
    rows = random_pairs(100)
    rows += rows[:3]  # 101-103: exact copies
    long = random_pairs(1, seed=1, words=60)[0]
    rows += [long, {**long, "rejected": long["rejected"] + " indeed"}]  # 104, 105: nearly the same
    rows += [{**long, "prompt": "same sides", "rejected": long["chosen"]}]  # 106
    rows += [{**long, "prompt": "empty side", "rejected": " "}]  # 107
    a, b, c, d, e = (f"answer number {name}" for name in "abcde")
    rows += [
        {"prompt": "both ways", "chosen": a, "rejected": b},
        {"prompt": "both ways", "chosen": b, "rejected": a},
    ]
    rows += [{"prompt": "loop", "chosen": x, "rejected": y} for x, y in [(c, d), (d, e), (e, c), (c, a)]]  # 110-113
    rows += [{"prompt": "p", "chosen": None, "rejected": "r"}]  # 114
    return check(tmp_path_factory.mktemp("planted"), rows)


# --- planted facts ------------------------------------------------------------------------------


def test_rows_read_used_and_rejected(planted):
    rows = planted.report["rows"]
    assert (rows["read"], rows["used"], rows["rejected"]) == (114, 113, 1)
    assert rows["reasons"] == [{"reason": "chosen is null", "count": 1, "first_rows": [114]}]


def test_of_many_bad_rows_the_first_are_named(tmp_path):
    (reason,) = check(tmp_path, random_pairs(1) + [{"prompt": "p", "chosen": None}] * 50).report["rows"]["reasons"]
    assert reason == {"reason": "chosen is null", "count": 50, "first_rows": [2, 3, 4, 5, 6]}


def test_copies_and_near_copies(planted):
    found = planted.report["duplicates"]
    assert (found["pairs_extra_copies"], found["pairs_near_duplicates"]) == (3, 1)
    assert planted.rows["exact_duplicates"] == [101, 102, 103]
    assert planted.rows["near_duplicates"] in ([104], [105])
    assert found["prompts_repeated"] == 3 + 1 + 2  # copies, near copy, "both ways", "loop"
    assert found["pairs_on_repeated_prompts"] == 2 * 3 + 2 + 2 + 4


def test_identical_and_empty_sides(planted):
    sides = planted.report["sides"]
    assert (sides["identical"], sides["empty_chosen"], sides["empty_rejected"]) == (1, 0, 1)
    assert (planted.rows["identical_sides"], planted.rows["empty_side"]) == ([106], [107])


def test_contradiction_and_loop(planted):
    assert planted.report["consistency"] == {
        "contradictory_comparisons": 1,
        "pairs_in_contradictions": 2,
        "loops": 2,
        "loops_of_three_or_more": 1,
        "largest_loop": 3,
        "pairs_in_loops": 5,
    }
    assert planted.rows["contradictory"] == [108, 109]
    assert planted.rows["in_loop"] == [108, 109, 110, 111, 112]  # the fourth comparison on "loop" is in none


def test_advice_names_the_numbers(planted):
    said = " ".join(advice["finding"] + advice["action"] for advice in planted.report["findings"])
    for phrase in [
        "1 of 114 rows can't be used",
        "Drop the 1 pair:",
        "Exact copies of another pair: 3 pairs (2.7%)",
        "Near copies of another pair: 1 pair (0.9%)",
        "1 comparison judged both ways (2 pairs)",
        "In 1 loop, three or more answers",
        "113 pairs only",
    ]:
        assert phrase in said
    order = [advice["severity"] for advice in planted.report["findings"]]
    assert order == sorted(order, key=["serious", "warn", "info"].index)


def test_sound_data_raises_no_alarm_but_that_labels_are_noise(sound):
    assert severities(sound, "can't be told from a coin") == ["serious"]
    assert {advice["severity"] for advice in sound.report["findings"]} == {"serious", "info"}
    assert [advice["severity"] for advice in sound.report["findings"]].count("serious") == 1
    assert all(found["count"] == 0 for found in sound.report["flagged"].values())
    assert sound.exit_status == 1


def test_length_share_and_difference(tmp_path):
    rows = random_pairs(100)
    for i, row in enumerate(rows):  # 70 longer by 4, 20 shorter by 2, 10 equal
        row["chosen"] += " w x y z" if i < 70 else ""
        row["rejected"] += " w x" if 70 <= i < 90 else ""
    diagnosis = check(tmp_path, rows)
    found = diagnosis.report["length"]
    assert (found["longer"], found["shorter"], found["equal"]) == (70, 20, 10)
    assert found["chosen_longer"]["value"] == 0.7
    assert found["chosen_longer"]["low"] == pytest.approx(0.6042, abs=1e-4)  # Wilson by hand
    assert found["chosen_longer"]["high"] == pytest.approx(0.7811, abs=1e-4)
    assert found["chosen_longer_without_ties"]["value"] == pytest.approx(70 / 90)
    assert found["difference_words"]["value"] == pytest.approx((70 * 4 - 20 * 2) / 100)
    assert found["difference_words"]["low"] < 2.4 < found["difference_words"]["high"]
    assert sum(found["histogram"]["counts"]) == 100
    assert severities(diagnosis, "tends to be the longer one") == ["serious"]
    labels = diagnosis.report["labels"]
    assert labels["accuracy_length"]["value"] == pytest.approx(0.7 + 0.1 / 2)  # ties count one half


def test_shorter_chosen_side_is_learned_with_its_direction(tmp_path):
    rows = [{**row, "rejected": row["rejected"] + " and more"} for row in random_pairs(80)]
    diagnosis = check(tmp_path, rows)
    assert diagnosis.report["length"]["chosen_longer"]["value"] == 0
    assert diagnosis.report["labels"]["accuracy_length"]["value"] == 1
    assert severities(diagnosis, "tends to be the shorter one") == ["serious"]


def test_learnable_labels_are_learned_on_prompts_held_out(tmp_path):
    rng = np.random.default_rng(5)
    rows = random_pairs(300)
    for row in rows:  # the right side carries "good" in four pairs of five, the wrong side in the fifth
        side = "chosen" if rng.random() < 0.8 else "rejected"
        row[side] = row[side].rsplit(" ", 1)[0] + " good"
    diagnosis = check(tmp_path, rows)
    labels = diagnosis.report["labels"]
    assert 0.72 < labels["accuracy_words"]["value"] < 0.88
    assert labels["accuracy_words"]["low"] > 0.6
    assert labels["accuracy_length"]["value"] == 0.5  # all sides have twelve words
    assert labels["accuracy_words_equal_length"]["n"] == 300
    assert labels["brier"] < 0.25
    assert diagnosis.report["words"]["chosen"][0]["word"] == "good"
    assert severities(diagnosis, "labels are learnable") == ["info"]


def test_memorized_duplicates_do_not_count_as_learnable(tmp_path):
    once = random_pairs(60)
    again = [{**row, "prompt": row["prompt"].upper() + "  "} for row in once]  # the same prompt in other dress
    rows = [row for _ in range(4) for row in once] + again
    labels = check(tmp_path, rows).report["labels"]
    assert labels["groups"] == 60
    assert labels["accuracy_words"]["low"] < 0.6  # were copies in training and test, this would be near 1
    width = labels["accuracy_words"]["high"] - labels["accuracy_words"]["low"]
    assert width > 0.18  # that of 60 independent prompts; 300 would give about 0.11


def test_too_few_pairs_to_measure_labels(tmp_path):
    diagnosis = check(tmp_path, random_pairs(20))
    assert diagnosis.report["labels"]["measured"] is False
    assert "too few" in diagnosis.summary()
    one_prompt = [{**row, "prompt": "the same"} for row in random_pairs(60)]
    assert "1 independent prompts" in check(tmp_path, one_prompt).report["labels"]["why"]


def test_format_bias(tmp_path):
    rows = random_pairs(100)
    for row in rows[:40]:
        row["chosen"] = "- " + row["chosen"] + "!"
    for row in rows[30:50]:
        row["rejected"] = "I\u2019m sorry, " + row["rejected"]
    diagnosis = check(tmp_path, rows)
    marks = {mark["name"]: mark for mark in diagnosis.report["format"]}
    assert (marks["list"]["chosen"]["value"], marks["list"]["rejected"]["value"]) == (0.4, 0)
    assert marks["refusal phrase"]["difference"]["value"] == -0.2
    assert marks["refusal phrase"]["chosen_when_only_one_has_it"] == intervals.wilson(0, 20)
    assert marks["code block"]["difference"] == {"value": 0, "low": 0, "high": 0, "n": 100}
    assert [mark["name"] for mark in marks.values() if mark["clear"]] == [
        "list",
        "exclamation mark",
        "refusal phrase",
    ]
    assert severities(diagnosis, "refusal phrase") == ["serious"]


@pytest.mark.parametrize(
    "column, values, first",
    [
        ("chosen_first", [True, True, True, False], 0.75),
        ("chosen_first", [0, 0, 0, 1], 0.25),
        ("chosen_position", ["first", "second", "first", "first"], 0.75),
        ("position", ["A", "B", "A", "A"], 0.75),
        ("position", [0, 1, 0, 0], 0.75),
        ("position", [1, 2, 1, 1.0], 0.75),
    ],
)
def test_position_column(tmp_path, column, values, first):
    rows = [{**row, column: values[i % 4]} for i, row in enumerate(random_pairs(80))]
    diagnosis = check(tmp_path, rows)
    assert diagnosis.report["position"]["column"] == column
    assert diagnosis.report["position"]["chosen_first"]["value"] == first
    assert severities(diagnosis, "shown first is preferred") == ["serious"]


def test_position_not_recorded_or_unreadable(sound, tmp_path):
    assert sound.report["position"] == {"recorded": False, "why": "not recorded"}
    rows = [{**row, "position": i} for i, row in enumerate(random_pairs(20))]
    assert check(tmp_path, rows).report["position"]["recorded"] is False
    assert chosen_was_first("position", pd.Series(["1", "1"])) is None  # first of 1, 2 or second of 0, 1?


def test_prompts_not_shared_and_turns(tmp_path):
    def talk(*turns):
        return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))

    rows = [{"chosen": talk(f"q{i}", "a", "b", "yes"), "rejected": talk(f"q{i}", "a", "b", "no")} for i in range(6)]
    rows += [{"chosen": talk("x", "yes"), "rejected": talk("x", "no")}]
    rows += [{"chosen": talk("x", "a", "b", "yes"), "rejected": talk("x", "b", "b", "no")}]
    rows += [{"chosen": talk("y", "yes"), "rejected": talk("z", "no")}]
    report = check(tmp_path, rows).report
    assert report["prompts"] == {
        "same": 7,
        "diverge_before_last_answer": 1,
        "different": 1,
        "not_checkable": 0,
        "not_shared": 2,
    }
    assert report["flagged"]["not_shared_prompt"] == {"count": 2, "first_rows": [8, 9]}
    assert report["turns"]["counts"] == {"1": 3, "2": 6}


def test_truncated_file_is_serious(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in random_pairs(600)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    assert severities(diagnose(path), "breaks off") == ["serious"]


def measured(**labels):
    """A report as far as the findings about labels read it."""
    fair = {"value": 0.58, "low": 0.55, "high": 0.62, "n": 800}
    return {"labels": {"measured": True, "accuracy_words": fair, "accuracy_length": fair,
                       "expected_calibration_error": 0.0, **labels}}  # fmt: skip


def test_overlapping_intervals_are_not_serious():
    near = {"value": -0.01, "low": -0.04, "high": 0.02, "n": 800}
    found = {one.id: one.severity for one in advice.judge_labels(measured(words_minus_length=near))}
    assert found == {"labels.weak": "warn", "labels.length_or_words": "info"}
    worse = {"value": -0.1, "low": -0.15, "high": -0.05, "n": 800}
    found = {one.id: one.severity for one in advice.judge_labels(measured(words_minus_length=worse))}
    assert found["labels.length_beats_words"] == "serious"
    wide = {"value": 0.52, "low": 0.44, "high": 0.66, "n": 60}
    found = {one.id: one for one in advice.judge_labels(measured(words_minus_length=near, accuracy_words=wide))}
    assert found["labels.coin"].severity == "warn" and "verified" in found["labels.coin"].action


# --- the methods --------------------------------------------------------------------------------


def test_near_duplicates_agree_with_comparing_all_pairs():
    rng = np.random.default_rng(2)
    rows = random_pairs(60, seed=3, words=30)
    for row in list(rows):  # variants from barely to heavily edited
        words = row["chosen"].split()
        for place in rng.choice(30, rng.integers(1, 9), replace=False):
            words[place] = "edited"
        rows.append({**row, "chosen": " ".join(words)})
    frame = pd.DataFrame(rows).sort_values(checks.PAIR).reset_index(drop=True)
    leaders = checks.near_duplicates(frame)
    sets = [checks.shingle_hashes(texts) for texts in frame[checks.PAIR].itertuples(index=False)]
    expected = np.arange(len(frame))
    for i in range(len(frame)):
        close = [j for j in range(i) if expected[j] == j and checks.jaccard(sets[i], sets[j]) >= 0.8]
        expected[i] = close[0] if close else i
    assert 10 < (expected != np.arange(len(frame))).sum() < 60
    assert leaders.tolist() == expected.tolist()


def test_case_and_spacing_make_no_new_prompt():
    frame = pd.DataFrame(random_pairs(7))
    frame.loc[[0, 1], "prompt"] = ["What  now?", "what NOW?"]
    groups, _ = checks.independent_groups(frame, np.arange(7))
    assert groups[0] == groups[1]
    assert len(set(groups)) == 6


def test_text_common_to_all_prompts_does_not_leave_nothing_to_hold_out(tmp_path):
    rules = sentence(np.random.default_rng(0), 1000)
    rows = [{**row, "prompt": f"{rules} {row['prompt']}"} for row in random_pairs(60)]
    report = check(tmp_path, rows).report
    assert report["duplicates"]["pairs_near_duplicates"] == 59
    assert (report["labels"]["grouped_by"], report["labels"]["groups"]) == ("prompt", 60)


def test_bradley_terry_ignores_which_side_comes_first():
    rng = np.random.default_rng(1)
    better, worse = (csr_matrix(rng.poisson(rate, size=(100, 2)).astype(float)) for rate in ([2.0, 1.0], [1.0, 2.0]))
    probability = out_of_fold(better, worse, np.arange(100))
    # sides exchanged: the fitted weights are negated, so that chosen is still preferred as often
    assert probability == pytest.approx(out_of_fold(worse, better, np.arange(100)), abs=1e-3)
    assert 0.5 < probability.mean() < 1


def test_log_odds_by_hand():
    z = log_odds_z(np.array([30, 70]), np.array([10, 90]), prior_words=20.0)
    prior = [20 * 40 / 200, 20 * 160 / 200]
    one, other = (30 + prior[0], 70 + prior[1]), (10 + prior[0], 90 + prior[1])
    expected = (np.log(one[0] / one[1]) - np.log(other[0] / other[1])) / np.sqrt(1 / one[0] + 1 / other[0])
    assert z[0] == pytest.approx(expected)
    assert log_odds_z(np.array([5]), np.array([3])).tolist() == [0.0]


def test_bootstrap_resamples_groups_not_pairs():
    values = np.repeat(np.random.default_rng(0).integers(0, 2, 40), 25)  # 40 prompts, 25 copies each
    by_prompt = intervals.cluster_bootstrap(values, np.repeat(np.arange(40), 25), np.random.default_rng(1))
    by_pair = intervals.cluster_bootstrap(values, np.arange(1000), np.random.default_rng(1))
    width = {name: e["high"] - e["low"] for name, e in (("prompt", by_prompt), ("pair", by_pair))}
    assert width["prompt"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(40), rel=0.15)
    assert width["prompt"] > 4 * width["pair"]
    assert intervals.cluster_bootstrap(np.ones(9), np.arange(9), np.random.default_rng(1), share=True)["low"] < 1
    assert intervals.cluster_bootstrap(np.ones(9), np.zeros(9), np.random.default_rng(1))["low"] is None


def test_numbers_do_not_depend_on_the_order_of_rows(tmp_path):
    rows = random_pairs(90) + random_pairs(30)  # with copies
    for seed in range(8):  # chains in which each resembles the next, but the first not the last
        link = random_pairs(1, seed=100 + seed, words=60)[0]
        for cut in (0, 20, 40):
            rows.append({**link, "chosen": " ".join(["new"] * cut + link["chosen"].split()[cut:])})
    rows += [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:4]]
    forward = check(tmp_path, rows).report
    shuffled = check(tmp_path, [rows[i] for i in np.random.default_rng(4).permutation(len(rows))]).report
    for part in (
        "duplicates",
        "consistency",
        "sides",
        "length",
        "format",
        "labels",
        "words",
        "turns",
        "prompts",
    ):
        assert shuffled[part] == forward[part], part


def test_same_seed_same_report(tmp_path):
    rows = random_pairs(60)
    assert check(tmp_path, rows).to_json() == check(tmp_path, rows).to_json()
    other = check(tmp_path, rows, seed=1).report["labels"]["accuracy_words"]
    assert other["low"] != check(tmp_path, rows).report["labels"]["accuracy_words"]["low"]
    with pytest.raises(DataError, match="seed is -1"):
        check(tmp_path, rows, seed=-1)


# --- showing it ---------------------------------------------------------------------------------


def without_figures(html):
    return re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)


def test_no_text_of_the_data_is_shown(tmp_path):
    rows = random_pairs(60) + random_pairs(10)  # copies, so that there is something to show
    rows += [{**row, "chosen": row["rejected"]} for row in random_pairs(5, seed=9)]
    diagnosis = check(tmp_path, rows)
    page = diagnosis.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    shown = [diagnosis.to_json(), diagnosis.summary()]
    shown += [without_figures(page), without_figures(diagnosis._repr_html_())]
    for row in rows:
        for text in row.values():
            words = text.split()
            for start in range(len(words) - 2):
                piece = " ".join(words[start : start + 3])
                assert not any(piece in place for place in shown)


def test_html_escapes_what_comes_from_the_data(tmp_path):
    path = write(tmp_path / "<script>alert(1) {{ 7 * 7 }}.jsonl", [*random_pairs(10), {"prompt": "p"}])
    diagnosis = diagnose(path)
    page = diagnosis.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    for html in (page, diagnosis._repr_html_()):
        assert "<script" not in html
        assert "&lt;script&gt;alert(1) {{ 7 * 7 }}.jsonl" in html


def test_html_is_self_contained_and_the_fragment_is_no_page(tmp_path, planted):
    page = planted.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count('<img src="data:image/png;base64,') == 1
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|@import|https?://", page)
    assert "<html" not in planted._repr_html_() and "<body" not in planted._repr_html_()


def test_words_can_be_masked_but_stay_in_the_json(tmp_path):
    rows = [{**row, "chosen": row["chosen"] + " rudeword"} for row in random_pairs(60)]
    diagnosis = check(tmp_path, rows, show_words=False)
    page = diagnosis.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "rudeword" not in page and "r•••••••" in page
    assert "rudeword" not in diagnosis.summary()
    assert "rudeword" in diagnosis.to_json()
    diagnosis.show_words = True
    assert "rudeword" in diagnosis.summary()


def test_words_of_few_answers_are_not_listed(tmp_path):
    rows = random_pairs(60)
    for row in rows[:4]:
        row["chosen"] += " secretname"
    assert "secretname" not in check(tmp_path, rows).to_json()


def test_json_is_the_report(planted):
    assert json.loads(planted.to_json()) == planted.report


def test_summary_has_the_numbers_and_fits_a_terminal(planted):
    lines = planted.summary().splitlines()
    assert lines[1].split(maxsplit=1) == ["rows", "114 read, 113 used, 1 rejected"]
    assert any(line.startswith("  serious") or line.startswith("  warn") for line in lines)
    assert all(len(line) <= 110 for line in lines[1:])


def test_figures_are_drawn_from_the_report(planted, sound, tmp_path):
    for diagnosis in (planted, sound, check(tmp_path, [{"prompt": "p", "chosen": "?", "rejected": "!"}])):
        figure = diagnosis.plot()
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / "figure.png", dpi=30)
    bars = sound.plot().axes[1].patches
    assert sum(bar.get_height() for bar in bars) == 200


def test_tiny_and_wordless_data_still_give_a_report(tmp_path):
    for rows in (
        [{"prompt": "p", "chosen": "c", "rejected": "r"}],
        [{"prompt": f"{i}?", "chosen": "!" * (i + 1), "rejected": "..." * i} for i in range(60)],
        [{"prompt": "", "chosen": "", "rejected": ""}] * 3,
        [{**row, "chosen": ""} for row in random_pairs(60)],
    ):
        diagnosis = check(tmp_path, rows)
        assert diagnosis.to_html(tmp_path / "page.html").exists()
        assert json.loads(diagnosis.to_json())["rows"]["used"] == len(rows)
        assert "What to do" in diagnosis.summary()


def test_pairs_already_read_give_the_same_report(tmp_path, sound):
    path = write(tmp_path / "pairs.jsonl", random_pairs(200))
    again = diagnose(read_pairs(path)).report
    assert {**again, "source": None} == {**sound.report, "source": None}
