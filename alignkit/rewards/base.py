"""What a reward is: a callable on (prompts, completions, **columns) that returns a Judgement and carries a RewardCard.

`as_reward(function)` makes one of any function, `to_trl(reward)` a TRL `reward_func` of any reward. `columns`: what
else a row of the data set holds, one value a completion, handed by name to those who take it, as TRL does; so are TRL's
`completion_ids`, `trainer_state`, `log_extra` and `log_metric`.

Scoring never changes a reward. One that follows the training (a multiplier, a stage) moves in `update(judgement)`,
which an optimizer calls once for each batch it trains on, after scoring it; `state` and `restore` are for checkpoints.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset

from alignkit.errors import DataError, RewardError
from alignkit.rewards.calling import TRAINERS, CallError, call_function, copied, first_change, row_numbers, rows_of
from alignkit.rewards.texts import text_of
from alignkit.taxonomy import RewardCard
from alignkit.worlds.base import World, judge_rows


@dataclass
class Judgement:
    """`scores`: shape (N,), float64, larger is better. Richer or finer credit where the reward gives it:

    - `aspects` {name: (N,)}; `critiques`, N texts; `ranks`, shape (N,): place among the completions of the same prompt,
      1 = best;
    - `steps`, N arrays, one number for each step or segment, and `ends`, N lists: where in the completion each of them
      ends, in characters;
    - `tokens`, N arrays, one number for each token of the policy, its end-of-sequence token included.

    `present`, shape (N,), bool: False where the reward said None, "not my row"; the score is NaN there, and the row
    belongs to no group. `parts`: the judgements of the rewards that this one is made of, by name.
    """

    scores: np.ndarray
    aspects: dict[str, np.ndarray] | None = None
    critiques: list[str] | None = None
    ranks: np.ndarray | None = None
    steps: list[np.ndarray] | None = None
    ends: list[list[int]] | None = None
    tokens: list[np.ndarray] | None = None
    present: np.ndarray | None = None
    parts: dict[str, Judgement] | None = None

    def __post_init__(self) -> None:
        if self.present is None and isinstance(self.scores, np.ndarray) and self.scores.dtype.kind == "f":
            self.present = np.ones(self.scores.shape, dtype=bool)

    def all_scores(self, where: str) -> np.ndarray:
        """The scores; RewardError, naming the first, if the reward left out rows."""
        left_out = np.flatnonzero(~self.present)
        if len(left_out):
            raise RewardError(f"{where}: the reward says None about row {left_out[0]} ({len(left_out)} such rows), and "
                              "here every row needs a score")  # fmt: skip
        return self.scores

    def ranked(self) -> np.ndarray:
        """The scores, with minus infinity for rows that the reward left out: none of them is ever the best."""
        return np.where(self.present, self.scores, -np.inf)


def unique_rows(*columns: list) -> tuple[list[int], list[int]]:
    """Samples repeat, and need scoring once: the rows that differ, and for each row which of them (by place) it is."""
    keys, first = list(map(repr, zip(*columns, strict=True))), {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    place = {key: k for k, key in enumerate(first)}
    return list(first.values()), [place[key] for key in keys]


def columns_of(data: Dataset | Sequence) -> tuple[list, dict[str, list]]:
    """Prompts, and what else each row holds: of a data set its column `prompt` and all columns that are no completions;
    of a list of prompts the list, and no columns."""
    if not isinstance(data, Dataset):
        if isinstance(data, str | Mapping):
            raise DataError(f"prompts are a {type(data).__name__}; give a list of prompts, or a Dataset with 'prompt'")
        return list(data), {}
    if "prompt" not in data.column_names:
        raise DataError(f"the data set has no column 'prompt'; it has {', '.join(data.column_names) or 'none'}")
    own = ("prompt", "prompts", "completion", "completions", "completion_ids")  # what is to be scored comes later
    return data["prompt"][:], {name: data[name][:] for name in data.column_names if name not in own}


def repeated(columns: Mapping[str, list], n: int) -> dict[str, list]:
    """The columns for n completions a prompt, a prompt's rows together."""
    return {name: [value for value in values for _ in range(n)] for name, values in columns.items()}


