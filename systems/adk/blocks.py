"""Frames of a running simulation as blocks: small HDF5 files that appear whole or not at all.

A run that is killed leaves complete blocks behind, and a reader may open them while the run goes on; one growing
HDF5 file allows neither without care on both sides.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from egnn_md.errors import InputError
from egnn_md.simulation.files import sync_directory, writing

PATTERN = "frames-*.h5"


@dataclass
class Block:
    """Consecutive frames: fs, Å, Å/fs, K."""

    first_frame: int
    times: np.ndarray  # (T,) float64
    positions: np.ndarray  # (T, N, 3) float32
    velocities: np.ndarray  # (T, N, 3) float32
    temperatures: np.ndarray  # (T,) of the half-step velocities of all atoms, also those not kept

    def __len__(self) -> int:
        return len(self.times)


def block_path(directory: Path, index: int) -> Path:
    """File of block ``index``."""
    return directory / f"frames-{index:05d}.h5"


def write_block(directory: Path, index: int, block: Block) -> None:
    """Write block ``index`` atomically. Raises OutputError."""
    path = block_path(directory, index)
    temporary = path.with_suffix(".h5.tmp")
    with writing(path):
        with h5py.File(temporary, "w") as file:
            file.attrs["first_frame"] = block.first_frame
            file["time"] = block.times
            for name, values in (("position", block.positions), ("velocity", block.velocities)):
                # float32 coordinates hardly compress losslessly; shuffle and deflate still give a tenth
                file.create_dataset(
                    name, data=values.astype(np.float32), chunks=(1, *values.shape[1:]), compression=1, shuffle=True
                )
            file["temperature"] = block.temperatures.astype(np.float32)
        with open(temporary, "rb") as file_on_disk:
            os.fsync(file_on_disk.fileno())
        os.replace(temporary, path)
        sync_directory(directory)


def block_files(directory: Path) -> list[Path]:
    """The blocks in ``directory``, in order. Raises InputError if one between two others is missing."""
    files = sorted(directory.glob(PATTERN))
    for index, path in enumerate(files):
        if path != block_path(directory, index):
            raise InputError(f"{block_path(directory, index)} is missing, but {path.name} is there; restore it")
    return files


def read_block(path: Path) -> Block:
    """Read one block. Raises InputError if the file is broken."""
    try:
        with h5py.File(path, "r") as file:
            return Block(
                int(file.attrs["first_frame"]),
                file["time"][:],
                file["position"][:],
                file["velocity"][:],
                file["temperature"][:],
            )
    except (OSError, KeyError) as error:
        raise InputError(f"{path} is not a whole block of frames ({error}); remove the run or restore the file") from (
            error
        )


def read_blocks(directory: Path | str) -> Block:
    """All frames of a run, also one that still goes on.

    Raises:
        InputError: no block is there, one is missing or broken, or they do not join.
    """
    directory = Path(directory)
    files = block_files(directory)
    if not files:
        raise InputError(f"{directory} holds no {PATTERN}; is it the --output of `egnn-md generate adk`?")
    blocks = [read_block(path) for path in files]
    expected = 0
    for path, block in zip(files, blocks, strict=True):
        if block.first_frame != expected:
            raise InputError(f"{path} starts at frame {block.first_frame}, not {expected}; it belongs to another run")
        expected += len(block)
    names = ("times", "positions", "velocities", "temperatures")
    return Block(0, *(np.concatenate([getattr(block, name) for block in blocks]) for name in names))
