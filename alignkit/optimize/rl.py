"""Learning from rewards of fresh samples: one loop for all methods of policy gradient."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor
from torch.optim import AdamW
from tqdm.auto import tqdm

from alignkit.errors import AlignkitError, check_at_least
from alignkit.optimize.advantages import whitened
from alignkit.optimize.config import AdaptiveKL, Method
from alignkit.optimize.experience import Critic, Experience, all_samples, at_last_token, judged, token_rewards
from alignkit.optimize.losses import log_ratio, policy_loss
from alignkit.policy import Batch, Policy, Rollout, check_same_vocabulary
from alignkit.rewards.base import Judgement, Reward, as_reward, columns_of, repeated
from alignkit.training import Checkpoint, default_rate, digest

LOOP = ("step", "next_prompt", "stopped", "beta", "first_nats", "rows", "spent")  # what a checkpoint keeps of a run


def policy_gradient(
    policy: Policy,
    prompts: list | Dataset,
    reward: Reward | Callable,
    method: Method,
    *,
    reference: Policy | None = None,
    progress: bool = True,
    callback: Callable[[int, Policy, dict], bool | None] | None = None,
    checkpoint: str | Path | None = None,
    **options,
) -> Policy:
    """Sample a batch, score it, update on it; returns a new policy.

    `prompts`: a list, or a Dataset with a column `prompt`, whose other columns are handed to the reward by name, as are
    the sampled token ids (`completion_ids`). `reference`: default `policy` itself. `options`: fields of `Method`, such
    as steps=20 or kl="loss". A completion about which the reward says None is left out of its group.

    `callback(step, treated, row)` gets each row of the history, to evaluate or to log; if it returns True the treatment
    ends. `checkpoint`: a file in which the run's state is kept, so that the same call goes on after an interruption
    with the same result. The history has one row a step: reward, k1 estimate of the sequence KL, tokens, an estimate of
    the entropy (nats a token), clip fraction, share of zero-variance groups, beta; the critic's error if there is one.

    The treatment ends with a warning where the policy has lost its language: its samples are less likely under the
    reference than random tokens, and by half as much less likely than at first. AlignkitError if a likelihood is not
    finite.
    """
    method = method.but(**options)
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated = policy.copy(f"{policy.name} + {method.name}")
    run = _Run(treated, reference, as_reward(reward), prompts, method)
    kept = None
    if checkpoint is not None:
        same = {f.name: getattr(method, f.name) for f in fields(method) if f.name != "advantages"}
        weights = {name: digest(*p.model.parameters()) for name, p in (("policy", policy), ("reference", reference))}
        kept = Checkpoint(checkpoint, {**same, **weights, "prompts": run.prompts, "columns": run.columns})
        run.restore(kept.load())
    with tqdm(total=method.steps, initial=run.step, desc=treated.name, disable=not progress, leave=False) as bar:
        while run.step < method.steps and not run.stopped:
            start, done = time.perf_counter(), run.step
            run.take_step()
            run.spent["seconds"] += time.perf_counter() - start
            bar.update()
            if callback is not None and run.step > done and callback(done, treated, run.rows[-1]) is True:
                run.stopped = True
            if kept:
                kept.save(run.step, last=run.stopped or run.step == method.steps, **run.state())
    treated.model.eval()
    treated.history, treated.spent = pd.DataFrame(run.rows), run.spent
    return treated


class _Run:
    """The state of one call of `policy_gradient`, and its steps."""

    def __init__(self, policy: Policy, reference: Policy, reward: Reward, prompts: list | Dataset, method: Method):
        self.policy, self.reference, self.reward, self.method = policy, reference, reward, method
        self.prompts, self.columns = columns_of(prompts)
        check_at_least(method.name, 1, **{"the number of prompts": len(self.prompts)})
        self.beta = method.beta.start if isinstance(method.beta, AdaptiveKL) else method.beta
        self.generator = torch.Generator().manual_seed(method.seed)
        self.critic = Critic(policy) if method.critic else None
        learned = [{"params": [p for p in policy.model.parameters() if p.requires_grad],
                    "rate": method.learning_rate or default_rate(policy.model, "policy gradient")}]  # fmt: skip
        if self.critic:
            learned.append({"params": list(self.critic.parameters()), "rate": method.critic_rate})
        self.optimizer = AdamW(learned, weight_decay=0.0)
        passes = -(-method.steps * method.prompts_per_step * method.draws // len(self.prompts))
        every = [torch.randperm(len(self.prompts), generator=self.generator) for _ in range(passes)]
        self.order = torch.cat(every).tolist()  # shuffled passes, as many as the run can ask for
        self.step, self.next_prompt, self.stopped, self.first_nats = 0, 0, False, None
        self.rows: list[dict] = []
        self.spent = dict.fromkeys(("completions_sampled", "forward_rows", "backward_rows", "updates", "seconds"), 0)

    # -- one step ------------------------------------------------------------------------------------------------

    def take_step(self) -> None:
        """Sample, score, and update."""
        method, updates = self.method, self.method.epochs * self.method.minibatches
        samples, noted = self.sample()
        batch = samples.rollout.batch
        if not judged(batch.mask).any():  # nothing to learn from
            self.note({**noted, "kl": self.rows[-1]["kl"] if self.rows else 0.0})
            return
        with torch.set_grad_enabled(updates == 1):  # a single update needs no second look at its samples
            read = self.logprobs(batch)
        with torch.no_grad():
            experience = replace(samples, old=read[0].detach(), ref=self.reference.token_logprobs(batch))
        self.spent["forward_rows"] += 2 * len(batch)
        kl = experience.kl.sum(1)[judged(batch.mask)].mean().item()
        if self.lost(experience) or (method.max_kl is not None and kl > method.max_kl):
            self.stopped = True
            return
        if method.greedy:
            first = slice(None, None, method.group_size)
            columns = {name: values[first] for name, values in samples.columns.items()}
            said, best = self.ask(samples.rollout.prompts[first], columns, 1, temperature=0.0)
            experience.greedy = torch.from_numpy(best.all_scores(method.name)).float().to(said.batch.ids.device)
        if self.critic:
            with torch.no_grad():
                experience.values = self.policy.in_parts(batch, self.critic)
            self.spent["forward_rows"] += len(batch)
        advantage = method.advantages(experience, self.beta if method.kl == "reward" else 0.0)
        returns = advantage + experience.values if self.critic else None
        if method.whiten:
            advantage = whitened(advantage, experience.mask)
        done = []
        for _ in range(method.epochs):
            for index in torch.randperm(len(batch), generator=self.generator).chunk(method.minibatches):
                done.append(self.update(experience, advantage, returns, index, read if updates == 1 else None))
        means = {name: sum(each[name] for each in done) / len(done) for name in done[0]}
        self.note({**noted, "kl": kl, "entropy": (-experience.old.sum() / batch.mask.sum()).item(), **means})

    def lost(self, e: Experience) -> bool:
        """Whether the policy has lost its language; a warning says so. AlignkitError if a likelihood is not finite."""
        for who, values in (("policy", e.old), ("reference", e.ref)):
            bad = (~values.isfinite()).any(1).nonzero().flatten().tolist()
            if bad:
                raise AlignkitError(
                    f"{self.method.name}, step {self.step}: the {who} gives completion {bad[0]} "
                    f"({e.rollout.completions[bad[0]][:60]!r}) a log-probability that is not finite; lower "
                    "learning_rate, or check the model's weights"
                )
        chance, nats = math.log(self.policy.vocabulary), (-e.ref.sum() / e.mask.sum()).item()
        self.first_nats = nats if self.first_nats is None else self.first_nats
        if nats <= max(chance, self.first_nats + chance / 2):
            return False
        warnings.warn(
            f"{self.policy.name}: treatment ended before step {self.step}, since the policy has lost its language: its "
            f"samples, such as {e.rollout.completions[0][:60]!r}, are less likely under the reference than random "
            f"tokens ({nats:.1f} nats a token); lower learning_rate, raise beta, or set max_kl",
            stacklevel=4,
        )
        return True

    def note(self, noted: dict) -> None:
        """A row of the history; the step is done."""
        self.rows.append({"step": self.step, **noted, "beta": self.beta})
        self.step += 1
        if isinstance(self.method.beta, AdaptiveKL):
            self.beta = self.method.beta.next(self.beta, noted["kl"])

    def sample(self) -> tuple[Experience, dict]:
        """Scored completions, and notes on all that were drawn; of a method that filters, only groups that differ."""
        method, parts, groups = self.method, [], torch.zeros(0)
        while len(parts) < method.draws and len(groups) < method.prompts_per_step:
            parts.append(self.draw())
            scores = torch.cat([part.scores for part in parts]).view(-1, method.group_size)
            differ = scores.nan_to_num(-torch.inf).amax(1) > scores.nan_to_num(torch.inf).amin(1)
            groups = (differ if method.filter else torch.ones_like(differ)).nonzero().flatten()
        drawn = all_samples(self.policy, parts)
        drawn.rollout.batch.mask = drawn.mask * ~drawn.scores.isnan().to(drawn.mask.device)[:, None]  # None: left out
        noted = {"reward": drawn.scores.nanmean().item(), "tokens": (drawn.mask.sum() / len(drawn.scores)).item(),
                 "zero_variance": (~differ).double().mean().item()}  # fmt: skip
        drawn.scores = drawn.scores.nan_to_num().to(self.policy.device)
        drawn.rewards = drawn.rewards.masked_fill(drawn.mask == 0, torch.nan)
        rows = torch.arange(len(drawn.scores)).view(scores.shape)[groups[: method.prompts_per_step]].flatten()
        return drawn.rows(rows), noted

    def draw(self) -> Experience:
        """Completions of the next prompts, with what the reward says of them."""
        k, index = self.method.group_size, self.order[self.next_prompt :][: self.method.prompts_per_step]
        self.next_prompt += len(index)
        seed = int(torch.randint(2**31, (1,), generator=self.generator))
        columns = {name: [values[i] for i in index] for name, values in self.columns.items()}
        rollout, judgement = self.ask([self.prompts[i] for i in index], columns, k, seed=seed)
        self.reward.update(judgement)
        scores = torch.from_numpy(judgement.scores).float()
        fine = token_rewards(judgement, self.policy, rollout) if self.method.credit == "finest" else None
        paid = at_last_token(scores.to(self.policy.device), rollout.batch.mask) if fine is None else fine
        return Experience(rollout, scores, paid, fine is not None, k, repeated(columns, k))

    def ask(self, prompts: list, columns: dict[str, list], n: int, **options) -> tuple[Rollout, Judgement]:
        """n completions for each prompt, and what the reward says of them; it is told the tokens, as by TRL."""
        said = self.policy.rollout(prompts, n, max_new_tokens=self.method.max_new_tokens, **options)
        self.spent["completions_sampled"] += len(said.completions)
        told = {**repeated(columns, n), "completion_ids": said.batch.tails}
        return said, self.reward(said.prompts, said.completions, **told)

    def logprobs(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """log pi of each token, and the entropy at each token if it is asked for, each (N, T); differentiable."""
        if not self.method.entropy:
            return self.policy.token_logprobs(batch), None

        def both(rows: Batch) -> Tensor:
            every = torch.log_softmax(self.policy.logits(rows).float(), -1)
            logp = every.gather(2, rows.completion[..., None]).squeeze(-1)
            return torch.stack([logp, -(every.exp() * every).sum(-1)], -1) * rows.mask[..., None]

        return self.policy.in_parts(batch, both).unbind(-1)

    # -- one update ----------------------------------------------------------------------------------------------

    def update(
        self, e: Experience, advantage: Tensor, returns: Tensor | None, index: Tensor, read: tuple | None
    ) -> dict[str, float]:
        """One step of the optimizer on some rows (on all, if they were `read`), and of the critic toward its returns.

        Returns the share of the rows' tokens on which the clip acts, and the critic's error.
        """
        m, rows, count, noted = self.method, e.rollout.batch.rows(index), len(index), {}
        self.optimizer.zero_grad()
        if self.critic:
            miss = (self.policy.in_parts(rows, self.critic) - returns[index, : rows.mask.shape[1]]) * rows.mask
            noted["critic_error"] = self.backward(miss.pow(2).sum() / rows.mask.sum())
            self.spent["forward_rows"] += count
            self.spent["backward_rows"] += count
        if read is None:
            read = self.logprobs(rows)
            self.spent["forward_rows"] += count
        else:
            rows, index = e.rollout.batch, torch.arange(count)
        (logp, entropy), width = read, rows.mask.shape[1]
        old, ref, advantage = e.old[index, :width], e.ref[index, :width], advantage[index, :width]
        by_token = e.dense and m.ratio == "completion"  # each token is an action of its own, then
        loss_type, ratio = ("one", "token") if by_token else (m.loss_type, m.ratio)
        divisor = {"completion": rows.mask.sum(1).clamp(min=1), "batch": e.mask.sum() / judged(e.mask).sum(),
                   "limit": m.max_new_tokens, "one": 1.0}[loss_type]  # fmt: skip
        beta = self.beta if m.kl == "loss" else 0.0
        per_completion = policy_loss(logp, old, ref, rows.mask, advantage, divisor, ratio, m.clip, m.clip_high, beta,
                                     m.estimator)  # fmt: skip
        loss = per_completion.sum() / judged(rows.mask).sum().clamp(min=1)
        if m.entropy:
            loss = loss - m.entropy * entropy.sum() / rows.mask.sum()
        self.backward(loss)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * (1 - self.step / m.steps)
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        self.spent["backward_rows"] += count
        self.spent["updates"] += 1
        rho = log_ratio(logp.detach(), old, rows.mask, ratio).exp()  # where it has left the range in the advantage's
        high = m.clip if m.clip_high is None else m.clip_high  # direction, the clip takes the gradient away
        acts = ((rho > 1 + high) & (advantage > 0)) | ((rho < 1 - m.clip) & (advantage < 0))
        return {"clip_fraction": ((acts * rows.mask).sum() / rows.mask.sum().clamp(min=1)).item(), **noted}

    def backward(self, loss: Tensor) -> float:
        """Adds the loss's gradients; its value. AlignkitError if that is not finite."""
        if not torch.isfinite(loss):
            raise AlignkitError(
                f"{self.method.name}, step {self.step}: the loss is {loss.item()}; lower learning_rate, or check the "
                "rewards' size. The policy before this update is unharmed"
            )
        loss.backward()
        return loss.item()

    # -- interruption --------------------------------------------------------------------------------------------

    def state(self) -> dict:
        """All that the next step depends on."""
        return {
            "weights": [group["params"] for group in self.optimizer.param_groups],
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "reward": self.reward.state(),
            "loop": {name: getattr(self, name) for name in LOOP},
        }

    def restore(self, state: dict | None) -> None:
        """Go on from a `state`, if there is one."""
        if state is None:
            return
        with torch.no_grad():
            for group, weights in zip(self.optimizer.param_groups, state["weights"], strict=True):
                for own, value in zip(group["params"], weights, strict=True):
                    own.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.reward.restore(state["reward"])
        vars(self).update(state["loop"])
