"""Structures to begin with and to test on: molecular dynamics by the reference method, and labels."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.io.extxyz import write_extxyz

from egnn_md.data.calculators import make_calculator, set_total_charge
from egnn_md.data.labelling import LabelSummary, label
from egnn_md.data.structures import read_frames, total_charge
from egnn_md.errors import LabellingError
from egnn_md.learning.config import LabelSection, SampleSection
from egnn_md.simulation.files import write_atomic
from egnn_md.simulation.interrupts import Interrupted
from egnn_md.simulation.mechanics import maxwell_boltzmann
from egnn_md.training.data import expand_files

LABELS = "labels.extxyz"


def write_frames(path: Path, frames: list[Atoms]) -> None:
    """Atomically write ``frames``, without results, as extended XYZ."""
    text = StringIO()
    if frames:
        write_extxyz(text, frames, write_results=False)
    write_atomic(path, text.getvalue().encode())


def first_structures(files: list[str], key: str) -> list[Atoms]:
    """Every structure of ``files``. Raises ConfigError (no such file) or InputError (cannot be read)."""
    return [atoms for path in expand_files(files, key) for atoms in read_frames(path)]


def sample(section: SampleSection, reference: LabelSection, folder: Path, key: str, stop: Callable[[], bool]) -> Path:
    """Frames by the reference method in ``folder``, a file a trajectory, then all in ``structures.extxyz``.

    Raises:
        Interrupted: ``stop()`` said so; trajectories that are whole are kept.
        LabellingError: the reference method failed in the middle of the dynamics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    everything: list[Atoms] = []
    for number, start in enumerate(first_structures(section.structures, key)):
        for temperature in section.temperatures:
            path = folder / f"sample-{number:03d}-{temperature:g}K.extxyz"
            if not path.exists():
                rng = np.random.default_rng([section.seed, number, round(temperature)])
                write_frames(path, _dynamics(start, temperature, section, reference, rng, stop))
            everything += read_frames(path)
    whole = folder / "structures.extxyz"
    write_frames(whole, everything)
    return whole


def _dynamics(
    start: Atoms,
    temperature: float,
    section: SampleSection,
    reference: LabelSection,
    rng: np.random.Generator,
    stop: Callable[[], bool],
) -> list[Atoms]:
    from ase.md.langevinbaoab import LangevinBAOAB

    atoms = start.copy()
    charge = total_charge(atoms)
    calculator = make_calculator(reference.method, **reference.options)
    set_total_charge(calculator, reference.method, charge)
    atoms.calc = calculator
    atoms.set_velocities(maxwell_boltzmann(atoms.get_masses(), temperature, rng) / units.fs)
    frames: list[Atoms] = []
    dynamics: LangevinBAOAB | None = None
    steps = section.equilibration + section.interval * section.frames
    for step in range(1, steps + 1):
        if stop():
            raise Interrupted
        try:
            if dynamics is None:  # it evaluates forces at once
                dynamics = LangevinBAOAB(
                    atoms,
                    section.timestep * units.fs,
                    temperature_K=temperature,
                    T_tau=1000.0 / section.friction * units.fs,
                    rng=rng,
                )
            dynamics.step()
        except Exception as error:  # reference methods raise whatever they like
            raise LabellingError(
                f"{reference.method} failed in step {step} at {temperature:g} K: {error}; take a shorter timestep "
                "or a lower temperature"
            ) from error
        if step > section.equilibration and (step - section.equilibration) % section.interval == 0:
            info: dict[str, Any] = {"temperature": temperature, "step": step}
            if charge:
                info["charge"] = charge
            frames.append(
                Atoms(
                    numbers=atoms.numbers,
                    positions=atoms.positions,
                    cell=atoms.cell if atoms.pbc.any() else None,
                    pbc=atoms.pbc,
                    info=info,
                )
            )
    return frames


def label_frames(frames: list[Atoms], output: Path, reference: LabelSection) -> LabelSummary:
    """Labels of ``frames`` in ``output``; what is there already is skipped.

    Raises:
        Interrupted: a signal came.
        LabellingError, InputError, MissingDependencyError: see :func:`egnn_md.data.labelling.label`.
    """
    summary = label(
        frames,
        output,
        reference.method,
        options=reference.options,
        processes=reference.processes,
        threads=reference.threads,
    )
    if summary.interrupted:
        raise Interrupted
    return summary
