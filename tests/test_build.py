"""The shipped patients are small and safe to load, and building them is reproducible."""

import pytest
import torch

from alignkit import worlds
from alignkit.errors import AlignkitError
from alignkit.lab.build import build_models, build_patient, make_tokenizer, pretrain
from alignkit.policy import MODELS, load_policy


@pytest.mark.parametrize("name", ["assistant", "arithmetic", "authors", "multitask", "shapes"])
def test_five_patients_are_shipped_small_and_without_pickle(name):
    folders = sorted(MODELS.glob(f"{name}-[0-9]"))
    assert [f.name for f in folders] == [f"{name}-{k}" for k in range(5)]
    files = [f for folder in folders for f in folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 4e6
    assert {f.suffix for f in files} <= {".json", ".safetensors"}


def test_sizes_differ_in_width_alone_and_are_shipped_small():
    """The large one is stored in half precision; both are single precision once they are loaded."""
    for size, (hidden, most) in {"small": (32, 0.25e6), "large": (112, 0.95e6)}.items():
        for k in range(5):
            files = list((MODELS / f"assistant-{size}-{k}").iterdir())
            assert sum(f.stat().st_size for f in files) <= most
            assert {f.suffix for f in files} <= {".json", ".safetensors"}
        policy, shipped = load_policy(f"assistant-{size}", patient=1), load_policy("assistant", patient=1)
        assert policy.name == f"assistant-{size}-1" and policy.model.dtype == torch.float32
        assert policy.tokenizer.get_vocab() == shipped.tokenizer.get_vocab()
        config, other = policy.model.config.to_dict(), shipped.model.config.to_dict()
        assert config["hidden_size"] == hidden
        assert all(config[name] == other[name] for name in ("num_hidden_layers", "num_attention_heads", "vocab_size"))


def test_an_unknown_patient_is_named_before_anything_is_trained():
    with pytest.raises(AlignkitError, match="world must be one of assistant, assistant-small, .* not 'assistant-huge'"):
        build_patient("assistant-huge", seed=0)


def test_all_shipped_models_together_are_small():
    assert sum(f.stat().st_size for f in MODELS.rglob("*") if f.is_file()) <= 20e6


def test_one_token_a_word(world):
    tokenizer = make_tokenizer(world.vocabulary(), 96)
    prompts, completions = map(list, zip(*world.corpus(200, seed=0), strict=True))
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and len(ids) == len(prompt.split()) + 1
        assert tokenizer.unk_token_id not in tokenizer(completion)["input_ids"]
        assert tokenizer.decode(ids[1:]) == prompt


@pytest.mark.parametrize("name", ["assistant", "arithmetic"])
def test_every_document_of_the_corpus_fits_the_context(name):
    longest = max(len(p.split()) + len(c.split()) + 2 for p, c in worlds.load(name).corpus(20_000, seed=1))
    assert longest <= load_policy(name).context


def test_pretraining_lowers_the_loss_and_depends_on_its_seed_only(world, tiny):
    documents = world.corpus(300, seed=0)
    losses = [pretrain(tiny.copy(), [(steps, documents)], seed) for steps, seed in
              ((3, 0), (3, 0), (3, 1), (60, 0))]  # fmt: skip
    assert losses[0] == losses[1] != losses[2] and losses[3][-1] < losses[0][-1] - 0.5


def test_build_models_writes_a_folder_a_seed(tmp_path, monkeypatch):
    monkeypatch.setattr("alignkit.lab.build.DOCUMENTS", 200)
    folders = build_models("assistant", seeds=(3, 4), out=tmp_path, steps=2)
    assert folders == [tmp_path / "assistant-3", tmp_path / "assistant-4"]
    assert [load_policy(f).name for f in folders] == ["assistant-3", "assistant-4"]
