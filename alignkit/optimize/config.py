"""The settings of a policy gradient: what tells one method from another, and how much is sampled and updated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from torch import Tensor

from alignkit.errors import AlignkitError, check_at_least, check_choice, check_positive
from alignkit.optimize.experience import Experience
from alignkit.optimize.losses import KL_ESTIMATORS, RATIOS

CHOICES = {"kl": ("reward", "loss"), "estimator": KL_ESTIMATORS, "ratio": RATIOS,
           "loss_type": ("completion", "batch", "limit", "one"), "credit": ("finest", "response")}  # fmt: skip
COUNTS = ("steps", "prompts_per_step", "group_size", "epochs", "minibatches", "draws", "max_new_tokens")


@dataclass(frozen=True)
class AdaptiveKL:
    """A weight of the KL that follows a target (nats): beta *= 1 + gain * clip(kl / target - 1, -0.2, 0.2).

    (Ziegler et al. 1909.08593, section 2.2, with gain 0.1; short runs need a larger one.)
    """

    target: float
    start: float = 0.2
    gain: float = 0.1

    def __post_init__(self):
        check_positive("AdaptiveKL", target=self.target, start=self.start)

    def next(self, beta: float, kl: float) -> float:
        """The weight for the next step, after a step at this KL."""
        return beta * (1 + self.gain * min(max(kl / self.target - 1, -0.2), 0.2))


@dataclass(frozen=True)
class Method:
    """What tells one policy gradient from another, and how much is sampled and updated.

    `advantages(experience, beta)` gives (N, T); its beta is 0 where the KL is charged in the loss. `kl`: "reward" (k1,
    part of what is earned) or "loss" (`estimator`, part of what is minimized). `ratio`: what has one importance ratio,
    "token", "sequence" or "completion" (`losses.log_ratio`). `loss_type`: what a completion's sum over tokens is
    divided by: its length ("completion"), the batch's mean length ("batch"), max_new_tokens ("limit") or 1 ("one"); TRL
    calls the first three "grpo", "bnpo" and "dr_grpo". `critic`: learn values; `whiten`: normalize advantages over the
    batch; `greedy`: score a greedy completion of each prompt, too; `filter`: leave out groups of equal rewards.

    Each step samples `group_size` completions of at most `max_new_tokens` tokens for each of `prompts_per_step`
    prompts, then makes `epochs` passes over them in `minibatches` parts (clipping acts only from the second update on
    the same samples on). `beta` weighs the KL to the reference. `max_kl` (nats) ends the treatment early, before the
    update of the first batch whose KL exceeds it. `entropy` weighs a bonus for the policy's entropy (nats a token).
    `draws`: how often to sample at most until enough groups remain, for methods that leave some out. `credit` "finest"
    uses rewards of tokens, steps or segments where the reward gives them, "response" its scores only. `learning_rate`:
    by default what suits the size of what is trained (`training.default_rate`), decaying linearly to 0; `critic_rate`:
    the critic's.
    """

    name: str
    advantages: Callable[[Experience, float], Tensor]
    kl: str = "reward"
    estimator: str = "k3"
    ratio: str = "token"
    loss_type: str = "completion"
    clip: float = 0.2
    clip_high: float | None = None
    critic: bool = False
    whiten: bool = False
    greedy: bool = False
    filter: bool = False
    beta: float | AdaptiveKL = 0.2
    steps: int = 40
    prompts_per_step: int = 8
    group_size: int = 16
    epochs: int = 1
    minibatches: int = 1
    learning_rate: float | None = None
    max_new_tokens: int = 48
    max_kl: float | None = None
    entropy: float = 0.0
    draws: int = 1
    critic_rate: float = 2e-3
    credit: str = "finest"
    seed: int = 0

    def __post_init__(self):
        for name, values in CHOICES.items():
            check_choice(self.name, name, getattr(self, name), values)
        check_positive(self.name, clip=self.clip, clip_high=self.clip if self.clip_high is None else self.clip_high,
                       critic_rate=self.critic_rate, learning_rate=self.learning_rate or 1.0)  # fmt: skip
        check_at_least(self.name, 1, **{name: getattr(self, name) for name in COUNTS})
        check_at_least(self.name, 0, beta=0.0 if isinstance(self.beta, AdaptiveKL) else self.beta)
        if self.filter and self.group_size < 2:
            raise AlignkitError(f"{self.name} compares the completions of a group: group_size must be at least 2")

    def but(self, **options) -> Method:
        """The same with these fields changed."""
        known = {f.name for f in fields(self)} - {"name", "advantages"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise AlignkitError(f"{self.name}: no option {unknown[0]!r}; there are {', '.join(sorted(known))}")
        return replace(self, **options)
