"""Errors of energy, forces and stress: by element, temperature and size, on given labels and on the model's own frames.

The model's own frames are the honest test: they are where a simulation will be, not where the training set was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from egnn_md.data.structures import read_labelled
from egnn_md.graph import ParticleGraph
from egnn_md.learning.measure import compare
from egnn_md.models import evaluate
from egnn_md.models.base import Potential
from egnn_md.models.committee import CommitteePotential
from egnn_md.report.statistics import Estimate
from egnn_md.training.metrics import MEV, measure_errors
from egnn_md.units import GPA_PER_EV_PER_CUBIC_ANGSTROM
from egnn_md.validation.context import Context
from egnn_md.validation.parity import parity_figure
from egnn_md.validation.report_part import PartReport, Skipped, with_error

WORST = 8  # structures of the table
RESAMPLES = 300
BATCH_ATOMS = 2000
UNITS = {"energy": "meV/atom", "force": "meV/Å", "stress": "GPa"}
Array = np.ndarray


@dataclass
class Pairs:
    """Model and reference on S structures: per structure and per atom, in eV, eV/Å and eV/Å³."""

    name: str
    info: list[dict[str, Any]]
    numbers: list[Array] = field(default_factory=list)  #: (N,) of each structure
    energy: list[tuple[float, float]] = field(default_factory=list)  #: (model, reference) an atom
    forces: list[tuple[Array, Array]] = field(default_factory=list)  #: (N, 3) each
    stress: list[tuple[Array, Array] | None] = field(default_factory=list)  #: (3, 3) each
    summary: dict[str, float] = field(default_factory=dict)  #: what `egnn-md train` would say

    def __len__(self) -> int:
        return len(self.info)

    def energy_errors(self, chosen: list[int]) -> Array:
        """(S,) meV/atom."""
        return MEV * np.array([self.energy[i][0] - self.energy[i][1] for i in chosen])

    def force_squares(self, chosen: list[int], number: int | None = None) -> tuple[Array, Array]:
        """(S,) sums of squared errors of force components, (meV/Å)², and their (S,) counts."""
        sums, counts = [], []
        for i in chosen:
            error = MEV * (self.forces[i][0] - self.forces[i][1])
            if number is not None:
                error = error[self.numbers[i] == number]
            sums.append(float((error**2).sum()))
            counts.append(error.size)
        return np.array(sums), np.array(counts)


def collect(model: Potential, files: list[str], name: str) -> Pairs:
    """Evaluate ``model`` on labelled structures. Raises InputError for files without labels."""
    found = read_labelled(files, model.cutoff, dtype=model.dtype)
    pairs = Pairs(name, found.info)

    def keep(model: Potential, graph: ParticleGraph, **options: Any) -> dict[str, Tensor]:
        result = evaluate(model, graph, **options)
        forces = result["forces"].detach().double().cpu().numpy()
        reference = graph.labels["forces"].double().cpu().numpy()
        batch, species = graph.batch.cpu().numpy(), graph.species.cpu().numpy()
        known = graph.labels["stress"]
        for index in range(graph.num_graphs):
            mine = batch == index
            n = int(mine.sum())
            pairs.numbers.append(species[mine])
            pairs.energy.append((float(result["energy"][index]) / n, float(graph.labels["energy"][index]) / n))
            pairs.forces.append((forces[mine], reference[mine]))
            pair = None
            if "stress" in result and bool(torch.isfinite(known[index]).all()):
                pair = (
                    result["stress"][index].detach().double().cpu().numpy(),
                    known[index].double().cpu().numpy(),
                )
            pairs.stress.append(pair)
        return result

    largest = max(graph.num_nodes for graph in found.graphs)
    size = max(BATCH_ATOMS // largest, 1)
    pairs.summary = measure_errors(model, found.graphs, batch_size=size, evaluator=keep)
    if isinstance(model, CommitteePotential):
        pairs.summary |= _calibration(model, found.graphs)
    return pairs


def _calibration(model: CommitteePotential, graphs: list[ParticleGraph]) -> dict[str, float]:
    found = compare(model, graphs)
    known = {f"rank_correlation_{key}": value for key, value in found["spearman"].items() if value is not None}
    return {**known, "mean_force_spread": found["mean_force_std"], "mean_force_error": found["mean_force_error"]}


def root_mean_square(sums: Array, counts: Array, seed: int = 0) -> Estimate:
    """sqrt(Σ sums / Σ counts) with the standard error that resampling whole structures gives (bootstrap)."""
    value = float(np.sqrt(sums.sum() / max(counts.sum(), 1)))
    if len(sums) < 3:
        return Estimate(value, float("nan"), 0.0)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    again = np.sqrt(sums[drawn].sum(axis=1) / np.maximum(counts[drawn].sum(axis=1), 1))
    return Estimate(value, float(again.std(ddof=1)), 0.0)


def energy_rms(errors: Array) -> Estimate:
    """The same of (S,) energy errors."""
    return root_mean_square(errors**2, np.ones(len(errors)))


def groups_of(pairs: Pairs) -> dict[str, dict[str, list[int]]]:
    """By temperature (where the labels say it), by number of atoms: name → indices."""
    by: dict[str, dict[str, list[int]]] = {"temperature": {}, "size": {}}
    for index, info in enumerate(pairs.info):
        try:
            key = f"{float(info['temperature']):g} K"
        except (KeyError, TypeError, ValueError):
            key = ""
        if key:
            by["temperature"].setdefault(key, []).append(index)
        by["size"].setdefault(f"{len(pairs.numbers[index])} atoms", []).append(index)
    return {
        name: dict(sorted(found.items(), key=lambda item: float(item[0].split()[0])))
        for name, found in by.items()
        if len(found) > 1 or (name == "temperature" and found)
    }


def measure(context: Context) -> PartReport:
    """The part ``errors``."""
    report = PartReport("errors")
    sets: list[tuple[str, Callable[[], list[str]]]] = []
    if context.request.all_labels:
        sets.append(("given labels", lambda: list(context.request.all_labels)))
    if context.teacher is not None and context.request.structure is not None:
        for kelvin in context.request.temperatures:
            sets.append((f"own frames at {kelvin:g} K", lambda kelvin=kelvin: [str(context.own_labels(kelvin))]))  # type: ignore[misc]
    if not sets:
        raise Skipped("there are no labels: give --labels FILE, or --against METHOD with a --structure")
    skipped = []
    measured = []
    for name, files in sets:
        try:
            pairs = collect(context.model, files(), name)
        except Skipped as reason:
            skipped.append(f"{name}: {reason}")
            continue
        measured.append(pairs)
        _tell(report, pairs, context)
    if not measured:
        raise Skipped("; ".join(skipped))
    report.reason = "; ".join(skipped)
    _tables(report, measured)
    return report


def _tell(report: PartReport, pairs: Pairs, context: Context) -> None:
    """Verdicts, numbers and figures of one set."""
    everything = list(range(len(pairs)))
    force = root_mean_square(*pairs.force_squares(everything))
    energies = pairs.energy_errors(everything)
    energy, centred = energy_rms(energies), energy_rms(energies - energies.mean())
    size = pairs.summary["force_rms_reference"]
    share = f", {100 * force.value / size:.2g} % of their size ({size:.0f} meV/Å)" if size > 0 else ""
    report.verdict(
        f"Force RMSE, {pairs.name}",
        with_error(force.value, force.error, UNITS["force"]),
        f"{len(pairs)} structures{share}. A few per cent is usual for models whose dynamics are faithful",
    )
    report.verdict(
        f"Energy RMSE, {pairs.name}",
        with_error(centred.value, centred.error, UNITS["energy"]),
        f"without the mean offset of {energies.mean():.3g} meV/atom, which moves no atom",
    )
    report.estimate("force_rmse", force, UNITS["force"], of=pairs.name)
    report.estimate("energy_rmse", energy, UNITS["energy"], of=pairs.name)
    report.estimate("energy_rmse_centred", centred, UNITS["energy"], of=pairs.name)
    for key in ("force_mae", "force_max", "force_rms_reference"):
        report.number(key, pairs.summary[key], UNITS["force"], of=pairs.name)
    for key in ("energy_mae", "energy_mae_centred", "energy_offset"):
        report.number(key, pairs.summary[key], UNITS["energy"], of=pairs.name)
    for key in ("stress_mae", "stress_rmse"):
        if key in pairs.summary:
            report.number(key, pairs.summary[key], UNITS["stress"], of=pairs.name)
    for key, value in pairs.summary.items():
        if key.startswith("rank_correlation_"):
            report.number(key, value, "", of=pairs.name)
        elif key.startswith("mean_force_"):
            report.number(key, value, UNITS["force"], of=pairs.name)
    if "rank_correlation_force" in pairs.summary:
        rho = pairs.summary["rank_correlation_force"]
        report.verdict(
            f"Spread ranks errors, {pairs.name}",
            f"{rho:.2f}",
            "Spearman's ρ of the committee's spread and the true force error: from 0.5 on it is a useful warning",
            "good" if rho >= 0.5 else "look",
        )
    tag = pairs.name.replace(" ", "-")
    report.card[f"force_rmse_meV_per_A, {pairs.name}"] = force.value
    report.card[f"energy_rmse_centred_meV_per_atom, {pairs.name}"] = centred.value
    _figures(report, pairs, context.folder, tag)


def _figures(report: PartReport, pairs: Pairs, folder: Path, tag: str) -> None:
    forces = [np.concatenate([pair[k].reshape(-1) for pair in pairs.forces]) for k in (1, 0)]
    energies = MEV * np.array(pairs.energy)
    offset = energies[:, 1].mean()
    for key, label, reference, found, note in (
        ("energy", "meV/atom", energies[:, 1] - offset, energies[:, 0] - offset, "Zero is the reference's mean."),
        ("force", "eV/Å", forces[0], forces[1], f"{len(forces[0]):,} components."),
    ):
        path = folder / f"errors-{key}-{tag}.png"
        drawing = parity_figure(f"{key}, {pairs.name}", label, reference, found, path)
        title = "Parity of energies" if key == "energy" else "Parity of forces"
        report.figure(f"{title}, {pairs.name}", note, drawing, path.name)
    known = [pair for pair in pairs.stress if pair is not None]
    if known:
        path = folder / f"errors-stress-{tag}.png"
        values = [
            np.concatenate([pair[k].reshape(-1) for pair in known]) * GPA_PER_EV_PER_CUBIC_ANGSTROM for k in (1, 0)
        ]
        drawing = parity_figure(f"stress, {pairs.name}", "GPa", values[0], values[1], path)
        report.figure(f"Parity of stresses, {pairs.name}", "All nine components.", drawing, path.name)


def _tables(report: PartReport, measured: list[Pairs]) -> None:
    rows: list[list[str]] = []
    by_group: dict[str, list[list[str]]] = {"temperature": [], "size": []}
    elements: list[list[str]] = []
    for pairs in measured:
        s = pairs.summary
        rows.append(
            [
                pairs.name, f"{len(pairs)}", f"{s['energy_mae_centred']:.3g}", f"{s['energy_rmse_centred']:.3g}",
                f"{s['energy_rmse']:.3g}", f"{s['force_mae']:.3g}", f"{s['force_rmse']:.3g}", f"{s['force_max']:.4g}",
                f"{s['force_rms_reference']:.4g}", f"{s['stress_rmse']:.3g}" if "stress_rmse" in s else "–",
            ]
        )  # fmt: skip
        everything = list(range(len(pairs)))
        for number in np.unique(np.concatenate(pairs.numbers)):
            symbol = chemical_symbols[number]
            sums, counts = pairs.force_squares(everything, int(number))
            error = root_mean_square(sums, counts)
            reference = np.concatenate([p[1][n == number] for p, n in zip(pairs.forces, pairs.numbers, strict=True)])
            size = MEV * float(np.sqrt((reference**2).mean()))
            report.estimate("force_rmse", error, UNITS["force"], of=f"{pairs.name}, {symbol}")
            elements.append([f"{symbol}, {pairs.name}", with_error(error.value, error.error), f"{size:.4g}"])
        for kind, groups in groups_of(pairs).items():
            for name, chosen in groups.items():
                force = root_mean_square(*pairs.force_squares(chosen))
                errors = pairs.energy_errors(chosen)
                energy, centred = energy_rms(errors), energy_rms(errors - errors.mean())
                report.estimate("force_rmse", force, UNITS["force"], of=f"{pairs.name}, {name}")
                report.estimate("energy_rmse", energy, UNITS["energy"], of=f"{pairs.name}, {name}")
                by_group[kind].append(
                    [
                        f"{name}, {pairs.name}", f"{len(chosen)}", with_error(force.value, force.error),
                        with_error(energy.value, energy.error), with_error(centred.value, centred.error),
                    ]
                )  # fmt: skip
    head = [
        "", "structures", "energy MAE, centred", "energy RMSE, centred", "energy RMSE", "force MAE", "force RMSE",
        "largest", "reference's RMS force", "stress RMSE / GPa",
    ]  # fmt: skip
    report.table("Errors", head, rows, "Energies in meV/atom, forces (components) in meV/Å.")
    report.table(
        "Forces by element", ["", "RMSE", "reference's RMS force"], elements,
        "meV/Å. ± is one standard error, from resampling whole structures.",
    )  # fmt: skip
    head = ["", "structures", "force RMSE", "energy RMSE", "energy RMSE, centred"]
    for kind, title in (("temperature", "By temperature"), ("size", "By number of atoms")):
        if by_group[kind]:
            report.table(title, head, by_group[kind], "meV/Å and meV/atom; centred within the group.")
    report.table("Worst structures", ["", "atoms", "force RMSE", "largest", "energy error"], _worst(measured))


def _worst(measured: list[Pairs]) -> list[list[str]]:
    found = []
    for pairs in measured:
        energies = pairs.energy_errors(list(range(len(pairs))))
        for index, (model, reference) in enumerate(pairs.forces):
            error = MEV * (model - reference)
            info = pairs.info[index]
            extra = [f"{key} {info[key]}" for key in ("temperature", "step") if key in info]
            name = f"{pairs.name}, frame {index}" + (f" ({', '.join(extra)})" if extra else "")
            rms = float(np.sqrt((error**2).mean()))
            row = [name, f"{len(error)}", f"{rms:.4g}", f"{np.abs(error).max():.4g}", f"{energies[index]:.3g}"]
            found.append((rms, row))
    return [row for _, row in sorted(found, key=lambda item: -item[0])[:WORST]]
