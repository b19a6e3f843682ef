"""What is installed, what does not go together, and which engines really run here.

Nothing heavy is imported in this process: torch, OpenMM and the plugins are tried in child processes
(``egnn_md.probes``), so that a library which ends the process on import or on its first step is a line of
the report and not the end of it.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from egnn_md.probes import PROBES, ProbeResult, run_probes

DISTRIBUTION = "egnn-md"
MINIMUM_PYTHON = (3, 11)
PLUGINS = (
    "acellera-openmmtorch-cpu",
    "acellera-openmmtorch-cu13",
    "acellera-openmmtorch-cu12",
    "openmmtorch",
)
BUILD_CLUSTER = "pip install wheel 'setuptools<82' && pip install --no-build-isolation 'egnn-md[cluster]'"


@dataclass(frozen=True)
class Package:
    """One installed or missing package; ``wanted`` is the range that egnn-md declares for it."""

    name: str
    version: str | None
    wanted: str
    purpose: str
    required: bool
    install: str

    @property
    def fits(self) -> bool:
        """Whether the installed version lies in the declared range (unknown versions are trusted)."""
        if self.version is None:
            return False
        try:
            return Requirement(f"x{self.wanted}").specifier.contains(Version(self.version), prereleases=True)
        except (InvalidRequirement, InvalidVersion):
            return True


@dataclass(frozen=True)
class Problem:
    """Something known not to work, with what to do about it; ``core`` problems break the package itself."""

    text: str
    remedy: str
    core: bool = False


@dataclass(frozen=True)
class _Known:
    name: str
    module: str
    purpose: str
    extra: str = ""
    distributions: tuple[str, ...] = ()
    install: str = ""


_KNOWN = (
    _Known("torch", "torch", "networks"),
    _Known("ase", "ase", "structures, the ASE engine"),
    _Known("vesin-torch", "vesin_torch", "neighbour lists"),
    _Known("lightning", "lightning", "training"),
    _Known("mdtraj", "mdtraj", "trajectories, reports"),
    _Known("openmm", "openmm", "the OpenMM engine", "openmm"),
    _Known("openmmtorch", "openmmtorch", "TorchForce in OpenMM", "openmm", PLUGINS),
    _Known("openmmml", "openmmml", "OpenMM-ML", "openmm"),
    _Known("tblite", "tblite", "GFN1/GFN2-xTB labels", "label"),
    _Known("torch-cluster", "torch_cluster", "open-boundary neighbours", "cluster", install=BUILD_CLUSTER),
)


def installed_version(names: Sequence[str]) -> tuple[str, str] | None:
    """(distribution, version) of the first of ``names`` that is installed, or None."""
    for name in names:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def declared_requirements() -> dict[str, tuple[str, str]]:
    """Distribution → (version range, extra or "") as the installed egnn-md declares them; {} if it is not."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    table: dict[str, tuple[str, str]] = {}
    for line in lines:
        requirement = Requirement(line)
        extra = str(requirement.marker).partition("extra ==")[2].strip(" \"'") if requirement.marker else ""
        name = requirement.name.lower()
        if name != DISTRIBUTION and (name not in table or not extra):
            table[name] = (str(requirement.specifier), extra)
    return table


def packages() -> list[Package]:
    """Every package that egnn-md knows, whether it is installed or not."""
    declared = declared_requirements()
    rows = []
    for known in _KNOWN:
        found = installed_version(known.distributions or (known.name,))
        # conda's builds of the plugin carry no pip metadata; a module that can be found is there all the same
        version = found[1] if found else ("unknown" if find_spec(known.module) else None)
        name = found[0] if found else (known.distributions or (known.name,))[0]
        install = known.install or f"pip install '{DISTRIBUTION}{f'[{known.extra}]' if known.extra else ''}'"
        wanted = declared.get(name.lower(), ("", ""))[0]
        rows.append(Package(name, version, wanted, known.purpose, not known.extra, install))
    listed = {row.name.lower() for row in rows}
    for name, (wanted, extra) in sorted(declared.items()):
        if name not in listed and not extra:
            found = installed_version((name,))
            rows.append(
                Package(name, found and found[1], wanted, "core", True, f"pip install '{DISTRIBUTION}'")
            )
    return rows


def _version(text: str | None) -> Version | None:
    try:
        return Version(text) if text else None
    except InvalidVersion:
        return None


