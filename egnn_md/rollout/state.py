"""The state of a rollout: everything that the next stride depends on, in double precision and model units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError

if TYPE_CHECKING:
    from egnn_md.data.trajectories import TrajectorySet
    from egnn_md.graph import ParticleGraph
    from egnn_md.models.propagator import PropagatorConfig

Array = NDArray[Any]
OPEN = (False, False, False)


@dataclass(frozen=True)
class State:
    """One system at one moment. Lengths and times are in the model's units.

    Doubles hold every single precision number exactly, so a state is the same whatever the model's precision.

    Attributes:
        positions: (N, 3) float64, not wrapped.
        velocities: (N, 3) float64, as the model's ``config.velocity`` defines them.
        species: (N,) int64 particle types (atomic numbers of molecules).
        features: (N, F) float64 given inputs, or None.
        cell: (3, 3) float64 rows, or None in an open system.
        pbc: three flags.
        step: strides since the start.
        start_time: time of step 0.
        name: for messages.
    """

    positions: Array
    velocities: Array
    species: Array
    features: Array | None = None
    cell: Array | None = None
    pbc: tuple[bool, bool, bool] = OPEN
    step: int = 0
    start_time: float = 0.0
    name: str = ""

    def __len__(self) -> int:
        return len(self.species)

    def time(self, stride: float) -> float:
        """Time now, a product and not a running sum, so that a resumed rollout has the same."""
        return self.start_time + self.step * stride

    def replace(self, **changes: Any) -> State:
        """Copy with other values."""
        return replace(self, **changes)

    def checked(self, config: PropagatorConfig) -> State:
        """Self with every array converted, after checking it against what the model takes.

        Raises:
            InputError: no particles, wrong shapes, numbers that are not finite, unknown particle types, missing
                velocities, features or cell.
        """
        where = f"the start {self.name!r}" if self.name else "the start"
        species = np.array(self.species, dtype=np.int64)
        n = len(species)
        if n == 0 or species.ndim != 1:
            raise InputError(f"{where} has particle types of shape {species.shape}; at least one particle is needed")
        if self.velocities is None:
            raise InputError(
                f"{where} has no velocities, but the propagator of {config.system!r} takes {config.velocity} ones; "
                "give them, or (velocity: backward) a frame before"
            )
        values: dict[str, Any] = {"species": species, "pbc": tuple(bool(flag) for flag in self.pbc)}
        wanted = {"positions": (n, 3), "velocities": (n, 3)}
        if config.node_features or self.features is not None:
            wanted["features"] = (n, config.node_features)
        if any(self.pbc):
            if self.cell is None:
                raise InputError(f"{where} is periodic ({list(self.pbc)}) and has no cell")
            if config.cutoff is None:
                raise InputError(f"{where} is periodic, but the propagator of {config.system!r} joins all pairs")
            wanted["cell"] = (3, 3)
        else:
            values["cell"] = None
        for name, shape in wanted.items():
            given = getattr(self, name)
            if given is None:
                raise InputError(
                    f"{where} has no {name}, but the propagator of {config.system!r} needs {shape[1]} a particle"
                )
            array = np.array(given, dtype=np.float64)
            if array.shape != shape:
                raise InputError(f"{name} of {where} are {array.shape}, but {shape} is needed")
            finite = np.isfinite(array).all(axis=1)
            if not finite.all():
                bad = int(np.flatnonzero(~finite)[0])
                raise InputError(f"{name} of {where}: row {bad} is {array[bad].tolist()}, not finite")
            values[name] = array
        strange = ~np.isin(species, config.species)
        if strange.any():
            first = int(np.flatnonzero(strange)[0])
            raise InputError(
                f"particle {first} of {where} has type {species[first]}, but the propagator of {config.system!r} "
                f"knows {list(config.species)}"
            )
        return replace(self, **values)


def from_graph(graph: ParticleGraph) -> list[State]:
    """States of the single graphs of a batch (its labels are left out)."""

    def array(tensor: Any) -> Any:
        return None if tensor is None else tensor.detach().cpu().double().numpy()

    states = []
    for index, part in enumerate(graph.split() if graph.num_graphs > 1 else [graph]):
        flags = part.pbc[0].tolist()
        states.append(
            State(
                positions=array(part.positions),
                velocities=array(part.velocities),
                species=part.species.cpu().numpy(),
                features=array(part.node_features),
                cell=array(part.cell[0]) if any(flags) else None,
                pbc=(flags[0], flags[1], flags[2]),
                name=f"graph {index}" if graph.num_graphs > 1 else "",
            )
        )
    return states


def state_at(trajectories: TrajectorySet, config: PropagatorConfig, *, trajectory: int = 0, frame: int = 0) -> State:
    """A stored frame as a start. Its time counts from the trajectory's first frame.

    Args:
        trajectories: one part of a data set.
        config: of the model: says which velocities it takes.
        trajectory: which trajectory.
        frame: which frame; negative ones count from the end.

    Raises:
        InputError: no such trajectory or frame, another system or unit, missing velocities.
    """
    from egnn_md.data.windows import check_same_world, model_velocities

    place = str(trajectories.path or "the data")
    check_causal(config)
    check_same_world(config, trajectories.metadata, place)
    if not 0 <= trajectory < len(trajectories):
        raise InputError(f"{place} has trajectories 0 to {len(trajectories) - 1}, not {trajectory}")
    chosen = trajectories[trajectory]
    if not -len(chosen) <= frame < len(chosen):
        raise InputError(f"{place}: trajectory {trajectory} has frames 0 to {len(chosen) - 1}, not {frame}")
    frame %= len(chosen)
    if frame == 0 and config.velocity == "backward":
        raise InputError(
            f"{place}: the propagator of {config.system!r} takes backward differences: frame 0 of trajectory "
            f"{trajectory} needs frames -1 and 0; start at frame 1 or a later one"
        )
    return State(
        positions=np.asarray(chosen.positions[frame], dtype=np.float64),
        velocities=model_velocities(chosen, frame, config, trajectories.metadata),
        species=chosen.species,
        features=chosen.features,
        cell=chosen.cell,
        pbc=trajectories.metadata.pbc,
        start_time=frame * trajectories.metadata.frame_interval,
        name=f"trajectory {trajectory}, frame {frame}",
    ).checked(config)


def check_causal(config: PropagatorConfig) -> None:
    """Refuse a model whose velocities are differences to the frame that it is to predict.

    Raises:
        InputError: ``velocity: forward``.
    """
    if config.velocity == "forward":
        raise InputError(
            f"the propagator of {config.system!r} takes forward differences (velocity: forward, as published), "
            "which are made from the next frame: they are known in a stored trajectory and never in a rollout. "
            "Train it with velocity: true or backward"
        )
