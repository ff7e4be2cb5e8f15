"""Parameters of tests that would take long in every combination."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def covering(*choices: Sequence[Any]) -> list[Any]:
    """All combinations for pytest.mark.parametrize; marked long but for a few, which hold each choice at least once."""
    most = max(map(len, choices))
    always = [tuple(one[index % len(one)] for one in choices) for index in range(most)]
    return [
        combination if combination in always else pytest.param(*combination, marks=pytest.mark.long)
        for combination in itertools.product(*choices)
    ]
