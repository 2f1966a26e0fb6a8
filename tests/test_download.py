"""The command `download`: every set's archive becomes the tree that its reader expects."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from lattec_jax import download
from lattec_jax.data import datasets
from lattec_jax.data.downloads import fetch as fetch_module
from lattec_jax.data.downloads.sources import SOURCES, Source
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import ConfigError, DataError
from tests.data.downloads.server import Server, serving
from tests.data.public_sets import SETS, content, make_tree

WITH_ARCHIVE = sorted(name for name, source in SOURCES.items() if source.archive is not None)


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(fetch_module, "_WAIT_S", 0.0)
    return tmp_path / "data"


def packed(name: str, root: Path) -> bytes:
    """The images of a small copy in an archive of the public one's layout."""
    archive, output = SOURCES[name].archive, io.BytesIO()
    folder = root / SETS[name].images
    if archive.file.name.endswith(".zip") and not archive.inner:
        with zipfile.ZipFile(output, "w") as target:
            for path in sorted(folder.rglob("*")):
                target.write(path, f"{archive.folder}/{path.relative_to(folder)}")
        return output.getvalue()
    with tarfile.open(fileobj=output, mode="w:gz") as target:
        target.add(folder, archive.folder)
        for file in archive.files:
            target.add(root / file, f"{Path(archive.folder).parent}/{file}")
    if not archive.inner:
        return output.getvalue()
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as target:
        target.writestr(archive.inner, output.getvalue())
    return outer.getvalue()


def publish(name: str, server: Server, place: Path, monkeypatch) -> dict[str, tuple[int, bytes]]:
    """Serve a small copy of a set in the place of the public files; return its files."""
    root = make_tree(place / "original", name)
    source = SOURCES[name]
    archive, split = source.archive, source.split
    if archive is not None:
        server.files[f"/{archive.file.name}"] = data = packed(name, root)
        md5 = hashlib.md5(data).hexdigest() if archive.file.md5 else ""
        file = dataclasses.replace(
            archive.file, url=f"{server.url}/{archive.file.name}", md5=md5, size=0
        )
        archive = dataclasses.replace(archive, file=file)
    if split is not None:
        server.files[f"/{split.name}"] = data = (root / SETS[name].split).read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        split = dataclasses.replace(split, url=f"{server.url}/{split.name}", git_blob=blob)
    monkeypatch.setitem(SOURCES, name, Source(archive, split, source.advice))
    return content(root)


def run(name: str, *arguments: str) -> None:
    download.main(["download", f"--config=configs/{name}.py", *arguments])


def files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (_, data) in content(folder).items()}


@pytest.mark.parametrize("name", WITH_ARCHIVE)
def test_a_set_becomes_the_tree_that_its_reader_expects(name, server, data, monkeypatch, capsys):
    expected = publish(name, server, data.parent, monkeypatch)
    run(name)
    root = data / SETS[name].root
    assert files(root) == {path: data for path, (_, data) in expected.items()}
    assert f"the files of {name} are complete in {root}" in capsys.readouterr().out
    assert len(datasets.read(parse(["train", f"--config=configs/{name}.py"])[0]).train.ids) == 12
    before, requests = content(data), list(server.requests)
    run(name)
    assert content(data) == before and server.requests == requests
    assert f"nothing to do: all files of {name} are in" in capsys.readouterr().out


def test_the_published_sums_and_addresses():
    assert set(SOURCES) == set(SETS)
    for name, source in SOURCES.items():
        config = parse(["train", f"--config=configs/{name}.py"])[0].dataset
        assert config.name == name
        assert (source.split is None) == (config.split == "")
        if source.split is not None:
            assert source.split.name == config.split and len(source.split.git_blob) == 40
        if source.archive is None:
            assert "{root}" in source.advice
            continue
        assert source.archive.file.url.startswith("https://")
        assert len(source.archive.file.md5) == (0 if name == "fgvc_aircraft" else 32)
        assert source.archive.folder.endswith(config.images)


@pytest.mark.parametrize("name", ["stanford_cars", "ucf101"])
def test_a_set_without_an_address_says_what_to_do(name, server, data, monkeypatch):
    publish(name, server, data.parent, monkeypatch)
    root = data / SETS[name].root
    with pytest.raises(DataError, match=rf"into {root}\. Found: the files of {name} are not"):
        run(name)
    assert list(files(root)) == [SETS[name].split]


