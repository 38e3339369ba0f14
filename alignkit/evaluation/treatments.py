"""What a treatment bought and what it cost: gold gained, KL, the share of what the exact optimum gains there, samples.

A swept method is a list of points, one for each policy on the way; `at` reads such a curve at a KL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.evaluation.core import Frontier, best_of_n_curve, best_of_n_kl, frontier, sequence_kl
from alignkit.optimize.training import summed_logprobs
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward
from alignkit.worlds.base import World

COSTS = ("completions_sampled", "forward_rows", "backward_rows", "updates", "seconds")


@dataclass
class Yardstick:
    """One patient on some prompts: `said`, its samples, a list a prompt; `gold`, theirs, shape (prompts, samples);
    `base`, the mean gold; `best`, the exact optimum's frontier, from those samples (or, with `lengthened`, more)."""

    world: World
    patient: Policy
    prompts: list
    said: list[list[str]]
    gold: np.ndarray
    best: Frontier

    @property
    def base(self) -> float:
        return float(self.gold.mean())

    @property
    def reach(self) -> float:
        """The largest KL (nats) up to which the optimum is known; 0 if there are too few samples for any."""
        return float(self.best.shown().kl.max(initial=0.0))

    def optimum(self, kl: float) -> float:
        """The exact optimum's gain of gold at this KL (nats); NaN beyond what the samples support."""
        return self.best.at(kl) - self.base if kl > self.best.kl.min() else self._near(kl)

    def _near(self, kl: float) -> float:
        """Below the frontier's first point the gain grows with the root of the KL."""
        first = int(self.best.kl.argmin())
        return float((self.best.value[first] - self.base) * np.sqrt(max(kl, 0) / self.best.kl[first]))

    def measure(self, policy: Policy, n: int = 32, seed: int = 0) -> dict[str, float]:
        """`kl` (nats), gold `gain`ed, `efficiency` (gain over the optimum's gain at that KL), the mean of `tokens` and
        `gold_sd` within prompts, from n samples a prompt."""
        kl = float(sequence_kl(policy, self.patient, self.prompts, n, seed).mean())
        said = policy.rollout(self.prompts, n, seed=seed)
        gold = self.world.gold(said.prompts, said.completions)
        gain = float(gold.mean()) - self.base
        spread = float(gold.reshape(len(self.prompts), n).std(1).mean())
        tokens = float(said.batch.mask.sum(1).double().mean())
        best = self.optimum(kl)
        efficiency = gain / best if best > 0 else float("nan")
        return {"kl": kl, "gain": gain, "efficiency": efficiency, "tokens": tokens, "gold_sd": spread}

    def scores(self, reward: Reward | Callable, samples: int | None = None) -> np.ndarray:
        """What a reward says of the first `samples` (default: all) samples of each prompt, shape (prompts, samples)."""
        some = [texts[:samples] for texts in self.said]
        asked = [prompt for prompt, texts in zip(self.prompts, some, strict=True) for _ in texts]
        return as_reward(reward)(asked, [text for texts in some for text in texts]).scores.reshape(len(some), -1)

    def best_of_n(self, ns: Sequence[int], proxy: np.ndarray | None = None) -> pd.DataFrame:
        """The same for best-of-n by gold, or by `proxy` (see `scores`): a row an n, columns kl, gain, efficiency."""
        proxy = self.gold if proxy is None else proxy
        gold = self.gold[:, : proxy.shape[1]]
        kl = best_of_n_kl(proxy, ns).mean(0)
        gain = best_of_n_curve(proxy, gold, ns).mean(0) - gold.mean()
        return pd.DataFrame({"n": list(ns), "kl": kl, "gain": gain,
                             "efficiency": gain / np.array([self.optimum(k) for k in kl])})  # fmt: skip


def yardstick(world: World, patient: Policy, prompts: list, samples: int = 2000, seed: int = 0) -> Yardstick:
    """From `samples` of the patient for each prompt: some 2,000 reach 2 nats, 20,000 reach 4."""
    if samples < 2:
        raise AlignkitError(f"yardstick: the optimum can't be read off {samples} sample a prompt; take 1,000 or more")
    said = patient.sample(prompts, samples, seed=seed)
    gold = np.stack([world.gold([prompt] * samples, texts) for prompt, texts in zip(prompts, said, strict=True)])
    return Yardstick(world, patient, prompts, said, gold, frontier(gold))


