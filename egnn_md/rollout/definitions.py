"""What every number of an evaluation means, and its unit: for metrics.json and for the page."""

from __future__ import annotations

from dataclasses import dataclass

from egnn_md.rollout.density import ITERATIONS, POINTS, REGULARISATION
from egnn_md.rollout.metrics import JUMP_FACTOR
from egnn_md.rollout.metrics_protein import BOND_LIMIT

SINKHORN_STARTS = 8  # a transport problem costs tenths of a second


@dataclass(frozen=True)
class Definition:
    """Title, unit (``L`` and ``T`` stand for those of the data) and text of a metric."""

    title: str
    unit: str
    text: str


DEFINITIONS = {
    "mse": Definition(
        "MSE",
        "L²",
        "Mean over particles and components of the squared error of the positions (torch's MSELoss); particles of "
        "static types are left out. One step: over all windows together. Horizons: mean over the starts.",
    ),
    "mse_error": Definition(
        "± of the MSE",
        "L²",
        "Standard deviation over the starts, over the root of their number; starts of one trajectory are correlated.",
    ),
    "mae": Definition("MAE", "L", "The same mean of the absolute errors."),
    "velocity_mse": Definition(
        "Velocity MSE",
        "L²/T²",
        "Mean squared error of the predicted velocities against the data's, both as the model's `velocity` defines "
        "them.",
    ),
    "sinkhorn": Definition(
        "Sinkhorn",
        "L²",
        "Debiased Sinkhorn divergence of the particles' cloud from the reference's (cost |x-y|², POT): it does not "
        f"ask which particle is which. At most {POINTS} particles, the same ones of both clouds, drawn once; "
        f"regularisation {REGULARISATION:g} of the mean squared distance of two reference particles; at most "
        f"{ITERATIONS} iterations; mean over the first {SINKHORN_STARTS} starts.",
    ),
    "grid_density_error": Definition(
        "Density error",
        "",
        "Share of the particles in the wrong box of a grid, Σ|n - n_ref| / 2N, 0 to 1. The boxes are as wide as the "
        "interaction radius.",
    ),
    "local_density_error": Definition(
        "Local density error",
        "",
        "Root mean square over particles of the difference in the number of neighbours within the interaction "
        "radius, over the reference's mean number.",
    ),
    "local_density_ratio": Definition(
        "Local density ratio", "", "Mean number of neighbours over the reference's: above 1 the rollout is denser."
    ),
    "kinetic_energy": Definition(
        "Kinetic energy",
        "m L²/T²",
        "½ Σ m v² over the number of particles, with the velocities that the model predicts; m is amu for elements, "
        "else 1.",
    ),
    "kinetic_energy_error": Definition(
        "Kinetic energy error", "", "|K - K_ref| / K_ref at the same time; mean over the starts."
    ),
    "momentum_drift": Definition(
        "Momentum drift",
        "L/T",
        "|P(t) - P(0)| / M, the change in the velocity of the centre of mass. Gravity and walls change it in the "
        "reference too, which is shown beside it.",
    ),
    "centre_of_mass_drift": Definition(
        "Centre-of-mass drift", "L", "Distance of the centre of mass from where it started."
    ),
    "centre_of_mass_error": Definition(
        "Centre-of-mass error", "L", "Distance of the centre of mass from the reference's at the same time."
    ),
    "outside": Definition("Particles outside", "", "Number of particles whose centre is outside the walls."),
    "outside_worst": Definition("Worst outside", "L", "Largest distance of a particle beyond a wall, over all starts."),
    "rmsd": Definition(
        "RMSD", "L", "Root mean square distance to the reference at the same time, after the best rotation (mdtraj)."
    ),
    "rmsf": Definition(
        "RMSF",
        "L",
        "Root mean square fluctuation of each particle over the frames of the rollout, laid on its first frame "
        "(mdtraj); mean over the starts.",
    ),
    "radius_of_gyration": Definition("Radius of gyration", "L", "sqrt(Σ m |x - c|² / Σ m)."),
    "bond_violations": Definition(
        "Bond violations",
        "",
        f"Share of bonds more than {BOND_LIMIT} Å off their mean length in the reference's frames of the same start. "
        "Thermal motion violates some: the reference's own share is shown beside it.",
    ),
    "temperature": Definition(
        "Temperature of the element", "K", "Σ m v² / (3 N k_B); equal for all elements in equilibrium."
    ),
    "diffusion": Definition(
        "Diffusion",
        "L²/T",
        "Slope of the mean squared displacement over 6 T, lags of a tenth to four tenths of the rollout; error over "
        "groups of particles. Not given for rollouts of fewer than 20 strides.",
    ),
    "pair_difference": Definition(
        "Pair distribution error", "", "Mean of |g(r) - g_ref(r)| beyond the atoms of one molecule."
    ),
    "not_finite": Definition(
        "Stopped", "strides", "First stride with a position that is not finite, or that the rollout's guards refused."
    ),
    "jump": Definition(
        "Jump",
        "strides",
        f"First stride in which a particle went farther than {JUMP_FACTOR:g} times the largest displacement of any "
        "particle in any stride of the reference.",
    ),
    "worse_than_still": Definition(
        "Worse than staying", "strides", "First stride after which the MSE is larger than that of staying at the start."
    ),
    "strides_until_failure": Definition(
        "Strides until failure", "strides", "The earlier of `stopped` and `jump`; median over the starts."
    ),
    "running": Definition(
        "Running", "", "Share of the starts that have not stopped. Means at a time are over those that run."
    ),
}

_NAMES = {"angstrom": "Å", "nanometer": "nm", "bohr": "bohr", "femtosecond": "fs", "picosecond": "ps"}


def unit_of(metric: str, units: dict[str, str]) -> str:
    """Unit of a metric for data in ``units``; lengths and times without units stay ``L`` and ``T``."""
    found = DEFINITIONS.get(metric) or DEFINITIONS["temperature" if metric.startswith("temperature") else "mse"]
    length, time = (_NAMES.get(units.get(key, ""), letter) for key, letter in (("length", "L"), ("time", "T")))
    text = found.unit
    if not text or text[0] in "Ks":
        return text
    mass = "amu" if length != "L" else "m"
    return "".join({"L": length, "T": time, "m": mass}.get(letter, letter) for letter in text)


def title_of(metric: str) -> str:
    """Heading of a metric."""
    if metric.startswith("temperature_"):
        return f"Temperature of {metric.partition('_')[2]}"
    return DEFINITIONS[metric].title
