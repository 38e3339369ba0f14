"""Learning from rewards of fresh samples: one loop for all methods of policy gradient."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor
from torch.optim import AdamW
from tqdm.auto import tqdm

from alignkit.errors import AlignkitError
from alignkit.optimize.advantages import whitened
from alignkit.optimize.config import AdaptiveKL, Config, Method, configured
from alignkit.optimize.experience import (
    Critic,
    Experience,
    Samples,
    all_samples,
    at_last_token,
    judged,
    token_rewards,
)
from alignkit.optimize.losses import log_ratio, policy_loss
from alignkit.policy import Batch, Policy, Rollout, check_same_vocabulary
from alignkit.rewards.base import Reward, as_reward, columns_of, repeated
from alignkit.training import Checkpoint, default_rate, digest


def policy_gradient(
    policy: Policy,
    prompts: list | Dataset,
    reward: Reward | Callable,
    method: Method,
    config: Config | None = None,
    *,
    reference: Policy | None = None,
    progress: bool = True,
    callback: Callable[[int, Policy, dict], bool | None] | None = None,
    checkpoint: str | Path | None = None,
    **options,
) -> Policy:
    """Sample a batch, score it, update on it; returns a new policy.

    `prompts`: a list, or a Dataset with a column `prompt`, whose other columns are handed to the reward by name.
    `reference`: default `policy` itself. `options`: fields of `Config`, and fields of `Method` to change, such as
    clip=0.1 or kl="loss". A completion about which the reward says None is left out of its group.

    `callback(step, treated, row)` gets each row of the history, to evaluate or to log; if it returns True the treatment
    ends. `checkpoint`: a file in which the run's state is kept, so that the same call goes on after an interruption
    with the same result. The history has one row a step: reward, k1 estimate of the sequence KL, tokens, an estimate of
    the entropy (nats a token), clip fraction, share of zero-variance groups, beta; the critic's error if there is one.

    The treatment ends with a warning where the policy has lost its language: its samples are less likely under the
    reference than random tokens, and by half as much less likely than at first. AlignkitError if a likelihood is not
    finite.
    """
    method, config = configured(method, config or Config(), options)
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated = policy.copy(f"{policy.name} + {method.name}")
    run = _Run(treated, reference, as_reward(reward), prompts, method, config)
    kept = None
    if checkpoint is not None:
        same = {**asdict(config), **{f.name: getattr(method, f.name) for f in fields(Method) if f.name != "advantages"},
                "prompts": run.prompts, "columns": run.columns, "policy": digest(*policy.model.parameters()),
                "reference": digest(*reference.model.parameters())}  # fmt: skip
        kept = Checkpoint(checkpoint, same)
        run.restore(kept.load())
    with tqdm(total=config.steps, initial=run.step, desc=treated.name, disable=not progress, leave=False) as bar:
        while run.step < config.steps and not run.stopped:
            start, done = time.perf_counter(), run.step
            run.take_step()
            run.spent["seconds"] += time.perf_counter() - start
            bar.update()
            if callback is not None and run.step > done and callback(done, treated, run.rows[-1]) is True:
                run.stopped = True
            if kept:
                kept.save(run.step, last=run.stopped or run.step == config.steps, **run.state())
    treated.model.eval()
    treated.history, treated.spent = pd.DataFrame(run.rows), run.spent
    return treated


class _Run:
    """The state of one call of `policy_gradient`, and its steps."""

    def __init__(self, policy: Policy, reference: Policy, reward: Reward, prompts: list | Dataset, method: Method,
                 config: Config):  # fmt: skip
        self.policy, self.reference, self.reward, self.method, self.config = policy, reference, reward, method, config
        self.prompts, self.columns = columns_of(prompts)
        if not self.prompts:
            raise AlignkitError(f"{method.name}: prompts must not be empty")
        self.beta = config.beta.start if isinstance(config.beta, AdaptiveKL) else config.beta
        self.generator = torch.Generator().manual_seed(config.seed)
        self.critic = Critic(policy) if method.critic else None
        rate = config.learning_rate or default_rate(policy.model, "policy gradient")
        learned = [p for p in policy.model.parameters() if p.requires_grad]
        self.learners = [(learned, rate, AdamW(learned, lr=rate, weight_decay=0.0))]
        if self.critic:
            learned = list(self.critic.parameters())
            self.learners.append((learned, config.critic_rate, AdamW(learned, lr=config.critic_rate, weight_decay=0.0)))
        passes = -(-config.steps * config.prompts_per_step * config.draws // len(self.prompts))
        every = [torch.randperm(len(self.prompts), generator=self.generator) for _ in range(passes)]
        self.order = torch.cat(every).tolist()  # shuffled passes, as many as the run can ask for
        self.step, self.next_prompt, self.stopped, self.first_nats = 0, 0, False, None
        self.rows: list[dict] = []
        self.spent = dict.fromkeys(("completions_sampled", "forward_rows", "backward_rows", "updates", "seconds"), 0)

    # -- one step ------------------------------------------------------------------------------------------------

    def take_step(self) -> None:
        """Sample, score, and update."""
        config, updates = self.config, self.config.epochs * self.config.minibatches
        samples, noted = self.sample()
        if not len(samples) or not judged(samples.rollout.batch.mask).any():  # nothing to learn from
            self.note({**noted, "kl": self.rows[-1]["kl"] if self.rows else 0.0})
            return
        batch = samples.rollout.batch
        with torch.set_grad_enabled(updates == 1):  # a single update needs no second look at its samples
            logp, entropy = self.logprobs(batch)
        with torch.no_grad():
            ref = self.reference.token_logprobs(batch)
        old = logp.detach()
        self.spent["forward_rows"] += 2 * len(old)
        kl = (old - ref).sum(1)[judged(batch.mask)].mean().item()
        if self.lost(samples.rollout, old, ref) or (config.max_kl is not None and kl > config.max_kl):
            self.stopped = True
            return
        experience = self.experience(samples, old, ref)
        advantage = self.method.advantages(experience, self.beta if self.method.kl == "reward" else 0.0)
        returns = advantage + experience.values if self.critic else None
        if self.method.whiten:
            advantage = whitened(advantage, experience.mask)
        clipped, errors = [], []
        for _ in range(config.epochs):
            for index in torch.randperm(len(old), generator=self.generator).chunk(config.minibatches):
                ready = (logp, entropy) if updates == 1 else None
                clipped.append(self.update(experience, advantage, index, ready))
                if self.critic:
                    errors.append(self.update_critic(batch, returns, index))
        self.note({**noted, "kl": kl, "entropy": (-old.sum() / batch.mask.sum()).item(),
                   "clip_fraction": sum(clipped) / len(clipped),
                   **({"critic_error": sum(errors) / len(errors)} if errors else {})})  # fmt: skip

    def lost(self, rollout: Rollout, old: Tensor, ref: Tensor) -> bool:
        """Whether the policy has lost its language; a warning says so. AlignkitError if a likelihood is not finite."""
        for who, values in (("policy", old), ("reference", ref)):
            bad = (~values.isfinite()).any(1).nonzero().flatten().tolist()
            if bad:
                raise AlignkitError(
                    f"{self.method.name}, step {self.step}: the {who} gives completion {bad[0]} "
                    f"({rollout.completions[bad[0]][:60]!r}) a log-probability that is not finite; lower "
                    "learning_rate, or check the model's weights"
                )
        chance, nats = math.log(self.policy.vocabulary), (-ref.sum() / rollout.batch.mask.sum()).item()
        self.first_nats = nats if self.first_nats is None else self.first_nats
        if nats <= max(chance, self.first_nats + chance / 2):
            return False
        warnings.warn(
            f"{self.policy.name}: treatment ended before step {self.step}, since the policy has lost its language: its "
            f"samples, such as {rollout.completions[0][:60]!r}, are less likely under the reference than random tokens "
            f"({nats:.1f} nats a token); lower learning_rate, raise beta, or set max_kl",
            stacklevel=4,
        )
        return True

    def note(self, noted: dict) -> None:
        """A row of the history; the step is done."""
        self.rows.append({"step": self.step, **noted, "beta": self.beta})
        self.step += 1
        if isinstance(self.config.beta, AdaptiveKL):
            self.beta = self.config.beta.next(self.beta, noted["kl"])

    def sample(self) -> tuple[Samples, dict]:
        """Scored completions, and notes on all that were drawn; of a method that filters, only groups that differ."""
        wanted, k = self.config.prompts_per_step * self.config.group_size, self.config.group_size
        drawn, kept, differ = [], [], []
        while len(drawn) < self.config.draws and sum(map(len, kept)) < wanted:
            drawn.append(self.draw())
            by_group = drawn[-1].scores.view(-1, k)
            differ.append(by_group.nan_to_num(-torch.inf).amax(1) > by_group.nan_to_num(torch.inf).amin(1))
            index = torch.arange(len(drawn[-1]))
            if self.method.filter:
                room = (wanted - sum(map(len, kept))) // k
                index = index.view(-1, k)[differ[-1]][:room].flatten()
            kept.append(drawn[-1].rows(index))
        noted = {
            "reward": torch.cat([d.scores for d in drawn]).nanmean().item(),
            "tokens": (sum(d.rollout.batch.mask.sum() for d in drawn) / sum(map(len, drawn))).item(),
            "zero_variance": (~torch.cat(differ)).double().mean().item(),
        }
        return all_samples([part for part in kept if len(part)] or kept[:1]), noted

    def draw(self) -> Samples:
        """Completions of the next prompts, with what the reward says of them."""
        index = self.order[self.next_prompt : self.next_prompt + self.config.prompts_per_step]
        self.next_prompt += len(index)
        seed = int(torch.randint(2**31, (1,), generator=self.generator))
        rollout = self.policy.rollout([self.prompts[i] for i in index], self.config.group_size, seed=seed,
                                      max_new_tokens=self.config.max_new_tokens)  # fmt: skip
        columns = {name: [values[i] for i in index] for name, values in self.columns.items()}
        columns = repeated(columns, self.config.group_size)
        judgement = self.reward(rollout.prompts, rollout.completions, **columns)
        self.reward.update(judgement)
        self.spent["completions_sampled"] += len(rollout.completions)
        fine = token_rewards(judgement, self.policy, rollout) if self.config.credit == "finest" else None
        if not judgement.present.all():
            present = torch.from_numpy(judgement.present).to(self.policy.device)
            rollout.batch.mask = rollout.batch.mask * present[:, None]
        return Samples(rollout, torch.from_numpy(judgement.scores).float(), fine, columns)

    def experience(self, samples: Samples, old: Tensor, ref: Tensor) -> Experience:
        """What the advantages are computed from."""
        batch, fine = samples.rollout.batch, samples.fine
        scores = samples.scores.nan_to_num().to(self.policy.device)
        greedy = values = None
        if self.method.greedy:
            asked = samples.rollout.prompts[:: self.config.group_size]
            columns = {name: values[:: self.config.group_size] for name, values in samples.columns.items()}
            best = self.policy.rollout(asked, 1, temperature=0.0, max_new_tokens=self.config.max_new_tokens)
            self.spent["completions_sampled"] += len(asked)
            said = self.reward(best.prompts, best.completions, **columns).all_scores(self.method.name)
            greedy = torch.from_numpy(said).float().to(scores.device)
        if self.critic:
            with torch.no_grad():
                values = self.policy.in_parts(batch, self.critic)
            self.spent["forward_rows"] += len(old)
        rewards = at_last_token(scores, batch.mask) if fine is None else fine.masked_fill(batch.mask == 0, torch.nan)
        return Experience(samples.rollout, scores, rewards, fine is not None, old, ref, self.config.group_size, greedy,
                          values)  # fmt: skip

    def logprobs(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """log pi of each token, and the entropy at each token if it is asked for, each (N, T); differentiable."""
        if not self.config.entropy:
            return self.policy.token_logprobs(batch), None

        def both(rows: Batch) -> Tensor:
            every = torch.log_softmax(self.policy.logits(rows).float(), -1)
            logp = every.gather(2, rows.completion[..., None]).squeeze(-1)
            return torch.stack([logp, -(every.exp() * every).sum(-1)], -1) * rows.mask[..., None]

        return self.policy.in_parts(batch, both).unbind(-1)

    # -- one update ----------------------------------------------------------------------------------------------

    def update(self, e: Experience, advantage: Tensor, index: Tensor, ready: tuple | None) -> float:
        """One optimizer step on some rows; returns the share of their tokens on which the clip acts."""
        m = self.method
        if ready is not None:
            rows, index = e.rollout.batch, torch.arange(len(e.mask))
            logp, entropy = ready
        else:
            rows = e.rollout.batch.rows(index)
            logp, entropy = self.logprobs(rows)
            self.spent["forward_rows"] += len(index)
        width = rows.mask.shape[1]
        old, ref, advantage = e.old[index, :width], e.ref[index, :width], advantage[index, :width]
        by_token = e.dense and m.ratio == "completion"  # each token is an action of its own, then
        loss_type, ratio = ("one", "token") if by_token else (m.loss_type, m.ratio)
        divisor = {"completion": rows.mask.sum(1).clamp(min=1), "batch": e.mask.sum() / judged(e.mask).sum(),
                   "limit": self.config.max_new_tokens, "one": 1.0}[loss_type]  # fmt: skip
        beta = self.beta if m.kl == "loss" else 0.0
        per_completion = policy_loss(logp, old, ref, rows.mask, advantage, divisor, ratio, m.clip, m.clip_high, beta,
                                     m.estimator)  # fmt: skip
        loss = per_completion.sum() / judged(rows.mask).sum().clamp(min=1)
        if self.config.entropy:
            loss = loss - self.config.entropy * entropy.sum() / rows.mask.sum()
        self.descend(0, loss)
        self.spent["backward_rows"] += len(index)
        self.spent["updates"] += 1
        rho = log_ratio(logp.detach(), old, rows.mask, ratio).exp()  # where it has left the range in the advantage's
        high = m.clip if m.clip_high is None else m.clip_high  # direction, the clip takes the gradient away
        acts = ((rho > 1 + high) & (advantage > 0)) | ((rho < 1 - m.clip) & (advantage < 0))
        return ((acts * rows.mask).sum() / rows.mask.sum().clamp(min=1)).item()

    def update_critic(self, batch: Batch, returns: Tensor, index: Tensor) -> float:
        """One step of the critic toward the returns; its error."""
        rows = batch.rows(index)
        miss = (self.policy.in_parts(rows, self.critic) - returns[index, : rows.mask.shape[1]]) * rows.mask
        error = miss.pow(2).sum() / rows.mask.sum()
        self.descend(1, error)
        self.spent["forward_rows"] += len(index)
        self.spent["backward_rows"] += len(index)
        return error.item()

    def descend(self, which: int, loss: Tensor) -> None:
        """A step of the optimizer of the policy (0) or of the critic (1)."""
        if not torch.isfinite(loss):
            raise AlignkitError(
                f"{self.method.name}, step {self.step}: the loss is {loss.item()}; lower learning_rate, or check the "
                "rewards' size. The policy before this update is unharmed"
            )
        learned, rate, optimizer = self.learners[which]
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - self.step / self.config.steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()

    # -- interruption --------------------------------------------------------------------------------------------

    def state(self) -> dict:
        """All that the next step depends on."""
        return {
            "weights": [learned for learned, _, _ in self.learners],
            "optimizers": [optimizer.state_dict() for _, _, optimizer in self.learners],
            "generator": self.generator.get_state(),
            "reward": self.reward.state(),
            "loop": [self.step, self.next_prompt, self.stopped, self.beta, self.first_nats, self.rows, self.spent],
        }

    def restore(self, state: dict | None) -> None:
        """Go on from a `state`."""
        if state is None:
            return
        for (learned, _, optimizer), weights, values in zip(self.learners, state["weights"], state["optimizers"],
                                                            strict=True):  # fmt: skip
            with torch.no_grad():
                for own, value in zip(learned, weights, strict=True):
                    own.copy_(value)
            optimizer.load_state_dict(values)
        self.generator.set_state(state["generator"])
        self.reward.restore(state["reward"])
        (self.step, self.next_prompt, self.stopped, self.beta, self.first_nats, self.rows,
         self.spent) = state["loop"]  # fmt: skip
