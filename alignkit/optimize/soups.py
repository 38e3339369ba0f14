"""Rewarded soups: one policy from several, by averaging their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignkit.errors import AlignkitError
from alignkit.policy import Policy, check_same_vocabulary


def soup(policies: Sequence[Policy], weights: Sequence[float] | None = None, name: str = "soup") -> Policy:
    """The policy whose parameters are sum_k w_k theta_k, sum_k w_k = 1 (rewarded soups 2306.04488); default: the mean.

    Nothing is trained: from K policies treated for one objective each, every trade-off costs one sum. It takes policies
    of one architecture, and makes sense only for those that started from the same weights. Weights below 0 or above 1
    extrapolate, and are allowed.
    """
    if not policies:
        raise AlignkitError("soup: no policies were given")
    weights = [1 / len(policies)] * len(policies) if weights is None else [float(w) for w in weights]
    if len(weights) != len(policies) or not abs(sum(weights) - 1) < 1e-6:
        raise AlignkitError(f"soup: {len(policies)} policies need as many weights, summing to 1, not {weights}")
    states = [policy.model.state_dict() for policy in policies]
    for policy, state in zip(policies, states, strict=True):
        check_same_vocabulary(policy, policies[0])
        shapes = ({key: tuple(value.shape) for key, value in s.items()} for s in (state, states[0]))
        if len({tuple(sorted(s.items())) for s in shapes}) > 1:
            raise AlignkitError(f"soup: {policy.name!r} and {policies[0].name!r} are of different architectures")
    mixed = policies[0].copy(name)
    mixed.model.load_state_dict({key: _sum([state[key] for state in states], weights) for key in states[0]})
    return mixed


def _sum(tensors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    return sum(w * tensor.double() for tensor, w in zip(tensors, weights, strict=True)).to(tensors[0].dtype)
