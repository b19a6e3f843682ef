"""Small systems and the eager reference that the OpenMM and export tests compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from egnn_md.graph import ParticleGraph
from egnn_md.models import FastEGNNPotential, PotentialConfig, evaluate
from egnn_md.neighbors import neighbor_list
from egnn_md.units import KJ_PER_MOL_PER_EV

#: Relative to the largest force and to the energy. float32: 24 bits resolve 6e-8, and a network of a few
#: layers loses some two digits of them to cancellation. float64: engine and eager sum in another order only.
RELATIVE = {"float32": 1e-5, "float64": 1e-9}

BOXES: dict[str, np.ndarray | None] = {
    "open": None,
    "periodic": np.diag([0.90, 0.94, 0.98]),
    # the cutoff of 0.5 nm is above half of every height of these two boxes
    "triclinic": np.array([[0.90, 0.0, 0.0], [0.15, 0.92, 0.0], [-0.20, 0.25, 0.94]]),
}
WATER = np.array([[0.0, 0.0, 0.0], [0.0957, 0.0, 0.0], [-0.024, 0.0927, 0.0]])  # nm


def water_positions(count: int, box: np.ndarray | None, seed: int = 0) -> np.ndarray:
    """(3 count, 3) nm: water molecules on a jittered grid, some of them across the box's boundary."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(count ** (1 / 3)))
    cell = np.eye(3) * 0.31 * side if box is None else box
    sites = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[:count]
    oxygen = sites / side @ cell + rng.uniform(-0.02, 0.02, (count, 3))
    turned = [WATER @ np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(count)]
    return (oxygen[:, None] + np.array(turned)).reshape(-1, 3)


def argon_positions(box: np.ndarray, side: int = 3, seed: int = 0) -> np.ndarray:
    """(side³, 3) nm: a jittered grid that fills the box."""
    rng = np.random.default_rng(seed)
    sites = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    return sites / side @ box + rng.uniform(-0.01, 0.01, (side**3, 3))


def network(
    dtype: str = "float32", *, virtual_nodes: int = 2, fourier_width: float = 0.0, seed: int = 0
) -> FastEGNNPotential:
    """A small FastEGNN potential for H and O with random weights, large enough to give forces of eV/Å."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FastEGNNPotential(
            PotentialConfig(
                elements=(1, 8),
                atomic_energies=(-13.6, -432.0),
                hidden=16,
                layers=2,
                virtual_nodes=virtual_nodes,
                fourier_width=fourier_width,
                vector_channels=2,
                scale=20.0,
            )
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model.to(getattr(torch, dtype)).eval()


def eager(
    model: Any, numbers: list[int], positions: np.ndarray, box: np.ndarray | None, dtype: str = "float32"
) -> tuple[float, np.ndarray]:
    """Energy (kJ/mol) and forces (kJ/mol/nm) of the eager model at positions and box in nm."""
    kind = getattr(torch, dtype)
    x = torch.tensor(positions * 10.0).to(kind)
    cell = torch.tensor(np.zeros((3, 3)) if box is None else box * 10.0).to(kind)
    pbc = torch.full((3,), box is not None)
    edge_index, cell_shifts = neighbor_list(x, cell, pbc, model.cutoff)
    graph = ParticleGraph(
        positions=x,
        species=torch.tensor(numbers),
        edge_index=edge_index,
        cell_shifts=cell_shifts,
        cell=cell[None],
        pbc=pbc[None],
        batch=torch.zeros(len(x), dtype=torch.long),
    )
    result = evaluate(model, graph)
    forces = result["forces"].double().numpy() * KJ_PER_MOL_PER_EV * 10.0
    return float(result["energy"]) * KJ_PER_MOL_PER_EV, forces


def topology(symbols: list[str], box: np.ndarray | None, *, per_residue: int = 1, bonded: bool = False) -> Any:
    """OpenMM topology; ``bonded`` joins the first atom of every residue to its others."""
    from openmm import Vec3, app, unit

    made = app.Topology()
    chain = made.addChain()
    for start in range(0, len(symbols), per_residue):
        residue = made.addResidue("HOH" if per_residue == 3 else symbols[start].upper(), chain)
        atoms = [
            made.addAtom(f"{symbol}{k}", app.Element.getBySymbol(symbol), residue)
            for k, symbol in enumerate(symbols[start : start + per_residue])
        ]
        if bonded:
            for other in atoms[1:]:
                made.addBond(atoms[0], other)
    if box is not None:
        made.setPeriodicBoxVectors([Vec3(*row) for row in box.tolist()] * unit.nanometer)
    return made


def water_topology(count: int, box: np.ndarray | None) -> Any:
    """OpenMM topology of ``count`` bonded water molecules."""
    return topology(["O", "H", "H"] * count, box, per_residue=3, bonded=True)


def make_context(system: Any, positions: np.ndarray, platform: str = "Reference", integrator: Any = None) -> Any:
    """A context at ``positions`` (nm)."""
    import openmm

    context = openmm.Context(
        system,
        integrator or openmm.VerletIntegrator(0.0005),
        openmm.Platform.getPlatformByName(platform),
    )
    context.setPositions(positions)
    return context


def energy_and_forces(context: Any, groups: int = -1) -> tuple[float, np.ndarray]:
    """kJ/mol and kJ/mol/nm."""
    state = context.getState(energy=True, forces=True, groups=groups)
    return state.getPotentialEnergy()._value, np.array(state.getForces(asNumpy=True)._value)


def positions_and_box(context: Any) -> tuple[np.ndarray, np.ndarray]:
    """nm and nm."""
    state = context.getState(positions=True)
    return (
        np.array(state.getPositions(asNumpy=True)._value),
        np.array(state.getPeriodicBoxVectors(asNumpy=True)._value),
    )


def assert_same(
    found: tuple[float, np.ndarray], expected: tuple[float, np.ndarray], dtype: str, note: str = ""
) -> None:
    """Energies and forces agree to ``RELATIVE[dtype]`` of the energy and of the largest force."""
    tolerance = RELATIVE[dtype]
    largest = np.abs(expected[1]).max()
    assert abs(found[0] - expected[0]) <= tolerance * abs(expected[0]), (note, found[0], expected[0])
    assert np.abs(found[1] - expected[1]).max() <= tolerance * largest, (note, largest)
