"""The deliberate bugs still fit the package that they are for."""

from __future__ import annotations

from pathlib import Path

import pytest

import tracker
from tests.torture.checker import INVARIANTS
from tests.torture.sabotage import SABOTAGES, sabotaged


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_sabotage_changes_a_copy_and_nothing_else(name: str, tmp_path: Path) -> None:
    copy = sabotaged(name, tmp_path) / "tracker"
    ours = Path(tracker.__file__).parent
    names = {path.relative_to(ours) for path in ours.rglob("*") if "__pycache__" not in path.parts and path.is_file()}
    changed = {str(path) for path in names if (copy / path).read_bytes() != (ours / path).read_bytes()}
    assert changed == {edit.file for edit in SABOTAGES[name].edits}


def test_every_invariant_but_one_has_a_sabotage() -> None:
    """I3 is broken by `double-end`, I5 by `rash-cleanup`, and so on: each turns the checker red."""
    assert {sabotage.breaks for sabotage in SABOTAGES.values()} == {name for name, _ in INVARIANTS} - {"run"}