class Reward:
    """Subclasses set `card` and define `judge`; calling the reward checks what goes into it and what it returned.

    `judge` may take columns of the data set by name, or all of them as **columns. It works on copies.

    Raises RewardError, naming the reward, the row and the remedy, if a string stands where a list is meant, lengths
    don't match, `judge` raises or changes its rows in place, or doesn't return one finite number (or None) for each
    completion.
    """

    card: RewardCard

    #: How `judge` gets messages. "text": as plain text, of the prompt what the user asked last, of the completion what
    #: the assistant said last; "chat": completions as plain text, prompts as messages, for a tokenizer's chat template;
    #: "as given": as they are.
    reads = "chat"

    #: names of the attributes that `update` moves
    moves: tuple[str, ...] = ()

    #: the rewards that this one is made of, by the names of `Judgement.parts`
    made_of: Mapping[str, Reward] = {}

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        """The judgement, not yet checked."""
        raise NotImplementedError

    def __call__(self, prompts: Sequence, completions: Sequence, **columns: Any) -> Judgement:
        """A checked judgement of N completions, with one prompt and one value of each column for each of them."""
        return self._ask(prompts, completions, columns, finite=True)

    def raw(self, prompts: Sequence, completions: Sequence, **columns: Any) -> Judgement:
        """As calling the reward, but scores may be NaN or infinite where `present` is True: for audits."""
        return self._ask(prompts, completions, columns, finite=False)

    def update(self, judgement: Judgement) -> None:
        """Called once for each batch that a policy is trained on, with that batch's judgement, after scoring it.

        Most rewards stay as they are. Those made of others hand it on to them.
        """
        for name, reward in self.made_of.items():
            if name in (judgement.parts or {}):
                reward.update(judgement.parts[name])

    def state(self) -> dict:
        """What `update` has moved so far, here and in the rewards that this one is made of; for checkpoints."""
        own = {name: copy.deepcopy(getattr(self, name)) for name in self.moves}
        return {"own": own, "parts": {name: reward.state() for name, reward in self.made_of.items()}}

    def restore(self, state: dict) -> None:
        """Back to what `state` returned."""
        for name, value in state["own"].items():
            setattr(self, name, copy.deepcopy(value))
        for name, reward in self.made_of.items():
            reward.restore(state["parts"][name])

    def _ask(self, prompts: Sequence, completions: Sequence, columns: dict, finite: bool) -> Judgement:
        shown: dict[str, list] = {"completions": []}
        try:
            whole = {name: columns.pop(name) for name in TRAINERS if name in columns}
            shown = self._shown({"prompts": prompts, "completions": completions, **columns})
            parameters = inspect.signature(self.judge).parameters
            every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
            taken = {name for name in [*columns, *whole] if every or name in parameters}
            given = {name: copied(rows) for name, rows in shown.items() if name not in columns or name in taken}
            rest = {name: given.get(name, whole.get(name)) for name in taken}
            judgement = self.judge(given["prompts"], given["completions"], **rest)
            if not isinstance(judgement, Judgement):
                raise CallError(f"returned a {type(judgement).__name__} from judge", "it must be a Judgement")
            judgement = _read(judgement, len(shown["completions"]), finite)
            for name, rows in given.items():
                if (row := first_change(shown[name], rows)) is not None:
                    was, now = (_short(side[row]) if row < len(side) else "no row" for side in (shown[name], rows))
                    raise CallError(f"changed {name!r} in place, row {row}: it was {was}, now it is {now}",
                                    "it may change a copy")  # fmt: skip
        except CallError as error:
            row = "" if error.row is None else "".join(
                f", {name[:-1]} {_short(shown[name][error.row])}" for name in ("prompts", "completions"))  # fmt: skip
            raise RewardError(f"reward {self.card.name!r} {error.what}{row}: {error.remedy}") from error
        except RewardError:
            raise  # of a reward that this one is made of
        except Exception as error:  # whatever a user's function raises is a fact about that function
            raise RewardError(
                f"reward {self.card.name!r} raised {type(error).__name__}: {error} (on {len(shown['completions'])} "
                "completions); try it on one completion by itself"
            ) from error
        return judgement

    def _shown(self, given: Mapping[str, Sequence]) -> dict[str, list]:
        """Prompts, completions and columns as lists of one length, messages as this reward reads them."""
        rows = {name: rows_of(name, values) for name, values in given.items()}
        n = len(rows["completions"])
        for name, values in rows.items():
            if len(values) != n:
                raise CallError(f"got {len(values)} {name!r} for {n} completions", "give one for each completion")
        for row, said in enumerate(rows["completions"]):
            if not isinstance(said, str) and not (isinstance(said, list) and all(isinstance(m, dict) for m in said)):
                raise CallError(f"got {said!r:.60} as the completion of row {row}", "give text, or a list of messages")
        if self.reads != "as given":
            rows["completions"] = [text_of(said, "assistant") for said in rows["completions"]]
        if self.reads == "text":
            rows["prompts"] = [text_of(p, "user") if isinstance(p, list) else p for p in rows["prompts"]]
        return rows


def _short(value: Any) -> str:
    return repr(value if isinstance(value, str) and len(value) <= 60 else str(value)[:60])


def _read(judgement: Judgement, n: int, finite: bool) -> Judgement:
    """The judgement with its numbers as arrays; CallError if a field doesn't have one entry for each of n rows, or if
    all scores must be `finite` and one is not."""
    scores, present = row_numbers(judgement.scores, n)
    if judgement.present is not None:
        present &= np.asarray(judgement.present, dtype=bool)
    if finite and len(bad := np.flatnonzero(present & ~np.isfinite(scores))):
        raise CallError(f"returned {scores[bad[0]]} for row {bad[0]} ({len(bad)} such rows)",
                        "every score must be finite, or None for a row that is not its own", bad[0])  # fmt: skip
    aspects = judgement.aspects and {name: row_numbers(values, n)[0] for name, values in judgement.aspects.items()}
    for name in ("critiques", "ranks", "steps", "ends", "tokens"):
        values = getattr(judgement, name)
        if values is not None and len(values) != n:
            raise CallError(f"returned {len(values)} {name} for {n} completions", "it must return one entry for each")
    return replace(judgement, scores=np.where(present, scores, np.nan), aspects=aspects, present=present)


