"""What the tests of the documents share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

PACKAGES = ("lattec_jax", "captioning", "convert", "configs")


@pytest.fixture
def clone(tmp_path) -> Path:
    """What a reader's clone has: the packages."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    return tmp_path
