"""A case from feedback to follow-up: the word-list reward, held-out evidence, the trial, and the report."""

import json

import numpy as np
import pytest
from datasets import Dataset

from alignkit import checkup, rewards
from alignkit.checkup.holdout import in_words
from alignkit.errors import AlignkitError, DataError
from alignkit.lab import sweep as runner
from alignkit.lab.build import make_policy

FILLER = "the a some of it and then one more thing about rivers stones maps boats wind rain".split()


def talk(rng, n=9):
    return " ".join(rng.choice(FILLER, n))


@pytest.fixture(scope="module")
def planted():
    """120 pairs on 40 prompts: the preferred side says "certainly", at a random place."""
    rng = np.random.default_rng(0)
    rows = [(f"question {i % 40} ?", talk(rng, 5) + " certainly " + talk(rng, 4), talk(rng, 10)) for i in range(120)]
    return Dataset.from_dict(dict(zip(("prompt", "chosen", "rejected"), map(list, zip(*rows, strict=True)),
                                      strict=True)))  # fmt: skip


@pytest.fixture(scope="module")
def word_list(planted):
    return rewards.BagOfWords.fit(planted)


# --- the word list


def test_word_list_finds_the_planted_word_and_shows_it(word_list):
    assert word_list.coefficients().iloc[-1].term == "certainly"
    assert len(word_list.coefficients(most=3)) == 6
    better, worse = word_list([""] * 2, ["certainly a map of rivers", "the boats and the wind"]).scores
    assert better > worse + 1


def test_turning_all_pairs_around_turns_the_sign(planted, word_list):
    turned = planted.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    said = rewards.BagOfWords.fit(turned)(planted["prompt"], planted["chosen"]).scores
    np.testing.assert_allclose(said, -word_list(planted["prompt"], planted["chosen"]).scores, atol=1e-2)


def test_word_list_does_not_depend_on_the_order_of_pairs_or_on_chance(planted, word_list):
    texts = planted["rejected"][:20]
    again = rewards.BagOfWords.fit(planted)([""] * 20, texts).scores
    np.testing.assert_array_equal(again, word_list([""] * 20, texts).scores)
    mixed = rewards.BagOfWords.fit(planted.select(np.random.default_rng(1).permutation(len(planted))))
    assert np.corrcoef(mixed([""] * 20, texts).scores, again)[0, 1] > 0.99


@pytest.mark.parametrize("text", ["", "zzz qqq", "!!! 。。", "certainly " * 2000, "\u2019 \n\n \t"])
def test_word_list_is_finite_on_any_text(word_list, text):
    assert np.isfinite(word_list(["question ?"], [text]).scores).all()


def test_word_list_on_no_text_and_without_words(word_list, planted):
    assert word_list([], []).scores.shape == (0,)
    empty = Dataset.from_dict({"prompt": ["p"] * 3, "chosen": ["?"] * 3, "rejected": ["!"] * 3})
    with pytest.raises(DataError, match="no word occurs in 2"):
        rewards.BagOfWords.fit(empty)
    same = planted.map(lambda row: {"rejected": row["chosen"]})
    with pytest.raises(DataError, match="same words"):
        rewards.BagOfWords.fit(same)


def test_calibration_tells_shuffled_labels_from_true_ones(planted, word_list):
    rng = np.random.default_rng(0)
    coin = planted.map(lambda row: row if rng.random() < 0.5 else {"chosen": row["rejected"],
                                                                     "rejected": row["chosen"]})  # fmt: skip
    unsure = rewards.BagOfWords.fit(coin)
    gap = {name: np.abs(np.subtract(*rewards.score_pairs(r, planted))).mean()
           for name, r in (("true", word_list), ("coin", unsure))}  # fmt: skip
    assert gap["coin"] < 0.3 * gap["true"]


def test_length_can_be_taken_out():
    rng = np.random.default_rng(0)
    rows = {"prompt": [f"q {i}" for i in range(80)], "chosen": [talk(rng, 12) for _ in range(80)],
            "rejected": [talk(rng, 6) for _ in range(80)]}  # fmt: skip
    reward = rewards.BagOfWords.fit(Dataset.from_dict(rows))
    short, long = "rivers maps", "rivers maps " * 30
    with_length, without = reward, reward.at_equal_length()
    assert np.ptp(with_length([""] * 2, [short, long]).scores) > np.ptp(without([""] * 2, [short, long]).scores)
    assert without.weights[-1] == 0 and with_length.weights[-1] > 0
    assert without.card.name != with_length.card.name


# --- held-out evidence


