"""Structure checks: prompts, turns, empty, repeated and contradictory pairs.

Each check takes the table of pairs and returns its part of the report; those that single out rows also return
a mask of the rows concerned, so that they can be listed or dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import networkx as nx
import numpy as np
import pandas as pd
from datasketch import MinHash, MinHashLSH
from networkx.utils import UnionFind

from alignkit.checkup.pairs import BY_COLUMN, DIFFERENT, DIVERGES, SAME

PAIR = ["prompt", "chosen", "rejected"]
SHINGLE_WORDS = 3
NEAR = 0.8  # Jaccard similarity of the shingle sets from which two pairs count as near duplicates
CANDIDATE = 0.7  # the hash table's own threshold: lower, so that few true near duplicates slip through
PERMUTATIONS = 128

Masks = dict[str, np.ndarray]


def check_prompts(frame: pd.DataFrame) -> tuple[dict, Masks]:
    """Do both sides answer the same prompt? Pairwise losses such as DPO's assume it."""
    counts = frame["prompt_match"].value_counts()
    not_shared = frame["prompt_match"].isin([DIVERGES, DIFFERENT]).to_numpy()
    report = {
        "same": int(counts.get(SAME, 0)),
        "diverge_before_last_answer": int(counts.get(DIVERGES, 0)),
        "different": int(counts.get(DIFFERENT, 0)),
        "not_checkable": int(counts.get(BY_COLUMN, 0)),
        "not_shared": int(not_shared.sum()),
    }
    return report, {"not_shared_prompt": not_shared}


def check_turns(frame: pd.DataFrame) -> dict:
    """How many turns the user took before the compared answers."""
    counts = frame["turns"].value_counts().sort_index()
    return {
        "counts": {str(turns): int(count) for turns, count in counts.items()},
        "mean": round(float(frame["turns"].mean()), 4),
        "median": float(frame["turns"].median()),
        "max": int(frame["turns"].max()),
        "share_multi_turn": round(float((frame["turns"] > 1).mean()), 6),
    }


def check_sides(frame: pd.DataFrame) -> tuple[dict, Masks]:
    """Sides that are empty, and pairs whose sides are the same text: neither teaches a preference."""
    empty = {name: frame[name].eq("").to_numpy() for name in ("chosen", "rejected")}
    masks = {
        "identical_sides": frame["chosen"].eq(frame["rejected"]).to_numpy(),
        "empty_side": empty["chosen"] | empty["rejected"],
    }
    report = {
        "identical": int(masks["identical_sides"].sum()),
        "empty_chosen": int(empty["chosen"].sum()),
        "empty_rejected": int(empty["rejected"].sum()),
        "empty_prompt": int(frame["prompt"].eq("").sum()),
    }
    return report, masks


# --- repetition ---------------------------------------------------------------------------------


def check_duplicates(frame: pd.DataFrame, leaders: np.ndarray) -> tuple[dict, Masks]:
    """Exact copies of pairs, prompts and answers, and near duplicates (`leaders` from `near_duplicates`)."""
    masks = {
        "exact_duplicates": frame.duplicated(PAIR).to_numpy(),
        "near_duplicates": leaders != np.arange(len(frame)),
    }
    prompts = frame["prompt"].value_counts()
    answers = pd.concat([frame["chosen"], frame["rejected"]]).value_counts()
    report = {
        "pairs_extra_copies": int(masks["exact_duplicates"].sum()),
        "pairs_near_duplicates": int((masks["near_duplicates"] & ~masks["exact_duplicates"]).sum()),
        "near_threshold_jaccard": NEAR,
        "prompts_distinct": len(prompts),
        "prompts_repeated": int((prompts > 1).sum()),
        "pairs_on_repeated_prompts": int(prompts[prompts > 1].sum()),
        "answers_distinct": len(answers),
        "answers_repeated": int((answers > 1).sum()),
        "slots_of_repeated_answers": int(answers[answers > 1].sum()),
    }
    masks["near_duplicates"] &= ~masks["exact_duplicates"]
    return report, masks


