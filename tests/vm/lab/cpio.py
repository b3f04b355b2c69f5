# SPDX-License-Identifier: Apache-2.0
"""A writer of initramfs archives: cpio's "newc" format, compressed with gzip.

Each member is the magic 070701, thirteen fields of eight hexadecimal digits, the name with a NUL, the data; name and
data are each padded to four bytes. The member `TRAILER!!!` ends the archive. Everything belongs to root and has no
date, so equal contents make equal archives. The format is in Linux's `driver-api/early-userspace/buffer-format.rst`.
"""

from __future__ import annotations

import gzip
import stat


class Archive:
    """Members are added in order; a folder comes before what it holds."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self.folder(name.rpartition("/")[0])
        self._add(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        self.folder(name.rpartition("/")[0])
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def folder(self, name: str) -> None:
        """Add the folder and those above it, unless they are there."""
        if name and name not in self._names:
            self.folder(name.rpartition("/")[0])
            self._add(name, stat.S_IFDIR | 0o755, b"")

    def character_device(self, name: str, major: int, minor: int) -> None:
        self.folder(name.rpartition("/")[0])
        self._add(name, stat.S_IFCHR | 0o600, b"", (major, minor))

    def packed(self) -> bytes:
        """The whole archive; level 1, because the guest's time to unpack hardly depends on it."""
        self._add("TRAILER!!!", 0, b"")
        return gzip.compress(b"".join(self._parts), compresslevel=1, mtime=0)

    def _add(self, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._names.add(name)
        encoded = name.encode() + b"\0"
        inode = len(self._names)
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts.append(_padded(header + encoded) + _padded(data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
