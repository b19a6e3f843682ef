"""Sizes of the smooth network (:mod:`egnn_md.nn.smooth`)."""

from pydantic import BaseModel, ConfigDict, Field


class SmoothConfig(BaseModel):
    """Sizes of the smooth network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    species: int = Field(ge=1, description="number of kinds of particle")
    cutoff: float = Field(default=5.0, gt=0, description="Å")
    hidden: int = Field(default=64, ge=1)
    layers: int = Field(default=3, ge=1)
    virtual_nodes: int = Field(default=2, ge=0, description="C; 0 makes the network strictly local")
    vector_channels: int = Field(default=8, ge=1, description="K; 1 is the paper")
    basis: int = Field(default=8, ge=1, description="radial functions")
    mean_neighbors: float = Field(default=50.0, gt=0, description="constant n that sums are scaled by")
    fourier_width: float = Field(default=0.0, ge=0, description="Å; σ of the Fourier modes in a cell; 0 for none")
