"""Entry points set what a process needs before its libraries are loaded."""

from __future__ import annotations

import os

import pytest

from merge import entry


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_asleep_unless_the_user_wants_them_awake(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", before or "")
    if before is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    seen: list[str | None] = []
    monkeypatch.setattr(entry, "_run", lambda *_: seen.append(os.environ.get("OMP_WAIT_POLICY")))
    entry.merge_models()
    assert seen == [after]
