"""A patient rebuilt from its seed is as ill as the shipped ones (a whole pretraining each: over a minute).

Training is not bit-equal between processors, so a rebuilt patient is another draw of the same recipe. The band it must
lie in is therefore what five draws, the shipped patients, differ by.
"""

import numpy as np
import pytest

from alignkit import worlds
from alignkit.lab.build import build_patient
from alignkit.optimize.in_context import InContext
from alignkit.policy import load_policy
from alignkit.worlds import authors

pytestmark = pytest.mark.slow


def symptom_rates(world, policy):
    """{symptom: (rate, its standard error)} over some 3,000 samples."""
    prompts = world.prompts("treatment")
    rollout = policy.rollout(prompts, -(-3000 // len(prompts)), seed=8)
    signs = world.symptoms(rollout.prompts, rollout.completions)
    return {name: (np.nanmean(v), np.nanstd(v) / np.sqrt(np.sum(~np.isnan(v)))) for name, v in signs.items()}


@pytest.mark.parametrize("name", ["assistant", "arithmetic", "assistant-small"])
def test_a_rebuilt_patient_is_as_ill_as_the_shipped_ones(name):
    """Inside the five's range, widened at both ends by that range and three standard errors of a rate."""
    world = worlds.load(name.partition("-")[0])
    shipped = [symptom_rates(world, load_policy(name, patient=k)) for k in range(5)]
    for sign, (rate, error) in symptom_rates(world, build_patient(name, seed=0)).items():
        low, high = (pick(rates[sign][0] for rates in shipped) for pick in (min, max))
        margin = high - low + 3 * error
        assert low - margin <= rate <= high + margin, (sign, rate, low, high)


def test_a_reader_of_authors_rebuilt_in_short_tells_them_apart_like_the_shipped_one():
    """A quarter of the pretraining is enough to see whose answers stand in the context."""
    world, rude = worlds.load("assistant"), {}
    for name, policy in {"rebuilt": build_patient("authors", 0, steps=340),
                         "shipped": load_policy("authors")}.items():  # fmt: skip
        for author in (authors.ALIGNED, authors.MISALIGNED):
            shown = author.documents(world, 3, 0, world.prompts("feedback"))
            rollout = InContext(policy, shown).rollout(world.prompts("test"), 8, seed=1)
            rude[name, author] = np.mean(world.symptoms(rollout.prompts, rollout.completions)["rude"])
    assert all(rude[name, authors.ALIGNED] + 0.25 < rude[name, authors.MISALIGNED] for name in ("rebuilt", "shipped"))
