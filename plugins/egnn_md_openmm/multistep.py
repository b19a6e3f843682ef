"""Multiple time steps: a cheap force at every small step, the network once in a large one.

With E_cheap from a force field (or a small network) the energy is written as

    E = E_cheap + (E_network - E_cheap)

Both terms together are the network's energy exactly, whatever E_cheap is, so averages are the network's. The first term
holds the fast motions and is integrated with a small step; the difference is evaluated once an outer step (reversible
RESPA: Tuckerman, Berne and Martyna, J. Chem. Phys. 97, 1990, 1992). How long that may be depends on how smooth the
*difference* is: a cheap force whose bonds are stiff where the network's are gains most. A difference with a frequency
of its own of period τ gets unstable as the outer step comes near τ/π, and resonates before that.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from egnn_md.errors import InputError
from egnn_md_openmm.dependencies import import_openmm
from egnn_md_openmm.system import add_potential, create_system

if TYPE_CHECKING:
    import openmm
    from openmm import app

#: Forces of a system that move it without an energy, and so belong to neither term.
WITHOUT_ENERGY = ("CMMotionRemover", "AndersenThermostat")
INNER, OUTER = 1, 2


def multiple_time_step_system(
    topology: app.Topology,
    model: Any,
    cheap: Any,
    *,
    inner_group: int = INNER,
    outer_group: int = OUTER,
    cheap_options: dict[str, Any] | None = None,
    **options: Any,
) -> openmm.System:
    """A system with the network's energy, split into a cheap inner and a dear outer group of forces.

    Use it with OpenMM's own integrators, ``n`` inner steps an outer one::

        from openmm.mtsintegrator import MTSIntegrator, MTSLangevinIntegrator

        system = multiple_time_step_system(topology, "water", force_field.createSystem(topology, rigidWater=False))
        groups = [(2, 1), (1, n)]  # (outer group, once), (inner group, n times)
        integrator = MTSLangevinIntegrator(300 * kelvin, 1 / picosecond, 2 * femtoseconds, groups)

    Energy and temperature of the context are those of the network alone. Each outer step evaluates the network once and
    the cheap force n + 1 times.

    Args:
        topology, model: see :func:`egnn_md_openmm.create_system`.
        cheap: an ``openmm.System`` of the same particles without constraints (a force field's), or a second model.
        inner_group, outer_group: force groups, 0 to 31.
        cheap_options: of :func:`egnn_md_openmm.add_potential`, for ``cheap`` as a model.
        options: further ones of :func:`egnn_md_openmm.create_system`.

    Returns:
        The system. It owns copies of the forces of ``cheap``, which stays as it was.

    Raises:
        InputError: groups that are the same, particles that differ, constraints or a barostat in ``cheap``, and what
            :func:`egnn_md_openmm.create_system` raises.
    """
    openmm = import_openmm()
    if inner_group == outer_group:
        raise InputError(f"inner_group and outer_group are both {inner_group}; they must differ")
    system = create_system(topology, model, force_group=outer_group, **options)
    for force in system.getForces():
        if force.getName() != "FastEGNN":
            force.setForceGroup(inner_group)  # of zero energy: molecules for a barostat, a remover of drift
    if not isinstance(cheap, openmm.System):
        inner = openmm.System()
        for index in range(system.getNumParticles()):
            inner.addParticle(system.getParticleMass(index))
        inner.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())
        add_potential(inner, topology, cheap, **{"implementation": options.get("implementation", "torch"),
                                                  **(cheap_options or {})})  # fmt: skip
        cheap = inner
    _check(cheap, system)
    negative = []
    for force in cheap.getForces():
        if type(force).__name__ in WITHOUT_ENERGY:
            continue
        forward, backward = copy.deepcopy(force), copy.deepcopy(force)
        forward.setForceGroup(inner_group)
        backward.setForceGroup(0)  # inside a CustomCVForce
        system.addForce(forward)
        negative.append(backward)
    if not negative:
        raise InputError("the cheap system has no forces, so nothing would be integrated with the small step")
    # no force of OpenMM can be turned round by its parameters in general, but a function of it can
    minus = openmm.CustomCVForce(" - ".join(["0", *(f"cheap{i}" for i in range(len(negative)))]))
    for index, force in enumerate(negative):
        minus.addCollectiveVariable(f"cheap{index}", force)
    minus.setName("minus cheap")
    minus.setForceGroup(outer_group)
    system.addForce(minus)
    return system


def _check(cheap: openmm.System, system: openmm.System) -> None:
    if cheap.getNumParticles() != system.getNumParticles():
        raise InputError(
            f"the cheap system has {cheap.getNumParticles()} particles, the topology {system.getNumParticles()}; "
            "both must describe the same particles in one order"
        )
    if cheap.getNumConstraints():
        raise InputError(
            f"the cheap system has {cheap.getNumConstraints()} constraints, which the network's energy does not know; "
            "make it with constraints=None and rigidWater=False"
        )
    for force in cheap.getForces():
        if "Barostat" in type(force).__name__:
            raise InputError(
                f"the cheap system holds a {type(force).__name__}; add it to the system that this function returns"
            )
