"""``python -m egnn_md_systems.peptide.chignolin``: the ready structure of chignolin, and what a run made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from egnn_md_systems.peptide.from_pdb import capped
from egnn_md_systems.peptide.structures import CHIGNOLIN_PDB

READY = CHIGNOLIN_PDB.with_name("chignolin-capped.pdb")
RESTRAINT = 5000.0  # kJ/mol/nm²; keeps deposited atoms within about 0.2 Å while hydrogens and caps relax
#: Backbone hydrogen bonds of the hairpin, residue numbers of the deposited chain: N-H of the first, O of the second.
HYDROGEN_BONDS = ((3, 8), (7, 3), (8, 3), (10, 1))
HELD = 2.5  # Å between H and O
BROKEN = 1.5  # times its first length; heat stretches a bond by at most a quarter

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def prepare(output: Annotated[Path, typer.Option(help="PDB file")] = READY) -> None:
    """Cap the deposited coordinates and relax them with ff14SB, deposited atoms restrained."""
    import openmm
    from openmm import app as openmm_app
    from openmm import unit

    from egnn_md_systems.peptide.builder import FORCE_FIELD

    peptide = capped(CHIGNOLIN_PDB)
    topology = peptide.topology
    system = openmm_app.ForceField(FORCE_FIELD).createSystem(topology, nonbondedMethod=openmm_app.NoCutoff)
    restraint = openmm.CustomExternalForce("0.5*k*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    restraint.addGlobalParameter("k", RESTRAINT)
    for name in ("x0", "y0", "z0"):
        restraint.addPerParticleParameter(name)
    for atom in topology.atoms():
        if atom.element.symbol != "H" and atom.residue.name not in ("ACE", "NME"):
            restraint.addParticle(atom.index, list(peptide.positions[atom.index] * 0.1))
    system.addForce(restraint)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(peptide.positions * 0.1)
    openmm.LocalEnergyMinimizer.minimize(context)
    relaxed = context.getState(getPositions=True).getPositions()
    with output.open("w", encoding="ascii") as file:
        openmm_app.PDBFile.writeFile(topology, relaxed, file, keepIds=True)
    moved = np.array(relaxed.value_in_unit(unit.angstrom)) - peptide.positions
    heavy = [atom.index for atom in topology.atoms() if atom.element.symbol != "H"]
    typer.echo(f"{output}: {len(moved)} atoms, heavy ones moved by {np.sqrt((moved[heavy] ** 2).sum(1).mean()):.2f} Å")


@app.command()
def analyse(run: Annotated[Path, typer.Argument(help="run directory of egnn-md md")]) -> None:
    """RMSD from the first frame, radius of gyration, hydrogen bonds and stretched bonds of a run."""
    import mdtraj

    trajectory = mdtraj.load(str(run / "trajectory.dcd"), top=str(READY))
    topology = trajectory.topology
    backbone = topology.select("name N CA C O and not resname ACE NME")
    heavy = topology.select("element != H")
    rmsd = 10.0 * mdtraj.rmsd(trajectory, trajectory, 0, atom_indices=backbone)
    radius = 10.0 * mdtraj.compute_rg(trajectory.atom_slice(heavy))
    bonds = np.array([(bond[0].index, bond[1].index) for bond in topology.bonds])
    lengths = 10.0 * mdtraj.compute_distances(trajectory, bonds, periodic=False)
    stretched = lengths / lengths[0]
    broken = [f"{topology.atom(i)}-{topology.atom(j)}" for i, j in bonds[(stretched > BROKEN).any(axis=0)]]
    at = {(atom.residue.index, atom.name): atom.index for atom in topology.atoms}
    pairs = [(at[(donor, "H")], at[(acceptor, "O")]) for donor, acceptor in HYDROGEN_BONDS]
    held = 10.0 * mdtraj.compute_distances(trajectory, pairs, periodic=False) < HELD
    typer.echo(f"{len(trajectory)} frames; backbone RMSD from the first: last {rmsd[-1]:.2f}, most {rmsd.max():.2f} Å")
    typer.echo(f"radius of gyration: first {radius[0]:.2f}, last {radius[-1]:.2f} Å")
    typer.echo(f"longest bond over its first length: {stretched.max():.2f}; broken: {', '.join(broken) or 'none'}")
    for (donor, acceptor), share in zip(HYDROGEN_BONDS, held.mean(0), strict=True):
        typer.echo(f"hydrogen bond N{donor}-H ... O{acceptor}: in {100 * share:.0f} % of the frames")


@app.command()
def compare(
    run: Annotated[Path, typer.Argument(help="run directory of egnn-md md")],
    model: Annotated[str, typer.Option(help="name or path of a potential")] = "peptide",
    frames: Annotated[int, typer.Option(help="how many, spread over the run")] = 4,
) -> None:
    """Energies and forces of a run's frames by the model and by GFN2-xTB."""
    import mdtraj
    from ase import Atoms

    from egnn_md.data.calculators import make_calculator
    from egnn_md_ase import FastEGNNCalculator

    trajectory = mdtraj.load(str(run / "trajectory.dcd"), top=str(READY))
    symbols = [atom.element.symbol for atom in trajectory.topology.atoms]
    calculators = FastEGNNCalculator(model), make_calculator("gfn2-xtb")
    for frame in np.unique(np.linspace(0, len(trajectory) - 1, frames).astype(int)).tolist():
        found = []
        for calculator in calculators:
            atoms = Atoms(symbols, 10.0 * trajectory.xyz[frame], calculator=calculator)
            found.append((atoms.get_potential_energy(), atoms.get_forces()))
        (energy, forces), (reference, wanted) = found
        rmse = 1e3 * np.sqrt(np.mean((forces - wanted) ** 2))
        typer.echo(f"frame {frame}: energy {energy - reference:+.2f} eV from GFN2-xTB's, force RMSE {rmse:.0f} meV/Å")


if __name__ == "__main__":
    app()
