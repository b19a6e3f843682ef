"""Structures in: ASE atoms and label files become graphs with their neighbour lists, kept in memory."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.io.formats import open_with_compression

from egnn_md.data.frames import scan_frames
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph, check_structure
from egnn_md.neighbors import neighbor_list

COMPRESSED = (".gz", ".bz2", ".xz")
XYZ_SUFFIXES = (".extxyz", ".xyz")
CHARGE_KEY = "charge"
WHOLE = 1e-3  # e; initial charges that were rounded in a file still add up to a whole number within this


def total_charge(atoms: Atoms) -> int:
    """Total charge (e): ``info["charge"]``, or without it the sum of the initial charges, or 0.

    Raises:
        InputError: it is no whole number, or the two disagree.
    """
    summed = float(atoms.get_initial_charges().sum())
    given = atoms.info.get(CHARGE_KEY)
    try:
        value = summed if given is None else float(given)
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value) or abs(value - round(value)) > WHOLE:
        where = "the sum of the initial charges" if given is None else f"info[{CHARGE_KEY!r}]"
        shown = f"{value:g}" if np.isfinite(value) else repr(given)
        raise InputError(f"{where} is {shown}; a total charge is a whole number")
    if given is not None and atoms.has("initial_charges") and abs(summed - value) > WHOLE:
        raise InputError(
            f"info[{CHARGE_KEY!r}] = {given!r}, but the initial charges add up to {summed:g}; remove one of them"
        )
    return round(value)


def graph_from_atoms(
    atoms: Atoms,
    cutoff: float,
    *,
    backend: str = "vesin",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    labels: bool = False,
) -> ParticleGraph:
    """One graph with its neighbour list (made in float64) from an ASE structure.

    Args:
        atoms: N atoms; Å, cell rows, any periodicity, wrapped or not.
        cutoff: Å.
        backend: a name known to :func:`egnn_md.neighbors.neighbor_list`.
        dtype: of every floating tensor but the reference energy, which stays in float64.
        device: of the returned tensors.
        labels: read energy (eV), forces (eV/Å) and stress (eV/Å³, 3×3; NaN where the calculator has
            none) from ``atoms.calc``, the way ASE's readers fill it.

    Raises:
        InputError: positions or labels that are not finite, coincident atoms, a flat cell, or (with
            ``labels``) no calculator, energy or forces.
    """
    positions = torch.as_tensor(np.array(atoms.positions), dtype=torch.float64)
    pbc = torch.as_tensor(np.array(atoms.pbc), dtype=torch.bool)
    cell = torch.as_tensor(np.array(atoms.cell.array), dtype=torch.float64)
    if not bool(pbc.any()):
        cell = torch.zeros_like(cell)
    check_structure(positions, cell, pbc)
    edge_index, shifts = neighbor_list(positions, cell, pbc, cutoff, backend=backend)
    pairs = positions[edge_index[0]] - positions[edge_index[1]] + shifts.double() @ cell
    check_structure(positions, cell, pbc, edge_index, pairs)
    graph = ParticleGraph(
        positions=positions,
        species=torch.as_tensor(np.array(atoms.numbers), dtype=torch.int64),
        edge_index=edge_index,
        cell_shifts=shifts.double(),
        cell=cell[None],
        pbc=pbc[None],
        batch=torch.zeros(len(atoms), dtype=torch.int64),
        labels=_labels(atoms) if labels else {},
    )
    return graph.to(device=device, dtype=dtype)


def _labels(atoms: Atoms) -> dict[str, torch.Tensor]:
    results: dict[str, Any] = {} if atoms.calc is None else atoms.calc.results
    for name in ("energy", "forces"):
        if name not in results:
            raise InputError(
                f"the structure has no reference {name} (found: {sorted(results) or 'nothing'}); "
                "make labels with `egnn-md label`, or name the columns so that ASE reads them"
            )
    forces = np.asarray(results["forces"], dtype=np.float64)
    if not np.isfinite(results["energy"]) or not np.isfinite(forces).all():
        raise InputError("the reference energy or a reference force is not finite; remove the structure")
    stress = np.full((3, 3), np.nan)
    if "stress" in results and bool(atoms.pbc.all()):
        stress = np.array(atoms.get_stress(voigt=False), dtype=np.float64)
    return {
        "energy": torch.tensor([float(results["energy"])], dtype=torch.float64),
        "forces": torch.from_numpy(forces.copy()),
        "stress": torch.from_numpy(stress)[None],
    }


def frame_digest(atoms: Atoms) -> str:
    """Digest of a labelled structure: geometry, energy and forces, bit by bit."""
    digest = hashlib.sha256()
    digest.update(np.asarray(atoms.numbers, dtype="<i8").tobytes())
    digest.update(np.asarray(atoms.pbc, dtype="u1").tobytes())
    results = {} if atoms.calc is None else atoms.calc.results
    for value in (atoms.positions, atoms.cell.array, results.get("energy"), results.get("forces")):
        if value is not None:
            digest.update(np.ascontiguousarray(value, dtype="<f8").tobytes())
    return digest.hexdigest()


@dataclass
class LabelledSet:
    """Labelled graphs and, in the same order, what the file said about each (``info``) and their digests."""

    graphs: list[ParticleGraph] = field(default_factory=list)
    info: list[dict[str, Any]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    dropped: int = 0  #: structures left out by ``max_force``
    duplicates: int = 0  #: further copies of a structure, left out

    def __len__(self) -> int:
        return len(self.graphs)

    def take(self, indices: Iterable[int]) -> LabelledSet:
        """The named members, in that order."""
        chosen = list(indices)
        return LabelledSet(
            [self.graphs[i] for i in chosen],
            [self.info[i] for i in chosen],
            [self.digests[i] for i in chosen],
        )

    def digest(self) -> str:
        """sha256 (hex) of the set, whatever its order and however it is spread over files."""
        return hashlib.sha256("\n".join(sorted(self.digests)).encode()).hexdigest()

    def teachers(self) -> list[str]:
        """Reference methods that the label files name."""
        return sorted({str(info["teacher"]) for info in self.info if "teacher" in info})

    def charges(self) -> list[int]:
        """Total charges (e) that occur, ascending; a structure that names none is neutral."""
        return sorted({round(float(info.get(CHARGE_KEY, 0))) for info in self.info})


def read_frames(path: str | Path) -> list[Atoms]:
    """All structures of a file that ASE can read; of an XYZ file, without an unfinished last frame.

    Raises:
        InputError: the file is missing, empty or unreadable.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path} (looked in {Path.cwd()})")
    try:
        if path.suffix.lower() in XYZ_SUFFIXES:
            end = scan_frames(path).end
            with path.open("rb") as file:
                text = file.read(end).decode()
            if end < path.stat().st_size:
                warnings.warn(
                    f"{path} ends in an unfinished frame, which is left out (is it still being "
                    "written? A complete one needs a newline at its end)",
                    stacklevel=2,
                )
            frames = list(ase.io.iread(StringIO(text), index=":", format="extxyz")) if text else []
        elif path.suffix.lower() in COMPRESSED and Path(path.stem).suffix.lower() in XYZ_SUFFIXES:
            # unpacked at once: ASE's reader seeks from frame to frame, and every seek would unpack anew
            with open_with_compression(str(path), "rb") as file:
                text = file.read().decode()
            frames = list(ase.io.iread(StringIO(text), index=":", format="extxyz"))
        else:
            frames = list(ase.io.iread(path, index=":"))
    except InputError:
        raise
    except Exception as error:  # ASE's readers raise whatever their format's code happens to raise
        raise InputError(f"{path} cannot be read as structures: {type(error).__name__}: {error}") from error
    if not frames:
        raise InputError(f"{path} holds no structure")
    return frames


