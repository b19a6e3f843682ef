"""Model files: what goes in comes out, and everything else is refused by name."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from egnn_md import (
    FastEGNN,
    FastEGNNConfig,
    FastEGNNPotential,
    ModelCard,
    PotentialConfig,
    load_model,
    save_model,
)
from egnn_md.checkpoint import HEADER_KEY, import_authors_checkpoint, model_digest, read_header
from egnn_md.errors import InputError, ModelFileError, UnsafeFileError
from egnn_md.models import LennardJones

AUTHORS = Path(__file__).parents[1] / "parity" / "data" / "authors_checkpoint.pth"


def small_potential() -> FastEGNNPotential:
    torch.manual_seed(0)
    return FastEGNNPotential(
        PotentialConfig(elements=(1, 8), atomic_energies=(-10.123456789012, -100.5), hidden=8, layers=2)
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    card = ModelCard(name="tiny", teacher="none", licence="MIT", measured={"force_rmse": 1.5})
    return save_model(small_potential(), tmp_path / "tiny.safetensors", card)


def test_round_trip(saved: Path) -> None:
    model, original = load_model(saved), small_potential()
    assert model.config == original.config
    assert model.reference == original.reference, "reference energies are exact"
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert model.card.measured == {"force_rmse": 1.5}
    assert "torch" in model.card.versions
    assert not any(p.requires_grad for p in model.parameters())
    assert load_model(saved, dtype=torch.float64).dtype == torch.float64
    assert read_header(saved)["digest"] == model_digest(original)


def test_published_network_and_double_weights_round_trip(tmp_path: Path) -> None:
    network = FastEGNN(FastEGNNConfig(node_features=2, hidden=8, layers=1, gravity=(0.0, -9.81, 0.0))).double()
    back = load_model(save_model(network, tmp_path / "n.safetensors"))
    assert back.config == network.config
    assert all(torch.equal(back.state_dict()[k], v) for k, v in network.state_dict().items())


def test_loading_leaves_the_random_state_alone(saved: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_model(saved)
    assert torch.equal(torch.rand(3), wanted)


def test_only_models_with_a_format_are_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="LennardJones"):
        save_model(LennardJones(), tmp_path / "lj.safetensors")


def test_missing_file_lists_registered_names() -> None:
    with pytest.raises(ModelFileError, match=r"no model file nowhere.*known: .*water"):
        load_model("nowhere")


@pytest.mark.parametrize("keep", [3, 40, 0.5, 0.999])
def test_truncated_file(saved: Path, keep: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(ModelFileError, match="not a complete safetensors file"):
        load_model(saved)


def test_foreign_and_newer_files(tmp_path: Path, saved: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, foreign, metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match="not one of egnn_md"):
        load_model(foreign)
    header = read_header(saved)
    header["format_version"] = 99
    save_file({"a": torch.zeros(2)}, foreign, metadata={HEADER_KEY: json.dumps(header)})
    with pytest.raises(ModelFileError, match="format 99"):
        load_model(foreign)
    save_file({"a": torch.zeros(2)}, foreign, metadata={HEADER_KEY: "{"})
    with pytest.raises(ModelFileError, match="cannot be read"):
        load_model(foreign)


def test_changed_weights_are_noticed(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-5] ^= 1
    saved.write_bytes(bytes(content))
    with pytest.raises(ModelFileError, match="digest"):
        load_model(saved)


def test_an_interrupted_save_keeps_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full_disk(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("egnn_md.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_model(small_potential(), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.path, "boom"))


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    fuse = tmp_path / "fuse"
    plain = tmp_path / "model.pkl"
    plain.write_bytes(pickle.dumps(Bomb(fuse)))
    zipped = tmp_path / "model.pt"
    torch.save({"model_state_dict": {}, "config": Bomb(fuse)}, zipped)
    for path in (plain, zipped):
        with pytest.raises(UnsafeFileError):
            load_model(path)
    with pytest.raises(UnsafeFileError, match=r"asks for '(getattr|.*write_text|.*Path)"):
        import_authors_checkpoint(zipped)
    assert not fuse.exists()


def test_authors_checkpoint_without_easydict_and_truncated(tmp_path: Path) -> None:
    assert import_authors_checkpoint(AUTHORS).config.layers == 2
    cut = tmp_path / "cut.pth"
    cut.write_bytes(AUTHORS.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="not a complete"):
        import_authors_checkpoint(cut)
    other = tmp_path / "other.pth"
    torch.save({"weights": {}}, other)
    with pytest.raises(ModelFileError, match="model_state_dict"):
        import_authors_checkpoint(other)


def test_authors_checkpoint_of_several_devices(tmp_path: Path) -> None:
    """Training on several devices prefixes every parameter with ``module.``."""
    with torch.serialization.safe_globals([(OrderedDict, "easydict.EasyDict")]):
        content = torch.load(AUTHORS, weights_only=True)
    content["model_state_dict"] = {f"module.{k}": v for k, v in content["model_state_dict"].items()}
    path = tmp_path / "parallel.pth"
    torch.save(content, path)
    one, several = import_authors_checkpoint(AUTHORS), import_authors_checkpoint(path)
    assert all(torch.equal(several.state_dict()[k], v) for k, v in one.state_dict().items())
    assert several.authors_config["model"]["model_name"] == "FastEGNN"


def test_import_does_not_touch_global_state() -> None:
    code = (
        "import torch; before = (torch.get_default_dtype(), torch.get_num_threads(), "
        "torch.backends.cuda.matmul.allow_tf32, torch.initial_seed()); import egnn_md, sys; "
        "after = (torch.get_default_dtype(), torch.get_num_threads(), "
        "torch.backends.cuda.matmul.allow_tf32, torch.initial_seed()); assert before == after; "
        "assert 'openmm' not in sys.modules and 'lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
