"""What every number of an evaluation means, and its unit: for metrics.json and for the page."""

from __future__ import annotations

from dataclasses import dataclass

from egnn_md.rollout.density import ITERATIONS, POINTS, REGULARISATION
from egnn_md.rollout.metrics import JUMP_FACTOR
from egnn_md.rollout.metrics_protein import BOND_LIMIT

SINKHORN_STARTS = 8  # a transport problem costs tenths of a second
BLOCKS = 10  # of successive windows of few trajectories, for the error of the one-step MSE


@dataclass(frozen=True)
class Definition:
    """Title, unit (``L``, ``T`` stand for length and time of the data, ``E`` for energy) and text of a metric."""

    title: str
    unit: str
    text: str


DEFINITIONS = {
    "mse": Definition(
        "MSE",
        "L²",
        "Mean over particles and components of the squared error of the positions (torch's MSELoss); particles of "
        "static types are left out. One step: over all windows together. Horizons: mean over the starts that run.",
    ),
    "mse_error": Definition(
        "± of the MSE",
        "L²",
        "Standard error of the mean. Horizons: over the starts, as if they were independent; those of one trajectory "
        f"that overlap are not. One step: over the trajectories, or over {BLOCKS} blocks of successive windows if "
        "there are fewer.",
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
        f"{ITERATIONS} iterations; mean over at most {SINKHORN_STARTS} starts, evenly chosen.",
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
        "E",
        "½ Σ m v² over the number of particles, with the velocities that the model predicts, in eV for elements; "
        "other particles have mass 1. Stay still and linear keep the velocities of the start. Differences between "
        "frames are slower than true velocities: compare with the reference, which has the same kind.",
    ),
    "kinetic_energy_error": Definition(
        "Kinetic energy error",
        "",
        "Mean over the starts of |K - K_ref| at the same time, over the mean of K_ref of the same starts.",
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
        "(mdtraj); mean over the starts whose rollout ran to its end.",
    ),
    "rmsf_mean": Definition("RMSF, mean", "L", "Mean over the particles of the RMSF."),
    "rmsf_error": Definition(
        "RMSF error", "L", "Root mean square over the particles of the difference to the reference's RMSF."
    ),
    "rmsf_correlation": Definition(
        "RMSF correlation", "", "Pearson's correlation over the particles with the reference's RMSF."
    ),
    "radius_of_gyration": Definition("Radius of gyration", "L", "sqrt(Σ m |x - c|² / Σ m)."),
    "bond_violations": Definition(
        "Bond violations",
        "",
        f"Share of bonds more than {BOND_LIMIT} Å off their mean length in the reference's frames of the same start. "
        "Thermal motion violates some: the reference's own share is shown beside it.",
    ),
    "temperature": Definition(
        "Temperature of the element",
        "K",
        "Σ m v² / (3 N k_B); equal for all elements in equilibrium, if velocities are true ones.",
    ),
    "diffusion": Definition(
        "Diffusion",
        "cm²/s",
        "Slope of the mean squared displacement over 6 t at lags of a tenth to four tenths of the rollout; error over "
        "groups of particles. Rollouts that ran to their end only, and none of 20 strides or fewer. Of a short "
        "rollout it is a number to compare with the reference's, not yet the liquid's diffusion coefficient.",
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
    "worse_than_linear": Definition(
        "Worse than linear", "strides", "First stride after which the MSE is larger than that of going straight on."
    ),
    "trusted": Definition(
        "Trusted",
        "strides",
        "At this and every earlier stride the rollout's MSE is clearly below that of stay still and of linear (the "
        "mean over the starts of the paired difference is more than its standard error), and no start has stopped or "
        "jumped.",
    ),
    "strides_until_failure": Definition(
        "Strides until failure", "strides", "The earlier of `stopped` and `jump`; median over the starts."
    ),
    "running": Definition(
        "Running",
        "",
        "Share of the starts that have not stopped. Means at a time are over those that run: usually the easier ones.",
    ),
}

_NAMES = {
    "angstrom": "Å", "nanometer": "nm", "bohr": "bohr", "m": "m",
    "femtosecond": "fs", "picosecond": "ps", "nanosecond": "ns", "s": "s",
}  # fmt: skip


def unit_of(metric: str, units: dict[str, str]) -> str:
    """Unit of a metric for data in ``units``; lengths and times without units stay ``L`` and ``T``.

    An energy is in ``units["energy"]``, or per unit of mass if there is none.
    """
    found = DEFINITIONS.get(metric) or DEFINITIONS["temperature" if metric.startswith("temperature") else "mse"]
    text = found.unit
    if text == "E":
        text = units.get("energy", "L²/T²")
    length, time = (_NAMES.get(units.get(key, ""), letter) for key, letter in (("length", "L"), ("time", "T")))
    if not set(text) <= set("LT²/"):
        return text
    return text.replace("L", length).replace("T", time)


def time_unit(units: dict[str, str]) -> str:
    """Symbol of the data's unit of time; empty without one."""
    return _NAMES.get(units.get("time", ""), "")


def title_of(metric: str) -> str:
    """Heading of a metric."""
    if metric.startswith("temperature_"):
        return f"Temperature of {metric.partition('_')[2]}"
    return DEFINITIONS[metric].title
