"""Hybrid rewards: rules beside a learned part, rules that veto, a reward bent, one reward from labels of several kinds
of source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from datasets import Dataset
from sklearn.linear_model import LogisticRegression

from alignkit.errors import AlignkitError, DataError, RewardError, check_choice, check_positive
from alignkit.feedback.aggregate import Labelings, combine
from alignkit.policy import Policy
from alignkit.rewards.base import Combined, Judgement, Reward, as_reward
from alignkit.rewards.data import check_pairs
from alignkit.rewards.rules import Asks, Check, Rule, RuleReward
from alignkit.rewards.scalar import BradleyTerry
from alignkit.rewards.texts import text_of

SHAPES = {"sigmoid": "2502.18770", "log-sigmoid": "2402.00742"}  # with the papers


class Hybrid(Combined):
    """r(x, y) = sum_k w_k rule_k(x, y) + learned(x, y), both parts fit to the same pairs.

    The rules go first: their `weights` (log-odds a unit) are a logistic regression on the pairs. A Bradley-Terry model
    then learns what they leave, P(y1 > y2) = sigmoid(w . (f1 - f2) + g(y1) - g(y2)): the rules' gap enters its loss as
    a (negative) margin. Scores are log-odds.
    """

    def __init__(self, rules: RuleReward, learned: Reward):
        super().__init__({"rules": rules, "learned": learned}, name="rules + learned", construction_basis="hybrid",
                         notes="rules first, then what they leave")  # fmt: skip
        self.weights = {rule.name: rule.weight for rule in rules.rules}

    @classmethod
    def fit(cls, pairs: Dataset, backbone: Policy | str, rules: Sequence[Rule], seed: int = 0, **options) -> Hybrid:
        """Fit to `prompt/chosen/rejected`. Options as in `RewardModel.train`. The rules' own weights don't count."""
        pairs = check_pairs(pairs)
        prompts, weighed = pairs["prompt"][:], weigh_rules(rules, pairs)
        gap = weighed(prompts, pairs["chosen"][:]).scores - weighed(prompts, pairs["rejected"][:]).scores
        rest = Dataset.from_dict({**{name: pairs[name][:] for name in ("prompt", "chosen", "rejected")},
                                  "margin": (-gap).tolist()})  # fmt: skip
        return cls(weighed, BradleyTerry.fit(rest, backbone, margin="margin", seed=seed, **options))

    def combine(self, parts: dict[str, Judgement], prompts: list, completions: list) -> Judgement:
        ruled, learned = parts.values()
        return Judgement(ruled.scores + learned.scores, aspects={**ruled.aspects, "learned": learned.scores})


def weigh_rules(rules: Sequence[Rule], pairs: Dataset) -> RuleReward:
    """The rules with weights fit to pairs: logistic regression of the choice on the difference in what they say.

    An L2 penalty of 0.1 on the weights keeps a rule that is never wrong finite. DataError if no rule tells the sides of
    any pair apart.
    """
    pairs, reward = check_pairs(pairs), RuleReward(rules)
    prompts = pairs["prompt"][:]
    gap = reward.values(prompts, pairs["chosen"][:]) - reward.values(prompts, pairs["rejected"][:])
    if not gap.any():
        raise DataError(f"none of the {len(rules)} rules tells the sides of any of {len(pairs)} pairs apart: their "
                        "weights can't be learned; give other rules or more pairs")  # fmt: skip
    model = LogisticRegression(fit_intercept=False, C=10, max_iter=1000)
    model.fit(np.concatenate([gap, -gap]), np.repeat([1, 0], len(gap)))
    weighed = [replace(rule, weight=float(w)) for rule, w in zip(reward.rules, model.coef_[0], strict=True)]
    return RuleReward(weighed, name="rules, weighed")


class Veto(Combined):
    """Any reward, less `penalty` where a check answers yes: a rule that a learned part can't argue away.

    The penalty is in the reward's own units and should exceed its range. The rest of the score stays, so that among
    vetoed completions the better ones are still told apart.
    """

    def __init__(self, reward: Reward | Callable, forbid: Mapping[str, Check | Asks], penalty: float = 10.0):
        if not forbid:
            raise AlignkitError("Veto: name at least one check to forbid")
        check_positive("Veto", penalty=penalty)
        self.penalty, self.forbid = penalty, {name: Check.of(check) for name, check in forbid.items()}
        super().__init__({"reward": reward}, name="veto")
        old = self.made_of["reward"].card
        basis = "rule-based" if old.construction_basis == "rule-based" else "hybrid"
        self.card = replace(old, name=f"{old.name} + veto", construction_basis=basis)

    def combine(self, parts: dict[str, Judgement], prompts: list, completions: list) -> Judgement:
        judgement = parts["reward"]
        rows = [(text_of(p, "user"), text_of(c, "assistant")) for p, c in zip(prompts, completions, strict=True)]
        hits = {f"veto: {name}": np.array([bool(check(p, c)) for p, c in rows]) for name, check in self.forbid.items()}
        vetoed = np.any(list(hits.values()), axis=0)
        aspects = {**(judgement.aspects or {}), **{name: hit.astype(float) for name, hit in hits.items()}}
        return Judgement(judgement.scores - self.penalty * vetoed, aspects=aspects)


class Shaped(Combined):
    """`reward` after a monotone map of z = (score - center) / unit.

    "sigmoid": 1 / (1 + exp(-z)), the chance to beat an answer at the level of `center` (2502.18770); "log-sigmoid": its
    logarithm, flat above the center and a straight line far below it (2402.00742). Neither changes which of two answers
    is better, so best-of-n doesn't notice; what a policy trades against KL does change. `center`: one level for all
    prompts, or one for each, {prompt's text: level}; `unit`: the reward's standard deviation, say.
    """

    def __init__(
        self, reward: Reward | Callable, how: str = "sigmoid", center: Mapping | float = 0.0, unit: float = 1.0
    ):
        check_choice("Shaped", "how", how, SHAPES)
        check_positive("Shaped", unit=unit)
        reward = as_reward(reward)
        self.how, self.center, self.unit = how, center, unit
        super().__init__({"reward": reward}, name=f"{how} of {reward.card.name}", expression=reward.card.expression,
                         source=SHAPES[how], notes=f"unit {unit:.3g}")  # fmt: skip

    def combine(self, parts: dict[str, Judgement], prompts: list, completions: list) -> Judgement:
        level = self.center
        if isinstance(level, Mapping):
            asked = [text_of(prompt, "user") for prompt in prompts]
            for row, prompt in enumerate(asked):
                if prompt not in level:
                    raise RewardError(f"{self.card.name!r}: row {row}: no level for prompt {prompt[:60]!r}; give "
                                      "one for every prompt (see `levels`), or one number for all")  # fmt: skip
            level = np.array([level[prompt] for prompt in asked], dtype=float)
        z = (parts["reward"].scores - level) / self.unit
        with np.errstate(invalid="ignore"):  # rows without a score stay NaN
            log_sigmoid = -np.logaddexp(0.0, -z)
        return Judgement(np.exp(log_sigmoid) if self.how == "sigmoid" else log_sigmoid)


def levels(prompts: list, scores: np.ndarray, share: float = 0.5) -> dict:
    """{prompt's text: the score that this share of its answers stays below}; scores of shape (prompts, answers)."""
    scores = np.atleast_2d(scores)
    if len(scores) != len(prompts) or not 0 <= share <= 1:
        raise RewardError(f"levels: needs one row of scores for each prompt and a share in [0, 1]; got {len(prompts)} "
                          f"prompts, scores of shape {scores.shape}, share {share}")  # fmt: skip
    asked = [text_of(prompt, "user") for prompt in prompts]
    return dict(zip(asked, np.quantile(scores, share, axis=1).tolist(), strict=True))


class MixedSupervision(BradleyTerry):
    """A Bradley-Terry model fit to the labels of several kinds of source: people, models, rules.

    Their votes are combined by reliability (`feedback.combine`), and the model is fit to the resulting probabilities.
    """

    kind = {"name": "mixed supervision", "construction_basis": "hybrid", "source": "2502.19328"}

    @classmethod
    def fit(
        cls, labelings: Labelings, backbone: Policy | str, reliability: Mapping[str, float], seed: int = 0, **options
    ) -> MixedSupervision:
        """Fit to {source: labels with `task`}; `reliability` as from `source_reliability`, options as in
        `BradleyTerry.fit`."""
        pairs = combine(labelings, reliability, seed)
        return super().fit(pairs, backbone, confidence="confidence", seed=seed, **options)


def source_reliability(labelings: Labelings, checked: Dataset) -> dict[str, float]:
    """Reliability of each source on the pairs it shares with `checked`, careful labels of a few.

    Posterior mean (hits + 3) / (hits + misses + 4), under a Beta(3, 1) prior: a source worth asking is right three
    times in four, so that a rule which spoke in two of the checked pairs, and was wrong in both, is not taken to be a
    liar.
    """
    if "task" not in checked.column_names:
        raise DataError("source_reliability: `checked` needs a column 'task', the row of each pair in the pool")
    right = dict(zip(checked["task"], checked["position"], strict=True))
    shares = {}
    for name, data in labelings.items():
        task = data["task"][:] if "task" in data.column_names else range(len(data))
        hits = [right[t] == side for t, side in zip(task, data["position"], strict=True) if t in right]
        shares[name] = (sum(hits) + 3) / (len(hits) + 4)
    return shares
