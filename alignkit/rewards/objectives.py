"""Several objectives made into one score: by weights, by a constraint, by the worst, each in its own unit, in stages.

What is judged are `parts`: a reward whose judgement has aspects, or {name: reward} with a score each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from alignkit.errors import AlignkitError, RewardError, check_at_least, check_positive
from alignkit.rewards.base import Judgement, Reward, as_reward, common_basis
from alignkit.rewards.calling import TRAINERS
from alignkit.taxonomy import RewardCard

Parts = Reward | Callable | Mapping[str, Reward | Callable]


class Objectives(Reward):
    """What the rewards of several objectives share: the parts, read once a call, and a card.

    `scale`: what each part is divided by (default: 1 each), so that "equal weights" means something.
    """

    says = "objectives"
    reads = "as given"

    def __init__(self, parts: Parts, scale: Mapping[str, float] | None = None):
        self.parts = {k: as_reward(r, k) for k, r in parts.items()} if isinstance(parts, Mapping) else as_reward(parts)
        self.scale = dict(scale or {})
        check_positive(self.says, **{f"the scale of {name!r}": unit for name, unit in self.scale.items()})
        self.card = RewardCard(
            name=self.says, construction_basis=common_basis(self.made_of().values()), format="scalar",
            expression="explicit", granularity="multi-aspect", objective="multi",
        )  # fmt: skip

    def made_of(self) -> Mapping[str, Reward]:
        return self.parts if isinstance(self.parts, Mapping) else {"parts": self.parts}

    def objectives(self, parts: Mapping[str, Judgement]) -> dict[str, np.ndarray]:
        """Each objective of each completion, divided by its scale; {name: (N,)}, NaN where its reward said None."""
        if isinstance(self.parts, Mapping):
            values = {name: part.scores for name, part in parts.items()}
        else:
            values = parts["parts"].aspects
            if not values:
                raise RewardError(
                    f"{self.says}: reward {self.parts.card.name!r} gives a score only; it takes one with aspects, or "
                    "{name: reward}"
                )
        return {name: value / self.scale.get(name, 1.0) for name, value in values.items()}

    def judge(self, prompts: list, completions: list, **columns) -> Judgement:
        parts = {name: reward(prompts, completions, **columns) for name, reward in self.made_of().items()}
        values = self.objectives(parts)
        return Judgement(self.combine(values, prompts), aspects=values, parts=parts, present=_any_present(values))

    def combine(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        """The one score, (N,); objectives that are absent in a row (NaN) don't count in it, as in TRL's sum."""
        raise NotImplementedError

    def known(self, values: Mapping[str, np.ndarray], *names: str) -> None:
        """RewardError if one of the names is no objective."""
        for name in names:
            if name not in values:
                raise RewardError(f"{self.says}: no objective {name!r}; there are {', '.join(values)}")


def _any_present(values: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.any([~np.isnan(value) for value in values.values()], axis=0)


class Weighted(Objectives):
    """sum_k w_k r_k: linear scalarization. Objectives without a weight don't count."""

    says = "weighted sum"

    def __init__(self, parts: Parts, weights: Mapping[str, float], scale: Mapping[str, float] | None = None):
        super().__init__(parts, scale)
        self.weights = _weights(weights, self.says)

    def combine(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        self.known(values, *self.weights)
        return _sum(self.weights, values)


class Worst(Objectives):
    """min_k r_k of each completion: a utility that no weighted sum is. An answer is as good as its worst side."""

    says = "worst objective"

    def combine(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        return np.fmin.reduce(list(values.values()))


class _Adaptive(Objectives):
    """Objectives whose weights follow the training: `update` moves them, `history` has a row a batch, `reset` starts
    anew. Scoring leaves them as they are."""

    def __init__(self, parts: Parts, scale: Mapping[str, float] | None, rate: float):
        super().__init__(parts, scale)
        check_positive(self.says, rate=rate)
        self.rate = rate
        self.reset()

    def reset(self) -> None:
        self.history: list[dict[str, float]] = []

    def update(self, judgement: Judgement) -> None:
        super().update(judgement)
        self.move({name: float(np.nanmean(values)) for name, values in judgement.aspects.items()})

    def move(self, means: dict[str, float]) -> None:
        """Note and change the weights, given each objective's mean over the batch."""
        raise NotImplementedError


class MaxMin(_Adaptive):
    """max over policies of min_k E[r_k] (MaxMin-RLHF 2402.08925), by multiplicative weights (its exponentiated form).

    The score is sum_k w_k r_k; after each batch of training w_k is set in proportion to w_k exp(-rate mean(r_k)): the
    objective that lags gets the weight. Put the objectives on one footing by `scale` and `floor` ({name: value}
    that is taken off each, say what the patient has).
    """

    says = "max-min"
    moves = ("history", "weights")

    def __init__(self, parts: Parts, scale: Mapping[str, float] | None = None,
                 floor: Mapping[str, float] | None = None, rate: float = 0.5):  # fmt: skip
        self.floor = dict(floor or {})
        super().__init__(parts, scale, rate)

    def reset(self) -> None:
        super().reset()
        self.weights: dict[str, float] = {}

    def objectives(self, parts: Mapping[str, Judgement]) -> dict[str, np.ndarray]:
        values = super().objectives(parts)
        return {name: v - self.floor.get(name, 0.0) / self.scale.get(name, 1.0) for name, v in values.items()}

    def combine(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        return _sum(self.weights or _equal(values), values)

    def move(self, means: dict[str, float]) -> None:
        weights = self.weights or _equal(means)
        self.history.append({**means, **{f"weight {name}": w for name, w in weights.items()}})
        raw = {name: w * np.exp(-self.rate * means[name]) for name, w in weights.items()}
        self.weights = {name: w / sum(raw.values()) for name, w in raw.items()}


class Lagrangian(_Adaptive):
    """max E[r] subject to E[cost] <= budget (Safe RLHF 2310.12773, eqs. 9-10): score (r - lambda cost) / (1 + lambda).

    After each batch of training lambda <- max(0, lambda + rate (mean cost - budget)): it rises while the budget is
    broken and falls while there is room. `goal` and `cost` name two objectives. The mean is that of the batch's
    completions, so prompts should come in a random order. (The paper moves log lambda; the fixed point is the same.)
    """

    says = "Lagrangian"
    moves = ("history", "multiplier")

    def __init__(self, parts: Parts, goal: str, cost: str, budget: float, rate: float = 0.5, start: float = 1.0,
                 scale: Mapping[str, float] | None = None):  # fmt: skip
        check_at_least("Lagrangian", 0, start=start)
        self.goal, self.cost, self.budget, self.start = goal, cost, budget, start
        super().__init__(parts, scale, rate)

    def reset(self) -> None:
        super().reset()
        self.multiplier = float(self.start)

    def combine(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        self.known(values, self.goal, self.cost)
        return _sum({self.goal: 1.0, self.cost: -self.multiplier}, values) / (1 + self.multiplier)

    def move(self, means: dict[str, float]) -> None:
        self.history.append({"multiplier": self.multiplier, self.goal: means[self.goal], self.cost: means[self.cost]})
        self.multiplier = max(0.0, self.multiplier + self.rate * (means[self.cost] - self.budget))


class Decoupled(Objectives):
    """Each objective normalized by itself within the completions of a prompt, then summed (GDPO 2601.05242).

    a = sum_k w_k (r_k - mean_k) / (std_k + eps) over the call's completions of the same prompt, divided by the standard
    deviation of a over the call if `whiten`, as in the paper. The score is then an advantage already: `optimize.gdpo`
    uses it so. With one objective, weight 1 and no `whiten` this is GRPO's `group_normalized`.
    """

    says = "decoupled"

    def __init__(self, parts: Parts, weights: Mapping[str, float] | None = None, whiten: bool = True,
                 eps: float = 1e-4):  # fmt: skip
        super().__init__(parts)
        self.weights = None if weights is None else _weights(weights, self.says)
        self.whiten, self.eps = whiten, eps

    def combine(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        weights = self.weights or dict.fromkeys(values, 1.0)
        self.known(values, *weights)
        _, group = np.unique([repr(prompt) for prompt in prompts], return_inverse=True)
        total = sum(w * _normalized(values[name], group, self.eps) for name, w in weights.items())
        spread = total.std(ddof=1) if self.whiten and len(total) > 1 else 0.0
        return total / (spread + self.eps) if spread else total


def _normalized(values: np.ndarray, group: np.ndarray, eps: float) -> np.ndarray:
    """(r - mean) / (std + eps) within each group; exactly 0 where all of a group are equal, or absent."""
    out = np.zeros_like(values)
    for g in np.unique(group[~np.isnan(values)]):
        rows = (group == g) & ~np.isnan(values)
        mine = values[rows]
        if mine.max() > mine.min():
            out[rows] = (mine - mine.mean()) / (mine.std(ddof=1) + eps)
    return out


class Asked(Objectives):
    """A weighted sum whose weights the prompt asks for: `menu` {word: weights}, the word standing first in the prompt.

    For policies conditioned on weights. The objectives see the prompt without that word.
    """

    says = "as asked"

    def __init__(self, parts: Parts, menu: Mapping[str, Mapping[str, float]], scale: Mapping[str, float] | None = None):
        super().__init__(parts, scale)
        self.menu = {word: _weights(weights, word) for word, weights in menu.items()}

    @staticmethod
    def ask(word: str, prompts: list[str]) -> list[str]:
        """The prompts with the word in front."""
        return [f"{word} {prompt}" for prompt in prompts]

    def judge(self, prompts: list[str], completions: list, **columns) -> Judgement:
        words, plain = zip(*(prompt.split(" ", 1) for prompt in prompts), strict=True) if prompts else ((), ())
        if unknown := sorted({*words} - {*self.menu}):
            raise RewardError(f"as asked: a prompt starts with {unknown[0]!r}, not with one of {', '.join(self.menu)}")
        parts = {name: reward(list(plain), completions, **columns) for name, reward in self.made_of().items()}
        values = self.objectives(parts)
        self.known(values, *(name for weights in self.menu.values() for name in weights))
        scores = np.zeros(len(words))
        for word, weights in self.menu.items():
            scores += _sum(weights, values) * (np.array(words) == word)
        return Judgement(scores, values, parts=parts, present=_any_present(values))


class Stages(Reward):
    """Rewards in order, say format, correctness, style: the score is the sum of those up to the active one.

    The active stage is over when its mean over a batch of training passes its threshold; from the next batch on one
    more stage counts. `update` does this, scoring doesn't. `stage` is the number of the active stage (from 0), `log`
    its value in each batch, `reset()` starts over. A batch of fewer than `least` completions is too noisy to end a
    stage. What was learned in an earlier stage stays part of the score, so it can't be unlearned for free. The
    judgement's aspects are the scores of all stages, whether they count already or not.
    """

    reads = "as given"
    moves = ("stage", "log")
    least = 32

    def __init__(self, stages: Mapping[str, Reward | Callable], thresholds: Mapping[str, float], name: str = "stages"):
        """`thresholds`: the batch mean that ends each stage but the last, in that stage's own units."""
        names = list(stages)
        missing = [stage for stage in names[:-1] if stage not in thresholds]
        unknown = [stage for stage in thresholds if stage not in names[:-1]]
        if len(names) < 2 or missing or unknown:
            raise AlignkitError(
                f"Stages {name!r}: needs two or more stages and a threshold for each but the last; stages {names}, "
                f"thresholds for {list(thresholds)}"
            )
        self.stages = {stage: as_reward(reward, stage) for stage, reward in stages.items()}
        self.thresholds = dict(thresholds)
        self.card = RewardCard(
            name=name,
            construction_basis=common_basis(self.stages.values()),
            format="scalar",
            expression="explicit",
            granularity="multi-stage",
            objective="multi",
            notes="has a state: the active stage",
        )
        self.reset()

    def reset(self) -> None:
        """Back to the first stage."""
        self.stage, self.log = 0, []

    def made_of(self) -> Mapping[str, Reward]:
        return self.stages

    def judge(self, prompts: list, completions: list, **columns) -> Judgement:
        parts = {name: reward(prompts, completions, **columns) for name, reward in self.stages.items()}
        counted = list(parts.values())[: self.stage + 1]
        total = np.sum([part.scores for part in counted], axis=0)
        return Judgement(total, aspects={name: part.scores for name, part in parts.items()}, parts=parts,
                         present=np.all([part.present for part in counted], axis=0))  # fmt: skip

    def update(self, judgement: Judgement) -> None:
        """Note the active stage, and end it if its mean passes the threshold."""
        super().update(judgement)
        if len(judgement.scores) < self.least:
            return
        self.log.append(self.stage)
        active = list(self.stages)[self.stage]
        if active in self.thresholds and np.nanmean(judgement.aspects[active]) >= self.thresholds[active]:
            self.stage += 1


class ByTask(Reward):
    """One reward for several *tasks*: each completion is judged by its own task's reward, divided by that task's scale.

    `task_of(prompt)` names the task. Unlike objectives, tasks never meet in one completion.
    """

    reads = "as given"

    def __init__(self, rewards: Mapping[str, Reward | Callable], task_of: Callable[[str], str],
                 scale: Mapping[str, float] | None = None):  # fmt: skip
        self.rewards = {name: as_reward(reward, name) for name, reward in rewards.items()}
        self.task_of, self.scale = task_of, dict(scale or {})
        self.card = RewardCard(name="by task", construction_basis=common_basis(self.rewards.values()), format="scalar",
                               expression="explicit", granularity="response", objective="single",
                               notes="several tasks, one objective each")  # fmt: skip

    def made_of(self) -> Mapping[str, Reward]:
        return self.rewards

    def judge(self, prompts: list, completions: list, **columns) -> Judgement:
        tasks = [self.task_of(prompt) for prompt in prompts]
        if unknown := sorted({*tasks} - {*self.rewards}):
            raise RewardError(f"by task: no reward for task {unknown[0]!r}; there are {', '.join(self.rewards)}")
        scores, parts = np.full(len(prompts), np.nan), {}
        for name, reward in self.rewards.items():
            rows = [i for i, task in enumerate(tasks) if task == name]
            if rows:
                mine = {k: v if k in TRAINERS else [v[i] for i in rows] for k, v in columns.items()}
                parts[name] = reward([prompts[i] for i in rows], [completions[i] for i in rows], **mine)
                scores[rows] = parts[name].scores / self.scale.get(name, 1.0)
        return Judgement(scores, present=~np.isnan(scores), parts=parts)


def _sum(weights: Mapping[str, float], values: Mapping[str, np.ndarray]) -> np.ndarray:
    return sum(w * np.where(np.isnan(values[name]), 0.0, values[name]) for name, w in weights.items())


def _equal(names: Mapping[str, object]) -> dict[str, float]:
    return {name: 1 / len(names) for name in names}


def _weights(weights: Mapping[str, float], what: str) -> dict[str, float]:
    if not weights or not all(np.isfinite(w) for w in weights.values()):
        raise AlignkitError(f"{what}: weights must name at least one objective, with finite numbers, not {weights}")
    return dict(weights)
