"""How fast we are: our optimizers beside TRL's trainers, on the same work in one run: python tests/bench.py [dpo ...]

The work is that of a shipped policy and world: the same model, data, batch, precision (float32) and threads, no
gradient checkpointing. Both are timed by one clock (CPU seconds on one thread), from optimizer step to optimizer step,
in turns; what comes before the first step (tokenizing, copying, reading the reference) is reported apart.
"""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import pandas as pd
import torch
import transformers
from datasets import Dataset
from torch.optim.optimizer import register_optimizer_step_post_hook

from alignkit import feedback, optimize, rewards, worlds
from alignkit.errors import AlignkitError
from alignkit.policy import Policy, load_policy

#: what is timed, and how much faster than TRL's a step should be; TRL's DPO a second time with its reference read
#: before training, as ours does
TARGETS = {"dpo": 2.5, "dpo_cached": None, "kto": 2.5, "reward": 2.0, "rloo": 2.0, "grpo": 2.0}
UTILIZATION = {32: None, 128: 0.4}  # pairs in a batch of DPO, and the share of matmul's peak to be reached
BATCH = 32  # pairs, or single rows for KTO
PROMPTS, GROUP, LIMIT = 8, 16, 48  # of one step of a policy gradient
RATE = 1e-6  # too small to change how long completions are
BETA = 0.2


def seconds_now() -> float:
    """CPU seconds on one thread, which other programs do not disturb; on several, by the clock on the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Clock:
    """Seconds from optimizer step to optimizer step, whoever makes them, while it is entered."""

    def __init__(self, now: Callable[[], float] = seconds_now):
        self.now = now

    def __enter__(self) -> Clock:
        self.began, self.ticks = self.now(), []
        self.hook = register_optimizer_step_post_hook(lambda *_: self.ticks.append(self.now()))
        return self

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()

    @property
    def step(self) -> float:
        """Mean seconds of a step; the first one, which includes what was set up, is left out."""
        return (self.ticks[-1] - self.ticks[0]) / (len(self.ticks) - 1)

    @property
    def setup(self) -> float:
        """Seconds from the beginning to the end of the first step, less one step."""
        return max(0.0, self.ticks[0] - self.began - self.step)


@dataclass
class Work:
    """What both sides learn from."""

    policy: Policy
    pairs: Dataset
    prompts: list[str]
    reward: rewards.Reward

    @classmethod
    def load(cls) -> Work:
        world, policy = worlds.load("assistant"), load_policy("assistant")
        pairs = feedback.compare(world, policy, feedback.Annotator(temperature=1e-6), n=10 * BATCH, seed=0)
        return cls(policy, pairs, world.prompts("treatment"), rewards.GoldReward(world))

    @property
    def rows(self) -> Dataset:
        """The pairs as single answers that were desirable or not."""
        halves = [(self.pairs[side][: len(self.pairs) // 2], side == "chosen") for side in ("chosen", "rejected")]
        return Dataset.from_dict({
            "prompt": self.pairs["prompt"][: len(halves[0][0])] * 2,
            "completion": [text for texts, _ in halves for text in texts],
            "label": [label for texts, label in halves for _ in texts],
        }).shuffle(seed=0)  # fmt: skip


# --- ours


def _ours(work: Work, name: str, batch: int | None = None) -> Callable[[int], Any]:
    """A function of the number of steps."""

    size = batch or BATCH

    def fixed(learn: Callable, data: Dataset, **options) -> Callable[[int], Any]:
        return lambda steps: learn(data, epochs=steps * size / len(data), batch_size=size, learning_rate=RATE,
                                   progress=False, **options)  # fmt: skip

    def online(learn: Callable) -> Callable[[int], Any]:
        return lambda steps: learn(
            work.policy, work.prompts, work.reward, beta=BETA, steps=steps, prompts_per_step=PROMPTS,
            group_size=GROUP, max_new_tokens=LIMIT, learning_rate=RATE, progress=False,
        )  # fmt: skip

    if name == "reward":
        return fixed(lambda data, **o: rewards.BradleyTerry.fit(data, work.policy, pooling="last", **o), work.pairs)
    if name.startswith("dpo"):
        return fixed(lambda data, **o: optimize.dpo(work.policy, data, beta=BETA, **o), work.pairs)
    if name == "kto":
        return fixed(lambda data, **o: optimize.kto(work.policy, data, BETA, **o), work.rows)
    return online({"rloo": optimize.rloo, "grpo": optimize.grpo}[name])


# --- TRL's


def _trl() -> Any:
    try:
        import trl
    except ImportError as error:
        raise AlignkitError(
            "bench compares with TRL, which is not installed; install it with: pip install 'alignkit[dev]'"
        ) from error
    return trl


def _trainer(work: Work, name: str, steps: int, folder: str) -> Any:
    """TRL's trainer for the same work, at its defaults but for what both sides share."""
    trl, policy = _trl(), work.policy
    common = {
        "output_dir": folder, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none",
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "max_steps": steps,
        "learning_rate": RATE, "dataloader_pin_memory": False, "per_device_train_batch_size": BATCH,
    }  # fmt: skip
    if name in ("rloo", "grpo"):
        trainer, config = (getattr(trl, name.upper() + part) for part in ("Trainer", "Config"))
        common["per_device_train_batch_size"] = PROMPTS * GROUP
        args = config(beta=BETA, num_generations=GROUP, max_completion_length=LIMIT, **common)
        made = trainer(policy.copy().model, reward_funcs=rewards.to_trl(work.reward), args=args,
                       train_dataset=Dataset.from_dict({"prompt": work.prompts}),
                       processing_class=policy.tokenizer)  # fmt: skip
    else:
        data = work.rows if name == "kto" else work.pairs.select_columns(["prompt", "chosen", "rejected"])
        texts = [side for side in ("chosen", "rejected", "completion") if side in data.column_names]
        data = data.map(lambda row: {side: f" {row[side]}" for side in texts})  # TRL joins texts as they are
        shared = {"train_dataset": data, "processing_class": policy.tokenizer}
        if name == "reward":
            model = rewards.BradleyTerry.new(policy, pooling="last").model
            made = trl.RewardTrainer(model, trl.RewardConfig(**common), **shared)
        else:
            trainer, config = (getattr(trl, name[:3].upper() + part) for part in ("Trainer", "Config"))
            args = config(beta=BETA, precompute_ref_log_probs=name.endswith("cached"), **common)
            made = trainer(policy.copy().model, policy.copy().model, args, **shared)
    made.remove_callback(transformers.PrinterCallback)
    return made


