"""Files that are no artefacts, or not whole: each gets its own clear error, and nothing in them runs."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from egnn_md.checkpoint import save_model
from egnn_md.errors import ModelFileError, UnsafeFileError
from egnn_md.export import export_torchscript, is_archive, load_module, read_artefact
from egnn_md.models import FastEGNNPotential, LennardJones, PotentialConfig


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artefact") / "lj.pt"
    export_torchscript(LennardJones(cutoff=5.0), path, [18] * 4, periodic=True)
    return path


class Touch:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


def rewritten(artefact: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the artefact whose description went through ``change``."""
    with zipfile.ZipFile(artefact) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith("egnn_md.json"):
                content = json.dumps(change(json.loads(content))).encode()
            new.writestr(item, content)
    return target


@pytest.mark.parametrize("read", [read_artefact, load_module])
def test_missing(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(ModelFileError, match="no exported model at"):
        read(tmp_path / "absent.pt")
    with pytest.raises(ModelFileError, match="no exported model at"):
        read(tmp_path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated(artefact: Path, tmp_path: Path, share: float) -> None:
    content = artefact.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(share * len(content))])
    assert is_archive(path)
    with pytest.raises(ModelFileError, match="truncated"):
        read_artefact(path)


def test_one_flipped_byte(artefact: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(artefact) as archive:
        largest = max(archive.infolist(), key=lambda item: item.compress_size)
    content = bytearray(artefact.read_bytes())
    content[largest.header_offset + 30 + len(largest.filename) + largest.compress_size // 2] ^= 0xFF
    path = tmp_path / "flipped.pt"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="damaged"):
        load_module(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_is_not_read(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Touch(trace), protocol=protocol))
    with pytest.raises(UnsafeFileError, match="is a pickle"):
        load_module(path)
    assert not trace.exists()


def test_torch_save_is_not_read(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "model.pt"
    torch.save({"model": Touch(trace)}, path)
    with pytest.raises(UnsafeFileError, match=r"written by torch\.save"):
        load_module(path)
    assert not trace.exists()


def test_foreign_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(path))
    with pytest.raises(ModelFileError, match=r"holds no egnn_md\.json"):
        read_artefact(path)


def test_foreign_zip(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "hello")
    with pytest.raises(ModelFileError, match="not an egnn_md artefact"):
        read_artefact(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 64])
def test_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="not an egnn_md artefact"):
        read_artefact(path)


def test_model_file_instead_of_artefact(tmp_path: Path) -> None:
    model = FastEGNNPotential(PotentialConfig(elements=(1,), hidden=4, layers=1, basis=2))
    path = save_model(model, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="is a model file and not an exported artefact"):
        read_artefact(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: {**d, "format_version": 2}, "format 2, this egnn_md reads up to 1; upgrade"),
        (lambda d: {**d, "format_version": "one"}, "format 'one'"),
        (lambda d: {**d, "format": "other"}, "does not describe an egnn_md artefact"),
        (lambda d: [d], "does not describe an egnn_md artefact"),
        (lambda d: {k: v for k, v in d.items() if k != "cutoff"}, "wrong at cutoff"),
        (lambda d: {**d, "numbers": [18, 18, 18, 10]}, "do not match their digest"),
    ],
)
def test_descriptions_that_are_wrong(
    artefact: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    path = rewritten(artefact, tmp_path / "changed.pt", change)
    with pytest.raises(ModelFileError, match=words):
        read_artefact(path)


def test_keys_of_a_later_minor_version_are_ignored(artefact: Path, tmp_path: Path) -> None:
    path = rewritten(artefact, tmp_path / "changed.pt", lambda d: {**d, "colour": "blue"})
    assert read_artefact(path) == read_artefact(artefact)
