"""What an exported file says about itself, and how it is written and read without running anything."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from egnn_md.errors import ModelFileError, UnsafeFileError

INFO_FILE = "egnn_md.json"
FORMAT = "egnn_md-torchscript"
FORMAT_VERSION = 1


class Verification(BaseModel):
    """How far the file that was written is from the eager model, on random structures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    structures: int
    largest_energy_difference: float  # eV per atom
    largest_force_difference: float  # eV/Å
    largest_force: float  # eV/Å, of the eager model: the scale of the figure above
    tolerance: float  # relative


class ArtefactInfo(BaseModel):
    """The self-description stored as ``egnn_md.json`` inside an exported TorchScript file.

    ``numbers`` are the atomic numbers of the particles that the potential acts on, ``atoms`` their indices
    among the ``particles`` of the system (None: all of them, in order). ``cutoff`` is in Å whatever the
    units of the artefact; ``length_unit`` and ``energy_unit`` are those of ``forward``.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    name: str
    kind: str
    weights_digest: str
    licence: str
    elements: list[str]
    numbers: list[int]
    numbers_digest: str
    atoms: list[int] | None
    particles: int
    cutoff: float
    periodic: bool
    long_range: bool
    length_unit: str
    energy_unit: str
    dtype: str
    kernels: str = "plain"
    signature: str
    versions: dict[str, str]
    created: str
    verification: Verification


def numbers_digest(numbers: list[int], atoms: list[int] | None, particles: int) -> str:
    """SHA-256 (hex) of who is who: atomic numbers, subset and number of particles."""
    return hashlib.sha256(json.dumps([numbers, atoms, particles]).encode()).hexdigest()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Run ``write`` on a temporary file beside ``path``, then rename: a reader never sees half a file.

    Raises:
        ModelFileError: the folder does not exist, is not writable, or the disk is full.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise ModelFileError(f"cannot write {path}: {error.strerror or error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise ModelFileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_archive(path: str | Path) -> bool:
    """True if ``path`` begins like a zip archive, as every TorchScript file does."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"PK"
    except OSError:
        return False


def read_artefact(path: str | Path) -> ArtefactInfo:
    """The self-description of an exported file; no code of the file runs and nothing is unpickled.

    The archive's checksums are verified as well, so a damaged file is found here and not inside an engine.
    An artefact is a TorchScript program: load only files from people you would run a program from.

    Raises:
        ModelFileError: missing, truncated, damaged, not an egnn_md artefact, or of a newer format.
        UnsafeFileError: a pickle, bare or as ``torch.save`` writes it.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"there is no exported model at {path}; export_torchscript writes one")
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise _not_an_archive(path, file)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            described = [name for name in names if name.endswith(f"/extra/{INFO_FILE}")]
            if not any("/code/" in name for name in names) and any(n.endswith("data.pkl") for n in names):
                raise UnsafeFileError(
                    f"{path} is a pickle written by torch.save; it could run any code when read and is not "
                    "opened. Load it where you trust it and use egnn_md.save_model or export_torchscript"
                )
            if not described:
                raise ModelFileError(
                    f"{path} is not an egnn_md artefact: the archive holds no {INFO_FILE}; "
                    "write one with egnn_md.export_torchscript"
                )
            damaged = archive.testzip()
            if damaged is not None:
                raise ModelFileError(f"{path} is damaged at {damaged}; export it again")
            text = archive.read(described[0])
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ModelFileError(f"{path} is damaged: {error}; export it again") from error
    return _parse(path, text)


def _not_an_archive(path: Path, file: IO[bytes]) -> ModelFileError:
    file.seek(0)
    head = file.read(16)
    if head[:2] == b"PK":
        return ModelFileError(f"{path} is truncated ({path.stat().st_size:,} bytes); copy or export it again")
    if head[:1] == b"\x80":
        return UnsafeFileError(
            f"{path} is a pickle; it could run any code when read and is not opened. "
            "Load it where you trust it and use egnn_md.save_model or export_torchscript"
        )
    if head[8:9] == b"{":
        return ModelFileError(
            f"{path} is a model file and not an exported artefact; give it to load_model, or export it with "
            "egnn_md.export_torchscript"
        )
    return ModelFileError(f"{path} is not an egnn_md artefact (it begins with {head[:8]!r})")


def _parse(path: Path, text: bytes) -> ArtefactInfo:
    try:
        content: Any = json.loads(text)
    except ValueError as error:
        raise ModelFileError(f"the {INFO_FILE} inside {path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelFileError(f"the {INFO_FILE} inside {path} does not describe an egnn_md artefact")
    version = content.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has artefact format {version!r}, this egnn_md reads up to {FORMAT_VERSION}; "
            "upgrade with pip install --upgrade egnn-md"
        )
    try:
        info = ArtefactInfo.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelFileError(f"the {INFO_FILE} inside {path} is wrong at {place}: {first['msg']}") from error
    if info.numbers_digest != numbers_digest(info.numbers, info.atoms, info.particles):
        raise ModelFileError(f"{path} is damaged: its atomic numbers do not match their digest")
    return info
