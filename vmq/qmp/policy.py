# SPDX-License-Identifier: Apache-2.0
"""Which of the addresses that a guest asks for become receive filters of its VM port; pure.

A guest can list any address, its neighbours' and its gateway's too, so its list is a wish and not an order:

    configured              is a filter anyway
    a group, or zero        refused
    of another VM           refused, whoever has it: configured, learned or followed, first come
    not within `learn`      refused, if there are prefixes; without any, every other address may be added
    beyond `learn_max`      refused: addresses learned and followed together

Its device's own address goes before the table, and addresses that it has go before new ones, so that a longer list takes
nothing away. What leaves the list stops being a filter. QEMU's table holds 64 entries; when it has overflowed it is empty and
says nothing about who left, so nobody does.

Groups and VLANs are not obeyed: groups reach every VM port of the segment, and which VLAN a port is in is the operator's
to say. What the guest expects in vain is a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vmq.abi.ethernet import ETH_ALEN, MAC_GROUP_BIT, mac_number
from vmq.config import Vm
from vmq.config.forms import cpu_text, mac_prefix
from vmq.qmp.lists import RxFilter


class Note(NamedTuple):
    """What the guest expects in vain, and what can be done about it."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What becomes of a list. `followed` (ascending) and `learned` are filters beside those configured."""

    followed: tuple[int, ...] = ()
    learned: tuple[int, ...] = ()  # those learned before that the list does not decide about
    refused: tuple[tuple[int, str], ...] = ()  # address, why
    notes: tuple[Note, ...] = ()


def wanted(
    config: Vm,
    seen: RxFilter,
    *,
    learned: Iterable[int] = (),
    followed: Iterable[int] = (),
    taken: Mapping[int, str] | None = None,
) -> Wanted:
    """Judge what a guest's device was asked for. `taken`: the addresses of other VMs of the segment, and whose."""
    learned, followed = tuple(learned), tuple(followed)
    own = frozenset(map(mac_number, config.mac))
    listed = dict.fromkeys((seen.main, *seen.unicast, *(followed if seen.overflow else ())))
    kept = tuple(mac for mac in learned if mac not in listed)
    room = config.learn_max - len(kept)
    has = frozenset(learned + followed)
    accepted: list[int] = []
    refused: list[tuple[int, str]] = []
    for mac in sorted(listed, key=lambda mac: (mac != seen.main, mac not in has)):
        if mac in own:
            continue
        why = _refusal(config, mac, taken or {})
        if not why and len(accepted) >= room:
            why = f"learn_max is {config.learn_max}"
        if why:
            refused.append((mac, why))
        else:
            accepted.append(mac)
    return Wanted(tuple(sorted(accepted)), kept, tuple(refused), tuple(_notes(config, seen)))


def _refusal(config: Vm, mac: int, taken: Mapping[int, str]) -> str:
    if mac & MAC_GROUP_BIT:
        return "a group address"
    if not mac:
        return "the zero address"
    if mac in taken:
        return f"it is {taken[mac]}'s"
    if config.learn and not any(_within(mac, prefix) for prefix in config.learn):
        return "not within learn"
    return ""


def _within(mac: int, prefix: str) -> bool:
    address, length = mac_prefix(prefix)
    others = 8 * ETH_ALEN - length
    on_the_wire = int.from_bytes(mac.to_bytes(ETH_ALEN, "little"), "big")
    return on_the_wire >> others == int.from_bytes(address, "big") >> others


def _notes(config: Vm, seen: RxFilter) -> Iterator[Note]:
    if seen.everything:
        yield Note(
            "the guest's device is promiscuous, and gets the frames of its addresses alone",
            "for what lies behind a bridge in the guest, list the addresses in mac or give their prefix to learn",
        )
    if seen.overflow:
        yield Note(
            "the guest has more addresses than QEMU's table holds: those that it had stay, new ones are missing",
            "list them in mac, or give their prefix to learn",
        )
    # Whatever its VLANs, Linux adds 0, for priority tags.
    vlans = tuple(vlan for vlan in seen.vlans if vlan not in {0, config.vlan})
    if vlans:
        port = "is in no VLAN" if config.vlan is None else f"is in VLAN {config.vlan}"
        yield Note(
            f"the guest expects frames with the tag of VLAN {cpu_text(vlans)}, and its VM port {port}",
            "give the guest a VM port of its own with vlan set for each VLAN, and no VLAN device",
        )
    if config.vlan is not None and config.vlan in seen.vlans:
        yield Note(
            f"the guest expects the tag of VLAN {config.vlan}, which its VM port takes off",
            "use the network device itself in the guest, without a VLAN device",
        )
