"""ASE's Nosé-Hoover integrators, told how many degrees of freedom there are, and saved and restored.

ASE counts 3 N. These integrators leave a total momentum of zero where it is, so the thermostat has 3 N - 3 to hold at
temperature; with 3 N in its place a system of 32 atoms would be 3 % too hot. ASE's classes take a number of atoms N
and use 3 N and 1/N where the equations have N_f and 3/N_f (Martyna, Tobias & Klein, J. Chem. Phys. 101, 4177, 1994),
so N_f/3 in the place of N is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.md.nose_hoover_chain import (
    IsotropicMTKBarostat,
    IsotropicMTKNPT,
    NoseHooverChainNVT,
    NoseHooverChainThermostat,
)


class NoseHooverChain(NoseHooverChainNVT):
    """Constant volume and temperature; times in ASE's units.

    Args:
        atoms: with zero total momentum.
        timestep: of the integrator.
        temperature_K: of the thermostat.
        tdamp: time scale of the chain.
        degrees_of_freedom: 3 N - 3 for more than one atom.
    """

    def __init__(
        self, atoms: Atoms, timestep: float, *, temperature_K: float, tdamp: float, degrees_of_freedom: int
    ) -> None:
        super().__init__(atoms, timestep, temperature_K=temperature_K, tdamp=tdamp)
        self._thermostat = _thermostat(self.masses, temperature_K, tdamp, degrees_of_freedom)

    def state(self) -> dict[str, Any]:
        """The chain as JSON values; positions and momenta are those of the atoms."""
        return _chain(self._thermostat)

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` gave."""
        _set_chain(self._thermostat, state)


class NoseHooverPiston(IsotropicMTKNPT):
    """Constant pressure and temperature with an isotropic cell; times in ASE's units, pressure in eV/Å³.

    Args:
        atoms: with zero total momentum.
        timestep: of the integrator.
        temperature_K: of thermostat and barostat.
        pressure_au: external pressure.
        tdamp, pdamp: time scales of thermostat and barostat.
        degrees_of_freedom: 3 N - 3 for more than one atom.
    """

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        *,
        temperature_K: float,
        pressure_au: float,
        tdamp: float,
        pdamp: float,
        degrees_of_freedom: int,
    ) -> None:
        super().__init__(
            atoms, timestep, temperature_K=temperature_K, pressure_au=pressure_au, tdamp=tdamp, pdamp=pdamp
        )
        self._num_atoms_global = degrees_of_freedom / 3
        self._thermostat = _thermostat(self.masses, temperature_K, tdamp, degrees_of_freedom)
        self._barostat = IsotropicMTKBarostat(
            num_atoms_global=degrees_of_freedom / 3,  # type: ignore[arg-type]
            temperature_K=temperature_K,
            pdamp=pdamp,
        )

    def state(self) -> dict[str, Any]:
        """Both chains and the cell's momentum as JSON values; the cell is that of the atoms."""
        chain = {"xi": self._barostat._xi.tolist(), "p_xi": self._barostat._p_xi.tolist()}
        return {**_chain(self._thermostat), **chain, "p_eps": float(self._p_eps)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` gave."""
        _set_chain(self._thermostat, state)
        self._barostat._xi = np.array(state["xi"])
        self._barostat._p_xi = np.array(state["p_xi"])
        self._p_eps = state["p_eps"]


def _thermostat(
    masses: np.ndarray, temperature_K: float, tdamp: float, degrees_of_freedom: int
) -> NoseHooverChainThermostat:
    return NoseHooverChainThermostat(
        num_atoms_global=degrees_of_freedom / 3,  # type: ignore[arg-type]
        masses=masses,
        temperature_K=temperature_K,
        tdamp=tdamp,
    )


def _chain(thermostat: NoseHooverChainThermostat) -> dict[str, Any]:
    return {"eta": thermostat._eta.tolist(), "p_eta": thermostat._p_eta.tolist()}


def _set_chain(thermostat: NoseHooverChainThermostat, state: dict[str, Any]) -> None:
    thermostat._eta = np.array(state["eta"])
    thermostat._p_eta = np.array(state["p_eta"])
