"""Physics that breaks is stopped, and named: atom, element, step, last good frame."""

from __future__ import annotations

import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from fault_cases import Brittle, request, run

from egnn_md.errors import InputError, SimulationError
from egnn_md.models import LennardJones
from egnn_md.simulation import RunDirectory
from egnn_md.simulation.guards import GuardError, Guards, Instant
from egnn_md.simulation.recorder import read_log


def guards(atoms: int = 2, **changes: object) -> Guards:
    values: dict[str, object] = {
        "symbols": ["O", "H"][:atoms],
        "masses": np.array([16.0, 1.0])[:atoms],
        "timestep": 0.5,
        "degrees_of_freedom": 3 * atoms,
        "periodic": True,
        "reference_temperature": 300.0,
    }
    return Guards(**{**values, **changes})  # type: ignore[arg-type]


def instant(step: int, positions: object = None, **changes: object) -> Instant:
    values: dict[str, object] = {
        "positions": np.zeros((2, 3)) if positions is None else np.array(positions, dtype=float),
        "velocities": np.zeros((2, 3)),
        "forces": np.zeros((2, 3)),
        "energy": 0.0,
        "cell": np.eye(3) * 10,
    }
    return Instant(step, **{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["forces", "velocities", "positions"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(what: str, value: float) -> None:
    bad = np.zeros((2, 3))
    bad[1, 2] = value
    with pytest.raises(GuardError, match=r"atom 1 \(H\) became .* at step 7") as caught:
        guards().check(instant(7, **{what: bad}))
    assert (caught.value.atom, caught.value.step) == (1, 7)


def test_energy_and_cell_that_are_no_numbers() -> None:
    with pytest.raises(GuardError, match="potential energy became nan at step 3"):
        guards().check(instant(3, energy=float("nan")))
    with pytest.raises(GuardError, match="the cell became"):
        guards().check(instant(3, cell=np.full((3, 3), np.nan)))


def test_a_thrown_atom_but_not_a_wrapped_or_scaled_one() -> None:
    guard = guards()
    guard.check(instant(0, [[0, 0, 0], [9.9, 0, 0]]))
    guard.check(instant(1, [[0, 0, 0], [0.1, 0, 0]]))  # through the face of the cell
    guard.check(instant(2, [[0, 0, 0], [0.09, 0, 0]], cell=np.eye(3) * 9))  # scaled by a barostat
    with pytest.raises(GuardError, match=r"atom 1 \(H\) was thrown 1.\d+ Å in one step at step 3"):
        guard.check(instant(3, [[0, 0, 0], [1.4, 0, 0]], cell=np.eye(3) * 9))


def test_thermal_motion_of_many_steps_is_no_throw() -> None:
    guard = guards()
    guard.check(instant(0))
    guard.check(instant(20, [[0, 0, 0], [1.5, 0, 0]]))
    with pytest.raises(GuardError, match=r"in 20 steps"):
        guard.check(instant(40, [[0, 0, 0], [5.0, 0, 0]]))


def test_velocity_or_force_that_will_throw_an_atom() -> None:
    fast, strong = np.zeros((2, 3)), np.zeros((2, 3))
    fast[1, 0], strong[1, 0] = 2.5, 500.0
    with pytest.raises(GuardError, match=r"atom 1 \(H\) is thrown 1.25 Å in one step"):
        guards().check(instant(1, velocities=fast))
    with pytest.raises(GuardError, match=r"its force is 500 eV/Å"):
        guards().check(instant(1, forces=strong))


def test_an_explosion_and_a_collapse() -> None:
    hot = np.full((2, 3), 0.8)
    with pytest.raises(GuardError, match=r"the temperature reached \d+ K at step 1 \(limit 1000 K\); atom 0 \(O\)"):
        guards(max_temperature=1000.0).check(instant(1, velocities=hot))
    assert guards().temperature_limit > 5 * 300
    guard = guards()
    guard.check(instant(0))
    with pytest.raises(GuardError, match="boils or collapses"):
        guard.check(instant(1, cell=np.eye(3) * 20))


def test_a_force_beyond_any_bond() -> None:
    strong = np.zeros((2, 3))
    strong[0, 1] = 30.0
    guards(max_force=31.0).check(instant(4, [[0, 0, 0], [3, 0, 0]], forces=strong))
    with pytest.raises(GuardError, match=r"the force on atom 0 \(O\) is 30 eV/Å at step 4 \(limit 25 eV/Å\)") as caught:
        guards(max_force=25.0).check(instant(4, [[0, 0, 0], [3, 0, 0]], forces=strong))
    assert (caught.value.atom, caught.value.step) == (0, 4)


@pytest.mark.parametrize("shape", ["box", "skewed"])
def test_two_atoms_closer_than_any_bond(shape: str) -> None:
    cell = np.eye(3) * 10 if shape == "box" else np.array([[10.0, 0, 0], [3, 10, 0], [-2, 4, 10]])
    near = np.array([[0.1, 0, 0], [0.0, 0, 0]])
    near[1] = cell.sum(axis=0) - [0.3, 0.0, 0.0]  # 0.4 Å away, through a corner of the cell
    guard = guards(min_distance=0.5)
    guard.check(instant(0, [[0.1, 0, 0], [0.7, 0, 0]], cell=cell))
    words = r"atom 0 \(O\) and atom 1 \(H\) are 0.400 Å apart at step 0 \(limit 0.5 Å\)"
    with pytest.raises(GuardError, match=words):
        guards(min_distance=0.5).check(instant(0, near, cell=cell))
    guards(min_distance=0.0).check(instant(0, near, cell=cell))
    guards(min_distance=0.5, pbc=np.array([True, True, False])).check(instant(0, near, cell=cell))
    guards(min_distance=0.5, periodic=False).check(instant(0, near, cell=np.zeros((3, 3))))
    with pytest.raises(GuardError, match=words):
        guards(min_distance=0.5, periodic=False).check(instant(0, [[0, 0, 0], [0, 0.4, 0]], cell=np.zeros((3, 3))))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"max_force": 0.02}, r"the force on atom [01] \(Ar\) is 0\.0\d+ eV/Å at step \d+ \(limit 0.02 eV/Å\)"),
        ({"min_distance": 3.6}, r"atom 0 \(Ar\) and atom 1 \(Ar\) are 3\.\d+ Å apart at step \d+ \(limit 3.6 Å\)"),
    ],
)
@pytest.mark.parametrize("engine", ["ase", "openmm"])
def test_options_of_the_watchdog_end_a_run(tmp_path: Path, engine: str, option: dict[str, float], words: str) -> None:
    """Two atoms fall towards each other, slowly; the step is the first at which the limit is passed."""
    ase.Atoms("Ar2", [[0, 0, 0], [4.3, 0, 0]]).write(tmp_path / "two.xyz")
    wanted = request(
        tmp_path, "run", engine=engine, implementation="python" if engine == "openmm" else "torch", ensemble="nve",
        structure=str(tmp_path / "two.xyz"), temperature=0.0, timestep=5.0, steps=1000, log_interval=10, **option,
    )  # fmt: skip
    with pytest.raises(SimulationError, match=words + r".*last good frame: frame \d+ of trajectory.dcd") as caught:
        run(wanted, LennardJones(0.0104, 3.4, 5.0))
    broken = RunDirectory(tmp_path / "run").read()["failure"]["step"]
    assert f"at step {broken} " in str(caught.value)
    frames = ase.io.read(tmp_path / "run" / "failure.extxyz", ":")
    assert frames[-1].info["step"] == broken - 1
    if "max_force" in option:
        assert np.linalg.norm(frames[-1].get_forces(), axis=1).max() <= 0.02
    else:
        assert frames[-1].get_distance(0, 1) >= 3.6


