"""The world of sums: its workings are right, its gold can't be fooled, its shipped models are half right."""

import numpy as np
import pytest

from alignkit import optimize, rewards, worlds
from alignkit.errors import AlignkitError
from alignkit.policy import load_policy
from alignkit.worlds.arithmetic import CHATTER, COLUMNS, work

SUM = "4 3 7 + 1 8 5 ="
ONES, TENS, HUNDREDS, ANSWER = "7 + 5 + 0 = 1 2 .", "3 + 8 + 1 = 1 2 .", "4 + 1 + 1 = 0 6 .", "answer 6 2 2 ."
IDEAL = f"{ONES} {TENS} {HUNDREDS} {ANSWER}"


@pytest.fixture(scope="module")
def sums():
    return worlds.load("arithmetic")


def gold(sums, completion, prompt=SUM):
    return float(sums.gold([prompt], [completion])[0])


def test_the_working_of_every_prompt_is_the_sum(sums):
    for split in sums.sizes:
        for prompt in sums.prompts(split):
            a, b = ("".join(half.split()) for half in prompt.removesuffix("=").split("+"))
            right = work(prompt)
            assert "".join(right.answer.split()[1:-1]) == str(int(a) + int(b))
            assert len(right.steps) == COLUMNS and sums.answer(sums.ideal(prompt)) == str(int(a) + int(b))


def test_splits_are_disjoint_and_only_the_test_split_carries_at_every_column(sums):
    prompts = {split: sums.prompts(split) for split in sums.sizes}
    assert {split: len(p) for split, p in prompts.items()} == sums.sizes
    assert len({p for ps in prompts.values() for p in ps}) == sum(sums.sizes.values())
    for split, ps in prompts.items():
        assert {work(p).carries == COLUMNS for p in ps} == {split == "test"}


def test_the_corpus_spares_all_splits_and_uses_only_the_vocabulary(sums):
    corpus = sums.corpus(2000, seed=3)
    assert corpus == sums.corpus(2000, seed=3) != sums.corpus(2000, seed=4)
    assert not {p for p, _ in corpus} & {p for split in sums.sizes for p in sums.prompts(split)}
    assert {word for pair in corpus for text in pair for word in text.split()} <= set(sums.vocabulary())


def test_authors_without_bad_habits_are_always_right(sums):
    honest = dict.fromkeys(("chatter", "bare", "slip", "forget", "misread", "misstate", "miscopy", "unfinished"), 0.0)
    assert all(c == sums.ideal(p) for p, c in sums.corpus(300, seed=0, **honest))
    prompts, completions = map(list, zip(*sums.corpus(400, seed=0, **{**honest, "misstate": 0.3}), strict=True))
    lucky = sums.symptoms(prompts, completions)["lucky"]
    assert sums.correct(prompts, completions).all() and 0.3 < lucky.mean() < 0.9  # right answers, wrong steps


@pytest.mark.parametrize(
    ("completion", "labels"),
    [
        (IDEAL, [True] * 4),
        (f"{CHATTER[0]} {IDEAL}", [True] * 5),
        (f"{ONES} 3 + 8 + 0 = 1 1 . {HUNDREDS} answer 6 1 2 .", [True, False, True, False]),
        (f"{TENS} {ONES} {HUNDREDS} {ANSWER}", [False, False, True, True]),  # steps have their places
        (f"{IDEAL} {ONES}", [True, True, True, False, False]),  # an answer stands last
        (f"{ONES} {TENS} {HUNDREDS} {HUNDREDS} {ANSWER}", [True, True, True, False, True]),
        (f"{ONES} hold hold .", [True, False]),
        (f"{ONES} 3 + 8", [True, False]),
        ("", []),
    ],
)
def test_step_labels(sums, completion, labels):
    assert sums.step_labels(SUM, completion) == labels
    assert len(sums.segments(completion)) == len(labels)


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        (IDEAL, 1),
        (ANSWER, 1),
        ("answer 0 6 2 2 .", 0),
        (f"answer 6 2 1 . {ANSWER}", 0),  # one answer only
        (f"{ANSWER} {ANSWER}", 0),
        (f"{ANSWER} {ONES}", 0),
        (ANSWER.removesuffix(" ."), 0),
        ("answer .", 0),
        ("6 2 2 .", 0),
        ("", 0),
    ],
)
def test_only_one_final_answer_counts(sums, completion, right):
    assert sums.correct([SUM], [completion])[0] == right


