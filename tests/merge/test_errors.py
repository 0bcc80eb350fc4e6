"""Messages on names that nobody knows."""

from __future__ import annotations

from merge.errors import closest, nearest


def test_a_name_in_other_letters_is_near() -> None:
    """MNLI has no letter of mnli, and is what papers call it; a name of other letters is not near."""
    assert nearest("MNLI", ["sst2", "mnli", "qqp"]) == " Did you mean 'mnli'? Known: mnli, qqp, sst2."
    assert nearest("mnli", ["MNLI"]) == " Did you mean 'MNLI'? Known: MNLI."
    assert closest("PUSH", ["push", "card"]) == " Did you mean 'push'?"
    assert nearest("xyz", ["mnli"]) == " Known: mnli."
    assert closest("xyz", ["push"]) == ""
