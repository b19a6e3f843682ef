"""The sets of the peptide model, each made by one seeded generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from egnn_md.data.structures import read_frames

from .builder import LETTERS
from .from_pdb import capped
from .sampling import (
    MINIMUM_CONTACT,
    Run,
    closest_contact,
    force_field_trajectory,
    protonated,
    random_peptide,
    stretched,
    transferred,
)
from .sequences import all_single_states, random_states, split

TEMPERATURES = (300.0, 500.0, 700.0)
#: kJ/mol/nm² of the well on the radius of gyration: none, folded, pulled apart.
TRAPS = (0.0, 0.0, 30.0, 100.0, -4.0)
#: What an acid is brought together with: another acid, a donor or acceptor of hydrogen bonds, anything.
PARTNERS = ("DE", "STYNQHKWC", LETTERS)
PARTNER_SHARES = (0.45, 0.35, 0.2)
PAIR_TRAPS = (30.0, 60.0, 120.0)  # two molecules must be kept together
RATTLED_EVERY = 5
CHIGNOLIN_PDB = Path(__file__).parent / "chignolin.pdb"


def _tagged(frames: Iterator[Atoms], kind: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Name the set, and shake every fifth structure: off the dynamics, where forces are larger."""
    for index, atoms in enumerate(frames):
        atoms.info["kind"] = kind
        if index % RATTLED_EVERY == RATTLED_EVERY - 1:
            atoms.positions += rng.normal(scale=rng.uniform(0.01, 0.04), size=atoms.positions.shape)
            atoms.info["kind"] = f"{kind}-rattled"
        yield atoms


def training_singles(runs: int = 8, frames: int = 5, seed: int = 1_000_000) -> Iterator[Atoms]:
    """Every residue in every state between its caps."""
    rng = np.random.default_rng(seed)
    number = 0
    for repeat in range(runs):
        for letter, states in all_single_states():
            number += 1
            peptide = random_peptide(letter, rng, states)
            temperature, trap = TEMPERATURES[repeat % 3], TRAPS[number % len(TRAPS)]
            run = Run((peptide,), temperature, trap, seed=seed + number)
            yield from _tagged(force_field_trajectory(run, frames), "single", rng)


def training_sequences(name: str, runs: int, frames: int, seed: int) -> Iterator[Atoms]:
    """Runs of the training sequences of one length, in rounds, so that a set that is cut off stays balanced."""
    rng = np.random.default_rng(seed)
    number = 0
    for repeat in range(runs):
        for sequence in split()[f"train{name}"]:
            number += 1
            peptide = random_peptide(sequence, rng, random_states(sequence, rng))
            temperature, trap = TEMPERATURES[(repeat + number) % 3], TRAPS[number % len(TRAPS)]
            run = Run((peptide,), temperature, trap, seed=seed + number)
            yield from _tagged(force_field_trajectory(run, frames), f"peptide{name}", rng)


def training_dipeptides(runs: int = 5, frames: int = 4, seed: int = 2_000_000) -> Iterator[Atoms]:
    """Two residues between caps."""
    yield from training_sequences("2", runs, frames, seed)


def training_tripeptides(runs: int = 4, frames: int = 4, seed: int = 3_000_000) -> Iterator[Atoms]:
    """Three residues between caps."""
    yield from training_sequences("3", runs, frames, seed)


def training_pairs(runs: int = 300, frames: int = 5, seed: int = 4_000_000) -> Iterator[Atoms]:
    """Two capped residues held together: the contacts across a fold that a short chain cannot make.

    At most one of the two is charged.
    """
    rng = np.random.default_rng(seed)
    for number in range(runs):
        first, second = (LETTERS[int(k)] for k in rng.integers(len(LETTERS), size=2))
        if first == second == "R":
            second = "N"
        one = random_peptide(first, rng, random_states(first, rng) if second != "R" else None)
        other = random_peptide(second, rng, random_states(second, rng, 0.0))
        trap = PAIR_TRAPS[number % len(PAIR_TRAPS)]
        run = Run((one, other), TEMPERATURES[number % 3], trap, seed=seed + number)
        yield from _tagged(force_field_trajectory(run, frames, equilibration_ps=2.0), "pair", rng)


def training_acids(runs: int = 200, frames: int = 4, seed: int = 16_000_000) -> Iterator[Atoms]:
    """Two capped residues held together, a carboxylic acid one of them and often both; half with a proton moved.

    The proton that an acid shares with another, or with a hydroxyl group, makes the strongest hydrogen bonds of a
    neutral peptide, and in the other sets such groups hardly ever meet.
    """
    rng = np.random.default_rng(seed)
    for number in range(runs):
        others = str(rng.choice(PARTNERS, p=PARTNER_SHARES))
        pair = tuple(random_peptide(word, rng) for word in ("DE"[number % 2], others[int(rng.integers(len(others)))]))
        trap = PAIR_TRAPS[number % len(PAIR_TRAPS)]
        run = Run(pair, TEMPERATURES[number % 3], trap, seed=seed + number)
        for index, atoms in enumerate(force_field_trajectory(run, frames, equilibration_ps=2.0)):
            yield from _sound(transferred(atoms, rng) if index % 2 else atoms, "acids")


def training_stretched(labelled: Sequence[Path], count: int = 900, seed: int = 9_000_000) -> Iterator[Atoms]:
    """Structures of training sets with X-H bonds far from their lengths: what it costs to break them."""
    for atoms, rng in drawn(labelled, count, seed):
        out = stretched(atoms, rng)
        yield from _sound(out, "stretched")


