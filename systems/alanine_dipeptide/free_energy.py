"""``python -m egnn_md_systems.alanine_dipeptide.free_energy``: the model's free-energy surface and its teacher's.

1. Short umbrella sampling with the model at 300 K in 12 x 12 windows on the (phi, psi) plane: where is it worth more?
2. Long umbrella sampling in the windows of low free energy; MBAR gives the surface.
3. The reference method's energies of the same snapshots give its surface by reweighting.
4. ``--direct``: umbrella sampling of the same windows with the reference method itself.

Every part is kept in the output folder, and a second call goes on where the first was stopped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from egnn_md import load_model
from egnn_md.checkpoint import model_digest
from egnn_md.data.calculators import make_calculator
from egnn_md.errors import InputError

from .molecule import C7AX, C7EQ, PHI, PSI, dihedral, has_right_bonds, is_left_handed_amino_acid
from .sampling import Run, force_field_trajectory
from .structures import CENTRES
from .surface import (
    HALF_WIDTH,
    Samples,
    basin_difference,
    effective_fraction,
    free_energy_map,
    half_plane_difference,
    jackknife,
    perturbed,
    unbiased_weights,
)
from .swarm import Evaluator, Swarm, calculator_evaluator, model_evaluator

Array = NDArray[np.float64]
TEMPERATURE = 300.0  # K
STRENGTH = 0.25  # eV; a window is 18 degrees wide, its neighbours 30 degrees away
TIMESTEP = 2.0  # fs, with hydrogens of 4 u
FRICTION = 0.01  # 1/fs
EQUILIBRATION_STEPS = 250
STEPS_BETWEEN = 20
SCOUT = (100, 5)  # steps before, and snapshots, of the short runs everywhere
TOGETHER = 24  # windows sampled and stored at once
METHOD = "gfn2-xtb"
BOXES = "C7ax minus C7eq, kcal/mol"
HALVES = "phi in (0, 130) minus the rest, kcal/mol"


def windows() -> Array:
    """(144, 2) centres, degrees."""
    return np.array([(phi, psi) for phi in CENTRES for psi in CENTRES])


def sample_windows(
    evaluator: Evaluator, centres: Array, snapshots: int, folder: Path, seed: int, before: int = EQUILIBRATION_STEPS
) -> dict[str, Array]:
    """Umbrella sampling in ``centres`` (W, 2): ``positions`` (W, T, 22, 3), ``energies`` (W, T), ``centres``.

    Chunks of ``TOGETHER`` windows are stored in ``folder``; those that are there are not sampled again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks: list[dict[str, Array]] = []
    for first in range(0, len(centres), TOGETHER):
        part = centres[first : first + TOGETHER]
        path = folder / f"{first:03d}.npz"
        if not path.exists():
            _store(path, _sample_chunk(evaluator, part, before, snapshots, seed + first))
        with np.load(path) as stored:
            chunks.append({name: stored[name] for name in stored.files})
        typer.echo(f"{folder.name}: {first + len(part)} of {len(centres)} windows", err=True)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _sample_chunk(evaluator: Evaluator, centres: Array, before: int, snapshots: int, seed: int) -> dict[str, Array]:
    starts = []
    for index, (phi, psi) in enumerate(centres):
        run = Run(TEMPERATURE, (phi, psi), {"phi": phi, "psi": psi}, seed=1 + 2 * (seed + index))
        starts.append(next(force_field_trajectory(run, 1, 0.2, 0.3)).positions)
    swarm = Swarm(
        evaluator, np.array(starts), TEMPERATURE, centres, STRENGTH, TIMESTEP, FRICTION, heavy_hydrogens=True, seed=seed
    )
    swarm.run(before)
    positions, energies = [], []
    for _ in range(snapshots):
        swarm.run(STEPS_BETWEEN)
        positions.append(swarm.positions.copy())
        energies.append(swarm.energies.copy())
    return {"positions": np.array(positions).swapaxes(0, 1), "energies": np.array(energies).T, "centres": centres}


