"""What every reward must hold, checked for one example of each class.

A new reward is one file and one row in `examples`; `test_no_reward_is_without_an_example` asks for the row.
"""

import importlib.util
import inspect
from dataclasses import asdict

import numpy as np
import pytest
import torch

from alignkit import rewards, worlds
from alignkit.errors import RewardError
from alignkit.pictures import load_picture_policy
from alignkit.rewards import Rule, RuleReward, words_over
from alignkit.taxonomy import CARD_FIELDS

BASES = {"Reward", "RewardModel", "PairReward"}
LONG = "boil the water and pour the tea slowly . do not waste my time . what a great question . of course ."


def examples(world, policy, pairs) -> dict[str, rewards.Reward]:
    """{class name: one of its kind}: the shelf, and what is made of several rewards or for one purpose."""
    shelf = rewards.shelf(world, policy)
    rules, learned = shelf["RuleReward"], shelf["BradleyTerry"]
    parts = {"thanks": rules, "short": RuleReward([Rule("short", words_over(3), -1.0)])}
    equal = dict.fromkeys(parts, 0.5)
    shapes, seeing = worlds.load("shapes"), load_picture_policy("shapes")
    more = [
        rewards.RandomReward(1), rewards.as_reward(lambda prompts, completions: map(len, completions), "length"),
        rewards.BagOfWords.fit(pairs), rewards.Shaped(rules), rewards.Weighted(parts, equal), rewards.Worst(parts),
        rewards.MaxMin(parts), rewards.Lagrangian(parts, "thanks", "short", budget=-1.0),
        rewards.Decoupled(parts, whiten=False), rewards.Asked(parts, {"how": equal, "please": {"short": 1.0}}),
        rewards.ByTask({"how": rules, "please": learned}, lambda prompt: prompt.split()[0]),
        rewards.Ensemble([learned, rewards.BradleyTerry.new(policy, 1)]), rewards.SameHead.new(policy),
        rewards.WorstGroup(parts, [0.5, 0.5]), rewards.Distributional.new(policy, outputs=2),
        rewards.PersonalReward.new(policy, outputs=2), rewards.PictureReward.new(seeing),
        rewards.Grounded(rewards.detector(shapes), shapes.named),
        rewards.Gated.fit(pairs.select(range(8)), shelf["MultiAspect"], steps=2),
    ]  # fmt: skip
    return {**shelf, **{type(reward).__name__: reward for reward in more}}


def rows_for(reward) -> tuple[list, list[str]]:
    """Rows of several lengths, with a repeated and an empty completion; two prompts, their rows mixed."""
    first, second = "how do i make tea ?", "please explain salt ?"
    texts = ["boil water .", "thank you . pour the tea slowly .", "", "you fool", "salt is a mineral .", "boil water ."]
    if isinstance(reward, rewards.PictureReward | rewards.Grounded):
        first, second = worlds.load("shapes").prompts()[:2]
        texts = ["a red circle .", "a blue square , a red circle .", "", "a red", "a green square .", "a red circle ."]
    return [first, second, first, second, first, second, first], [*texts, texts[0]]


@pytest.fixture(scope="module")
def every(world, tiny, pairs):
    return examples(world, tiny, pairs)


# -- the contract: each check takes a reward, its rows and an empty folder -------------------------------------------


def has_a_valid_card(reward, rows, folder):
    for field, words in CARD_FIELDS.items():
        assert asdict(reward.card)[field] in list(words), field


def judges_each_row(reward, rows, folder):
    """One finite score a row; every other field has one entry a row, and steps end within the text."""
    said, n = reward(*rows), len(rows[0])
    assert said.scores.shape == (n,) and said.scores.dtype == np.float64
    assert np.isfinite(said.scores).all() and said.present.all()
    for name, values in (said.aspects or {}).items():
        assert values.shape == (n,) and np.isfinite(values).all(), name
    for name in ("critiques", "ranks", "steps", "ends", "tokens"):
        assert getattr(said, name) is None or len(getattr(said, name)) == n, name
    for text, steps, ends in zip(rows[1], said.steps or (), said.ends or (), strict=False):
        assert len(steps) == len(ends) and list(ends) == sorted(set(ends)) and all(0 < e <= len(text) for e in ends)


def heeds_no_order(reward, rows, folder):
    order = np.random.default_rng(0).permutation(len(rows[0]))
    turned = reward(*([side[i] for i in order] for side in rows)).scores
    np.testing.assert_allclose(turned, reward(*rows).scores[order], atol=1e-5)


def heeds_no_neighbors(reward, rows, folder):
    """A prompt's completions alone get what they get beside others; so does each row, if rewards aren't relative."""
    prompts, texts = rows
    whole = reward(prompts, texts).scores
    groups = {prompt: [i for i, p in enumerate(prompts) if p == prompt] for prompt in prompts}
    relative = isinstance(reward, rewards.PairReward | rewards.Decoupled)
    for group in [*groups.values(), *([] if relative else [[i] for i in range(len(prompts))])]:
        alone = reward([prompts[i] for i in group], [texts[i] for i in group]).scores
        np.testing.assert_allclose(alone, whole[group], atol=1e-5)


