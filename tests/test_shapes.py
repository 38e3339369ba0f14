"""Pictures and captions: the world's gold, a policy that sees, rewards that see or don't, and mDPO."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import finite_differences, weights_of
from datasets import Dataset

from alignkit import optimize, rewards, worlds
from alignkit.errors import AlignkitError, DataError
from alignkit.lab.build import build_patient, make_picture_policy
from alignkit.pictures import GRAY, load_picture_policy, with_images
from alignkit.policy import MODELS
from alignkit.worlds.shapes import KINDS, read

PICTURE = "red_circle_top_left+blue_cross_bottom_right.png"


@pytest.fixture(scope="module")
def shapes():
    return worlds.load("shapes")


@pytest.fixture(scope="module")
def seer():
    return load_picture_policy("shapes")


@pytest.fixture(scope="module")
def caption_pairs(shapes):
    """The ideal caption against one that names what is not there."""
    prompts = shapes.prompts("feedback")[:24]
    absent = [next(kind for kind in KINDS if kind not in shapes.things(p)) for p in prompts]
    return Dataset.from_dict({"prompt": prompts, "chosen": [shapes.ideal(p) for p in prompts],
                              "rejected": [shapes.caption([kind]) for kind in absent]})  # fmt: skip


# --- the world


@pytest.mark.parametrize(
    "caption, covered, grounded, fluent",
    [
        ("the picture shows a red circle and a blue cross .", 1.0, 0.0, 0.2),
        ("a red circle .", 0.5, 0.0, 0.0),
        ("A red circle, a blue cross.", 1.0, 0.0, 0.0),
        ("a red circle and a green square .", 0.5, -0.4, 0.0),
        ("a blue circle .", 0.0, -0.4, 0.0),
        ("a red circle and a red circle .", 0.5, 0.0, -0.2),
        ("a red circle and a blue cross", 1.0, 0.0, -0.2),  # not ended
        ("a red circle a blue cross .", 0.0, 0.0, -0.2),
        ("the picture shows .", 0.0, 0.0, -0.2),
        ("", 0.0, 0.0, -0.2),
        (".", 0.0, 0.0, -0.2),
        ("and and and .", 0.0, 0.0, -0.6),
    ],
)
def test_gold_by_hand(shapes, caption, covered, grounded, fluent):
    aspects = {name: values[0] for name, values in shapes.gold_aspects([PICTURE], [caption]).items()}
    assert aspects == pytest.approx({"covered": covered, "grounded": grounded, "fluent": fluent})


def test_nothing_cheap_beats_the_truth(shapes):
    ideal = shapes.ideal(PICTURE)
    tricks = ["", ".", " . ".join([ideal] * 3), ideal + " " + ideal, shapes.caption(list(KINDS), "i can see"),
              "i can see " + ideal, ideal.removesuffix(" .")]  # fmt: skip
    gold = shapes.gold([PICTURE] * (len(tricks) + 1), [ideal, *tricks])
    assert gold[0] == pytest.approx(1.2) and (gold[1:] < gold[0]).all()


def test_splits_are_disjoint_scenes_and_no_part_of_the_corpus(shapes):
    splits = {name: shapes.prompts(name) for name in ("feedback", "treatment", "seen", "test")}
    together = [p for prompts in splits.values() for p in prompts]
    assert len(set(together)) == len(together)
    assert not set(together) & {p for p, _ in shapes.corpus(2000, seed=0)}
    alike = {name: [len({c for c, _ in shapes.things(p)}) == 1 for p in prompts] for name, prompts in splits.items()}
    assert all(alike["test"]) and not any(alike["seen"] + alike["treatment"] + alike["feedback"])


def test_the_patient_shows_its_symptoms(shapes, seer):
    said = seer.rollout(shapes.prompts("seen")[:100], 2, seed=0)
    rates = {name: values.mean() for name, values in shapes.symptoms(said.prompts, said.completions).items()}
    assert 0.2 < rates["hallucinates"] < 0.6 and 0.2 < rates["terse"] < 0.6 and 0.2 < rates["misses"] < 0.85


@pytest.mark.parametrize("name", ["", "red_circle", "red_circle_top_left", "pink_circle_top_left.png",
                                  "red_circle_top_left+blue_cross_top_left.png"])  # fmt: skip
def test_what_is_no_picture_is_refused(shapes, name):
    with pytest.raises(AlignkitError, match="not a picture of world 'shapes'"):
        shapes.picture(name)


def test_pictures_are_drawn_alike_each_time_and_show_their_colors(shapes):
    first = shapes.picture(PICTURE)
    assert first.shape == (24, 24, 3) and first.dtype == np.uint8
    assert (first == worlds.shapes.ShapesWorld().picture(PICTURE)).all()
    red, background, blue = (first[y, x].astype(int) for y, x in ((6, 6), (2, 20), (18, 18)))
    assert red[0] > red[2] + 100 and blue[2] > blue[0] + 100 and background.min() > 180
    first[:] = 0  # a copy of one's own
    assert shapes.picture(PICTURE).any()


def test_the_pictures_are_frozen_with_the_world(shapes):
    drawn = b"".join(shapes.picture(p).tobytes() for s in ("feedback", "treatment") for p in shapes.prompts(s)[:50])
    digest = hashlib.sha256(drawn).hexdigest()[:16]
    assert (shapes.version, digest) == ("shapes-v1", "5edbd812b1789ad2"), "a changed world needs a new version"


def test_captions_of_the_corpus_are_read_back(shapes):
    for _, caption in shapes.corpus(300, seed=1):
        assert shapes.named(caption)
        whole = caption if caption.endswith(" .") else f"{caption} ."
        assert read(whole).garbled == 0
    assert read("there is a red circle .").framed and not read("a red circle .").framed


# --- a policy that sees


def test_five_patients_are_shipped_small_and_without_pickle():
    folders = [MODELS / f"shapes-{k}" for k in range(5)]
    files = [f for folder in folders for f in folder.rglob("*") if f.is_file()]
    assert all((folder / "config.json").is_file() for folder in folders)
    assert sum(f.stat().st_size for f in files) <= 3.5e6
    assert {f.suffix for f in files} <= {".json", ".safetensors"}


def test_the_pixels_matter_and_the_name_does_not(shapes, seer):
    prompts = shapes.prompts("seen")[:8]
    captions = [shapes.ideal(p) for p in prompts]
    batch = seer.encode(prompts, captions)
    assert not torch.allclose(seer.logits(batch), seer.logits(replace(batch, pixels=batch.pixels.flip(0))), atol=0.1)
    others = replace(batch, pixels=batch.pixels.roll(1, 0))
    own, swapped = (seer.token_logprobs(b).sum(1).mean() for b in (batch, others))
    assert own > swapped + 1
    same = seer.seeing(lambda name: shapes.picture(prompts[0]))
    assert len(set(same.sample(prompts[:3], temperature=0.0)[k][0] for k in range(3))) == 1


def test_scores_and_samples_do_not_depend_on_batches_or_padding(shapes, seer):
    prompts = shapes.prompts("seen")[:6]
    captions = [shapes.ideal(p) for p in prompts]
    together, mask = seer.logprobs(prompts, captions)
    for i in range(6):
        alone, _ = seer.logprobs(prompts[i : i + 1], captions[i : i + 1])
        assert torch.allclose(together[i][mask[i] > 0], alone[0], atol=1e-4)
    frugal = seer.copy()
    frugal.logit_budget = 200 * seer.vocabulary
    assert torch.allclose(together, frugal.logprobs(prompts, captions)[0], atol=1e-4)
    assert seer.sample(prompts, 3, seed=5, batch_size=4) == seer.sample(prompts, 3, seed=5)


def test_rows_keep_their_pixels(shapes, seer):
    prompts = shapes.prompts("seen")[:4]
    batch = seer.encode(prompts, ["a red circle .", "a red circle and a blue cross .", "", "a red circle ."])
    part = batch.rows(torch.tensor([2, 0]))
    assert (part.pixels[0].numpy() == shapes.picture(prompts[2])).all()
    assert (part.pixels[1].numpy() == shapes.picture(prompts[0])).all()
    assert part.mask.shape[1] == 5
    assert (seer.rollout(prompts, 2).batch.pixels[3].numpy() == shapes.picture(prompts[1])).all()


def test_save_and_load_give_the_same_policy(shapes, seer, tmp_path):
    again = load_picture_policy(seer.save(tmp_path / "mine"))
    prompts = shapes.prompts("seen")[:3]
    assert again.sample(prompts, 2) == seer.sample(prompts, 2)
    copied = seer.copy()
    assert (weights_of(copied) == weights_of(seer)).all() and copied.look is seer.look


def test_building_depends_on_its_seed_only(monkeypatch):
    monkeypatch.setattr("alignkit.lab.build.CAPTIONS", 100)
    one, two, other = (weights_of(build_patient("shapes", s, steps=3)) for s in (0, 0, 1))
    assert (one == two).all() and not (one == other).all()


def test_bad_input_to_a_policy_that_sees_is_named(seer):
    with pytest.raises(AlignkitError, match="Give 'shapes', or a folder"):
        load_picture_policy("no-such-thing")
    with pytest.raises(AlignkitError, match="named by text, not by list"):
        seer.pixels([{"role": "user", "content": "hello"}])
    with pytest.raises(AlignkitError, match="has shape \\(8, 8, 3\\).*resize it in `look`"):
        seer.seeing(lambda name: np.zeros((8, 8, 3), dtype=np.uint8)).sample(["x"])


def test_the_token_of_a_picture_is_never_written(shapes, seer):
    batch = seer.encode(shapes.prompts("seen")[:2], ["a red circle ."] * 2)
    assert (seer.logits(batch).softmax(-1)[..., seer.model.config.image_token_id] == 0).all()
    with pytest.raises(AlignkitError, match="can't hold the place of a picture"):
        seer.logprobs(shapes.prompts("seen")[:1], ["a <image> ."])


def test_the_hub_format_holds_the_pictures(shapes, caption_pairs):
    data = with_images(caption_pairs.select(range(2)))
    assert data.column_names == ["prompt", "chosen", "rejected", "images"]
    (image,) = data[1]["images"]
    assert (np.asarray(image) == shapes.picture(data[1]["prompt"])).all()
    with pytest.raises(DataError, match="column 'prompt'"):
        with_images(data.remove_columns(["prompt", "images"]))


# --- rewards


def test_a_blind_reward_says_the_same_whatever_the_picture_and_one_that_sees_does_not(shapes, seer):
    prompts = shapes.prompts("seen")[:6]
    blind, sees = (rewards.PictureReward.new(backbone) for backbone in (seer.blind(), seer))
    said = ["the picture shows a red circle ."] * 6
    assert len(set(blind(prompts, said).scores.round(6))) == 1
    assert len(set(sees(prompts, said).scores.round(6))) > 1
    assert (seer.blind().look("anything") == GRAY).all()


def test_a_reward_that_sees_is_fit_saved_and_loaded(caption_pairs, seer, tmp_path):
    reward = rewards.PictureReward.fit(caption_pairs, seer, epochs=8, batch_size=8, progress=False)
    chosen, rejected = rewards.score_pairs(reward, caption_pairs)
    assert (chosen > rejected).mean() > 0.8
    again = rewards.PictureReward.load(reward.save(tmp_path / "reward"))
    assert np.allclose(rewards.score_pairs(again, caption_pairs)[0], chosen, atol=1e-5)
    with pytest.raises(AlignkitError, match="needs a backbone that sees"):
        rewards.PictureReward.new(object())
    with pytest.raises(AlignkitError, match="could not load a reward model"):
        rewards.PictureReward.load(tmp_path)


def test_the_grounded_rule_by_hand(shapes):
    exact = rewards.Grounded(shapes.things, shapes.named, credit=1.0, penalty=0.5)
    said = exact([PICTURE] * 3, ["a red circle and a green square .", shapes.ideal(PICTURE), ""])
    assert said.scores.tolist() == [0.0, 1.0, 0.0] and said.aspects["grounded"].tolist() == [-0.5, 0, 0]
    with pytest.raises(AlignkitError, match="Grounded: penalty must be at least 0"):
        rewards.Grounded(shapes.things, shapes.named, penalty=-1)


def test_a_detector_errs_as_often_as_it_says_and_always_alike(shapes):
    prompts = shapes.prompts("feedback")
    find = rewards.detector(shapes, miss=0.2, false_alarm=0.3, seed=1)
    found, there = [find(p) for p in prompts], [shapes.things(p) for p in prompts]
    assert found == [find(p) for p in prompts]
    missed = sum(len(t - f) for t, f in zip(there, found, strict=True)) / sum(map(len, there))
    alarms = np.mean([bool(f - t) for t, f in zip(there, found, strict=True)])
    assert 0.15 < missed < 0.25 and 0.15 < alarms < 0.35
    with pytest.raises(AlignkitError, match="miss must be between 0 and 1"):
        rewards.detector(shapes, miss=2)


# --- mDPO


def test_mdpo_loss_at_its_limits():
    parts = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    won, lost, unseen, ref_won, ref_lost, ref_unseen = parts
    dpo = optimize.dpo_loss(won, lost, ref_won, ref_lost, 0.3)
    assert torch.allclose(optimize.mdpo_loss(*parts, beta=0.3, conditional=0, anchor=0), dpo)
    same = optimize.conditional_loss(won, ref_won, won, ref_won, 0.3)  # the picture makes no difference
    assert torch.allclose(same, torch.full_like(same, np.log(2)))
    assert torch.allclose(optimize.anchor_loss(ref_won, ref_won, 0.3), torch.full_like(won, np.log(2)))
    assert (optimize.anchor_loss(won, ref_won, 0.3, delta=1.0) > optimize.anchor_loss(won, ref_won, 0.3)).all()


def test_each_term_of_mdpo_pulls_the_chosen_caption_up():
    """Alone: in the sum, DPO's slope could hide a term of the wrong sign."""
    won, ref, unseen, ref_unseen = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    won.requires_grad_(), unseen.requires_grad_()
    (up,) = torch.autograd.grad(optimize.anchor_loss(won, ref, 0.3).sum(), won)
    assert (up < 0).all()
    up, down = torch.autograd.grad(optimize.conditional_loss(won, ref, unseen, ref_unseen, 0.3).sum(), (won, unseen))
    assert (up < 0).all() and (down > 0).all()


