"""Frames laid onto a reference structure (Kabsch), with velocities that belong to the laid frames."""

from __future__ import annotations

import numpy as np

from egnn_md.errors import InputError


def rotations_onto(positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(T, 3, 3) proper rotations ``R`` that minimise ``Σ |R (x - x̄) - (r - r̄)|²`` for every frame (Kabsch, 1976)."""
    moved = positions - positions.mean(axis=1, keepdims=True)
    fixed = reference - reference.mean(axis=0)
    u, _, vt = np.linalg.svd(np.einsum("ni,tnj->tij", fixed, moved))
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]  # never a mirror image
    return u @ vt


def align(
    positions: np.ndarray, velocities: np.ndarray | None, reference: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions and velocities of the frames laid onto ``reference``.

    Alignment takes the drift and the turning of the whole out of the positions. The velocities that come back are the
    time derivative of these positions: turned with the frame, without the mean velocity, and without the angular
    velocity ``ω`` that keeps the frame aligned, ``Σ r × (R (v - v̄) + ω × y) = 0``.

    Args:
        positions: (T, N, 3).
        velocities: (T, N, 3) or None.
        reference: (N, 3).

    Raises:
        InputError: the reference has another number of atoms.
    """
    if reference.shape != positions.shape[1:]:
        raise InputError(
            f"the reference has {len(reference)} atoms, but the trajectory {positions.shape[1]}; select the same atoms"
        )
    frames = np.asarray(positions, dtype=np.float64)
    turn = rotations_onto(frames, np.asarray(reference, dtype=np.float64))
    centre = reference.mean(axis=0, dtype=np.float64)
    laid = (frames - frames.mean(axis=1, keepdims=True)) @ turn.transpose(0, 2, 1)
    if velocities is not None:
        arms = reference - centre
        moving = np.asarray(velocities, dtype=np.float64)
        moving = (moving - moving.mean(axis=1, keepdims=True)) @ turn.transpose(0, 2, 1)
        torque = np.cross(arms[None], moving).sum(axis=1)
        inertia = np.einsum("ni,tni->t", arms, laid)[:, None, None] * np.eye(3) - np.einsum("tni,nj->tij", laid, arms)
        omega = np.linalg.solve(inertia, -torque[:, :, None])[:, :, 0]
        velocities = (moving + np.cross(omega[:, None], laid)).astype(positions.dtype)
    return (laid + centre).astype(positions.dtype), velocities
