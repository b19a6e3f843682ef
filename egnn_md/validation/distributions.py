"""Distributions of distances and angles, how far two of them are apart, and what of that is noise."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from ase.data import chemical_symbols

from egnn_md.report.pairs import pair_functions_of
from egnn_md.simulation.molecules import minimum_image
from egnn_md.simulation.structure import Structure
from egnn_md.validation.runs import MovingFrames

BOND_BIN = 0.02  # Å
ANGLE_BIN = 2.0  # degrees
MAX_KINDS = 8  # of bonds and of angles each, the commonest


@dataclass(frozen=True)
class Distribution:
    """One histogram, in B blocks of a run (or of several).

    Attributes:
        name: ``g(r) O-H``, ``bond O-H``, ``angle H-O-H``.
        kind: ``pair``, ``bond`` or ``angle``.
        x: (X,) bin centres, Å or degrees.
        blocks: (B, X) values as they are drawn: g(r), or a density an Å or a degree.
        weight: (X,) that makes probabilities of them: r² for g(r) in a cell.
    """

    name: str
    kind: str
    x: np.ndarray
    blocks: np.ndarray
    weight: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(X,) over all blocks."""
        return self.blocks.mean(axis=0)

    @property
    def error(self) -> np.ndarray:
        """(X,) standard error from the blocks; zero if there is one."""
        count = len(self.blocks)
        return self.blocks.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.zeros_like(self.x)

    @property
    def shares(self) -> np.ndarray:
        """(B, X) probabilities of the bins."""
        weighted = self.blocks * self.weight
        totals = weighted.sum(axis=1, keepdims=True)
        return weighted / np.where(totals > 0, totals, 1.0)

    @property
    def average(self) -> float:
        """Mean of x."""
        return float(self.shares.mean(axis=0) @ self.x)


@dataclass(frozen=True)
class Comparison:
    """Two distributions.

    Attributes:
        divergence: Jensen-Shannon's, bits: 0 for equal ones, 1 for such that share nothing.
        noise: what it would be on average for two runs of one and the same method, from the blocks.
        overlap: ``Σ min(p, q)``: 1 for equal ones.
        chance: share of all ways to deal the blocks into two runs that give at least this divergence.
    """

    divergence: float
    noise: float
    overlap: float
    chance: float


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """``½ Σ p log₂(p/m) + ½ Σ q log₂(q/m)``, m = (p + q)/2, of two (X,) that add up to 1 (Lin, IEEE Trans. Inf.
    Theory 37, 145, 1991)."""
    m = 0.5 * (p + q)
    total = 0.0
    for one in (p, q):
        here = one > 0
        total += 0.5 * float(np.sum(one[here] * np.log2(one[here] / m[here])))
    return max(total, 0.0)


def compare(first: Distribution, second: Distribution) -> Comparison:
    """How far ``first`` and ``second`` (same bins) are apart, and whether chance would do that.

    The chance is a permutation test over blocks: exact where blocks are independent, too small where a block is
    shorter than the system's memory. Its smallest value is 1 over the number of ways, 1/35 for four blocks each.
    """
    p, q = first.shares, second.shares
    everything = np.concatenate([p, q])
    k, total = len(p), len(everything)
    found = jensen_shannon(p.mean(axis=0), q.mean(axis=0))
    # of two means over k blocks the squared difference is k times smaller than of two blocks
    apart = [jensen_shannon(a, b) for run in (p, q) for a, b in combinations(run, 2)]
    noise = float(np.mean(apart)) / k if apart else float("nan")
    # the two halves of a deal are the same deal the other way round where both runs have as many blocks
    deals = [deal for deal in combinations(range(total), k) if len(q) != k or 0 in deal]
    reached = 0
    for deal in deals:
        mine = np.zeros(total, dtype=bool)
        mine[list(deal)] = True
        divergence = jensen_shannon(everything[mine].mean(axis=0), everything[~mine].mean(axis=0))
        reached += divergence >= found * (1 - 1e-9)
    overlap = float(np.minimum(p.mean(axis=0), q.mean(axis=0)).sum())
    return Comparison(found, noise, overlap, reached / len(deals))


