"""What a treatment bought and what it cost: gold gained, KL, the share of what the exact optimum gains there, samples.

A swept method is a list of points, one for each policy on the way; `at` reads such a curve at a KL.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from alignkit.errors import AlignkitError
from alignkit.evaluation.core import Frontier, best_of_n_curve, best_of_n_kl, frontier, sequence_kl
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward, columns_of, repeated
from alignkit.training import summed_logprobs
from alignkit.worlds.base import World, judge_rows

COSTS = ("completions_sampled", "forward_rows", "backward_rows", "updates", "seconds")


class Yardstick:
    """What can be gained from one patient on some prompts, by n of its samples for each: some 2,000 reach 2 nats,
    20,000 reach 4. The columns of a Dataset of prompts reach the world's gold.

    `said`: the samples, a list a prompt; `gold`: theirs, shape (prompts, samples), and `base` its mean; `best`: the
    exact optimum's `Frontier`.
    """

    def __init__(self, world: World, patient: Policy, prompts: Sequence | Dataset, n: int = 2000, seed: int = 0,
                 max_new_tokens: int = 48):  # fmt: skip
        if n < 2:
            raise AlignkitError(f"Yardstick: the optimum can't be read off {n} sample a prompt; take 1,000 or more")
        self.world, self.patient, self.max_new_tokens = world, patient, max_new_tokens
        self.prompts, self.columns = columns_of(prompts)
        self.said = patient.sample(self.prompts, n, seed=seed, max_new_tokens=max_new_tokens)
        self.gold = self.judge([text for texts in self.said for text in texts])
        self.base, self.best = float(self.gold.mean()), frontier(self.gold)

    def lengthened(self, guides: Sequence[Policy], n: int = 256, seed: int = 0) -> Yardstick:
        """The same with a frontier that reaches farther, by samples of treated policies, which lie out there.

        Multiple importance sampling: n samples a prompt of the patient and of each guide, weighted by pi_ref / (their
        mixture). The patient is part of the mixture, so nothing that it can say is left out, whatever the guides are.
        At each beta that estimate is kept, old or new, which has the larger effective sample size.
        """
        policies = [self.patient, *guides]
        logw, gold = [], []
        for k, sampler in enumerate(policies):
            said = sampler.rollout(self.prompts, n, seed=seed * 1000 + k, max_new_tokens=self.max_new_tokens)
            each = torch.stack([summed_logprobs(policy, said.batch).double() for policy in policies])
            mixture = torch.logsumexp(each, 0) - np.log(len(policies))
            logw.append((each[0] - mixture).reshape(len(self.prompts), n).cpu().numpy())
            gold.append(self.judge(said.completions))
        old = self.best
        new = frontier(np.concatenate(gold, 1), old.beta, log_weight=np.concatenate(logw, 1))
        better = new.ess > old.ess
        columns = (np.where(better, getattr(new, name), getattr(old, name)) for name in ("kl", "value", "ess"))
        longer = copy.copy(self)
        longer.best = Frontier(old.beta, *columns, old.start)
        return longer

    def optimum(self, kl: float) -> float:
        """The exact optimum's gain of gold at this KL (nats); NaN beyond what the samples support."""
        return self.best.at(kl) - self.base

    def measure(self, policy: Policy, n: int = 32, seed: int = 0) -> dict[str, float]:
        """`kl` (nats), gold `gain`ed, `efficiency` (gain over the optimum's gain at that KL), the mean of `tokens` and
        `gold_sd` within prompts, from n samples a prompt."""
        kl = float(sequence_kl(policy, self.patient, self.prompts, n, seed, self.max_new_tokens).mean())
        said = policy.rollout(self.prompts, n, seed=seed, max_new_tokens=self.max_new_tokens)
        gold = self.judge(said.completions)
        gain, best = float(gold.mean()) - self.base, self.optimum(kl)
        tokens = float(said.batch.mask.sum(1).double().mean())
        return {"kl": kl, "gain": gain, "efficiency": gain / best if best > 0 else float("nan"), "tokens": tokens,
                "gold_sd": float(gold.std(1).mean())}  # fmt: skip

    def judge(self, completions: list[str]) -> np.ndarray:
        """The world's gold of completions, equally many for each of `self.prompts` in turn: (prompts, completions)."""
        n = len(completions) // len(self.prompts)
        prompts = [prompt for prompt in self.prompts for _ in range(n)]
        return judge_rows(self.world.gold, prompts, completions, repeated(self.columns, n)).reshape(-1, n)

    def scores(self, reward: Reward | Callable, n: int | None = None) -> np.ndarray:
        """What a reward says of the first n (default: all) samples of each prompt, shape (prompts, samples)."""
        some = [texts[:n] for texts in self.said]
        asked = [prompt for prompt, texts in zip(self.prompts, some, strict=True) for _ in texts]
        said = as_reward(reward)(asked, [text for texts in some for text in texts])
        return said.all_scores("a comparison of treatments").reshape(len(some), -1)

    def best_of_n(self, ns: Sequence[int], proxy: np.ndarray | None = None) -> pd.DataFrame:
        """The same for best-of-n by gold, or by `proxy` (see `scores`): a row an n, columns kl, gain, efficiency."""
        proxy = self.gold if proxy is None else proxy
        gold = self.gold[:, : proxy.shape[1]]
        kl = best_of_n_kl(proxy, ns).mean(0)
        gain = best_of_n_curve(proxy, gold, ns).mean(0) - gold.mean()
        return pd.DataFrame({"n": list(ns), "kl": kl, "gain": gain,
                             "efficiency": gain / np.array([self.optimum(k) for k in kl])})  # fmt: skip


def at(points: pd.DataFrame, kl: float, column: str = "gain") -> float:
    """A swept curve read at this KL: linear between its points, from nothing at 0 nats; NaN beyond its last point.

    `points`: columns kl and `column`, one row a policy. Gain is a concave function of KL, so this errs on the low side.
    """
    if not {"kl", column} <= set(points.columns) or not len(points):
        raise AlignkitError(f"a swept curve needs at least one row and the columns kl and {column}")
    known = points.sort_values("kl")
    x, y = np.append(0.0, known["kl"]), np.append(0.0, known[column])
    return float(np.interp(kl, x, y, right=np.nan))


def efficiency_at(points: pd.DataFrame, yardstick: Yardstick, kls: Sequence[float]) -> pd.Series:
    """Share of the optimum's gain that a swept method reaches at each KL; NaN where its curve or the optimum's ends."""
    return pd.Series({kl: at(points, kl) / yardstick.optimum(kl) for kl in kls})


def cost(policies: Sequence[Policy]) -> dict[str, float]:
    """What a treatment in several legs has cost in all, by `policy.spent`: completions sampled, completions read in
    forward passes (by the policy, and by its reference, which methods on fixed data read once) and in backward passes,
    updates, seconds."""
    return {name: sum(policy.spent.get(name, 0) for policy in policies) for name in COSTS}
