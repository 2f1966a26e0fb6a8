"""Downloads: resumed, checked, and given up with a message that says how to go on."""

from __future__ import annotations

import gc
import hashlib
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from lattec_jax.data.downloads import fetch as fetch_module
from lattec_jax.data.downloads.fetch import fetch
from lattec_jax.data.downloads.sources import RemoteFile
from lattec_jax.runtime.errors import DataError
from tests.data.downloads.server import serving

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch_module, "_WAIT_S", 0.0)
    with serving() as server:
        server.files["/a.zip"] = CONTENT
        yield server


def remote(server, **checks) -> RemoteFile:
    return RemoteFile(f"{server.url}/a.zip", **(checks or {"md5": MD5}))


def test_a_file_is_downloaded_once(server, tmp_path):
    path = fetch(remote(server), tmp_path)
    assert path == tmp_path / "a.zip.part" and path.read_bytes() == CONTENT
    assert fetch(remote(server, md5=MD5, size=len(CONTENT)), tmp_path) == path
    assert len(server.requests) == 1 and list(tmp_path.iterdir()) == [path]


def test_a_copy_of_the_user_is_taken(server, tmp_path):
    (tmp_path / "a.zip").write_bytes(CONTENT)
    assert fetch(remote(server), tmp_path) == tmp_path / "a.zip"
    assert not server.requests


def test_a_dropped_connection_is_taken_up_again(server, tmp_path):
    server.drop_after = [1_000_000, 0, 500_000]
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [
        "",
        "bytes=1000000-",
        "bytes=1000000-",
        "bytes=1500000-",
    ]


def test_an_earlier_download_is_continued(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:2_000_000])
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/a.zip", "bytes=2000000-")]


def test_a_server_without_ranges_sends_the_whole_file_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.zip.part").write_bytes(b"x" * 2_000_000)
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_complete_or_of_another_size(server, tmp_path):
    part = tmp_path / "a.zip.part"
    part.write_bytes(CONTENT)
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    part.write_bytes(CONTENT + b"1234567")
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_server_that_begins_again_and_again_is_given_up(server, tmp_path):
    server.ranges, server.drop_after = False, [1_000_000, 2_000_000] * 20
    with pytest.raises(DataError, match="cannot be downloaded"):
        fetch(remote(server), tmp_path)
    assert len(server.requests) == 5


@pytest.mark.parametrize("known", [True, False])
def test_a_login_page_does_not_destroy_what_has_arrived(server, tmp_path, known):
    server.ranges, server.files["/a.zip"] = False, b"<html>please log in</html>"
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:2_000_000])
    size = {"size": len(CONTENT)} if known else {}
    with pytest.raises(DataError, match=r"the server has 26; is it another file, or a login page"):
        fetch(remote(server, md5=MD5, **size), tmp_path)
    assert (tmp_path / "a.zip.part").read_bytes() == CONTENT[:2_000_000]


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Content-Range": "bytes 0-9/3000000"}, "sent bytes from 0, not 2000000"),
        ({"Content-Range": "bytes 5-9/3000000"}, "sent bytes from 5, not 2000000"),
        ({"Content-Range": "none"}, "the server sent the range 'none'"),
        ({"Content-Range": "bytes \u00b2-9/3000000"}, "the server sent the range"),
    ],
)
def test_a_range_that_was_not_asked_for(server, tmp_path, headers, message):
    server.headers = headers
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:2_000_000])
    with pytest.raises(DataError, match=message):
        fetch(remote(server), tmp_path)


def test_a_part_of_the_range_is_continued(server, tmp_path):
    server.most = 700_000
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:1_000_000])
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [
        "bytes=1000000-",
        "bytes=1700000-",
        "bytes=2400000-",
    ]


@pytest.mark.parametrize("length", [None, "8000", "\u00b2", "9" * 5000])
def test_a_body_of_another_length(server, tmp_path, length, monkeypatch):
    monkeypatch.setattr(fetch_module, "_MAX_BYTES", 2_000_000)
    server.headers = {"Content-Length": length}
    size = {"size": 8000} if length == "8000" else {}
    if length == "8000":  # the client reads no more than was announced
        with pytest.raises(DataError, match="expected the MD5 sum"):
            fetch(remote(server, md5=MD5, **size), tmp_path)
        return
    with pytest.raises(DataError, match=r"sends more than 2,000,000 bytes"):
        fetch(remote(server), tmp_path)


def test_a_redirect_to_nonsense(server, tmp_path):
    for place in ("http://[/", "http://..x/", "file:///etc/passwd"):
        server.redirect = place
        with pytest.raises(DataError, match="cannot be downloaded"):
            fetch(remote(server), tmp_path)
    # urllib does not close an answer that it cannot follow.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_links_and_folders_in_its_place(server, tmp_path):
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "a.zip.part").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"a\.zip\.part"):
        fetch(remote(server), tmp_path)
    assert (tmp_path / "precious").read_bytes() == b"mine"
    (tmp_path / "a.zip").mkdir()
    with pytest.raises(DataError, match=r"a\.zip is a folder"):
        fetch(remote(server), tmp_path)


def test_what_arrived_is_kept_when_the_server_is_given_up(server, tmp_path):
    server.drop_after = [1_000_000, *[0] * 20]
    with pytest.raises(DataError, match=r"1,000,000 bytes are kept in .*a\.zip\.part") as error:
        fetch(remote(server), tmp_path)
    assert f"copy it to {tmp_path / 'a.zip'}" in str(error.value)
    server.drop_after = []
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=1000000-"


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 4), (429, 4)])
def test_a_refusal_is_final_and_a_busy_server_is_asked_again(server, tmp_path, status, requests):
    server.status = status
    with pytest.raises(DataError, match=f"cannot be downloaded.*{status}"):
        fetch(remote(server), tmp_path)
    assert len(server.requests) == requests


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "_WAIT_S", 0.0)
    with pytest.raises(DataError, match=r"cannot be downloaded .*Connection refused"):
        fetch(RemoteFile("http://127.0.0.1:9/a.zip", md5=MD5), tmp_path)


@pytest.mark.parametrize("checks", [{"md5": "0" * 32}, {"git_blob": "0" * 40}])
def test_another_content_is_refused_and_deleted(server, tmp_path, checks):
    with pytest.raises(DataError, match=r"expected the .* 0{32,40}, found \w+ \(3,000,000 bytes\)"):
        fetch(remote(server, **checks), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_user_with_another_content_is_kept(server, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"delete .*a\.zip to download it again"):
        fetch(remote(server), tmp_path)
    assert (tmp_path / "a.zip").read_bytes() == b"mine" and not server.requests


def test_the_name_that_git_gives_a_content(server, tmp_path):
    # printf 'hello\n' | git hash-object --stdin
    server.files["/a.zip"] = b"hello\n"
    found = fetch(remote(server, git_blob="ce013625030ba8dba906f756967f9e9ca394464a"), tmp_path)
    assert found.read_bytes() == b"hello\n"


def test_a_disk_that_is_too_small(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5_000_000))
    with pytest.raises(DataError, match=r"need 6 MB more in .*5 MB are free.*\$LATTECLIP_DATA_DIR"):
        fetch(remote(server), tmp_path)


def test_progress_is_shown_in_megabytes(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lattec_jax.runtime.progress.INTERVAL", 0.0)
    fetch(remote(server), tmp_path)
    error = capsys.readouterr().err
    assert "downloading a.zip: 3/3 MBs" in error and "checking a.zip.part: 3/3 MBs" in error
