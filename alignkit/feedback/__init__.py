"""Phase 1, diagnosis: who says what about which completions, and how far to trust it."""

from alignkit.feedback.aggregate import alpha, combine, dawid_skene, majority, skills, votes
from alignkit.feedback.agreement import bayes_ceiling, gold_agreement, kappa, pair_accuracy, raw_agreement, swap
from alignkit.feedback.annotator import Annotator
from alignkit.feedback.answers import draw_groups, one_by_one
from alignkit.feedback.ask import choose_pairs, uncertainty
from alignkit.feedback.bias import Leaning, length_leaning, position_leaning
from alignkit.feedback.compare import compare, draw_pairs, label, shuffle_labels
from alignkit.feedback.cost import bits, cost
from alignkit.feedback.critiques import correct, critique, demonstrate, faults, without_sentence
from alignkit.feedback.groups import Crowd, Group, crowd, label_over_time
from alignkit.feedback.marks import mark_steps, verify
from alignkit.feedback.models import ModelAnnotator, label_by_rule, under, with_principle
from alignkit.feedback.people import expected_agreement, population, with_agreement
from alignkit.feedback.pooled import borda, bradley_terry_limit, cycles, win_matrix
from alignkit.feedback.rankings import rank
from alignkit.feedback.ratings import check_ratings, rate, rate_aspects, standardize, thumbs
from alignkit.feedback.rollouts import rollout_labels

__all__ = [
    "Annotator",
    "Crowd",
    "Group",
    "Leaning",
    "ModelAnnotator",
    "alpha",
    "bayes_ceiling",
    "bits",
    "borda",
    "bradley_terry_limit",
    "check_ratings",
    "choose_pairs",
    "combine",
    "compare",
    "correct",
    "cost",
    "critique",
    "crowd",
    "cycles",
    "dawid_skene",
    "demonstrate",
    "draw_groups",
    "draw_pairs",
    "expected_agreement",
    "faults",
    "gold_agreement",
    "kappa",
    "label",
    "label_by_rule",
    "label_over_time",
    "length_leaning",
    "majority",
    "mark_steps",
    "one_by_one",
    "pair_accuracy",
    "population",
    "position_leaning",
    "rank",
    "rate",
    "rate_aspects",
    "raw_agreement",
    "rollout_labels",
    "shuffle_labels",
    "skills",
    "standardize",
    "swap",
    "thumbs",
    "uncertainty",
    "under",
    "verify",
    "votes",
    "win_matrix",
    "with_agreement",
    "with_principle",
    "without_sentence",
]
