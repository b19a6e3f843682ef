"""Structures that a trained model itself visits: what its own dynamics needs to be right about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import LBFGS

from egnn_md.errors import EgnnMdError

from .sampling import MINIMUM_CONTACT, closest_contact
from .structures import drawn

TEMPERATURES = (300.0, 500.0, 300.0, 700.0)
RELAX_STEPS = 40
STEPS_BETWEEN = 60  # of 0.5 fs
BROKEN_FORCE = 40.0  # eV/Å; a step beyond it has left what any peptide does


def visited_structures(
    model: str | Path, labelled: Sequence[Path], runs: int = 80, frames: int = 4, seed: int = 7_000_000
) -> Iterator[Atoms]:
    """Snapshots of a relaxation and a Langevin run of ``model``, started from structures of label files.

    The relaxation finds holes: a hollow in the model's energy that its teacher does not have pulls atoms in. What
    breaks (contact, force) ends there; the frame before is still given, because just that one is where it is wrong.

    Args:
        model: name or path of a potential.
        labelled: files of training structures.
        runs: structures of each file to start from; of those without a carboxylic acid most are passed over.
        frames: snapshots after the relaxation, ``STEPS_BETWEEN`` steps of 0.5 fs apart.
        seed: of everything.
    """
    from egnn_md_ase import FastEGNNCalculator

    starts = (start for place, path in enumerate(labelled) for start in drawn([path], runs, seed + place))
    for number, (atoms, rng) in enumerate(starts):
        info = dict(atoms.info)
        if rng.random() < 0.7 and not any(state in info["states"] for state in ("ASH", "GLH")):
            continue  # acids lose their protons where a model is wrong
        temperature = TEMPERATURES[number % len(TEMPERATURES)]
        atoms.calc = FastEGNNCalculator(model)
        relaxation = LBFGS(atoms, logfile=None, maxstep=0.1)  # type: ignore[arg-type]
        dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, rng=rng)
        for part in range(frames + 1):
            try:
                if part == 0:
                    relaxation.run(fmax=0.1, steps=RELAX_STEPS)
                    # from a minimum half of the kinetic energy goes into the vibrations' potential energy
                    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature, rng=rng)
                else:
                    dynamics.run(STEPS_BETWEEN)
                broken = np.abs(atoms.get_forces()).max() > BROKEN_FORCE
            except EgnnMdError:
                broken = True
            if broken or closest_contact(atoms) < MINIMUM_CONTACT:
                break
            out = Atoms(atoms.numbers, atoms.positions - atoms.positions.mean(0))
            out.info.update(info, kind="visited", temperature=temperature)
            yield out