def test_open_systems_are_not_wrapped() -> None:
    guard = guards(periodic=False)
    guard.check(instant(0, cell=np.zeros((3, 3))))
    with pytest.raises(GuardError, match=r"was thrown 9\.90 Å"):
        guard.check(instant(1, [[0, 0, 0], [9.9, 0, 0]], cell=np.zeros((3, 3))))


@pytest.mark.parametrize(("engine", "implementation"), [("ase", "torch"), ("openmm", "torch"), ("openmm", "python")])
def test_a_model_that_gives_nan_is_stopped_at_its_step(tmp_path: Path, engine: str, implementation: str) -> None:
    atoms = ase.Atoms("ArKrNeHe", [[0, 0, 0], [5, 0, 0], [0, 40, 0], [0, 0, 5]])
    atoms.write(tmp_path / "four.xyz")
    model = Brittle(victim=2, reach=41.0)
    wanted = request(
        tmp_path, "run", engine=engine, implementation=implementation, ensemble="nve", steps=400,
        structure=str(tmp_path / "four.xyz"), check_interval=10, temperature=0.0,
    )  # fmt: skip
    with pytest.raises(SimulationError) as caught:
        run(wanted, model)
    text = str(caught.value)
    # where the network sees positions about their mean, a force that is no number reaches other atoms too
    assert re.search(r"atom 2 \(Ne\)" if implementation == "python" or engine == "ase" else r"atom \d \(", text)
    assert re.search(r"step \d+", text)
    frame = re.search(r"last good frame: frame (\d+) of trajectory.dcd \(step (\d+), [\d.]+ ps\)", text)
    assert frame is not None
    assert int(frame[2]) == 8 * int(frame[1])
    record = RunDirectory(tmp_path / "run").read()
    assert record["status"] == "failed"
    broken = record["failure"]["step"]
    frames = ase.io.read(tmp_path / "run" / "failure.extxyz", ":")
    assert frames[-1].info["step"] == broken - 1  # every step up to the failure is kept
    start_, end = frames[0], frames[-1]
    assert end.info["step"] - start_.info["step"] < 10
    assert 40.5 < end.get_distance(0, 2) < 41.0
    log = read_log(tmp_path / "run" / "log.csv")
    assert np.isfinite(log["total_eV"]).all()
    assert log["step"][-1] <= broken
    with pytest.raises(InputError, match=r"failed .* would fail again; start a new one"):
        run(RunDirectory(tmp_path / "run").request(), model, resume=True)