class FunctionReward(Reward):
    """Any function that returns scores or a Judgement, with the card you give it; how it is called: `call_function`."""

    reads = "as given"

    def __init__(self, function: Callable, card: RewardCard):
        self.function, self.card = function, card

    def judge(self, prompts: list, completions: list, **columns: Any) -> Judgement:
        if not completions:
            return Judgement(np.zeros(0))
        out = call_function(self.function, prompts, completions, columns)
        if isinstance(out, Judgement):
            return out
        scores, present = row_numbers(out, len(completions))
        return Judgement(scores, present=present)


def as_reward(reward: Reward | Callable, name: str | None = None) -> Reward:
    """`reward` itself, or a plain function wrapped; a function is taken to be a rule on whole responses.

    Functions in the manner of TRL (`prompts=`, `completions=`, columns, `**kwargs`; async ones too) work as they are.
    """
    if isinstance(reward, Reward):
        return reward
    if not callable(reward):
        raise RewardError(f"a reward must be callable on (prompts, completions), not {type(reward).__name__}")
    name = name or getattr(reward, "__name__", type(reward).__name__)
    return FunctionReward(reward, RewardCard(name, "rule-based"))


def to_trl(reward: Reward | Callable) -> Callable[..., list[float | None]]:
    """The reward as a TRL `reward_func`: called by name with the columns of the data set, returns floats, or None.

    Plain or conversational rows. TRL knows no `update`, so each call counts as a batch of training.
    """
    wrapped = as_reward(reward)

    def reward_func(prompts: list, completions: list, **columns: Any) -> list[float | None]:
        judgement = wrapped(prompts, completions, **columns)
        wrapped.update(judgement)
        return [None if np.isnan(score) else float(score) for score in judgement.scores]

    reward_func.__name__ = wrapped.card.name
    return reward_func


class Combined(Reward):
    """A reward made of others, which judge the same rows. Subclasses define `combine`.

    A row is left out if a part left it out and the score came out as NaN for that.
    """

    reads = "as given"

    def __init__(self, rewards: Mapping[str, Reward | Callable], **card: str):
        """`card`: see `RewardCard`; the construction basis is that of all rewards, else "hybrid"."""
        self.made_of = {name: as_reward(reward, name) for name, reward in rewards.items()}
        bases = {reward.card.construction_basis for reward in self.made_of.values()}
        self.card = RewardCard(**{"construction_basis": bases.pop() if len(bases) == 1 else "hybrid", **card})

    def judge(self, prompts: list, completions: list, **columns: Any) -> Judgement:
        heard = self.heard(prompts)
        parts = {name: reward(heard, completions, **columns) for name, reward in self.made_of.items()}
        judgement = self.combine(parts, prompts, completions)
        left_out = np.isnan(judgement.scores) & ~np.all([part.present for part in parts.values()], axis=0)
        return replace(judgement, parts=parts, present=judgement.present & ~left_out)

    def heard(self, prompts: list) -> list:
        """The prompts as the parts get them."""
        return prompts

    def combine(self, parts: dict[str, Judgement], prompts: list, completions: list) -> Judgement:
        """The judgement of all, not yet checked, given those of the parts."""
        raise NotImplementedError


class GoldReward(Reward):
    """The world's own truth as a reward, with its aspects: the upper bound of what feedback could say."""

    reads = "text"

    def __init__(self, world: World):
        self.world = world
        objective = "multi" if len(world.aspects) > 1 else "single"
        self.card = RewardCard(f"gold:{world.name}", "rule-based", objective=objective)

    def judge(self, prompts: list[str], completions: list[str], **columns: Any) -> Judgement:
        judges = self.world.gold, self.world.gold_aspects
        return Judgement(*(judge_rows(judge, prompts, completions, columns) for judge in judges))


class RandomReward(Reward):
    """The null control: noise from N(0, 1) that depends on (seed, prompt, completion) and on nothing else.

    The same text always gets the same score, so that this reward can be optimized - and says nothing.
    """

    reads = "text"

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.card = RewardCard(f"random:{seed}", "rule-based", notes="null control")

    def judge(self, prompts: list[str], completions: list[str]) -> Judgement:
        return Judgement(np.array([self._noise(f"{p}\0{c}") for p, c in zip(prompts, completions, strict=True)]))

    def _noise(self, text: str) -> float:
        digest = hashlib.blake2b(text.encode(), digest_size=8, key=self.seed.to_bytes(8, "little")).digest()
        return np.random.default_rng(int.from_bytes(digest, "little")).standard_normal()