def combination_problems(versions: Mapping[str, str | None]) -> list[Problem]:
    """Known bad combinations among ``versions`` (distribution → version, missing ones None or absent)."""
    problems = []
    torch, openmm, openmmml = (_version(versions.get(name)) for name in ("torch", "openmm", "openmmml"))
    plugins = [name for name in PLUGINS if versions.get(name)]
    if plugins and torch is not None and torch >= Version("2.13.dev0"):
        problems.append(
            Problem(
                f"torch {torch} with {plugins[0]} {versions[plugins[0]]}: the plugin imports, then every "
                "TorchForce fails with an internal assert (PyObjectSlot.h)",
                "pip install 'torch>=2.10,<2.13', or run with --implementation python",
            )
        )
    if plugins and openmm is not None and openmm >= Version("8.6.dev0"):
        problems.append(
            Problem(
                f"openmm {openmm} with {plugins[0]} {versions[plugins[0]]}, which was built against 8.5: "
                "TorchForce runs, but reading one back with XmlSerializer kills the process (SIGSEGV)",
                "pip install openmm==8.5.2 openmmml==1.7, or run with --implementation python",
            )
        )
    if "openmmtorch" in plugins:
        problems.append(
            Problem(
                f"openmmtorch {versions['openmmtorch']} wants CUDA 12 libraries and does not import without "
                "them",
                "pip uninstall openmmtorch, then pip install 'egnn-md[openmm]'",
            )
        )
    if len(plugins) > 1:
        problems.append(
            Problem(
                f"{' and '.join(plugins)} are both installed and share the module openmmtorch",
                f"pip uninstall {' '.join(plugins)}, then pip install 'egnn-md[openmm]' "
                "(or [openmm-cuda] for an NVIDIA card)",
            )
        )
    partners = {"1.8": "8.6.1", "1.7": "8.5.2"}
    partner = partners.get(f"{openmmml.major}.{openmmml.minor}") if openmmml is not None else None
    if partner is not None and openmm is not None and openmm != Version(partner):
        problems.append(
            Problem(
                f"openmmml {openmmml} wants openmm {partner}, openmm {openmm} is installed",
                "pip install openmm==8.5.2 openmmml==1.7",
            )
        )
    return problems


def core_problems(rows: Sequence[Package], python: tuple[int, int]) -> list[Problem]:
    """Why egnn_md itself cannot work: an old Python, required packages missing or of another version."""
    problems = []
    if python < MINIMUM_PYTHON:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        text = f"Python {python[0]}.{python[1]} is older than {wanted}"
        problems.append(Problem(text, f"install Python {wanted} and make the environment again", core=True))
    for row in rows:
        if row.required and row.version is None:
            problems.append(Problem(f"{row.name} is not installed ({row.purpose})", row.install, core=True))
    for row in rows:
        if row.version is not None and not row.fits:
            text = f"{row.name} {row.version} is outside the tested range {row.wanted}"
            problems.append(Problem(text, f"pip install '{row.name}{row.wanted}'"))
    return problems


def devices() -> dict[str, Any]:
    """Operating system, processor cores this process may use, memory (GiB)."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (ValueError, OSError):
        memory = float("nan")
    return {"system": f"{platform.system()} {platform.machine()}", "cores": cores, "memory_gib": memory}


@dataclass
class Diagnosis:
    """All that ``egnn-md doctor`` knows; ``to_dict`` is its JSON."""

    python: str
    version: str | None
    packages: list[Package]
    problems: list[Problem]
    devices: dict[str, Any]
    engines: list[ProbeResult] = field(default_factory=list)

    @property
    def core_ok(self) -> bool:
        """Whether models can be loaded and evaluated at all."""
        broken = [engine for engine in self.engines if engine.core and engine.status != "works"]
        return not broken and not any(problem.core for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "core_ok": self.core_ok}


def diagnose(*, probe: bool = True, timeout: float = 120.0) -> Diagnosis:
    """Look at this environment; with ``probe`` each engine is tried in a child process of its own.

    ``timeout`` (s) holds for each child.
    """
    rows = packages()
    versions: dict[str, str | None] = {row.name: row.version for row in rows}
    for name in PLUGINS:
        found = installed_version((name,))
        versions[name] = found and found[1]
    own = installed_version((DISTRIBUTION,))
    problems = core_problems(rows, sys.version_info[:2])
    if own is None:
        problems.insert(
            0,
            Problem(
                "egnn-md itself is not installed, so models and engines are not found by name",
                "pip install -e '.[all]' in the repository",
                core=True,
            ),
        )
    problems += combination_problems(versions)
    diagnosis = Diagnosis(platform.python_version(), own and own[1], rows, problems, devices())
    if probe:
        diagnosis.engines = run_probes(PROBES, timeout=timeout)
    return diagnosis
