# SPDX-License-Identifier: Apache-2.0
"""As much of ELF as an image needs: what a kernel module and what a program depends on.

64-bit little-endian files with a section table, which is all that Debian ships for amd64. A module names its
dependencies in the section `.modinfo` (NUL-separated `key=value`), a program its libraries in `.dynamic`
(entries DT_NEEDED, offsets into `.dynstr`) and its loader in `.interp`.
"""

from __future__ import annotations

import struct

MAGIC = b"\x7fELF"
_DT_NEEDED = 1  # Linux, uapi/linux/elf.h
_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr


def sections(data: bytes) -> dict[str, bytes]:
    """Every section's bytes by its name."""
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names_index = struct.unpack_from("<HHH", data, 58)
    headers = [_SECTION.unpack_from(data, table + i * size) for i in range(count)]
    names = data[headers[names_index][4] :]
    return {_text(names, header[0]): data[header[4] : header[4] + header[5]] for header in headers}


def module_dependencies(data: bytes) -> list[str]:
    """The modules that this one needs, as it names them."""
    for entry in sections(data)[".modinfo"].split(b"\0"):
        key, _, value = entry.partition(b"=")
        if key == b"depends":
            return [name for name in value.decode().split(",") if name]
    return []


def libraries(data: bytes) -> list[str]:
    """The shared libraries that a program or library needs, by file name."""
    found = sections(data)
    entries = struct.iter_unpack("<QQ", found.get(".dynamic", b""))
    return [_text(found[".dynstr"], value) for tag, value in entries if tag == _DT_NEEDED]


def loader(data: bytes) -> str:
    """The path of the program's dynamic loader."""
    return sections(data)[".interp"].rstrip(b"\0").decode()


def _text(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode()
