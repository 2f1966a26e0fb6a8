"""Which files a folder or a pattern stands for."""

from __future__ import annotations

from lattec_jax.data.images.sources import files_at, is_collection


def test_hidden_folders_are_skipped_and_the_home_directory_is_found(tmp_path, monkeypatch):
    for name in ("photos/a.jpg", "photos/b/c.png", "photos/notes.txt", "photos/.git/objects/ab"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_collection("~/photos") and not is_collection("~/none")
    images = files_at("~/photos")
    assert images == [tmp_path / "photos/a.jpg", tmp_path / "photos/b/c.png"]
    assert files_at("~/photos/*.jpg") == [tmp_path / "photos/a.jpg"]
