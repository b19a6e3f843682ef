"""A propagator in a file of its own: the same strides as the eager one, and files that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from egnn_md.cli.info import describe
from egnn_md.data.windows import build_graph
from egnn_md.errors import ExportError, InputError, ModelFileError
from egnn_md.export import export_propagator, load_propagator
from egnn_md.models import HarmonicTether
from egnn_md.models.propagator import FastEGNNPropagator, PropagatorConfig

AGREEMENT = {torch.float32: 2e-5, torch.float64: 1e-12}  # absolute; displacements are of order one

CASES: dict[str, dict[str, Any]] = {
    "all pairs": {"node_features": 1},
    "dropped": {"drop": "longest", "drop_fraction": 0.75},
    "cutoff and dropped": {"cutoff": 1.5, "drop": "longest", "drop_fraction": 0.5, "edge_basis": 4},
    "liquid": {"cutoff": 1.5, "gravity": (0.0, -9.8, 0.0), "walls": ((0.0, 3.0),) * 3},
}


def model_of(case: str) -> FastEGNNPropagator:
    torch.manual_seed(3)
    model = FastEGNNPropagator(
        PropagatorConfig(**{"frame_interval": 0.1, "stride": 0.1, "hidden": 16, "layers": 2, **CASES[case]})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", list(CASES))
def test_three_strides_from_the_file(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    model = model_of(case)
    info = export_propagator(model, tmp_path / "p.pt", dtype=dtype)
    module, read = load_propagator(tmp_path / "p.pt")
    assert read == info
    assert (info.stride, info.units) == (0.1, {"length": "none", "time": "none"})
    eager = model.to(dtype)
    draw = torch.Generator().manual_seed(1)
    x, v = (torch.rand(25, 3, dtype=dtype, generator=draw) * 3 for _ in "xv")
    species = torch.zeros(25, dtype=torch.long)
    features = torch.ones(25, 1, dtype=dtype) if model.config.node_features else None
    cell = 4 * torch.eye(3, dtype=dtype) if case == "cutoff and dropped" else None
    for _ in range(3):
        graph = build_graph(
            model.config, x, v, species, features=features, cell=cell, pbc=(cell is not None,) * 3
        )
        expected = eager.predict(graph)
        assert float((expected.positions - x).detach().abs().max()) > 0.01
        moved, after = module(x, v, species, features, cell)
        assert torch.allclose(moved, expected.positions, rtol=0, atol=AGREEMENT[dtype])
        assert torch.allclose(after, expected.velocities, rtol=0, atol=AGREEMENT[dtype] / 0.1)
        x, v = expected.positions, expected.velocities


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    base = {"frame_interval": 0.1, "stride": 0.1, "hidden": 4, "layers": 1}
    random = FastEGNNPropagator(PropagatorConfig(**base, drop="random", drop_fraction=0.5))
    with pytest.raises(ExportError, match="random edges"):
        export_propagator(random, tmp_path / "p.pt")
    with pytest.raises(ExportError, match="one frame ahead"):
        export_propagator(FastEGNNPropagator(PropagatorConfig(**base, velocity="forward")), tmp_path / "p.pt")
    with pytest.raises(InputError, match="HarmonicTether is not a propagator"):
        export_propagator(HarmonicTether(1.0), tmp_path / "p.pt")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_info_knows_the_file(tmp_path: Path) -> None:
    export_propagator(model_of("liquid"), tmp_path / "p.pt", name="my liquid")
    described = describe(str(tmp_path / "p.pt"))
    assert described["type"] == "propagator artefact"
    assert described["name"] == "my liquid"
    assert described["config"]["gravity"] == [0.0, -9.8, 0.0]


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.pt"
    export_propagator(model_of("all pairs"), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="is not an exported propagator"):
        load_propagator(path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(path))
    with pytest.raises(ModelFileError, match=r"export_propagator writes one"):
        load_propagator(path)