def test_mdpo_loss_has_the_slope_it_should():
    parts = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for k in range(3):
        def loss(x, k=k):
            return optimize.mdpo_loss(*(x if i == k else p for i, p in enumerate(parts)), beta=0.7, delta=0.2)

        x = parts[k].clone().requires_grad_()
        slope = torch.autograd.grad(loss(x).sum(), x)[0]
        assert torch.allclose(slope, finite_differences(loss, parts[k]), atol=1e-6)
        assert (slope < 0).all() if k == 0 else (slope > 0).all()


def test_without_its_own_terms_mdpo_is_dpo(seer, caption_pairs):
    options = dict(epochs=1, batch_size=8, learning_rate=1e-3, seed=3, progress=False)
    plain = optimize.dpo(seer, caption_pairs, beta=0.2, **options)
    limit = optimize.mdpo(seer, caption_pairs, beta=0.2, conditional=0, anchor=0, **options)
    assert torch.allclose(weights_of(plain), weights_of(limit), atol=1e-6)
    full = optimize.mdpo(seer, caption_pairs, beta=0.2, **options)
    last = full.history.iloc[-1]  # what the picture is worth to the chosen caption
    assert last["chosen_log_ratio"] - last["corrupted_log_ratio"] > limit.history["chosen_log_ratio"].iloc[-1]
    assert (weights_of(seer) == weights_of(load_picture_policy("shapes"))).all()


