"""All losses of policies, and KL estimators, as pure functions of log-probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.errors import AlignkitError, check_choice, check_positive

KL_ESTIMATORS = {"k1": lambda d: d, "k2": lambda d: 0.5 * d**2, "k3": lambda d: torch.expm1(-d) + d}
RATIOS = ("token", "sequence", "completion")


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: str = "k3") -> Tensor:
    """Estimates of KL(pi || ref) from samples of pi, elementwise on log-probabilities (Schulman 2020; 2510.01555).

    With d = log pi - log ref: k1 = d is unbiased; k2 = d^2 / 2 is biased and low in variance; k3 = exp(-d) - 1 + d is
    unbiased and never negative.
    """
    check_choice("kl_estimate", "kind", kind, KL_ESTIMATORS)
    return KL_ESTIMATORS[kind](logp - ref_logp)


def clipped_surrogate(
    logp: Tensor, old: Tensor, advantage: Tensor, clip: float, clip_high: float | None = None
) -> Tensor:
    """min(rho A, clip(rho, 1 - clip, 1 + clip_high) A), rho = pi / pi_old: what PPO maximizes, elementwise (1707.06347,
    eq. 7; a `clip_high` of its own: DAPO 2503.14476, eq. 10)."""
    ratio = torch.exp(logp - old)
    high = clip if clip_high is None else clip_high
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + high) * advantage)


def log_ratio(logp: Tensor, old: Tensor, mask: Tensor, level: str = "token") -> Tensor:
    """log(pi / pi_old) of what counts as one action; (n, T) for "token", else (n, 1).

    "token": each token (PPO, GRPO). "completion": the whole completion, the sum over tokens (RLOO 2402.14740).
    "sequence": that sum divided by the length (GSPO 2507.18071, eq. 7).
    """
    check_choice("log_ratio", "level", level, RATIOS)
    ratio = (logp - old) * mask
    if level == "token":
        return ratio
    whole = ratio.sum(1, keepdim=True)
    return whole if level == "completion" else whole / mask.sum(1, keepdim=True).clamp(min=1)


def policy_loss(
    logp: Tensor, old: Tensor, ref: Tensor, mask: Tensor, advantage: Tensor, divisor: Tensor | float,
    ratio: str = "token", clip: float = 0.2, clip_high: float | None = None, beta: float = 0.0, estimator: str = "k3",
) -> Tensor:  # fmt: skip
    """-sum_t (clipped surrogate - beta * KL estimate) / divisor for each completion, shape (n,).

    All other tensors have shape (n, T). What the methods' names stand for is `divisor`, of the sum over tokens: the
    completion's own length (GRPO 2402.03300, eq. 3), the mean length of the batch (DAPO 2503.14476, eq. 8: every token
    counts the same), a constant (Dr. GRPO 2503.20783), or 1.
    """
    rho = log_ratio(logp, old, mask, ratio)
    gain = clipped_surrogate(rho, torch.zeros_like(rho), advantage, clip, clip_high)
    if beta:
        gain = gain - beta * kl_estimate(logp, ref, estimator)
    return -(gain * mask).sum(1) / divisor


def regression_loss(logp: Tensor, ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The variance of beta log pi/ref - r within groups, (prompts, k) each; one number a prompt (after REBEL, Gao et
    al. 2024).

    Half the mean squared error of beta (difference of log-ratios) against (difference of rewards) over all k^2 ordered
    pairs of a group; over pairs of two different it would be k / (k - 1) times as much. It is 0 exactly where pi is
    pi_ref exp(r / beta) / Z. On fresh samples its gradient is RLOO's, the KL in the reward, times 2 beta (k - 1) / k.
    """
    if logp.ndim != 2 or logp.shape[1] < 2:
        raise AlignkitError(f"regression_loss needs groups of at least 2 completions, got shape {tuple(logp.shape)}")
    return (beta * (logp - ref) - reward).var(1, correction=0)


# --- preferences. Log-probabilities are of whole completions, summed over tokens unless a name says `mean`; shape (N,)
# in and out. The arguments' names are those by which `preference.from_pairs` hands them over.


