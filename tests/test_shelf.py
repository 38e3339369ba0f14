"""No corner of the survey's map is empty: each value of each dimension has a reward that is tested and demonstrated."""

import re

import pytest

from alignkit import optimize, rewards, taxonomy
from alignkit.files import NOTEBOOKS, ROOT

DIMENSIONS = {
    "construction_basis": taxonomy.ConstructionBasis,
    "format": taxonomy.Format,
    "expression": taxonomy.Expression,
    "granularity": taxonomy.Granularity,
}
VALUES = [(field, str(value)) for field, words in DIMENSIONS.items() for value in words if value != "none"]
BASES = {"Objectives", "PairReward", "Reward", "RewardModel"}
BESIDES = {"FunctionReward": "wraps any function", "RandomReward": "the null control"}


@pytest.fixture(scope="module")
def cards(world, tiny):
    return {name: reward.card for name, reward in rewards.shelf(world, tiny).items()}


def texts(paths) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


CODE = texts(NOTEBOOKS.glob("0[2-6]_*.ipynb"))
TREATMENTS = texts([*NOTEBOOKS.glob("0[7-9]_*.ipynb"), *NOTEBOOKS.glob("1[0-4]_*.ipynb")])
LATER = texts(NOTEBOOKS.glob("1[1-6]_*.ipynb"))
TESTS = texts(path for path in (ROOT / "tests").glob("test_*.py") if path.stem != "test_shelf")


@pytest.mark.parametrize(("field", "value"), VALUES)
def test_each_value_has_a_reward_that_is_tested_and_demonstrated(cards, field, value):
    classes = {name.split(",")[0] for name, card in cards.items() if getattr(card, field) == value}
    assert classes, f"no reward whose {field} is {value}"
    shown = {name for name in classes if any(re.search(rf"rewards\.{name}\b", text) for text in CODE.values())}
    tested = {name for name in classes if any(re.search(rf"\b{name}\b", text) for text in TESTS.values())}
    assert shown & tested, f"{field}={value}: shown {sorted(shown)}, tested {sorted(tested)}"


def test_every_public_reward_is_tested_and_those_not_on_the_shelf_are_shown_later(cards):
    """The shelf has one of each kind; what is made of several rewards or for one purpose comes in 11 to 16."""
    public = {name for name, it in vars(rewards).items() if isinstance(it, type) and issubclass(it, rewards.Reward)}
    on_shelf = {name.split(",")[0] for name in cards}
    assert on_shelf <= public
    for name in public - BASES:
        assert any(re.search(rf"\b{name}\b", text) for text in TESTS.values()), f"{name} has no test"
    for name in public - BASES - on_shelf - set(BESIDES):
        assert any(re.search(rf"\b{name}\b", text) for text in LATER.values()), f"{name} is in no notebook"


def test_names_of_the_shelf_are_different_cards(cards):
    assert len({card.name for card in cards.values()}) >= len(cards) - 2  # two differ in granularity only


@pytest.mark.parametrize("family", [str(value) for value in taxonomy.Optimization if value != "none"])
def test_each_treatment_is_here_tested_and_demonstrated(family):
    for name in optimize.FAMILIES[family]:
        assert callable(getattr(optimize, name))
        named = rf"[.`'\"]{name.replace('_plus_plus', '(_plus_plus|[+][+])')}(?!\w)"
        assert any(re.search(named, text) for text in TREATMENTS.values()), f"{name} is in no notebook"
        assert any(re.search(rf"\b{name}\b", text) for text in TESTS.values()), f"{name} has no test"


def test_every_policy_gradient_is_on_the_shelf():
    assert {name.replace("++", "_plus_plus") for name in optimize.METHODS} == set(optimize.FAMILIES["rl"])