def lengthened(known: Yardstick, guides: Sequence[Policy], samples: int = 256, seed: int = 0) -> Yardstick:
    """The same yardstick with a frontier that reaches farther, by samples of treated policies, which lie out there.

    Multiple importance sampling: `samples` of the patient and of each guide, weighted by pi_ref / (their mixture). The
    patient is part of the mixture, so nothing that it can say is left out, whatever the guides are. At each beta that
    estimate is kept, old or new, which has the larger effective sample size.
    """
    policies = [known.patient, *guides]
    logw, gold = [], []
    for k, sampler in enumerate(policies):
        said = sampler.rollout(known.prompts, samples, seed=seed * 1000 + k)
        each = torch.stack([summed_logprobs(policy, said.batch).double() for policy in policies])
        mixture = torch.logsumexp(each, 0) - np.log(len(policies))
        logw.append((each[0] - mixture).reshape(len(known.prompts), samples).cpu().numpy())
        gold.append(known.world.gold(said.prompts, said.completions).reshape(len(known.prompts), samples))
    logw, gold = np.concatenate(logw, 1), np.concatenate(gold, 1)
    old, new = known.best, weighted_frontier(gold, logw, known.best.beta)
    better = new.ess > old.ess
    columns = (np.where(better, getattr(new, name), getattr(old, name)) for name in ("kl", "value", "ess"))
    return replace(known, best=Frontier(old.beta, *columns))


def weighted_frontier(reward: np.ndarray, log_weight: np.ndarray, betas: Iterable[float]) -> Frontier:
    """`frontier` from samples of another distribution than the reference; log_weight = log pi_ref / theirs, up to
    sampling noise normalized; both (prompts, samples)."""
    points = []
    for beta in betas:
        logw = reward / beta + log_weight
        log_z = logsumexp(logw, axis=1, keepdims=True)
        w = np.exp(logw - log_z)
        log_z = log_z - logsumexp(log_weight, axis=1, keepdims=True)
        kl = (w * (reward / beta)).sum(1) - log_z[:, 0]
        points.append((kl.mean(), (w * reward).sum(1).mean(), (1 / (w**2).sum(1)).min()))
    kl, value, ess = (np.array(column) for column in zip(*points, strict=True))
    return Frontier(np.asarray(list(betas), dtype=float), kl, value, ess)


def at(points: pd.DataFrame, kl: float, column: str = "gain") -> float:
    """A swept curve read at this KL: linear between its points, from nothing at 0 nats; NaN beyond its last point.

    `points`: columns kl and `column`, one row a policy. Gain is a concave function of KL, so this errs on the low side.
    """
    if not {"kl", column} <= set(points.columns) or not len(points):
        raise AlignkitError(f"a swept curve needs at least one row and the columns kl and {column}")
    known = points.sort_values("kl")
    x, y = np.append(0.0, known["kl"]), np.append(0.0, known[column])
    return float(np.interp(kl, x, y, right=np.nan))


def efficiency_at(points: pd.DataFrame, yardstick: Yardstick, kls: Sequence[float] = (1.0, 2.0, 4.0)) -> pd.Series:
    """Share of the optimum's gain that a swept method reaches at each KL; NaN where its curve or the optimum's ends."""
    return pd.Series({kl: at(points, kl) / yardstick.optimum(kl) for kl in kls})


def cost(policies: Sequence[Policy], pairs_sampled: int = 0) -> dict[str, float]:
    """What a treatment in several legs has cost in all, by `policy.spent`.

    Methods on fixed pairs count what they read: two completions a pair forward and backward, and the reference once
    more; `pairs_sampled` pairs had to be sampled for them.
    """
    total = dict.fromkeys(COSTS, 0.0)
    for policy in policies:
        spent = policy.spent
        read = 2 * spent.get("rows_read", 0)
        if "forward_rows" not in spent:
            spent = {**spent, "forward_rows": 2 * read, "backward_rows": read}
        for name in COSTS:
            total[name] += spent.get(name, 0)
    total["completions_sampled"] += 2 * pairs_sampled
    return total


def averaged(policies: Sequence[Policy], name: str = "average") -> Policy:
    """The policy whose weights are the mean of these policies' weights."""
    if not policies:
        raise AlignkitError("averaged: no policies were given")
    mean = policies[-1].copy(name)
    states = [policy.model.state_dict() for policy in policies]
    mean.model.load_state_dict({key: _mean([state[key] for state in states]) for key in states[0]})
    return mean


def _mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).mean(0)
