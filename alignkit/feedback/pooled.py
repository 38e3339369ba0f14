"""What pooled comparisons of people who differ say: Borda's count, its limit in Bradley-Terry, and cycles."""

from __future__ import annotations

import networkx as nx
import numpy as np
from scipy.optimize import root

from alignkit.errors import AlignkitError


def win_matrix(utilities: np.ndarray, temperature: float = 1.0, shares: np.ndarray | None = None) -> np.ndarray:
    """P(i beats j) pooled over groups of people, shape (K, K), one half on the diagonal.

    utilities (groups, K): what each outcome is worth to each group; shares: how many they are (default: equal).
    """
    u = np.atleast_2d(np.asarray(utilities, dtype=float))
    shares = np.full(len(u), 1 / len(u)) if shares is None else np.asarray(shares, dtype=float)
    gap = (u[:, :, None] - u[:, None, :]) / temperature
    return np.tensordot(shares / shares.sum(), 0.5 * (1 + np.tanh(gap / 2)), axes=1)


def borda(p: np.ndarray) -> np.ndarray:
    """Borda's count: the mean chance of each outcome to win against another, shape (K,). (2312.08358)"""
    p = _checked(p)
    return (p.sum(1) - p.diagonal()) / (len(p) - 1)


def bradley_terry_limit(p: np.ndarray) -> np.ndarray:
    """The Bradley-Terry scores (mean 0) that endless comparisons of all pairs, equally often, lead to; shape (K,).

    The maximum of sum_ij p_ij log sigmoid(s_i - s_j), whose gradient vanishes where each outcome's modeled wins equal
    its real ones: sum_j sigmoid(s_i - s_j) = sum_j p_ij. Larger Borda counts therefore get larger scores (2312.08358),
    whoever the people are.
    """
    p = _checked(p)

    def gradient(s: np.ndarray) -> np.ndarray:
        modeled = 0.5 * (1 + np.tanh((s[:, None] - s[None, :]) / 2))
        residual = (modeled - p).sum(1)
        residual[-1] = s.sum()  # the constant is free: fix it
        return residual

    found = root(gradient, np.zeros(len(p)), tol=1e-13)
    if np.abs(gradient(found.x)).max() > 1e-8:
        raise AlignkitError("no finite Bradley-Terry scores: some outcome always wins or always loses")
    return found.x


def cycles(p: np.ndarray) -> list[list[int]]:
    """Circles of three in which a majority prefers each outcome to the next (Condorcet), smallest index first.

    p (K, K): chance, or share of labels, in which row beats column; exactly one half is no preference.
    """
    p = _checked(p)
    graph = nx.DiGraph([(i, j) for i in range(len(p)) for j in range(len(p)) if i != j and p[i, j] > 0.5])
    found = [c for c in nx.simple_cycles(graph, length_bound=3) if len(c) == 3]
    return sorted(c[c.index(min(c)) :] + c[: c.index(min(c))] for c in found)


def _checked(p: np.ndarray) -> np.ndarray:
    p = np.asarray(p, dtype=float)
    if p.ndim != 2 or p.shape[0] != p.shape[1] or len(p) < 2 or not np.allclose(p + p.T, 1):
        raise AlignkitError(f"need a square matrix with p[i, j] + p[j, i] = 1, at least 2 x 2; got shape {p.shape}")
    return p
