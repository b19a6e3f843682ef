"""The processes of a pool: how one is started, and how many fit into the machine."""

from __future__ import annotations

import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from egnn_md.errors import InputError

START = "import sys; from egnn_md.distributed.worker import main; sys.exit(main(int(sys.argv[1])))"
LOG_LINES = 4
MEMORY_OF_A_RANK = 400e6  # bytes; torch and this package, before anything is computed


class Worker:
    """One process, its pipe and its log."""

    def __init__(
        self, rank: int, device: str, folder: Path, options: dict[str, Any], environment: dict[str, str]
    ) -> None:
        self.rank, self.device = rank, device
        self.log = folder / f"rank-{rank}.log"
        ours, theirs = Pipe()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                # -P: Python would look for modules in the current directory first, where the driver does not
                [sys.executable, "-P", "-c", START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C is the driver's to handle: it writes its checkpoint with the ranks still there
                start_new_session=True,
            )
        theirs.close()
        self.channel: Connection = ours
        self.failure: tuple[str, str, str] | None = None
        self.ended = ""  # why the driver ended it
        ours.send({**options, "rank": rank, "device": device})

    def last_words(self) -> str:
        """The end of its log."""
        try:
            lines = self.log.read_text(errors="replace").split("\n")
        except OSError:
            return ""
        return "\n".join(f"    {line}" for line in [line for line in lines if line.strip()][-LOG_LINES:])

    def end(self) -> None:
        """At once."""
        self.process.kill()  # also a stopped one
        self.process.wait()
        self.channel.close()


def check_memory(ranks: int) -> None:
    """Raises InputError for more ranks than this machine's memory can hold."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.split()[1:2]}
    free = values.get("MemAvailable", 0)
    if free and ranks * MEMORY_OF_A_RANK > free:
        raise InputError(
            f"{ranks} ranks need about {ranks * MEMORY_OF_A_RANK / 1e9:.1f} GB before they hold anything, and this "
            f"machine has {free / 1e9:.1f} GB free; use at most {int(free // MEMORY_OF_A_RANK)}"
        )
