"""The vocabulary: one set of words for code and catalog, and cards that refuse any other."""

import re
from dataclasses import FrozenInstanceError

import pytest

from alignkit import taxonomy
from alignkit.errors import AlignkitError
from alignkit.taxonomy import CARD_FIELDS, CROSSWALK, QUESTIONS, Format, Granularity, RewardCard

GOOD = {
    "name": "bt",
    "construction_basis": "data-driven",
    "format": "scalar",
    "expression": "explicit",
    "granularity": "response",
}


def test_card_turns_strings_into_members():
    card = RewardCard(**GOOD)
    assert card.format is Format.SCALAR and card.granularity is Granularity.RESPONSE
    assert (card.objective, card.modality) == ("single", "text")
    assert card == RewardCard(**GOOD | {"format": Format.SCALAR})


def test_card_is_frozen():
    with pytest.raises(FrozenInstanceError):
        RewardCard(**GOOD).format = "vector"


@pytest.mark.parametrize("field", CARD_FIELDS)
@pytest.mark.parametrize("value", ["none", "Scalar!", None, 3])
def test_card_refuses_other_words_and_lists_the_right_ones(field, value):
    with pytest.raises(AlignkitError) as error:
        RewardCard(**GOOD | {field: value})
    message = str(error.value)
    assert field in message and repr(value) in message
    allowed = [word.value for word in CARD_FIELDS[field] if word.value != "none"]
    assert message.endswith(", ".join(allowed))


def test_card_needs_a_name():
    with pytest.raises(AlignkitError, match="name"):
        RewardCard(**GOOD | {"name": " "})


def test_granularity_has_what_the_catalog_lacks():
    assert {"multi-aspect", "multi-stage"} <= set(Granularity)


@pytest.mark.parametrize(
    ("dimension", "words"),
    [
        ("construction basis", taxonomy.ConstructionBasis),
        ("format", taxonomy.Format),
        ("expression", taxonomy.Expression),
        ("granularity", taxonomy.Granularity),
        ("optimization", taxonomy.Optimization),
    ],
)
def test_crosswalk_names_every_word_of_a_dimension(dimension, words):
    row = next(row for row in CROSSWALK if row.dimension == dimension)
    named = re.findall(r"[a-z][a-z-]*", row.ours)
    assert {word.value for word in words} - {"none"} <= set(named)


def test_crosswalk_refers_to_the_four_questions():
    assert len(QUESTIONS) == 4
    for row in CROSSWALK:
        asked = set(row.question.split(", ")) - {"trends"}
        assert asked and asked <= set(QUESTIONS), row.dimension