def test_a_wrong_sum_leaves_nothing(server, data, monkeypatch):
    publish("eurosat", server, data.parent, monkeypatch)
    server.files["/EuroSAT.zip"] += b"x"
    with pytest.raises(DataError, match="expected the MD5 sum"):
        run("eurosat")
    assert list(files(data / "eurosat")) == ["split_zhou_EuroSAT.json"]


def test_a_hostile_archive_leaves_nothing_but_itself(server, data, monkeypatch):
    publish("fgvc_aircraft", server, data.parent, monkeypatch)
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w:gz") as archive:
        archive.add(data.parent / "original/fgvc_aircraft", "fgvc-aircraft-2013b/data")
        link = tarfile.TarInfo("fgvc-aircraft-2013b/data/images/x.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    server.files["/fgvc-aircraft-2013b.tar.gz"] = output.getvalue()
    with pytest.raises(DataError, match="which is a link or device"):
        run("fgvc_aircraft")
    assert list(files(data)) == ["fgvc_aircraft/fgvc-aircraft-2013b.tar.gz.part"]


def test_an_archive_that_the_user_has_is_used(server, data, monkeypatch):
    publish("eurosat", server, data.parent, monkeypatch)
    (data / "eurosat").mkdir()
    (data / "eurosat/EuroSAT.zip").write_bytes(server.files.pop("/EuroSAT.zip"))
    run("eurosat")
    assert [path for path, _ in server.requests] == ["/split_zhou_EuroSAT.json"]
    assert (data / "eurosat/EuroSAT.zip").exists()  # it is the user's


def test_lists_of_the_user_are_not_overwritten(server, data, monkeypatch):
    publish("fgvc_aircraft", server, data.parent, monkeypatch)
    (data / "fgvc_aircraft").mkdir()
    (data / "fgvc_aircraft/variants.txt").write_text("mine")
    with pytest.raises(DataError, match=r"variants\.txt is not the file of the archive"):
        run("fgvc_aircraft")
    assert (data / "fgvc_aircraft/variants.txt").read_text() == "mine"
    (data / "fgvc_aircraft/variants.txt").unlink()
    run("fgvc_aircraft")


def test_other_folders_for_images_and_split(server, data, monkeypatch):
    publish("eurosat", server, data.parent, monkeypatch)
    settings = ["--config.dataset.images=a/b", "--config.dataset.split=c/d.json"]
    run("eurosat", *settings)
    assert (data / "eurosat/a/b/Forest").is_dir() and (data / "eurosat/c/d.json").is_file()


def test_a_damaged_split_file_is_named_before_the_archive_is_downloaded(server, data, monkeypatch):
    publish("eurosat", server, data.parent, monkeypatch)
    (data / "eurosat").mkdir()
    (data / "eurosat/split_zhou_EuroSAT.json").write_text("<html>")
    with pytest.raises(
        DataError, match=r"split_zhou_EuroSAT\.json is not the file .* move it away"
    ):
        run("eurosat")
    assert not server.requests


def test_a_split_of_the_user_is_kept(server, data, monkeypatch):
    publish("eurosat", server, data.parent, monkeypatch)
    (data / "eurosat").mkdir()
    own = server.files.pop("/split_zhou_EuroSAT.json") + b"\n"
    (data / "eurosat/mine.json").write_bytes(own)
    run("eurosat", "--config.dataset.split=mine.json")
    assert files(data / "eurosat")["mine.json"] == own
    assert [path for path, _ in server.requests] == ["/EuroSAT.zip"]


def test_an_archive_without_the_images_is_kept(server, data, monkeypatch):
    publish("eurosat", server, data.parent, monkeypatch)
    (data.parent / "original/eurosat/2750/Forest/Forest_1.jpg").unlink()
    server.files["/EuroSAT.zip"] = packed("eurosat", data.parent / "original/eurosat")
    archive = SOURCES["eurosat"].archive
    md5 = hashlib.md5(server.files["/EuroSAT.zip"]).hexdigest()
    file = dataclasses.replace(archive.file, md5=md5)
    source = dataclasses.replace(
        SOURCES["eurosat"], archive=dataclasses.replace(archive, file=file)
    )
    monkeypatch.setitem(SOURCES, "eurosat", source)
    (data / "eurosat").mkdir()
    (data / "eurosat/EuroSAT.zip").write_bytes(server.files["/EuroSAT.zip"])
    with pytest.raises(
        DataError, match=r"(?s)lacks files of the data set\. Found: .*Forest_1\.jpg"
    ):
        run("eurosat")
    assert (data / "eurosat/EuroSAT.zip").exists()


def test_a_dangling_link_in_the_place_of_the_images(server, data, monkeypatch):
    publish("eurosat", server, data.parent, monkeypatch)
    (data / "eurosat").mkdir()
    (data / "eurosat/2750").symlink_to(data / "nowhere")
    with pytest.raises(DataError, match="2750 exists, but is not complete"):
        run("eurosat")
    assert [path for path, _ in server.requests] == ["/split_zhou_EuroSAT.json"]


def test_two_downloads_into_one_folder(server, data, monkeypatch):
    publish("eurosat", server, data.parent, monkeypatch)
    (data / "eurosat").mkdir()
    descriptor = os.open(data / "eurosat", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="another process is downloading into"):
        run("eurosat")
    os.close(descriptor)


def test_what_a_kill_at_the_end_left_is_removed(server, data, monkeypatch):
    publish("eurosat", server, data.parent, monkeypatch)
    run("eurosat")
    (data / "eurosat/EuroSAT.zip.part").write_bytes(b"x")
    (data / "eurosat/.2750.0123456789abcdef.partial").mkdir()
    run("eurosat")
    assert sorted(os.listdir(data / "eurosat")) == ["2750", "split_zhou_EuroSAT.json"]


def test_images_of_the_user_are_not_overwritten(server, data, monkeypatch):
    publish("eurosat", server, data.parent, monkeypatch)
    (data / "eurosat/2750").mkdir(parents=True)
    (data / "eurosat/2750/mine.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"2750 exists, but is not complete: move it away"):
        run("eurosat")
    assert (data / "eurosat/2750/mine.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "arguments",
    [["--config.dataset.kind=tfds"], ["--config.dataset.name=mine"]],
)
def test_another_kind_or_name(data, arguments):
    with pytest.raises(ConfigError, match=r"expected a configuration of one of caltech101, dtd"):
        run("eurosat", *arguments)


def test_without_a_data_directory(monkeypatch):
    monkeypatch.delenv("LATTECLIP_DATA_DIR", raising=False)
    with pytest.raises(DataError, match=r"\$LATTECLIP_DATA_DIR is not set"):
        run("eurosat")


KILLED = """
import dataclasses, sys
from lattec_jax.data.downloads import fetch, sources
from lattec_jax.runtime.cli import command
from lattec_jax import download
fetch._CHUNK = 256
url, md5, blob = sys.argv[1:4]
del sys.argv[1:4]
source = sources.SOURCES["eurosat"]
file = dataclasses.replace(source.archive.file, url=f"{url}/EuroSAT.zip", md5=md5, size=0)
split = dataclasses.replace(source.split, url=f"{url}/{source.split.name}", git_blob=blob)
archive = dataclasses.replace(source.archive, file=file)
sources.SOURCES["eurosat"] = dataclasses.replace(source, archive=archive, split=split)
command(download.main)
"""


@pytest.mark.full
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_any_moment_the_same_command_goes_on(server, data, monkeypatch, kind):
    expected = publish("eurosat", server, data.parent, monkeypatch)
    source = SOURCES["eurosat"]
    command = [sys.executable, "-c", KILLED, server.url, source.archive.file.md5]
    command += [source.split.git_blob, "--config=configs/eurosat.py"]
    rc, wait = 1, 0.3
    kills = 0
    while rc:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(kind)
            kills += 1
        rc = process.wait()
        root = data / "eurosat"
        if (root / "2750").exists():  # complete as soon as it is there
            images = {f"2750/{name}" for name in files(root / "2750")}
            assert images == {name for name in expected if name.startswith("2750/")}
        wait += 0.01
    assert kills > 5
    assert files(data / "eurosat") == {path: data for path, (_, data) in expected.items()}
    leftovers = [name for name in os.listdir(data / "eurosat") if name.startswith(".")]
    assert leftovers == []


def test_the_table_of_the_documents():
    """docs/reproducing.md lists address, size, sum and folder of each archive."""
    text = (Path(__file__).parent.parent / "docs/reproducing.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert sorted(rows) == WITH_ARCHIVE
    for name, row in rows.items():
        archive = SOURCES[name].archive
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        file, inner = archive.file, f"`{archive.inner}`: " if archive.inner else ""
        assert cells[1:] == [
            f"[{file.name}]({file.url})",
            f"{file.size:,}" if file.size else "not known",
            f"`{file.md5}`" if file.md5 else "not published",
            f"{inner}`{archive.folder}/`",
        ]
