"""The command that labels a system's set goes on where it was stopped, and takes no more than it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read

from egnn_md_systems.labelling import label_set


def test_a_set_is_labelled_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = []

    def structures() -> Iterator[Atoms]:
        for index in range(9):
            drawn.append(index)
            yield Atoms("Cu2", [[0, 0, 0], [2.2 + 0.1 * index, 0, 0]])

    first = label_set("pairs", structures(), tmp_path / "new", "emt", processes=0, limit=2, every=2)
    assert (first.labelled, first.skipped) == (2, 0)
    assert drawn == [0, 1], "the generator is dear: nothing is drawn beyond the limit"
    captured = capsys.readouterr()
    assert "pairs: 2 labelled, 0 failed" in captured.err
    assert captured.out == "pairs: 2 labelled, 0 there already, 0 failed\n"
    label_set("pairs", structures(), tmp_path / "new", "emt", processes=0, limit=5)
    assert capsys.readouterr().out == "pairs: 3 labelled, 2 there already, 0 failed\n"
    frames = read(tmp_path / "new" / "pairs.extxyz", ":")
    np.testing.assert_allclose([atoms.get_distance(0, 1) for atoms in frames], 2.2 + 0.1 * np.arange(5))
