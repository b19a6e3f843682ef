"""``egnn-md bench peers``: other potentials on the same box of water, energy and forces at one cutoff.

Every peer is called through its own ASE calculator (TensorNet, which has one for its trained files only, through its
model), with its list made anew at each call, and so is ours. Untrained networks of their usual sizes are timed where no
trained file is given: their speed does not depend on their weights, and their errors are not shown.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.errors import ConfigError, InputError, MissingDependencyError
from egnn_md_benchmarks import peer_models
from egnn_md_benchmarks.common import Options, Tell, begin
from egnn_md_benchmarks.peer_models import Evaluate
from egnn_md_benchmarks.results import Column, Record
from egnn_md_benchmarks.timing import choose_clock, interleaved, summary
from egnn_md_benchmarks.water import shuffled, water_atoms_count, water_box
from egnn_md_benchmarks.workloads import check_size

SIZES = ("water-192", "water-648", "water-1536")
OURS = "egnn_md"
COLUMNS = (
    Column("size", "size"),
    Column("peer", "potential"),
    Column("parameters", "parameters", "count"),
    Column("median", "energy, forces", "time"),
    Column("spread", "spread", "percent"),
    Column("ratio", "ours is faster", "ratio"),
    Column("force_rmse", "force RMSE, eV/Å", "number"),
    Column("force_mae", "force MAE, eV/Å", "number"),
    Column("note", ""),
)


@dataclass(frozen=True)
class Peer:
    """A potential of others: the module that tells whether it is there, its pip name, and how it is made."""

    name: str
    module: str
    pip: str
    build: Callable[[peer_models.Wanted], tuple[Evaluate, int, str]]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("mace", "mace", "mace-torch", peer_models.mace),
        Peer("tensornet", "torchmdnet", "torchmd-net", peer_models.tensornet),
        Peer("nequip", "nequip", "nequip", peer_models.nequip),
    )
}


def installed(peer: Peer) -> bool:
    """Whether its module can be found."""
    return importlib.util.find_spec(peer.module) is not None


def require(name: str) -> Peer:
    """The peer.

    Raises:
        InputError: an unknown name.
        MissingDependencyError: it is not installed; the message says how it is.
    """
    if name not in PEERS:
        raise InputError(f"unknown peer {name!r}; known: {', '.join(PEERS)}")
    peer = PEERS[name]
    if not installed(peer):
        raise MissingDependencyError(
            f"the peer {name!r} needs the package {peer.pip}, which is not installed; its pins may not go with ours, "
            f"so use an environment of its own: pip install egnn-md {peer.pip}"
        )
    return peer


def peer_files(words: list[str]) -> dict[str, Path]:
    """``NAME=PATH`` words.

    Raises:
        ConfigError: a word without ``=`` or an unknown name.
        InputError: no such file.
    """
    found = {}
    for word in words:
        name, sign, path = word.partition("=")
        if not sign or name not in PEERS:
            raise ConfigError(f"--peer-model takes NAME=PATH with NAME of {', '.join(PEERS)}, not {word!r}")
        if not Path(path).exists():
            raise InputError(f"--peer-model {word}: there is no file {path}")
        found[name] = Path(path)
    return found


def run(options: Options, tell: Tell = print) -> Record:
    """Measure. ``options.more``: ``peers`` (named ones), ``peer_models`` (NAME → path), ``labels`` (extended XYZ),
    ``cutoff`` (Å; by default our model's).

    Raises:
        InputError: unknown names, files that are not there.
        MissingDependencyError: a named peer is not installed.
    """
    from egnn_md.data.structures import read_frames
    from egnn_md_ase import FastEGNNCalculator

    options.check()
    sizes = [check_size(name) for name in options.sizes or SIZES]
    for name in sizes:
        water_atoms_count(name)
    files: dict[str, Path] = dict(options.more.get("peer_models") or {})
    named = list(dict.fromkeys([*(options.more.get("peers") or ()), *files]))
    chosen = [require(name) for name in named] or list(PEERS.values())
    labels = options.more.get("labels")
    frames = read_frames(Path(labels)) if labels else []
    for index, atoms in enumerate(frames):
        if atoms.calc is None or "forces" not in atoms.calc.results:
            raise InputError(f"--labels {labels}: structure {index} has no forces; label it with `egnn-md label`")
    ours = FastEGNNCalculator(options.model, device=options.device, dtype=options.dtype, skin=0.0)
    cutoff = float(options.more.get("cutoff") or ours.model.cutoff)
    record, _ = begin("peers", options, peaks=False, tell=tell)
    record.settings |= {"sizes": sizes, "cutoff": cutoff, "clock": choose_clock(options.device).name}
    wanted = peer_models.Wanted(options.device, options.dtype, cutoff, list(ours.model.elements), options.seed)
    made: dict[str, tuple[Evaluate, int, str]] = {
        OURS: (
            peer_models.through_calculator(ours),
            sum(item.numel() for item in ours.model.parameters()),
            f"{options.model}, cutoff {ours.model.cutoff:g} Å",
        )
    }
    for peer in chosen:
        if not installed(peer):
            record.add("unavailable", size="all", peer=peer.name, reason=f"not installed: pip install {peer.pip}")
            continue
        tell(f"{peer.name}: making it")
        try:
            made[peer.name] = peer.build(wanted.of(files.get(peer.name)))
        except Exception as error:  # other people's packages fail in their own ways
            if peer.name in named:
                raise InputError(f"the peer {peer.name!r} cannot be made: {type(error).__name__}: {error}") from error
            record.add("failed", size="all", peer=peer.name, reason=f"{type(error).__name__}: {error}")
    for size in sizes:
        _measure_size(size, made, options, record, tell)
    if frames:
        _add_errors(record, frames, {k: v for k, v in made.items() if k == OURS or k in files}, tell)
    record.notes += [
        f"Energy and forces of one structure, with a fresh list, through ASE calculators; cutoff {cutoff:g} Å; median "
        f"of interleaved repeats ({record.settings['clock']}).",
        "Peers without a trained file are random networks of the sizes in the last column: speed only.",
    ]
    return record


def _measure_size(
    size: str, made: dict[str, tuple[Evaluate, int, str]], options: Options, record: Record, tell: Tell
) -> None:
    atoms = water_box(water_atoms_count(size), options.seed)
    calls: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, (evaluate, parameters, what) in made.items():
        tell(f"{size}: {name}")
        head = {"size": size, "atoms": len(atoms), "peer": name, "parameters": parameters}
        try:
            _, forces = evaluate(atoms)
            assert forces.shape == (len(atoms), 3)
        except Exception as error:
            if name == OURS:
                raise
            record.add("failed", **head, reason=f"{type(error).__name__}: {error}")
            continue
        number = iter(range(10**9))

        def call(evaluate: Evaluate = evaluate, number: Any = number) -> Any:
            return evaluate(shuffled(atoms, next(number)))

        calls[name], rows[name] = call, record.add(**head, note=what)
    for name, seconds in interleaved(calls, options.repeats, warmup=options.warmup, device=options.device).items():
        rows[name].update(summary(seconds))
    for row in rows.values():
        row["ratio"] = row["median"] / rows[OURS]["median"]


def _add_errors(
    record: Record, frames: list[Any], trained: dict[str, tuple[Evaluate, int, str]], tell: Tell
) -> None:
    """Force errors against labels, in rows of their own."""
    for name, (evaluate, parameters, what) in trained.items():
        tell(f"errors of {name}")
        errors = np.concatenate([(evaluate(atoms)[1] - atoms.get_forces()).ravel() for atoms in frames])
        record.add(
            size=f"{len(frames)} labelled structures",
            peer=name,
            parameters=parameters,
            force_rmse=float(np.sqrt((errors**2).mean())),
            force_mae=float(np.abs(errors).mean()),
            note=what,
        )


def charts(record: Record) -> list[Any]:
    """Time against atoms, a line a potential."""
    from egnn_md.report.charts import Chart, Series

    lines = []
    timed = [row for row in record.rows if row["status"] == "ok" and "median" in row]
    for colour, name in enumerate(dict.fromkeys(row["peer"] for row in timed)):
        own = sorted((row for row in timed if row["peer"] == name), key=lambda row: row["atoms"])
        x, y = np.array([r["atoms"] for r in own]), np.array([r["median"] for r in own])
        lines.append(Series(name, x, y, "points", colour))
    return [Chart("peers", "Energy and forces", "atoms", "s", tuple(lines), y_log=True)] if lines else []
