"""``ParallelPotential`` from outside: engines, options, errors, balance, slow networks."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from parallel_cases import TOLERANCE, agrees, argon, as_graph, potential, structure

from egnn_md.distributed import DeviceLostWarning, ParallelPotential, ParallelPropagator
from egnn_md.distributed.pool import Pool
from egnn_md.distributed.rank import Rank
from egnn_md.distributed.wire import Wire
from egnn_md.errors import DeviceError, InputError, UnknownElementError
from egnn_md.graph import ParticleGraph
from egnn_md.models import LennardJones, evaluate
from egnn_md_ase import FastEGNNCalculator

MULTIRANK = pytest.mark.multirank  # those that start processes of their own


@pytest.fixture(scope="module")
def pair() -> Iterator[ParallelPotential]:
    with ParallelPotential(potential(), 2, dtype="float64", threads=1) as found:
        yield found


@pytest.mark.parametrize("case", ["periodic", "triclinic", "slab", "open", "small", "one", "none"])
def test_structures(pair: ParallelPotential, case: str) -> None:
    atoms = {
        "periodic": argon(),
        "triclinic": argon(skew=2.0),
        "slab": argon(pbc=(True, True, False)),
        "open": argon(pbc=False),
        "small": argon((1, 1, 1)),
        "one": Atoms("Ar", pbc=False),
        "none": Atoms(pbc=False),
    }[case]
    if case == "periodic":  # far from home, and across the boundary
        atoms.positions[::3] += 3 * atoms.cell.array[0] - atoms.cell.array[1]
    stress = bool(atoms.pbc.all())
    found = pair.evaluate_structure(*structure(atoms), stress=stress)
    if case == "none":
        assert float(found["energy"]) == 0.0
        assert found["forces"].shape == (0, 3)
        return
    wanted = evaluate(potential().double(), as_graph(atoms), stress=stress)
    agrees(found, wanted, TOLERANCE["float64"])
    assert sum(report.particles for report in pair.reports) == len(atoms)
    agrees(evaluate(pair, as_graph(atoms), stress=stress), wanted, TOLERANCE["float64"])


def test_lists_follow_motion(pair: ParallelPotential) -> None:
    atoms = argon()
    model, rng, before = potential().double(), np.random.default_rng(4), pair.neighbor_statistics.rebuilds
    for _ in range(12):
        atoms.positions += rng.normal(0, 0.04, atoms.positions.shape)
        atoms.set_cell(atoms.cell.array * 1.002, scale_atoms=True)
        found = pair.evaluate_structure(*structure(atoms), stress=True)
        agrees(found, evaluate(model, as_graph(atoms), stress=True), TOLERANCE["float64"])
    statistics = pair.neighbor_statistics
    assert 1 < statistics.rebuilds - before < statistics.updates, "some lists must have served several times"


def test_partition_follows_the_system(pair: ParallelPotential) -> None:
    """All atoms move into one half: the old partition leaves a rank almost without work."""
    atoms = argon((6, 2, 2), pbc=False)
    pair.evaluate_structure(*structure(atoms))
    before, count = pair.coordinator.owner, pair.coordinator.partitions
    centre = atoms.positions[:, 0].mean()
    right = atoms.positions[:, 0] > centre
    spread = atoms.copy()
    spread.positions[right, 0] = centre + 3.0 * (atoms.positions[right, 0] - centre)
    for _ in range(3):
        spread.positions[:, 1] += 5.0
        found = pair.evaluate_structure(*structure(spread))
    assert pair.coordinator.partitions > count
    assert not torch.equal(before, pair.coordinator.owner)
    agrees(found, evaluate(potential().double(), as_graph(spread)), TOLERANCE["float64"])
    assert "particles" in str(pair.quality(as_graph(spread).edge_index))


def test_answers_do_not_depend_on_what_came_before(pair: ParallelPotential) -> None:
    atoms = argon()
    pair.forget()
    first = pair.evaluate_structure(*structure(atoms))
    pair.evaluate_structure(*structure(argon((2, 2, 2))))
    pair.forget()
    again = pair.evaluate_structure(*structure(atoms))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("ranks", [1, 3])
@MULTIRANK
def test_calculator(dtype: str, ranks: int) -> None:
    atoms = argon(skew=1.0)
    atoms.calc = FastEGNNCalculator(potential(), dtype=dtype)
    wanted = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
    with ParallelPotential(potential(), ranks, dtype=dtype, threads=1) as split:
        atoms.calc = FastEGNNCalculator(split)
        found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        assert atoms.calc.neighbor_statistics.rebuilds == 1
    agrees(found, wanted, TOLERANCE[dtype])


@MULTIRANK
def test_paper_mode_and_its_error() -> None:
    atoms = argon()
    graph = as_graph(atoms)
    with ParallelPotential(potential(), 2, dtype="float64", mode="paper", threads=1) as split:
        found = split.evaluate_structure(*structure(atoms))
        owner = split.coordinator.owner
        assert owner is not None
        assert all(report.halo == 0 for report in split.reports)
        error = split.mode_error(*structure(atoms))
        again = split.evaluate_structure(*structure(atoms))
    kept = owner[graph.edge_index[0]] == owner[graph.edge_index[1]]
    assert not bool(kept.all())
    cut = ParticleGraph(
        **{**vars(graph), "edge_index": graph.edge_index[:, kept], "cell_shifts": graph.cell_shifts[kept]}
    )
    model = potential().double()
    agrees(found, evaluate(model, cut), TOLERANCE["float64"])
    agrees(again, found, TOLERANCE["float64"])
    exact = evaluate(model, graph)
    difference = exact["forces"] - found["forces"]
    assert error["force_max"] == pytest.approx(float(difference.abs().max()), rel=1e-8)
    assert error["force_rmse"] == pytest.approx(float(difference.pow(2).mean().sqrt()), rel=1e-8)


@MULTIRANK
def test_slow_networks_change_no_bit() -> None:
    atoms = argon()
    with ParallelPotential(potential(), 2, dtype="float64", threads=1) as split:
        wanted = split.evaluate_structure(*structure(atoms))
        begin = time.perf_counter()
        split.evaluate_structure(*structure(atoms))
        quick = time.perf_counter() - begin
        split.pretend_network(latency=0.02, bandwidth=1e6)
        begin = time.perf_counter()
        found = split.evaluate_structure(*structure(atoms))
        slow = time.perf_counter() - begin
    # two layers: at least two exchanges and two reductions of two messages forward, as many exchanges backward
    assert slow > quick + 0.02 * 6
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@MULTIRANK
def test_balance_gives_a_slow_rank_less() -> None:
    """Until both take as long: less than a quarter for a third of the speed, as a layer costs something by itself."""
    atoms = argon((12, 10, 10))
    with ParallelPotential(potential(), 2, balance=True, skin=0.0, threads=1) as split:
        split.evaluate_structure(*structure(atoms))
        shares, ratios = [split.reports[1].particles / len(atoms)], []
        split.pretend_network(slowdown=3.0, rank=1)
        for _ in range(10):
            atoms.rattle(0.01, seed=len(shares))
            split.evaluate_structure(*structure(atoms))
            shares.append(split.reports[1].particles / len(atoms))
            ratios.append(split.reports[1].seconds / split.reports[0].seconds)
    assert shares[0] == pytest.approx(0.5, abs=0.01)
    assert shares[-1] < 0.35, shares
    assert float(np.median(ratios[-3:])) < 0.7 * ratios[0], ratios
    with ParallelPotential(potential(), 2, weights=(3, 1), threads=1) as split:
        split.evaluate_structure(*structure(atoms))
        assert split.reports[0].particles == pytest.approx(0.75 * len(atoms), abs=1)


@MULTIRANK
@pytest.mark.filterwarnings("ignore::egnn_md.distributed.RankLostWarning")
def test_hanging_rank_is_told_by_the_time_limit() -> None:
    """It beats on, but does not answer."""
    atoms = argon()
    with ParallelPotential(potential(), 2, time_limit=4.0, threads=1) as split:
        split.evaluate_structure(*structure(atoms))
        split.coordinator.pretend({"latency": 100.0, "bandwidth": 0.0, "slowdown": 1.0}, 1)
        with pytest.raises(DeviceError, match="time limit of 4 s"):
            split.evaluate_structure(*structure(atoms))


@MULTIRANK
def test_device_that_is_gone_for_good() -> None:
    """Whatever is started as the second rank dies: the run goes on with the two others."""
    atoms = argon()
    split = ParallelPotential(potential(), 3, dtype="float64", threads=1)
    over = threading.Event()

    def destroy() -> None:
        killed: set[int] = set()
        while not over.is_set():
            pids = split.channel.pids  # type: ignore[attr-defined]
            if len(pids) == 3 and pids[1] not in killed:
                killed.add(pids[1])
                split.channel._workers[1].process.kill()  # type: ignore[attr-defined]
            time.sleep(0.01)

    with split:
        wanted = split.evaluate_structure(*structure(atoms))
        thread = threading.Thread(target=destroy, daemon=True)
        thread.start()
        with pytest.warns(DeviceLostWarning, match=r"cpu \(rank 1\) was lost 3 times.*2 of 3 ranks"):
            found = split.evaluate_structure(*structure(atoms))
        over.set()
        thread.join()
        assert split.devices == 2
        again = split.evaluate_structure(*structure(atoms))
    agrees(found, wanted, TOLERANCE["float64"])
    agrees(again, wanted, TOLERANCE["float64"])


@MULTIRANK
def test_out_of_memory_names_rank_and_size() -> None:
    atoms = argon((30, 30, 30))
    with ParallelPotential(potential(), 2, threads=1, kernels="plain") as split:
        split.evaluate_structure(*structure(argon()))
        pid = split.channel.pids[1]  # type: ignore[attr-defined]
        size = next(
            int(line.split()[1]) for line in open(f"/proc/{pid}/status") if line.startswith("VmSize")  # noqa: SIM115
        )
        limit = size * 1024 + 300_000_000
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        with pytest.raises(DeviceError, match=r"rank 1 of 2 \(cpu\) ran out of memory when it asked for \d+"):
            split.evaluate_structure(*structure(atoms))


class TestClearErrors:
    def test_structures(self, pair: ParallelPotential) -> None:
        atoms = argon()
        broken = atoms.copy()
        broken.positions[5, 1] = np.nan
        with pytest.raises(InputError, match="atom 5 has the position"):
            pair.evaluate_structure(*structure(broken))
        near = atoms.copy()
        near.positions[7] = near.positions[3] + 1e-5
        with pytest.raises(InputError, match=r"atoms (3 and 7|7 and 3) coincide"):
            pair.evaluate_structure(*structure(near))
        flat = atoms.copy()
        flat.cell[2] = flat.cell[1]
        with pytest.raises(InputError, match="spans no volume"):
            pair.evaluate_structure(*structure(flat))
        strange = atoms.copy()
        strange.numbers[4] = 8
        with pytest.raises(UnknownElementError, match="atom 4 is O"):
            pair.evaluate_structure(*structure(strange))
        wanted = evaluate(potential().double(), as_graph(atoms))
        agrees(pair.evaluate_structure(*structure(atoms)), wanted, TOLERANCE["float64"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"devices": 0}, "devices must be at least 1"),
            ({"devices": []}, "empty list"),
            ({"devices": ["cpu", "cuda:7"]}, r"cuda:7 is not there \(CUDA devices found: \d\)"),
            ({"devices": 2, "device": "tpu"}, "tpu"),
            ({"devices": 10_000}, "10000 ranks need about .* GB .* at most"),
            ({"devices": 2, "mode": "quick"}, "mode must be exact or paper"),
            ({"devices": 2, "partition": "magic"}, "partition must be one of bisection"),
            ({"devices": 2, "dtype": "float16"}, "dtype must be one of"),
            ({"devices": 2, "skin": -1.0}, "skin"),
            ({"devices": 2, "weights": (1.0,)}, "1 weights for 2 devices"),
            ({"devices": 2, "backend": "nccl"}, "NCCL needs CUDA devices"),
            ({"devices": 2, "backend": "mpi"}, "backend must be one of gloo, nccl"),
            ({"devices": 2, "time_limit": 0.0}, "time_limit must be a positive"),
            ({"devices": 2, "kernels": "fast"}, "kernels must be one of"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        if "nccl" in options.values() and torch.cuda.is_available():
            pytest.skip("this machine has GPUs")
        with pytest.raises(InputError, match=message):
            ParallelPotential(potential(), **options)

    def test_models(self, pair: ParallelPotential) -> None:
        with pytest.raises(InputError, match="not a potential; see ParallelPropagator"):
            ParallelPotential("nbody", 2)
        with pytest.raises(InputError, match="not a propagator; see ParallelPotential"):
            ParallelPropagator("water", 2)
        with pytest.raises(InputError, match="parallel already"):
            ParallelPotential(pair, 2)
        with pytest.raises(InputError, match="LennardJones"):
            ParallelPotential(LennardJones(), 2)

    def test_uses(self, pair: ParallelPotential) -> None:
        graph = as_graph(argon())
        with pytest.raises(InputError, match="cannot be trained through"):
            evaluate(pair, graph, training=True)
        with pytest.raises(InputError, match=r"egnn_md\.evaluate"):
            pair(graph.positions, graph.species, graph.edge_index, graph.shifts(), graph.batch, graph.periodic)


def test_a_step_is_one_broadcast_and_one_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions, cell and flags travel together; a message is rare."""
    calls: list[str] = []
    for name in ("broadcast", "gather"):
        original = getattr(Wire, name)

        def counted(self: Wire, *args: Any, _name: str = name, _original: Any = original) -> Any:
            calls.append(_name)
            return _original(self, *args)

        monkeypatch.setattr(Wire, name, counted)

    class Here:
        """Rank 0 of one, in this process."""

        size = 1

        def open(self) -> int:
            return 1

        def __init__(self) -> None:
            self.rank = Rank(Wire(), Wire())

        def step(self, frame: torch.Tensor) -> Any:
            from egnn_md.distributed.rank import lead_step

            return lead_step(self.rank, frame)

        def message(self, message: dict[str, Any]) -> Any:
            from egnn_md.distributed.protocol import to_bytes
            from egnn_md.distributed.rank import lead_message

            return lead_message(self.rank, to_bytes(message))

        def succeeded(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr("egnn_md.distributed.parallel.Pool", lambda *_, **__: Here())
    split = ParallelPotential(potential(), 1, dtype="float64")
    atoms = argon()
    split.evaluate_structure(*structure(atoms))
    calls.clear()
    for _ in range(3):
        atoms.positions += 0.001
        atoms.set_cell(atoms.cell.array * 1.0001)
        split.evaluate_structure(*structure(atoms))
    assert calls == ["broadcast", "gather"] * 3


def test_workers_end_with_their_owner() -> None:
    split = ParallelPotential(potential(), 2, threads=1)
    pool = split.channel
    assert isinstance(pool, Pool)
    processes = [worker.process for worker in pool._workers]
    split.close()
    assert all(process.poll() is not None for process in processes)
    assert len(split.evaluate_structure(*structure(argon()))["energies"]) == 48  # started again
    split.close()
