"""Whatever is wrong with an input, one clear message names the place and the remedy."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from alignkit import errors, optimize, rewards
from alignkit.errors import AlignkitError, ContextError, DataError, RewardError

PROMPTS = ["please explain iron ?", "please explain salt ?"]
GOOD = {"prompt": PROMPTS, "chosen": ["iron can rust .", "salt melts ice ."], "rejected": ["no .", "yes ."]}


def use_directly(tiny, reward):
    return reward(PROMPTS * 2, ["iron can rust ."] * 4)


def use_in_grpo(tiny, reward):
    return optimize.grpo(tiny, PROMPTS, reward, steps=1, prompts_per_step=2, group_size=2, max_new_tokens=8)


def use_in_rloo(tiny, reward):
    return optimize.rloo(tiny, PROMPTS, reward, steps=1, prompts_per_step=2, group_size=2, max_new_tokens=8)


def use_in_best_of_n(tiny, reward):
    return optimize.best_of_n(tiny, PROMPTS, reward, 2, max_new_tokens=8)


def use_as_trl(tiny, reward):
    return rewards.to_trl(reward)(prompts=PROMPTS, completions=["salt .", "salt ."])


def broken(prompts, completions):
    raise KeyError("topic")


def spoiled(value):
    """Fine for every row but the second."""
    return lambda prompts, completions: [value if i == 1 else 0.5 for i in range(len(completions))]


def changes(which):
    """Writes into what it was given."""

    def reward(prompts, completions):
        {"prompts": prompts, "completions": completions}[which][1] = "better"
        return [1.0] * len(completions)

    return reward


@pytest.mark.parametrize("use", [use_directly, use_in_grpo, use_in_rloo, use_in_best_of_n, use_as_trl])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (spoiled(float("nan")), r"'mine' returned nan for row 1 \(1 such rows\), prompt .*must be finite"),
        (spoiled(float("-inf")), "'mine' returned -inf for row 1 .*completion .*must be finite"),
        (spoiled("good"), "'mine' returned 'good' for row 1, prompt .*completion .*must be a number"),
        (spoiled("1.5"), "'mine' returned '1.5' for row 1"),
        (spoiled({"score": 1.0}), "'mine' returned {'score': 1.0} for row 1"),
        (spoiled([1.0, 2.0]), r"'mine' returned \[1.0, 2.0\] for row 1"),
        (spoiled(1 + 2j), "'mine' returned .1.2j. for row 1"),
        (lambda p, c: "x" * len(c), "'mine' returned 'x+' for . completions"),
        (lambda p, c: dict.fromkeys(range(len(c)), 1.0), "'mine' returned {0: 1.0"),
        (lambda p, c: torch.full((len(c),), torch.nan, dtype=torch.bfloat16), "'mine' returned nan for row 0"),
        (changes("prompts"), "'mine' changed 'prompts' in place, row 1: it was 'please .*', now it is 'better'"),
        (changes("completions"), "'mine' changed 'completions' in place, row 1: it was '.*', now it is 'better'"),
        (lambda p, c: rewards.Judgement(np.zeros(len(c)), critiques=["one"]), "'mine' returned 1 critiques for"),
        (
            lambda p, c: [1.0],
            r"'mine' returned scores of shape \(1,\) for \d completions: .*one number for each",
        ),
        (lambda p, c: 1.0, "'mine' returned 1.0 for . completions: .*one number for each"),
        (lambda p, c: None, "'mine' returned None for . completions: .*one number for each"),
        (lambda p, c: np.float64(1), "'mine' returned .*1.0.* for . completions|shape"),
        (lambda p, c: np.zeros((len(c), 2)), r"'mine' returned scores of shape \(\d, 2\)"),
        (lambda p, c: [[1.0]] + [[1.0, 2.0]] * (len(c) - 1), r"'mine' returned \[1.0, 2.0\] for row 1"),
        (lambda completions, answer: [1.0] * len(answer), "'mine' asks for 'answer', but no such column .*answer=..."),
        (lambda p, c: rewards.Judgement([float("inf")] * len(c)), "'mine' returned inf for row 0"),
        (broken, "'mine' raised KeyError: 'topic' .*try it on one completion by itself"),
        (lambda p: [1.0], "'mine' raised TypeError"),
    ],
)
def test_a_reward_that_misbehaves_is_named(tiny, use, function, message):
    with pytest.raises(RewardError, match=message):
        use(tiny, rewards.as_reward(function, "mine"))


def test_the_error_of_a_reward_keeps_its_cause():
    with pytest.raises(RewardError) as caught:
        rewards.as_reward(broken)(PROMPTS, ["a", "b"])
    assert isinstance(caught.value.__cause__, KeyError) and "'broken'" in str(caught.value)


def test_a_reward_class_must_return_a_judgement():
    class Mine(rewards.Reward):
        card = rewards.RandomReward(0).card

        def judge(self, prompts, completions):
            return [1.0] * len(completions)

    with pytest.raises(RewardError, match="returned a list from judge: it must be a Judgement"):
        Mine()(PROMPTS, ["a", "b"])


def test_what_cannot_be_called_is_no_reward():
    with pytest.raises(RewardError, match=r"callable on \(prompts, completions\), not float"):
        rewards.as_reward(0.5)


def test_a_reward_needs_one_prompt_for_each_completion():
    with pytest.raises(RewardError, match="2 'prompts' for 1 completions: give one for each"):
        rewards.RandomReward(0)(PROMPTS, ["a"])


FITS = {
    "reward": lambda tiny, data, **options: rewards.BradleyTerry.fit(data, tiny, **options),
    "dpo": lambda tiny, data, **options: optimize.dpo(tiny, data, **options),
}
LONG = "salt " * 200


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (
            {"prompt": PROMPTS, "completion": ["a", "b"]},
            DataError,
            r"missing \['chosen', 'rejected'\], found \['prompt', ",
        ),
        ({k: [] for k in GOOD}, DataError, "no pairs to fit: the data set is empty"),
        (
            GOOD | {"chosen": ["iron .", None]},
            DataError,
            "row 1: 'chosen' is NoneType, not text; drop or mend",
        ),
        (GOOD | {"rejected": [1, 2]}, DataError, "row 0: 'rejected' is int, not text"),
        (GOOD | {"prompt": [PROMPTS[0], None]}, DataError, "row 1: 'prompt' is NoneType, not text"),
        (
            GOOD | {"rejected": ["no .", LONG]},
            ContextError,
            "row 1: prompt .5 tokens. .*201.*96 tokens.*shorten or drop",
        ),
        (GOOD | {"prompt": [LONG, PROMPTS[0]]}, ContextError, "row 0: prompt .201 tokens."),
    ],
)
def test_unusable_pairs_are_named_by_column_or_row(tiny, fit, columns, error, message):
    with pytest.raises(error, match=message):
        fit(tiny, Dataset.from_dict(columns))


def test_messages_behind_text_are_named_by_a_policy_and_read_as_text_by_a_reward(tiny):
    """A policy can't tell how such a row would be sampled; a reward reads what the assistant said."""
    mixed = Dataset.from_dict(GOOD | {"chosen": [[{"role": "assistant", "content": text}] for text in GOOD["chosen"]]})
    with pytest.raises(AlignkitError, match="row 0: the completion is messages, but the prompt is text"):
        optimize.dpo(tiny, mixed)
    read, plain = (rewards.BradleyTerry.fit(data, tiny, epochs=1, progress=False)(PROMPTS, GOOD["chosen"]).scores
                   for data in (mixed, Dataset.from_dict(GOOD)))  # fmt: skip
    assert read.tolist() == plain.tolist()


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        (None, r"missing \['margin'\]"),
        ([1.0, None], "row 1: 'margin' is None"),
        ([float("nan"), 1.0], "row 0: .* nan"),
    ],
)
def test_unusable_margins_are_named(tiny, margins, message):
    data = Dataset.from_dict(GOOD | ({"margin": margins} if margins else {}))
    with pytest.raises(DataError, match=message):
        rewards.BradleyTerry.fit(data, tiny, margin="margin")


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (GOOD, DataError, r"missing \['completion'\]"),
        ({"prompt": [], "completion": []}, DataError, "no demonstrations to fit: the data set is empty"),
        (
            {"prompt": PROMPTS, "completion": ["iron .", None]},
            DataError,
            "row 1: 'completion' is NoneType, not text",
        ),
        ({"prompt": PROMPTS, "completion": ["iron .", LONG]}, ContextError, "row 1: .*context of 96 tokens"),
    ],
)
def test_unusable_demonstrations_are_named_by_column_or_row(tiny, columns, error, message):
    with pytest.raises(error, match=message):
        optimize.sft(tiny, Dataset.from_dict(columns))


