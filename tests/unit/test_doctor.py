"""``egnn-md doctor``: bad combinations, missing parts and crashing engines are told, each with its remedy."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from egnn_md import diagnostics
from egnn_md.cli import doctor
from egnn_md.diagnostics import Diagnosis, Package, combination_problems, core_problems
from egnn_md.probes import PROBES, Probe, ProbeResult, run_probe, run_probes

GOOD = {"torch": "2.12.1", "openmm": "8.5.2", "acellera-openmmtorch-cpu": "1.10", "openmmml": "1.7"}
TORCH = Package("torch", "2.12.1", ">=2.10,<2.13", "networks", True, "pip install 'egnn-md'")
OPENMM = Package("openmm", "8.5.2", "==8.5.2", "the OpenMM engine", False, "pip install 'egnn-md[openmm]'")
WORKING = ProbeResult("eager", "models in Python", "works", "", core=True, values={"energy": -0.01})
MACHINE = {"system": "Linux x86_64", "cores": 2, "memory_gib": 8.0}


def diagnosis(rows=(TORCH, OPENMM), problems=(), engines=(WORKING,)) -> Diagnosis:
    return Diagnosis("3.11.7", "0.1.0", list(rows), list(problems), dict(MACHINE), list(engines))


def shown(subject: Diagnosis) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    doctor.show(subject, console)
    return console.file.getvalue()


@pytest.fixture
def app() -> typer.Typer:
    """The subcommand beside a second one: a Typer application of one command has no subcommands."""
    application = typer.Typer()
    application.callback()(lambda: None)
    doctor.register(application)
    return application


def test_the_tested_set_has_no_problem():
    assert combination_problems(GOOD) == []
    assert combination_problems({"torch": "2.13.0", "openmm": "8.6.1", "openmmml": "1.8"}) == []
    assert combination_problems({}) == []


@pytest.mark.parametrize(
    ("changed", "text", "remedy"),
    [
        ({"torch": "2.13.0"}, r"torch 2.13.0 with acellera-openmmtorch-cpu 1.10: .*PyObjectSlot.h", "<2.13"),
        ({"torch": "2.13.0+cu130"}, "every TorchForce fails", "--implementation python"),
        (
            {"openmm": "8.6.1", "openmmml": "1.8"},
            r"openmm 8.6.1 .* XmlSerializer kills the process \(SIGSEGV\)",
            "openmm==8.5.2",
        ),
        ({"openmmml": "1.8"}, "openmmml 1.8 wants openmm 8.6.1, openmm 8.5.2 is installed", "openmmml==1.7"),
        (
            {"acellera-openmmtorch-cpu": None, "openmm": "8.6.1"},
            "openmmml 1.7 wants openmm 8.5.2, openmm 8.6.1 is installed",
            "openmm==8.5.2",
        ),
        (
            {"acellera-openmmtorch-cpu": None, "openmmtorch": "1.5"},
            "openmmtorch 1.5 wants CUDA 12 libraries",
            "pip uninstall openmmtorch",
        ),
        ({"acellera-openmmtorch-cu13": "1.10"}, "are both installed and share", "openmm-cuda"),
    ],
)
def test_known_bad_combinations(changed, text, remedy):
    (problem,) = combination_problems({**GOOD, **changed})
    assert re.search(text, problem.text), problem.text
    assert remedy in problem.remedy
    assert not problem.core


def test_versions_that_cannot_be_read_are_no_problem():
    assert combination_problems({**GOOD, "torch": "unknown", "openmm": "unknown"}) == []
    assert replace(OPENMM, version="unknown").fits


def test_core_problems_name_the_package_and_the_command():
    (old,) = core_problems([TORCH, OPENMM], (3, 10))
    assert old.core
    assert "Python 3.10 is older than 3.11" in old.text
    (missing,) = core_problems([replace(TORCH, version=None), replace(OPENMM, version=None)], (3, 11))
    assert missing.core
    assert missing.text == "torch is not installed (networks)"
    assert missing.remedy == "pip install 'egnn-md'"
    (wrong,) = core_problems([replace(TORCH, version="2.13.0")], (3, 11))
    assert not wrong.core
    assert "torch 2.13.0 is outside the tested range >=2.10,<2.13" in wrong.text
    assert wrong.remedy == "pip install 'torch>=2.10,<2.13'"


def test_this_environment_is_described():
    rows = {row.name: row for row in diagnostics.packages()}
    assert rows["torch"].version == diagnostics.metadata.version("torch")
    assert rows["torch"].fits
    assert "<2.13" in rows["torch"].wanted
    assert rows["torch-cluster"].install == diagnostics.BUILD_CLUSTER
    assert rows["safetensors"].purpose == "core"
    assert {"ase", "vesin-torch", "lightning", "mdtraj", "openmm", "openmmml", "tblite"} <= set(rows)


def test_an_environment_without_egnn_md_is_broken(monkeypatch):
    monkeypatch.setattr(diagnostics, "DISTRIBUTION", "no-such-distribution-of-ours")
    subject = diagnostics.diagnose(probe=False)
    assert not subject.core_ok
    assert "egnn-md itself is not installed" in subject.problems[0].text
    assert "pip install -e" in subject.problems[0].remedy


def test_a_crash_is_told_with_its_signal_and_stage():
    script = "import os, signal\nstage('reading it back')\nos.kill(os.getpid(), signal.SIGSEGV)"
    result = run_probe(Probe("x", "X", script))
    assert result.status == "fails"
    assert result.detail == "reading it back: the process was killed by SIGSEGV"


def test_an_exception_is_told_in_one_line():
    result = run_probe(Probe("x", "X", "stage('import')\nimport no_such_module_anywhere"))
    assert result.status == "fails"
    assert result.detail == "import: ModuleNotFoundError: No module named 'no_such_module_anywhere'"


def test_a_script_that_stops_early_has_not_worked():
    result = run_probe(Probe("x", "X", "stage('first step')\nimport os\nos._exit(0)"))
    assert result.status == "fails"
    assert result.detail == "first step: the process ended with exit code 0"


def test_an_engine_that_hangs_is_stopped():
    result = run_probe(Probe("x", "X", "import time\ntime.sleep(60)"), timeout=0.5)
    assert result.status == "fails"
    assert result.detail == "no answer within 0.5 s"


def test_a_missing_module_is_not_tried():
    probe = Probe("x", "X", "raise SystemExit(3)", ("no_such_module_anywhere",), "pip install it")
    result = run_probe(probe)
    assert (result.status, result.install) == ("missing", "pip install it")
    assert result.detail == "no_such_module_anywhere not installed"


def test_another_energy_than_the_eager_model_is_a_failure():
    probes = [
        Probe("eager", "", "done(energy=-1.0)", same_energy=True),
        Probe("near", "", "done(energy=-1.000001)", same_energy=True),
        Probe("far", "", "done(energy=-1.01)", same_energy=True),
        Probe("nan", "", "done(energy=float('nan'))", same_energy=True),
        Probe("silent", "", "done()", same_energy=True),
    ]
    results = run_probes(probes)
    assert [result.status for result in results] == ["works", "works", "fails", "fails", "fails"]
    assert results[2].detail == "energy -1.01 eV, the model in Python gives -1.0 eV"


def test_every_engine_installed_here_works():
    """The real thing, each in its child process; an engine that is not installed is reported as missing."""
    results = run_probes(PROBES)
    broken = {result.name: result.detail for result in results if result.status == "fails"}
    assert broken == {}
    by_name = {result.name: result for result in results}
    assert by_name["eager"].values["energy"] == pytest.approx(-0.0104, rel=0.05)
    assert all(result.install for result in results if result.status == "missing")


def test_table_shows_versions_engines_and_remedies():
    engine = ProbeResult("openmm-torch", "OpenMM, TorchForce", "missing", "openmmtorch not installed")
    text = shown(diagnosis(rows=(TORCH, replace(OPENMM, version=None)), engines=(WORKING, engine)))
    assert "egnn-md 0.1.0, Python 3.11.7, Linux x86_64, 2 cores, 8 GiB memory" in text
    assert "2.12.1" in text
    assert "missing" in text
    assert "openmmtorch not installed" in text
    assert "openmm: pip install 'egnn-md[openmm]'" in text  # brackets must survive rich's markup
    assert text.rstrip().endswith("The core works.")


def test_table_shows_problems():
    problems = combination_problems({**GOOD, "torch": "2.13.0"})
    text = shown(diagnosis(problems=problems))
    assert "Problem: torch 2.13.0 with acellera-openmmtorch-cpu 1.10" in text
    assert "Remedy: pip install 'torch>=2.10,<2.13'" in text
    assert "The core works." in text


def test_exit_codes_and_json(app, monkeypatch):
    runner = CliRunner()
    missing = ProbeResult("openmm", "OpenMM", "missing", "")
    monkeypatch.setattr(diagnostics, "diagnose", lambda **_: diagnosis(engines=(WORKING, missing)))
    result = runner.invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["core_ok"] is True
    assert told["packages"][0]["name"] == "torch"
    assert told["engines"][1]["status"] == "missing"

    broken = replace(WORKING, status="fails", detail="import: it is broken")
    monkeypatch.setattr(diagnostics, "diagnose", lambda **_: diagnosis(engines=(broken,)))
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "import: it is broken" in result.stdout
    assert "The core does not work" in result.stdout


def test_quick_tries_no_engine(app):
    result = CliRunner().invoke(app, ["doctor", "--quick", "--json"])
    assert result.exit_code == 0, result.stdout
    assert json.loads(result.stdout)["engines"] == []
