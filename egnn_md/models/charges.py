"""Total charges that a model has seen: energies of others are not in what it learned."""

from __future__ import annotations

from typing import Any

from ase import Atoms

from egnn_md.errors import InputError


def check_charge(model: Any, charge: int, where: str) -> None:
    """Refuse a total charge that did not occur in the training data.

    Args:
        model: a potential; one without a model card (not trained, or analytic) takes any charge.
        charge: e.
        where: what has it, the subject of the message.

    Raises:
        InputError: names the charge and those that the model knows.
    """
    card = getattr(model, "card", None)
    if card is None or charge in card.charges:
        return
    name = f" {card.name!r}" if card.name else ""
    raise InputError(
        f"{where} has the total charge {charge:+d} e, but the model{name} was trained on systems of charge "
        f"{_listed(card)} only and cannot tell them apart; use a model whose training data held this charge, or "
        "correct the protonation"
    )


def check_electrons(model: Any, numbers: Any) -> None:
    """Refuse an odd number of electrons where every charge that the model knows would leave one unpaired.

    For structures of which no more is known: files rarely name a charge, and a lost or additional proton changes it.

    Args:
        model: a potential; one without a model card takes anything.
        numbers: (N,) atomic numbers.

    Raises:
        InputError: says how to name the charge.
    """
    card = getattr(model, "card", None)
    protons = int(sum(int(z) for z in numbers))
    if card is None or not card.charges or any((protons - charge) % 2 == 0 for charge in card.charges):
        return
    name = f" {card.name!r}" if card.name else ""
    raise InputError(
        f"the structure has {protons} protons, so with a charge that the model{name} was trained on ({_listed(card)}) "
        "an electron would be unpaired: it is an ion or a radical, or a hydrogen is missing or too many. Correct the "
        "protonation, or, for a radical that the model knows, name the charge in the file (charge=0 in extended XYZ)"
    )


def _listed(card: Any) -> str:
    return ", ".join(f"{known:+d}" if known else "0" for known in card.charges)


def check_charge_of(atoms: Atoms, model: Any) -> None:
    """:func:`check_charge` for atoms that name a charge: ``info["charge"]``, or initial charges. Others pass.

    Raises:
        InputError: a charge that the model does not know, one that is no whole number, or two that disagree.
    """
    from egnn_md.data.structures import CHARGE_KEY, total_charge

    if CHARGE_KEY in atoms.info or atoms.has("initial_charges"):
        check_charge(model, total_charge(atoms), "the structure")