def test_no_prompt_is_on_both_sides_of_the_split(planted):
    rest, held = checkup.split_by_prompt(planted, 0.25, seed=1)
    assert not set(rest["prompt"]) & set(held["prompt"])
    assert len(rest) + len(held) == len(planted) and 0.2 < len(held) / len(planted) < 0.3
    with pytest.raises(AlignkitError, match="share"):
        checkup.split_by_prompt(planted, 1.0)
    with pytest.raises(AlignkitError, match="1 prompts can't be split"):
        checkup.split_by_prompt(planted.select([0]), 0.5)


def longer(prompts, completions):
    return [len(text.split()) for text in completions]


def test_held_out_knows_length_from_content(planted, word_list):
    found = checkup.held_out({"words": word_list, "longer": rewards.as_reward(longer)}, planted)
    assert found.table.loc["words", "length out"]["value"] > 0.9
    assert found.table.loc["longer", "length out"]["value"] == 0.5  # nothing is left of it
    assert found.table.loc["words", "equal length"]["n"] == len(planted)
    assert found.table.loc["longer", "calibration error"] is None or np.isnan(
        found.table.loc["longer", "calibration error"]
    )
    assert "%" in found.shown().loc["words", "accuracy"]


def test_choose_takes_the_simplest_that_is_not_clearly_beaten(planted, word_list):
    def coin(prompts, completions):
        return [hash_free(text) for text in completions]

    def hash_free(text):
        return sum(map(ord, text)) % 97

    first = {"coin": rewards.as_reward(coin), "words": word_list}
    assert checkup.held_out(first, planted).choose()[0] == "words"
    twin = {"simple": word_list, "same": word_list}
    assert checkup.held_out(twin, planted).choose()[0] == "simple"
    with pytest.raises(AlignkitError, match="none of these rewards"):
        checkup.held_out({"coin": rewards.as_reward(coin)}, planted).choose()


def test_learning_curve_grows(planted):
    rest, held = checkup.split_by_prompt(planted, 0.4)
    curve = checkup.learning_curve(rewards.BagOfWords.fit, rest, held, [6, len(rest)])
    assert curve.accuracy.iloc[1] > curve.accuracy.iloc[0] - 0.05 and (curve.low <= curve.high).all()


def test_mend_drops_what_the_check_up_names(planted, tmp_path):
    rows = [dict(row) for row in planted]
    one = rows[0]
    bad = [one, {**one, "chosen": one["rejected"], "rejected": one["chosen"]}, {**rows[1], "rejected": ""},
           {**rows[2], "rejected": rows[2]["chosen"]}]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows + bad))
    read = checkup.read_pairs(path)
    diagnosis = checkup.diagnose(read)
    mended, counts = checkup.mend(read, diagnosis)
    assert counts["exact_duplicates"] == 1 and counts["empty_side"] == 1 and counts["identical_sides"] == 1
    assert len(mended) == len(rows) - 1  # the first pair is contradicted, so it goes with its copies
    assert {"prompt", "chosen", "rejected", "row", "turns"} <= set(mended.column_names)


def test_mend_keeps_messages_and_every_column():
    def said(role, text):
        return [{"role": role, "content": text}]

    rows = [{"prompt": said("user", f"question {i}?"), "chosen": said("assistant", "yes"),
             "rejected": said("assistant", "no"), "level": i, "mixed": i if i % 2 else "odd"}
            for i in range(12)]  # fmt: skip
    rows.append({**rows[0], "rejected": said("assistant", "")})
    read = checkup.read_pairs(rows)
    mended, _ = checkup.mend(read, checkup.diagnose(read))
    assert len(mended) == 12 and mended["prompt"][3] == rows[3]["prompt"] and mended["chosen"][3] == rows[3]["chosen"]
    assert mended["level"][:] == list(range(12)) and mended["mixed"][:2] == ['"odd"', "1"]
    rest, held = checkup.split_by_prompt(mended, 0.5)
    assert len(rest) + len(held) == 12
    found = checkup.held_out({"longer": rewards.as_reward(lambda p, c: [len(m[-1]["content"]) for m in c])}, mended)
    assert found.right["longer"].all()


def test_fitting_leaves_out_what_does_not_fit(tiny, pairs):
    long = {**pairs[0], "chosen": "of course . " * 200}
    mixed = Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in (pairs[1], long)])
    assert len(checkup.fitting(mixed, tiny)) == 1
    with pytest.raises(DataError, match="no pair fits"):
        checkup.fitting(mixed.select([1]), tiny)


# --- the trial


