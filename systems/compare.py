"""``python -m egnn_md_systems.compare CONFIG``: models with an equal budget, side by side, into one table.

Every model is trained from one configuration with the same number of steps, the same batch size, the same samples in
the same order (a seed fixes it), and measured on the test part beside "stay still" and "linear". Names of models:

| name | network |
| --- | --- |
| ``still``, ``linear`` | no network |
| ``egnn`` | EGNN with velocities (C = 0) |
| ``fastegnn-3`` | FastEGNN with C = 3 virtual nodes |
| ``rf``, ``rf-3`` | radial field; with virtual nodes |
| ``cf``, ``cf-3`` | continuous filter (SchNet's); with virtual nodes |
| ``…-p0.75`` | the longest 75 % of each graph's edges dropped |
| ``…-r0.75`` | random 75 % dropped, others at each training step |

A run that was interrupted goes on with the same command; what is finished is not trained again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from egnn_md.errors import ConfigError, EgnnMdError, TrainingError

RESULT_NAME = "result.json"
MESSAGES = {"egnn": "egnn", "fastegnn": "egnn", "rf": "radial-field", "cf": "continuous-filter"}
NAME = re.compile(
    r"(?P<kind>egnn|fastegnn|rf|cf)(?:-(?P<channels>\d+))?(?:-(?P<mode>[pr])(?P<fraction>\d+(?:\.\d+)?))?"
)
NO_NETWORK = ("still", "linear")


@dataclass(frozen=True)
class Variant:
    """One row of the table: a model, and what a sweep changes."""

    model: str
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name in tables and of the run's folder."""
        return " ".join([self.model, *(f"{key}={value}" for key, value in self.changes.items())])

    @property
    def folder(self) -> str:
        """The label as a file name."""
        return re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.label)

    @property
    def settings(self) -> dict[str, Any]:
        """Dotted keys of the training configuration and their values; without a network there are none."""
        return {**model_settings(self.model), **self.changes}


def model_settings(name: str) -> dict[str, Any]:
    """Dotted configuration keys that make the model of this name (see the module's table).

    Raises:
        ConfigError: no such model.
    """
    match = NAME.fullmatch(name)
    if match is None or (match["kind"] == "egnn" and match["channels"]) or (
        match["kind"] == "fastegnn" and not int(match["channels"] or 0)
    ):
        raise ConfigError(
            f"there is no model {name!r}; examples: still, linear, egnn, egnn-p0.75, fastegnn-3, fastegnn-3-r0.5, rf, "
            "rf-3, cf, cf-3"
        )
    fraction = float(match["fraction"] or 0.0)
    if fraction > 1:
        raise ConfigError(f"model {name!r} drops {fraction:g} of the edges; the fraction must lie in 0 to 1")
    channels = int(match["channels"] or 0)
    modes = {"p": "longest", "r": "random", None: "none"}
    settings: dict[str, Any] = {
        "model.messages": MESSAGES[match["kind"]],
        "model.virtual_nodes": channels,
        "model.drop": modes[match["mode"]] if fraction else "none",
        "model.drop_fraction": fraction,
    }
    if channels == 0:
        settings["loss.mmd"] = 0.0  # there are no virtual nodes whose places it could compare
    return settings


def parse_sweep(text: str) -> list[dict[str, Any]]:
    """``loss.mmd=0,0.03`` as one change of the configuration a value; values are YAML.

    Raises:
        ConfigError: not of this form.
    """
    key, sign, values = text.partition("=")
    if not sign or not key or not values:
        raise ConfigError(f"--sweep {text!r} is not of the form section.key=value,value,…")
    return [{key.strip(): yaml.safe_load(value)} for value in values.split(",")]


def make_variants(models: Sequence[str], sweeps: Sequence[str], grid: bool) -> list[Variant]:
    """Rows of the table: each model, or each model with each value of each sweep.

    Args:
        models: names.
        sweeps: see :func:`parse_sweep`.
        grid: every combination of the sweeps' values instead of one sweep after another.

    Raises:
        ConfigError: unknown names or sweeps that cannot be read.
    """
    for name in models:
        if name not in NO_NETWORK:
            model_settings(name)
    networks = [name for name in models if name not in NO_NETWORK]
    if not networks:
        raise ConfigError("give at least one model with a network; still and linear are always in the table")
    if len(set(networks)) < len(networks):
        raise ConfigError(f"a model is named twice in {', '.join(networks)}")
    parsed = [parse_sweep(sweep) for sweep in sweeps]
    if not parsed:
        return [Variant(name) for name in networks]
    changes: list[dict[str, Any]]
    if grid:
        changes = [{k: v for part in parts for k, v in part.items()} for parts in itertools.product(*parsed)]
    else:
        changes = [change for sweep in parsed for change in sweep]
    return [Variant(name, change) for name in networks for change in changes]


def run_content(base: dict[str, Any], variant: Variant, steps: int, seed: int, output: Path) -> dict[str, Any]:
    """The training configuration of one run, as a nested mapping."""
    content: dict[str, Any] = json.loads(json.dumps(base))
    settings = {
        **variant.settings,
        "max_steps": steps,
        "max_epochs": None,
        "max_time_minutes": None,
        "seed": seed,
        "tensorboard": False,
        "name": variant.label,
        "output": str(output),
    }
    for key, value in settings.items():
        place = content
        *sections, last = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return content