def _bare(trainer: Any, online: bool) -> Callable[[int], None]:
    """TRL's own loss (and sampling) in a plain loop: what is left of a step without the trainer around it."""
    loader = trainer.get_train_dataloader()
    # a batch for an online trainer is rows of prompts, to be sampled from
    batches = [batch for _, batch in zip(range(8), loader, strict=False)]
    trainer.current_gradient_accumulation_steps = 1

    def run(steps: int) -> None:
        model = trainer.model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        for step in range(steps):
            batch = batches[step % len(batches)]
            inputs = trainer._generate_and_score_completions(batch) if online else dict(batch)
            loss = trainer.compute_loss(model, inputs)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return run


# --- in turns


def compare(work: Work, name: str, rounds: int = 3, steps: int | None = None) -> dict[str, Any]:
    """Seconds of a step of ours, of TRL's trainer, and of TRL's loss in a bare loop; each is timed once a round.

    `ratio` is TRL's trainer over ours, with the lowest and highest of the rounds; `overhead` the trainer's share of its
    own step. `trl_work_ratio` compares with the bare loop instead.
    """
    online = name in ("rloo", "grpo")
    steps = (3 if online else 10) if steps is None else steps
    with tempfile.TemporaryDirectory() as folder:
        began = seconds_now()
        with contextlib.redirect_stderr(io.StringIO()):  # a bar of TRL's that cannot be turned off
            trainer = _trainer(work, name, steps + 1, folder)
        setup = seconds_now() - began
        sides = {"ours": _ours(work, name), "trl": lambda _: trainer.train(), "bare": _bare(trainer, online)}
        clocks: dict[str, list[Clock]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, run in sides.items():
                with Clock() as clock:
                    run(steps + 1)  # the clock leaves out the first
                clocks[side].append(clock)
    seconds = {side: statistics.median(clock.step for clock in of) for side, of in clocks.items()}
    ratios = [theirs.step / ours.step for ours, theirs in zip(clocks["ours"], clocks["trl"], strict=True)]
    return {
        "method": name,
        "ours": seconds["ours"],
        "trl": seconds["trl"],
        "trl_bare": seconds["bare"],
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "target": TARGETS[name],
        "overhead": 1 - seconds["bare"] / seconds["trl"],
        "trl_work_ratio": seconds["bare"] / seconds["ours"],
        "setup_ours": statistics.median(clock.setup for clock in clocks["ours"]),
        "setup_trl": setup + statistics.median(clock.setup for clock in clocks["trl"]),
        "rounds": rounds,
        "steps": steps,
    }


# --- how much of the machine is used, and how time grows


def peak_flops(sizes: tuple[int, ...] = (256, 512, 1024), repeats: int = 3) -> float:
    """The most floating-point operations a second that torch.matmul reaches here on squares of these sizes, float32."""
    best = 0.0
    for size in sizes:
        a = torch.randn(size, size)
        a @ a
        for _ in range(repeats):
            began = seconds_now()
            a @ a
            best = max(best, 2 * size**3 / (seconds_now() - began))
    return best


def multiplied_parameters(policy: Policy) -> int:
    """Parameters each token is multiplied by: all matrices, the embedding only if it is the output layer as well."""
    tied = policy.model.config.tie_word_embeddings
    embedding = policy.model.get_input_embeddings().weight
    return sum(p.numel() for p in policy.model.parameters() if p.ndim == 2 and (tied or p is not embedding))


def utilization(work: Work, batch: int, peak: float, steps: int = 4) -> dict[str, float]:
    """Useful operations a second of a DPO step of ours of so many pairs against `peak_flops`, and pairs a second.

    Counted: 6 operations for each parameter and token (2 forward, 4 backward) on the tokens of both sides of the pairs,
    without padding, attention and the optimizer.
    """
    with Clock() as clock:
        _ours(work, "dpo", batch)(steps + 1)
    both = rewards.data.encode_pairs(work.policy, work.pairs)
    tokens = int(both.attention.sum()) / len(work.pairs) * batch
    flops = 6 * multiplied_parameters(work.policy) * tokens / clock.step
    return {
        "pairs": batch,
        "pairs_per_second": batch / clock.step,
        "tokens_per_step": tokens,
        "flops": flops,
        "peak_flops": peak,
        "utilization": flops / peak,
        "target": UTILIZATION.get(batch),
    }


def growth(
    work: Work, batches: tuple[int, ...] = (8, 32, 128), lengths: tuple[int, ...] = (8, 16, 32, 64), steps: int = 4
) -> dict[str, list[dict[str, float]]]:
    """Seconds of a DPO step of ours by pairs in the batch (completions of 16 words), and by words of a completion (16
    pairs). The texts are random words."""
    words = [w for w in work.policy.tokenizer.get_vocab() if w.isalpha()]
    generator = torch.Generator().manual_seed(0)

    def seconds(batch: int, length: int) -> float:
        picks = torch.randint(len(words), (3, 2 * batch, length), generator=generator)
        prompt, chosen, rejected = [[" ".join(words[i] for i in row) for row in side] for side in picks.tolist()]
        prompt = [" ".join(text.split()[:8]) for text in prompt]
        pairs = Dataset.from_dict({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        with Clock() as clock:
            optimize.dpo(work.policy, pairs, beta=BETA, epochs=(steps + 1) / 2, batch_size=batch, learning_rate=RATE,
                         progress=False)  # fmt: skip
        return clock.step

    return {
        "batch": [{"pairs": batch, "seconds": seconds(batch, 16)} for batch in batches],
        "length": [{"words": length, "seconds": seconds(16, length)} for length in lengths],
    }


# --- all of it


@contextlib.contextmanager
def _quiet(threads: int) -> Iterator[None]:
    """So many threads, and no bars and notices of the libraries; both as before afterwards."""
    before, level, own = torch.get_num_threads(), transformers.logging.get_verbosity(), logging.getLogger("trl").level
    bars = not datasets.are_progress_bars_disabled(), transformers.logging.is_progress_bar_enabled()
    torch.set_num_threads(threads)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)
        transformers.logging.set_verbosity(level)
        logging.getLogger("trl").setLevel(own)
        if bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            transformers.logging.enable_progress_bar()


def run(only: list[str] | None = None, threads: int = 1, rounds: int = 3, steps: int | None = None) -> dict[str, Any]:
    """Every comparison (or `only` some), plus `utilization` and `growth` of DPO if that is among them.

    AlignkitError if TRL is missing or a name is unknown.
    """
    names = list(TARGETS) if not only else list(dict.fromkeys(only))
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        raise AlignkitError(f"bench: there is no {', '.join(unknown)}; choose from {', '.join(TARGETS)}")
    if threads < 1 or rounds < 1 or (steps is not None and steps < 1):
        raise AlignkitError("bench: threads, rounds and steps must be at least 1")
    trl = _trl()
    with _quiet(threads):
        work = Work.load()
        result: dict[str, Any] = {
            "settings": {
                "model": work.policy.name, "parameters": work.policy.model.num_parameters(), "threads": threads,
                "precision": "float32", "batch": BATCH, "prompts": PROMPTS, "group": GROUP, "max_new_tokens": LIMIT,
                "trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
            },
            "methods": [compare(work, name, rounds, steps) for name in names],
        }  # fmt: skip
        if "dpo" in names:
            peak = peak_flops()
            result["utilization"] = [utilization(work, batch, peak) for batch in UTILIZATION]
            result["growth"] = growth(work)
    return result


def tables(result: dict[str, Any]) -> list[tuple[list[str], list[list[str]], str]]:
    """What `run` returned as tables: header, rows, and what is to be known about them."""

    def ms(seconds: float) -> str:
        return f"{1000 * seconds:.1f}"

    def met(value: float, target: float) -> str:
        return "met" if value >= target else "missed"

    done = result["settings"]
    header = ["method", "ours, ms", "TRL, ms", "ratio", "over rounds", "target", "TRL bare, ms", "bare / ours",
              "trainer's share", "setup ours, s", "setup TRL, s"]  # fmt: skip
    rows = [
        [
            row["method"],
            ms(row["ours"]),
            ms(row["trl"]),
            f"{row['ratio']:.2f}",
            f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}",
            f"{row['target']:.1f} {met(row['ratio'], row['target'])}" if row["target"] else "",
            ms(row["trl_bare"]),
            f"{row['trl_work_ratio']:.2f}",
            f"{row['overhead']:.0%}",
            f"{row['setup_ours']:.2f}",
            f"{row['setup_trl']:.2f}",
        ]
        for row in result["methods"]
    ]
    note = (
        f"Milliseconds of an optimizer step ({'CPU' if done['threads'] == 1 else 'wall'} time); ratio = TRL's trainer "
        f"over ours, median of the rounds. {done['model']}, {done['parameters']:,} "
        f"parameters, {done['precision']}, {done['threads']} thread(s), batch {done['batch']}; sampling included for "
        f"rloo and grpo: {done['prompts']} prompts x {done['group']} completions of at most {done['max_new_tokens']} "
        f"tokens. Bare: TRL's loss, and its sampling, in a plain loop without its trainer. Our DPO and KTO read the "
        f"reference once, in setup; TRL's trainers at every step, but for dpo_cached. TRL {done['trl']}, "
        f"torch {done['torch']}."
    )
    out = [(header, rows, note)]
    if "utilization" in result:
        out.append((
            ["DPO, pairs in a batch", "tokens", "pairs a second", "GFLOP/s", "matmul's peak", "of the peak", "target"],
            [
                [str(used["pairs"]), f"{used['tokens_per_step']:,.0f}", f"{used['pairs_per_second']:,.0f}",
                 f"{used['flops'] / 1e9:.1f}", f"{used['peak_flops'] / 1e9:.1f}", f"{used['utilization']:.0%}",
                 f"{used['target']:.0%} {met(used['utilization'], used['target'])}" if used["target"] else ""]
                for used in result["utilization"]
            ],
            "6 operations a parameter and token (2 forward, 4 backward); padding, attention and optimizer not counted.",
        ))  # fmt: skip
    for name, unit, what in (("batch", "pairs", "16 words a completion"), ("length", "words", "16 pairs")):
        if "growth" in result:
            first = result["growth"][name][0]
            grown = [
                [str(row[unit]), ms(row["seconds"]), f"{row['seconds'] / first['seconds']:.1f}",
                 f"{row.get('pairs', 16) / row['seconds']:,.0f}"]
                for row in result["growth"][name]
            ]  # fmt: skip
            columns = [unit, "DPO, ms", "times the first", "pairs a second"]
            out.append((columns, grown, f"A DPO step of ours by {unit}; {what}."))
    return out


if __name__ == "__main__":
    for names, lines, said in tables(run(sys.argv[1:] or None)):
        print(pd.DataFrame(lines, columns=names).to_string(index=False), said, sep="\n", end="\n\n")
