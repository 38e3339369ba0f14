"""Learning from rewards of fresh samples: one loop for all methods of policy gradient."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW
from tqdm.auto import tqdm

from alignkit.errors import AlignkitError
from alignkit.optimize.advantages import whitened
from alignkit.optimize.experience import CREDITS, Critic, Experience, at_last_token, joined, some_rows, token_rewards
from alignkit.optimize.losses import KL_ESTIMATORS, RATIOS, log_ratio, policy_loss
from alignkit.policy import Batch, Policy, check_same_vocabulary
from alignkit.rewards.base import Reward, as_reward
from alignkit.training import Checkpoint, digest

UNITS = ("completion", "batch", "limit", "one")


@dataclass(frozen=True)
class Method:
    """What tells one policy gradient from another.

    `advantages(experience, beta)` gives (N, T); its beta is 0 where the KL is charged in the loss. `kl`: "reward" (k1,
    part of what is earned) or "loss" (`estimator`, part of what is minimized). `ratio`: what has one importance ratio,
    "token", "sequence" or "completion" (`losses.log_ratio`). `unit`: what a completion's sum over tokens is divided by:
    its length ("completion"), the batch's mean length ("batch"), max_new_tokens ("limit") or 1 ("one"). `critic`: learn
    values; `whiten`: normalize advantages over the batch; `greedy`: score a greedy completion of each prompt, too;
    `filter`: leave out groups of equal rewards.
    """

    name: str
    advantages: Callable[[Experience, float], Tensor]
    kl: str = "reward"
    estimator: str = "k3"
    ratio: str = "token"
    unit: str = "completion"
    clip: float = 0.2
    clip_high: float | None = None
    critic: bool = False
    whiten: bool = False
    greedy: bool = False
    filter: bool = False

    def __post_init__(self):
        allowed = {"kl": ("reward", "loss"), "estimator": KL_ESTIMATORS, "ratio": RATIOS, "unit": UNITS}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise AlignkitError(
                    f"{self.name}: {name} must be one of {', '.join(values)}, not {getattr(self, name)!r}"
                )
        if not 0 < self.clip or (self.clip_high is not None and not 0 < self.clip_high):
            raise AlignkitError(f"{self.name}: clip and clip_high must be above 0, not {self.clip}, {self.clip_high}")


@dataclass(frozen=True)
class AdaptiveKL:
    """A weight of the KL that follows a target (nats): beta *= 1 + gain * clip(kl / target - 1, -bound, bound).

    (Ziegler et al. 1909.08593, section 2.2, with gain 0.1 and bound 0.2; short runs need a larger gain.)
    """

    target: float
    start: float = 0.2
    gain: float = 0.1
    bound: float = 0.2

    def __post_init__(self):
        if not (self.target > 0 and self.start > 0):
            raise AlignkitError(f"AdaptiveKL: target and start must be above 0, not {self.target} and {self.start}")

    def next(self, beta: float, kl: float) -> float:
        """The weight for the next step, after a step at this KL."""
        return beta * (1 + self.gain * min(max(kl / self.target - 1, -self.bound), self.bound))


def policy_gradient(
    policy: Policy,
    prompts: list,
    reward: Reward | Callable,
    method: Method,
    beta: float | AdaptiveKL = 0.2,
    steps: int = 40,
    prompts_per_step: int = 8,
    group_size: int = 16,
    epochs: int = 1,
    minibatches: int = 1,
    learning_rate: float = 5e-4,
    max_new_tokens: int = 48,
    max_kl: float | None = None,
    entropy: float = 0.0,
    draws: int = 1,
    critic_rate: float = 2e-3,
    credit: str = "finest",
    reference: Policy | None = None,
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    **changes,
) -> Policy:
    """Sample a batch, score it, update on it; returns a new policy.

    Each step samples `group_size` completions for each of `prompts_per_step` prompts, then makes `epochs` passes over
    them in `minibatches` parts (clipping acts only from the second update on the same samples on). beta weighs the KL
    to `reference` (default: `policy` itself). `max_kl` (nats) ends the treatment early, before the update of the first
    batch whose KL exceeds it. `entropy` weighs a bonus for the policy's entropy (nats a token). `draws`: how often to
    sample at most until enough groups remain, for methods that leave some out. `credit` "finest" uses rewards of
    tokens, steps or segments where the reward gives them, "response" its scores only. `changes`: fields of `Method` to
    change, such as clip=0.1 or kl="loss".

    `checkpoint`: a file in which the run's state is kept, so that the same call goes on after an interruption with the
    same result. The history has one row a step: reward, k1 estimate of the sequence KL, tokens, an estimate of the
    entropy (nats a token), clip fraction, share of zero-variance groups, beta; the critic's error if there is one.
    """
    method = replace(method, **changes)
    adaptive = beta if isinstance(beta, AdaptiveKL) else None
    _check(method, prompts, steps, prompts_per_step, group_size, epochs, minibatches, draws, credit, beta)
    reward = as_reward(reward)
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated = policy.copy(f"{policy.name} + {method.name}")
    run = _Run(treated, reference, reward, method, beta=adaptive.start if adaptive else beta, credit=credit,
               group_size=group_size, max_new_tokens=max_new_tokens, draws=draws, entropy=entropy, seed=seed,
               per_step=prompts_per_step, learning_rate=learning_rate, critic_rate=critic_rate)  # fmt: skip
    run.set_order(prompts, steps)
    kept = None
    if checkpoint is not None:
        told = dict(prompts=prompts, method=method.name, changes=changes, beta=beta, steps=steps, group_size=group_size,
                    prompts_per_step=prompts_per_step, epochs=epochs, minibatches=minibatches, seed=seed, draws=draws,
                    learning_rate=learning_rate, max_new_tokens=max_new_tokens, max_kl=max_kl, entropy=entropy,
                    critic_rate=critic_rate, credit=credit)  # fmt: skip
        models = {"policy": policy.model.parameters(), "reference": reference.model.parameters()}
        kept = Checkpoint(checkpoint, {**told, **{name: digest(*weights) for name, weights in models.items()}})
        run.restore(kept.load())
    with tqdm(total=steps, initial=run.step, desc=treated.name, disable=not progress, leave=False) as bar:
        while run.step < steps and not run.stopped:
            start = time.perf_counter()
            run.one(1 - run.step / steps, epochs, minibatches, max_kl)
            if adaptive and run.rows:
                run.beta = adaptive.next(run.beta, run.rows[-1]["kl"])
            run.spent["seconds"] += time.perf_counter() - start
            bar.update()
            if kept:
                kept.save(run.step, last=run.stopped or run.step == steps, **run.state())
    treated.model.eval()
    treated.history, treated.spent = pd.DataFrame(run.rows), run.spent
    return treated


def _check(
    method: Method, prompts: list, steps: int, prompts_per_step: int, group_size: int, epochs: int, minibatches: int,
    draws: int, credit: str, beta: float | AdaptiveKL,
) -> None:  # fmt: skip
    name = method.name
    if credit not in CREDITS:
        raise AlignkitError(f"{name}: credit must be one of {', '.join(CREDITS)}, not {credit!r}")
    if not prompts or min(steps, prompts_per_step, group_size, epochs, minibatches, draws) < 1:
        raise AlignkitError(
            f"{name}: prompts must not be empty, and steps, prompts_per_step, group_size, epochs, minibatches and "
            "draws must be at least 1"
        )
    if not isinstance(beta, AdaptiveKL) and not 0 <= beta < float("inf"):
        raise AlignkitError(f"{name}: beta must be 0 or more, not {beta}")
    if method.filter and group_size < 2:
        raise AlignkitError(f"{name} compares the completions of a group: group_size must be at least 2")


class _Run:
    """The state of one call of `policy_gradient`, and its steps."""

    def __init__(
        self, policy: Policy, reference: Policy, reward: Reward, method: Method, *, beta: float, credit: str,
        group_size: int, per_step: int, max_new_tokens: int, draws: int, entropy: float, seed: int,
        learning_rate: float, critic_rate: float,
    ):  # fmt: skip
        self.policy, self.reference, self.reward, self.method = policy, reference, reward, method
        self.beta, self.credit, self.group_size, self.per_step = beta, credit, group_size, per_step
        self.max_new_tokens, self.draws, self.entropy_weight = max_new_tokens, draws, entropy
        self.rates = [learning_rate, critic_rate]
        self.generator = torch.Generator().manual_seed(seed)
        self.critic = Critic(policy) if method.critic else None
        learned = [p for p in policy.model.parameters() if p.requires_grad]
        self.optimizers = [AdamW(learned, lr=learning_rate, weight_decay=0.0)]
        if self.critic:
            self.optimizers.append(AdamW(self.critic.parameters(), lr=critic_rate, weight_decay=0.0))
        self.step, self.next_prompt, self.stopped = 0, 0, False
        self.rows: list[dict] = []
        self.spent = dict.fromkeys(("completions_sampled", "forward_rows", "backward_rows", "updates", "seconds"), 0)

    def set_order(self, prompts: list, steps: int) -> None:
        """Shuffled passes over the prompts, as many as the run can ask for."""
        passes = -(-steps * self.per_step * self.draws // len(prompts))
        order = torch.cat([torch.randperm(len(prompts), generator=self.generator) for _ in range(passes)])
        self.order, self.prompts = order.tolist(), prompts

    # -- interruption --------------------------------------------------------------------------------------------

    def state(self) -> dict:
        modules = [self.policy.model, *([self.critic] if self.critic else [])]
        return {
            "weights": [module.state_dict() for module in modules],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "loop": [self.next_prompt, self.stopped, self.beta, self.rows, self.spent],
        }

    def restore(self, state: dict | None) -> None:
        if state is None:
            return
        modules = [self.policy.model, *([self.critic] if self.critic else [])]
        for part, weights in zip(modules, state["weights"], strict=True):
            part.load_state_dict(weights)
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.generator.set_state(state["generator"])
        self.step = state["step"]
        self.next_prompt, self.stopped, self.beta, self.rows, self.spent = state["loop"]

    # -- one step ------------------------------------------------------------------------------------------------

    def one(self, decay: float, epochs: int, minibatches: int, max_kl: float | None) -> None:
        """Sample, score, and update with the learning rates times `decay`."""
        rollout, scores, judgements, noted = self._sample()
        updates = epochs * minibatches
        if not len(rollout.batch):  # nothing left to learn from
            self._note(noted, {"kl": self.rows[-1]["kl"] if self.rows else 0.0})
            return
        with torch.set_grad_enabled(updates == 1):  # a single update needs no second look at its samples
            logp, entropy = self._logprobs(rollout.batch)
        with torch.no_grad():
            ref = self.reference.token_logprobs(rollout.batch)
        old = logp.detach()
        self._check_finite(old, ref, rollout)
        self.spent["forward_rows"] += 2 * len(old)
        moved = (old - ref).sum(1).mean().item()
        if max_kl is not None and moved > max_kl:
            self.stopped = True
            return
        experience = self._experience(rollout, scores, judgements, old, ref)
        in_reward = self.beta if self.method.kl == "reward" else 0.0
        advantage = self.method.advantages(experience, in_reward)
        returns = advantage + experience.values if self.critic else None
        if self.method.whiten:
            advantage = whitened(advantage, experience.mask)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=False):  # no second one without a critic
            for group in optimizer.param_groups:
                group["lr"] = rate * decay
        clipped, errors = [], []
        for _ in range(epochs):
            for index in torch.randperm(len(old), generator=self.generator).chunk(minibatches):
                ready = (logp, entropy) if updates == 1 else None
                clipped.append(self._update(experience, advantage, index, ready))
                if self.critic:
                    errors.append(self._update_critic(rollout.batch, returns, index))
        tokens = experience.mask.sum()
        self._note(noted, {
            "kl": moved,
            "entropy": (-old.sum() / tokens).item(),
            "clip_fraction": sum(clipped) / len(clipped),
            **({"critic_error": sum(errors) / len(errors)} if errors else {}),
        })  # fmt: skip

    def _note(self, noted: dict, more: dict) -> None:
        self.rows.append({"step": self.step, **noted, **more, "beta": self.beta})
        self.step += 1

    def _sample(self):
        """Completions with their scores; of a method that filters, only groups whose rewards differ."""
        kept, rewards, zero, tokens, groups = [], [], 0, 0.0, 0
        for _ in range(self.draws):
            asked = [self.prompts[i] for i in self.order[self.next_prompt : self.next_prompt + self.per_step]]
            self.next_prompt += len(asked)
            seed = int(torch.randint(2**31, (1,), generator=self.generator))
            rollout = self.policy.rollout(asked, self.group_size, seed=seed, max_new_tokens=self.max_new_tokens)
            judgement = self.reward(rollout.prompts, rollout.completions)
            self.reward.update(judgement)
            scores = torch.from_numpy(judgement.all_scores(self.method.name)).float()
            by_group = scores.view(-1, self.group_size)
            differ = by_group.amax(1) > by_group.amin(1)
            self.spent["completions_sampled"] += len(scores)
            zero, groups, tokens = zero + (~differ).sum().item(), groups + len(asked), tokens + rollout.batch.mask.sum()
            rewards.append(scores)
            dense = token_rewards(judgement, self.policy, rollout) if self.credit == "finest" else None
            index = torch.arange(len(scores))
            if self.method.filter:
                room = self.per_step - sum(len(k[1]) for k in kept) // self.group_size
                index = index.view(-1, self.group_size)[differ][:room].flatten()
            width = int(rollout.batch.mask[index].sum(1).max()) if len(index) else 0
            kept.append((some_rows(rollout, index), scores[index], None if dense is None else dense[index][:, :width]))
            if sum(len(k[1]) for k in kept) >= self.per_step * self.group_size:
                break
        rewards = torch.cat(rewards)
        noted = {
            "reward": rewards.mean().item(),
            "tokens": (tokens / len(rewards)).item(),
            "zero_variance": zero / groups,
        }
        parts = [k for k in kept if len(k[1])] or kept[:1]
        rollout = parts[0][0] if len(parts) == 1 else joined([k[0] for k in parts])
        fine = None
        if parts[0][2] is not None:
            width = rollout.batch.mask.shape[1]
            fine = torch.cat([F.pad(k[2], (0, width - k[2].shape[1]), value=torch.nan) for k in parts])
        return rollout, torch.cat([k[1] for k in parts]).to(self.policy.device), fine, noted

    def _experience(self, rollout, scores: Tensor, fine: Tensor | None, old: Tensor, ref: Tensor) -> Experience:
        rewards = at_last_token(scores, rollout.batch.mask) if fine is None else fine
        greedy = values = None
        if self.method.greedy:
            asked = rollout.prompts[:: self.group_size]
            best = self.policy.rollout(asked, 1, temperature=0.0, max_new_tokens=self.max_new_tokens)
            self.spent["completions_sampled"] += len(asked)
            greedy = torch.from_numpy(self.reward(best.prompts, best.completions).scores).float().to(scores.device)
        if self.critic:
            with torch.no_grad():
                values = self.critic(rollout.batch)
            self.spent["forward_rows"] += len(old)
        return Experience(rollout, scores, rewards, fine is not None, old, ref, self.group_size, greedy, values)

    def _logprobs(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """log pi of each token, and the entropy at each token if it is asked for."""
        if not self.entropy_weight:
            return self.policy.token_logprobs(batch), None
        every = torch.log_softmax(self.policy.logits(batch).float(), -1)
        logp = every.gather(2, batch.completion[..., None]).squeeze(-1) * batch.mask
        return logp, -(every.exp() * every).sum(-1) * batch.mask

    def _check_finite(self, old: Tensor, ref: Tensor, rollout) -> None:
        for who, values in (("policy", old), ("reference", ref)):
            bad = (~values.isfinite()).any(1).nonzero().flatten().tolist()
            if bad:
                raise AlignkitError(
                    f"{self.method.name}, step {self.step}: the {who} gives completion {bad[0]} "
                    f"({rollout.completions[bad[0]][:60]!r}) a log-probability that is not finite; lower "
                    "learning_rate, or check the model's weights"
                )

    # -- one update ----------------------------------------------------------------------------------------------

    def _update(self, e: Experience, advantage: Tensor, index: Tensor, ready: tuple | None) -> float:
        """One optimizer step on some rows; returns the share of their tokens on which the clip acts."""
        m = self.method
        if ready is not None:
            rows, width, index = e.rollout.batch, e.mask.shape[1], torch.arange(len(e.mask))
            logp, entropy = ready
        else:
            rows = e.rollout.batch.rows(index)
            width = rows.mask.shape[1]
            logp, entropy = self._logprobs(rows)
            self.spent["forward_rows"] += len(index)
        old, ref, advantage = e.old[index, :width], e.ref[index, :width], advantage[index, :width]
        by_token = e.dense and m.ratio == "completion"  # each token is an action of its own, then
        unit, ratio = ("one", "token") if by_token else (m.unit, m.ratio)
        beta = self.beta if m.kl == "loss" else 0.0
        per_completion = policy_loss(logp, old, ref, rows.mask, advantage, self._unit(unit, e, rows), ratio, m.clip,
                                     m.clip_high, beta, m.estimator)  # fmt: skip
        loss = per_completion.mean()
        if self.entropy_weight:
            loss = loss - self.entropy_weight * entropy.sum() / rows.mask.sum()
        self._step(0, loss, self.policy.model.parameters())
        self.spent["backward_rows"] += len(index)
        self.spent["updates"] += 1
        return _clip_fraction(logp.detach(), old, rows.mask, advantage, m, ratio)

    def _unit(self, unit: str, e: Experience, rows: Batch) -> Tensor | float:
        if unit == "completion":
            return rows.mask.sum(1).clamp(min=1)
        return {"batch": e.mask.sum() / len(e.mask), "limit": self.max_new_tokens, "one": 1.0}[unit]

    def _update_critic(self, batch: Batch, returns: Tensor, index: Tensor) -> float:
        rows = batch.rows(index)
        miss = (self.critic(rows) - returns[index, : rows.mask.shape[1]]) * rows.mask
        error = miss.pow(2).sum() / rows.mask.sum()
        self._step(1, error, self.critic.parameters())
        self.spent["forward_rows"] += len(index)
        self.spent["backward_rows"] += len(index)
        return error.item()

    def _step(self, which: int, loss: Tensor, parameters) -> None:
        if not torch.isfinite(loss):
            raise AlignkitError(
                f"{self.method.name}, step {self.step}: the loss is {loss.item()}; lower learning_rate, or check the "
                "rewards' size. The policy before this update is unharmed"
            )
        self.optimizers[which].zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizers[which].step()


def _clip_fraction(logp: Tensor, old: Tensor, mask: Tensor, advantage: Tensor, m: Method, ratio: str) -> float:
    """Share of tokens whose gradient the clip takes away: the ratio has left the range in the advantage's direction."""
    rho = log_ratio(logp, old, mask, ratio).exp()
    high = m.clip if m.clip_high is None else m.clip_high
    acts = ((rho > 1 + high) & (advantage > 0)) | ((rho < 1 - m.clip) & (advantage < 0))
    return ((acts * mask).sum() / mask.sum().clamp(min=1)).item()
