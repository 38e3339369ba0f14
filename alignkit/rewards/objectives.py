"""Several objectives made into one score: by weights, by a constraint, by the worst, each in its own unit, in stages.

What is judged are `parts`: a reward whose judgement has aspects, or {name: reward} with a score each. They meet as they
are, so divide each by its unit first where "equal weights" should mean something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from alignkit.errors import AlignkitError, RewardError, check_at_least, check_positive
from alignkit.rewards.base import Combined, Judgement, Reward
from alignkit.rewards.calling import TRAINERS

Parts = Reward | Callable | Mapping[str, Reward | Callable]


class Objectives(Combined):
    """What the rewards of several objectives share. Subclasses set `says` and define `total`."""

    says = "objectives"

    def __init__(self, parts: Parts):
        self.apart = isinstance(parts, Mapping)
        super().__init__(parts if self.apart else {"parts": parts}, name=self.says, granularity="multi-aspect",
                         objective="multi")  # fmt: skip

    def combine(self, parts: dict[str, Judgement], prompts: list, completions: list) -> Judgement:
        values = {name: part.scores for name, part in parts.items()} if self.apart else parts["parts"].aspects
        if not values:
            raise RewardError(f"{self.says}: reward {self.made_of['parts'].card.name!r} gives a score only; it takes "
                              "one with aspects, or {name: reward}")  # fmt: skip
        present = np.any([~np.isnan(value) for value in values.values()], axis=0)
        return Judgement(self.total(values, prompts), values, present=present)

    def total(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        """The one score, (N,); objectives that are absent in a row (NaN) don't count in it, as in TRL's sum."""
        raise NotImplementedError

    def weighted(self, weights: Mapping[str, float], values: Mapping[str, np.ndarray]) -> np.ndarray:
        """sum_k w_k r_k over the objectives that have a weight; RewardError if one of them is no objective."""
        for name in weights:
            if name not in values:
                raise RewardError(f"{self.says}: no objective {name!r}; there are {', '.join(values)}")
        return sum(w * np.where(np.isnan(values[name]), 0.0, values[name]) for name, w in weights.items())


class Weighted(Objectives):
    """sum_k w_k r_k: linear scalarization. Objectives without a weight don't count."""

    says = "weighted sum"

    def __init__(self, parts: Parts, weights: Mapping[str, float]):
        super().__init__(parts)
        self.weights = _weights(weights, self.says)

    def total(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        return self.weighted(self.weights, values)


class Worst(Objectives):
    """min_k r_k of each completion: a utility that no weighted sum is. An answer is as good as its worst side."""

    says = "worst objective"

    def total(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        return np.fmin.reduce(list(values.values()))


class MaxMin(Objectives):
    """max over policies of min_k E[r_k] (MaxMin-RLHF 2402.08925), by multiplicative weights (its exponentiated form).

    The score is sum_k w_k r_k; after each batch of training w_k is set in proportion to w_k exp(-rate mean(r_k)): the
    objective that lags gets the weight. Put the objectives on one footing first (less what the patient has, say).
    `history` has a row a batch.
    """

    says = "max-min"
    moves = ("history", "weights")

    def __init__(self, parts: Parts, rate: float = 0.5):
        super().__init__(parts)
        check_positive(self.says, rate=rate)
        self.rate, self.history, self.weights = rate, [], {}

    def total(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        return self.weighted(self.weights or dict.fromkeys(values, 1 / len(values)), values)

    def update(self, judgement: Judgement) -> None:
        super().update(judgement)
        means = _means(judgement)
        weights = self.weights or dict.fromkeys(means, 1 / len(means))
        self.history.append({**means, **{f"weight {name}": w for name, w in weights.items()}})
        raw = {name: w * np.exp(-self.rate * means[name]) for name, w in weights.items()}
        self.weights = {name: w / sum(raw.values()) for name, w in raw.items()}


class Lagrangian(Objectives):
    """max E[r] subject to E[cost] <= budget (Safe RLHF 2310.12773, eqs. 9-10): score (r - lambda cost) / (1 + lambda).

    After each batch of training lambda <- max(0, lambda + rate (mean cost - budget)), from `start`: it rises while the
    budget is broken and falls while there is room. `goal` and `cost` name two objectives. The mean is that of the
    batch's completions, so prompts should come in a random order; `history` has a row a batch. (The paper moves log
    lambda; the fixed point is the same.)
    """

    says = "Lagrangian"
    moves = ("history", "multiplier")

    def __init__(self, parts: Parts, goal: str, cost: str, budget: float, rate: float = 0.5, start: float = 1.0):
        super().__init__(parts)
        check_positive(self.says, rate=rate)
        check_at_least(self.says, 0, start=start)
        self.goal, self.cost, self.budget, self.rate = goal, cost, budget, rate
        self.history, self.multiplier = [], float(start)

    def total(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        return self.weighted({self.goal: 1.0, self.cost: -self.multiplier}, values) / (1 + self.multiplier)

    def update(self, judgement: Judgement) -> None:
        super().update(judgement)
        means = _means(judgement)
        self.history.append({"multiplier": self.multiplier, self.goal: means[self.goal], self.cost: means[self.cost]})
        self.multiplier = max(0.0, self.multiplier + self.rate * (means[self.cost] - self.budget))


def _means(judgement: Judgement) -> dict[str, float]:
    return {name: float(np.nanmean(values)) for name, values in judgement.aspects.items()}


class Decoupled(Objectives):
    """Each objective normalized by itself within the completions of a prompt, then summed (GDPO 2601.05242).

    a = sum_k w_k (r_k - mean_k) / (std_k + 1e-4) over the call's completions of the same prompt, divided by the
    standard deviation of a over the call if `whiten`, as in the paper. The score is then an advantage already:
    `optimize.gdpo` uses it so. With one objective, weight 1 and no `whiten` this is GRPO's `group_normalized`.
    """

    says = "decoupled"

    def __init__(self, parts: Parts, weights: Mapping[str, float] | None = None, whiten: bool = True):
        super().__init__(parts)
        self.weights, self.whiten = None if weights is None else _weights(weights, self.says), whiten

    def total(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        _, group = np.unique([repr(prompt) for prompt in prompts], return_inverse=True)
        normalized = {name: _normalized(value, group) for name, value in values.items()}
        total = self.weighted(self.weights or dict.fromkeys(values, 1.0), normalized)
        spread = total.std(ddof=1) if self.whiten and len(total) > 1 else 0.0
        return total / (spread + 1e-4) if spread else total


def _normalized(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(r - mean) / (std + 1e-4) within each group; exactly 0 where all of a group are equal, or absent."""
    out = np.zeros_like(values)
    for g in np.unique(group[~np.isnan(values)]):
        rows = (group == g) & ~np.isnan(values)
        mine = values[rows]
        if mine.max() > mine.min():
            out[rows] = (mine - mine.mean()) / (mine.std(ddof=1) + 1e-4)
    return out


class Asked(Objectives):
    """A weighted sum whose weights the prompt asks for: `menu` {word: weights}, the word standing first in the prompt.

    For policies conditioned on weights. The objectives see the prompt without that word.
    """

    says = "as asked"

    def __init__(self, parts: Parts, menu: Mapping[str, Mapping[str, float]]):
        super().__init__(parts)
        self.menu = {word: _weights(weights, word) for word, weights in menu.items()}

    @staticmethod
    def ask(word: str, prompts: list[str]) -> list[str]:
        """The prompts with the word in front."""
        return [f"{word} {prompt}" for prompt in prompts]

    def heard(self, prompts: list[str]) -> list[str]:
        if unknown := sorted({_word(prompt) for prompt in prompts} - {*self.menu}):
            raise RewardError(f"as asked: a prompt starts with {unknown[0]!r}, not with one of {', '.join(self.menu)}")
        return [prompt.partition(" ")[2] for prompt in prompts]

    def total(self, values: dict[str, np.ndarray], prompts: list) -> np.ndarray:
        words = np.array([_word(prompt) for prompt in prompts])
        return sum(self.weighted(weights, values) * (words == word) for word, weights in self.menu.items())


def _word(prompt: str) -> str:
    return prompt.partition(" ")[0]


def _weights(weights: Mapping[str, float], what: str) -> dict[str, float]:
    if not weights or not all(np.isfinite(w) for w in weights.values()):
        raise AlignkitError(f"{what}: weights must name at least one objective, with finite numbers, not {weights}")
    return dict(weights)


class Stages(Combined):
    """Rewards in order, say format, correctness, style: the score is the sum of those up to the active one.

    The active stage is over when its mean over a batch of training passes its threshold; from the next batch on one
    more stage counts. `stage` is the number of the active stage (from 0), `log` its value in each batch. A batch of
    fewer than `least` completions is too noisy to end a stage. What was learned in an earlier stage stays part of the
    score, so it can't be unlearned for free. The judgement's aspects are the scores of all stages, whether they count
    already or not.
    """

    moves = ("stage", "log")
    least = 32

    def __init__(self, stages: Mapping[str, Reward | Callable], thresholds: Mapping[str, float]):
        """`thresholds`: the batch mean that ends each stage but the last, in that stage's own units."""
        names = list(stages)
        if len(names) < 2 or {*names[:-1]} != {*thresholds}:
            raise AlignkitError(f"Stages: needs two or more stages and a threshold for each but the last; stages "
                                f"{names}, thresholds for {list(thresholds)}")  # fmt: skip
        super().__init__(stages, name="stages", granularity="multi-stage", objective="multi",
                         notes="has a state: the active stage")  # fmt: skip
        self.thresholds, self.stage, self.log = dict(thresholds), 0, []

    def combine(self, parts: dict[str, Judgement], prompts: list, completions: list) -> Judgement:
        scores = {name: part.scores for name, part in parts.items()}
        return Judgement(np.sum([*scores.values()][: self.stage + 1], axis=0), aspects=scores)

    def update(self, judgement: Judgement) -> None:
        """Note the active stage, and end it if its mean passes the threshold."""
        super().update(judgement)
        if len(judgement.scores) < self.least:
            return
        self.log.append(self.stage)
        active = list(self.made_of)[self.stage]
        if active in self.thresholds and np.nanmean(judgement.aspects[active]) >= self.thresholds[active]:
            self.stage += 1


class ByTask(Combined):
    """One reward for several *tasks*: each completion is judged by its own task's reward, divided by that task's scale.

    `task_of(prompt)` names the task. Unlike objectives, tasks never meet in one completion.
    """

    def __init__(self, rewards: Mapping[str, Reward | Callable], task_of: Callable[[str], str],
                 scale: Mapping[str, float] | None = None):  # fmt: skip
        super().__init__(rewards, name="by task", notes="several tasks, one objective each")
        self.task_of, self.scale = task_of, dict(scale or {})

    def judge(self, prompts: list, completions: list, **columns) -> Judgement:
        tasks = [self.task_of(prompt) for prompt in prompts]
        if unknown := sorted({*tasks} - {*self.made_of}):
            raise RewardError(f"by task: no reward for task {unknown[0]!r}; there are {', '.join(self.made_of)}")
        scores, parts = np.full(len(prompts), np.nan), {}
        for name, reward in self.made_of.items():
            rows = [i for i, task in enumerate(tasks) if task == name]
            if rows:
                mine = {k: v if k in TRAINERS else [v[i] for i in rows] for k, v in columns.items()}
                parts[name] = reward([prompts[i] for i in rows], [completions[i] for i in rows], **mine)
                scores[rows] = parts[name].scores / self.scale.get(name, 1.0)
        return Judgement(scores, present=~np.isnan(scores), parts=parts)
