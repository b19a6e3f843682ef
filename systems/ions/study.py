"""``python -m egnn_md_systems.ions.study SET``: one network with three kinds of virtual nodes, on one set.

``local`` has none, ``features`` has virtual nodes that carry features only, ``fourier`` has nodes with Fourier modes.
All else is the same: data, steps, seed. A second call goes on; ``results.json`` in the output holds what is printed.

SET is ``pairs`` (salt bridges up to 15 Å), ``pairs-near`` (trained up to 9 Å, tested up to 15), ``salt-water`` or
``water`` (the periodic GFN2-xTB boxes of :mod:`egnn_md_systems.water`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms

from egnn_md.checkpoint import load_model
from egnn_md.data.structures import graph_from_atoms, read_frames
from egnn_md.models import FastEGNNPotential, evaluate
from egnn_md.simulation.files import write_json
from egnn_md.training.metrics import measure_errors
from egnn_md.training.tasks import load_any_config, run_training

HERE = Path(__file__).parent
CHANNELS = 4
BINS = ((5.0, 7.5), (7.5, 10.0), (10.0, 12.5), (12.5, 15.0))  # Å, between the charged groups


@dataclass(frozen=True)
class Study:
    """What is trained and what it is tested on.

    Attributes:
        config: training configuration, a file beside this one.
        train: label file of the training set.
        tests: label files by name.
        width: σ of the Fourier modes, Å.
    """

    config: str
    train: str
    tests: dict[str, str]
    width: float


def studies(data: Path) -> dict[str, Study]:
    """Every study by name; ``data`` holds the label files of :mod:`egnn_md_systems.ions.make_data`."""
    water = HERE.parent / "water" / "data"
    salt = {"test": str(data / "salt-water-test.extxyz"), "twice the cell": str(data / "salt-water-large.extxyz")}
    pairs = {"test": str(data / "pairs-test.extxyz")}
    return {
        "pairs": Study("pairs.yaml", str(data / "pairs.extxyz"), pairs, 2.5),
        "pairs-near": Study("pairs.yaml", str(data / "pairs-near.extxyz"), pairs, 2.5),
        "salt-water": Study("salt_water.yaml", str(data / "salt-water.extxyz"), salt, 1.8),
        "water": Study(
            "water.yaml", str(data / "water-boxes.extxyz"), {"60 molecules": str(water / "test.extxyz.xz")}, 1.8
        ),
    }


def variants(width: float) -> dict[str, dict[str, Any]]:
    """Changes of the ``model`` section by name."""
    return {
        "local": {"virtual_nodes": 0, "fourier_width": 0.0},
        "features": {"virtual_nodes": CHANNELS, "fourier_width": 0.0},
        "fourier": {"virtual_nodes": CHANNELS, "fourier_width": width},
    }


def pair_errors(model: FastEGNNPotential, frames: Sequence[Atoms]) -> dict[str, float]:
    """Root mean square energy errors (meV a pair) by distance, and of all pairs without a common neighbourhood.

    ``apart``: no atom of one molecule within the cutoff of the other.
    """
    errors = []
    for atoms in frames:
        graph = graph_from_atoms(atoms, model.cutoff, dtype=torch.float32, labels=True)
        errors.append(float(evaluate(model, graph, forces=False)["energy"][0] - graph.labels["energy"][0]) * 1000)
    found, distances = np.array(errors), np.array([atoms.info["distance"] for atoms in frames])
    gaps = np.array([atoms.info["gap"] for atoms in frames])

    def rms(chosen: np.ndarray) -> float:
        return float(np.sqrt(np.mean(found[chosen] ** 2)))

    out = {f"{low:g} to {high:g} Å": rms((distances >= low) & (distances < high)) for low, high in BINS}
    return {**out, "apart": rms(gaps > model.cutoff), "apart, pairs": float((gaps > model.cutoff).sum())}


def measure(path: Path, study: Study) -> dict[str, dict[str, float]]:
    """Errors of a model file on each test set."""
    model = load_model(path)
    found = {}
    for name, file in study.tests.items():
        frames = read_frames(file)
        graphs = [graph_from_atoms(atoms, model.cutoff, dtype=torch.float32, labels=True) for atoms in frames]
        found[name] = measure_errors(model, graphs)
        if "distance" in frames[0].info:
            found[name] |= pair_errors(model, frames)
    return found


def table(results: dict[str, Any]) -> str:
    """The figures that the pages show, as Markdown."""
    rows = []
    for variant, of_sets in results.items():
        for name, errors in of_sets.items():
            cells = [variant, name, f"{errors['force_rmse']:.1f}", f"{errors['energy_rmse']:.2f}"]
            cells += [f"{errors[key]:.0f}" for key in errors if key.endswith("Å") or key == "apart"]
            rows.append(cells)
    heads = ["virtual nodes", "tested on", "forces, meV/Å", "energy, meV/atom"]
    heads += ["", "", "", "", ""][: len(rows[0]) - len(heads)]
    if len(rows[0]) > 4:
        heads[4:] = [*(f"{low:g} to {high:g} Å" for low, high in BINS), "no common neighbours, meV"]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(
    name: Annotated[str, typer.Argument(metavar="SET")],
    data: Annotated[Path, typer.Option(help="folder of the label files")] = Path("runs/ions"),
    output: Annotated[Path, typer.Option(help="folder of the models and results")] = Path("runs/ions/study"),
    steps: Annotated[int | None, typer.Option(help="training steps; the configuration's if not given")] = None,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Train what is not there yet, measure all of it and print a table."""
    known = studies(data)
    if name not in known:
        raise typer.BadParameter(f"unknown set {name!r}; known: {', '.join(known)}")
    study = known[name]
    results: dict[str, Any] = {}
    for variant, changes in variants(study.width).items():
        folder = output / name / f"{variant}-{seed}"
        settings = {f"model.{key}": value for key, value in changes.items()}
        settings |= {"data.train": [study.train], "data.test": [], "output": str(folder), "seed": seed}
        settings |= {"name": f"{name}-{variant}"} | ({"max_steps": steps} if steps else {})
        overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        trained = run_training(load_any_config(HERE / study.config, overrides), resume=True)
        if not trained.finished or trained.model is None:
            raise typer.Exit(130)
        results[variant] = measure(trained.model, study)
        write_json(output / name / f"results-{seed}.json", results)
    typer.echo(table(results))


if __name__ == "__main__":
    typer.run(main)
