"""What a round is worth: errors on structures that nobody learned from, and whether the spread knew of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from egnn_md.data.structures import LabelledSet, read_labelled
from egnn_md.graph import ParticleGraph
from egnn_md.models.committee import CommitteePotential, evaluate_spread
from egnn_md.training.metrics import MEV, measure_errors

BATCH = 16  # graphs
DIGITS = 5


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's ρ of two (n,); None for fewer than three values, or where one of them does not vary."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


def compare(committee: CommitteePotential, graphs: list[ParticleGraph]) -> dict[str, Any]:
    """Spread beside true error of every structure and atom.

    Args:
        committee: on any device.
        graphs: with labels.

    Returns:
        ``structures``: lists of ``energy_std`` and ``energy_error`` (meV an atom), ``max_force_std`` and
        ``max_force_error`` (largest over the atoms), ``force_std`` and ``force_error`` (root mean square over the
        atoms), meV/Å; an atom's error is the length of the difference of the two forces. ``spearman``: rank
        correlations of spread and error ``force`` (root mean square over a structure), ``max_force``, ``atom`` (all
        atoms of all structures) and ``energy``. ``mean_force_std`` and ``mean_force_error``: root mean squares over all
        atoms, meV/Å.
    """
    columns: dict[str, list[float]] = {
        name: [] for name in (
            "energy_std", "energy_error", "force_std", "force_error", "max_force_std", "max_force_error",
        )
    }  # fmt: skip
    atom_spread, atom_error = [], []
    for start in range(0, len(graphs), BATCH):
        batch = graphs[start : start + BATCH]
        joined = ParticleGraph.join(batch).to(dtype=committee.dtype)
        spread = evaluate_spread(committee, joined.to(device=committee.device)).cpu()
        wrong = (spread.forces - joined.labels["forces"].double()).norm(dim=1)
        energy = (spread.energy - joined.labels["energy"]).abs()
        atom_spread.append(spread.force_std.numpy() * MEV)
        atom_error.append(wrong.numpy() * MEV)
        for index, graph in enumerate(batch):
            mine = joined.batch == index
            columns["energy_std"].append(float(spread.energy_std_per_atom[index]) * MEV)
            columns["energy_error"].append(float(energy[index]) / graph.num_nodes * MEV)
            for name, values in (("std", spread.force_std[mine]), ("error", wrong[mine])):
                columns[f"force_{name}"].append(float(values.pow(2).mean().sqrt()) * MEV)
                columns[f"max_force_{name}"].append(float(values.max()) * MEV)
    arrays = {name: np.array(values) for name, values in columns.items()}
    spreads, errors = np.concatenate(atom_spread), np.concatenate(atom_error)
    return {
        "structures": {name: [float(f"{v:.{DIGITS}g}") for v in values] for name, values in arrays.items()},
        "spearman": {
            "force": rank_correlation(arrays["force_std"], arrays["force_error"]),
            "max_force": rank_correlation(arrays["max_force_std"], arrays["max_force_error"]),
            "atom": rank_correlation(spreads, errors),
            "energy": rank_correlation(arrays["energy_std"], arrays["energy_error"]),
        },
        "mean_force_std": float(np.sqrt(np.mean(spreads**2))),
        "mean_force_error": float(np.sqrt(np.mean(errors**2))),
    }


def measure(committee: CommitteePotential, labels: list[Path]) -> dict[str, Any]:
    """Errors (as ``egnn-md train`` measures them) and :func:`compare` on label files; members' own errors beside.

    Raises:
        InputError: a file without labels, or an element that the members do not know.
    """
    found: LabelledSet = read_labelled(labels, committee.cutoff, dtype=committee.dtype)
    members: Any = committee.members
    single = [measure_errors(member, found.graphs, stress=False)["force_rmse"] for member in members]
    groups: dict[str, list[ParticleGraph]] = {}
    for graph, info in zip(found.graphs, found.info, strict=True):
        if "temperature" in info:
            groups.setdefault(f"{float(info['temperature']):g}", []).append(graph)
    with torch.no_grad():
        return {
            "errors": measure_errors(committee, found.graphs, stress=False),
            "member_force_rmse": single,
            "force_rmse_by_temperature": {
                name: measure_errors(committee, graphs, stress=False)["force_rmse"]
                for name, graphs in sorted(groups.items(), key=lambda item: float(item[0]))
            },
            **compare(committee, found.graphs),
        }
