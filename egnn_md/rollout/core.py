"""Rollouts in memory: one start or many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch import nn

from egnn_md.data.trajectories import Trajectory
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.rollout.guards import Failure, Guards, RolloutError
from egnn_md.rollout.state import State, from_graph
from egnn_md.rollout.stepper import Stepper, config_of

Array = NDArray[Any]
Start = State | ParticleGraph | Trajectory
Callback = Callable[[int, list[State]], object]


@dataclass(frozen=True)
class RolloutResult:
    """One rollout, in the model's units.

    Attributes:
        positions: (F, N, 3) float64: the start and the states after it; F = strides / every + 1 unless it failed.
        velocities: (F, N, 3) float64.
        times: (F,) float64.
        failure: None, or why it ended before the last stride; every frame here is from before it.
        final: the last good state: start another rollout with it.
        rebuilds: how often the neighbour list was made.
    """

    positions: Array
    velocities: Array
    times: Array
    failure: Failure | None
    final: State
    rebuilds: int

    @property
    def steps(self) -> int:
        """Good strides."""
        return self.final.step


@overload
def rollout(
    model: nn.Module,
    start: Start,
    steps: int,
    *,
    skin: float | None = None,
    guards: Guards | bool = True,
    callback: Callback | None = None,
    every: int = 1,
    strict: bool = False,
    seed: int = 0,
) -> RolloutResult: ...


@overload
def rollout(
    model: nn.Module,
    start: Sequence[Start],
    steps: int,
    *,
    skin: float | None = None,
    guards: Guards | bool = True,
    callback: Callback | None = None,
    every: int = 1,
    strict: bool = False,
    seed: int = 0,
) -> list[RolloutResult]: ...


def rollout(
    model: nn.Module,
    start: Start | Sequence[Start],
    steps: int,
    *,
    skin: float | None = None,
    guards: Guards | bool = True,
    callback: Callback | None = None,
    every: int = 1,
    strict: bool = False,
    seed: int = 0,
) -> RolloutResult | list[RolloutResult]:
    """Let a propagator run ahead on its own predictions.

    Args:
        model: a propagator; its device and precision are used.
        start: a :class:`State` (``egnn_md.rollout.state_at`` takes one from a data set), a
            :class:`~egnn_md.graph.ParticleGraph` with velocities, or a trajectory (its first frame, with its true
            velocities: ``velocity: true`` only). A sequence of them, or a graph of several systems, is rolled out
            together; one that fails stops alone.
        steps: strides.
        skin: of the neighbour lists; see :class:`Stepper`.
        guards: see :class:`Stepper`.
        callback: called after every stride with its number and all states (those that failed at their last).
        every: keep each so-manieth state.
        strict: raise when a guard stops a rollout, instead of recording it.
        seed: of random edge dropping.

    Returns:
        A result, or a list of them for a sequence or a graph of several systems.

    Raises:
        InputError: not a propagator, ``velocity: forward``, starts that do not fit the model.
        RolloutError: with ``strict``, names particle, step and last good frame.
    """
    if steps < 0 or every < 1:
        raise InputError(f"steps must not be negative and every at least 1, not {steps} and {every}")
    starts, many = _starts(start, config_of(model).velocity)
    stepper = Stepper(model, starts, skin=skin, guards=guards, seed=seed)
    frames: list[list[State]] = [[state] for state in stepper.states]
    first = [state.step for state in stepper.states]
    for step in range(1, steps + 1):
        active = stepper.active
        if not active:
            break
        try:
            stepper.step()
        except RolloutError:
            if strict:
                raise
        for index in active:
            failure, state = stepper.failures[index], stepper.states[index]
            if failure is not None:
                if strict:
                    raise RolloutError(failure)
            elif (state.step - first[index]) % every == 0:
                frames[index].append(state)
        if callback is not None:
            callback(step, list(stepper.states))
    results = [_result(stepper, index, kept) for index, kept in enumerate(frames)]
    return results if many else results[0]


def _starts(start: Start | Sequence[Start], velocity: str) -> tuple[list[State], bool]:
    if isinstance(start, State):
        return [start], False
    if isinstance(start, ParticleGraph):
        return from_graph(start), start.num_graphs > 1
    if isinstance(start, Trajectory):
        if velocity == "backward":
            raise InputError(
                f"the propagator takes backward differences, and the first frame of trajectory {start.name!r} has no "
                "frame before it; start from a later one with egnn_md.rollout.state_at(..., frame=1)"
            )
        velocities = start.velocities
        return [
            State(
                positions=np.asarray(start.positions[0], dtype=np.float64),
                velocities=None if velocities is None else np.asarray(velocities[0]),  # type: ignore[arg-type]
                species=start.species,
                features=start.features,
                cell=start.cell,
                pbc=(start.cell is not None,) * 3,
                name=start.name,
            )
        ], False
    if not isinstance(start, Sequence):
        raise InputError(
            f"a rollout starts from a State, a ParticleGraph, a Trajectory or a sequence of them, not a "
            f"{type(start).__name__}"
        )
    found = [state for item in start for state in _starts(item, velocity)[0]]
    return [state.replace(name=state.name or f"start {i}") for i, state in enumerate(found)], True


def _result(stepper: Stepper, index: int, frames: list[State]) -> RolloutResult:
    return RolloutResult(
        positions=np.stack([frame.positions for frame in frames]),
        velocities=np.stack([frame.velocities for frame in frames]),
        times=np.array([frame.time(stepper.config.stride) for frame in frames]),
        failure=stepper.failures[index],
        final=stepper.states[index],
        rebuilds=stepper.rebuilds(index),
    )
