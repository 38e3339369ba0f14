"""One of each reward there is: to read their cards side by side, and to see that no corner of the map is empty."""

from __future__ import annotations

from alignkit.policy import Policy
from alignkit.rewards.base import GoldReward, Reward
from alignkit.rewards.comparator import Comparator
from alignkit.rewards.hybrid import Hybrid, MixedSupervision, Veto
from alignkit.rewards.judge import Judge, PairJudge
from alignkit.rewards.objectives import Stages
from alignkit.rewards.process import ProcessReward
from alignkit.rewards.rules import Rubric, Rule, RuleReward, Verifiable, contains
from alignkit.rewards.scalar import Binary, BradleyTerry, Ordinal, PlackettLuce, Regression
from alignkit.rewards.tokens import ByToken, ImplicitReward
from alignkit.rewards.vector import Gated, MultiAspect
from alignkit.worlds.base import World


def shelf(world: World, policy: Policy, seed: int = 0) -> dict[str, Reward]:
    """{class name: one of its kind}, built on `policy`; learned ones have a fresh head and have learned nothing yet."""
    rules = RuleReward([Rule("thanks", contains("thank you"))])
    learned = BradleyTerry.new(policy, seed)
    aspects = MultiAspect.new(policy, seed, outputs=len(world.aspects))
    judge = Judge(policy, names=None)
    examples = [
        rules,
        Rubric(rules.rules, forbid={"fool": contains("fool")}),
        Verifiable(lambda prompts, completions: [0.0] * len(completions)),
        GoldReward(world),
        learned,
        *(cls.new(policy, seed) for cls in (PlackettLuce, Ordinal, Regression, Binary)),
        aspects,
        Gated(aspects, network=None, scale=1.0),
        Comparator.new(policy, seed, outputs=2),
        judge,
        PairJudge(policy, judge),
        Hybrid(rules, learned),
        MixedSupervision.new(policy, seed),
        Veto(learned, {"fool": contains("fool")}),
        ImplicitReward(policy, policy),
        ProcessReward.new(policy, seed),
        ByToken(learned),
        Stages({"form": rules, "content": learned}, {"form": 0.5}),
    ]
    named = {type(reward).__name__: reward for reward in examples}
    named["ProcessReward, segments"] = named["ProcessReward"].but(unit="segment")
    named["ImplicitReward, by token"] = ImplicitReward(policy, policy, granularity="token")
    return named
