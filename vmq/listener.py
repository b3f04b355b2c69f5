# SPDX-License-Identifier: Apache-2.0
"""A listening UNIX socket at a path that the operator chose, and everything that is made for it.

What was made is removed at the end, and nothing else: a socket file that somebody has bound there since is his, and
directories that were there before stay. Several listeners share directories, so those that this process has made are
remembered together, and go with the last socket in them. A stale file, on which nobody listens, is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from vmq.errors import HostError

SOCKET_MODE = 0o660
DIRECTORY_MODE = 0o750
BACKLOG = 8  # connections that wait to be accepted
MORE_FILES = "raise the limit of open files"
_made: list[Path] = []  # directories that listeners of this process have made, outer ones first


class Listener:
    """`sock` listens at `path`, mode 0660, for `group` (-1: ours); HostError, and nothing is left, when it cannot be."""

    def __init__(self, where: str, path: str, group: int) -> None:
        self.path, self.group = Path(path), group
        kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self.sock = socket.socket(socket.AF_UNIX, kind)
        except OSError as error:
            raise HostError(where, f"{path}: {error.strerror or error}", MORE_FILES) from error
        self._identity: tuple[int, int] | None = None
        try:
            self._make_directory(self.path.parent)
            _clear(where, self.path)
            self.sock.bind(path)
            self._identity = _identity(self.path)
            self._share()
        except OSError as error:
            self.close()
            full = error.errno in {errno.EMFILE, errno.ENFILE}
            remedy = MORE_FILES if full else "choose a path that this user may write"
            raise HostError(where, f"{path}: {error.strerror or error}", remedy) from error
        except HostError:
            self.close()
            raise

    def _make_directory(self, place: Path) -> None:
        """Make a directory and what is missing above it, for the group of the socket."""
        if place.is_dir():
            return
        self._make_directory(place.parent)
        place.mkdir()
        _made.append(place)
        if self.group >= 0:
            os.chown(place, -1, self.group)
            place.chmod(DIRECTORY_MODE)

    def _share(self) -> None:
        """Open the bound socket to its group; nobody can connect before."""
        os.chmod(self.path, SOCKET_MODE)
        if self.group >= 0:
            os.chown(self.path, -1, self.group)
        self.sock.listen(BACKLOG)

    def close(self) -> None:
        """Stop listening, remove what was made. It does not fail; twice is once."""
        self.sock.close()
        with contextlib.suppress(OSError):
            if self._identity is not None and _identity(self.path) == self._identity:
                self.path.unlink()
        self._identity = None
        _remove_directories()


def _remove_directories() -> None:
    """Remove the directories that were made and are empty; the others wait for whoever is still in them."""
    for place in reversed(_made.copy()):
        try:
            place.rmdir()
        except FileNotFoundError:
            _made.remove(place)
        except OSError:
            continue
        else:
            _made.remove(place)


def _identity(place: Path) -> tuple[int, int]:
    about = place.lstat()
    return about.st_dev, about.st_ino


def _clear(where: str, place: Path) -> None:
    """Remove a socket file that nobody listens on. Only a refused connection says so: a busy listener does not."""
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise HostError(where, f"{place} exists and is no socket", "choose another path, or remove it")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with contextlib.closing(probe):
        code = probe.connect_ex(str(place))
    if code in (errno.EACCES, errno.EPERM):
        raise PermissionError(code, os.strerror(code))
    if code != errno.ECONNREFUSED:
        raise HostError(
            where, f"{place} is in use by another process", "stop that process, or choose another path"
        )
    place.unlink()
