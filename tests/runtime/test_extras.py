"""The command that installs what is missing."""

from __future__ import annotations

from lattec_jax.runtime import extras


def test_the_command_depends_on_where_the_package_is(tmp_path, monkeypatch):
    root = extras.ROOT
    monkeypatch.chdir(root)
    assert extras.install_command("convert") == "pip install -e '.[convert]'"
    monkeypatch.chdir(tmp_path)
    assert extras.install_command("convert") == f"pip install -e '{root}[convert]'"
    monkeypatch.setattr(extras, "ROOT", tmp_path)  # as site-packages, without pyproject.toml
    assert extras.install_command("convert") == "pip install 'lattec_jax[convert]'"
