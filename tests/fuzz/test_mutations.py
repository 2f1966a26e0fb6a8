"""Reading 20,000 mutated files of all formats: accepted, or a user error.

    python -m pytest -m soak tests/fuzz/test_mutations.py -s -n 0

prints the number of each outcome. The tier `full` reads a tenth of them, the quick tests the valid
file of each format.
"""

from __future__ import annotations

import importlib
import traceback
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings

from lattec_jax.runtime.errors import UserError
from tests.fuzz.mutations import Limits, Target, mutations
from tests.fuzz.tiers import FRACTIONS, TIERS

TOTAL = 20_000
MODULES = ("targets_data", "targets_runs", "targets_weights")


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> dict[str, Target]:
    """All formats by name."""
    found: dict[str, Target] = {}
    for name in MODULES:
        module = importlib.import_module(f"tests.fuzz.{name}")
        found |= module.targets(tmp_path_factory.mktemp(name))
    return found


def outcome(target: Target, path: Path, content: bytes) -> str:
    """Read a file; return "accepted", "clean error", or another exception."""
    path.write_bytes(content)
    limits = Limits()
    try:
        with limits, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about the damage
            target.read(path)
    except UserError as error:
        ending = "clean error" if str(error).strip() else "error without a message"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        ending = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"[:300]
    else:
        ending = "accepted"
    return limits.exceeded or ending


def outcomes(target: Target, directory: Path, count: int) -> Counter[str]:
    """Read `count` mutated files of a format, and count the outcomes."""
    counted: Counter[str] = Counter()
    path = directory / f"changed{target.suffix}"

    @seed(0)
    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(mutations(target.valid))
    def read(content: bytes) -> None:
        counted[outcome(target, path, content)] += 1

    read()
    return counted


@pytest.mark.full
def test_valid_files_are_accepted(targets, tmp_path):
    for name, target in targets.items():
        assert outcome(target, tmp_path / f"valid{target.suffix}", target.valid) == "accepted", name


@pytest.mark.parametrize("tier", TIERS[1:])
def test_changed_files_are_accepted_or_refused(tier, targets, tmp_path):
    each = round(TOTAL * FRACTIONS[tier] / len(targets))
    counts = {name: outcomes(target, tmp_path, each) for name, target in targets.items()}
    # Some changes do no harm, such as one to a pixel. A reader that refuses all sees no change.
    assert tier != "soak" or all(counted["accepted"] for counted in counts.values()), counts
    counts["all"] = total = sum(counts.values(), Counter())
    for name, counted in counts.items():
        print(f"{name:40}", "".join(f"{ending} {n:,}  " for ending, n in sorted(counted.items())))
    assert total.keys() <= {"accepted", "clean error"}, counts
    assert total.total() >= each * len(targets) * 0.9  # Hypothesis leaves out what it repeats
