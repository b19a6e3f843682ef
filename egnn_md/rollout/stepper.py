"""The stepping loop: neighbour list, model, new state; the one stepper that plain, ASE and OpenMM rollouts share.

Positions are those that the model gave, in the model's precision; they are kept as doubles, which hold them
exactly, and handed to the next stride unchanged. No sum runs beside them and nothing comes back rounded from an
engine's units, so all engines give the same positions and a stored state goes on as if it had never stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from egnn_md.data.windows import build_graph
from egnn_md.errors import EgnnMdError, InputError
from egnn_md.graph import ParticleGraph
from egnn_md.neighbors import VerletList
from egnn_md.rollout.guards import Failure, Guards, RolloutError, not_finite
from egnn_md.rollout.state import State, check_causal

if TYPE_CHECKING:
    from egnn_md.models.propagator import PropagatorConfig

Array = NDArray[Any]
SKIN = 0.1  # of the cutoff
# a list is never made without a skin: pairs at the cutoff are then chosen in the model's precision by the same
# comparison whenever the list was made, and a resumed rollout has the same edges
LEAST_SKIN = 1e-3
PATIENCE = 5  # first strides; if the list had to be made anew at each of them, a skin only costs
EDGES_AT_ONCE = 2_000_000


def config_of(model: nn.Module) -> PropagatorConfig:
    """Configuration of a propagator.

    Raises:
        InputError: not a propagator, or one that cannot roll out.
    """
    from egnn_md.models.propagator import PropagatorConfig

    config = getattr(model, "config", None)
    if not isinstance(config, PropagatorConfig):
        raise InputError(
            f"a {type(model).__name__} is not a propagator; a rollout needs one, such as FastEGNNPropagator "
            "(a potential runs in molecular dynamics: egnn-md md)"
        )
    check_causal(config)
    return config


class _Skin:
    """A neighbour list with a skin for one system; the skin shrinks where motion uses it up at once."""

    def __init__(self, cutoff: float, skin: float | None) -> None:
        self.adaptive = skin is None
        self.least = LEAST_SKIN * cutoff
        self.list = VerletList(cutoff, max(SKIN * cutoff if skin is None else skin, self.least))
        self.reference: Array | None = None  # positions that the list was made for
        self._seen = 0

    def note(self, positions: Array) -> None:
        """Look at the statistics after an update at ``positions``."""
        statistics = self.list.statistics
        if statistics.rebuilds != self._seen:
            self._seen, self.reference = statistics.rebuilds, positions
        if self.adaptive and statistics.updates == PATIENCE and statistics.rebuilds == PATIENCE:
            self.list.skin = self.least
            self.list.reset()


class Stepper:
    """Systems that one model moves, a stride at a time and all together.

    Args:
        model: a propagator; its device and precision are used. It is put in evaluation mode. A
            :class:`egnn_md.distributed.ParallelPropagator` keeps its own skin.
        starts: one state or several; they may differ in size.
        skin: of the neighbour lists, in the model's length; a tenth of the cutoff if None, and next to none where
            particles cross that in a stride. Positions do not depend on it.
        guards: limits; True for the rules of :class:`Guards`, False to stop at numbers that are not finite only.
        seed: of ``drop: random``, drawn anew and repeatably for every stride.
        edges_at_once: systems are joined up to this many edges, which bounds the memory.

    Attributes:
        states: the last good state of every system.
        failures: None, or why it stopped.

    Raises:
        InputError: not a propagator, ``velocity: forward``, or a start that does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        starts: State | Sequence[State],
        *,
        skin: float | None = None,
        guards: Guards | bool = True,
        seed: int = 0,
        edges_at_once: int = EDGES_AT_ONCE,
    ) -> None:
        self.model: Any = model.eval()
        self.config = config_of(model)
        given = [starts] if isinstance(starts, State) else list(starts)
        if not given:
            raise InputError("there is no start to roll out from")
        if skin is not None and not skin >= 0:
            raise InputError(f"the skin must not be negative, not {skin}")
        self.states = [start.checked(self.config) for start in given]
        self.failures: list[Failure | None] = [None] * len(given)
        self.displacements = [0.0] * len(given)  # largest of the last stride
        self.seed = seed
        self.edges_at_once = edges_at_once
        weights = [*model.parameters(), *model.buffers()]
        floating = next((tensor for tensor in weights if tensor.is_floating_point()), None)
        self.dtype = torch.float64 if floating is None else floating.dtype
        self.device = torch.device("cpu") if not weights else weights[0].device
        cutoff = self.config.cutoff
        # one that is split over devices makes the list of one system there; of several, they are made here
        self._shared = bool(getattr(model, "makes_lists", False)) and len(given) == 1
        self._lists = [None if cutoff is None else _Skin(cutoff, skin) for _ in given]
        chosen = Guards() if guards is True else guards
        self._limits = [chosen.limits(self.config, state) if chosen else None for state in self.states]
        self._fixed = [np.isin(state.species, self.config.static_species) for state in self.states]
        self._tensors = [self._constant(state) for state in self.states]
        self._edges: list[int | None] = [None] * len(given)  # of the start

    def __len__(self) -> int:
        return len(self.states)

    @property
    def active(self) -> list[int]:
        """Indices of the systems that have not failed."""
        return [index for index, failure in enumerate(self.failures) if failure is None]

    def time(self, index: int = 0) -> float:
        """Time of a system now, in the model's unit."""
        return self.states[index].time(self.config.stride)

    def rebuilds(self, index: int = 0) -> int:
        """How often the neighbour list of a system was made; 0 where all pairs interact."""
        if self._shared:
            return int(self.model.neighbor_statistics.rebuilds)
        skin = self._lists[index]
        return 0 if skin is None else skin.list.statistics.rebuilds

    def _tensor(self, values: Array) -> torch.Tensor:
        return torch.as_tensor(values).to(device=self.device, dtype=self.dtype)

    def _constant(self, state: State) -> dict[str, Any]:
        return {
            "species": torch.as_tensor(state.species, device=self.device),
            "features": None if state.features is None else self._tensor(state.features),
            "cell": None if state.cell is None else self._tensor(state.cell),
        }

    def step(self) -> None:
        """One stride of every system that has not failed.

        Raises:
            RolloutError: there is only one system and it failed; its state is the last good one.
        """
        if self._shared:
            self._step_shared()
        else:
            self._step_joined()
        if len(self) == 1 and self.failures[0] is not None:
            raise RolloutError(self.failures[0])

    def _step_shared(self) -> None:
        """One system whose edges the model's own processes find."""
        for index in self.active:
            state, constant = self.states[index], self._tensors[index]
            cell = torch.zeros(3, 3, dtype=self.dtype) if constant["cell"] is None else constant["cell"]
            try:
                prediction, degrees = self.model.predict_structure(
                    self._tensor(state.positions), self._tensor(state.velocities), constant["species"], cell,
                    torch.tensor([bool(flag) for flag in state.pbc]), constant["features"],
                )  # fmt: skip
            except InputError as error:
                self._fail(index, None, str(error))
                continue
            if not self._collapsed(index, np.repeat(np.arange(len(state)), degrees.numpy())):
                self._accept(index, prediction.positions.double().numpy(), prediction.velocities.double().numpy())

    def _step_joined(self) -> None:
        with torch.no_grad():
            pending: list[tuple[int, ParticleGraph]] = []
            edges = 0
            for index in self.active:
                try:
                    graph = self._graph(index)
                except EgnnMdError as error:
                    self._fail(index, None, str(error))
                    continue
                if self._collapsed(index, graph.edge_index[0].cpu().numpy()):
                    continue
                if pending and edges + graph.num_edges > self.edges_at_once:
                    self._advance(pending)
                    pending, edges = [], 0
                pending.append((index, graph))
                edges += graph.num_edges
            if pending:
                self._advance(pending)

    def _graph(self, index: int) -> ParticleGraph:
        state, constant, skin = self.states[index], self._tensors[index], self._lists[index]
        generator = None
        if self.config.drop == "random":
            generator = torch.Generator(self.device).manual_seed(self._stride_seed(state))
        graph = build_graph(
            self.config,
            self._tensor(state.positions),
            self._tensor(state.velocities),
            constant["species"],
            features=constant["features"],
            cell=constant["cell"],
            pbc=state.pbc,
            neighbors=None if skin is None else skin.list,
            generator=generator,
        )
        if skin is not None:
            skin.note(state.positions)
        return graph

    def _collapsed(self, index: int, receivers: Array) -> bool:
        limits, first = self._limits[index], self._edges[index]
        if first is None:
            self._edges[index] = first = len(receivers)
        if limits is None or self.config.cutoff is None:
            return False
        found = limits.crowded(self.states[index], receivers, first)
        if found is not None:
            self._fail(index, *found)
        return found is not None

    def _stride_seed(self, state: State) -> int:
        # nothing that one way of starting knows and another does not (a name, a time): engines would differ
        key = f"{self.seed} {state.step}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7])

    def _advance(self, pending: list[tuple[int, ParticleGraph]]) -> None:
        prediction = self.model.predict(ParticleGraph.join([graph for _, graph in pending]))
        positions = prediction.positions.double().cpu().numpy()
        velocities = prediction.velocities.double().cpu().numpy()
        first = 0
        for index, graph in pending:
            rows = slice(first, first + graph.num_nodes)
            first += graph.num_nodes
            self._accept(index, positions[rows].copy(), velocities[rows].copy())

    def _accept(self, index: int, positions: Array, velocities: Array) -> None:
        before, fixed, limits = self.states[index], self._fixed[index], self._limits[index]
        positions[fixed] = before.positions[fixed]
        velocities[fixed] = 0.0
        found = (
            not_finite(before, positions, velocities)
            if limits is None
            else limits.check(before, positions, velocities)
        )
        if found is not None:
            self._fail(index, *found)
            return
        self.displacements[index] = float(np.linalg.norm(positions - before.positions, axis=1).max())
        self.states[index] = before.replace(positions=positions, velocities=velocities, step=before.step + 1)

    def _fail(self, index: int, particle: int | None, reason: str) -> None:
        state = self.states[index]
        self.failures[index] = Failure(state.step + 1, particle, reason, state.step, state.name)

    def adopt(self, index: int = 0, **changes: Any) -> None:
        """Go on from values that somebody set: positions, velocities, cell, pbc, step or start_time.

        A system that had failed goes on too.

        Raises:
            InputError: they are not finite or do not fit.
        """
        self.states[index] = self.states[index].replace(**changes).checked(self.config)
        self._tensors[index] = self._constant(self.states[index])
        self.failures[index] = None

    def memory(self, index: int) -> dict[str, Any]:
        """What else, beside the state, a rollout that is stopped here needs in order to be counted alike."""
        if self._shared:
            return {**self.model.coordinator.memory(), "edges": self._edges[index]}
        skin = self._lists[index]
        if skin is None or skin.reference is None:
            return {}
        statistics = vars(skin.list.statistics)
        return {"reference": skin.reference, "skin": skin.list.skin, "edges": self._edges[index], **statistics}

    def remember(self, index: int, memory: dict[str, Any]) -> None:
        """Take back what :meth:`memory` gave: the neighbour list is made again where it was made before."""
        state, skin = self.states[index], self._lists[index]
        if not memory:
            return
        self._edges[index] = memory.pop("edges", None)
        if self._shared:
            constant = self._tensors[index]
            pbc = torch.tensor([bool(flag) for flag in state.pbc])
            self.model.coordinator.remember(memory, constant["species"], pbc, constant["features"])
            return
        if skin is None or "reference" not in memory or "ranks" in memory:
            return
        skin.list.skin = float(memory["skin"])
        skin.reference = np.asarray(memory["reference"], dtype=np.float64)
        cell = torch.zeros(3, 3) if state.cell is None else torch.as_tensor(state.cell)
        skin.list.reset()
        skin.list.update(
            self._tensor(skin.reference),
            cell.to(device=self.device, dtype=self.dtype),
            torch.tensor(state.pbc, device=self.device),
        )
        for name in vars(skin.list.statistics):
            setattr(skin.list.statistics, name, int(memory[name]))
        skin._seen = skin.list.statistics.rebuilds
