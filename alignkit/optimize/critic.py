"""The value head of PPO: what reward is to be expected before each token."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from alignkit.policy import Batch, Policy, positions


class Critic(torch.nn.Module):
    """A copy of the policy's network with a linear head on the state before each token; starts at 0 everywhere."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.model = copy.deepcopy(policy.model)
        self.head = torch.nn.Linear(policy.model.config.hidden_size, 1).to(policy.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Tensor:
        """V before each completion token, shape (N, T), 0 where masked; differentiable."""
        states = self.model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=positions(batch.attention),
            output_hidden_states=True,
            logits_to_keep=1,
            use_cache=False,
        ).hidden_states[-1]
        width = batch.mask.shape[1]
        return self.head(states[:, -width - 1 : -1]).squeeze(-1) * batch.mask
