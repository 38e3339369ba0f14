"""Structure checks: prompts, turns, empty, repeated and contradictory pairs.

Each check takes the table of pairs and returns its part of the report; those that single out rows also return
a mask of the rows concerned, so that they can be listed or dropped.
"""

from __future__ import annotations

import hashlib

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

Masks = dict[str, pd.Series]


def check_prompts(frame: pd.DataFrame) -> tuple[dict, Masks]:
    """Do both sides answer the same prompt? Pairwise losses such as DPO's assume it."""
    names = {"same": SAME, "diverge_before_last_answer": DIVERGES, "different": DIFFERENT, "not_checkable": BY_COLUMN}
    report = {name: int(frame["prompt_match"].eq(match).sum()) for name, match in names.items()}
    not_shared = frame["prompt_match"].isin([DIVERGES, DIFFERENT])
    return {**report, "not_shared": int(not_shared.sum())}, {"not_shared_prompt": not_shared}


def check_turns(frame: pd.DataFrame) -> dict:
    """How many turns the user took before the compared answers."""
    turns = frame["turns"]
    return {
        "counts": {str(number): int(count) for number, count in turns.value_counts().sort_index().items()},
        "mean": round(float(turns.mean()), 4),
        "median": float(turns.median()),
        "max": int(turns.max()),
        "share_multi_turn": round(float((turns > 1).mean()), 6),
    }


def check_sides(frame: pd.DataFrame) -> tuple[dict, Masks]:
    """Sides that are empty, and pairs whose sides are the same text: neither teaches a preference."""
    identical, empty = frame["chosen"].eq(frame["rejected"]), frame[PAIR].eq("")
    report = {"identical": int(identical.sum())}
    report |= {f"empty_{name}": int(empty[name].sum()) for name in ("chosen", "rejected", "prompt")}
    return report, {"identical_sides": identical, "empty_side": empty["chosen"] | empty["rejected"]}


# --- repetition ---------------------------------------------------------------------------------


def check_duplicates(frame: pd.DataFrame, leaders: np.ndarray) -> tuple[dict, Masks]:
    """Exact copies of pairs, prompts and answers, and near duplicates (`leaders` from `near_duplicates`)."""
    exact = frame.duplicated(PAIR)
    near = ~exact & (leaders != np.arange(len(frame)))
    prompts = frame["prompt"].value_counts()
    answers = pd.concat([frame["chosen"], frame["rejected"]]).value_counts()
    report = {
        "pairs_extra_copies": int(exact.sum()),
        "pairs_near_duplicates": int(near.sum()),
        "near_threshold_jaccard": NEAR,
        "prompts_distinct": len(prompts),
        "prompts_repeated": int((prompts > 1).sum()),
        "pairs_on_repeated_prompts": int(prompts[prompts > 1].sum()),
        "answers_distinct": len(answers),
        "answers_repeated": int((answers > 1).sum()),
        "slots_of_repeated_answers": int(answers[answers > 1].sum()),
    }
    return report, {"exact_duplicates": exact, "near_duplicates": near}


def near_duplicates(frame: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """For each pair the position of the pair it (nearly) repeats, its own position if it repeats none.

    MinHash (Broder 1997) with locality-sensitive hashing proposes candidates; the true Jaccard similarity of
    their shingle sets decides. Only pairs that repeat no earlier one enter the hash table, so data in which
    everything resembles everything stays cheap, and dropping the others leaves no near duplicates behind.
    `frame` must be in canonical order for the result not to depend on the order of rows.
    """
    table = MinHashLSH(threshold=CANDIDATE, num_perm=PERMUTATIONS)
    # MinHash expects hashes of 32 bits
    blank = MinHash(num_perm=PERMUTATIONS, seed=seed + 1, hashfunc=lambda number: number & 0xFFFFFFFF)
    leaders, kept, exact = np.arange(len(frame)), {}, {}
    for position, texts in enumerate(frame[PAIR].itertuples(index=False, name=None)):
        first = exact.setdefault(texts, position)
        if first != position:
            leaders[position] = leaders[first]
            continue
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
    hashes = set()
    for field, text in enumerate(texts):
        words = text.lower().split()
        for start in range(max(1, len(words) - SHINGLE_WORDS + 1)):
            shingle = f"{field} {' '.join(words[start : start + SHINGLE_WORDS])}"
            hashes.add(int.from_bytes(hashlib.blake2b(shingle.encode(), digest_size=8).digest()))
    return np.array(sorted(hashes), dtype=np.uint64)


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
    answers = [list(zip(frame["prompt"], frame[side], strict=True)) for side in ("chosen", "rejected")]
    edges = [(better, worse) for better, worse in zip(*answers, strict=True)]
    graph = nx.DiGraph(edge for edge in edges if edge[0] != edge[1])
    loops = [part for part in nx.strongly_connected_components(graph) if len(part) > 1]
    loop_of = {answer: number for number, part in enumerate(loops) for answer in part}
    both_ways = [better != worse and graph.has_edge(worse, better) for better, worse in edges]
    in_loop = [better != worse and loop_of.get(better, -1) == loop_of.get(worse, -2) for better, worse in edges]
    masks = {"contradictory": pd.Series(both_ways, dtype=bool), "in_loop": pd.Series(in_loop, dtype=bool)}
    report = {
        "contradictory_comparisons": sum(graph.has_edge(worse, better) for better, worse in graph.edges) // 2,
        "pairs_in_contradictions": sum(both_ways),
        "loops": len(loops),
        "loops_of_three_or_more": sum(len(part) > 2 for part in loops),
        "largest_loop": max(map(len, loops), default=0),
        "pairs_in_loops": sum(in_loop),
    }
    return report, masks
