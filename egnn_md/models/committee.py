"""Several potentials as one: their mean drives, and where they disagree none of them should be believed.

The members saw the same labels, but began with other weights, so they agree where the labels decide and drift apart
where nothing does (query by committee: Seung, Opper and Sompolinsky, COLT 1992).

| symbol | equation | here |
| --- | --- | --- |
| E, F_i | mean over members; F_i = -∂E/∂x_i | ``evaluate(committee, graph)`` |
| σ_E | sqrt(mean_m (E_m - E)²) | ``Spread.energy_std``, eV |
| σ_i | sqrt(mean_m abs(F_m,i - F_i)²) | ``Spread.force_std``, eV/Å, one an atom |

Means are over the M members, divided by M and not by M - 1: σ_i is then the model deviation of L. Zhang et al., Phys.
Rev. Mater. 3, 023804 (2019), by which DP-GEN selects (Y. Zhang et al., Comput. Phys. Commun. 253, 107206, 2020).
sqrt(M / (M - 1)) makes the unbiased sample's out of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import torch
from ase.data import chemical_symbols
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.models.base import Potential
from egnn_md.models.evaluate import EvaluatesItself, evaluate
from egnn_md.models.potential import FastEGNNPotential, PotentialConfig

FEWEST = 2  # members


class CommitteeConfig(BaseModel):
    """Configurations of the members; elements and cutoff (the largest, Å) are those of the whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    elements: tuple[int, ...] = Field(description="atomic numbers, the same in every member")
    cutoff: float = Field(gt=0, description="Å; the largest of the members', which share one neighbour list")
    members: tuple[PotentialConfig, ...] = Field(min_length=FEWEST)

    @model_validator(mode="after")
    def _consistent(self) -> "CommitteeConfig":
        for index, member in enumerate(self.members):
            if member.elements != self.elements:
                raise ValueError(f"member {index} knows elements {list(member.elements)}, not {list(self.elements)}")
        if self.cutoff != max(member.cutoff for member in self.members):
            raise ValueError(f"the cutoff {self.cutoff} is not the largest of the members'")
        return self


class CommitteePotential(Potential):
    """Mean energy of several potentials, and so a potential: conservative, with the exact forces of that mean.

    Args:
        source: the configurations of members with fresh weights, or the members themselves (not copied). What
            members must have in common is checked by :func:`make_committee`.

    Raises:
        InputError: fewer than two members.
    """

    kind = "committee-potential"
    passes_cell: torch.jit.Final[bool]

    def __init__(self, source: CommitteeConfig | Sequence[Potential]) -> None:
        members: list[Potential]
        if isinstance(source, CommitteeConfig):
            members = [FastEGNNPotential(config) for config in source.members]
        else:
            members = list(source)
        if len(members) < FEWEST:
            raise InputError(_too_few(len(members)))
        super().__init__(
            max(member.cutoff for member in members),
            list(members[0].elements),
            long_range=any(member.long_range for member in members),
            needs_cell=any(member.needs_cell for member in members),
        )
        self.passes_cell = self.needs_cell
        self.count = len(members)
        self.members = nn.ModuleList(members)
        configs = [member.config for member in members if isinstance(member, FastEGNNPotential)]
        #: what a model file says; None where a member is of a class without a file format
        self.config: CommitteeConfig | None = None
        if len(configs) == len(members):
            self.config = CommitteeConfig(elements=tuple(self.elements), cutoff=self.cutoff, members=tuple(configs))

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
        """(N,) mean energies in eV, float64; arguments as in the base class."""
        energies = torch.zeros(positions.shape[0], dtype=torch.float64, device=positions.device)
        for member in self.members:
            if self.passes_cell:
                energies = energies + member(positions, species, edge_index, shifts, batch, periodic, cell)
            else:
                energies = energies + member(positions, species, edge_index, shifts, batch, periodic)
        return energies / self.count


