"""The API reference, built from docstrings by pdoc: ``make docs``, or ``python docs/make_api.py FOLDER``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pdoc
import pdoc.render

#: What users import. Everything else may change between two versions.
MODULES = (
    "egnn_md",
    "egnn_md_ase",
    "egnn_md_openmm",
    "egnn_md.checkpoint",
    "egnn_md.data.calculators",
    "egnn_md.data.labelling",
    "egnn_md.data.structures",
    "egnn_md.distributed",
    "egnn_md.errors",
    "egnn_md.export",
    "egnn_md.graph",
    "egnn_md.kernels",
    "egnn_md.models",
    "egnn_md.neighbors",
    "egnn_md.nn.fourier",
    "egnn_md.nn.smooth",
    "egnn_md.rollout.core",
    "egnn_md.simulation.request",
    "egnn_md.testing",
    "egnn_md.training.config",
    "egnn_md.training.propagator_config",
    "egnn_md.units",
    "egnn_md.validation",
)
#: Packages that are public names of another one, whose page brings theirs along.
BROUGHT_ALONG = ("egnn_md.rollout",)


def present(name: str) -> str:
    """Import a module together with the names that it would only import when they are used; pdoc asks for none."""
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", []):
        vars(module).setdefault(public, getattr(module, public))
    return name


def build(folder: Path) -> None:
    """Write the pages into ``folder``."""
    pdoc.render.configure(docformat="google", search=True, footer_text="egnn_md")
    for name in BROUGHT_ALONG:
        present(name)
    pdoc.pdoc(*[present(name) for name in MODULES], output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "site/api"))