def test_a_completion_longer_than_the_context_cannot_be_scored(tiny):
    reward = rewards.BradleyTerry.new(tiny)
    with pytest.raises(RewardError, match="raised ContextError: row 1: .*shorten or drop that row"):
        reward(PROMPTS, ["salt .", LONG])


def test_every_error_is_one_line_and_of_one_kind(tiny):
    for kind in (DataError, RewardError, ContextError):
        assert issubclass(kind, AlignkitError) and issubclass(kind, ValueError)
    with pytest.raises(AlignkitError) as caught:
        rewards.as_reward(spoiled(float("nan")))(PROMPTS, ["two\nlines", "and\nmore"])
    assert "\n" not in str(caught.value)


def test_shared_checks_name_the_argument_the_value_and_what_is_allowed():
    errors.check_positive("here", beta=1e-9, n=1)
    errors.check_at_least("here", 2, group_size=2)
    errors.check_choice("here", "kind", "b", ("a", "b"))
    for value in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(AlignkitError, match=f"here: beta must be a finite number above 0, not {value}"):
            errors.check_positive("here", n=1, beta=value)
    with pytest.raises(AlignkitError, match="here: group_size must be at least 2, not 1"):
        errors.check_at_least("here", 2, group_size=1)
    with pytest.raises(AlignkitError, match="here: kind must be one of a, b, not 'c'"):
        errors.check_choice("here", "kind", "c", ("a", "b"))
