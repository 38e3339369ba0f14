"""Guided decoding: while it writes, a policy's next-token probabilities are tilted by how good the beginning is.

    log pi_guided(v | x, y) = log pi(v | x, y) + weight * score(x, y + v) - log Z          for the top_k likeliest v

With a reward model on partial text as the score this is ARGS (2402.01694, eq. 3), with a prefix value function it is
controlled decoding (2310.17022, eq. 5; weight = 1 / beta), token by token or block by block. The value of a beginning
is learned from rollouts (`PrefixValue`) or, where all completions can be written down, exact (`exact_values`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError, check_at_least, check_positive
from alignkit.optimize.inference import judged_samples
from alignkit.policy import Batch, Policy, Prompt, Reading, Rollout, draw, positions
from alignkit.rewards.base import Judgement, Reward, columns_of
from alignkit.rewards.model import RewardModel


class PrefixValue(RewardModel):
    """V(x, y_1..t) = E[r(x, y) | y_1..t], y going on from there as the policy does (2310.17022, CD-FUDGE).

    A head on every beginning of the policy's own samples, regressed on the reward that the whole of them got. `units`:
    mean and standard deviation of the rewards it was fit to; its outputs are rewards in those units.
    """

    kind = {"name": "prefix value", "format": "scalar", "granularity": "token", "source": "2310.17022"}

    units: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def fit(
        cls, policy: Policy, prompts: list | Dataset, reward: Reward | Callable, n: int = 8, pooling: str = "mean",
        seed: int = 0, max_new_tokens: int = 48, **options,
    ) -> PrefixValue:  # fmt: skip
        """Roll out n answers to each prompt, score them, and fit; further options as in `RewardModel.train`."""
        said, judgement = judged_samples("PrefixValue", policy, prompts, reward, n, seed, max_new_tokens=max_new_tokens)
        scores, batch = judgement.all_scores("PrefixValue"), said.batch
        if np.ptp(scores) == 0:
            raise AlignkitError("PrefixValue: every rollout got the same reward, so there is nothing to foresee; take "
                                "more prompts, a larger n, or another reward")  # fmt: skip
        value = cls.new(policy, seed, pooling)
        value.units = float(scores.mean()), float(scores.std())
        target = torch.tensor((scores - scores.mean()) / scores.std(), device=policy.device).float()

        def loss(part: Tensor, whole: Tensor) -> tuple[Tensor, dict]:
            rows = batch.rows(part)
            error = (value.by_prefix(rows) - target[part, None]) ** 2
            return (error * rows.mask).sum() / batch.mask[whole].sum(), {}

        return value.train(loss, batch.attention.sum(1), seed=seed, **options)

    def by_prefix(self, batch: Batch) -> Tensor:
        """The value of each beginning, in standard units, shape (N, T); differentiable."""
        outputs = self.outputs_by_token(batch)[..., 0] * batch.mask
        return outputs if self.pooling == "last" else outputs.cumsum(1) / batch.mask.cumsum(1).clamp(min=1)

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        said = super().judge(prompts, completions)
        said.scores = said.scores * self.units[1] + self.units[0]
        return said


@torch.no_grad()
def every_completion(policy: Policy, prompt: str, max_new_tokens: int) -> dict[tuple[int, ...], float]:
    """log pi of every completion there is, as token ids: those that end and those cut at max_new_tokens."""
    size = policy.vocabulary
    if size**max_new_tokens > 100_000:
        raise AlignkitError(f"{size} tokens to the power of {max_new_tokens} are too many completions to enumerate; "
                            "take a policy with few tokens and short completions")  # fmt: skip
    done, open_ = {}, {(): 0.0}
    head = policy.prompt_ids(prompt)
    for t in range(max_new_tokens):
        ids = torch.tensor([[*head, *prefix] for prefix in open_], device=policy.device)
        logp = torch.log_softmax(policy.model(input_ids=ids).logits[:, -1].double(), -1).tolist()
        longer = {(*y, v): open_[y] + row[v] for y, row in zip(open_, logp, strict=True) for v in range(size)}
        last = range(size) if t + 1 == max_new_tokens else policy.ends
        done |= {y: total for y, total in longer.items() if y[-1] in last}
        open_ = {y: total for y, total in longer.items() if y[-1] not in last}
    return done


def exact_values(
    logp: dict[tuple[int, ...], float], reward: Callable[[tuple[int, ...]], float], beta: float | None = None
) -> dict[tuple[int, ...], float]:
    """The value of each beginning of each completion in `logp` (from `every_completion`), the empty one included.

    E[r | beginning], controlled decoding's value; with `beta` the soft value beta * log E[exp(r / beta) | beginning].
    Tilting each next token by the soft value over beta gives the KL optimum pi_ref * exp(r / beta) / Z of whole
    completions: the factors telescope. E[r | beginning] gives the optimum one token ahead only.
    """
    check_positive("exact_values", beta=1.0 if beta is None else beta)
    mass, total, best = defaultdict(float), defaultdict(float), max(map(reward, logp))
    for y, lp in logp.items():
        gain = reward(y) if beta is None else np.exp((reward(y) - best) / beta)
        for k in range(len(y) + 1):
            mass[y[:k]] += np.exp(lp)
            total[y[:k]] += np.exp(lp) * gain
    mean = {y: total[y] / mass[y] for y in mass}
    return mean if beta is None else {y: best + beta * float(np.log(value)) for y, value in mean.items()}


class Guide:
    """Scores what could come next, one writing at a time. Subclasses define three methods:

    `start(prompts)`: begin N answers, one to each prompt. `scores(candidates)`: of each answer so far with each
    candidate token added, (N, k) token ids to (N, k) numbers. `keep(rows, tokens)`: go on with these rows, each with
    the candidate that was chosen for it, both of shape (rows,).
    """


class FunctionGuide(Guide):
    """Any function of (prompt, token ids so far): slow, for small examples and exact values."""

    def __init__(self, function: Callable[[Prompt, tuple[int, ...]], float]):
        self.function = function

    def start(self, prompts: list[Prompt]) -> None:
        self.answers: list[tuple[Prompt, tuple[int, ...]]] = [(prompt, ()) for prompt in prompts]

    def scores(self, candidates: Tensor) -> Tensor:
        rows = zip(self.answers, candidates.tolist(), strict=True)
        table = [[float(self.function(x, (*y, token))) for token in tokens] for (x, y), tokens in rows]
        return torch.tensor(table, dtype=torch.float64, device=candidates.device)

    def keep(self, rows: Tensor, tokens: Tensor) -> None:
        kept = [self.answers[row] for row in rows.tolist()]
        self.answers = [(x, (*y, token)) for (x, y), token in zip(kept, tokens.tolist(), strict=True)]


class ModelGuide(Guide):
    """A reward model read at every token: its score of each candidate's partial text, by one cached pass a step."""

    def __init__(self, model: RewardModel):
        if not isinstance(model, RewardModel):
            raise AlignkitError(
                f"{type(model).__name__} gives no scores to partial answers. Guide with a reward model (such as "
                "BradleyTerry), with PrefixValue.fit(policy, prompts, reward), which learns what a beginning is worth "
                "under any reward, or with a FunctionGuide"
            )
        self.model = model

    def start(self, prompts: list[Prompt]) -> None:
        codec = self.model.backbone
        batch = codec.pad([codec.prompt_ids(prompt) for prompt in prompts], [[] for _ in prompts])
        out = self.model.model.base_model(input_ids=batch.ids, attention_mask=batch.attention,
                                          position_ids=positions(batch.attention), use_cache=True)  # fmt: skip
        self.cache, self.read = out.past_key_values, batch.attention.bool()
        self.last = batch.ids.new_zeros(len(prompts), 0)  # the token written last, which the model has not read yet
        self.total, self.length = torch.zeros(len(prompts), device=batch.ids.device), 0

    def scores(self, candidates: Tensor) -> Tensor:
        """All candidates of a row in one pass, side by side: each sees what was written and itself, not the others."""
        n, k = candidates.shape
        new = self.last.shape[1]
        tokens = torch.cat([self.last, candidates], 1)
        place = self.read.sum(1, keepdim=True) + torch.tensor([0] * new + [new] * k, device=tokens.device)
        among = torch.eye(new + k, dtype=torch.bool, device=tokens.device)
        among[:, :new] = True  # the token written last is seen by all
        sees = torch.cat([self.read[:, None, :].expand(n, new + k, -1), among.expand(n, -1, -1)], 2)[:, None]
        dtype = self.model.model.dtype
        mask = torch.zeros(sees.shape, dtype=dtype, device=tokens.device).masked_fill(~sees, torch.finfo(dtype).min)
        hidden = self.model.model.base_model(input_ids=tokens, attention_mask=mask, position_ids=place,
                                             past_key_values=self.cache, use_cache=True).last_hidden_state  # fmt: skip
        self.cache.crop(-k)
        self.read = F.pad(self.read, (0, new), value=True)
        self.candidates, self.here = candidates, self.model.head(hidden)[:, new:, 0].float()
        mean = (self.total[:, None] + self.here) / (self.length + 1)
        return (self.here if self.model.pooling == "last" else mean).double()

    def keep(self, rows: Tensor, tokens: Tensor) -> None:
        chosen = self.candidates[rows] == tokens[:, None]
        self.cache.batch_select_indices(rows)
        self.read, self.last = self.read[rows], tokens[:, None]
        self.total, self.length = self.total[rows] + self.here[rows][chosen], self.length + 1


