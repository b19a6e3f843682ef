"""Imports point downward, importing does no work, and no file knows the machine it was written on."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ("openmm", "openmmtorch", "openmmml", "simtk", "tblite")
PLUGINS = ("egnn_md_ase", "egnn_md_openmm", "egnn_md_systems")
# ASE's Atoms, readers, finished results and the abstract base compute nothing; the rest does.
ASE_ENGINES = ("ase.md", "ase.optimize", "ase.calculators", "ase.constraints", "ase.filters", "ase.phonons")
ASE_DATA = ("ase.calculators.singlepoint", "ase.calculators.calculator")
# the teachers and their dynamics: inside functions only
LAZY = {"egnn_md/data/calculators.py", "egnn_md/data/openmm_calculator.py", "egnn_md/learning/sampling.py"}
SKIPPED = {".venv", ".git", "runs", "build", "dist", "__pycache__"}


def imported(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether it is imported when the module is) of every absolute import."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) not in inside
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rsplit(".", 1)[-1]
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value), id(node) not in inside


def within(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def violations(path: str, source: str) -> list[str]:
    """Imports in a file of ``egnn_md/`` that break the rule."""
    found = []
    for name, at_import in imported(ast.parse(source)):
        computes = within(name, ENGINES) or (within(name, ASE_ENGINES) and not within(name, ASE_DATA))
        if within(name, PLUGINS) or (computes and (path not in LAZY or at_import)):
            found.append(f"{path}: {name}")
    return found


def sources(place: str) -> list[Path]:
    return sorted(path for path in (ROOT / place).rglob("*.py") if not SKIPPED & set(path.parts))


def test_core_imports_no_plugin_no_engine_and_no_calculator():
    broken = []
    for path in sources("egnn_md"):
        broken += violations(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    assert broken == []


@pytest.mark.parametrize(
    ("path", "source", "count"),
    [
        ("egnn_md/graph.py", "import openmm", 1),
        ("egnn_md/graph.py", "def f():\n    from openmm import app", 1),
        ("egnn_md/graph.py", "import importlib\nimportlib.import_module('egnn_md_ase.engine')", 1),
        ("egnn_md/graph.py", "from ase.md import verlet\nfrom ase import Atoms\nimport ase.io", 1),
        ("egnn_md/graph.py", "from ase.calculators.singlepoint import SinglePointCalculator", 0),
        ("egnn_md/data/calculators.py", "def f():\n    from tblite.ase import TBLite", 0),
        ("egnn_md/data/calculators.py", "from tblite.ase import TBLite", 1),
        ("egnn_md/data/calculators.py", "def f():\n    import egnn_md_systems", 1),
    ],
)
def test_the_import_rule_sees(path: str, source: str, count: int):
    assert len(violations(path, source)) == count


@pytest.mark.parametrize(
    ("place", "forbidden"),
    [
        ("plugins/egnn_md_ase", ("egnn_md_openmm", "egnn_md_systems", "openmm", "openmmtorch", "openmmml")),
        ("plugins/egnn_md_openmm", ("egnn_md_ase", "egnn_md_systems")),
    ],
)
def test_plugins_do_not_import_each_other(place: str, forbidden: tuple[str, ...]):
    names = [
        f"{path.name}: {name}"
        for path in sources(place)
        for name, _ in imported(ast.parse(path.read_text(encoding="utf-8")))
        if within(name, forbidden)
    ]
    assert names == []


STATE = """
import json, random, sys
import numpy, torch
{first}
def state():
    return [str(torch.get_default_dtype()), str(torch.get_default_device()), torch.get_num_threads(),
            torch.get_num_interop_threads(), torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
            torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(),
            torch.get_rng_state().sum().item(),
            hash(random.getstate()), int(numpy.random.get_state()[1].sum())]
before = state()
import egnn_md
{more}
print(json.dumps([before, state(), torch.cuda.is_initialized(), sorted(sys.modules)]))
"""


def import_state(more: str, first: str = "") -> tuple[list, list, bool, list[str]]:
    script = STATE.replace("{first}", first).replace("{more}", more)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after, cuda, modules = json.loads(done.stdout.splitlines()[-1])
    assert done.stdout.count("\n") == 1, f"something is printed at import: {done.stdout[:300]}"
    return before, after, cuda, modules


def test_importing_everything_changes_nothing_global():
    modules = []
    for path in sources("egnn_md"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    more = "\n".join(f"import {name}" for name in sorted(set(modules)) if not name.endswith("__main__"))
    # Lightning draws from Python's generator when it is imported; that is not ours to test
    before, after, cuda, loaded = import_state(more, first="import lightning.pytorch")
    assert after == before
    assert not cuda
    heavy = [name for name in loaded if within(name, ENGINES + PLUGINS)]
    assert heavy == []


def test_importing_the_package_brings_no_engine_and_no_trainer():
    before, after, cuda, loaded = import_state("")
    assert after == before
    assert not cuda
    slow = ("lightning", "mdtraj", "plotly", "matplotlib", "tensorboard", "openmm", "tblite")
    assert [name for name in loaded if name in slow] == []


def test_the_command_answers_help_without_engines_and_trainers():
    script = (
        "import json, sys, egnn_md.cli.main\n"
        "slow = ('lightning', 'mdtraj', 'plotly', 'matplotlib', 'openmm', 'tblite')\n"
        "print(json.dumps([name for name in slow if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


SETTERS = (
    "set_default_dtype",
    "set_default_device",
    "set_default_tensor_type",
    "set_float32_matmul_precision",
    "allow_tf32",
)


def test_nothing_sets_the_users_defaults():
    found = []
    for place in ("egnn_md", "plugins", "systems"):
        for path in sources(place):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and node.attr in SETTERS:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.attr}")
    assert found == []


MACHINE = re.compile(r"(?<![\w.~}$)/])/(?:work|root|home/\w+|Users/\w+|tmp/\w+|opt/\w+)(?:/|\b)")
TEXT = {".py", ".md", ".cfg", ".toml", ".yml", ".yaml", ".json", ".txt", ".sh", ".html", ""}


def test_no_file_names_a_place_on_one_machine():
    found = []
    for path in sorted(ROOT.rglob("*")):
        relative = path.relative_to(ROOT)
        parts = set(relative.parts)
        hidden = any(part.startswith(".") and part != ".ci" for part in parts)
        if hidden or SKIPPED & parts or any(part.endswith(".egg-info") for part in parts):
            continue
        if not path.is_file() or path.suffix not in TEXT or path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if MACHINE.search(line):
                found.append(f"{relative}:{number}: {line.strip()[:100]}")
    assert found == []
