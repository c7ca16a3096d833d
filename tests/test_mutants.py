"""The wrong versions of tests/mutants.py still fit the package: a mutant that changes nothing would test nothing."""

from __future__ import annotations

import pytest

from tests.mutants import FILES, MUTANTS, Mutant, fault_of


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_still_applies_to_its_file(mutant):
    assert fault_of(mutant) is None


def test_every_named_file_has_a_mutant_and_no_two_mutants_share_a_name():
    assert {mutant.file for mutant in MUTANTS} == set(FILES)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("a text that no file has", "", "0 times"),
        ("import", "import", "times"),
        ("class AnywhereStop(StopRule):", "class (StopRule):", "no Python"),
    ],
)
def test_a_mutant_that_does_not_fit_is_named(old, new, word):
    assert word in fault_of(Mutant("made up", "anywhere", old, new, ()))
