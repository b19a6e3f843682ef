"""``egnn-md info``: what a model file says about itself. No weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("info")(command)


def command(
    model: Annotated[
        str, typer.Argument(help="Name of an installed model, or path of a model file or exported artefact.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Print a model's elements, units, cutoff, teacher, licence, measured errors and digest."""
    described = describe(model)
    if as_json:
        print(json.dumps(described, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows(described):
        table.add_row(escape(name), escape(value))
    # wide enough for a digest in one piece, also where the output is a file
    Console(highlight=False, width=max(Console().width, 100)).print(table)


def describe(name_or_path: str) -> dict[str, Any]:
    """Header of a model file, or self-description of an exported artefact, as plain values.

    Returns:
        ``file``, ``size`` (bytes) and ``type`` (``model`` or ``artefact``), then what the file itself says.

    Raises:
        ModelFileError: missing, truncated, foreign or newer.
        UnsafeFileError: a pickle.
    """
    from egnn_md.checkpoint import read_header, resolve_model
    from egnn_md.export import is_archive, read_artefact
    from egnn_md.export.propagator import is_propagator_artefact, read_propagator_artefact

    path: Path = resolve_model(name_or_path)
    place: dict[str, Any] = {"file": str(path), "size": path.stat().st_size}
    if is_propagator_artefact(path):
        return {**place, "type": "propagator artefact", **read_propagator_artefact(path).model_dump(mode="json")}
    if is_archive(path):
        return {**place, "type": "artefact", **read_artefact(path).model_dump(mode="json")}
    return {**place, "type": "model", **read_header(path)}


def rows(described: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Lines of the table: the card's words first, then sizes, then the digest; empty fields are left out."""
    rest = dict(described)
    card: dict[str, Any] = rest.pop("card", None) or {}
    config: dict[str, Any] = rest.pop("config", None) or {}
    yield from _lines("name", card.pop("name", ""))
    yield from _lines("description", card.pop("description", ""))
    for name in ("file", "size", "type", "kind", "parameters"):
        value = rest.pop(name, "")
        yield from (
            _lines(name, f"{value:,}" + (" bytes" if name == "size" else ""))
            if isinstance(value, int)
            else _lines(name, value)
        )
    for name in ("elements", "numbers"):
        if name in config:
            yield from _lines(name, _symbols(config.pop(name)))
        if name in rest:
            yield from _lines(name, _symbols(rest.pop(name)))
    if "cutoff" in config:
        unit = card.get("units", {}).get("length", "")
        yield from _lines("cutoff", f"{config.pop('cutoff')} {unit}".strip())
    digest = rest.pop("digest", "")
    for source in (card, {"configuration": config}, rest):
        for name, value in source.items():
            yield from _lines(name.replace("_", " "), value)
    yield from _lines("digest", digest)


def _symbols(numbers: Any) -> str:
    """Symbols with their counts where one occurs often: ``H, O`` or ``H ×128, O ×64``."""
    from collections import Counter

    from ase.data import chemical_symbols

    if not isinstance(numbers, list) or not all(isinstance(z, int) and 0 < z < 119 for z in numbers):
        return ", ".join(map(str, numbers)) if isinstance(numbers, list) else str(numbers)
    counted = Counter(chemical_symbols[number] for number in numbers)
    return ", ".join(f"{symbol} ×{n}" if n > 1 else symbol for symbol, n in counted.items()) or "any"


def _lines(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """One line for a plain value, an indented one for each entry of a mapping, none for nothing."""
    if value is None or value == "" or value == {} or value == []:
        return
    if isinstance(value, dict):
        yield name, ""
        for key, inner in value.items():
            for label, text in _lines(str(key).replace("_", " "), inner):
                yield f"  {label}", text
    elif isinstance(value, list) and all(isinstance(item, dict) for item in value):  # a committee's members
        yield from _lines(name, {str(index): item for index, item in enumerate(value)})
    elif isinstance(value, list):
        yield name, ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    else:
        yield name, f"{value:.6g}" if isinstance(value, float) else str(value)