@dataclass
class GuidedRollout(Rollout):
    """A rollout with `kl`, shape (N,): of the guided from the plain policy, the full-vocabulary KL (nats) at each
    position that was visited, summed. Its mean over samples is the KL of whole completions."""

    kl: Tensor


class Guided(Policy):
    """The policy as it samples under guidance: it can be charted, chosen from (best-of-n), and its KL is measured.

    `guide`: a reward model or a `Guide`. `weight`: how far it is trusted, 0 for not at all. `top_k`: how many of the
    likeliest tokens are considered. Temperature 0 is greedy, as in ARGS. `spent`: tokens read by policy and guide.
    """

    def __init__(self, policy: Policy, guide: Guide | RewardModel, weight: float, top_k: int = 10,
                 name: str | None = None):  # fmt: skip
        self.share(policy, name or f"{policy.name} + guide")
        check_at_least("Guided", 0, weight=weight)
        check_at_least("Guided", 1, top_k=top_k)
        self.policy, self.weight, self.top_k, self.spent = policy, weight, top_k, Counter()
        self.guide = guide if isinstance(guide, Guide) else ModelGuide(guide)
        read_by = self.guide.model.backbone if isinstance(self.guide, ModelGuide) else policy
        if read_by.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise AlignkitError(f"the guide's tokenizer is not that of {policy.name!r}, so their tokens differ; fit "
                                "the guide with this policy as its backbone")  # fmt: skip

    def as_read(self, prompt: Prompt) -> Prompt:
        """As the policy itself reads the prompt."""
        return self.policy.as_read(prompt)

    def logits(self, batch):
        """Not known without writing: AlignkitError."""
        raise AlignkitError("a guided policy's probabilities are known only where it writes; its rollout has their KL")

    @torch.no_grad()
    def next_logprobs(self, prompt: Prompt, written: tuple[int, ...] = ()) -> Tensor:
        """log pi_guided of each token after prompt and the tokens `written`, shape (vocabulary,); -inf if left out."""
        self.guide.start([prompt])
        first = torch.zeros(1, dtype=torch.long, device=self.device)
        for token in written:
            self.guide.scores(first[:, None] + token)
            self.guide.keep(first, first + token)
        ids = torch.tensor([[*self.prompt_ids(prompt), *written]], device=self.device)
        tilted, _ = self._tilt(self.model(input_ids=ids).logits[:, -1], 1.0)
        return torch.log_softmax(tilted[0], -1)

    def rollout(self, prompts: list[Prompt], n: int = 1, *args, **options) -> GuidedRollout:
        """As `Policy.rollout`, with the KL from the plain policy."""
        self._asked, self._kl, self.spent = list(prompts), [], Counter()
        plain = super().rollout(prompts, n, *args, **options)
        return GuidedRollout(**vars(plain), kl=torch.cat(self._kl))

    def sample_rows(self, heads, owner: Tensor, noise: Tensor, temperature: float = 1.0) -> list[list[int]]:
        """As in `Policy`, with the guide beside it."""
        self.guide.start([self._asked[i] for i in owner])
        batch = self.pad([heads[i] for i in owner], [[] for _ in owner])
        alive, kl = torch.arange(len(owner), device=self.device), torch.zeros(len(owner), dtype=torch.float64)
        tails: list[list[int]] = [[] for _ in owner]
        with self.reading(batch):
            read = Reading(self.model, batch.ids, batch.attention)
            for t in range(noise.shape[1]):
                tilted, added = self._tilt(read.logits, temperature)
                kl[alive.cpu()] += added.cpu()
                token = draw(tilted, noise[alive, t], temperature)
                for row, chosen in zip(alive.tolist(), token.tolist(), strict=True):
                    tails[row].append(chosen)
                keep = (~torch.isin(token, torch.tensor(self.ends, device=self.device))).nonzero().squeeze(1)
                if t + 1 == noise.shape[1] or not len(keep):
                    break
                alive, token = alive[keep], token[keep]
                self.guide.keep(keep, token)
                read.append(token, keep)
        self._kl.append(kl)
        return tails

    def _tilt(self, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The tilted logits, -inf but for the top_k tokens, and the KL of the next token (nats)."""
        plain = torch.log_softmax(logits.double(), -1)
        candidates = plain.topk(min(self.top_k, plain.shape[1])).indices.sort(-1).values
        considered = plain.gather(1, candidates)
        tilted = considered + self.weight * self.guide.scores(candidates)
        self.spent.update(policy_tokens=len(logits), guide_tokens=candidates.numel())
        whole = torch.full_like(plain, -torch.inf).scatter(1, candidates, tilted)
        if temperature == 0:
            return whole, -considered.gather(1, tilted.argmax(-1, keepdim=True)).squeeze(1)
        guided = torch.log_softmax(tilted / temperature, -1)
        return whole, (guided.exp() * (guided - considered)).sum(-1)


@torch.no_grad()
def blockwise(
    policy: Policy, prompts: list | Dataset, value: RewardModel, n: int, block: int = 8, seed: int = 0,
    max_new_tokens: int = 48,
) -> list[str]:  # fmt: skip
    """Controlled decoding block by block: of n continuations by `block` tokens the one with the highest value is kept,
    until it ends (2310.17022, section 3.2). One block of max_new_tokens is best-of-n by the value's score.
    """
    check_at_least("blockwise", 1, n=n, block=block, max_new_tokens=max_new_tokens)
    value, (prompts, _) = ModelGuide(value).model, columns_of(prompts)
    written: list[list[int]] = [[] for _ in prompts]
    heads, going = [policy.prompt_ids(prompt) for prompt in prompts], list(range(len(prompts)))
    asked = [value.backbone.prompt_ids(prompt) for prompt in prompts]
    for start in range(0, max_new_tokens, block):
        more = min(block, max_new_tokens - start)
        generator = torch.Generator().manual_seed(seed + 7919 * start)
        noise = torch.rand(len(prompts) * n, more, generator=generator, dtype=torch.float64).view(len(prompts), n, more)
        owner = torch.tensor(going).repeat_interleave(n)
        begun = [head + ids for head, ids in zip(heads, written, strict=True)]
        tails = policy.sample_rows(begun, owner, noise[going].flatten(0, 1).to(policy.device))
        drafts = [written[i] + tail for i, tail in zip(owner.tolist(), tails, strict=True)]
        scores = value.forward(value.backbone.pad([asked[i] for i in owner], drafts)).view(-1, n)
        for row, best in enumerate(scores.argmax(1).tolist()):
            written[going[row]] = drafts[row * n + best]
        going = [i for i in going if written[i][-1] not in policy.ends]
        if not going:
            break
    said = [ids[:-1] if ids[-1] in policy.ends else ids for ids in written]
    return policy.tokenizer.batch_decode(said, skip_special_tokens=True)