def margin_of(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """m = log pi / ref (chosen) - log pi / ref (rejected): what DPO and its kin act on."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float, smoothing: float = 0.0
) -> Tensor:
    """-log sigmoid(beta m); direct preference optimization (DPO 2305.18290, eq. 7).

    beta is the strength of the KL penalty of the objective that DPO solves implicitly: smaller moves farther.
    `smoothing` e takes the label to be wrong with probability e: -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m)
    (conservative DPO, Mitchell 2023), which stops at beta m = log((1 - e) / e).
    """
    if not 0 <= smoothing <= 0.5:
        raise AlignkitError(f"dpo: smoothing must be in [0, 0.5], not {smoothing}")
    margin = beta * margin_of(chosen, rejected, ref_chosen, ref_rejected)
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def robust_dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float, flip: float
) -> Tensor:
    """[(1 - e) l(m) - e l(-m)] / (1 - 2e), l = -log sigmoid(beta .): unbiased for the clean loss where a share
    e = `flip` of the labels was flipped (robust DPO 2403.00409)."""
    if not 0 <= flip < 0.5:
        raise AlignkitError(f"robust_dpo: flip must be in [0, 0.5), not {flip}")
    margin = beta * margin_of(chosen, rejected, ref_chosen, ref_rejected)
    return (-(1 - flip) * F.logsigmoid(margin) + flip * F.logsigmoid(-margin)) / (1 - 2 * flip)


def ipo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """(m - 1 / (2 beta))^2: the margin has a goal and stops there (IPO 2310.12036, eq. 17; beta is its tau). On sums,
    as in that equation; the paper's results, and TRL, divide each side by its length first: hand in means for that."""
    return (margin_of(chosen, rejected, ref_chosen, ref_rejected) - 1 / (2 * beta)) ** 2


def hinge_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta m): the hinge of RSO (2309.06657), SLiC's on the odds against the reference's."""
    return F.relu(1 - beta * margin_of(chosen, rejected, ref_chosen, ref_rejected))


def slic_hf_loss(chosen: Tensor, rejected: Tensor, delta: float) -> Tensor:
    """max(0, delta - log pi(chosen) + log pi(rejected)); SLiC-HF 2305.10425, TRL's hinge loss in its CPO trainer.

    To be added: `nll_loss`, of the chosen side and a mean over tokens; the paper's is of a target of the supervised
    data, and a sum.
    """
    check_positive("slic_hf", delta=delta)
    return F.relu(1 - (chosen - rejected) / delta) * delta


def length_regularized_dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float,
    chosen_length: Tensor, rejected_length: Tensor, alpha: float,
) -> Tensor:  # fmt: skip
    """-log sigmoid(beta m + alpha (|chosen| - |rejected|)), lengths in tokens (R-DPO 2403.19159): DPO for the reward
    r - alpha |y|, so that what length explains of a preference is not learned again."""
    margin = beta * margin_of(chosen, rejected, ref_chosen, ref_rejected)
    return -F.logsigmoid(margin + alpha * (chosen_length - rejected_length))


def simpo_loss(chosen_mean: Tensor, rejected_mean: Tensor, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta (mean log pi(chosen) - mean log pi(rejected)) - gamma): mean log-probabilities as rewards, a
    target margin, no reference (SimPO 2405.14734, eq. 6)."""
    return -F.logsigmoid(beta * (chosen_mean - rejected_mean) - gamma)


def cpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (log pi(chosen) - log pi(rejected))): DPO with a uniform reference (CPO 2401.08417, eq. 3). To
    be added: `nll_loss`, a mean over tokens as in TRL, and a sum in the paper (of 20 tokens: 20 times its weight)."""
    return -F.logsigmoid(beta * (chosen - rejected))


def orpo_loss(chosen_mean: Tensor, rejected_mean: Tensor, weight: float = 1.0) -> Tensor:
    """-weight log sigmoid(log odds(chosen) - log odds(rejected)), odds = p / (1 - p) of the geometric mean token
    probability p = exp(mean log pi); no reference (ORPO 2403.07691, eqs. 4, 6 and 7).

    To be added: `nll_loss`, over the completion's tokens as in the paper; TRL's covers the prompt's as well.
    """
    check_positive("orpo", weight=weight)
    log_odds = (chosen_mean - rejected_mean) - (_log1mexp(chosen_mean) - _log1mexp(rejected_mean))
    return -weight * F.logsigmoid(log_odds)


def nll_loss(chosen: Tensor, length: Tensor) -> Tensor:
    """Minus the log-probability, whose mean over rows is the mean over all tokens: the supervised part of a loss.
    `length`: tokens of each completion of the whole minibatch."""
    return -chosen / length.float().mean()


def apo_zero_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta r_chosen) + sigmoid(beta r_rejected), r = log pi / ref: chosen up *and* rejected down, each from
    where the reference put it (APO-zero 2408.06266, eq. 7)."""
    return 1 - torch.sigmoid(beta * (chosen - ref_chosen)) + torch.sigmoid(beta * (rejected - ref_rejected))


