"""A new loss, reward, world, claim and notebook are one file each: added in a folder elsewhere, they run together."""

import json

import nbformat
import pytest

from alignkit import claims, plots
from alignkit.files import DATA, NOTEBOOKS
from alignkit.lab import sweep

LOSS = '''
"""A loss: one function and one row."""
from torch.nn.functional import softplus
from alignkit.optimize import on_pairs

def steep_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """softplus(-2 beta margin), a DPO of twice the slope."""
    return softplus(-2 * beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))

steep = on_pairs(steep_loss, beta=0.1)
'''
REWARD = '''
"""A reward: one class with its card."""
import numpy as np
from alignkit.rewards import Judgement, Reward
from alignkit.taxonomy import RewardCard

class Brief(Reward):
    """Shorter is better, in words."""

    card = RewardCard(name="brief", construction_basis="rule-based", format="scalar", expression="explicit",
                      granularity="response")

    def judge(self, prompts, completions):
        return Judgement(np.array([-float(len(text.split())) for text in completions]))
'''
WORLD = '''
"""A world: prompts, and a true reward as a sum of named aspects."""
from alignkit.worlds import World

class HasteWorld(World):
    """The answer should be polite, and short."""

    name, version, aspects = "haste", "haste-v1", ("polite", "short")

    def prompts(self, split="treatment"):
        return ["how do i make tea ?", "how do i bake bread ?", "how do i wash a car ?"]

    def judge_one(self, prompt, completion):
        return float("thank" in completion or "please" in completion), -0.2 * len(completion.split())
'''
CELLS = [
    "import sys\nsys.path.insert(0, {folder!r})\nfrom alignkit import Annotator, claims, evaluation, feedback, "
    "load_policy, rewards\nfrom loss import steep\nfrom reward import Brief\nfrom world import HasteWorld",
    "ledger = claims.open('17_haste', seed=seed, profile=profile)\n"
    "world, patient = HasteWorld(), load_policy('assistant')\n"
    "ledger.uses(world=world)\npairs = feedback.compare(world, patient, Annotator(temperature=0.5), n=40, seed=seed)",
    "chosen, rejected = rewards.score_pairs(Brief(), pairs)\n"
    "treated = steep(patient, pairs, epochs=1, progress=False)\nassert treated.history.loss.iloc[0] < 0.7",
    "before, after = (evaluation.measure(world, p, world.prompts('test')[:4], 4, seed)[0] for p in (patient, treated))",
    "ledger.record('haste', float((chosen - rejected).mean()))\nledger.table()",
    "ledger.close()",
]
CLAIM = """
- id: haste
  notebook: 17_haste
  phase: reward
  dimension: format
  statement: Brief agrees with the labels.
  source: [own]
  kind: seeded
  measure: mean margin of the reward
  rule: {above: 0}
  could_fail_because: the labels are noisy
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Five files in a folder: what a contributor would add."""
    for name, text in (("loss", LOSS), ("reward", REWARD), ("world", WORLD)):
        (tmp_path / f"{name}.py").write_text(text)
    cells = [nbformat.v4.new_code_cell("seed = 0\nprofile = 'standard'", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source.format(folder=str(tmp_path))) for source in CELLS]
    metadata = {"alignkit": {"phase": "reward", "short_title": "haste"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "17_haste.ipynb")
    registered = (DATA / "claims.yaml").read_text(encoding="utf-8")
    (tmp_path / "claims.yaml").write_text(registered + CLAIM)
    monkeypatch.setenv("ALIGNKIT_CLAIMS", str(tmp_path / "claims.yaml"))
    return tmp_path


@pytest.mark.slow
def test_five_new_files_run_together(house):
    (outcome,) = sweep.run([house / "17_haste.ipynb"], profile="smoke", out=house / "runs", jobs=1, timeout=200)
    assert outcome.status == "done", outcome.describe()
    result = json.loads((house / "runs" / "results" / "17_haste" / "smoke-seed0.json").read_text())
    assert result["values"]["haste"] > 0 and result["fingerprint"]["world"] == {"haste": "haste-v1"}
    (row,) = [row for row in claims.summarize() if row["id"] == "haste"]
    assert row["verdict"] == "unmeasured"


def test_a_new_notebook_is_on_the_map_as_it_is(house):
    (place,) = plots.series(house)
    assert place == plots.Place("17", "haste", "reward")
    assert {place.phase for place in plots.series()} == {None, *plots.PHASE}
    assert [place.number for place in plots.series()] == sorted(path.stem.split("_")[0] for path in
                                                                NOTEBOOKS.glob("[0-9]*.ipynb"))  # fmt: skip
