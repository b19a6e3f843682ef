"""``python -m egnn_md_systems.water_propagator.ship MODEL …``: give trained propagators their cards and ship them.

The measured errors and the data digest stay those that training wrote; this adds what a user must know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egnn_md.checkpoint import load_model, save_model
from egnn_md.errors import InputError
from egnn_md.models.propagator import FastEGNNPropagator

from . import STRIDES, weights_path

INTENDED_USE = (
    "Trying out rollouts in periodic boxes of neat liquid water near 300 K and 0.997 g/cm3; comparing learned "
    "propagators with the potential that they were learned from."
)
LIMITS = (
    "Not for results about water: energy and momentum are not conserved, the temperatures of hydrogen and oxygen "
    "part, and rollouts fail; how soon is in systems/water_propagator/README.md. Trained for minutes on a few "
    "picoseconds. Neighbours beyond 3.2 angstrom are seen through the layers and the virtual nodes only."
)


def ship(model: Path, history: str = "") -> Path:
    """Write ``model`` with its card to where the package looks for its stride.

    Raises:
        InputError: not a propagator of water with a shipped stride.
    """
    loaded = load_model(model)
    card = loaded.card
    if not isinstance(loaded, FastEGNNPropagator) or loaded.config.system != "water":
        raise InputError(f"{model} is not a propagator of water")
    stride = round(loaded.config.stride)
    if stride not in STRIDES or loaded.config.units.get("time") != "femtosecond":
        raise InputError(f"{model} has a stride of {loaded.config.stride:g}; shipped are {STRIDES} fs")
    training = {**card.training_data, **({"history": history} if history else {})}
    shipped = card.model_copy(
        update={
            "name": f"water-{stride}fs",
            "description": f"One step is {stride} fs of constant-energy dynamics of liquid water (potential: water)",
            "intended_use": INTENDED_USE,
            "limits": LIMITS,
            "licence": "MIT",
            "training_data": training,
        }
    )
    return save_model(loaded, weights_path(stride), shipped)


def main(
    models: Annotated[list[Path], typer.Argument(help="model files that egnn-md train wrote")],
    history: Annotated[str, typer.Option(help="how the weights came about, for the cards")] = "",
) -> None:
    """Ship trained propagators of water."""
    for model in models:
        typer.echo(ship(model, history))


if __name__ == "__main__":
    typer.run(main)
