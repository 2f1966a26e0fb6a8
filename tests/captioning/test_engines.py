"""Engines by name."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from captioning.engines import load_engine
from captioning.engines.pixels import PixelsEngine
from lattec_jax.errors import ConfigError


def test_an_engine_is_found_by_its_name():
    assert isinstance(load_engine(ConfigDict({"descriptions": {"engine": "pixels"}})), PixelsEngine)


def test_an_unknown_engine_gets_a_proposal():
    with pytest.raises(ConfigError, match=r"no engine 'pixel'.*Did you mean 'pixels'"):
        load_engine(ConfigDict({"descriptions": {"engine": "pixel"}}))
