"""Watching a committee's disagreement during a run: a column of the log, frames to label, an end in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from egnn_md.data.frames import parse_comment
from egnn_md.errors import InputError
from egnn_md.simulation.engine import Observation
from egnn_md.simulation.files import AppendFile
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.rundir import RunDirectory
from egnn_md.simulation.structure import Structure

if TYPE_CHECKING:
    from egnn_md.models.base import Potential
    from egnn_md.models.committee import Spread
    from egnn_md.simulation.spread import SpreadEvaluator

COLUMNS = ("energy_std_eV", "max_force_std_eV_A")  # of the log, before its last one
INTERVAL = 20  # steps; times the cost of a look over that of a step, this is 5 % of the run
EXIT_CODE = 3  # of a run that stopped because it had gone where the model knows nothing


class UncertaintyWatch:
    """Looks at the spread every so many steps; it never touches the dynamics.

    Attributes:
        interval: steps between looks.
        stopped: what ended the run: atom, element, value and step; empty while it goes on.
    """

    def __init__(self, evaluator: SpreadEvaluator, structure: Structure, request: MDRequest) -> None:
        # one member is driven by at the cost of one; a look costs all of them
        share = evaluator.members if request.drive == "first" else 1
        self.interval = request.uncertainty_interval or INTERVAL * share
        self.limit = request.max_uncertainty
        self.stops = request.on_uncertainty == "stop"
        self.stopped = ""
        self._evaluator = evaluator
        self._structure = structure
        self._timestep = request.timestep
        self._last: tuple[int, float, float] | None = None
        self._run: RunDirectory | None = None
        self._file: AppendFile | None = None

    def describe(self) -> dict[str, Any]:
        """JSON values for the run record."""
        return {"members": self._evaluator.members, "interval": self.interval, "limit": self.limit}

    def open(self, run: RunDirectory, resumed_at: int | None) -> None:
        """Write into ``run``; of a resumed one, drop the frames after its checkpoint: they will come again."""
        self._run = run
        if resumed_at is not None and run.uncertain.exists():
            keep = _bytes_until(run.uncertain, resumed_at, len(self._structure))
            self._file = AppendFile(run.uncertain, keep=keep)

    def look(self, step: int, seen: Observation) -> None:
        """Evaluate the spread where it is due, write the frame if it is above the limit, perhaps ask for the end."""
        if step % self.interval:
            return
        spread = self._evaluator(seen.positions, seen.cell)
        atom, value = spread.worst()
        self._last = (step, float(spread.energy_std[0]), value)
        if self.limit is None or value <= self.limit:
            return
        self._write(step, seen, spread, atom, value)  # also where it is no number
        if self.stops:
            symbol = self._structure.symbols[atom]
            self.stopped = (
                f"the members of the committee disagree by {value:.3g} eV/Å about the force on atom {atom} ({symbol}) "
                f"at step {step} (--max-uncertainty {self.limit:g})"
            )

    def cells(self, step: int) -> list[str]:
        """Those of :data:`COLUMNS` in the row of ``step``; empty where nobody looked."""
        if self._last is None or self._last[0] != step:
            return [""] * len(COLUMNS)
        return [f"{self._last[1]:.9f}", f"{self._last[2]:.9f}"]

    def _write(self, step: int, seen: Observation, spread: Spread, atom: int, value: float) -> None:
        assert self._run is not None  # the driver opens it before the first look
        if self._file is None:
            self._file = AppendFile(self._run.uncertain)
        self._file.append(self._encode(step, seen, spread, atom, value))
        self._file.sync()  # before the next checkpoint, which goes on behind it

    def _encode(self, step: int, seen: Observation, spread: Spread, atom: int, value: float) -> bytes:
        """One structure as extended XYZ. Energies are the committee's, under names that no reader takes for labels."""
        pbc = self._structure.pbc
        lattice = "" if not pbc.any() else 'Lattice="' + " ".join(f"{x:.10f}" for x in seen.cell.ravel()) + '" '
        energy, deviation = float(spread.energy[0]), float(spread.energy_std[0])
        comment = (
            f"{lattice}Properties=species:S:1:pos:R:3:velocities:R:3:force_std:R:1 step={step} "
            f"time_fs={step * self._timestep:.6f} max_force_std={value:.9f} uncertain_atom={atom} "
            f'energy_std={deviation:.9f} committee_energy={energy:.9f} pbc="{" ".join("T" if p else "F" for p in pbc)}"'
        )
        rows = np.column_stack([seen.positions, seen.velocities, spread.force_std.numpy()])
        lines = [
            f"{symbol:<2} " + " ".join(f"{x:15.10f}" for x in row)
            for symbol, row in zip(self._structure.symbols, rows.tolist(), strict=True)
        ]
        return ("\n".join([str(len(lines)), comment, *lines]) + "\n").encode()

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self._file is not None:
            self._file.close()


def _bytes_until(path: Any, step: int, atoms: int) -> int:
    """Length of the whole frames up to and including ``step``."""
    end = 0
    with open(path, "rb") as file:
        while True:
            lines = [file.readline() for _ in range(atoms + 2)]
            if not lines[-1].endswith(b"\n"):
                return end
            found = parse_comment(lines[1].decode(errors="replace")).get("step", "")
            if not found.isdigit():
                raise InputError(f"{path} is damaged at byte {end}; move it away to go on")
            if int(found) > step:
                return end
            end = file.tell()


def watched(
    model: Potential, structure: Structure, request: MDRequest
) -> tuple[Potential, UncertaintyWatch | None]:
    """The potential that drives a run of ``model``, and who watches the spread (None where there is none).

    Raises:
        InputError: uncertainty was asked for, and the model is no committee, or is spread over devices.
    """
    from egnn_md.models.committee import CommitteePotential

    if not isinstance(model, CommitteePotential):
        asked = {"--max-uncertainty": request.max_uncertainty, "--uncertainty-interval": request.uncertainty_interval}
        asked["--drive first"] = None if request.drive == "mean" else 1
        for option, value in asked.items():
            if value is not None:
                raise InputError(
                    f"{option} needs a committee on one device, and the model is a {type(model).__name__}; put models "
                    "of several seeds together with `egnn-md committee A.safetensors B.safetensors --output FILE`"
                )
        return model, None
    from egnn_md.simulation.spread import SpreadEvaluator

    evaluator = SpreadEvaluator(
        model, structure.numbers, structure.pbc, device=request.device, dtype=request.dtype
    )
    watch = UncertaintyWatch(evaluator, structure, request)
    if request.drive == "mean":
        return model, watch
    first: Any = model.members[0]
    first.card = getattr(model, "card", None)
    return first, watch
