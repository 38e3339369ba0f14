"""The worlds are frozen: what evidence was recorded on must not change under the same version."""

import hashlib

import pytest

from alignkit import worlds

# {version: digest of its prompts, 500 documents of its corpus, and their gold by aspect}
FROZEN = {
    "assistant-v1": "c05601e045c522c2",
    "arithmetic-v1": "e59f50c7f86521b0",
    "shapes-v1": "51ab9da0186015fb",
}


def digest(world) -> str:
    prompts = [p for split in ("feedback", "treatment", "seen", "test") for p in world.prompts(split)]
    corpus = world.corpus(500, seed=0)
    aspects = world.gold_aspects(*map(list, zip(*corpus, strict=True)))
    values = [[f"{value:.9f}" for value in column] for column in aspects.values()]
    return hashlib.sha256(repr((prompts, corpus, list(aspects), world.weights, values)).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", ["assistant", "arithmetic", "shapes"])
def test_a_world_is_what_its_version_says(name):
    world = worlds.load(name)
    assert digest(world) == FROZEN.get(world.version), "a changed world needs a new version: it voids recorded evidence"
