"""Compile the kernels once for this processor, keep the library in a cache, load it.

The sources know neither torch nor Python, so any C++ compiler with OpenMP will do and it takes seconds. The library's
name holds a digest of the sources, of the flags, of the compiler and of the processor's abilities: an update or a home
directory shared by different machines never meets a library that is not its own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=gnu++17", "-fPIC", "-fopenmp", "-fno-math-errno")
CACHE_VARIABLE = "EGNN_MD_CACHE"


class KernelUnavailableError(Exception):
    """The kernels cannot be compiled or loaded here; the message says why."""


class FallbackWarning(UserWarning):
    """A fast path is not there and the plain one is taken."""


def cache_directory() -> Path:
    """``$EGNN_MD_CACHE``, or ``egnn_md`` in the user's cache directory."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egnn_md"


def find_compiler() -> str:
    """Path of a C++ compiler: ``$CXX``, c++, g++ or clang++.

    Raises:
        KernelUnavailableError: there is none.
    """
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise KernelUnavailableError("no C++ compiler was found (on Debian: apt-get install g++)")


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise KernelUnavailableError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        told = "\n".join(done.stderr.strip().splitlines()[:5])
        raise KernelUnavailableError(f"{Path(command[0]).name} could not compile the kernels: {told}")
    return done.stdout


def _digest(compiler: str) -> str:
    parts = [compiler, _run([compiler, "--version"]), " ".join(FLAGS), _processor()]
    parts += [path.read_text() for path in sorted(SOURCES.glob("*.cpp")) + sorted(SOURCES.glob("*.h"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _compile(compiler: str, target: Path) -> None:
    """Every source on a core of its own, then the link; ``target`` appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [str(Path(scratch) / f"{source.stem}.o") for source in sources]
        commands = [
            [compiler, *FLAGS, "-c", str(source), "-o", made] for source, made in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(min(len(commands), os.cpu_count() or 1)) as pool:
            list(pool.map(_run, commands))
        whole = Path(scratch) / target.name
        _run([compiler, *FLAGS, "-shared", *objects, "-o", str(whole)])
        whole.replace(target)


def build() -> Path:
    """The compiled library, made if it is not in the cache yet.

    Raises:
        KernelUnavailableError: no compiler, it fails, or nowhere to write.
    """
    compiler = find_compiler()
    target = cache_directory() / f"kernels-{_digest(compiler)}.so"
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _compile(compiler, target)
        except OSError as error:
            raise KernelUnavailableError(
                f"the compiled kernels cannot be kept in {target.parent} ({error}); set {CACHE_VARIABLE} to a "
                "directory that can be written"
            ) from error
    return target


@functools.cache
def _loaded() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    try:
        path = build()
    except KernelUnavailableError as error:
        return str(error)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path} cannot be loaded ({error}); remove it to have it compiled again"


def library() -> ctypes.CDLL:
    """The kernels, compiled on the first call of a machine.

    Raises:
        KernelUnavailableError: why there are none.
    """
    found = _loaded()
    if isinstance(found, str):
        raise KernelUnavailableError(found)
    return found


@functools.cache
def available() -> bool:
    """Whether the kernels are there; if not, a :class:`FallbackWarning` says so once a process."""
    found = _loaded()
    if isinstance(found, str):
        warnings.warn(f"the plain path is taken, which is several times slower: {found}", FallbackWarning, stacklevel=2)
        return False
    return True
