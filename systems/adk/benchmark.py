"""Trajectories of adenylate kinase that others made: the published benchmark's, and a small one for trials."""

from __future__ import annotations

import importlib
from pathlib import Path

from egnn_md.errors import InputError, MissingDependencyError
from egnn_md_systems.adk.system import mdanalysis_tests_file

EQUILIBRIUM_INTERVAL = 240_000.0  # fs; CHARMM27, explicit water, 1 µs (Seyler and Beckstein, 2017)
DIMS_INTERVAL = 1000.0  # fs, as the file's header says; a path-sampling run has no physical time
NAMED = ("adk-equilibrium", "adk-dims")


def named_files(name: str, data_home: Path | str | None = None) -> tuple[Path, Path, float]:
    """Topology, trajectory and frame interval (fs) of ``adk-equilibrium`` or ``adk-dims``.

    Raises:
        MissingDependencyError: the package that brings it is not installed.
        InputError: the name is unknown, or the download failed; the reason is in the message.
    """
    if name == "adk-dims":
        return mdanalysis_tests_file("adk.psf"), mdanalysis_tests_file("adk_dims.dcd"), DIMS_INTERVAL
    if name == "adk-equilibrium":
        return (*fetch_equilibrium(data_home), EQUILIBRIUM_INTERVAL)
    raise InputError(f"{name!r} is unknown; known are {', '.join(NAMED)}")


def fetch_equilibrium(data_home: Path | str | None = None) -> tuple[Path, Path]:
    """The benchmark's equilibrium trajectory (4,187 frames, 240 ps apart, 161 MB), downloaded once.

    Raises:
        MissingDependencyError: MDAnalysisData is not installed.
        InputError: it could not be downloaded or is damaged; the message gives the reason.
    """
    try:
        module = importlib.import_module("MDAnalysisData.adk_equilibrium")
    except ImportError as error:
        raise MissingDependencyError(
            f"adk-equilibrium comes through MDAnalysisData ({error}): pip install MDAnalysisData"
        ) from error
    try:
        found = module.fetch_adk_equilibrium(data_home=None if data_home is None else str(data_home))
    except Exception as error:  # urllib, SSL, disk and checksum errors
        raise InputError(
            f"adk-equilibrium could not be downloaded from figshare ({type(error).__name__}: {error}); download "
            "adk4AKE.psf and 1ake_007-nowater-core-dt240ps.dcd (doi 10.6084/m9.figshare.5108170) on another machine, "
            "then `egnn-md generate trajectory 1ake_007-nowater-core-dt240ps.dcd --topology adk4AKE.psf "
            "--frame-interval 240000`; or make a trajectory with `egnn-md generate adk`"
        ) from error
    return Path(found.topology), Path(found.trajectory)