def _symbol(structure: Structure, atom: int) -> str:
    return str(chemical_symbols[structure.numbers[atom]])


def bond_kinds(structure: Structure) -> dict[str, np.ndarray]:
    """``O-H`` → (M, 2) bonds, found by distance where the structure file had none."""
    found: dict[str, list[list[int]]] = defaultdict(list)
    for i, j in structure.bonds.tolist():
        names = sorted((_symbol(structure, i), _symbol(structure, j)), key=lambda s: (s == "H", s))
        found["-".join(names)].append([i, j])
    return _commonest(found)


def angle_kinds(structure: Structure) -> dict[str, np.ndarray]:
    """``H-O-H`` → (M, 3) atoms, the second one in the middle, of two bonds that meet."""
    neighbours: dict[int, list[int]] = defaultdict(list)
    for i, j in structure.bonds.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    found: dict[str, list[list[int]]] = defaultdict(list)
    for middle, others in neighbours.items():
        for i, k in combinations(sorted(others), 2):
            ends = sorted((_symbol(structure, i), _symbol(structure, k)))
            found[f"{ends[0]}-{_symbol(structure, middle)}-{ends[1]}"].append([i, middle, k])
    return _commonest(found)


def _commonest(found: dict[str, list[list[int]]]) -> dict[str, np.ndarray]:
    kept = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_KINDS]
    return {name: np.array(rows, dtype=np.int64) for name, rows in kept}


def _vectors(frames: MovingFrames, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    vectors = frames.positions[:, second] - frames.positions[:, first]
    return minimum_image(vectors, None if frames.cells is None else frames.cells[:, None])


def bond_lengths(frames: MovingFrames, pairs: np.ndarray) -> np.ndarray:
    """(F, M) Å."""
    return np.asarray(np.linalg.norm(_vectors(frames, pairs[:, 0], pairs[:, 1]), axis=-1))


def angles(frames: MovingFrames, triples: np.ndarray) -> np.ndarray:
    """(F, M) degrees."""
    a = _vectors(frames, triples[:, 1], triples[:, 0])
    b = _vectors(frames, triples[:, 1], triples[:, 2])
    cosine = (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def distributions(runs: list[list[MovingFrames]], structure: Structure) -> list[list[Distribution]]:
    """The same distributions, in the same bins, of each of several runs given as lists of blocks."""
    found: list[list[Distribution]] = [[] for _ in runs]
    for place, blocks in enumerate(runs):
        numbers, labels = structure.numbers, structure.molecules.labels
        functions = [pair_functions_of(block.positions, block.cells, numbers, labels) for block in blocks]
        for index, pair in enumerate(functions[0]):
            values = np.stack([block[index].g for block in functions])
            weight = pair.r**2 if pair.normalised else np.ones_like(pair.r)
            found[place].append(Distribution(f"g(r) {pair.name}", "pair", pair.r, values, weight))
    for kind, width, named, measure in (
        ("bond", BOND_BIN, bond_kinds(structure), bond_lengths),
        ("angle", ANGLE_BIN, angle_kinds(structure), angles),
    ):
        for name, atoms in named.items():
            values_of = [[measure(block, atoms) for block in blocks] for blocks in runs]
            low = min(float(v.min()) for blocks in values_of for v in blocks)
            high = max(float(v.max()) for blocks in values_of for v in blocks)
            edges = np.arange(np.floor(low / width), np.ceil(high / width) + 1.5) * width
            for place, mine in enumerate(values_of):
                counts = np.stack([np.histogram(v, edges)[0] / (v.size * width) for v in mine])
                x = 0.5 * (edges[1:] + edges[:-1])
                found[place].append(Distribution(f"{kind} {name}", kind, x, counts, np.ones_like(x)))
    return found
