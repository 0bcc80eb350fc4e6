"""Which cases of a battery are quick, and which are for `make check` alone."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def quick_on(quick: Container[Any], values: Iterable[Any]) -> list[Any]:
    """Return the values as test parameters, of which all but the quick ones carry the marker slow."""
    return [pytest.param(value, marks=() if value in quick else pytest.mark.slow) for value in values]
