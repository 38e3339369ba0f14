"""Preference losses as pure functions of the log-probabilities of whole completions, shape (N,) in and out.

`chosen`, `rejected`, `ref_chosen`, `ref_rejected` are *summed* over tokens unless a name says `mean`. With
m = (chosen - ref_chosen) - (rejected - ref_rejected), the margin, most are a function of beta * m.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.errors import AlignkitError


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float, smoothing: float = 0.0
) -> Tensor:
    """-log sigmoid(beta m); DPO 2305.18290, eq. 7.

    `smoothing` e takes the label to be wrong with probability e: -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m)
    (conservative DPO, Mitchell 2023), which stops at beta m = log((1 - e) / e).
    """
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    if not smoothing:
        return -F.logsigmoid(margin)
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def robust_dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float, flip: float
) -> Tensor:
    """[(1 - e) l(m) - e l(-m)] / (1 - 2e), l = -log sigmoid(beta .): unbiased for the clean loss when labels are
    flipped with probability e (robust DPO 2403.00409)."""
    if not 0 <= flip < 0.5:
        raise AlignkitError(f"robust_dpo_loss: flip must be in [0, 0.5), not {flip}")
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return (-(1 - flip) * F.logsigmoid(margin) + flip * F.logsigmoid(-margin)) / (1 - 2 * flip)


def ipo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """(m - 1 / (2 beta))^2: the margin has a goal and stops there (IPO 2310.12036, eq. 17; beta is its tau).

    On sums, as in the paper. TRL divides both sides by their lengths first: hand in means to get that.
    """
    return ((chosen - ref_chosen) - (rejected - ref_rejected) - 1 / (2 * beta)) ** 2


def hinge_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta m): SLiC's calibration on the policy's odds against the reference's (RSO 2309.06657).

    SLiC-HF itself (2305.10425) has no reference: hand in zeros for it.
    """
    return F.relu(1 - beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def length_regularized_dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float,
    chosen_length: Tensor, rejected_length: Tensor, alpha: float,
) -> Tensor:  # fmt: skip
    """-log sigmoid(beta m + alpha (|chosen| - |rejected|)), lengths in tokens (R-DPO 2403.19159).

    DPO for the objective with the reward r - alpha |y|: its optimum has r = beta log pi / ref + alpha |y| + constant,
    so what length explains of a preference is not learned again.
    """
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return -F.logsigmoid(margin + alpha * (chosen_length - rejected_length))


def simpo_loss(chosen_mean: Tensor, rejected_mean: Tensor, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta (mean log pi(chosen) - mean log pi(rejected)) - gamma); SimPO 2405.14734, eq. 6."""
    return -F.logsigmoid(beta * (chosen_mean - rejected_mean) - gamma)


def cpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (log pi(chosen) - log pi(rejected))); CPO 2401.08417, eq. 3; add `nll_loss` as there."""
    return -F.logsigmoid(beta * (chosen - rejected))


def orpo_loss(chosen_mean: Tensor, rejected_mean: Tensor) -> Tensor:
    """-log sigmoid(log odds(chosen) - log odds(rejected)) with odds = p / (1 - p) of the geometric mean token
    probability p = exp(mean log pi); ORPO 2403.07691, eqs. 4 and 7. Its likelihood term is `nll_loss`."""
    log_odds = (chosen_mean - rejected_mean) - (_log1mexp(chosen_mean) - _log1mexp(rejected_mean))
    return -F.logsigmoid(log_odds)


def nll_loss(chosen: Tensor, length: Tensor) -> Tensor:
    """The supervised part of CPO and ORPO: minus the log-probability, whose mean over rows is the mean over all tokens.

    `length`: tokens of each completion.
    """
    return -chosen / length.float().mean()


def apo_zero_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta r_chosen) + sigmoid(beta r_rejected), r = log pi / ref: chosen up *and* rejected down, each from
    where the reference put it (APO-zero 2408.06266, eq. 7)."""
    return 1 - torch.sigmoid(beta * (chosen - ref_chosen)) + torch.sigmoid(beta * (rejected - ref_rejected))


def apo_down_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """sigmoid(beta r_chosen) + 1 - sigmoid(beta m): both down, the rejected one more (APO-down 2408.06266, eq. 8)."""
    up = chosen - ref_chosen
    return torch.sigmoid(beta * up) + 1 - torch.sigmoid(beta * (up - (rejected - ref_rejected)))


def sppo_loss(log_ratio: Tensor, win_rate: Tensor, eta: float) -> Tensor:
    """(log pi / pi_t - eta (win rate - 1/2))^2 for a completion that beats the policy's others at `win_rate`.

    (SPPO 2405.00675, eq. 4.7; TRL's `sppo_hard` is its sum over both sides of a pair, with beta = 1 / eta and win rates
    of 1 for the chosen and 0 for the rejected one.)
    """
    return (log_ratio - eta * (win_rate - 0.5)) ** 2


def kto_loss(log_ratio: Tensor, desirable: Tensor, kl: Tensor | float, beta: float, weights=(1.0, 1.0)) -> Tensor:
    """w_d (1 - sigmoid(beta (r - z))) for desirable completions, w_u (1 - sigmoid(beta (z - r))) for the others.

    r = log pi / ref, z = `kl` >= 0, the policy's KL as a reference point without gradient, `weights` = (w_d, w_u);
    KTO 2402.01306.
    """
    sign = torch.where(desirable, 1.0, -1.0).to(log_ratio.dtype)
    weight = torch.where(desirable, float(weights[0]), float(weights[1])).to(log_ratio.dtype)
    return weight * (1 - torch.sigmoid(beta * sign * (log_ratio - kl)))


def rrhf_loss(means: Tensor) -> Tensor:
    """sum over i better than j of max(0, p_j - p_i), p the mean token log-probability (RRHF 2304.05302).

    `means`: shape (N, K), best first. Its likelihood term is `nll_loss` of the best.
    """
    gaps = means[:, None, :] - means[:, :, None]  # [n, i, j] = p_j - p_i
    return F.relu(gaps).triu(1).sum((1, 2))


def pro_loss(means: Tensor, beta: float = 1.0) -> Tensor:
    """-sum_k log [exp(beta p_k) / sum_{j >= k} exp(beta p_j)]: Plackett-Luce with the mean token log-probability as the
    reward (PRO 2306.17492). `means`: shape (N, K), best first. Its likelihood term is `nll_loss` of the best."""
    scores = beta * means
    rest = scores.flip(1).logcumsumexp(1).flip(1)
    return -(scores - rest)[:, :-1].sum(1)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without losing digits near 0."""
    x = x.clamp(max=-1e-7)
    return torch.where(x > -0.693, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
