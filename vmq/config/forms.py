# SPDX-License-Identifier: Apache-2.0
"""What TOML cannot say directly: one function a form, from what is written to what the record holds.

A function raises ValueError with the words for what is wrong; the reader adds the place and the remedy. A
value of a type that is not its business it hands on: the record's own type and range judge it.

`cpu_list`, `mac_bytes` and `mac_prefix` are also for those who use a record: its texts are canonical, and
these give the numbers behind them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

CPU_MAX = 8191  # the kernel's NR_CPUS is at most 8192; a list that goes on is a slip of the pen
MAC = re.compile(r"[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}")
DEVICE = re.compile(
    r"[^\s/:%]{1,15}"
)  # netdevice(7): IFNAMSIZ is 16 with its NUL; % is a pattern for the kernel
CODE = re.compile(r"D(?:0[1-9]|[12][0-9]|3[0-4])")  # of a rule of vmq doctor
QEMU_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,126}")
ACCEPTABLE = ("broadcast", "multicast", "unknown")
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def shown(value: object) -> str:
    """A value about as the file has it, short enough for one line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def cpu_list(text: str) -> tuple[int, ...]:
    """The kernel's list format, "0-3,8", as ascending numbers."""
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,5})(?:-([0-9]{1,5}))?\s*", part)
        if match is None:
            raise ValueError(f"{shown(text)} is not a list of processors")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > CPU_MAX:
            raise ValueError(f"{shown(part.strip())} is not a range of processors")
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def cpu_text(processors: Iterable[int]) -> str:
    """Numbers in the kernel's list format, the opposite of `cpu_list`."""
    numbers = sorted(set(processors))
    starts = numbers[:1] + [after for before, after in pairwise(numbers) if after != before + 1]
    ends = [before for before, after in pairwise(numbers) if after != before + 1] + numbers[-1:]
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def mac_bytes(text: str) -> bytes:
    """A unicast address, "52:54:00:00:00:01", as its six bytes."""
    if not MAC.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a MAC address")
    address = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if address[0] & 1:
        raise ValueError(f"{shown(text)} is a multicast address, which no VM can own")
    return address


def mac_prefix(text: str) -> tuple[bytes, int]:
    """A prefix of unicast addresses, "0e:fc:00:00:00:00/24", as its six bytes and its length in bits."""
    head, slash, tail = text.partition("/")
    if not slash or not MAC.fullmatch(head) or not re.fullmatch(r"[0-9]{1,2}", tail):
        raise ValueError(f"{shown(text)} is not a prefix of MAC addresses")
    address, length = mac_bytes(head), int(tail)
    if not 1 <= length <= 48:
        raise ValueError(f"{shown(text)} has a length that is not from 1 to 48")
    if int.from_bytes(address) & ((1 << (48 - length)) - 1):
        raise ValueError(f"{shown(text)} has bits set behind its first {length}")
    return address, length


def _mac(text: str) -> str:
    address = mac_bytes(text)
    if not any(address):
        raise ValueError(f"{shown(text)} is the zero address, which no VM can own")
    return address.hex(":")


def _prefix(text: str) -> str:
    address, length = mac_prefix(text)
    return f"{address.hex(':')}/{length}"


def _code(text: str) -> str:
    if not CODE.fullmatch(text.upper()):
        raise ValueError(f"{shown(text)} is not a code from D01 to D34")
    return text.upper()


def _kind(text: str) -> str:
    if text not in ACCEPTABLE:
        raise ValueError(f"{shown(text)} is not one of {', '.join(ACCEPTABLE)}")
    return text


def _accept(value: object) -> object:
    """In one order: two ways to write it plan no change."""
    read = _each(value, _kind)
    return tuple(sorted(read)) if isinstance(read, tuple) else read


def _each(value: object, read: Callable[[str], str]) -> object:
    """One text, or a list of texts, read one by one; none may be there twice."""
    written = value if isinstance(value, list) else [value]
    texts = [text for text in written if isinstance(text, str)]
    if len(texts) != len(written):
        return value
    entries = tuple(read(text) for text in texts)
    twice = next((entry for entry in entries if entries.count(entry) > 1), None)
    if twice is not None:
        raise ValueError(f"{shown(twice)} is there twice")
    return entries


def _processors(value: object) -> object:
    if isinstance(value, str):
        return cpu_list(value)
    raise ValueError(f"{shown(value)} is not a text")


def _device(value: object) -> object:
    if isinstance(value, str) and (not DEVICE.fullmatch(value) or value in (".", "..")):
        raise ValueError(f"{shown(value)} cannot be the name of a network device")
    return value


def _qmp_nic(value: object) -> object:
    if isinstance(value, str) and not QEMU_ID.fullmatch(value):
        raise ValueError(f"{shown(value)} cannot be the id of a device in QEMU")
    return value


def _repeat(value: object) -> object:
    if isinstance(value, bool):
        return 0 if value else 1
    if value == 0:
        raise ValueError("0 would replay nothing")
    return value


def _rate(value: object) -> object:
    match = re.fullmatch(r"([0-9]{1,12})([kMG]?)", value) if isinstance(value, str) else None
    return int(match[1]) * UNITS[match[2]] if match else value


# key → (how it is read, what the JSON Schema says of it instead of the record's type)
FORMS: dict[str, tuple[Callable[[Any], object], dict[str, object]]] = {
    "processors": (_processors, {"type": "string", "pattern": "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"}),
    "mac": (lambda value: _each(value, _mac), {"type": ["string", "array"], "items": {"type": "string"}}),
    "learn": (
        lambda value: _each(value, _prefix),
        {"type": ["string", "array"], "items": {"type": "string"}},
    ),
    "ignore": (lambda value: _each(value, _code), {"type": ["string", "array"], "items": {"type": "string"}}),
    "accept": (_accept, {"type": ["string", "array"], "items": {"type": "string", "enum": list(ACCEPTABLE)}}),
    "device": (_device, {"type": "string"}),
    "bridge": (_device, {"type": "string"}),
    "qmp_nic": (_qmp_nic, {"type": "string"}),
    "repeat": (_repeat, {"type": ["integer", "boolean"], "minimum": 1}),
    "rate": (_rate, {"type": ["integer", "string"], "minimum": 1, "pattern": "^[0-9]+[kMG]?$"}),
}