def test_nothing_beats_the_ideal_and_each_fault_costs(sums):
    best = gold(sums, IDEAL)
    assert best == 1.5
    worse = [
        ANSWER, f"{ONES} {TENS} {HUNDREDS}", f"{IDEAL} {ANSWER}", f"{CHATTER[0]} {IDEAL}", f"{IDEAL} {ONES}",
        f"{ONES} {ONES} {TENS} {HUNDREDS} {ANSWER}", f"{ONES} 3 + 8 + 0 = 1 2 . {HUNDREDS} {ANSWER}", "", "hold hold",
        " ".join([ONES] * 8), " ".join([ANSWER] * 8),
    ]  # fmt: skip
    assert all(gold(sums, text) < best for text in worse)
    assert gold(sums, "hold . " * 5) < gold(sums, "hold .") < gold(sums, "") == 0.0


def test_best_of_thousands_by_gold_is_a_right_sum_and_nothing_else(sums):
    patient = load_policy("arithmetic")
    prompts = sums.prompts("seen")[:5]
    rollout = patient.rollout(prompts, 1000, seed=3)
    scores = sums.gold(rollout.prompts, rollout.completions).reshape(5, -1)
    tops = [rollout.completions[k * 1000 + i] for k, i in enumerate(scores.argmax(1))]
    assert tops == [sums.ideal(p) for p in prompts]


@pytest.mark.slow
def test_unregularized_treatment_on_gold_learns_to_add(sums):
    patient = load_policy("arithmetic")
    treated = optimize.rloo(
        patient, sums.prompts(), rewards.GoldReward(sums), beta=0.0, learning_rate=5e-4, steps=25, progress=False
    )
    seen = sums.prompts("seen")[:60]
    before, after = (p.rollout(seen, 8, seed=4) for p in (patient, treated))
    right = [sums.correct(r.prompts, r.completions).mean() for r in (before, after)]
    assert right[1] > right[0] + 0.15
    symptoms = sums.symptoms(after.prompts, after.completions)
    assert symptoms["untidy"].mean() < 0.1 and symptoms["no working"].mean() < 0.1


@pytest.mark.parametrize("number", range(5))
def test_every_shipped_model_is_right_about_half_of_the_time(sums, number):
    rollout = load_policy("arithmetic", patient=number).rollout(sums.prompts("seen"), 8, seed=5)
    rates = {k: np.nanmean(v) for k, v in sums.symptoms(rollout.prompts, rollout.completions).items()}
    assert 0.4 <= rates["wrong answer"] <= 0.7, rates
    assert 0.02 <= rates["lucky"] <= 0.3, rates  # right answers can hide wrong steps


@pytest.mark.parametrize("prompt", ["4 3 7 + 1 8 5", "4 3 7 - 1 8 5 =", "437 + 185 =", "", "how do i make tea ?"])
def test_a_prompt_of_another_world_is_named(sums, prompt):
    with pytest.raises(AlignkitError, match="not a prompt of world 'arithmetic'"):
        sums.gold([prompt], [IDEAL])
    with pytest.raises(AlignkitError, match="split must be one of feedback"):
        sums.prompts("nowhere")


def test_pretty_reads_like_a_sum(sums):
    assert sums.pretty(IDEAL) == "7+5+0=12. 3+8+1=12. 4+1+1=06. Answer 622."
