"""``python -m egnn_md_systems.water.ship MODEL``: give a trained model its card and ship it as ``water``.

The measured errors and the data digest stay those that training wrote; this adds what a user must know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egnn_md.checkpoint import load_model, save_model
from egnn_md_systems.water import weights_path

DESCRIPTION = "Liquid water and water droplets, FastEGNN imitating GFN2-xTB"
INTENDED_USE = (
    "Molecular dynamics of neat, undissociated liquid water: 280 to 600 K, 0.9 to 1.1 g/cm3 in periodic boxes of "
    "any size from 27 molecules on, and droplets of 1 to 40 molecules; trying out and testing the tools."
)
LIMITS = (
    "It has GFN2-xTB's errors (density, structure and dynamics differ from experiment) and its own on top. Not "
    "for ions, proton transfer, dissociation, ice, solutes, interfaces with anything else, pressures far from "
    "ambient, or temperatures above 600 K. Not for the density at ambient pressure: its teacher wants to expand "
    "at 1 g/cm3, and so does the model (0.81 g/cm3 after 2 ps of NPT at 1 bar, below the densities it was trained"
    " on); run at fixed volume, or under a pressure that keeps 0.9 g/cm3. Labels are Gamma-point energies of "
    "small boxes: no long-range dispersion or electrostatics beyond what five angstrom per layer and the virtual "
    "nodes carry."
)


def main(
    model: Annotated[Path, typer.Argument(help="model file that egnn-md train wrote")],
    history: Annotated[str, typer.Option(help="how the weights came about, for the card")] = "",
) -> None:
    """Ship a trained water model."""
    loaded = load_model(model)
    training = {**loaded.card.training_data, **({"history": history} if history else {})}
    card = loaded.card.model_copy(
        update={
            "name": "water",
            "description": DESCRIPTION,
            "intended_use": INTENDED_USE,
            "limits": LIMITS,
            "licence": "MIT",
            "training_data": training,
        }
    )
    typer.echo(save_model(loaded, weights_path(), card))


if __name__ == "__main__":
    typer.run(main)
