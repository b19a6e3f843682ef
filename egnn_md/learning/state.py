"""Where a learning loop is: one small file, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egnn_md.errors import ConfigError, InputError
from egnn_md.learning.config import FREE_KEYS, LearnConfig
from egnn_md.simulation.files import write_json

FORMAT = 1
STATE = "state.json"


@dataclass
class LearnState:
    """Stages that are over, and what they took.

    Attributes:
        path: of the file.
        config: of the loop, as it was begun.
        done: names such as ``2/label``: round and stage.
        seconds: wall time of every stage, all its beginnings together.
        status: running, interrupted, stopped or finished.
    """

    path: Path
    config: dict[str, Any]
    done: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    status: str = "running"

    @classmethod
    def open(cls, folder: Path, config: LearnConfig) -> LearnState:
        """The state in ``folder``, or a new one.

        Raises:
            ConfigError: a loop with other settings began there; names the key.
            InputError: the file is damaged.
        """
        path, now = folder / STATE, config.model_dump(mode="json")
        if not path.exists():
            return cls(path, now)
        try:
            found = json.loads(path.read_text())
            if int(found["format"]) > FORMAT:
                raise InputError(f"{path} was written by a newer egnn-md; update with pip install -U egnn-md")
            state = cls(path, dict(found["config"]), list(found["done"]), dict(found["seconds"]), str(found["status"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} cannot be read as the state of a learning loop: {error!r}") from error
        for key, old, new in _differences(state.config, now):
            if key not in FREE_KEYS:
                raise ConfigError(
                    f"{folder} was begun with {key} = {old!r}, not {new!r}; go on with the same value, or choose "
                    f"another output (free to change: {', '.join(FREE_KEYS)})"
                )
        state.config = now
        return state

    def save(self) -> None:
        """Replace the file atomically."""
        record = {"format": FORMAT, "status": self.status, "done": self.done, "seconds": self.seconds}
        write_json(self.path, {**record, "config": self.config})

    def finish(self, stage: str) -> None:
        """Note that ``stage`` is over; whatever it wrote must be on the disk."""
        self.done.append(stage)
        self.save()


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            yield f"{prefix}{key}", before, now