def training_protons(labelled: Sequence[Path], count: int = 2500, seed: int = 12_000_000) -> Iterator[Atoms]:
    """Structures of training sets from whose O-H or S-H the proton leaves, carboxylic acids above all."""
    for atoms, rng in drawn(labelled, count, seed):
        if not _has_acid(atoms) and rng.random() < 0.6:
            continue
        out = stretched(atoms, rng, acids=True)
        yield from _sound(out, "protons")


def training_transfers(labelled: Sequence[Path], count: int = 5400, seed: int = 13_000_000) -> Iterator[Atoms]:
    """Structures of training sets with one proton on its way to another atom, carboxylic acids above all."""
    for atoms, rng in drawn(labelled, count, seed):
        if not _has_acid(atoms) and rng.random() < 0.7:
            continue
        out = transferred(atoms, rng)
        yield from _sound(out, "transfers")


def training_parted(labelled: Sequence[Path], count: int = 5400, seed: int = 14_000_000) -> Iterator[Atoms]:
    """Neutral structures whose carboxylic proton is at an amide or another base: two charges that attract each other.

    Such a pair is some electronvolts above the acid. A network that knows carboxylates and bases from ions only may
    find it below.
    """
    for atoms, rng in drawn(labelled, count, seed):
        if atoms.info["charge"] != 0 or not _has_acid(atoms):
            continue
        out = transferred(atoms, rng, acids=True)
        yield from _sound(out, "parted")


def training_protonated(labelled: Sequence[Path], count: int = 1600, seed: int = 15_000_000) -> Iterator[Atoms]:
    """Structures with one more proton, at any base: cations of neutral peptides, and anions with two charges parted."""
    for atoms, rng in drawn(labelled, count, seed):
        out = protonated(atoms, rng)
        yield from _sound(out, "protonated")


def training_shaken(labelled: Sequence[Path], count: int = 350, seed: int = 11_000_000) -> Iterator[Atoms]:
    """Structures with every atom displaced far more than heat would: where a minimiser's first steps may lead."""
    for atoms, rng in drawn(labelled, count, seed):
        atoms.positions += rng.normal(scale=rng.uniform(0.04, 0.14), size=atoms.positions.shape)
        yield from _sound(atoms, "shaken")


def _has_acid(atoms: Atoms) -> bool:
    return any(state in atoms.info["states"] for state in ("ASH", "GLH"))


def _sound(atoms: Atoms | None, kind: str) -> Iterator[Atoms]:
    """The structure with its kind, unless there is none or atoms overlap."""
    if atoms is not None and closest_contact(atoms) >= MINIMUM_CONTACT:
        atoms.info["kind"] = kind
        yield atoms


def drawn(labelled: Sequence[Path], count: int, seed: int) -> Iterator[tuple[Atoms, np.random.Generator]]:
    """Structures of label files in random order, without their labels, and a generator for each."""
    rng = np.random.default_rng(seed)
    frames = [atoms for path in labelled for atoms in read_frames(path)]
    for k in rng.permutation(len(frames))[:count]:
        out = Atoms(frames[k].numbers, frames[k].positions)
        keys = ("states", "charge", "temperature", "seed")
        out.info.update({key: frames[k].info[key] for key in keys})
        yield out, np.random.default_rng([seed, int(k)])


def tested(name: str, frames: int = 4, seed: int = 5_000_000) -> Iterator[Atoms]:
    """Unseen sequences at 300 and 500 K from ff14SB as it is, without bias."""
    rng = np.random.default_rng(seed + int(name))
    number = 0
    for temperature in (300.0, 500.0):
        for sequence in split()[f"test{name}"]:
            number += 1
            peptide = random_peptide(sequence, rng, random_states(sequence, rng), cis=0.0)
            run = Run((peptide,), temperature, perturb=False, seed=seed + 10_000 * int(name) + number)
            for atoms in force_field_trajectory(run, frames, stride_ps=1.0, equilibration_ps=3.0):
                atoms.info["kind"] = f"test{name}"
                yield atoms


def test_sequences() -> Iterator[Atoms]:
    """Unseen dipeptides and tripeptides."""
    yield from tested("2")
    yield from tested("3")


def test_singles(frames: int = 2, seed: int = 8_000_000) -> Iterator[Atoms]:
    """Every residue in every state at 300 and 500 K from ff14SB as it is: known molecules in new conformations."""
    rng = np.random.default_rng(seed)
    number = 0
    for temperature in (300.0, 500.0):
        for letter, states in all_single_states():
            number += 1
            run = Run((random_peptide(letter, rng, states),), temperature, perturb=False, seed=seed + number)
            for atoms in force_field_trajectory(run, frames, stride_ps=1.0, equilibration_ps=3.0):
                atoms.info["kind"] = "test1"
                yield atoms


def chignolin_frames(frames: int = 10, seed: int = 6_000_000) -> Iterator[Atoms]:
    """Chignolin between caps, neutral, from its deposited coordinates: never trained on.

    ff14SB as it is, in vacuum: two runs at 300 K, one at 500 K and one that is pulled apart at 300 K.
    """
    chignolin = capped(CHIGNOLIN_PDB)
    for number, (temperature, trap) in enumerate(((300.0, 0.0), (300.0, 0.0), (500.0, 0.0), (300.0, -2.0))):
        run = Run((chignolin,), temperature, trap, perturb=False, seed=seed + number)
        for atoms in force_field_trajectory(run, frames, stride_ps=1.0, equilibration_ps=1.0 + 2.0 * number):
            atoms.info["kind"] = "chignolin"
            yield atoms
