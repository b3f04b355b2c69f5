# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line, as far as it concerns a network device: options apart, nothing judged.

    -chardev socket,id=C,path=P  ◄── -netdev vhost-user,id=N,chardev=C,queues=Q  ◄── -device virtio-net-pci,netdev=N,…
    -object memory-backend-memfd,id=M,share=on  ◄── -machine …,memory-backend=M   or   -numa node,memdev=M

A value is `key=value,…` with a comma written twice where it belongs to the value, or a JSON object (libvirt writes
those). A word without "=" is the key that the option implies, or a flag that is on. The same option may come twice.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

DIGITS = 9  # of numbers that mean something here
RX_QUEUE_SIZE = 256  # what a virtio-net device has if nobody says
IMPLIED = {
    "-chardev": "type",
    "-netdev": "type",
    "-device": "driver",
    "-object": "qom-type",
    "-machine": "type",
    "-smp": "cpus",
    "-name": "guest",
    "-numa": "type",
}
ALIASES = {"-M": "-machine"}
# Backends of guest memory: whether it is shared if nobody says.
BACKENDS = {
    "memory-backend-memfd": True,
    "memory-backend-shm": True,
    "memory-backend-file": False,
    "memory-backend-ram": False,
}
Options = Mapping[str, str]


@dataclass
class CommandLine:
    """What was said, by id where things have one."""

    name: str = ""
    vcpus: int = 1
    shared: bool = False
    passthrough: bool = False
    chardevs: dict[str, Options] = field(default_factory=dict)
    netdevs: dict[str, Options] = field(default_factory=dict)
    devices: list[Options] = field(default_factory=list)  # virtio network devices


def is_program(word: str) -> bool:
    """Whether the first word of a command line is QEMU."""
    return re.fullmatch(r"qemu-(?:system-\w+|kvm)|kvm", os.path.basename(word)) is not None


def is_on(value: str) -> bool:
    return value.lower() in ("on", "true", "yes", "y", "1")


def number(value: str | None) -> int | None:
    return int(value) if value is not None and value.isdecimal() and len(value) <= DIGITS else None


def read(words: list[str]) -> CommandLine:
    """The command line behind the program's name."""
    options = [
        (name, parse(value, IMPLIED.get(name, "")))
        for word, value in pairwise(words)
        if word.startswith("-")
        and (name := ALIASES.get(word, "-" + word.lstrip("-"))) in IMPLIED
        and not value.startswith("-")
    ]

    def named(option: str) -> list[Options]:
        return [found for name, found in options if name == option]

    devices = named("-device")
    return CommandLine(
        name=next((one.get("guest", "") for one in named("-name")), ""),
        vcpus=_vcpus(named("-smp")),
        shared=_shared(named("-object"), [*named("-machine"), *named("-numa")]),
        passthrough=any(one.get("driver", "").startswith("vfio-pci") for one in devices),
        chardevs={one.get("id", ""): one for one in named("-chardev")},
        netdevs={one.get("id", ""): one for one in named("-netdev")},
        devices=[one for one in devices if one.get("driver", "").startswith("virtio-net")],
    )


def parse(value: str, implied: str) -> Options:
    """One option's value as keys and values, all text."""
    if value.startswith("{"):
        try:
            return dict(_flat("", json.loads(value)))
        except (ValueError, RecursionError):  # any process may call itself QEMU and say anything
            return {}
    found: dict[str, str] = {}
    for place, part in enumerate(re.split(r"(?<!,),(?!,)", value)):
        key, equals, said = part.replace(",,", ",").partition("=")
        if equals:
            found[key] = said
        elif place == 0:
            found[implied] = key
        else:
            found[key] = "on"
    return found


def _flat(prefix: str, value: object) -> list[tuple[str, str]]:
    """A JSON object as QEMU's dotted keys; a socket's `addr.path` also as `path`, as in the other form."""
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(f"{prefix}.{key}".lstrip("."), inner)]
    if isinstance(value, list):
        return []
    said = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return [(prefix, said), *([("path", said)] if prefix.endswith("addr.path") else [])]


def _vcpus(smp: list[Options]) -> int:
    said = smp[-1] if smp else {}
    parts = (number(said.get(key)) or 1 for key in ("sockets", "dies", "clusters", "cores", "threads"))
    return number(said.get("cpus")) or prod(parts)


def _shared(objects: list[Options], users: list[Options]) -> bool:
    """Whether all of guest memory is shared. Memory that no object describes is QEMU's own."""
    backends = {one.get("id", ""): one for one in objects if one.get("qom-type") in BACKENDS}
    used = {one.get("memory-backend") or one.get("memdev") or "" for one in users} - {""}
    return bool(used) and all(_is_shared(backends.get(name, {})) for name in used)


def _is_shared(backend: Options) -> bool:
    kind = backend.get("qom-type", "")
    return is_on(backend["share"]) if "share" in backend else BACKENDS.get(kind, False)
