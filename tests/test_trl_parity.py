"""Our losses against TRL's own code: the same model and the same texts must give the same loss and gradient.

TRL's side is its trainers: they tokenize, collate and compute. Ours is one step of the public function, whose loss is
in the history and whose gradient a callback keeps. Where we differ from TRL on purpose, the test says how.
"""

import dataclasses
import types

import numpy as np
import pytest
import torch
from conftest import weights_of
from datasets import Dataset

from alignkit import optimize, rewards
from alignkit.optimize import advantages, losses, preference
from alignkit.optimize.methods import METHODS
from alignkit.optimize.rl import policy_gradient
from alignkit.policy import load_policy
from alignkit.training import summed_logprobs

trl = pytest.importorskip("trl")
cpo = pytest.importorskip("trl.experimental.cpo")
orpo = pytest.importorskip("trl.experimental.orpo")

BETA, TOLERANCE = 0.3, 1e-5


def keep_gradient(step, learner, row):
    """A callback of our loop, which leaves no gradients behind."""
    learner.gradient = gradient_of(learner.model)


ONE_STEP = {"epochs": 1, "learning_rate": 1e-6, "progress": False, "callback": keep_gradient}


# --- the two sides


@pytest.fixture(scope="module")
def policy():
    """Not the reference: its log-ratios are far from 0."""
    return load_policy("assistant", patient=1)


@pytest.fixture(scope="module")
def few(pairs):
    """Sixteen pairs with sides of different lengths."""
    return pairs.select(range(16)).select_columns(["prompt", "chosen", "rejected"])


@pytest.fixture(autouse=True)
def unclipped(monkeypatch):
    """Gradients as they come, so that a wrong scale cannot hide behind the clipping of their norm."""
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.ones(()))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return {
        "output_dir": str(tmp_path_factory.mktemp("trl")),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_length": None,
    }


def in_trl_format(data):
    """TRL joins prompt and completion as they are, we put a space between them."""
    return data.map(lambda row: {side: f" {row[side]}" for side in ("chosen", "rejected", "completion") if side in row})


def batch_of(trainer, rows=None):
    data = trainer.train_dataset
    return trainer.data_collator([data[i] for i in range(len(data) if rows is None else rows)])


