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
from alignkit.policy import Policy
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
        nearest = self.table["KL (nats)"].sort_values(kind="stable")
        within = nearest[nearest <= most_kl]
        favorite = max(within.index, key=lambda name: self.checked[name].mean())
        for name, kl in within.items():
            gap = self.checked[favorite] - self.checked[name]
            sure = cluster_bootstrap(gap, np.arange(len(gap)), generator(0, f"{favorite} {name}"))
            if name == favorite or not clear_of(sure, 0.0):
                other = f"; {favorite} is not clearly better" if name != favorite else ""
                gained = self.table.loc[name, "second opinion (sd)"]
                return name, f"the second opinion sees {gained:+.2f} sd at {kl:.2f} nats{other}"
        raise AlignkitError("there is no option to choose from")


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
    asked = [prompt for prompt in prompts for _ in range(n)]
    rows, answers, checked, unit = {}, {}, {}, {}
    for name, option in {UNTREATED: patient, **options}.items():
        writer, k = (option, 1) if isinstance(option, Policy) else (patient, option)
        if isinstance(k, bool) or k < 1:
            raise AlignkitError(f"trial: best-of-n needs a whole number of samples, at least 1, not {k!r}")
        pool = writer.rollout(prompts, n * k, seed=seed, max_new_tokens=max_new_tokens)
        guided = guide(pool.prompts, pool.completions, **repeated(columns, n * k)).all_scores("trial")
        best = guided.reshape(-1, k).argmax(1) + k * np.arange(len(asked))
        said = [pool.completions[i] for i in best]
        scores = {"guide (sd)": guided[best],
                  "second opinion (sd)": second(asked, said, **repeated(columns, n)).all_scores("trial")}  # fmt: skip
        unit = unit or {kind: (values.mean(), values.std() or 1.0) for kind, values in scores.items()}
        scaled = {kind: (values - unit[kind][0]) / unit[kind][1] for kind, values in scores.items()}
        kl = kl_bound(k) if writer is patient else sequence_kl(writer, patient, prompts, n, seed, max_new_tokens).mean()
        different = [len(set(said[i : i + n])) / n for i in range(0, len(said), n)]
        answers[name] = said
        checked[name] = scaled["second opinion (sd)"].reshape(-1, n).mean(1)
        rows[name] = {**{kind: values.mean() for kind, values in scaled.items()}, "KL (nats)": float(kl),
                      "words": np.mean([len(text.split()) for text in said]),
                      "ended": float(pool.ended[best].double().mean()), "different": np.mean(different)}  # fmt: skip
    return Trial(pd.DataFrame.from_dict(rows, orient="index"), asked, answers, checked)