def read_labelled(
    files: Sequence[str | Path],
    cutoff: float,
    *,
    dtype: torch.dtype = torch.float32,
    backend: str = "vesin",
    max_force: float | None = None,
) -> LabelledSet:
    """Read label files into graphs with their neighbour lists.

    Args:
        files: extended XYZ or anything else that ASE reads with energies and forces.
        cutoff: Å.
        dtype: of the graphs (energies stay in float64).
        backend: of the neighbour lists.
        max_force: leave out structures in which one atom feels more than this (eV/Å).

    Raises:
        InputError: names the file, the frame and what is wrong with it.

    A structure that occurs twice with the same labels is taken once: it would count twice, or sit on both
    sides of a split.
    """
    out = LabelledSet()
    seen: set[str] = set()
    for path in map(Path, files):
        for index, atoms in enumerate(read_frames(path)):
            place = f"{path}, frame {index}"
            try:
                graph = graph_from_atoms(atoms, cutoff, dtype=dtype, backend=backend, labels=True)
                charge = total_charge(atoms)
            except InputError as error:
                raise InputError(f"{place}: {error}") from error
            digest = frame_digest(atoms)
            if digest in seen:
                out.duplicates += 1
                continue
            seen.add(digest)
            if max_force is not None and float(graph.labels["forces"].norm(dim=1).max()) > max_force:
                out.dropped += 1
                continue
            out.graphs.append(graph)
            info = dict(atoms.info)
            if charge:
                info[CHARGE_KEY] = charge  # also where the file gave charges atom by atom
            out.info.append(info)
            out.digests.append(digest)
    return out
