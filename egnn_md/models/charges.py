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
    known = ", ".join(f"{known:+d}" if known else "0" for known in card.charges)
    name = f" {card.name!r}" if card.name else ""
    raise InputError(
        f"{where} has the total charge {charge:+d} e, but the model{name} was trained on systems of charge {known} "
        "only and cannot tell them apart; use a model whose training data held this charge, or correct the protonation"
    )


def check_charge_of(atoms: Atoms, model: Any) -> None:
    """:func:`check_charge` for atoms that name a charge: ``info["charge"]``, or initial charges. Others pass.

    Raises:
        InputError: a charge that the model does not know, one that is no whole number, or two that disagree.
    """
    from egnn_md.data.structures import CHARGE_KEY, total_charge

    if CHARGE_KEY in atoms.info or atoms.has("initial_charges"):
        check_charge(model, total_charge(atoms), "the structure")
