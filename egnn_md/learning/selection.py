"""Which structures are worth a label: those the committee disagrees about, and no two of one kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from egnn_md.learning.config import SelectSection
from egnn_md.learning.explore import Candidate
from egnn_md.models.committee import CommitteePotential
from egnn_md.simulation.spread import SpreadEvaluator


@dataclass
class Selection:
    """Chosen structures with their spread in ``info``, and why the others were left.

    Attributes:
        chosen: in the order of their rank.
        spreads: (C,) largest force spread of every candidate, eV/Å.
        left: counts by reason.
    """

    chosen: list[Atoms] = field(default_factory=list)
    spreads: np.ndarray = field(default_factory=lambda: np.zeros(0))
    left: dict[str, int] = field(default_factory=dict)


def rmsd(first: Atoms, others: np.ndarray) -> np.ndarray:
    """(K,) Å: root mean square deviation of a structure from positions (K, N, 3) of the same atoms in one order.

    Open systems are laid over each other (Kabsch, Acta Cryst. A 32, 922, 1976; proper rotations only); periodic ones
    are compared by nearest images after their mean displacement is taken out.
    """
    if first.pbc.any():
        cell = np.asarray(first.cell.array)
        inverse = np.linalg.pinv(np.where(first.pbc[:, None], cell, 0.0))
        apart = others - first.positions
        for _ in range(2):  # the mean is known once the images are
            apart = apart - np.round(apart @ inverse) @ cell
            apart = apart - apart.mean(axis=1, keepdims=True)
        return np.sqrt((apart**2).sum(axis=2).mean(axis=1))
    a = first.positions - first.positions.mean(axis=0)
    b = others - others.mean(axis=1, keepdims=True)
    values = np.linalg.svd(np.einsum("ni,knj->kij", a, b))
    sign = np.sign(np.linalg.det(values[0]) * np.linalg.det(values[2]))
    overlap = values[1][:, 0] + values[1][:, 1] + sign * values[1][:, 2]
    squared = ((a**2).sum() + (b**2).sum(axis=(1, 2)) - 2.0 * overlap) / len(a)
    return np.sqrt(np.clip(squared, 0.0, None))


class _Known:
    """Structures so far, by composition: in a new one's neighbourhood there is nothing to learn."""

    def __init__(self, structures: list[Atoms]) -> None:
        self._positions: dict[bytes, list[np.ndarray]] = {}
        for atoms in structures:
            self.add(atoms)

    @staticmethod
    def _key(atoms: Atoms) -> bytes:
        return np.asarray(atoms.numbers).tobytes() + np.asarray(atoms.pbc).tobytes()

    def add(self, atoms: Atoms) -> None:
        self._positions.setdefault(self._key(atoms), []).append(np.array(atoms.positions))

    def nearest(self, atoms: Atoms) -> float:
        """Å; infinite where no structure has these atoms."""
        same = self._positions.get(self._key(atoms))
        return float(rmsd(atoms, np.stack(same)).min()) if same else np.inf


def measure_spreads(committee: CommitteePotential, found: list[Candidate]) -> list[tuple[float, float, int]]:
    """Of every candidate: largest and root-mean-square force spread (eV/Å), and the atom of the largest."""
    evaluators: dict[bytes, SpreadEvaluator] = {}
    values = []
    for candidate in found:
        atoms = candidate.atoms
        key = np.asarray(atoms.numbers).tobytes() + np.asarray(atoms.pbc).tobytes()
        if key not in evaluators:
            evaluators[key] = SpreadEvaluator(committee, atoms.numbers, atoms.pbc)
        spread = evaluators[key](atoms.positions, atoms.cell.array)
        atom, largest = spread.worst()
        values.append((largest, float(spread.force_std.pow(2).mean().sqrt()), atom))
    return values


def select(
    found: list[Candidate],
    values: list[tuple[float, float, int]],
    section: SelectSection,
    labelled: list[Atoms],
    seed: list[int],
) -> Selection:
    """At most ``section.count`` candidates, the most uncertain first (or in random order), not too alike.

    Args:
        found: candidates.
        values: of :func:`measure_spreads`.
        section: the rules.
        labelled: structures that have labels already.
        seed: of the random order.
    """
    largest = np.array([value[0] for value in values])
    result = Selection(spreads=largest[np.isfinite(largest)])
    order = np.argsort(-np.nan_to_num(largest, nan=np.inf), kind="stable")
    if section.by == "random":
        order = np.random.default_rng(seed).permutation(len(found))
    known = _Known(labelled)
    times: dict[str, list[float]] = {}

    def leave(reason: str) -> None:
        result.left[reason] = result.left.get(reason, 0) + 1

    for index in order.tolist():
        candidate, (value, mean, atom) = found[index], values[index]
        if len(result.chosen) == section.count:
            leave("beyond the count")
        elif not np.isfinite(value) or (section.highest is not None and value > section.highest):
            leave("spread above the highest")
        elif value < section.lowest:
            leave("spread below the lowest")
        elif any(abs(candidate.time - time) < section.spacing for time in times.get(candidate.run, [])):
            leave("too near in time")
        elif known.nearest(candidate.atoms) < section.min_rmsd:
            leave("too like another one")
        else:
            known.add(candidate.atoms)
            times.setdefault(candidate.run, []).append(candidate.time)
            atoms = candidate.atoms.copy()
            atoms.info.update(
                run=candidate.run,
                time_fs=candidate.time,
                temperature=candidate.temperature,
                source=candidate.why,
                max_force_std=value,
                rms_force_std=mean,
                uncertain_atom=atom,
            )
            result.chosen.append(atoms)
    return result


def describe(selection: Selection) -> dict[str, Any]:
    """JSON values: counts, and quantiles of the candidates' spread (eV/Å)."""
    spreads = selection.spreads
    shares = {"minimum": 0, "median": 50, "90%": 90, "maximum": 100}
    quantiles = {name: float(np.percentile(spreads, share)) for name, share in shares.items()} if len(spreads) else {}
    return {
        "candidates": len(spreads),
        "chosen": len(selection.chosen),
        "left": selection.left,
        "spread": quantiles,
        "chosen_spread": [float(atoms.info["max_force_std"]) for atoms in selection.chosen],
    }
