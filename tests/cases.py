"""Which cases of a parametrization every run takes, and which .ci/run alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def exhaustive(cases: Iterable[Any]) -> list[Any]:
    """The cases of one argument, each marked to run in .ci/run alone."""
    return [pytest.param(case, marks=pytest.mark.exhaustive) for case in cases]


def quick(cases: Iterable[Any], *chosen: Any) -> list[Any]:
    """All cases of one argument in their order, those that are not chosen marked to run in .ci/run alone."""
    cases = list(cases)
    assert all(case in cases for case in chosen), f"{chosen} must be among {cases}"
    return [case if case in chosen else exhaustive([case])[0] for case in cases]


def quick_rows(rows: Iterable[tuple[Any, ...]], *chosen: tuple[Any, ...]) -> list[Any]:
    """As `quick`, of several arguments at once."""
    rows = list(rows)
    assert all(row in rows for row in chosen), f"{chosen} must be among {rows}"
    return [row if row in chosen else pytest.param(*row, marks=pytest.mark.exhaustive) for row in rows]
