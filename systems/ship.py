"""``python -m egnn_md_systems.ship NAME MODEL``: give a trained model its card and ship it under a name.

The measured errors and the data digest stay those that training wrote; this adds what a user must know before a
model is trusted. The file goes to where the entry point of that name (group ``egnn_md.models``) looks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from egnn_md.checkpoint import MODEL_GROUP, load_model, save_model
from egnn_md.errors import InputError
from egnn_md.models.propagator import FastEGNNPropagator

FEMTOSECONDS = {"length": "angstrom", "time": "femtosecond"}


@dataclass(frozen=True)
class Shipped:
    """What a card says, and what the model must be.

    Attributes:
        description, intended_use, limits: text of the card.
        system: of a propagator; empty for a potential.
        stride: of a propagator, in ``units``.
        units: of a propagator.
        needs: of a potential that is a part of the energy only: what must be added, and how.
    """

    description: str
    intended_use: str
    limits: str
    system: str = ""
    stride: float = 0.0
    units: dict[str, str] | None = None
    needs: str = ""


def _water_propagator(stride: int) -> Shipped:
    return Shipped(
        description=f"One step is {stride} fs of constant-energy dynamics of liquid water (potential: water)",
        intended_use="Trying out rollouts in periodic boxes of neat liquid water near 300 K and 0.997 g/cm3; comparing "
        "learned propagators with the potential that they were learned from.",
        limits="Not for results about water: energy and momentum are not conserved, the temperatures of hydrogen and "
        "oxygen part, and rollouts fail; how soon is in systems/water_propagator/README.md. Trained for minutes on a "
        "few picoseconds. Neighbours beyond 3.2 angstrom are seen through the layers and the virtual nodes only.",
        system="water",
        stride=float(stride),
        units=FEMTOSECONDS,
    )


SHIPPED = {
    "water": Shipped(
        description="Liquid water and water droplets, FastEGNN imitating GFN2-xTB",
        intended_use="Molecular dynamics of neat, undissociated liquid water: 280 to 600 K, 0.9 to 1.1 g/cm3 in "
        "periodic boxes of any size from 27 molecules on, and droplets of 1 to 40 molecules; trying out and testing "
        "the tools.",
        limits="It has GFN2-xTB's errors (density, structure and dynamics differ from experiment) and its own on top. "
        "Not for ions, proton transfer, dissociation, ice, solutes, interfaces with anything else, pressures far from "
        "ambient, or temperatures above 600 K. Not for the density at ambient pressure: its teacher wants to expand "
        "at 1 g/cm3, and so does the model (0.81 g/cm3 after 2 ps of NPT at 1 bar, below the densities it was trained"
        " on); run at fixed volume, or under a pressure that keeps 0.9 g/cm3. Labels are Gamma-point energies of "
        "small boxes: no long-range dispersion or electrostatics beyond what five angstrom per layer and the virtual "
        "nodes carry.",
    ),
    "peptide": Shipped(
        description="Capped peptides of all 20 amino acids in vacuum, FastEGNN imitating GFN2-xTB",
        intended_use="Molecular dynamics of single peptides in vacuum at 300 to 500 K, capped by acetyl and "
        "N-methylamide groups, neutral or with one charged residue (ASP-, GLU-, LYS+, HIP+, ARG+); starting points "
        "for fine-tuning; trying out and testing the tools.",
        limits="It has GFN2-xTB's errors and its own on top (systems/peptide/README.md). Trained on "
        "one to three residues and on pairs of single ones: longer chains are extrapolation, tried on chignolin only. "
        "Strictly local: nothing is felt beyond three times five angstrom, so energies of charged or extended "
        "molecules miss electrostatics. Not for two charged residues (protons would move), zwitterions and free ends, "
        "proton transfer, disulphide bridges, D residues, water, ions, radicals, or temperatures above 700 K. Hydrogen "
        "bonds of neutral carboxyl groups are somewhat too strong.",
    ),
    **{f"water-{stride}fs": _water_propagator(stride) for stride in (2, 4, 8)},
    "alanine-dipeptide": Shipped(
        description="Alanine dipeptide (ACE-ALA-NME) in vacuum, FastEGNN imitating GFN2-xTB",
        intended_use="Molecular dynamics and free energies of this one molecule, neutral and whole, 300 to 500 K, "
        "anywhere in the Ramachandran plane; the ML part of mixed ML/MM simulations with mechanical embedding; trying "
        "out and testing the tools.",
        limits="It has GFN2-xTB's errors and its own on top. One molecule alone: not for two of them, other molecules "
        "or peptides, ions, other protonation states, bond breaking, or compressed structures. Cis peptide bonds were "
        "seen in a few structures only, temperatures up to 700 K in some. In solvent it is a vacuum potential: nothing "
        "polarises it.",
    ),
    "nbody": Shipped(
        description="100 charged particles in open space, one time unit ahead (the paper's first benchmark)",
        intended_use="The benchmark's own question, frame 30 to 40 of egnn-md generate nbody; trying out the tools.",
        limits="One stride is what it was trained for: the next one starts from a velocity that is predicted far worse "
        "than the position. Energy and momentum are not conserved. Trained with a small part of the paper's budget; "
        "errors are in systems/nbody/README.md.",
        system="nbody",
        stride=1.0,
        units={"length": "none", "time": "none"},
    ),
    "chignolin-cg": Shipped(
        description="Folded chignolin in C-alpha beads at 300 K: what force matching adds to a bonded prior",
        intended_use="Trying out coarse-grained dynamics and force matching, always together with the prior of "
        "systems/protein_cg (egnn_md_systems.protein_cg.dynamics.bead_system).",
        limits="Never alone: without the prior (prior.json, four OpenMM forces) the chain has no bonds and falls "
        "apart. A free energy at 300 K, valid at 300 K only. Elements 97 to 116 stand for residue kinds (GLY is 102), "
        "not for atoms, and masses must be given. Learned from two nanoseconds of one folded peptide in "
        "implicit solvent: no unfolding, no other sequence, no kinetics (coarse-grained time runs faster). The labels "
        "are nearly all noise, so force errors are those of the noise, and the energy errors above mean nothing: force "
        "matching has no energies.",
        needs="the bonded prior of its beads: `python -m egnn_md_systems.protein_cg.validate --steps 4000 --output "
        "FOLDER` runs both, and egnn_md_systems.protein_cg.dynamics.bead_system(residues, shipped_prior(), "
        "'chignolin-cg') gives both as one openmm.System",
    ),
    "adk": Shipped(
        description="Backbone of adenylate kinase, 40 fs ahead, from Langevin dynamics in implicit solvent",
        intended_use="Comparing networks on a protein; trying out rollouts and their metrics.",
        limits="Learned from 15 ps of one trajectory: it knows vibrations, not the domain motion, and no other "
        "protein. It predicts the mean of a noisy process, so rollouts cool down and freeze or drift; how soon is in "
        "systems/adk/README.md.",
        system="adk",
        stride=40.0,
        units=FEMTOSECONDS,
    ),
    "liquid": Shipped(
        description="SPH liquid, 1,800 particles of radius 0.025 m splashing in a closed box of 1 m, 40 ms ahead",
        intended_use="Rollouts of small splashes, with animations; trying out the tools.",
        limits="Only particles of radius 0.025 m, this box and this gravity. Volume, energy and momentum are not "
        "conserved; errors and the density error of rollouts are in systems/liquid/README.md.",
        system="liquid",
        stride=0.04,
        units={"length": "m", "time": "s"},
    ),
}


def ship(name: str, model: Path, target: Path, history: str = "") -> Path:
    """Write ``model`` with the card of ``name`` to ``target``.

    Raises:
        InputError: there is no such name, or the model is not of its system, stride and units.
    """
    if name not in SHIPPED:
        raise InputError(f"nothing is shipped as {name!r}; known: {', '.join(SHIPPED)}")
    texts = SHIPPED[name]
    loaded = load_model(model)
    card = loaded.card
    if texts.system:
        if not isinstance(loaded, FastEGNNPropagator) or loaded.config.system != texts.system:
            raise InputError(f"{model} is not a propagator of {texts.system!r}, so it is not shipped as {name!r}")
        found = loaded.config
        if found.units != texts.units or abs(found.stride / texts.stride - 1) > 1e-6:
            raise InputError(
                f"{model} has a stride of {found.stride:g} in units {found.units}; "
                f"{name!r} has {texts.stride:g} in {texts.units}"
            )
    elif isinstance(loaded, FastEGNNPropagator):
        raise InputError(f"{model} is a propagator, but {name!r} is a potential")
    update = {
        "name": name,
        "description": texts.description,
        "intended_use": texts.intended_use,
        "limits": texts.limits,
        "needs": texts.needs,
        "licence": "MIT",
        "training_data": {**card.training_data, **({"history": history} if history else {})},
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    return save_model(loaded, target, card.model_copy(update=update))


def place_of(name: str) -> Path:
    """Where the entry point of that name looks for its file.

    Raises:
        InputError: no entry point has that name.
    """
    for entry in entry_points(group=MODEL_GROUP):
        if entry.name == name:
            return Path(entry.load()())
    raise InputError(f"no entry point of the group {MODEL_GROUP} is called {name!r}")


def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(SHIPPED)}.")],
    model: Annotated[Path, typer.Argument(help="Model file that egnn-md train wrote.")],
    history: Annotated[str, typer.Option(help="How the weights came about, for the card.")] = "",
) -> None:
    """Ship a trained model."""
    typer.echo(ship(name, model, place_of(name), history))


if __name__ == "__main__":
    typer.run(main)
