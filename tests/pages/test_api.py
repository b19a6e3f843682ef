"""The API reference builds, holds every public name, and every public thing explains itself."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def api() -> ModuleType:
    pytest.importorskip("pdoc", reason="pdoc is not installed: pip install 'egnn-md[docs]'")
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_holds_every_public_name(api: ModuleType, tmp_path: Path) -> None:
    api.build(tmp_path)
    for name in ("egnn_md", "egnn_md_ase", "egnn_md_openmm", "egnn_md.models", "egnn_md.rollout", "egnn_md.testing"):
        page = (tmp_path / (name.replace(".", "/") + ".html")).read_text(encoding="utf-8")
        for public in importlib.import_module(name).__all__:
            if inspect.ismodule(getattr(importlib.import_module(name), public)):  # it has a page of its own
                assert (tmp_path / name / f"{public}.html").exists()
                continue
            assert f'id="{public}"' in page, f"{name}.{public}"
    assert (tmp_path / "index.html").exists()


def test_public_functions_and_classes_explain_themselves(api: ModuleType) -> None:
    silent = []
    for name in (*api.MODULES, *api.BROUGHT_ALONG):
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
            value = getattr(module, public)
            own = getattr(value, "__module__", "").startswith("egnn_md")
            if own and (inspect.isclass(value) or inspect.isfunction(value)) and not inspect.getdoc(value):
                silent.append(f"{name}.{public}")
    assert silent == []


def test_modules_that_it_names_exist(api: ModuleType) -> None:
    assert len(set(api.MODULES)) == len(api.MODULES)
    for name in api.MODULES:
        assert re.match(r"egnn_md(_ase|_openmm)?(\.|$)", name)
        assert importlib.util.find_spec(name) is not None
