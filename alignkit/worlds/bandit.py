"""The world "bandit": a handful of outcomes per prompt, so that every expectation is exact, in double precision.

This is where identities are proved. A completion is one of K outcomes; a policy is a table of logits.
"""

from __future__ import annotations

import numpy as np
import torch

from alignkit.errors import AlignkitError
from alignkit.worlds.base import World


class BanditWorld(World):
    """`n_prompts` prompts with `n_outcomes` outcomes each; gold is drawn once from N(0, 1) with the given seed."""

    name = "bandit"
    aspects = ("value",)

    def __init__(self, n_prompts: int = 4, n_outcomes: int = 6, seed: int = 0):
        super().__init__()
        self.version = f"bandit-v1-{n_prompts}x{n_outcomes}-{seed}"
        self.table = np.random.default_rng(seed).normal(size=(n_prompts, n_outcomes))
        self._prompts = [f"prompt {i}" for i in range(n_prompts)]
        self.outcomes = [f"outcome {k}" for k in range(n_outcomes)]

    def prompts(self, split: str = "treatment") -> list[str]:
        """All prompts; the bandit has no splits, since nothing is estimated."""
        return list(self._prompts)

    def index(self, prompts: list[str], completions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of each (prompt, completion); AlignkitError names one that does not exist."""
        try:
            rows = np.array([self._prompts.index(p) for p in prompts], dtype=int)
            columns = np.array([self.outcomes.index(c) for c in completions], dtype=int)
        except ValueError as error:
            raise AlignkitError(f"world 'bandit': {error}; see world.prompts() and world.outcomes") from None
        return rows, columns

    def gold_aspects(self, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
        return {"value": self.table[self.index(prompts, completions)]}

    def symptoms(self, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
        """Worse than the prompt's average outcome."""
        rows, columns = self.index(prompts, completions)
        return {"below average": (self.table[rows, columns] < self.table[rows].mean(1)).astype(float)}

    def reference(self, seed: int = 0) -> torch.Tensor:
        """Log-probabilities of a reference policy with N(0, 1) logits; shape (prompts, outcomes), float64."""
        logits = np.random.default_rng([seed, 1]).normal(size=self.table.shape)
        return torch.log_softmax(torch.from_numpy(logits), dim=-1)


# Exact quantities of tabular policies given as log-probabilities, shape (prompts, outcomes).


def expectation(logp: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """E_pi[values], shape (prompts,)."""
    return (logp.exp() * values).sum(-1)


def kl(logp: torch.Tensor, logq: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats, shape (prompts,); an outcome of probability 0 under p adds nothing."""
    p = logp.exp()
    return (p * (logp - logq).masked_fill(p == 0, 0.0)).sum(-1)


def optimum(ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """log of pi_ref * exp(reward / beta) / Z, the maximizer of E[reward] - beta * KL (DPO 2305.18290, eq. 4)."""
    return torch.log_softmax(ref_logp + reward / beta, dim=-1)


def best_of_n(ref_logp: torch.Tensor, reward: torch.Tensor, n: int) -> torch.Tensor:
    """log-probabilities of the best of n draws by `reward`; ties are broken at random, so tied outcomes keep their
    relative odds (2401.01879)."""
    p = ref_logp.exp()
    at_most = (p[:, None, :] * (reward[:, None, :] <= reward[:, :, None])).sum(-1)
    below = (p[:, None, :] * (reward[:, None, :] < reward[:, :, None])).sum(-1)
    level = at_most - below  # probability of this outcome's reward level
    return (p / level * (at_most**n - below**n)).log()
