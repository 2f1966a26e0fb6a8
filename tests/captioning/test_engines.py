"""Lookup of engines, and what they report without loading a model."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from captioning.engines import ENGINES, engine_module, pixels
from configs import common
from lattec_jax.runtime.errors import ConfigError


def test_an_engine_is_found_by_its_name():
    assert engine_module(ConfigDict({"descriptions": {"engine": "pixels"}})) is pixels


def test_an_unknown_engine_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"no engine 'pixel'.*Did you mean 'pixels'"):
        engine_module(ConfigDict({"descriptions": {"engine": "pixel"}}))


@pytest.mark.parametrize("name", ENGINES)
def test_identities(name):
    config = common.get_config()
    config.descriptions.engine = name
    config.descriptions.openai.model = "some model"
    module = engine_module(config)
    identity = module.identity(config)
    assert identity.engine == name and identity.model
    assert module.identity(config) == identity
    assert module.processes(config) >= 1


def test_modules_import_nothing_heavy():
    program = (
        "import importlib, sys\n"
        "from captioning import describe, merge\n"
        "from captioning.engines import ENGINES\n"
        "for module in ENGINES.values(): importlib.import_module(module)\n"
        "print({'jax', 'torch', 'transformers', 'openai'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout.strip() == b"set()"
