"""A reward for people who differ: a few kinds of people, a head for each, and whose labels came from which kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from datasets import Dataset
from scipy.special import log_expit, logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from alignkit.errors import AlignkitError, DataError
from alignkit.policy import Policy
from alignkit.rewards.base import Judgement
from alignkit.rewards.data import check_columns, check_pairs, encode_pairs
from alignkit.rewards.model import RewardModel, pooled, read_rows
from alignkit.tokens import Batch

RESTARTS, ROUNDS = 5, 20  # of expectation-maximization


class PersonalReward(RewardModel):
    """A mixture of K Bradley-Terry heads on one backbone. Everyone is of one hidden kind z, drawn with `shares`:

        P(labels of one person) = sum_z shares[z] * prod_i sigmoid(r_z(x_i, chosen_i) - r_z(x_i, rejected_i))

    Maximum likelihood by expectation-maximization, as MaxMin-RLHF learns its groups (2402.08925, algorithm 2). The kind
    is a latent variable that is inferred from a person's own comparisons, as in VPL (2408.10075), but with K values, so
    that its posterior (`infer`) is exact. `for_annotator` is the reward of one person; `judge` itself is the average
    over `shares`. `people`: a DataFrame, the posterior of each annotator of the fit.
    """

    kind = {"name": "personal", "format": "vector", "objective": "multi", "source": "2408.10075"}
    kept = {"shares": None}  # and not `people`: they say who was asked

    def __init__(self, model, backbone: Policy, pooling: str = "mean"):
        super().__init__(model, backbone, pooling)
        kinds = model.config.num_labels
        self.shares = np.array(self.shares or np.full(kinds, 1 / kinds))
        self.people = pd.DataFrame()

    @classmethod
    def fit(
        cls, pairs: Dataset, backbone: Policy | str, kinds: int | None = 2, pooling: str = "mean", seed: int = 0,
        **options,
    ) -> PersonalReward:  # fmt: skip
        """Fit to `prompt/chosen/rejected/annotator`; which kind an annotator is, is not told. With kinds = None every
        annotator is a kind of their own, in the order of their names: heads that share what the backbone learns.

        Who resembles whom is first guessed on the frozen backbone (`sort_people`); then backbone and heads learn
        together, and the posteriors are brought up to date at every minibatch. One kind is `BradleyTerry.fit`.
        """
        pairs = check_pairs(pairs)
        check_columns(pairs, ["annotator"], "pairs")
        names, who = np.unique([str(name) for name in pairs["annotator"]], return_inverse=True)
        told_kinds, kinds = kinds is None, kinds if kinds is not None else len(names)
        if not 1 <= kinds <= len(names):
            raise DataError(f"{kinds} kinds of people but {len(names)} annotators: there must be at least one for each")
        reward = cls.new(backbone, seed, pooling, outputs=kinds)
        if kinds > 1 and not told_kinds:
            chosen, rejected = states(reward, encode_pairs(reward, pairs)).chunk(2)
            weights, guess = sort_people((chosen - rejected).numpy(), who, kinds, seed)
            with torch.no_grad():
                reward.head.weight.copy_(torch.tensor(weights))
        else:
            guess = np.eye(kinds)[np.arange(len(names)) if told_kinds else [0] * len(names)]
        owner = torch.tensor(who)
        told = torch.full((len(pairs), kinds), torch.nan)  # log-likelihood of each label under each head, as last seen
        posterior = torch.tensor(guess).float()[owner]

        def loss(chosen: Tensor, rejected: Tensor, index: Tensor) -> Tensor:
            by_head = F.logsigmoid(chosen - rejected)
            told[index] = by_head.detach().float().cpu()
            if not (told_kinds or told.isnan().any()):  # until every label was read once, the first guess stands
                sums = torch.zeros(len(names), kinds).index_add_(0, owner, told)
                q = torch.softmax(sums + torch.tensor(reward.shares).float().log(), 1)
                reward.shares = q.mean(0).double().numpy()
                posterior.copy_(q[owner])
            return -(posterior[index].to(by_head.device) * by_head).sum(1)

        reward.shares = guess.mean(0)
        reward.fit_pairs(pairs, loss, seed=seed, **options)
        reward.people = of_people(names, guess) if told_kinds else reward.sort(pairs)
        return reward

    # -- who is it? ----------------------------------------------------------------------------------------------

    def infer(self, pairs: Dataset | None) -> np.ndarray:
        """Posterior over kinds, shape (K,), of one person who made these comparisons; with none, the prior `shares`."""
        if pairs is None or not len(pairs):
            return self.shares.copy()
        return softmax(self._log_likelihood(pairs).sum(0) + np.log(self.shares))

    def sort(self, pairs: Dataset) -> pd.DataFrame:
        """The posterior of each annotator of the pairs, one row an annotator (column `annotator` names them)."""
        check_columns(pairs, ["annotator"], "pairs")
        by_person = pd.DataFrame(self._log_likelihood(pairs)).groupby([str(a) for a in pairs["annotator"]]).sum()
        return of_people(by_person.index, softmax(by_person.to_numpy() + np.log(self.shares), axis=1))

    def _log_likelihood(self, pairs: Dataset) -> np.ndarray:
        """log sigmoid(gap) under each head, shape (N, K)."""
        pairs = check_pairs(pairs)
        prompts = pairs["prompt"][:]
        return log_expit(self.predict(prompts, pairs["chosen"][:]) - self.predict(prompts, pairs["rejected"][:]))

    # -- what do they want? --------------------------------------------------------------------------------------

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        by_head = self.predict(prompts, completions)
        return Judgement(by_head @ self.shares, aspects={f"kind {k}": column for k, column in enumerate(by_head.T)})

    def for_annotator(self, who: Dataset | Sequence[float] | None) -> PersonalReward:
        """The reward of one person, whose `shares` are the posterior, from their comparisons or as given."""
        posterior = self.infer(who) if who is None or isinstance(who, Dataset) else np.asarray(who, dtype=float)
        if posterior.shape != self.shares.shape or not np.isclose(posterior.sum(), 1) or (posterior < 0).any():
            raise AlignkitError(f"a posterior needs {len(self.shares)} numbers >= 0 that sum to 1, not {posterior}")
        name = f"personal [{', '.join(f'{p:.2f}' for p in posterior)}]"
        return self.but(shares=posterior, card=replace(self.card, name=name, format="scalar", objective="single"))

    def heads(self) -> list[PersonalReward]:
        """The reward of each kind of people."""
        return [self.for_annotator(row) for row in np.eye(len(self.shares))]


def of_people(names: Sequence[str], posterior: np.ndarray) -> pd.DataFrame:
    """One row an annotator, one column a kind."""
    return pd.DataFrame(posterior, pd.Index(names, name="annotator"), [f"kind {k}" for k in range(posterior.shape[1])])


def states(reward: RewardModel, batch: Batch) -> Tensor:
    """What the head reads: the pooled hidden state of each completion, shape (N, hidden)."""

    def read(rows: Batch, _) -> Tensor:
        hidden = reward.states(rows)[:, -rows.mask.shape[1] :]
        return pooled(hidden, rows.mask, reward.pooling).float().cpu()

    return torch.stack(read_rows(batch, reward.model, read))


def sort_people(gap: np.ndarray, who: np.ndarray, kinds: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Expectation-maximization of a mixture of linear Bradley-Terry models: (weights (K, D), posterior (people, K)).

    gap (N, D): features of the chosen minus those of the rejected side; who (N,): number of the person who chose.
    Each of `RESTARTS` begins with random posteriors; the one with the highest likelihood is kept.
    """
    gap = np.asarray(gap, dtype=float)
    scale = gap.std(0) + 1e-12
    x, people = gap / scale, who.max() + 1

    def climb(restart: int) -> tuple[float, np.ndarray, np.ndarray]:
        q = np.random.default_rng([seed, 22, restart]).dirichlet(np.full(kinds, 0.5), people)
        for _ in range(ROUNDS):
            shares = np.maximum(q.mean(0), 1e-6)
            weights = np.stack([_linear(x, q[who, k]) for k in range(kinds)])
            by_label = log_expit(x @ weights.T)
            by_person = np.stack([np.bincount(who, by_label[:, k], people) for k in range(kinds)], 1) + np.log(shares)
            before, q = q, softmax(by_person, axis=1)
            if np.abs(q - before).max() < 1e-3:
                break
        return logsumexp(by_person, axis=1).sum(), weights / scale, q

    return max(map(climb, range(RESTARTS)), key=lambda found: found[0])[1:]


def _linear(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Bradley-Terry on features: a logistic regression without intercept, each pair shown both ways round."""
    model = LogisticRegression(C=1 / x.shape[1], fit_intercept=False, max_iter=200, tol=1e-3)
    both, side = np.concatenate([x, -x]), np.repeat([1, 0], len(x))
    return model.fit(both, side, sample_weight=np.tile(np.maximum(weight, 1e-9), 2)).coef_[0]
