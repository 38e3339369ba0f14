"""Phase 1, diagnosis: who says what about which completions, and how far to trust it."""

from alignkit.feedback.aggregate import (
    alpha,
    bayes_ceiling,
    borda,
    bradley_terry_limit,
    combine,
    cycles,
    dawid_skene,
    gold_agreement,
    kappa,
    labelings,
    length_leaning,
    majority,
    pair_accuracy,
    position_leaning,
    raw_agreement,
    skills,
    swap,
    votes,
    win_matrix,
)
from alignkit.feedback.annotator import Annotator, under, with_principle
from alignkit.feedback.answers import bits, cost, one_by_one
from alignkit.feedback.compare import (
    choose_pairs,
    compare,
    draw_groups,
    draw_pairs,
    label,
    label_by_rule,
    shuffle_labels,
)
from alignkit.feedback.critiques import correct, critique, demonstrate, without_sentence
from alignkit.feedback.people import crowd, population, with_agreement
from alignkit.feedback.ratings import rank, rate, rate_aspects, standardize, thumbs
from alignkit.feedback.steps import mark_steps, rollout_labels, verify