def test_trial_measures_the_patient_as_zero_and_best_of_n_by_the_guide(tiny, world):
    def says_of(prompts, completions):
        return [float("of" in text.split()) for text in completions]

    guide = rewards.as_reward(says_of)
    found = checkup.trial(tiny, {"best of 8": 8, "a copy": tiny.copy()}, world.prompts()[:20], guide, guide, n=4,
                             max_new_tokens=12)  # fmt: skip
    table = found.table
    assert abs(table.loc["untreated", "guide (sd)"]) < 1e-9 and table.loc["untreated", "KL (nats)"] == 0
    assert table.loc["best of 8", "guide (sd)"] > 0.2
    assert abs(table.loc["a copy", "KL (nats)"]) < 1e-6  # the same weights
    assert len(found.asked) == len(found.answers["best of 8"]) == 80
    assert found.choose()[0] == "best of 8"
    assert found.choose(most_kl=0.1)[0] in ("untreated", "a copy")
    with pytest.raises(AlignkitError, match="at least 2 prompts"):
        checkup.trial(tiny, {}, ["one"], guide, guide)
    with pytest.raises(AlignkitError, match="best-of-n"):
        checkup.trial(tiny, {"none": 0}, world.prompts()[:2], guide, guide, n=1, max_new_tokens=4)


# --- the report

SECRET = "my neighbour Ezekiel told me yesterday that he hid the spare key under"


def filed(**changes):
    case = checkup.Case("A case", {"pairs": 1234, **changes}, private=[SECRET])
    for phase in ("feedback", "reward", "optimization", "evaluation"):
        case.decide(phase, f"Question of {phase}?", f"decided {phase}", "because | of\nnumbers",
                    {"share": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}, "rows": 7})  # fmt: skip
    return case.risk("It may <b>fail</b>.", "the refusals").limit("Nothing about people.")


def test_report_shows_every_decision(tmp_path):
    case = filed()
    page = case.to_html(tmp_path / "case.html").read_text()
    shown = ["50 % [40, 60]", "pairs: 1,234", "the refusals", "Nothing about people."]
    for text in (*shown, *(f"decided {phase}" for phase in ("feedback", "reward", "optimization", "evaluation"))):
        assert text in page
    assert "<b>fail</b>" not in page
    assert case._repr_html_() in page and "<html" not in case._repr_html_()


def test_report_refuses_rows_of_the_data():
    quoted = " ".join(SECRET.split()[2:11])
    with pytest.raises(DataError, match="8 words in a row") as error:
        filed().limit(f"One row says: {quoted}")
    assert "Ezekiel" not in str(error.value)
    with pytest.raises(DataError, match="Prescription"):
        filed().decide("reward", "?", "this", "that", {"example": SECRET.upper()})
    with pytest.raises(DataError, match="the head"):
        filed(source=SECRET)._repr_html_()


def test_report_refuses_to_be_incomplete():
    with pytest.raises(AlignkitError, match="Prescription, Treatment, Follow-up"):
        checkup.Case("A case").decide("feedback", "?", "yes", "so", {"n": 1})._repr_html_()
    with pytest.raises(AlignkitError, match="no evidence"):
        checkup.Case("A case").decide("feedback", "?", "yes", "so", {})
    with pytest.raises(AlignkitError, match="phase must be one of"):
        checkup.Case("A case").decide("surgery", "?", "yes", "so", {"n": 1})
    case = filed()
    case.risks.clear()
    with pytest.raises(AlignkitError, match="at least one risk"):
        case._repr_html_()


def test_numbers_in_words():
    assert in_words({"value": 0.031, "low": -0.01, "high": 0.07, "n": 3}, signed=True) == "+3.1 points [-1.0, +7.0]"
    assert in_words({"value": None, "low": None, "high": None, "n": 3}) == "too few pairs"
    assert (in_words(float("nan")), in_words(0.12345), in_words(12345), in_words("a")) == ("-", "0.123", "12,345", "a")


# --- the notebook on a data set and a backbone of one's own


def test_a_missing_data_set_gives_a_clear_error():
    with pytest.raises(DataError, match="no such file"):
        checkup.read_pairs("nowhere/pairs.jsonl")


@pytest.mark.slow
def test_notebook_treats_a_backbone_of_ones_own(tmp_path, world, pairs):
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps({k: row[k] for k in ("prompt", "chosen", "rejected")}) for row in pairs))
    model = make_policy(world.vocabulary(), seed=0, hidden=16, layers=1).save(tmp_path / "model")
    (outcome,) = runner.run(["16"], profile="smoke", out=tmp_path / "out", jobs=1, timeout=200,
                            parameters={"data": str(path), "backbone": str(model)})  # fmt: skip
    assert outcome.status == "done", outcome.describe()
