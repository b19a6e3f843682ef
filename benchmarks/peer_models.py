"""Networks of other packages behind one call: atoms → energy (eV), forces (eV/Å). Imported only when they are made.

Each maker gives the call, the number of parameters and a line about the network: the trained file's name, or the
sizes of the random one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egnn_md.devices import find_device, find_dtype

MEAN_NEIGHBOURS = 50.0
Evaluate = Callable[[Any], tuple[float, np.ndarray]]
Made = tuple[Evaluate, int, str]


@dataclass(frozen=True)
class Wanted:
    """What is asked of a maker; ``elements`` are atomic numbers, ``path`` a trained file or None."""

    device: str
    dtype: str
    cutoff: float
    elements: list[int]
    seed: int
    path: Path | None = None

    def of(self, path: Path | None) -> Wanted:
        """The same with a trained file."""
        return replace(self, path=path)


def through_calculator(calculator: Any) -> Evaluate:
    """The call of an ASE calculator, which computes at every call."""
    from ase.calculators.calculator import all_changes

    def evaluate(atoms: Any) -> tuple[float, np.ndarray]:
        calculator.calculate(atoms, ["energy", "forces"], list(all_changes))
        return float(calculator.results["energy"]), np.asarray(calculator.results["forces"])

    return evaluate


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default precision for this block: some packages make their tensors in it, or set it and leave it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_dtype(dtype: torch.dtype, call: Evaluate) -> Evaluate:
    """The call inside :func:`default_dtype`."""

    def evaluate(atoms: Any) -> tuple[float, np.ndarray]:
        with default_dtype(dtype):
            return call(atoms)

    return evaluate


def _size(module: Any) -> int:
    return sum(item.numel() for item in module.parameters())


def mace(wanted: Wanted) -> Made:
    """MACE: two layers, 128 scalars and vectors, correlation 3, spherical harmonics up to 3."""
    from mace import modules
    from mace.calculators import MACECalculator

    options: dict[str, Any] = {"device": wanted.device, "default_dtype": wanted.dtype}
    dtype, what = find_dtype(wanted.dtype), "random; 2 layers, 128x0e + 128x1o, l up to 3, correlation 3"
    if wanted.path is not None:
        with default_dtype(dtype):
            calculator = MACECalculator(model_paths=str(wanted.path), **options)
        return in_dtype(dtype, through_calculator(calculator)), _size(calculator.models[0]), wanted.path.name
    from e3nn import o3

    with default_dtype(dtype):  # its tensors are made in torch's default precision
        kind = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(wanted.seed)
            model = modules.ScaleShiftMACE(
                atomic_inter_scale=1.0,
                atomic_inter_shift=0.0,
                r_max=wanted.cutoff,
                num_bessel=8,
                num_polynomial_cutoff=5,
                max_ell=3,
                interaction_cls=kind,
                interaction_cls_first=kind,
                num_interactions=2,
                num_elements=len(wanted.elements),
                hidden_irreps=o3.Irreps("128x0e + 128x1o"),
                MLP_irreps=o3.Irreps("16x0e"),
                atomic_energies=np.zeros(len(wanted.elements)),
                avg_num_neighbors=MEAN_NEIGHBOURS,
                atomic_numbers=list(wanted.elements),
                correlation=3,
                gate=torch.nn.functional.silu,
            ).to(wanted.device)
        calculator = MACECalculator(models=[model], **options)
    return in_dtype(dtype, through_calculator(calculator)), _size(model), what


def tensornet(wanted: Wanted) -> Made:
    """TensorNet of TorchMD-NET: two layers, 128 channels, 32 radial functions."""
    from torchmdnet.models.model import create_model, load_model

    dtype = find_dtype(wanted.dtype)
    if wanted.path is not None:
        model = load_model(str(wanted.path), device=wanted.device, derivative=True)
        what = wanted.path.name
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(wanted.seed)
            model = create_model(
                {
                    "model": "tensornet",
                    "embedding_dimension": 128,
                    "num_layers": 2,
                    "num_rbf": 32,
                    "rbf_type": "expnorm",
                    "trainable_rbf": False,
                    "activation": "silu",
                    "cutoff_lower": 0.0,
                    "cutoff_upper": wanted.cutoff,
                    "max_z": 100,
                    "max_num_neighbors": 160,
                    "equivariance_invariance_group": "O(3)",
                    "prior_model": None,
                    "atom_filter": -1,
                    "derivative": True,
                    "output_model": "Scalar",
                    "reduce_op": "sum",
                    "precision": 64 if dtype == torch.float64 else 32,
                    "check_errors": False,
                }
            )
        what = "random; 2 layers, 128 channels, 32 radial functions"
    device = find_device(wanted.device)
    model = model.to(device).eval().requires_grad_(False)

    def evaluate(atoms: Any) -> tuple[float, np.ndarray]:
        numbers = torch.as_tensor(atoms.numbers, dtype=torch.long, device=device)
        positions = torch.as_tensor(atoms.positions, dtype=dtype, device=device).requires_grad_(True)
        box = torch.as_tensor(atoms.cell.array, dtype=dtype, device=device) if atoms.pbc.all() else None
        energy, forces = model(numbers, positions, torch.zeros_like(numbers), box=box)
        return float(energy.detach()), forces.detach().cpu().numpy()

    return evaluate, _size(model), what


def nequip(wanted: Wanted) -> Made:
    """NequIP: four layers, 32 features up to l = 2. Its data are in double precision whatever the model's."""
    from ase.data import chemical_symbols
    from nequip.integrations.ase import NequIPCalculator

    names = [chemical_symbols[number] for number in wanted.elements]
    same = {name: name for name in names}
    with default_dtype(torch.float64):
        if wanted.path is not None:
            calculator = NequIPCalculator.from_compiled_model(
                str(wanted.path), device=wanted.device, chemical_species_to_atom_type_map=same
            )
            what = wanted.path.name
        else:
            calculator = NequIPCalculator(
                model=_random_nequip(wanted, names), device=wanted.device, transforms=_nequip_transforms(wanted, same)
            )
            what = "random, not compiled; 4 layers, 32 features, l up to 2"
    return in_dtype(torch.float64, through_calculator(calculator)), _size(calculator.model), what


def _random_nequip(wanted: Wanted, names: list[str]) -> Any:
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    with torch.random.fork_rng(devices=[]):
        set_global_state()  # it builds nothing before
        return NequIPGNNModel(
            seed=wanted.seed,
            model_dtype=wanted.dtype,
            r_max=wanted.cutoff,
            type_names=names,
            num_layers=4,
            l_max=2,
            num_features=32,
            avg_num_neighbors=MEAN_NEIGHBOURS,
        ).eval()


def _nequip_transforms(wanted: Wanted, same: dict[str, str]) -> list[Any]:
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    mapper = ChemicalSpeciesToAtomTypeMapper(model_type_names=list(same), chemical_species_to_atom_type_map=same)
    return [mapper, NeighborListTransform(r_max=wanted.cutoff)]
