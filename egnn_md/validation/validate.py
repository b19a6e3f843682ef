"""All parts of a validation, each on its own, and the page that puts them together."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from egnn_md.checkpoint import read_header
from egnn_md.errors import ConfigError, DeviceError, EgnnMdError, InputError, MissingDependencyError, OutputError
from egnn_md.models.base import Potential
from egnn_md.report.evaluation import plain
from egnn_md.simulation.files import locked, write_atomic, write_json, writing
from egnn_md.simulation.machine import machine, versions
from egnn_md.simulation.models import check_model, open_model
from egnn_md.simulation.progress import duration
from egnn_md.simulation.readers import file_digest
from egnn_md.simulation.request import MDRequest
from egnn_md.validation import (
    part_density,
    part_diffusion,
    part_errors,
    part_holes,
    part_nve,
    part_size,
    part_stability,
    part_structure,
)
from egnn_md.validation.context import Context
from egnn_md.validation.page import Written, write_validation
from egnn_md.validation.report_part import PartReport, Skipped
from egnn_md.validation.request import PARTS, TEACHER_SHARES, ValidateRequest
from egnn_md.validation.runs import InterruptedRun
from egnn_md.validation.teacher import TeacherPotential

MEASURES: dict[str, Callable[[Context], PartReport]] = {
    "errors": part_errors.measure,
    "nve": part_nve.measure,
    "structure": part_structure.measure,
    "diffusion": part_diffusion.measure,
    "density": part_density.measure,
    "stability": part_stability.measure,
    "size": part_size.measure,
    "holes": part_holes.measure,
}
# no fault of a part: the next one would fail alike, and what is done is kept
FATAL = (OutputError, DeviceError, MissingDependencyError)


@dataclass(frozen=True)
class Validation:
    """What came out: the parts, validation.json as it was written, the files."""

    parts: list[PartReport]
    record: dict[str, Any]
    written: Written

    @property
    def failed(self) -> list[str]:
        """Names of parts that failed."""
        return [part.name for part in self.parts if part.status == "failed"]


def validate(
    request: ValidateRequest,
    *,
    model: Potential | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Validation:
    """Measure a potential, part by part, and write the page, validation.json and validation.csv.

    Calling it again goes on where it stopped; parts that are done are not done again, those that failed or
    were skipped are tried again. The page holds every part that is done, whichever call did it.

    Args:
        request: what to measure.
        model: a potential to validate instead of the one that ``request.model`` names.
        overwrite: forget what an earlier call with other settings did there.
        console: where progress goes; standard error by default.

    Raises:
        ConfigError: the directory holds a validation with other settings.
        InputError, ModelFileError, MissingDependencyError: nothing can be measured.
        InterruptedRun: a signal came.
    """
    console = console or Console(stderr=True)
    folder = Path(request.output)
    loaded, description = _open(request, model)
    teacher = None
    if request.method is not None:
        teacher = TeacherPotential(request.method, request.against_options, request.charge)
    context = Context(request, loaded, model, teacher, folder, console)
    if request.structure is not None:
        check_model(loaded, context.structure())
    with locked(folder / "validation.lock", "validating"):
        _begin(context, description, overwrite)
        _announce(context)
        for name in request.chosen:
            _do(name, context)
        parts = finished_parts(context)
        record = _record(context, description)
        written = write_validation(folder, record, parts, request.title or f"Validation of {Path(request.model).name}")
    return Validation(parts, json.loads(written.numbers.read_text()), written)


def _open(request: ValidateRequest, model: Potential | None) -> tuple[Potential, dict[str, Any]]:
    """The potential on its device, and what the record says about it."""
    values = {"structure": "none", "model": request.model, "device": request.device, "dtype": request.dtype}
    # labels of a part of the energy are measured as they are; runs of it are refused by themselves
    asked = MDRequest.parse({**values, "steps": 1, "output": request.output, "without_prior": True})
    if model is not None:
        return open_model(asked, model)
    header = read_header(request.model)
    if not header["kind"].endswith("potential"):
        raise InputError(
            f"{request.model} is a {header['kind']}; potentials are validated here, and propagators by "
            "`egnn-md evaluate`"
        )
    loaded, description = open_model(asked)
    # the digest is that of the file, whatever precision its weights were cast to
    return loaded.to(request.device), {**description, "digest": header["digest"]}


def _fingerprint(context: Context, description: dict[str, Any]) -> dict[str, Any]:
    """What finished parts and runs belong to."""
    request = context.request
    kept = {
        key: value
        for key, value in request.model_dump(mode="json").items()
        if key not in {*request.changeable, "model"}
    }
    files = [name for name in (request.structure, request.teacher_structure, *request.all_labels) if name]
    for name in files:
        if not Path(name).is_file():
            raise InputError(f"there is no file {name} (looked in {Path.cwd()})")
    return {**kept, "model digest": description["digest"], "files": {name: file_digest(Path(name)) for name in files}}


def _begin(context: Context, description: dict[str, Any], overwrite: bool) -> None:
    """Make the directory; refuse one that belongs to another validation."""
    path = context.work / "settings.json"
    now = _fingerprint(context, description)
    if context.work.exists() and not path.exists():
        raise ConfigError(f"--output {context.folder} holds a folder {context.work.name} that no validation wrote")
    if path.exists() and overwrite:
        shutil.rmtree(context.work)
    if path.exists():
        before = json.loads(path.read_text())
        other = [key for key in now if before.get(key) != now[key]]
        if other:
            words = "; ".join(f"{key} was {before.get(key)!r}, not {now[key]!r}" for key in other)
            raise ConfigError(
                f"{context.folder} holds a validation with other settings ({words}); {context.request.remedy()}"
            )
        return
    with writing(context.work):
        (context.work / "parts").mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def _announce(context: Context) -> None:
    """Say beforehand what is dear."""
    request = context.request
    if request.structure is None:
        return
    missing = [name for name in request.chosen if not _done(name, context)]
    if not missing:
        return
    plan, each = context.plan, context.model_seconds()
    steps = {
        "errors": len(request.temperatures) * request.steps(plan.equilibration + plan.length),
        "nve": request.steps(max(plan.length, plan.nve)) + 2 * request.steps(plan.nve),
        "density": request.steps(plan.density),
        "stability": plan.stability_steps * plan.seeds,
    }
    total = sum(count for name, count in steps.items() if name in missing)
    context.say(f"model: {1000 * each:.3g} ms a step, about {total:,} steps or {duration(total * each)} in all")
    if context.teacher is not None and TEACHER_SHARES.keys() & set(missing):
        try:
            seconds = context.teacher_seconds(small=True)
        except EgnnMdError as error:  # the parts that need it will say so
            context.say(str(error))
            return
        context.say(
            f"{context.teacher.method}: {seconds:.3g} s an evaluation; it may take {plan.teacher_minutes:g} minutes in "
            "all (--teacher-minutes)"
        )


def _part_path(name: str, context: Context) -> Path:
    return context.work / "parts" / f"{name}.json"


def _done(name: str, context: Context) -> bool:
    """True unless it failed, was skipped, or left something out: more time or another package may help then."""
    path = _part_path(name, context)
    if not path.exists():
        return False
    stored = json.loads(path.read_text())
    return stored["status"] == "measured" and not stored["reason"]


def _do(name: str, context: Context) -> None:
    """One part; whatever goes wrong in it is its result."""
    if _done(name, context):
        context.console.print(f"{name}: done before", highlight=False)
        return
    context.console.print(f"{name}", highlight=False)
    begun = time.monotonic()
    try:
        report = MEASURES[name](context)
    except Skipped as reason:
        report = PartReport(name, "skipped", str(reason))
    except (*FATAL, InterruptedRun):
        raise
    except EgnnMdError as error:
        report = PartReport(name, "failed", str(error))
    except Exception as error:  # the other parts can still be measured; what broke stays to be read
        log = _part_path(name, context).with_suffix(".traceback.txt")
        write_atomic(log, traceback.format_exc().encode())
        report = PartReport(name, "failed", f"{type(error).__name__}: {error} (a fault of egnn_md; see {log})")
    report.seconds = time.monotonic() - begun
    write_json(_part_path(name, context), plain(report.as_dict()))
    state = f" ({report.reason})" if report.reason else ""
    context.say(f"{report.status} in {duration(report.seconds)}{state}")


def finished_parts(context: Context) -> list[PartReport]:
    """All parts that there are, in their order."""
    return [
        PartReport.from_dict(json.loads(_part_path(name, context).read_text()))
        for name in PARTS
        if _part_path(name, context).exists()
    ]


def _record(context: Context, description: dict[str, Any]) -> dict[str, Any]:
    request = context.request
    system = ""
    if request.structure is not None:
        structure = context.structure()
        system = f"{structure.formula}, {len(structure)} atoms, {'periodic' if structure.periodic else 'open'}"
    return {
        "request": request.model_dump(mode="json"),
        "plan": asdict(context.plan),
        "against": request.against,
        "system": system,
        "model": description,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["egnn-md", *sys.argv[1:]]),
        "versions": versions(),
        "machine": machine(request.device),
    }
