"""No corner of the survey's map is empty: each value of each dimension has a reward that a notebook runs.

That each reward and each treatment works is what the contract suites test, over every one of them.
"""

import ast

import nbformat
import pytest

from alignkit import optimize, rewards, taxonomy
from alignkit.files import NOTEBOOKS

DIMENSIONS = {
    "construction_basis": taxonomy.ConstructionBasis,
    "format": taxonomy.Format,
    "expression": taxonomy.Expression,
    "granularity": taxonomy.Granularity,
}
VALUES = [(field, str(value)) for field, words in DIMENSIONS.items() for value in words if value != "none"]
BASES = {"PairReward", "Reward", "RewardModel"}
TOLD = {"apo_down"}  # the other half of apo_zero's paper; 08 tells of it and runs apo_zero
BESIDES = {"FunctionReward": "wraps any function", "RandomReward": "the null control"}


def used(module: str) -> dict[str, set[str]]:
    """{notebook: names of `alignkit.<module>`} that code cells use as module.name, import, or call for by name."""
    found = {}
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        tree = ast.parse("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
                 and isinstance(node.value, ast.Name) and node.value.id == module}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"alignkit.{module}"):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and hasattr(optimize, node.value):
                names.add(node.value)  # getattr(optimize, name) over a list of names
        found[path.stem] = names
    return found


@pytest.fixture(scope="module")
def cards(world, tiny):
    return {name: reward.card for name, reward in rewards.shelf(world, tiny).items()}


@pytest.fixture(scope="module")
def shown():
    return set().union(*used("rewards").values())


@pytest.mark.parametrize(("field", "value"), VALUES)
def test_each_value_has_a_reward_that_a_notebook_runs(cards, shown, field, value):
    classes = {name.split(",")[0] for name, card in cards.items() if getattr(card, field) == value}
    assert classes & shown, f"{field}={value}: {sorted(classes) or 'no reward'} in no notebook"


def test_every_public_reward_is_run_by_a_notebook(cards, shown):
    public = {name for name, it in vars(rewards).items() if isinstance(it, type) and issubclass(it, rewards.Reward)}
    on_shelf = {name.split(",")[0] for name in cards}
    assert on_shelf <= public
    assert public - BASES - on_shelf - set(BESIDES) <= shown


def test_cards_of_the_shelf_differ(cards):
    assert len({card.name for card in cards.values()}) >= len(cards) - 2  # two differ in granularity only


@pytest.mark.parametrize("family", [str(value) for value in taxonomy.Optimization if value != "none"])
def test_each_treatment_is_run_by_a_notebook(family):
    run = {name.replace("++", "_plus_plus") for names in used("optimize").values() for name in names}
    treatments = set(optimize.FAMILIES[family])
    assert all(callable(getattr(optimize, name)) for name in treatments)
    assert treatments - TOLD <= run


def test_every_policy_gradient_is_on_the_shelf():
    assert {name.replace("++", "_plus_plus") for name in optimize.METHODS} == set(optimize.FAMILIES["rl"])