def run_one(content: dict[str, Any]) -> dict[str, Any] | None:
    """Train one model, or take the finished run's result.

    Returns:
        Errors, budget and settings; None if it was interrupted.

    Raises:
        ConfigError: the folder holds a finished run with other settings.
    """
    from rich.console import Console

    from egnn_md.checkpoint import read_header
    from egnn_md.training.config_file import validate
    from egnn_md.training.memory import keep_freed_memory
    from egnn_md.training.propagator_build import check_propagator_section
    from egnn_md.training.propagator_config import PropagatorTrainConfig
    from egnn_md.training.train_propagator import train_propagator

    output = Path(content["output"])
    file = output / RESULT_NAME
    settings = {key: value for key, value in content.items() if key != "output"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text())
        if found["settings_digest"] != digest:
            raise ConfigError(
                f"{output} holds a finished run with other settings than those asked for; "
                "give another --output, or remove that folder"
            )
        return found
    config = validate(PropagatorTrainConfig, content, content["name"])
    check_propagator_section(config.model, content["name"])
    keep_freed_memory()
    result: dict[str, Any] = {"settings_digest": digest, "seed": config.seed, "config": content}
    try:
        trained = train_propagator(config, resume=True, console=Console())
    except TrainingError as error:
        result |= {"failed": str(error), "errors": {}}
    else:
        if not trained.finished:
            return None
        assert trained.model is not None
        header = read_header(trained.model)
        result |= {
            "errors": trained.errors,
            "steps": trained.steps,
            "parameters": header["parameters"],
            "budget": header["card"]["measured"]["budget"],
            "training_data": header["card"]["training_data"],
            "units": header["card"]["units"],
        }
    output.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(file)
    return result


def run_all(contents: Sequence[dict[str, Any]], jobs: int) -> list[dict[str, Any] | None]:
    """:func:`run_one` of each, ``jobs`` at a time in processes of their own; in order."""
    if jobs == 1:
        results: list[dict[str, Any] | None] = []
        for content in contents:
            print(f"-- {content['name']}, seed {content['seed']}", flush=True)
            results.append(run_one(content))
            if results[-1] is None:
                return results + [None] * (len(contents) - len(results))
        return results
    done: dict[int, dict[str, Any] | None] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run_one, content): index for index, content in enumerate(contents)}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
    return [done[index] for index in range(len(contents))]


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r} must be whole numbers with commas between them") from None


def main(
    config: Annotated[Path, typer.Argument(help="Training configuration (task: propagator) that all models share.")],
    models: Annotated[str, typer.Option(help="Names with commas between them.")] = "egnn,fastegnn-3,fastegnn-3-p0.75",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of every model. (default: max_steps)")] = None,
    seeds: Annotated[str, typer.Option(help="Whole numbers with commas between them.")] = "0",
    output: Annotated[Path, typer.Option(help="Directory of runs, results.json, results.md and results.png.")] = Path(
        "runs/compare"
    ),
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V,V,…", help="Train each model with each value, e.g. loss.mmd=0,0.3."),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Every combination of the sweeps' values.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key for all models.")
    ] = None,
    timing: Annotated[int, typer.Option(min=0, help="Repetitions of the speed measurement; 0 leaves it out.")] = 7,
) -> None:
    """Train models with an equal budget and compare them."""
    from egnn_md.training.config_file import apply_overrides, read_yaml
    from egnn_md_systems.compare_results import write_results
    from egnn_md_systems.compare_timing import measure_speed

    base = apply_overrides(read_yaml(config), overrides or [])
    if base.get("task") != "propagator":
        raise ConfigError(f"{config}: task = {base.get('task')!r}; only trainings of propagators are compared here")
    budget = steps or base.get("max_steps")
    if budget is None:
        raise ConfigError(f"{config} has no max_steps, so give --steps: every model gets the same number")
    variants = make_variants([name.strip() for name in models.split(",")], sweep or [], grid)
    numbers = _numbers(seeds, "--seeds")
    contents = [
        run_content(base, variant, budget, seed, output / "runs" / variant.folder / f"seed{seed}")
        for seed in numbers
        for variant in variants
    ]
    results = run_all(contents, jobs)
    if any(result is None for result in results):
        print("interrupted; the same command goes on")
        raise typer.Exit(130)
    rows = {variant.label: [] for variant in variants}  # type: dict[str, list[dict[str, Any]]]
    for content, result in zip(contents, results, strict=True):
        assert result is not None
        rows[content["name"]].append(result)
    speed = measure_speed({v.label: rows[v.label][0]["config"] for v in variants}, base, timing) if timing else {}
    command = "python -m egnn_md_systems.compare " + " ".join(sys.argv[1:])
    for path in write_results(output, variants, rows, speed, budget, command):
        print(path)


def run() -> None:
    """As :func:`egnn_md.cli.main.main`: our own errors end in one readable line and exit code 2."""
    try:
        typer.run(main)
    except EgnnMdError as error:
        print(f"compare: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    run()
