"""Several treatments of one patient where gold is unknown: a guide they follow, and a second opinion to check it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasets import Dataset

from alignkit.errors import AlignkitError
from alignkit.evaluation.core import kl_bound, sequence_kl
from alignkit.intervals import clear_of, cluster_bootstrap, generator
from alignkit.policy import Policy, Rollout
from alignkit.rewards.base import Reward, columns_of, repeated

UNTREATED = "untreated"


@dataclass
class Trial:
    """`table`: a row for each option; `answers`: its completions, in the order of `asked`; `checked`: the second
    opinion's mean for each prompt (sd), by option."""

    table: pd.DataFrame
    asked: list
    answers: dict[str, list[str]]
    checked: dict[str, np.ndarray]

    def choose(self, most_kl: float = 10.0) -> tuple[str, str]:
        """The nearest option (smallest KL) within `most_kl` nats that the second opinion's favorite does not clearly
        beat; and why."""
        within = [name for name in self.table.index if self.table.loc[name, "KL (nats)"] <= most_kl]
        favorite = max(within, key=lambda name: self.checked[name].mean())
        for name in sorted(within, key=lambda name: self.table.loc[name, "KL (nats)"]):
            gap = self._gap(favorite, name)
            if name == favorite or not clear_of(gap, 0.0):
                kl, gained = self.table.loc[name, ["KL (nats)", "second opinion (sd)"]]
                other = f"; {favorite} is not clearly better" if name != favorite else ""
                return name, f"the second opinion sees {gained:+.2f} sd at {kl:.2f} nats{other}"
        raise AlignkitError("there is no option to choose from")

    def _gap(self, one: str, other: str) -> dict:
        gap = self.checked[one] - self.checked[other]
        return cluster_bootstrap(gap, np.arange(len(gap)), generator(0, f"{one} {other}"))


def trial(
    patient: Policy,
    options: Mapping[str, Policy | int],
    prompts: list | Dataset,
    guide: Reward,
    second: Reward,
    n: int = 8,
    seed: int = 0,
    max_new_tokens: int = 48,
) -> Trial:
    """Let the patient and each option answer, n times a prompt. An option is a treated policy, or a whole number k:
    best-of-k of the patient's samples by the `guide`. Other columns of a Dataset of prompts are handed to the rewards.

    Columns: what the guide and the `second` opinion (a reward fit to other pairs, or made in another way) make of it,
    in standard deviations of the patient's answers, the patient's mean at 0; KL (for best-of-k its upper bound); words;
    share of answers that ended by themselves; share of different answers to a prompt.
    """
    prompts, columns = columns_of(prompts)
    if len(prompts) < 2 or n < 1:
        raise AlignkitError(f"trial: needs at least 2 prompts and n of at least 1, not {len(prompts)} and {n}")
    rows, answers, checked, unit = {}, {}, {}, {}
    for name, option in {UNTREATED: patient, **options}.items():
        said, ended, kl = _answer(patient, option, prompts, columns, guide, n, seed, max_new_tokens)
        scores = {kind: reward(said.prompts, said.completions, **repeated(columns, n)).all_scores("trial")
                  for kind, reward in (("guide (sd)", guide), ("second opinion (sd)", second))}  # fmt: skip
        unit = unit or {kind: (values.mean(), values.std() or 1.0) for kind, values in scores.items()}
        scaled = {kind: (values - unit[kind][0]) / unit[kind][1] for kind, values in scores.items()}
        groups = np.array(said.completions, dtype=object).reshape(len(prompts), n)
        answers[name] = said.completions
        checked[name] = scaled["second opinion (sd)"].reshape(len(prompts), n).mean(1)
        rows[name] = {**{kind: values.mean() for kind, values in scaled.items()}, "KL (nats)": kl,
                      "words": np.mean([len(text.split()) for text in said.completions]), "ended": ended,
                      "different": np.mean([len(set(texts)) / n for texts in groups])}  # fmt: skip
    return Trial(pd.DataFrame.from_dict(rows, orient="index"), said.prompts, answers, checked)


def _answer(
    patient: Policy, option: Policy | int, prompts: list, columns: dict, guide: Reward, n: int, seed: int,
    max_new_tokens: int,
) -> tuple[Rollout, float, float]:
    """n answers a prompt, the share of them that ended, and the KL from the patient."""
    if isinstance(option, Policy):
        said = option.rollout(prompts, n, seed=seed, max_new_tokens=max_new_tokens)
        kl = 0.0 if option is patient else float(sequence_kl(option, patient, prompts, n, seed, max_new_tokens).mean())
        return said, float(said.ended.double().mean()), kl
    if isinstance(option, bool) or option < 1:
        raise AlignkitError(f"trial: best-of-n needs a whole number of samples, at least 1, not {option!r}")
    pool = patient.rollout(prompts, n * option, seed=seed, max_new_tokens=max_new_tokens)
    judged = guide(pool.prompts, pool.completions, **repeated(columns, n * option))
    scores = judged.all_scores("trial").reshape(len(prompts) * n, option)
    best = scores.argmax(1) + option * np.arange(len(scores))
    said = Rollout([pool.prompts[i] for i in best], [pool.completions[i] for i in best], None, pool.ended[best])
    return said, float(said.ended.double().mean()), float(kl_bound(option))