@dataclass(frozen=True)
class Spread:
    """Mean and disagreement of M members on a batch of G graphs with N atoms; float64 on the model's device.

    Attributes:
        energy: (G,) mean, eV.
        energy_std: (G,) eV.
        energy_std_per_atom: (G,) eV: ``energy_std`` over the number of atoms.
        forces: (N, 3) mean, eV/Å.
        force_std: (N,) eV/Å.
        member_energy: (M, G) eV.
        member_forces: (M, N, 3) eV/Å.
        energies: (N,) mean of the atoms' shares, eV.
        stress: (G, 3, 3) mean, eV/Å³, if it was asked for.
    """

    energy: Tensor
    energy_std: Tensor
    energy_std_per_atom: Tensor
    forces: Tensor
    force_std: Tensor
    member_energy: Tensor
    member_forces: Tensor
    energies: Tensor
    stress: Tensor | None = None

    def worst(self) -> tuple[int, float]:
        """The atom with the largest ``force_std``, and that, eV/Å; a value that is no number counts as the largest."""
        if not len(self.force_std):
            return 0, 0.0
        ranked = torch.nan_to_num(self.force_std, nan=torch.inf)
        atom = int(ranked.argmax())
        return atom, float(self.force_std[atom])

    def cpu(self) -> "Spread":
        """The same in main memory."""
        return replace(self, **{name: value.cpu() for name, value in vars(self).items() if value is not None})


def energy_spread(member_energy: Tensor) -> Tensor:
    """(G,) sqrt(mean_m (E_m - E)²) of (M, G)."""
    return (member_energy - member_energy.mean(0)).pow(2).mean(0).sqrt()


def force_spread(member_forces: Tensor) -> Tensor:
    """(N,) sqrt(mean_m |F_m - F|²) of (M, N, 3)."""
    return (member_forces - member_forces.mean(0)).pow(2).sum(-1).mean(0).sqrt()


def evaluate_spread(committee: Potential, graph: ParticleGraph, *, stress: bool = False) -> Spread:
    """Every member on one graph: their mean and how far they are apart.

    One forward and one reverse pass a member, which is what the committee's own forces cost: where these are not
    needed besides, the spread is free.

    Args:
        committee: a :class:`CommitteePotential`.
        graph: as for :func:`egnn_md.models.evaluate`.
        stress: also the mean stress.

    Raises:
        InputError: a model that is no committee.
        UnknownElementError: an element that the members do not know.
    """
    members: Any = require_committee(committee).members
    found = [evaluate(member, graph, stress=stress) for member in members]
    energy = torch.stack([result["energy"] for result in found])
    forces = torch.stack([result["forces"].double() for result in found])
    atoms = torch.bincount(graph.batch, minlength=graph.num_graphs).clamp(min=1)
    deviation = energy_spread(energy)
    return Spread(
        energy=energy.mean(0),
        energy_std=deviation,
        energy_std_per_atom=deviation / atoms,
        forces=forces.mean(0),
        force_std=force_spread(forces),
        member_energy=energy,
        member_forces=forces,
        energies=torch.stack([result["energies"] for result in found]).mean(0),
        stress=torch.stack([result["stress"].double() for result in found]).mean(0) if stress else None,
    )


def require_committee(model: Any) -> CommitteePotential:
    """``model`` itself. Raises InputError if it is no committee."""
    if isinstance(model, CommitteePotential):
        return model
    raise InputError(
        f"a {type(model).__name__} has no spread: only a committee has one. Train the same configuration with other "
        "seeds and put the files together with `egnn-md committee A.safetensors B.safetensors ... --output FILE`"
    )


def make_committee(
    models: Sequence[str | Path | Potential], *, name: str = "", description: str = ""
) -> CommitteePotential:
    """One committee out of several potentials; ``save_model`` writes it as one file.

    Args:
        models: at least two potentials of one class, by name, by path, or as they are (not copied). They know the
            same elements, units and reference method, and differ in their weights.
        name: for the card; ``committee of N: `` and the members' names if empty.
        description: for the card.

    Returns:
        The committee, in evaluation mode, with a card that names the members.

    Raises:
        InputError: fewer than two, one that is no potential or a committee itself, one that is given twice, members
            that differ in class, elements, precision, units or teacher; says what to do.
        ModelFileError: a file that cannot be read.
    """
    from egnn_md.checkpoint import load_model, model_digest

    if len(models) < FEWEST:
        raise InputError(_too_few(len(models)))
    members: list[Potential] = []
    names: list[str] = []
    seen: dict[str, str] = {}
    for index, given in enumerate(models):
        found: Any = given
        label = f"member {index}"
        if isinstance(given, str | Path):
            found, label = load_model(given, kernels="plain"), str(given)
        _check_kind(found, label)
        digest = model_digest(found) if hasattr(found, "config") else _constants(found)
        if digest in seen:
            raise InputError(
                f"{label} and {seen[digest]} are the same model (digest {digest[:12]}): two equal members never "
                "disagree; give each once, trained with a seed of its own"
            )
        seen[digest] = label
        if members:
            _check_alike(members[0], found, names[0], label)
        members.append(found)
        names.append(label)
    committee = CommitteePotential(members).eval()
    committee.card = _card(members, list(seen), name, description)
    return committee