def check_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Note what the snapshots of ``folder`` come from; they must not be mixed with another model's.

    Raises:
        InputError: the folder holds those of another model or other settings.
    """
    path = folder / "origin.json"
    if path.exists():
        known = json.loads(path.read_text())
        for key, value in origin.items():
            if known.get(key) != value:
                raise InputError(
                    f"{folder} holds snapshots with {key} = {known.get(key)}, but this call has {value}; "
                    "choose another --output, or remove the folder"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(origin, indent=1) + "\n")


def _store(path: Path, arrays: dict[str, Array]) -> None:
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, allow_pickle=False, **arrays)
    temporary.replace(path)


def energies_of(evaluator: Evaluator, sampled: dict[str, Array], folder: Path) -> Array:
    """Energies (W, T), eV, of stored snapshots by another potential, kept on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for first in range(0, len(sampled["centres"]), TOGETHER):
        path = folder / f"{first:03d}.npz"
        part = sampled["positions"][first : first + TOGETHER]
        if not path.exists():
            flat = evaluator(part.reshape(-1, *part.shape[2:]))[0]
            _store(path, {"energies": flat.reshape(part.shape[:2])})
        with np.load(path) as stored:
            rows.append(stored["energies"])
        typer.echo(f"{folder.name}: energies of {first + len(part)} of {len(sampled['centres'])} windows", err=True)
    return np.concatenate(rows)


def samples_of(sampled: dict[str, Array]) -> Samples:
    """Angles of stored snapshots."""
    positions = sampled["positions"]
    return Samples(dihedral(positions, PHI), dihedral(positions, PSI), sampled["centres"], STRENGTH, TEMPERATURE)


def compare(samples: Samples, sampler: Array, model: Array, reference: Array) -> tuple[dict[str, Any], Array, Array]:
    """Figures, and the surfaces of the model and of the reference method on the same snapshots.

    Args:
        samples: angles of W windows with T snapshots each.
        sampler: (W, T) energies, eV, of the potential that sampled.
        model, reference: (W, T) energies, eV, of the two that are compared.
    """

    def both(kept: NDArray[np.bool_]) -> tuple[Samples, Array, Array, Array]:
        part = samples.block(kept)
        drawn = unbiased_weights(part)
        changes = [(energies - sampler)[:, kept] for energies in (model, reference)]
        one, other = (perturbed(drawn, change, samples.kt) for change in changes)
        return part, drawn, one, other

    def differences(kept: NDArray[np.bool_]) -> Array:
        part, _, one, other = both(kept)
        boxes = [basin_difference(part, weights) for weights in (one, other)]
        halves = [half_plane_difference(part, weights) for weights in (one, other)]
        return np.array([*boxes, boxes[0] - boxes[1], *halves, halves[0] - halves[1]])

    value, error = jackknife(samples, differences)
    _, drawn, one, other = both(np.ones(samples.phi.shape[1], bool))
    change = reference - model
    spread = np.sqrt(np.sum(one * (change - np.sum(one * change)) ** 2))
    maps = free_energy_map(samples, one), free_energy_map(samples, other)
    low = np.isfinite(maps[0]) & np.isfinite(maps[1]) & (maps[1] < 6.0)
    names = ("model", "reference", "model minus reference")
    figures: dict[str, Any] = {
        BOXES: {name: [value[i], error[i]] for i, name in enumerate(names)},
        HALVES: {name: [value[3 + i], error[3 + i]] for i, name in enumerate(names)},
        "effective fraction of the snapshots, model": effective_fraction(drawn, one),
        "effective fraction of the snapshots, reference": effective_fraction(drawn, other),
        "spread of reference minus model energy in the model's ensemble, meV": 1000 * float(spread),
        "mean absolute difference of the surfaces below 6 kcal/mol": float(np.abs(maps[0] - maps[1])[low].mean()),
        "windows": len(samples.phi),
        "snapshots": int(samples.phi.size),
    }
    return figures, *maps


