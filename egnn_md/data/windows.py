"""From stored trajectories to samples: a frame now, and the frames one or more strides later."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from egnn_md.data.trajectories import Trajectory, TrajectoryMetadata, TrajectorySet
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import PropagatorConfig
from egnn_md.neighbors.backends import neighbor_list
from egnn_md.neighbors.drop import drop_edges
from egnn_md.neighbors.verlet import VerletList

INTERVAL_TOLERANCE = 1e-6  # relative


def check_same_world(config: PropagatorConfig, metadata: TrajectoryMetadata, place: str) -> None:
    """Refuse data of another system, unit or frame interval than the propagator's.

    Raises:
        InputError: names both values.
    """
    if config.system and metadata.system and config.system != metadata.system:
        raise InputError(f"{place} holds {metadata.system!r}, but the propagator is one of {config.system!r}")
    for quantity in ("length", "time"):
        ours, theirs = config.units.get(quantity, "none"), metadata.units.get(quantity, "none")
        if ours != theirs:
            raise InputError(f"{place} is in {quantity} unit {theirs!r}, but the propagator was made for {ours!r}")
    frames = config.stride / metadata.frame_interval
    if frames < 1 - INTERVAL_TOLERANCE or abs(frames - round(frames)) > INTERVAL_TOLERANCE * frames:
        raise InputError(
            f"{place} has a frame every {metadata.frame_interval:g}, so the propagator's stride of {config.stride:g} "
            f"is {frames:g} frames; a whole number is needed"
        )
    if config.velocity != "true" and abs(metadata.frame_interval / config.frame_interval - 1) > INTERVAL_TOLERANCE:
        raise InputError(
            f"{place} has a frame every {metadata.frame_interval:g}, but the propagator's {config.velocity} "
            f"differences are over {config.frame_interval:g}"
        )


def nearest_image(displacement: NDArray[np.float64], cell: NDArray[np.float64] | None, pbc: Sequence[bool]) -> NDArray:
    """(N, 3) displacements by the smallest fractional step: a frame that was wrapped did not travel a cell."""
    if cell is None or not any(pbc):
        return displacement
    fractional = displacement @ np.linalg.inv(cell)
    return displacement - np.where(np.asarray(pbc), np.round(fractional), 0.0) @ cell


def model_velocities(
    trajectory: Trajectory, frame: int, config: PropagatorConfig, metadata: TrajectoryMetadata
) -> NDArray[np.float64]:
    """(N, 3) velocities at ``frame`` as ``config.velocity`` defines them, float64.

    Raises:
        InputError: the trajectory has no velocities, or no neighbouring frame.
    """
    if config.velocity == "true":
        if trajectory.velocities is None:
            raise InputError(
                f"trajectory {trajectory.name!r} has no velocities, but the propagator takes true ones; "
                "use a data set with velocities, or train with velocity: backward"
            )
        return np.asarray(trajectory.velocities[frame], dtype=np.float64)
    first, second = (frame - 1, frame) if config.velocity == "backward" else (frame, frame + 1)
    if first < 0 or second >= len(trajectory):
        raise InputError(
            f"trajectory {trajectory.name!r}: the {config.velocity} difference at frame {frame} needs frames "
            f"{first} and {second}, but there are 0 to {len(trajectory) - 1}"
        )
    before = np.asarray(trajectory.positions[first], dtype=np.float64)
    after = np.asarray(trajectory.positions[second], dtype=np.float64)
    return nearest_image(after - before, trajectory.cell, metadata.pbc) / metadata.frame_interval


_ALL_PAIRS: dict[int, Tensor] = {}


def all_pairs(number: int) -> Tensor:
    """(2, N(N-1)) every directed pair, sorted by receiver. The last few sizes are kept: do not write into it."""
    if number not in _ALL_PAIRS:
        if len(_ALL_PAIRS) > 4:
            _ALL_PAIRS.clear()
        receivers = torch.arange(number).repeat_interleave(max(number - 1, 0))
        senders = torch.arange(number).repeat(number).reshape(number, number)
        off_diagonal = ~torch.eye(number, dtype=torch.bool)
        _ALL_PAIRS[number] = torch.stack([receivers, senders[off_diagonal]])
    return _ALL_PAIRS[number]


def build_graph(
    config: PropagatorConfig,
    positions: Tensor,
    velocities: Tensor | None,
    species: Tensor,
    *,
    features: Tensor | None = None,
    cell: Tensor | None = None,
    pbc: Sequence[bool] = (False, False, False),
    neighbors: VerletList | None = None,
    generator: torch.Generator | None = None,
) -> ParticleGraph:
    """One system as the propagator sees it: its pairs, some of them dropped if the configuration says so.

    Args:
        config: cutoff and edge dropping.
        positions: (N, 3).
        velocities: (N, 3) or None.
        species: (N,) int64.
        features: (N, F) or None.
        cell: (3, 3) rows; needed where ``pbc`` is set.
        pbc: three flags.
        neighbors: a list with a skin to take the pairs from; a new list is made if None.
        generator: for ``drop: random``; torch's own if None.

    Raises:
        InputError: a periodic system without cutoff or cell.
    """
    flags = torch.tensor([bool(flag) for flag in pbc])
    periodic = bool(flags.any())
    if periodic and (cell is None or config.cutoff is None):
        raise InputError("a periodic system needs a cell and a propagator with a cutoff")
    box = torch.zeros(3, 3, dtype=positions.dtype) if cell is None or not periodic else cell.to(positions.dtype)
    box, flags = box.to(positions.device), flags.to(positions.device)
    if config.cutoff is None:
        edge_index = all_pairs(positions.shape[0]).to(positions.device)
        cell_shifts = positions.new_zeros(edge_index.shape[1], 3)
    elif neighbors is not None:
        edge_index, cell_shifts = neighbors.update(positions, box, flags)
    else:
        edge_index, cell_shifts = neighbor_list(positions, box, flags, config.cutoff)
        cell_shifts = cell_shifts.to(positions.dtype)
    if config.drop != "none" and config.drop_fraction > 0:
        pair = positions[edge_index[0]] - positions[edge_index[1]] + cell_shifts @ box
        kept = drop_edges(
            edge_index, pair.norm(dim=1), fraction=config.drop_fraction, mode=config.drop, generator=generator
        )
        edge_index, cell_shifts = edge_index[:, kept], cell_shifts[kept]
    return ParticleGraph(
        positions=positions,
        species=species,
        edge_index=edge_index,
        cell_shifts=cell_shifts,
        cell=box.unsqueeze(0),
        pbc=flags.unsqueeze(0),
        batch=torch.zeros_like(species),
        velocities=velocities,
        node_features=features,
    )


class WindowSet:
    """Samples of a data set: ``(trajectory, frame)`` pairs whose frames K strides later exist.

    ``windows[i]`` is a :class:`ParticleGraph` with the model's velocities and the labels ``targets`` and
    ``target_velocities``, both (N, K, 3). Targets of a periodic system continue from the sample's positions
    (nearest image, stride by stride), so a wrapped trajectory gives small displacements too.

    Args:
        trajectories: the data.
        config: stride, velocity, cutoff, edge dropping.
        unroll: K strides.
        starts: only these frames of every trajectory (the N-body benchmark: 30); all that fit if None.
        every: take each so-manieth frame.
        limit: a seeded random part of that many samples, in order.
        seed: of ``limit`` and of random edge dropping.
        dtype: of the graphs.

    Raises:
        InputError: other system or units, a stride that does not fit, too few frames, missing velocities.
    """

    def __init__(
        self,
        trajectories: TrajectorySet,
        config: PropagatorConfig,
        *,
        unroll: int = 1,
        starts: Sequence[int] | None = None,
        every: int = 1,
        limit: int | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.trajectories = trajectories
        self.metadata = trajectories.metadata
        self.config = config
        self.unroll = unroll
        self.dtype = dtype
        self.seed = seed
        place = str(trajectories.path or "the data")
        check_same_world(config, self.metadata, place)
        self.frames = round(config.stride / self.metadata.frame_interval)
        first = 1 if config.velocity == "backward" else 0
        beyond = unroll * self.frames + (1 if config.velocity == "forward" else 0)
        self.index: list[tuple[int, int]] = []
        for number, trajectory in enumerate(trajectories):
            last = len(trajectory) - 1 - beyond
            wanted = range(first, last + 1, every) if starts is None else starts
            for frame in wanted:
                if not first <= frame <= last:
                    raise InputError(
                        f"{place}: start frame {frame} of trajectory {trajectory.name!r} needs frames up to "
                        f"{frame + beyond}, but it has {len(trajectory)}"
                    )
                self.index.append((number, frame))
        if not self.index:
            longest = max((len(t) for t in trajectories), default=0)
            raise InputError(
                f"{place}: no sample fits; {unroll} stride(s) of {self.frames} frames need trajectories of at least "
                f"{beyond + first + 1} frames, the longest has {longest}"
            )
        if limit is not None and limit < len(self.index):
            chosen = np.random.default_rng(seed).permutation(len(self.index))[:limit]
            self.index = [self.index[i] for i in sorted(chosen)]
        # fail now, not in the middle of a training
        model_velocities(trajectories[self.index[0][0]], self.index[0][1], config, self.metadata)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> ParticleGraph:
        number, frame = self.index[i]
        trajectory = self.trajectories[number]
        positions = np.asarray(trajectory.positions[frame], dtype=np.float64)
        velocities = self._velocities(trajectory, frame)
        targets, target_velocities = [], []
        before = positions
        for stride in range(1, self.unroll + 1):
            later = frame + stride * self.frames
            stored = np.asarray(trajectory.positions[later], dtype=np.float64)
            before = before + nearest_image(stored - before, trajectory.cell, self.metadata.pbc)
            targets.append(before)
            target_velocities.append(self._velocities(trajectory, later))

        def tensor(values: NDArray) -> Tensor:
            return torch.as_tensor(values).to(self.dtype)

        graph = build_graph(
            self.config,
            tensor(positions),
            tensor(velocities),
            torch.as_tensor(trajectory.species),
            features=None if trajectory.features is None else tensor(trajectory.features),
            cell=None if trajectory.cell is None else tensor(trajectory.cell),
            pbc=self.metadata.pbc,
            generator=torch.Generator().manual_seed(self.seed * 1_000_003 + i),
        )
        labels = {
            "targets": tensor(np.stack(targets, 1)),
            "target_velocities": tensor(np.stack(target_velocities, 1)),
        }
        return ParticleGraph(**{**vars(graph), "labels": labels})

    def _velocities(self, trajectory: Trajectory, frame: int) -> NDArray[np.float64]:
        return model_velocities(trajectory, frame, self.config, self.metadata)

    def digest(self) -> str:
        """sha256 over what the samples are made of: index, settings, and the first and last sample's numbers."""
        state = hashlib.sha256()
        state.update(repr((self.index, self.frames, self.unroll, self.config.velocity)).encode())
        for number, frame in (self.index[0], self.index[-1]):
            values = np.asarray(self.trajectories[number].positions[frame], dtype=np.float64)
            state.update(np.ascontiguousarray(values).tobytes())
        return state.hexdigest()
