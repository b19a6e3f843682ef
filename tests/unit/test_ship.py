"""Shipped models: their cards, their places, and what is refused."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest

from egnn_md.checkpoint import MODEL_GROUP, load_model, save_model
from egnn_md.errors import InputError
from egnn_md.models.propagator import FastEGNNPropagator, PropagatorConfig
from egnn_md_systems.ship import SHIPPED, place_of, ship


def propagator(stride: float = 4.0, system: str = "water", time: str = "femtosecond") -> FastEGNNPropagator:
    return FastEGNNPropagator(
        PropagatorConfig(
            system=system,
            units={"length": "angstrom", "time": time},
            frame_interval=1.0,
            stride=stride,
            species=(1, 8),
            hidden=8,
            layers=1,
            virtual_nodes=1,
        )
    )


def test_a_card_is_added_and_the_rest_stays(tmp_path: Path) -> None:
    source = save_model(propagator(), tmp_path / "a.safetensors")
    written = ship("water-4fs", source, tmp_path / "out" / "b.safetensors", history="by hand")
    model = load_model(written)
    assert model.card.name == "water-4fs"
    assert "not conserved" in model.card.limits
    assert model.card.training_data["history"] == "by hand"
    before = load_model(source).state_dict()
    assert all((value == before[key]).all() for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("water-8fs", {}, "has a stride of 4 .*has 8"),
        ("water-4fs", {"time": "none"}, "units"),
        ("water-4fs", {"system": "nbody"}, "not a propagator of 'water'"),
        ("water", {}, "is a propagator, but 'water' is a potential"),
        ("ice", {}, "nothing is shipped as 'ice'; known: water"),
    ],
)
def test_strangers_are_refused(name: str, changes: dict[str, str], message: str, tmp_path: Path) -> None:
    source = save_model(propagator(**changes), tmp_path / "a.safetensors")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        ship(name, source, tmp_path / "b.safetensors")


def test_every_name_has_a_place_and_every_place_a_card() -> None:
    registered = {entry.name for entry in entry_points(group=MODEL_GROUP)}
    assert registered == set(SHIPPED)


@pytest.mark.parametrize("name", list(SHIPPED))
def test_shipped_models_load_and_are_what_their_name_says(name: str) -> None:
    assert place_of(name).is_file()
    model = load_model(name)
    assert model.card.name == name
    assert model.card.limits == SHIPPED[name].limits
    assert model.card.training_data
    if SHIPPED[name].system:
        assert (model.config.system, model.config.units) == (SHIPPED[name].system, SHIPPED[name].units)
        assert model.config.stride == pytest.approx(SHIPPED[name].stride)