def near_duplicates(frame: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """For each pair the position of the pair it (nearly) repeats, its own position if it repeats none.

    MinHash (Broder 1997) with locality-sensitive hashing proposes candidates; the true Jaccard similarity of
    their shingle sets decides. Only pairs that repeat no earlier one enter the hash table, so data in which
    everything resembles everything stays cheap, and dropping the others leaves no near duplicates behind.
    `frame` must be in canonical order for the result not to depend on the order of rows.
    """
    table = MinHashLSH(threshold=CANDIDATE, num_perm=PERMUTATIONS)
    blank = MinHash(num_perm=PERMUTATIONS, seed=seed + 1, hashfunc=_low_32_bits)
    leaders, kept, exact = np.arange(len(frame)), {}, {}
    for position, texts in enumerate(frame[PAIR].itertuples(index=False, name=None)):
        if texts in exact:
            leaders[position] = leaders[exact[texts]]
            continue
        exact[texts] = position
        shingles = shingle_hashes(texts)
        sketch = blank.copy()
        sketch.update_batch(shingles.tolist())
        similar = (other for other in sorted(table.query(sketch)) if jaccard(shingles, kept[other]) >= NEAR)
        leaders[position] = next(similar, position)
        if leaders[position] == position:
            table.insert(position, sketch)
            kept[position] = shingles
    return leaders


def shingle_hashes(texts: tuple[str, ...]) -> np.ndarray:
    """Sorted 64-bit hashes of the word triples of prompt, chosen and rejected, each marked with its field."""
    hashes = {
        int.from_bytes(hashlib.blake2b(shingle.encode(), digest_size=8).digest())
        for field, text in enumerate(texts)
        for shingle in _shingles(field, text.lower().split())
    }
    return np.array(sorted(hashes), dtype=np.uint64)


def _shingles(field: int, words: list[str]) -> Iterator[str]:
    for start in range(max(1, len(words) - SHINGLE_WORDS + 1)):
        yield f"{field} {' '.join(words[start : start + SHINGLE_WORDS])}"


def _low_32_bits(number: int) -> int:
    return number & 0xFFFFFFFF  # the width MinHash expects


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Size of the intersection over size of the union of two arrays of distinct values."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def independent_groups(frame: pd.DataFrame, leaders: np.ndarray) -> tuple[np.ndarray, str]:
    """Groups of pairs that belong on one side of any split: same prompt, or (near) duplicates of each other.

    Where near duplicates tie most of the data into one group (a long text common to all prompts does), no
    held-out part would be left: then the prompt alone decides. Returns group numbers and what makes a group.
    """
    alike = frame["prompt"].str.lower().str.split().str.join(" ")  # case and spacing make no new prompt
    prompts = np.unique(alike, return_inverse=True)[1]
    sets = UnionFind()
    for leader, prompt in zip(prompts[leaders].tolist(), prompts.tolist(), strict=True):
        sets.union(leader, prompt)
    joined = np.array([sets[prompt] for prompt in prompts.tolist()])
    if np.unique(joined, return_counts=True)[1].max() > len(frame) / 2:
        return prompts, "prompt"
    return joined, "prompt and near duplicates"


# --- contradictions -----------------------------------------------------------------------------


def check_consistency(frame: pd.DataFrame) -> tuple[dict, Masks]:
    """Can the answers to each prompt be ranked at all, given who was preferred over whom?

    A contradiction is a comparison judged both ways; a loop is a strongly connected component of the graph
    "chosen beats rejected": its answers beat each other in a circle.
    """
    contradicted, loops, in_loop = 0, [], np.zeros(len(frame), dtype=bool)
    both_ways = np.zeros(len(frame), dtype=bool)
    several = frame[frame.duplicated("prompt", keep=False) & frame["chosen"].ne(frame["rejected"])]
    for _, pairs in several.groupby("prompt", sort=True):
        graph = nx.DiGraph(zip(pairs["chosen"], pairs["rejected"], strict=True))
        opposite = [graph.has_edge(worse, better) for better, worse in _edges(pairs)]
        both_ways[pairs.index] = opposite
        contradicted += sum(graph.has_edge(worse, better) for better, worse in graph.edges) // 2
        looped = [part for part in nx.strongly_connected_components(graph) if len(part) > 1]
        loops += [len(part) for part in looped]
        in_loop[pairs.index] = [any({*edge} <= part for part in looped) for edge in _edges(pairs)]
    report = {
        "contradictory_comparisons": int(contradicted),
        "pairs_in_contradictions": int(both_ways.sum()),
        "loops": len(loops),
        "loops_of_three_or_more": sum(size > 2 for size in loops),
        "largest_loop": max(loops, default=0),
        "pairs_in_loops": int(in_loop.sum()),
    }
    return report, {"contradictory": both_ways, "in_loop": in_loop}


def _edges(pairs: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(pairs["chosen"], pairs["rejected"], strict=True))
