"""The survey's vocabulary as enums, the crosswalk between its versions, and the card every reward carries.

Values are those of `data/catalog.csv`, so that a reward in code and a paper in the catalog are described in
the same words. Where a refinement is ours and not the survey's, the crosswalk says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from alignkit.errors import AlignkitError


class Phase(StrEnum):
    """Where a paper's main contribution lies: diagnosis, prescription, treatment, or follow-up."""

    FEEDBACK = "feedback"
    REWARD = "reward"
    OPTIMIZATION = "optimization"
    EVALUATION = "evaluation"


class FeedbackSource(StrEnum):
    """Who gives the label. `rule` is a program, a known answer, a unit test or the outcome of a rollout."""

    HUMAN = "human"
    AI = "ai"
    HUMAN_AND_AI = "human+ai"
    RULE = "rule"
    NONE = "none"


class FeedbackType(StrEnum):
    """What a label looks like."""

    PAIRWISE = "pairwise"
    RANKING = "ranking"
    RATING = "rating"
    BINARY = "binary"
    CRITIQUE = "critique"
    DEMONSTRATION = "demonstration"
    CORRECTION = "correction"
    VERIFIABLE = "verifiable"
    PROCESS_LABEL = "process-label"
    MULTI_ATTRIBUTE = "multi-attribute"
    NONE = "none"


class ConstructionBasis(StrEnum):
    """What a reward is built from: rules, data (labels, learned or distilled), or both."""

    RULE_BASED = "rule-based"
    DATA_DRIVEN = "data-driven"
    HYBRID = "hybrid"
    NONE = "none"


class Format(StrEnum):
    """A reward's native output, before any conversion: a critique read off as a score stays textual."""

    SCALAR = "scalar"
    VECTOR = "vector"
    TEXTUAL = "textual"
    RANKING = "ranking"
    NONE = "none"


class Expression(StrEnum):
    """Explicit: a function or model of its own. Implicit: it lives in the policy's log-probabilities."""

    EXPLICIT = "explicit"
    IMPLICIT = "implicit"
    NONE = "none"


class Granularity(StrEnum):
    """The unit that receives the reward. All but `response` are fine-grained."""

    RESPONSE = "response"
    SEGMENT = "segment"
    STEP = "step"
    TOKEN = "token"
    MULTI_ASPECT = "multi-aspect"
    MULTI_STAGE = "multi-stage"
    NONE = "none"


class Optimization(StrEnum):
    """How the policy is improved. `none`: only a reward or a benchmark is studied."""

    RL = "rl"
    RL_FREE = "rl-free"
    INFERENCE_TIME = "inference-time"
    IN_CONTEXT = "in-context"
    NONE = "none"


class Objective(StrEnum):
    """Multi: several attributes, objectives or groups of people, kept apart on purpose."""

    SINGLE = "single"
    MULTI = "multi"


class Modality(StrEnum):
    """What goes in and comes out. `image-text`: vision-language understanding; mathematics counts as text."""

    TEXT = "text"
    CODE = "code"
    IMAGE_TEXT = "image-text"
    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"
    SPEECH = "speech"
    CONTROL = "control"
    MULTI = "multi"


class Confidence(StrEnum):
    """How sure the catalog is of a row's classification (titles and ids are verified for every row)."""

    HIGH = "high"
    MEDIUM = "medium"


QUESTIONS: dict[str, str] = {
    "1 formulation": "How are rewards formulated: scalar, token-level or multi-dimensional, "
    "and which shaping objectives support each?",
    "2 construction": "How are rewards built: from rules, data, or hybrids of heterogeneous supervision?",
    "3 interaction": "How do rewards interact with optimization: RLHF, DPO, in-context alignment?",
    "4 assessment": "How are rewards assessed: robustness, generalization, safety diagnostics, downstream impact?",
}
"""The four questions of the survey's journal version."""


class CrosswalkRow(NamedTuple):
    """One dimension: the survey's words, our refinement of them, and the journal questions it belongs to."""

    dimension: str
    survey: str
    ours: str
    question: str


CROSSWALK: list[CrosswalkRow] = [
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
"""The survey's first version, our refinement, and the journal version, dimension by dimension."""


CARD_FIELDS: dict[str, type[StrEnum]] = {
    "construction_basis": ConstructionBasis,
    "format": Format,
    "expression": Expression,
    "granularity": Granularity,
    "objective": Objective,
    "modality": Modality,
}
"""The dimensions of a reward card and the words each may use."""


@dataclass(frozen=True)
class RewardCard:
    """What kind of reward this is, in the survey's dimensions. Plain strings are turned into the enums.

    `source` is the paper the reward follows (arXiv id or citation), `notes` anything a reader should know.
    """

    name: str
    construction_basis: ConstructionBasis | str
    format: Format | str = Format.SCALAR
    expression: Expression | str = Expression.EXPLICIT
    granularity: Granularity | str = Granularity.RESPONSE
    objective: Objective | str = Objective.SINGLE
    modality: Modality | str = Modality.TEXT
    source: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise AlignkitError(f"RewardCard: name is {self.name!r}; give the reward a name")
        for field, words in CARD_FIELDS.items():
            # the only way to set a field of a frozen dataclass
            object.__setattr__(self, field, _coerce(self.name, field, getattr(self, field), words))


def _coerce(card: str, field: str, value: object, words: type[StrEnum]) -> StrEnum:
    """`value` as a member of `words`. "none" is for papers that build no reward; a reward is never "none"."""
    allowed = [word.value for word in words if word.value != "none"]
    if value in allowed:
        return words(value)
    raise AlignkitError(f"RewardCard {card!r}: {field} is {value!r}; it must be one of {', '.join(allowed)}")