def apo_down_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """sigmoid(beta r_chosen) + 1 - sigmoid(beta m): both down, the rejected one more (APO-down 2408.06266, eq. 8)."""
    up = chosen - ref_chosen
    return torch.sigmoid(beta * up) + 1 - torch.sigmoid(beta * (up - (rejected - ref_rejected)))


def modpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float, weight: float, gap: Tensor
) -> Tensor:
    """-log sigmoid((beta m - gap) / w), m the margin (MODPO 2310.03708).

    w: `weight` of the objective that the labels speak about; `gap`: sum over the other objectives of weight times
    (reward of the chosen side - reward of the rejected side). Its optimum has beta log pi / ref = w r + others, up to
    a constant a prompt. At w = 1 and gap 0 this is DPO.
    """
    check_positive("modpo_loss", weight=weight)
    return -F.logsigmoid((beta * margin_of(chosen, rejected, ref_chosen, ref_rejected) - gap) / weight)


def conditional_loss(chosen: Tensor, ref: Tensor, corrupted: Tensor, ref_corrupted: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (log pi/ref (y_w | m) - log pi/ref (y_w | m'))): the chosen answer should be preferred
    *because* of the picture m, and not beside a corrupted m' (2406.11839, L_CoPO)."""
    return dpo_loss(chosen, corrupted, ref, ref_corrupted, beta)


def anchor_loss(chosen: Tensor, ref: Tensor, beta: float, delta: float = 0.0) -> Tensor:
    """-log sigmoid(beta log pi/ref (y_w | m) - delta): the chosen answer's reward should exceed delta (2406.11839,
    L_AncPO)."""
    return -F.logsigmoid(beta * (chosen - ref) - delta)


def mdpo_loss(
    chosen: Tensor, rejected: Tensor, corrupted: Tensor, ref_chosen: Tensor, ref_rejected: Tensor,
    ref_corrupted: Tensor, beta: float, delta: float = 0.0, conditional: float = 1.0, anchor: float = 1.0,
) -> Tensor:  # fmt: skip
    """DPO on the pair + `conditional` * L_CoPO + `anchor` * L_AncPO (2406.11839); `corrupted` is the chosen answer
    beside a corrupted picture. In the paper both weights are 1; with both 0 this is DPO."""
    return (
        dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)
        + conditional * conditional_loss(chosen, ref_chosen, corrupted, ref_corrupted, beta)
        + anchor * anchor_loss(chosen, ref_chosen, beta, delta)
    )


def sppo_loss(log_ratio: Tensor, win_rate: Tensor, eta: float) -> Tensor:
    """(log pi / pi_t - eta (win rate - 1/2))^2 for a completion that beats the policy's others at `win_rate` (SPPO
    2405.00675, eq. 4.7; the paper's log Z is taken to be eta / 2, its value for even odds). TRL's `sppo_hard` is the
    sum over both sides of a pair, with beta = 1 / eta and win rates of 1 for the chosen and 0 for the rejected."""
    return (log_ratio - eta * (win_rate - 0.5)) ** 2


def kto_loss(log_ratio: Tensor, desirable: Tensor, kl: Tensor | float, beta: float, weights=(1.0, 1.0)) -> Tensor:
    """w_d (1 - sigmoid(beta (r - z))) for desirable completions, w_u (1 - sigmoid(beta (z - r))) for the others;
    r = log pi / ref, z = `kl` >= 0, the policy's KL without gradient; `weights`: (w_d, w_u) (KTO 2402.01306)."""
    sign = torch.where(desirable, 1.0, -1.0).to(log_ratio.dtype)
    weight = torch.where(desirable, float(weights[0]), float(weights[1])).to(log_ratio.dtype)
    return weight * (1 - torch.sigmoid(beta * sign * (log_ratio - kl)))


def rrhf_loss(means: Tensor) -> Tensor:
    """sum over i better than j of max(0, p_j - p_i), p the mean token log-probability (RRHF 2304.05302); (N, K)
    `means`, best first. To be added: `nll_loss` of the best, a sum over tokens in the paper and a mean here."""
    gaps = means[:, None, :] - means[:, :, None]  # [n, i, j] = p_j - p_i
    return F.relu(gaps).triu(1).sum((1, 2))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without losing digits near 0."""
    x = x.clamp(max=-1e-7)
    return torch.where(x > -0.693, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
