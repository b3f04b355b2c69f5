# SPDX-License-Identifier: Apache-2.0
"""Sockets at paths that the operator chose."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest

from vmq.errors import HostError
from vmq.listener import Listener

WHERE = "vmq.toml: [vm.web] socket"


def test_a_socket_has_its_mode_and_its_directories(tmp_path: Path):
    """design §4: 0660, and the directories it creates."""
    path = tmp_path / "run" / "vmq" / "web.sock"
    with closing(Listener(WHERE, str(path), -1)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.root
def test_socket_and_new_directories_belong_to_the_group(tmp_path: Path):
    """design §4, `group`: directories that were there stay as they are."""
    path = tmp_path / "run" / "vmq" / "web.sock"
    before = tmp_path.stat()
    with closing(Listener(WHERE, str(path), 7)):
        for place in (path, path.parent, path.parent.parent):
            assert place.stat().st_gid == 7
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    assert (tmp_path.stat().st_gid, tmp_path.stat().st_mode) == (before.st_gid, before.st_mode)


def test_a_stale_socket_is_replaced(tmp_path: Path):
    path = str(tmp_path / "web.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert Path(path).exists()
    with closing(Listener(WHERE, path, -1)) as listener:
        assert listener.sock.getsockname() == path
    assert not Path(path).exists()


def test_what_somebody_else_has_bound_since_is_his(tmp_path: Path):
    path = tmp_path / "run" / "web.sock"
    listener = Listener(WHERE, str(path), -1)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listener.close()
        listener.close()
        assert path.exists()


def test_directories_go_with_the_last_socket_in_them(tmp_path: Path):
    """Whoever made them; and one that somebody else uses by then stays."""
    api, web = (
        Listener(WHERE, str(tmp_path / "run" / "vmq" / name), -1) for name in ("api.sock", "web.sock")
    )
    api.close()
    assert web.path.exists()
    web.close()
    assert list(tmp_path.iterdir()) == []
    one = Listener(WHERE, str(tmp_path / "run" / "vmq" / "api.sock"), -1)
    (tmp_path / "run" / "theirs").write_text("")
    one.close()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "run", tmp_path / "run" / "theirs"]
    (tmp_path / "run" / "theirs").unlink()
    Listener(WHERE, str(tmp_path / "x.sock"), -1).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_a_process_without_descriptors_is_told_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("vmq.listener.socket.socket", full)
    with pytest.raises(HostError, match="open files") as refused:
        Listener(WHERE, str(tmp_path / "run" / "web.sock"), -1)
    assert refused.value.remedy == "raise the limit of open files"
    assert list(tmp_path.iterdir()) == []


def test_directories_that_were_made_go_with_the_socket(tmp_path: Path):
    (tmp_path / "here").mkdir()
    Listener(WHERE, str(tmp_path / "here" / "a" / "b" / "web.sock"), -1).close()
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]
    with pytest.raises(HostError):
        Listener(WHERE, str(tmp_path / "new" / ("x" * 120)), -1)
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_in_use_is_left_alone(tmp_path: Path, kind: socket.SocketKind):
    path = str(tmp_path / "web.sock")
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(path)
        if kind != socket.SOCK_DGRAM:
            other.listen(1)
        with pytest.raises(HostError, match="in use by another process"):
            Listener(WHERE, path, -1)
        assert Path(path).exists()


def test_a_busy_listener_is_not_taken_for_a_dead_one(tmp_path: Path):
    """Its backlog is full: that is no refusal."""
    path = str(tmp_path / "web.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            with pytest.raises(HostError, match="in use by another process"):
                Listener(WHERE, path, -1)
        assert Path(path).exists()


def test_what_is_no_socket_is_left_alone(tmp_path: Path):
    (tmp_path / "web.sock").write_text("precious")
    with pytest.raises(HostError, match="exists and is no socket"):
        Listener(WHERE, str(tmp_path / "web.sock"), -1)
    assert (tmp_path / "web.sock").read_text() == "precious"


def test_what_cannot_be_made_is_one_line_with_the_remedy(tmp_path: Path):
    """A directory that is a file, a path that is too long."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "web.sock", tmp_path / ("x" * 120)):
        with pytest.raises(HostError) as refused:
            Listener(WHERE, str(path), -1)
        assert str(refused.value).startswith(f"{WHERE}: {path}: ")
        assert "None" not in str(refused.value)
        assert refused.value.remedy


def test_a_socket_that_cannot_be_shared_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing half-started."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("vmq.listener.os.chown", refuse)
    with pytest.raises(HostError, match="not permitted"):
        Listener(WHERE, str(tmp_path / "web.sock"), 7)
    assert list(tmp_path.iterdir()) == []