@pytest.mark.parametrize("engine", ["ase", "openmm"])
def test_two_atoms_pushed_together_end_the_run(tmp_path: Path, engine: str) -> None:
    atoms = ase.Atoms("Ar2", [[0, 0, 0], [1.9, 0, 0]])
    atoms.write(tmp_path / "two.xyz")
    wanted = request(tmp_path, "run", engine=engine, ensemble="nve", structure=str(tmp_path / "two.xyz"), timestep=4.0)
    with pytest.raises(SimulationError, match=r"atom [01] \(Ar\) is thrown .* at step 0 .*last good frame: frame 0"):
        run(wanted, LennardJones(0.0104, 3.4, 5.0))


@pytest.mark.parametrize("engine", ["ase", "openmm"])
@pytest.mark.parametrize("minimize", [False, True])
def test_a_structure_that_the_model_cannot_evaluate(tmp_path: Path, engine: str, minimize: bool) -> None:
    atoms = ase.Atoms("Ar2", [[0, 0, 0], [3.9, 0, 0]])
    atoms.write(tmp_path / "two.xyz")
    wanted = request(
        tmp_path, "run", engine=engine, implementation="torch" if engine == "ase" else "python",
        structure=str(tmp_path / "two.xyz"), minimize=minimize,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"atom [01] \(Ar\).*before the first step: the model cannot evaluate"):
        run(wanted, _NaN())
    assert RunDirectory(tmp_path / "run").read()["status"] == "failed"


class _NaN(LennardJones):
    """No number for the second atom, ever."""

    def __init__(self) -> None:
        super().__init__(0.01, 3.4, 5.0)

    def forward(
        self,
        positions: torch.Tensor,
        species: torch.Tensor,
        edge_index: torch.Tensor,
        shifts: torch.Tensor,
        batch: torch.Tensor,
        periodic: torch.Tensor,
    ) -> torch.Tensor:
        """(N,) energies."""
        energies = positions.pow(2).sum(1).to(torch.float64)
        second = torch.arange(len(energies), device=energies.device) == 1
        return torch.where(second, torch.sqrt(-1.0 - energies), energies)
