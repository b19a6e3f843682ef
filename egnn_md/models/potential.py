"""The trained potential: E = Σ_i [E0(element) + scale · ε(h_i)] on the smooth FastEGNN."""

from typing import Any, List, Optional  # noqa: UP035 - TorchScript reads attribute types from here

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from egnn_md.models.base import Potential
from egnn_md.nn.segment import double_vector
from egnn_md.nn.smooth import SmoothConfig, SmoothFastEGNN

MAXIMUM_ATOMIC_NUMBER = 118


class PotentialConfig(BaseModel):
    """Everything that, with the weights, defines a FastEGNN potential."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    elements: tuple[int, ...] = Field(min_length=1, description="atomic numbers")
    atomic_energies: tuple[float, ...] = Field(
        default=(), description="E0 of each element, eV; zeros if empty"
    )
    scale: float = Field(default=1.0, gt=0, description="eV per unit of the network's readout")
    cutoff: float = Field(default=5.0, gt=0, description="Å")
    hidden: int = Field(default=64, ge=1)
    layers: int = Field(default=3, ge=1)
    virtual_nodes: int = Field(default=2, ge=0, description="C; 0 makes the potential strictly local")
    vector_channels: int = Field(default=8, ge=1, description="K; 1 is the paper")
    basis: int = Field(default=8, ge=1)
    mean_neighbors: float = Field(default=50.0, gt=0, description="mean neighbour count of the data")
    fourier_width: float = Field(
        default=0.0, ge=0, description="Å; σ of the virtual nodes' Fourier modes in a periodic cell; 0: features only"
    )

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields younger than model files in use are left out at their defaults, which keeps those files' digests."""
        found: dict[str, Any] = handler(self)
        if not self.fourier_width:
            found.pop("fourier_width", None)
        return found

    @model_validator(mode="after")
    def _consistent(self) -> "PotentialConfig":
        if list(self.elements) != sorted(set(self.elements)):
            raise ValueError(f"elements must ascend without repetition, not {list(self.elements)}")
        if not all(1 <= z <= MAXIMUM_ATOMIC_NUMBER for z in self.elements):
            raise ValueError(f"elements must be atomic numbers, not {list(self.elements)}")
        if self.atomic_energies and len(self.atomic_energies) != len(self.elements):
            raise ValueError(
                f"{len(self.atomic_energies)} atomic_energies for {len(self.elements)} elements"
            )
        if self.fourier_width and not self.virtual_nodes:
            raise ValueError(
                f"fourier_width = {self.fourier_width} needs virtual nodes, whose Fourier modes they are, and "
                "virtual_nodes is 0"
            )
        return self


class FastEGNNPotential(Potential):
    """A smooth, conservative, extensive potential; see :class:`egnn_md.models.base.Potential`.

    Args:
        config: sizes, elements and reference energies.
    """

    kind = "fastegnn-potential"
    reference: List[float]  # noqa: UP006
    kind_of: Tensor
    has_fourier: torch.jit.Final[bool]

    def __init__(self, config: PotentialConfig) -> None:
        super().__init__(
            config.cutoff,
            list(config.elements),
            long_range=config.virtual_nodes > 0,
            needs_cell=config.fourier_width > 0,
        )
        self.config = config
        self.has_fourier = config.fourier_width > 0
        self.scale = float(config.scale)
        # a plain list, not a buffer: .to(float32) must not round energies of hundreds of eV
        self.reference = [float(e) for e in config.atomic_energies or (0.0,) * len(config.elements)]
        self.network = SmoothFastEGNN(
            SmoothConfig(
                species=len(config.elements),
                **config.model_dump(exclude={"elements", "atomic_energies", "scale"}),
            )
        )
        self.readout = nn.Sequential(
            nn.Linear(config.hidden, config.hidden // 2 or 1), nn.SiLU(), nn.Linear(config.hidden // 2 or 1, 1)
        )
        self.hidden = config.hidden
        self.from_fourier: nn.Module = (
            nn.Linear(config.virtual_nodes, 1, bias=False) if config.fourier_width > 0 else nn.Identity()
        )
        kind_of = torch.zeros(MAXIMUM_ATOMIC_NUMBER + 1, dtype=torch.long)
        for index, number in enumerate(config.elements):
            kind_of[number] = index
        self.register_buffer("kind_of", kind_of, persistent=False)

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
        cell: Optional[Tensor] = None,  # noqa: UP045 - the spelling TorchScript knows
    ) -> Tensor:
        """(N,) energies in eV, float64; arguments as in the base class."""
        kinds = self.kind_of.index_select(0, species)
        features = self.network(kinds, positions, edge_index, shifts, batch, periodic, cell)
        reference = double_vector(self.reference, positions.device)
        learned = self.readout(features[:, : self.hidden]).squeeze(1).to(torch.float64)
        if self.has_fourier:
            learned = learned + self.from_fourier(features[:, self.hidden :]).squeeze(1).to(torch.float64)
        # in a split system kinds of the halo follow those of the particles that are owned
        return reference.index_select(0, kinds[: positions.shape[0]]) + self.scale * learned
