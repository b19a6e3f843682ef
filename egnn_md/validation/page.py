"""Page, JSON and CSV of a validation."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egnn_md.report.evaluation import number, plain
from egnn_md.report.page import asset, script_json, template
from egnn_md.simulation.files import write_atomic, write_json
from egnn_md.simulation.progress import duration
from egnn_md.validation.report_part import PartReport

TITLES = {
    "errors": "Errors of energy, forces and stress",
    "nve": "Conservation of energy",
    "structure": "Structure beside the reference method's own run",
    "diffusion": "Diffusion and temperatures of the elements",
    "density": "Density and pressure",
    "stability": "Long runs",
    "size": "Larger cells",
    "holes": "Holes in the energy surface",
}
MEANINGS = [
    ("±", "One standard error. Of means over time it counts the correlation of successive values; of RMSE it comes "
     "from resampling whole structures."),
    ("Own frames", "Structures out of the model's own run at that temperature, labelled by the reference method: "
     "errors where a simulation will be. A model that wanders off shows it here and not on a test set."),
    ("Centred energies", "The mean signed error an atom is taken away first: it moves no atom, and a reference "
     "method's zero is arbitrary."),
    ("Drift", "Slope of the total energy in NVE, an atom. Heat that comes from nowhere."),
    ("Scatter at two time steps", "Standard deviation of the total energy about its line, at the time step and at half "
     "of it. A second-order integrator of a smooth, conservative potential gives 4."),
    ("Overlap, JS divergence", "Σ min(p, q), and Jensen-Shannon's divergence in bits, of two normalised histograms; "
     "g(r) in a cell is weighted by r²."),
    ("Noise, chance", "Runs are cut into blocks. Noise: the divergence that two such runs of one method would have. "
     "Chance: the share of all ways to deal the blocks into two runs that give at least the measured divergence. "
     "Blocks shorter than the system's memory make both too small."),
    ("Hole", "A distorted structure that the model puts within 1 eV of the frame that it was made from, and more than "
     "0.5 eV lower than the reference method does. Errors of forces near known minima do not show it."),
    ("Failure", "A guard of the run: a force or energy that is no number, an atom thrown away, a force beyond any "
     "bond's, atoms too close, a temperature that no thermostat would hold."),
]  # fmt: skip


@dataclass(frozen=True)
class Written:
    """Files of a validation."""

    page: Path
    numbers: Path
    table: Path


def write_validation(folder: Path, record: dict[str, Any], parts: list[PartReport], title: str) -> Written:
    """Write index.html, validation.json and validation.csv into ``folder``.

    Args:
        folder: of the validation; PNGs are there already.
        record: ``request``, ``model``, ``command``, ``versions`` and so on, as JSON values.
        parts: reports in the order of the page.
        title: heading of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    kept = [{key: value for key, value in part.as_dict().items() if key != "figures"} for part in parts]
    pictures = {part.name: [figure["picture"] for figure in part.figures] for part in parts}
    write_json(
        folder / "validation.json",
        plain({**record, "parts": [{**part, "pictures": pictures[part["name"]]} for part in kept]}),
    )
    write_atomic(folder / "validation.csv", _csv(parts).encode())
    write_atomic(folder / "index.html", _render(record, parts, title).encode())
    return Written(folder / "index.html", folder / "validation.json", folder / "validation.csv")


def _csv(parts: list[PartReport]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("part", "quantity", "of", "value", "standard_error", "unit"))
    for part in parts:
        for row in part.numbers:
            writer.writerow((part.name, row["quantity"], row["of"], row["value"], row["error"], row["unit"]))
    return text.getvalue()


def verdict_rows(parts: list[PartReport]) -> list[dict[str, str]]:
    """The first table: what every part found, or why it found nothing."""
    rows = []
    for part in parts:
        rows += [{**verdict, "part": part.name} for verdict in part.verdicts]
        if part.status != "measured":
            mark = "bad" if part.status == "failed" else "none"
            row = {"part": part.name, "what": TITLES[part.name], "value": part.status}
            rows.append({**row, "reading": part.reason, "mark": mark})
    return rows


def _facts(record: dict[str, Any], parts: list[PartReport]) -> list[tuple[str, list[tuple[str, str]]]]:
    request, model = record["request"], record["model"]
    tables: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "Model",
            [
                ("File", str(model["source"])),
                ("Kind", str(model["kind"])),
                ("Parameters", f"{model['parameters']:,}"),
                ("Cutoff / Å", number(model["cutoff"])),
                ("Teacher", str(model["card"].get("teacher", ""))),
                ("Digest", str(model["digest"])),
            ],
        ),
        (
            "Validation",
            [
                ("Against", str(record["against"] or "")),
                ("System", str(record["system"])),
                ("Temperatures / K", ", ".join(f"{kelvin:g}" for kelvin in request["temperatures"])),
                ("Time step / fs", number(request["timestep"])),
                ("Budget", ", ".join([request["budget"], *(f"{k} {v}" for k, v in record["plan"].items())])),
                ("Time", ", ".join(f"{part.name} {duration(part.seconds)}" for part in parts if part.seconds)),
                ("Command", str(record["command"])),
            ],
        ),
        (
            "Ran on",
            [
                *((key.replace("_", " "), str(value)) for key, value in record["machine"].items() if key != "host"),
                ("Versions", ", ".join(f"{key} {value}" for key, value in record["versions"].items())),
            ],
        ),
    ]
    return [(name, [(key, value) for key, value in rows if value]) for name, rows in tables]


def _render(record: dict[str, Any], parts: list[PartReport], title: str) -> str:
    from plotly.offline import get_plotlyjs

    sections = [
        {
            "name": part.name,
            "title": TITLES[part.name],
            "status": part.status,
            "reason": part.reason,
            "notes": part.notes,
            "tables": part.tables,
            "charts": [
                {"title": f["title"], "note": f["note"], "json": script_json(f["plotly"])} for f in part.figures
            ],
        }
        for part in parts
    ]
    return template("validation.html").render(
        title=title,
        made=record["date"],
        version=record["versions"].get("egnn-md", ""),
        verdicts=verdict_rows(parts),
        sections=sections,
        facts=_facts(record, parts),
        meanings=MEANINGS,
        css=asset("page.css"),
        plotly=get_plotlyjs(),
        script=asset("viewer.js"),
    )
