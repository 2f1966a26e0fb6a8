"""Unpacking: one folder of an archive, and nothing of a hostile or damaged one."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lattec_jax.data.downloads.archives import unpack
from lattec_jax.data.downloads.sources import Archive, RemoteFile
from lattec_jax.runtime.errors import DataError


def archive(folder: str = "top/images", inner: str = "", files: tuple[str, ...] = ()) -> Archive:
    return Archive(RemoteFile("https://example.org/a"), folder, inner, files)


def tar(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w:gz") as content:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                content.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o4777
            content.addfile(info, io.BytesIO(data))
    return output.getvalue()


def zipped(*members: tuple[str, bytes] | tuple[zipfile.ZipInfo, bytes]) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as content:
        for name, data in members:
            content.writestr(name, data)
    return output.getvalue()


def spoiled(compression: int) -> bytes:
    """A zip whose compressed data are damaged."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", compression) as content:
        content.writestr("top/images/1.jpg", bytes(range(256)) * 40)
    data = bytearray(output.getvalue())
    data[60:90] = b"\xff" * 30
    return bytes(data)


def special(kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo("top/images/x.jpg")
    info.type, info.linkname = kind, link
    return info


def zip_link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("top/images/x.jpg")
    info.external_attr = 0o120777 << 16
    return info


GOOD = [
    ("top/images/a/1.jpg", b"1"),
    ("top/images/2.jpg", b"22"),
    ("top/readme", b"no"),
    ("top/list", b"333"),
]


@pytest.mark.parametrize(
    ("content", "inner"),
    [
        (tar(*GOOD), ""),
        (zipped(*GOOD), ""),
        (zipped(("in/side.tar.gz", tar(*GOOD)), ("other", b"3")), "in/side.tar.gz"),
    ],
    ids=["tar", "zip", "tar in zip"],
)
def test_only_the_folder_and_the_files_are_written(tmp_path, content, inner):
    (tmp_path / "a").write_bytes(content)
    unpack(archive(inner=inner, files=("list",)), tmp_path / "a", tmp_path / "new")
    found = {
        path.relative_to(tmp_path / "new").as_posix(): path.read_bytes()
        for path in (tmp_path / "new").rglob("*")
        if path.is_file()
    }
    assert found == {"images/a/1.jpg": b"1", "images/2.jpg": b"22", "files/list": b"333"}
    assert not (tmp_path / "new/images/2.jpg").stat().st_mode & 0o7111


HOSTILE = {
    "parent": tar(GOOD[0], ("top/images/../../../evil", b"x")),
    "parent elsewhere": tar(GOOD[0], ("other/../../evil", b"x")),
    "absolute": tar(("/tmp/evil", b"x")),
    "symbolic link": tar(special(tarfile.SYMTYPE, "/etc/passwd")),
    "hard link": tar(special(tarfile.LNKTYPE, "/etc/passwd")),
    "device": tar(special(tarfile.CHRTYPE)),
    "pipe": tar(special(tarfile.FIFOTYPE)),
    "twice": tar(GOOD[0], GOOD[0]),
    "file and folder": tar(("top/images/a", b"x"), GOOD[0]),
    "file and folder below": tar(("top/images/a", b"x"), ("top/images/a/b/1.jpg", b"x")),
    "long name": tar(("top/images/" + "x" * 300, b"x")),
    "bomb": tar(("top/images/1.jpg", bytes(2**24))),
    "zip parent": zipped(("top/images/../../../evil", b"x")),
    "zip absolute": zipped(("/evil", b"x")),
    "zip backslash": zipped(("top\\..\\..\\evil", b"x")),
    "zip link": zipped((zip_link(), b"/etc/passwd")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder/a"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(DataError, match="expected files and folders below its own tree"):
        unpack(archive(), path, tmp_path / "folder/new")
    assert not list(tmp_path.rglob("*evil*")) and not Path("/tmp/evil").exists()
    assert not any(found.is_symlink() for found in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "content",
    [
        tar(*GOOD)[:-20],
        tar(*GOOD)[:-8] + bytes(8),
        zipped(*GOOD)[:-20],
        zipped(*GOOD)[:40] + zipped(*GOOD)[60:],
        spoiled(zipfile.ZIP_LZMA),
        spoiled(zipfile.ZIP_BZIP2),
        b"",
        b"<html>",
    ],
    ids=["tar", "tar with another sum", "zip", "zip gap", "lzma", "bzip2", "empty", "web page"],
)
def test_a_damaged_archive(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        unpack(archive(), tmp_path / "a", tmp_path / "new")


@pytest.mark.parametrize(
    ("content", "inner"),
    [(tar(*GOOD), ""), (zipped(*GOOD), ""), (zipped(*GOOD), "no.tar.gz")],
)
def test_an_archive_without_the_folder(tmp_path, content, inner):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match="has no 2750/, list; delete it"):
        unpack(archive("2750", inner, ("list",)), tmp_path / "a", tmp_path / "new")


def test_progress_is_that_of_the_archive(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lattec_jax.runtime.progress.INTERVAL", 0.0)
    noise = np.random.default_rng(0).bytes(1_200_000)
    members = [(f"top/images/{n}.jpg", noise) for n in range(4)]
    for number, content in enumerate((tar(*members), zipped(*members))):
        (tmp_path / "a").write_bytes(content)
        unpack(archive(), tmp_path / "a", tmp_path / f"new{number}")
        assert "unpacking a: 3/4 MBs" in capsys.readouterr().err