def _constants(model: Potential) -> str:
    """What tells analytic potentials, which have no weights, apart."""
    plain = {name: value for name, value in sorted(vars(model).items()) if isinstance(value, int | float | str)}
    return f"{type(model).__name__} {plain}"


def _too_few(count: int) -> str:
    return (
        f"a committee needs at least {FEWEST} members, got {count}; train the same configuration again with another "
        "seed (egnn-md train CONFIG --set seed=1 --set output=...)"
    )


def _check_kind(model: Any, label: str) -> None:
    if isinstance(model, CommitteePotential):
        raise InputError(f"{label} is a committee itself; give the files of its members")
    if isinstance(model, EvaluatesItself) or not isinstance(model, Potential):
        raise InputError(f"{label} is a {type(model).__name__}; members of a committee are potentials on one device")


def _check_alike(first: Potential, other: Potential, first_name: str, name: str) -> None:
    """Raise InputError for two members whose mean would mean nothing."""
    if type(first) is not type(other):
        raise InputError(
            f"{name} is a {type(other).__name__}, but {first_name} a {type(first).__name__}; members are of one kind"
        )
    if list(first.elements) != list(other.elements):
        missing = sorted(set(first.elements) ^ set(other.elements))
        raise InputError(
            f"{first_name} knows {_symbols(first.elements)}, but {name} {_symbols(other.elements)}: only one of them "
            f"could say anything about {_symbols(missing)}. Train all on the same labels, or give model.elements"
        )
    if first.dtype != other.dtype:
        raise InputError(
            f"{first_name} holds {first.dtype} weights, but {name} {other.dtype}; load both with one dtype "
            "(load_model(file, dtype=torch.float32)) and call make_committee on the models"
        )
    cards = [getattr(model, "card", None) for model in (first, other)]
    if cards[0] is None or cards[1] is None:
        return
    if cards[0].units != cards[1].units:
        raise InputError(
            f"{first_name} is in the units {cards[0].units}, but {name} in {cards[1].units}; convert the labels and "
            "train again: members are averaged as they are"
        )
    if cards[0].teacher != cards[1].teacher:
        raise InputError(
            f"{first_name} learned from {cards[0].teacher or 'an unnamed teacher'}, but {name} from "
            f"{cards[1].teacher or 'an unnamed teacher'}: their difference would be the methods', not the uncertainty. "
            "Train all members on labels of one method"
        )


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in numbers) or "any element"


def _card(members: Sequence[Potential], digests: Sequence[str], name: str, description: str) -> Any:
    from egnn_md.checkpoint import ModelCard

    cards = [getattr(member, "card", None) or ModelCard() for member in members]
    names = [card.name or f"member {index}" for index, card in enumerate(cards)]

    def together(values: Sequence[str]) -> str:
        return " ".join(dict.fromkeys(value for value in values if value))

    entries = [
        {"name": label, "digest": digest, "training_data": card.training_data}
        for label, digest, card in zip(names, digests, cards, strict=True)
    ]
    return ModelCard(
        name=name or f"committee of {len(members)}: {', '.join(dict.fromkeys(names))}",
        description=description or f"mean of {len(members)} potentials; their spread tells the uncertainty",
        units=cards[0].units,
        teacher=cards[0].teacher,
        licence=" AND ".join(dict.fromkeys(card.licence for card in cards if card.licence)),
        training_data={"members": entries},
        # the members' own errors: the mean's are to be measured
        measured={f"member {index}": _numbers(card.measured) for index, card in enumerate(cards)},
        intended_use=together([card.intended_use for card in cards]),
        limits=together([card.limits for card in cards]),
        needs=together([card.needs for card in cards]),
    )


def _numbers(measured: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in measured.items() if isinstance(value, int | float)}