def heeds_no_padding(reward, rows, folder):
    prompts, texts = rows
    third = worlds.load("shapes").prompts()[2] if prompts[0].endswith(".png") else "please explain iron ?"
    long = "a red circle and " * 6 if prompts[0].endswith(".png") else LONG
    beside = reward([*prompts, third], [*texts, long]).scores[: len(texts)]
    np.testing.assert_allclose(beside, reward(prompts, texts).scores, atol=1e-5)


def takes_nothing(reward, rows, folder):
    assert reward([], []).scores.shape == (0,)


def is_pure(reward, rows, folder):
    """Scoring twice is scoring once: no state, no weight, no input and no global generator moves."""
    prompts, texts = list(rows[0]), list(rows[1])
    state, weights, draws = reward.state(), _weights(reward), torch.random.get_rng_state()
    first, second = reward(prompts, texts).scores, reward(prompts, texts).scores
    np.testing.assert_array_equal(first, second)
    assert reward.state() == state and (prompts, texts) == rows
    assert all(torch.equal(a, b) for a, b in zip(weights, _weights(reward), strict=True))
    assert torch.equal(draws, torch.random.get_rng_state())


def takes_columns(reward, rows, folder):
    """Columns that it doesn't need change nothing."""
    columns = {"answer": ["x"] * len(rows[0]), "trainer_state": None}
    np.testing.assert_array_equal(reward(*rows, **columns).scores, reward(*rows).scores)


def scores_no_letters(reward, rows, folder):
    prompts, texts = rows
    for prompts_, texts_ in ((prompts[0], texts), (prompts, texts[0]), (texts[0], texts[0])):
        with pytest.raises(RewardError, match="got a str as"):
            reward(prompts_, texts_)
    with pytest.raises(RewardError, match="give one for each completion"):
        reward(prompts, texts[:-1])


def serves_trl(reward, rows, folder):
    by_trl = rewards.to_trl(reward)(prompts=rows[0], completions=rows[1], trainer_state=None)
    assert by_trl == reward(*rows).scores.tolist() or reward.state()["own"], "unless its update moved it"


def survives_saving(reward, rows, folder):
    if hasattr(reward, "save"):
        again = type(reward).load(reward.save(folder))
        np.testing.assert_allclose(again(*rows).scores, reward(*rows).scores, atol=1e-5)
        assert again.card.granularity == reward.card.granularity


CONTRACT = [has_a_valid_card, judges_each_row, heeds_no_order, heeds_no_neighbors, heeds_no_padding, takes_nothing,
            is_pure, takes_columns, scores_no_letters, serves_trl, survives_saving]  # fmt: skip


def _weights(reward) -> list[torch.Tensor]:
    model = getattr(reward, "model", None)
    return [p.detach().clone() for p in model.parameters()] if isinstance(model, torch.nn.Module) else []


def broken(check, named, folder) -> dict[str, str]:
    """What is wrong with which reward."""
    found = {}
    for name, reward in named.items():
        try:
            check(reward, rows_for(reward), folder / name)
        except Exception as error:  # whatever it raises is what is wrong
            found[name] = f"{type(error).__name__}: {error}"
    return found


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_every_reward(check, every, tmp_path):
    assert not broken(check, every, tmp_path)


def test_the_same_seed_makes_the_same_reward(every, world, tiny, pairs):
    draws = torch.random.get_rng_state()
    again = examples(world, tiny, pairs)
    assert torch.equal(draws, torch.random.get_rng_state()), "making rewards leaves the global generator alone"
    for name, reward in every.items():
        if not reward.moves:
            rows = rows_for(reward)
            np.testing.assert_array_equal(again[name](*rows).scores, reward(*rows).scores, err_msg=name)


def test_no_reward_is_without_an_example(every):
    public = {name for name, it in vars(rewards).items() if inspect.isclass(it) and issubclass(it, rewards.Reward)}
    assert public - BASES <= {name.split(",")[0] for name in every}


ONE_FILE = '''
import numpy as np
from alignkit.rewards import Judgement, Reward
from alignkit.taxonomy import RewardCard

class Brevity(Reward):
    """Minus the number of words{minus}."""

    card = RewardCard(name="brevity", construction_basis="rule-based", format="scalar", expression="explicit",
                      granularity="response")

    def judge(self, prompts, completions):
        words = np.array([len(text.split()) for text in completions], dtype=float)
        return Judgement(-words{minus})
'''


@pytest.mark.parametrize(
    ("minus", "breaks"),
    [("", set()), (" + words.mean()", {"heeds_no_neighbors", "heeds_no_padding"}), (" + np.random.rand()", None)],
)
def test_a_new_reward_is_one_file_and_passes(minus, breaks, tmp_path):
    (tmp_path / "brevity.py").write_text(ONE_FILE.replace("{minus}", minus), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("brevity", tmp_path / "brevity.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    failed = {check.__name__ for check in CONTRACT if broken(check, {"Brevity": module.Brevity()}, tmp_path)}
    assert failed >= {"is_pure", "heeds_no_order"} if breaks is None else failed == breaks
