"""A test of made-up inputs in each tier: few by default, a tenth with `full`, all with `soak`."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

FRACTIONS = {"default": 0.01, "full": 0.1, "soak": 1.0}
TIERS = ["default", pytest.param("full", marks=pytest.mark.full)]
TIERS.append(pytest.param("soak", marks=pytest.mark.soak))


def inputs(count: int, *strategies: SearchStrategy) -> Callable[[Callable], Callable]:
    """Decorate a test with Hypothesis's `given`, the same inputs in every run.

    Args:
        count: how many inputs the tier soak has.
        strategies: of the last parameters; those before are fixtures.
    """

    def decorate(test: Callable) -> Callable:
        fixtures = list(inspect.signature(test).parameters)[: -len(strategies)]

        @pytest.mark.parametrize("tier", TIERS)
        def run(tier: str, request: pytest.FixtureRequest) -> None:
            few = settings(
                max_examples=round(count * FRACTIONS[tier]),
                deadline=None,
                suppress_health_check=list(HealthCheck),
                derandomize=True,
            )
            values = {name: request.getfixturevalue(name) for name in fixtures}
            few(given(*strategies)(test))(**values)

        run.__doc__ = test.__doc__
        return run

    return decorate