def plot(maps: dict[str, Array], path: Path, highest: float = 12.0) -> None:
    """Surfaces side by side, kcal/mol, with the boxes of the two basins."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(4.3 * len(maps) + 0.6, 4.0), layout="constrained")
    panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for panel, (title, energy) in zip(panels, maps.items(), strict=True):
        shown = np.where(energy <= highest, energy, np.nan).T
        image = panel.imshow(shown, origin="lower", extent=(-180, 180, -180, 180), vmin=0, vmax=highest, cmap="viridis")
        for name, (phi, psi) in (("C7eq", C7EQ), ("C7ax", C7AX)):
            corner = (phi - HALF_WIDTH, psi - HALF_WIDTH)
            panel.add_patch(Rectangle(corner, 2 * HALF_WIDTH, 2 * HALF_WIDTH, fill=False, color="white"))
            panel.annotate(name, (phi, psi + HALF_WIDTH - 12), color="white", ha="center", fontsize=8)
        panel.set(title=title, xlabel="φ, degrees", xticks=range(-180, 181, 90), yticks=range(-180, 181, 90))
    panels[0].set_ylabel("ψ, degrees")
    figure.colorbar(image, ax=list(panels), label="free energy at 300 K, kcal/mol")
    figure.savefig(path, dpi=90)


def main(
    model: Annotated[str, typer.Option(help="name or path of a potential")] = "alanine-dipeptide",
    sampler: Annotated[str | None, typer.Option(help="potential that samples, if it is to be another one")] = None,
    output: Annotated[Path, typer.Option(help="folder of snapshots, figures and the plot")] = Path(
        "runs/alanine_dipeptide/free_energy"
    ),
    snapshots: Annotated[int, typer.Option(help="a window, 40 fs apart")] = 100,
    below: Annotated[float, typer.Option(help="sample windows whose free energy is below it, kcal/mol")] = 9.0,
    direct: Annotated[bool, typer.Option(help="also sample with the reference method itself")] = False,
    seed: Annotated[int, typer.Option()] = 700_000,
) -> None:
    """Free-energy surfaces of the model and of its reference method, and the difference between C7ax and C7eq."""
    measured = load_model(model)
    drawing_model = load_model(sampler) if sampler is not None else measured
    origin = {"sampler": model_digest(drawing_model), "snapshots": snapshots, "below": below, "seed": seed}
    check_origin(output, {**origin, "strength": STRENGTH, "temperature": TEMPERATURE})
    drawing = model_evaluator(drawing_model)
    scout = sample_windows(drawing, windows(), SCOUT[1], output / "scout", seed, SCOUT[0])
    first = samples_of(scout)
    chosen = windows()[low_windows(free_energy_map(first, unbiased_weights(first)), below)]
    sampled = sample_windows(drawing, chosen, snapshots, output / "sampled", seed + 10_000)
    samples = samples_of(sampled)
    teacher = calculator_evaluator(make_calculator(METHOD))
    reference = energies_of(teacher, sampled, output / "reference")
    own = sampled["energies"]
    if sampler is not None:
        own = energies_of(model_evaluator(measured), sampled, output / f"model-{model_digest(measured)[:12]}")
    figures, surface, other = compare(samples, sampled["energies"], own, reference)
    intact = [has_right_bonds(p) and bool(is_left_handed_amino_acid(p)) for row in sampled["positions"] for p in row]
    figures["snapshots with a broken bond or the wrong hand"] = len(intact) - sum(intact)
    maps = {"FastEGNN": surface, "GFN2-xTB, same snapshots": other}
    if direct:
        by_itself = samples_of(sample_windows(teacher, chosen, snapshots, output / "direct", seed + 50_000))

        def difference(kept: NDArray[np.bool_]) -> Array:
            part = by_itself.block(kept)
            weights = unbiased_weights(part)
            return np.array([basin_difference(part, weights), half_plane_difference(part, weights)])

        value, error = jackknife(by_itself, difference)
        for title, index in ((BOXES, 0), (HALVES, 1)):
            figures[title]["reference, sampled by itself"] = [value[index], error[index]]
        maps["GFN2-xTB, own sampling"] = free_energy_map(by_itself, unbiased_weights(by_itself))
    (output / "free_energy.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot(maps, output / "free_energy.png")
    typer.echo(json.dumps(figures, indent=1))


def low_windows(energy: Array, below: float) -> NDArray[np.bool_]:
    """(144,) whether the map (36, 36) goes below that many kcal/mol within 15 degrees of a window's centre."""
    per_window = np.where(np.isfinite(energy), energy, np.inf).reshape(12, 3, 12, 3).min(axis=(1, 3))
    return np.asarray(per_window.ravel() < below)


if __name__ == "__main__":
    typer.run(main)
