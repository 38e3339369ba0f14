"""The survey's vocabulary as enums, the crosswalk between its versions, and the card every reward carries.

Values are those of `data/catalog.csv`, so that a reward in code and a paper in the catalog are described in
the same words. Where a refinement is ours and not the survey's, the crosswalk says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from alignkit.errors import AlignkitError


def _words(name: str, words: str) -> type[StrEnum]:
    """An enum of these words; its members are named after them ("rule-based" is RULE_BASED)."""
    members = {word.upper().replace("-", "_").replace("+", "_AND_"): word for word in words.split()}
    return StrEnum(name, members, module=__name__)


# Where a paper's main contribution lies: diagnosis, prescription, treatment, or follow-up
Phase = _words("Phase", "feedback reward optimization evaluation")
# Who gives the label. `rule` is a program, a known answer, a unit test or the outcome of a rollout
FeedbackSource = _words("FeedbackSource", "human ai human+ai rule none")
# What a label looks like
FeedbackType = _words(
    "FeedbackType",
    "pairwise ranking rating binary critique demonstration correction verifiable process-label multi-attribute none",
)
# What a reward is built from: rules, data (labels, learned or distilled), or both
ConstructionBasis = _words("ConstructionBasis", "rule-based data-driven hybrid none")
# A reward's native output, before any conversion: a critique read off as a score stays textual
Format = _words("Format", "scalar vector textual ranking none")
# Explicit: a function or model of its own. Implicit: it lives in the policy's log-probabilities
Expression = _words("Expression", "explicit implicit none")
# The unit that receives the reward. All but `response` are fine-grained
Granularity = _words("Granularity", "response segment step token multi-aspect multi-stage none")
# How the policy is improved. `none`: only a reward or a benchmark is studied
Optimization = _words("Optimization", "rl rl-free inference-time in-context none")
# Multi: several attributes, objectives or groups of people, kept apart on purpose
Objective = _words("Objective", "single multi")
# What goes in and comes out. `image-text`: vision-language understanding; mathematics counts as text
Modality = _words("Modality", "text code image-text image video audio speech control multi")
# How sure the catalog is of a row's classification (titles and ids are verified for every row)
Confidence = _words("Confidence", "high medium")

# the four questions of the survey's journal version
QUESTIONS = {
    "1 formulation": "How are rewards formulated: scalar, token-level or multi-dimensional, "
    "and which shaping objectives support each?",
    "2 construction": "How are rewards built: from rules, data, or hybrids of heterogeneous supervision?",
    "3 interaction": "How do rewards interact with optimization: RLHF, DPO, in-context alignment?",
    "4 assessment": "How are rewards assessed: robustness, generalization, safety diagnostics, downstream impact?",
}


class CrosswalkRow(NamedTuple):
    """One dimension: the survey's words, our refinement of them, and the journal questions it belongs to."""

    dimension: str
    survey: str
    ours: str
    question: str


CROSSWALK = [
    CrosswalkRow(
        "construction basis",
        "rule-based, data-driven (hybrids discussed)",
        "rule-based, data-driven, hybrid (rules with learned parts; and heterogeneous supervision: "
        "human + AI + rule labels in one reward)",
        "2 construction",
    ),
    CrosswalkRow(
        "format",
        "numerical, non-numerical",
        "scalar, vector (numerical); textual, ranking (non-numerical): the reward's native output, "
        "before any conversion",
        "1 formulation",
    ),
    CrosswalkRow("expression", "explicit, implicit", "explicit, implicit", "1 formulation, 3 interaction"),
    CrosswalkRow(
        "granularity",
        "general, fine-grained",
        "response (general); segment, step, token, multi-aspect, multi-stage (fine-grained)",
        "1 formulation",
    ),
    CrosswalkRow("optimization", "RL-based, RL-free", "rl, rl-free, inference-time, in-context", "3 interaction"),
    CrosswalkRow(
        "scope",
        "single, multi",
        "objectives (single, multi) and tasks (single, multi) kept apart; modality",
        "3 interaction, trends",
    ),
]

# the dimensions of a reward card
CARD_FIELDS: dict[str, type[StrEnum]] = {
    "construction_basis": ConstructionBasis,
    "format": Format,
    "expression": Expression,
    "granularity": Granularity,
    "objective": Objective,
    "modality": Modality,
}


@dataclass(frozen=True)
class RewardCard:
    """What kind of reward this is, in the survey's dimensions. Plain strings are turned into the enums.

    `source` is the paper the reward follows (arXiv id or citation), `notes` anything a reader should know.
    """

    name: str
    construction_basis: str
    format: str = Format.SCALAR
    expression: str = Expression.EXPLICIT
    granularity: str = Granularity.RESPONSE
    objective: str = Objective.SINGLE
    modality: str = Modality.TEXT
    source: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise AlignkitError(f"RewardCard: name is {self.name!r}; give the reward a name")
        for field, words in CARD_FIELDS.items():
            value = getattr(self, field)
            allowed = [word for word in words if word != "none"]  # for papers that build no reward
            if value not in allowed:
                raise AlignkitError(
                    f"RewardCard {self.name!r}: {field} is {value!r}; it must be one of {', '.join(allowed)}"
                )
            object.__setattr__(self, field, words(value))  # the only way to set a field of a frozen dataclass
