"""Configuration of a propagator: what, with the weights, defines it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from egnn_md.nn.fast_egnn import FastEGNNConfig

EDGE_INPUTS = ("distance", "feature_product")
WALL_FUNCTIONS = 3
STRIDE_TOLERANCE = 1e-6  # relative: stride over frame interval is a whole number to this


class PropagatorConfig(BaseModel):
    """Everything that, with the weights, defines a propagator. Lengths and times are in ``units``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    system: str = Field(default="", description="what the weights know: nbody, adk, liquid, water, …")
    units: dict[str, str] = Field(default={"length": "none", "time": "none"})
    frame_interval: float = Field(gt=0, description="time between two frames of the training data")
    stride: float = Field(gt=0, description="time that one step covers, a whole number of frames")
    velocity: Literal["true", "backward", "forward"] = Field(
        default="true",
        description="true velocities; the difference to the frame before; or to the next one (published, not causal)",
    )
    predict_velocity: bool = Field(default=True, description="a head for the velocity; else (x' - x)/stride")

    cutoff: float | None = Field(default=None, gt=0, description="None joins all pairs")
    drop: Literal["none", "longest", "random"] = Field(default="none", description="which edges are left out")
    drop_fraction: float = Field(default=0.0, ge=0, le=1, description="p of the paper")

    species: tuple[int, ...] = Field(default=(0,), min_length=1, description="known particle types")
    static_species: tuple[int, ...] = Field(default=(), description="types that never move (boundary particles)")
    node_features: int = Field(default=0, ge=0, description="F given invariant inputs a particle")
    edge_inputs: tuple[str, ...] = Field(default=("distance", "distance"), description="published: [d, d]")
    edge_basis: int = Field(default=0, ge=0, description="Bessel functions of the distance as edge inputs")
    length_scale: float = Field(default=1.0, gt=0)
    gravity: tuple[float, float, float] | None = None
    walls: tuple[tuple[float, float], tuple[float, float], tuple[float, float]] | None = None
    wall_range: float | None = Field(default=None, gt=0, description="reach of a wall; the cutoff if None")
    hard_walls: bool = Field(default=True, description="outside training, nobody is put behind a wall")
    linear_start: bool = Field(default=True, description="a fresh model predicts x + v·stride")

    messages: Literal["egnn", "radial-field", "continuous-filter"] = "egnn"
    hidden: int = Field(default=64, ge=1)
    layers: int = Field(default=4, ge=1)
    virtual_nodes: int = Field(default=3, ge=0, description="C; 0 is EGNN")
    residual: bool = True
    attention: bool = False
    normalize: bool = False
    tanh: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> PropagatorConfig:
        frames = self.stride / self.frame_interval
        if frames < 1 - STRIDE_TOLERANCE or abs(frames - round(frames)) > STRIDE_TOLERANCE * frames:
            raise ValueError(
                f"stride {self.stride} is {frames:g} frames of {self.frame_interval}; it must be a whole number"
            )
        for name in self.edge_inputs:
            if name not in EDGE_INPUTS:
                raise ValueError(f"edge_inputs names {name!r}; known: {', '.join(EDGE_INPUTS)}")
        if list(self.species) != sorted(set(self.species)):
            raise ValueError(f"species must ascend without repetition, not {list(self.species)}")
        if not set(self.static_species) <= set(self.species):
            raise ValueError(f"static_species {self.static_species} are not all among species {self.species}")
        if self.cutoff is None and self.edge_basis:
            raise ValueError("edge_basis needs a cutoff")
        if self.cutoff is None and self.static_species:
            raise ValueError("static_species need a cutoff: their distance is a feature up to it")
        if self.walls is not None:
            if self.cutoff is None and self.wall_range is None:
                raise ValueError("walls need wall_range or a cutoff")
            if any(high <= low for low, high in self.walls):
                raise ValueError(f"walls {self.walls} must be three [low, high] pairs with low below high")
        if self.drop == "none" and self.drop_fraction:
            raise ValueError(f"drop_fraction {self.drop_fraction} needs drop: longest or random")
        return self

    @property
    def stride_frames(self) -> int:
        """Frames of the data in one stride."""
        return round(self.stride / self.frame_interval)

    @property
    def num_edge_features(self) -> int:
        """Width of the edge input."""
        products = sum(name == "feature_product" for name in self.edge_inputs)
        return len(self.edge_inputs) - products + products * self.node_features + self.edge_basis

    @property
    def num_fields(self) -> int:
        """Equivariant vectors a particle: walls, gravity."""
        return (WALL_FUNCTIONS if self.walls else 0) + (1 if self.gravity else 0)

    @property
    def num_node_inputs(self) -> int:
        """Width of the node input: speed, types, given features, walls, boundary."""
        types = len(self.species) if len(self.species) > 1 else 0
        walls = WALL_FUNCTIONS * (2 if self.gravity else 1) if self.walls else 0
        return 1 + types + self.node_features + walls + (1 if self.static_species else 0)

    def network(self) -> FastEGNNConfig:
        """The network inside."""
        return FastEGNNConfig(
            node_features=self.num_node_inputs,
            edge_features=self.num_edge_features,
            fields=self.num_fields,
            messages=self.messages,
            hidden=self.hidden,
            layers=self.layers,
            virtual_nodes=self.virtual_nodes,
            residual=self.residual,
            attention=self.attention,
            normalize=self.normalize,
            tanh=self.tanh,
        )
