"""A peptide by a network in water by a force field: how it is solvated, run and looked at (``docs/ml_mm.md``)."""
