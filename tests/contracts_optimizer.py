"""What every treatment must hold, checked for one small run of each.

A new method is one function and one row in `EXAMPLES`; `test_no_method_is_without_an_example` asks for the row.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import weights_of
from datasets import Dataset

from alignkit import optimize, worlds
from alignkit.errors import AlignkitError
from alignkit.pictures import load_picture_policy
from alignkit.policy import Policy, load_policy

PROMPTS = ["please explain iron ?", "tell me about glass .", "how do i cook rice ?", "please explain salt ?"]
TEXTS = ["boil water for the tea .", "thank you . pour the tea slowly .", "no .", "feed the roses with ash ."]
PAIRS = Dataset.from_dict({"prompt": PROMPTS, "chosen": TEXTS, "rejected": TEXTS[1:] + TEXTS[:1]})
LABELS = Dataset.from_dict({"prompt": PROMPTS, "completion": TEXTS, "label": [True, False, True, False]})
RANKINGS = Dataset.from_dict({"prompt": PROMPTS, "ranked": [TEXTS[i:] + TEXTS[:i] for i in range(4)]})
DEMONSTRATIONS = LABELS.remove_columns("label")


def length(prompts, completions):
    return [0.1 * len(c) for c in completions]


def of_rl(name):
    def run(policy, prompts, **options):
        options = {"steps": 2, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 6, **options}
        return getattr(optimize, name)(policy, prompts, length, **options)

    return run, PROMPTS


def of_data(name, data, **settings):
    def run(policy, data, **options):
        return getattr(optimize, name)(policy, data, batch_size=2, **settings, **options)

    return run, data


def in_rounds(name, *judge, **settings):
    settings = {"rounds": 2, "prompts_per_round": 4, "batch_size": 2, "max_new_tokens": 6, **settings}

    def run(policy, data, **options):
        return getattr(optimize, name)(policy, data, *judge, **settings, **options)

    return run, DEMONSTRATIONS if name == "spin" else PROMPTS


def at_each_step(name, judge, **settings):
    def run(policy, prompts, **options):
        return getattr(optimize, name)(policy, prompts, judge, steps=2, prompts_per_step=2, max_new_tokens=6,
                                       **settings, **options)  # fmt: skip

    return run, PROMPTS


def longer(prompts, a, b):
    return np.array([len(x) > len(y) for x, y in zip(a, b, strict=True)])


#: name of a treatment: (how it is run, its data)
EXAMPLES = {
    **{name: of_rl(name) for name in optimize.FAMILIES["rl"]},
    **{name: of_data(name, PAIRS) for name in optimize.PAIR_METHODS},
    "modpo": of_data("modpo", PAIRS, others=[(0.5, length)], weight=0.5),
    "sft": of_data("sft", DEMONSTRATIONS), "kto": of_data("kto", LABELS),
    "rrhf": of_data("rrhf", RANKINGS), "pro": of_data("pro", RANKINGS),
    "online_dpo": at_each_step("online_dpo", longer),
    "reward_regression": at_each_step("reward_regression", length, group_size=3),
    "raft": in_rounds("raft", length, n=3), "rso": in_rounds("rso", length, n=4, keep=2),
    "iterative_dpo": in_rounds("iterative_dpo", longer), "spin": in_rounds("spin"),
    "sppo": in_rounds("sppo", longer, group_size=3),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", list(EXAMPLES))

#: treatments without an update: what they say, from a policy and prompts
SAYING = {
    "best_of_n": lambda p, x, **o: optimize.best_of_n(p, x, length, 3, max_new_tokens=6, **o),
    "soft_best_of_n": lambda p, x, **o: optimize.soft_best_of_n(p, x, length, 3, 1.0, max_new_tokens=6, **o),
    "sample_optimum": lambda p, x, **o: optimize.sample_optimum(p, x, length, 1.0, 9.0, 8, max_new_tokens=6, **o),
    "self_consistent": lambda p, x, **o: optimize.self_consistent(p, x, str.strip, 3, max_new_tokens=6, **o),
    "InContext": lambda p, x, **o: optimize.InContext(p, [("how ?", "so .")], room=8).sample(x, max_new_tokens=6, **o),
}
#: what is not run on prompts and a reward alone; tested in test_inference_time and test_shapes
APART = {"vote", "Guided", "blockwise", "revise", "mdpo"}


def treated(policy, name, data=None, **options):
    run, own = EXAMPLES[name]
    return run(policy, own if data is None else data, progress=False, **options)


def test_no_method_is_without_an_example():
    every = {name for family in optimize.FAMILIES.values() for name in family}
    assert every == {*EXAMPLES, *SAYING, *APART}


@EVERY
def test_it_is_finite_reproducible_and_leaves_its_policy_alone(tiny, name):
    before = weights_of(tiny).clone()
    first, same, other = (treated(tiny, name, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(weights_of(tiny), before)
    assert weights_of(first).isfinite().all() and not torch.equal(weights_of(first), before)
    assert torch.equal(weights_of(first), weights_of(same)) and first.history.equals(same.history)
    assert not torch.equal(weights_of(first), weights_of(other))
    assert np.isfinite(first.history["loss" if "loss" in first.history else "reward"]).all()
    assert first.spent["updates"] >= len(first.history) > 0  # several a step where there are minibatches


@EVERY
def test_parts_that_fit_in_memory_change_nothing(tiny, name, monkeypatch):
    fixed = {} if EXAMPLES[name][1] is PROMPTS or name == "spin" else {"micro_batch_tokens": 1}
    whole = treated(tiny, name)
    monkeypatch.setattr(Policy, "logit_budget", 1)  # rows are read one by one
    parts = treated(tiny, name, **fixed)
    batch = tiny.encode(PROMPTS, TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(parts.token_logprobs(batch), whole.token_logprobs(batch), atol=1e-3, rtol=1e-3)


@EVERY
def test_it_is_saved_and_loaded(tiny, name, tmp_path):
    policy = treated(tiny, name)
    policy.save(tmp_path / "policy")
    assert torch.equal(weights_of(load_policy(tmp_path / "policy")), weights_of(policy))


@EVERY
def test_a_callback_sees_every_step_and_can_end_it(tiny, name):
    seen = []
    policy = treated(tiny, name, callback=lambda step, now, row: seen.append((step, now, row)))
    assert len(seen) == len(policy.history) and {row["step"] for _, _, row in seen} == set(policy.history["step"])
    assert all(isinstance(now, type(tiny)) and set(row) <= set(policy.history) for _, now, row in seen)
    ended = treated(tiny, name, callback=lambda step, now, row: True)
    assert len(ended.history) == (2 if "round" in ended.history else 1)


@EVERY
def test_nothing_to_learn_from_and_what_is_no_data_are_errors(tiny, name):
    _, data = EXAMPLES[name]
    wrong = ["tea", []] if isinstance(data, list) else ["tea", data.select([]), data.to_list(), data.to_pandas()]
    for what in wrong:
        with pytest.raises(AlignkitError):
            treated(tiny, name, what)


def gold(prompts, completions, answer, **_):
    """A reward that reads a column of the data set, as TRL hands it over."""
    assert len(answer) == len(completions)
    return [float(a in c) + 0.01 * len(c) for a, c in zip(answer, completions, strict=True)]


TAKES_COLUMNS = ("grpo", "rloo", "remax", "dapo", "reward_regression", "raft", "rso")


@pytest.mark.parametrize("name", TAKES_COLUMNS)
def test_a_data_set_of_prompts_hands_its_columns_to_the_reward(tiny, name):
    data = Dataset.from_dict({"prompt": PROMPTS, "answer": ["iron", "glass", "rice", "salt"]})
    seen = []

    def reward(prompts, completions, answer, **_):
        seen.extend(zip(prompts, answer, strict=True))
        return gold(prompts, completions, answer)

    small = {"prompts_per_round": 4, "rounds": 1} if name in ("raft", "rso") else {"steps": 2, "prompts_per_step": 2}
    getattr(optimize, name)(tiny, data, reward, max_new_tokens=6, progress=False, **small)
    assert seen and all(answer in prompt for prompt, answer in seen)


@pytest.mark.parametrize("name", list(SAYING))
def test_what_is_said_is_reproducible_and_needs_prompts(tiny, name):
    say = SAYING[name]
    first, same, other = (repr(say(tiny, PROMPTS, seed=seed)) for seed in (1, 1, 2))
    assert first == same != other
    for wrong in ([], "tea") if name != "InContext" else ([],):
        with pytest.raises(AlignkitError):
            say(tiny, wrong)


def test_mdpo_holds_the_same(tmp_path):
    world, policy = worlds.load("shapes"), load_picture_policy("shapes")
    asked = world.prompts()[:4]
    texts = [world.ideal(prompt) for prompt in asked]
    data = Dataset.from_dict({"prompt": asked, "chosen": texts, "rejected": texts[1:] + texts[:1]})
    options = {"batch_size": 2, "progress": False}
    before = weights_of(policy).clone()
    first, same = (optimize.mdpo(policy, data, seed=1, **options) for _ in range(2))
    assert torch.equal(weights_of(first), weights_of(same)) and torch.equal(weights_of(policy), before)
    assert weights_of(first).isfinite().all() and not torch.equal(weights_of(first), before)
    for wrong in ("tea", data.select([]), pd.DataFrame(data.to_dict())):
        with pytest.raises(AlignkitError):
            optimize.mdpo(policy, wrong, **options)
