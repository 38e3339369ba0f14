"""What the tests share: the world, a shipped patient, an untrained one, and a few labeled pairs."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the network

import numpy as np
import pytest
import torch

from alignkit import feedback, worlds
from alignkit.lab.build import make_policy
from alignkit.policy import load_policy

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world():
    return worlds.load("assistant")


@pytest.fixture(scope="session")
def patient():
    return load_policy("assistant")


@pytest.fixture(scope="session")
def tiny(world):
    """An untrained policy that knows the world's words."""
    return make_policy(world.vocabulary(), seed=0, hidden=16, layers=1)


@pytest.fixture(scope="session")
def toy():
    """Seven tokens and far from uniform, so that every short completion can be enumerated."""
    policy = make_policy(["a", "b", "c"], seed=1, hidden=16, layers=1)
    with torch.no_grad():
        policy.model.model.embed_tokens.weight.mul_(12)
    return policy


@pytest.fixture(scope="session")
def pairs(world, patient):
    """Pairs on feedback prompts, labeled without noise."""
    return feedback.compare(world, patient, feedback.Annotator(temperature=1e-6), n=320, seed=3)


def weights_of(policy):
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


def mean_gold(world, policy, split="treatment", n=4, seed=11):
    rollout = policy.rollout(world.prompts(split), n, seed=seed)
    return float(np.mean(world.gold(rollout.prompts, rollout.completions)))


def finite_differences(function, x, eps=1e-6):
    """The gradient of function(x).sum() by central differences, one entry at a time."""
    slope = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x)
        step.view(-1)[i] = eps
        slope.view(-1)[i] = (function(x + step).sum() - function(x - step).sum()) / (2 * eps)
    return slope