def test_crops_are_small_windows_of_the_picture(seer):
    pixels = torch.arange(24 * 24 * 3).view(1, 24, 24, 3).repeat(50, 1, 1, 1)
    cut = optimize.crop(pixels, keep=0.2, seed=1)
    assert cut.shape == pixels.shape and not (cut == pixels).all()
    shown = [len(set(one[..., 0].flatten().tolist())) / 24**2 for one in cut]
    assert max(shown) <= 0.3 and len({round(s, 3) for s in shown}) > 5
    assert (cut == optimize.crop(pixels, keep=0.2, seed=1)).all()
    with pytest.raises(AlignkitError, match="keep must be above 0"):
        optimize.crop(pixels, keep=0)


def test_bad_input_to_mdpo_is_named(seer, caption_pairs, patient):
    with pytest.raises(AlignkitError, match="needs a policy that sees"):
        optimize.mdpo(patient, caption_pairs)
    with pytest.raises(AlignkitError, match="beta must be a finite number above 0"):
        optimize.mdpo(seer, caption_pairs, beta=0)


def test_rl_carries_the_pictures_along(shapes, seer):
    exact = rewards.Grounded(shapes.things, shapes.named)
    treated = optimize.rloo(seer, shapes.prompts("treatment"), exact, steps=2, prompts_per_step=2, group_size=4,
                            minibatches=2, progress=False)  # fmt: skip
    assert not (weights_of(treated) == weights_of(seer)).all()
    assert make_picture_policy(["a"], 0).patches == 4
