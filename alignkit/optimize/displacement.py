"""Which preference pairs push the chosen side down: similarity in the policy's own eyes."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset

from alignkit.policy import Policy, positions
from alignkit.rewards.data import check_pairs, encode_pairs


@torch.no_grad()
def ches(policy: Policy, pairs: Dataset, batch_size: int = 512) -> np.ndarray:
    """Centered hidden embedding similarity of each pair of `prompt/chosen/rejected`, length-normalized; shape (N,).

    <h+, h-> - <h+, h+>, where h is the mean of the hidden states that predict the tokens of a side, end-of-sequence
    included. Larger (closer to 0 from below) is said to displace the chosen side more (Razin, Malladi, Bhaskar, Chen,
    Arora & Hanin 2024, definition 2). 0 for equal sides.
    """
    check_pairs(pairs)
    both = encode_pairs(policy, pairs)
    means = []
    for index in torch.arange(len(both)).split(batch_size):
        rows = both.rows(index)
        states = policy.model.base_model(
            input_ids=rows.ids,
            attention_mask=rows.attention,
            position_ids=positions(rows.attention),
            use_cache=False,
        ).last_hidden_state[:, -rows.mask.shape[1] - 1 : -1]  # the state before a token predicts it
        means.append((states.double() * rows.mask[..., None]).sum(1) / rows.mask.sum(1, keepdim=True))
    chosen, rejected = torch.cat(means).chunk(2)
    return ((chosen * rejected).sum(1) - (chosen * chosen).sum(1)).cpu().numpy()