def gradient_of(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def of_trl(trainer, batch):
    """TRL's loss of a batch, and the gradient in all weights."""
    trainer.model.eval()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.item(), gradient_of(trainer.model)


def of_ours(treated):
    """Loss and gradient of the one step that was made."""
    assert len(treated.history) == 1
    assert all(p.grad is None for p in treated.model.parameters())
    return treated.history["loss"][0], treated.gradient


def distance(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def same(ours, theirs):
    assert ours[0] == pytest.approx(theirs[0], rel=TOLERANCE, abs=TOLERANCE)
    assert theirs[1].norm() > 1e-3  # there is something to agree on
    assert distance(ours[1], theirs[1]) < TOLERANCE


# --- DPO and its kin


@pytest.fixture(scope="module")
def dpo_trainer(policy, patient, few, settings):
    config = trl.DPOConfig(beta=BETA, **settings)
    return trl.DPOTrainer(
        policy.copy().model,
        ref_model=patient.copy().model,
        args=config,
        train_dataset=in_trl_format(few),
        processing_class=policy.tokenizer,
    )


def on_means(chosen_mean, rejected_mean, ref_chosen, ref_rejected, chosen_length, rejected_length):
    refs = ref_chosen / chosen_length, ref_rejected / rejected_length
    return losses.ipo_loss(chosen_mean, rejected_mean, *refs, BETA)


def hard_sppo(chosen, rejected, ref_chosen, ref_rejected):
    sides = (chosen - ref_chosen, torch.ones(())), (rejected - ref_rejected, torch.zeros(()))
    return sum(losses.sppo_loss(log_ratio, win, 1 / BETA) for log_ratio, win in sides)


DPO_KIN = {
    "sigmoid": lambda *a, **o: optimize.dpo(*a, beta=BETA, **o),
    "robust": lambda *a, **o: optimize.robust_dpo(*a, beta=BETA, flip=0.2, **o),
    "hinge": lambda *a, **o: optimize.hinge(*a, beta=BETA, **o),
    "apo_zero": lambda *a, **o: optimize.apo_zero(*a, beta=BETA, **o),
    "apo_down": lambda *a, **o: optimize.apo_down(*a, beta=BETA, **o),
    "ipo": lambda *a, **o: optimize.from_pairs(*a, on_means, "ipo on means", **o),
    "sppo_hard": lambda *a, **o: optimize.from_pairs(*a, hard_sppo, "sppo", **o),
}


def ask(trainer, monkeypatch, **changes):
    for name, value in changes.items():
        assert hasattr(trainer, name)
        monkeypatch.setattr(trainer, name, value)


@pytest.mark.parametrize("kind", DPO_KIN)
def test_dpo_and_its_kin(kind, dpo_trainer, policy, patient, few, monkeypatch):
    ask(dpo_trainer, monkeypatch, loss_types=[kind], label_smoothing=0.2)
    treated = DPO_KIN[kind](policy, few, reference=patient, batch_size=len(few), **ONE_STEP)
    same(of_ours(treated), of_trl(dpo_trainer, batch_of(dpo_trainer)))


def test_conservative_dpo(dpo_trainer, policy, patient, few, monkeypatch):
    """TRL's DPO has no smoothing any more; its loss AOT has, and of a single pair AOT is DPO."""
    ask(dpo_trainer, monkeypatch, loss_types=["aot"], label_smoothing=0.2)
    one = few.select([0])
    treated = optimize.dpo(policy, one, beta=BETA, smoothing=0.2, reference=patient, batch_size=1, **ONE_STEP)
    same(of_ours(treated), of_trl(dpo_trainer, batch_of(dpo_trainer, rows=1)))


def test_ipo_is_on_sums_where_trl_is_on_means(dpo_trainer, policy, patient, few, monkeypatch):
    """The paper's equation 17 is about whole completions; TRL divides by lengths, and so do we if asked to."""
    ask(dpo_trainer, monkeypatch, loss_types=["ipo"])
    treated = optimize.ipo(policy, few, beta=BETA, reference=patient, batch_size=len(few), **ONE_STEP)
    assert abs(of_ours(treated)[0] - of_trl(dpo_trainer, batch_of(dpo_trainer))[0]) > 0.1
    # TRL's formula in its CPO trainer divides nothing
    both = rewards.data.encode_pairs(policy, few)
    chosen, rejected = (summed_logprobs(policy, both) - summed_logprobs(patient, both)).chunk(2)
    theirs = pure(cpo.CPOTrainer, "cpo_loss", loss_type="ipo")(chosen, rejected)[0]
    assert treated.history["loss"][0] == pytest.approx(theirs.mean().item(), rel=TOLERANCE)


# --- losses without a reference


def pure(trainer, method, **fields):
    """A trainer's method that needs no more of the trainer than a few settings."""
    fields = {"beta": BETA, "alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.5, **fields}
    stand_in = types.SimpleNamespace(accelerator=types.SimpleNamespace(device="cpu"), **fields)
    return types.MethodType(getattr(trainer, method), stand_in)


@pytest.fixture(scope="module")
def cpo_trainer(policy, few, settings):
    config = cpo.CPOConfig(beta=BETA, **{**settings, "max_length": 96})
    return cpo.CPOTrainer(
        policy.copy().model, args=config, train_dataset=in_trl_format(few), processing_class=policy.tokenizer
    )


def test_cpo(cpo_trainer, policy, few, monkeypatch):
    ask(cpo_trainer, monkeypatch, loss_type="sigmoid", cpo_alpha=0.7)
    treated = optimize.cpo(policy, few, beta=BETA, nll=0.7, batch_size=len(few), **ONE_STEP)
    same(of_ours(treated), of_trl(cpo_trainer, batch_of(cpo_trainer)))


def test_simpo(cpo_trainer, policy, few, monkeypatch):
    """In CPO's trainer; both sides are means, gamma is outside of beta's brackets in both."""
    ask(cpo_trainer, monkeypatch, loss_type="simpo", cpo_alpha=0.0, beta=2.0)
    monkeypatch.setattr(cpo_trainer, "simpo_gamma", 0.8, raising=False)  # set by TRL only if asked for SimPO
    treated = optimize.simpo(policy, few, beta=2.0, gamma=0.8, batch_size=len(few), **ONE_STEP)
    same(of_ours(treated), of_trl(cpo_trainer, batch_of(cpo_trainer)))


def test_orpo_reads_the_likelihood_of_completions_where_trl_reads_prompts_as_well(policy, few, settings):
    """The odds are the same. The supervised part is the mean over the chosen side's tokens (as in SFT); TRL's runs over
    the prompt's tokens, too."""
    config = orpo.ORPOConfig(beta=0.4, **{**settings, "max_length": 96})
    trainer = orpo.ORPOTrainer(
        policy.copy().model, args=config, train_dataset=in_trl_format(few), processing_class=policy.tokenizer
    )
    batch = batch_of(trainer)
    treated = optimize.orpo(policy, few, weight=0.4, batch_size=len(few), **ONE_STEP)
    value, gradient = of_ours(treated)
    theirs, their_gradient = of_trl(trainer, batch)
    assert abs(value - theirs) > 0.02

    forward = trainer.concatenated_forward  # their loss, with our supervised part in place of theirs

    def with_our_part(model, inputs):
        chosen, rejected, *logits, _ = forward(model, inputs)
        length = (inputs["chosen_labels"][:, 1:] != -100).sum(1)
        return chosen, rejected, *logits, -(chosen * length).sum() / length.sum()

    trainer.concatenated_forward = with_our_part
    same((value, gradient), of_trl(trainer, batch))
    assert distance(their_gradient, gradient) > 0.1


@pytest.mark.parametrize("far", [0.0, 5.0, 40.0])
def test_pair_losses_far_from_the_reference(far):
    """The functions alone, where margins are large."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randn(64, generator=generator).sub(2).mul(1 + far) for _ in range(2))
    for ours, theirs in [
        (lambda c, r: losses.cpo_loss(c, r, BETA), pure(cpo.CPOTrainer, "cpo_loss", loss_type="sigmoid")),
        (lambda c, r: losses.simpo_loss(c, r, BETA, 0.5), pure(cpo.CPOTrainer, "cpo_loss", loss_type="simpo")),
        (
            lambda c, r: losses.hinge_loss(c, r, torch.zeros_like(c), torch.zeros_like(r), BETA),
            pure(cpo.CPOTrainer, "cpo_loss", loss_type="hinge"),
        ),
        (
            lambda c, r: -losses.orpo_loss(-c.abs() - 0.01, -r.abs() - 0.01),
            lambda c, r: pure(orpo.ORPOTrainer, "odds_ratio_loss", beta=1.0)(-c.abs() - 0.01, -r.abs() - 0.01),
        ),
    ]:
        results = []
        for function in (ours, theirs):
            inputs = [side.clone().requires_grad_() for side in (chosen, rejected)]
            out = function(*inputs)
            out = out if isinstance(out, torch.Tensor) else out[0]
            out.sum().backward()
            results.append([out.detach(), *(side.grad for side in inputs)])
        for mine, their in zip(*results, strict=True):
            torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-5)


# --- KTO


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.6)])
@pytest.mark.parametrize("swapped", [False, True])
def test_kto(swapped, weights, policy, patient, few, settings, monkeypatch):
    """Desirable and undesirable completions. The reference point comes from completions of other rows: TRL takes the
    row before, we draw one with another prompt, and here are made to take the row before as well."""
    rows = Dataset.from_dict({
        "prompt": few["prompt"][:] * 2,
        "completion": few["chosen"][:] + few["rejected"][:],
        "label": [True] * len(few) + [False] * len(few),
    }).shuffle(seed=1)  # fmt: skip
    learner, reference = (patient, policy) if swapped else (policy, patient)
    config = trl.KTOConfig(
        beta=BETA, desirable_weight=weights[0], undesirable_weight=weights[1], per_device_train_batch_size=len(rows),
        **settings,
    )  # fmt: skip
    trainer = trl.KTOTrainer(
        learner.copy().model, ref_model=reference.copy().model, args=config, train_dataset=in_trl_format(rows),
        processing_class=policy.tokenizer,
    )  # fmt: skip
    monkeypatch.setattr(preference, "mismatched", lambda prompts, seed: np.roll(np.arange(len(prompts)), 1))
    treated = optimize.kto(learner, rows, BETA, weights, reference=reference, batch_size=len(rows), **ONE_STEP)
    same(of_ours(treated), of_trl(trainer, batch_of(trainer)))
    assert trainer._metrics["eval"]["kl"] == pytest.approx([treated.history["kl"][0]], rel=1e-4, abs=1e-5)


# --- reward modeling


@pytest.mark.parametrize("margin", [None, "margin"])
def test_reward_modeling(margin, policy, few, settings):
    """The score is read off the last token, end-of-sequence, as TRL does it."""
    data = few.add_column("margin", [0.1 * i for i in range(len(few))]) if margin else few
    reward = rewards.BradleyTerry.fit(data, policy, margin=margin, pooling="last", seed=5, batch_size=len(few),
                                      **ONE_STEP)  # fmt: skip
    fresh = rewards.BradleyTerry.new(policy, seed=5, pooling="last")
    trainer = trl.RewardTrainer(
        fresh.model, trl.RewardConfig(**settings), train_dataset=in_trl_format(data), processing_class=policy.tokenizer
    )
    same(of_ours(reward), of_trl(trainer, batch_of(trainer)))


# --- policy gradients

GROUP, LIMIT = 4, 24


@pytest.fixture(scope="module")
def gold(world):
    return rewards.GoldReward(world)


@pytest.fixture(scope="module")
def online(policy, patient, world, gold, settings):
    """TRL's online trainers; they load their reference by the model's name.

    GRPO is without TRL's correction of the KL: see `test_kl_is_not_weighted_where_trl_weights_it`.
    """
    options = {k: v for k, v in settings.items() if k != "max_length"}

    def new(trainer, config):
        model = policy.copy().model
        model.config._name_or_path = patient.model.config._name_or_path
        args = config(
            beta=BETA, num_generations=GROUP, max_completion_length=LIMIT, per_device_train_batch_size=4 * GROUP,
            **options,
        )  # fmt: skip
        return trainer(model, reward_funcs=rewards.to_trl(gold), args=args, processing_class=policy.tokenizer,
                       train_dataset=Dataset.from_dict({"prompt": world.prompts("treatment")}))  # fmt: skip

    made = {"rloo": new(trl.RLOOTrainer, trl.RLOOConfig), "grpo": new(trl.GRPOTrainer, trl.GRPOConfig)}
    made["grpo"].args.use_bias_correction_kl = False
    for trainer in made.values():
        assert distance(weights_of(types.SimpleNamespace(model=trainer.ref_model)), weights_of(patient)) == 0
    return made


@pytest.fixture(scope="module")
def rollout(policy, world):
    """Completions of which some are cut off."""
    out = policy.rollout(world.prompts("treatment")[:4], GROUP, seed=3, max_new_tokens=LIMIT)
    assert 0 < out.ended.sum() < len(out.ended)
    return out


def tokens_of(rollout):
    """Prompts and completions as lists of token ids, the way TRL's generation returns them."""
    batch = rollout.batch
    width = batch.ids.shape[1] - batch.completion.shape[1]
    prompts = [row[keep > 0].tolist() for row, keep in zip(batch.ids[:, :width], batch.attention, strict=True)
               for keep in [keep[:width]]]  # fmt: skip
    return prompts, [row[keep > 0].tolist() for row, keep in zip(batch.completion, batch.mask, strict=True)]


def scored(trainer, rollout, monkeypatch):
    """What TRL makes of our completions: its padding, log-probabilities, rewards and advantages."""
    prompts, completions = tokens_of(rollout)
    rest = (prompts, completions, rollout.completions)
    if isinstance(trainer, trl.GRPOTrainer):
        rest = (prompts, completions, None, rollout.completions, None, {}, None, None)
    monkeypatch.setattr(trainer, "_generate", lambda _: rest)
    monkeypatch.setattr(trainer, "num_generations_eval", GROUP)
    trainer.model.eval()
    return trainer._generate_and_score_completions([{"prompt": p} for p in rollout.prompts])


def step_of_ours(name, policy, patient, world, gold, monkeypatch):
    """One update by the public loop: what it sampled, its advantages (N, T), and the gradient."""
    seen, method = {}, METHODS[name]

    def advantages_of(experience, beta):
        seen.update(rollout=experience.rollout, advantage=method.advantages(experience, beta))
        return seen["advantage"]

    recording = dataclasses.replace(method, advantages=advantages_of)
    treated = policy_gradient(
        policy, world.prompts("treatment"), gold, recording, beta=BETA, steps=1, prompts_per_step=4, group_size=GROUP,
        max_new_tokens=LIMIT, reference=patient, learning_rate=1e-6, progress=False,
    )  # fmt: skip
    return seen["rollout"], seen["advantage"], gradient_of(treated.model)


@pytest.mark.parametrize(("name", "trainer", "changes"), [
    ("rloo", "rloo", {}),
    ("grpo", "grpo", {"loss_type": "grpo", "scale_rewards": "group"}),
    ("dr_grpo", "grpo", {"loss_type": "dr_grpo", "scale_rewards": "none"}),
])  # fmt: skip
def test_a_step_of_policy_gradient(name, trainer, changes, online, policy, patient, world, gold, monkeypatch):
    """Sampled by us, judged and learned from by both: the same advantages and the same gradient."""
    trainer = online[trainer]
    ask(trainer, monkeypatch, **changes)
    rollout, advantage, gradient = step_of_ours(name, policy, patient, world, gold, monkeypatch)
    inputs = scored(trainer, rollout, monkeypatch)
    mask = rollout.batch.mask
    torch.testing.assert_close(advantage, inputs["advantages"][:, None] * mask, rtol=1e-4, atol=1e-5)
    assert inputs["advantages"].std() > 0.1
    _, theirs = of_trl(trainer, inputs)
    assert distance(gradient, theirs) < TOLERANCE


@pytest.fixture
def off_policy(rollout, policy, patient):
    """Two log-probabilities of each token that are not the policy's: as if it had moved on, and the reference's."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        old = policy.token_logprobs(rollout.batch)
        ref = patient.token_logprobs(rollout.batch)
    old = (old + 0.4 * torch.randn(old.shape, generator=generator)) * rollout.batch.mask
    advantage = torch.randn(len(old), generator=generator)
    return old, ref, advantage


def ours_and_theirs(trainer, policy, rollout, off_policy, unit, weighted_kl=0.0, **options):
    old, ref, advantage = off_policy
    batch, treated = rollout.batch, policy.copy()
    mask, width = batch.mask, batch.ids.shape[1] - batch.completion.shape[1]
    logp = treated.token_logprobs(batch)
    per_row = losses.policy_loss(logp, old, ref, mask, advantage[:, None] * mask, unit, **options)
    if weighted_kl:  # TRL's
        weight = losses.log_ratio(logp, old, mask, options["ratio"]).exp()
        per_row = per_row + weighted_kl * (weight * losses.kl_estimate(logp, ref) * mask).sum(1) / unit
    per_row.mean().backward()
    inputs = {
        "prompt_ids": batch.ids[:, :width], "prompt_mask": batch.attention[:, :width],
        "completion_ids": batch.completion, "completion_mask": mask, "advantages": advantage,
        "old_per_token_logps": old, "old_logps": old.sum(1), "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    return (per_row.mean().item(), gradient_of(treated.model)), of_trl(trainer, inputs)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_grpo_losses_off_policy(kind, level, online, policy, rollout, off_policy, monkeypatch):
    """Clipped (the upper bound apart from the lower), with k3 in the loss."""
    ask(online["grpo"], monkeypatch, loss_type=kind, importance_sampling_level=level, beta=0.3, epsilon_low=0.1,
        epsilon_high=0.15, max_completion_length=LIMIT)  # fmt: skip
    mask = rollout.batch.mask
    everywhere = mask.sum() / len(mask)
    unit = {"grpo": mask.sum(1), "bnpo": everywhere, "dapo": everywhere, "dr_grpo": LIMIT}[kind]
    same(*ours_and_theirs(online["grpo"], policy, rollout, off_policy, unit, ratio=level, clip=0.1, clip_high=0.15,
                          beta=0.3))  # fmt: skip


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_kl_is_not_weighted_where_trl_weights_it(level, online, policy, rollout, off_policy, monkeypatch):
    """GRPO's equation 3 adds k3 as it is. TRL by default multiplies it with the importance ratio (DeepSeek-V3.2,
    2512.02556), which changes the gradient even on policy; `kl="reward"` is our way to the KL's own gradient."""
    assert {field.name: field.default for field in dataclasses.fields(trl.GRPOConfig)}["use_bias_correction_kl"]
    monkeypatch.setattr(online["grpo"].args, "use_bias_correction_kl", True)
    ask(online["grpo"], monkeypatch, loss_type="grpo", importance_sampling_level=level, beta=0.3, epsilon_low=0.2,
        epsilon_high=0.2)  # fmt: skip
    common = online["grpo"], policy, rollout, off_policy, rollout.batch.mask.sum(1)
    ours, theirs = ours_and_theirs(*common, ratio=level, clip=0.2, beta=0.3)
    assert distance(ours[1], theirs[1]) > 0.01
    same(*ours_and_theirs(*common, ratio=level, clip=0.2, weighted_kl=0.3))


def test_rloo_loss_off_policy(online, policy, rollout, off_policy, monkeypatch):
    """One ratio for the whole completion."""
    ask(online["rloo"], monkeypatch, epsilon_low=0.2, epsilon_high=0.3)
    unit = rollout.batch.mask.sum(1)
    same(*ours_and_theirs(online["rloo"], policy, rollout, off_policy, unit, ratio="completion", clip=0.2,
                          clip_high=0.3))  # fmt: skip


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_advantages_of_grpo(scale, online, rollout, gold, monkeypatch):
    """TRL's "batch" is our centered advantage over the deviation of all rewards; it is no method of ours."""
    ask(online["grpo"], monkeypatch, scale_rewards=scale, beta=0.0)
    theirs = scored(online["grpo"], rollout, monkeypatch)["advantages"].view(-1, GROUP)
    scores = torch.from_numpy(gold(rollout.prompts, rollout.completions).scores).float().view(-1, GROUP)
    ours = {
        "group": advantages.group_normalized(scores),
        "none": advantages.group_centered(scores),
        "batch": advantages.group_centered(scores) / (scores.std() + 1e-4),
    }[scale]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_advantages_of_rloo(online, rollout, gold, monkeypatch):
    ask(online["rloo"], monkeypatch, beta=0.0)
    theirs = scored(online["rloo"], rollout, monkeypatch)["advantages"].view(-1, GROUP)
    scores = torch.from_numpy(gold(rollout.prompts, rollout.completions).scores).float().view(-1, GROUP)
    torch.testing.assert_close(advantages.leave_one_out(scores), theirs, rtol=1e-5, atol=1e-5)
