# SPDX-License-Identifier: Apache-2.0
"""Near misses: frames that a VM nearly got, addresses that nobody has, and senders who use another's.

    wrong_vlan       one of the VM's addresses, in a VLAN that is not the VM's
    filter_vlan      the address of a client's filter of a receive queue of the VM, in a VLAN that is not the filter's
    duplicate_mac    a station on the wire sends from one of the VM's addresses
    spoofed_source   the VM sends from an address that is not its own (spoof_check)
    unknown_mac      an address that no receive filter names; those seen most often

Each worker counts for itself (dataplane/classify.py); here the counts are added up. Each row comes with the remedy. A VM
port has one count for both VLANs, and of its frames the last one's VLAN: where that can be either, both are said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from vmq.abi.ethernet import mac_text
from vmq.contract import CONFIG
from vmq.dataplane import reasons
from vmq.engine.engine import Engine
from vmq.engine.vm import Vm
from vmq.filters.compiled import plain

Row = dict[str, Any]


class Misses(NamedTuple):
    """What was counted for one VM port; `seen_vlan` is the last wrong one."""

    wrong_vlan: int
    seen_vlan: int
    duplicate: int


def of_vm(vm: Vm) -> Misses:
    """The near misses of a VM port so far."""
    rows = [worker.misses[vm.number] for worker in vm.engine.workers]
    latest = max(rows, key=lambda row: int(row["wrong_vlan"]))
    wrong, duplicate = (sum(int(row[name]) for row in rows) for name in ("wrong_vlan", "duplicate"))
    return Misses(wrong, int(latest["seen_vlan"]), duplicate)


def misses(engine: Engine) -> list[Row]:
    """All of them, what concerns a VM first."""
    found = [row for vm in engine.vms.values() for row in _of_vm(vm)]
    return found + _strangers(engine)


def _of_vm(vm: Vm) -> list[Row]:
    seen, known = of_vm(vm), {"vm": vm.name, "uplink": vm.config.uplink, "mac": mac_text(vm.macs[0])}
    found: list[Row] = []
    if seen.wrong_vlan and (row := _elsewhere(vm, seen)):
        found.append(known | row)
    if seen.duplicate:
        remedy = "give the VM, or the station on the wire that has it too, another address"
        found.append(
            {
                "kind": "duplicate_mac",
                **known,
                "vlan": vm.config.vlan,
                "count": seen.duplicate,
                "remedy": remedy,
            }
        )
    if vm.spoofed:
        mac = mac_text(vm.spoofed)
        count = int(vm.queue_rows()["account"]["drops"][:, reasons.FROM_GUEST_SPOOFED].sum())
        remedy = f'add "{mac}" to mac of [vm.{vm.name}], a prefix of it to learn, or set spoof_check = false'
        spoofed = {"mac": mac, "vlan": vm.config.vlan, "count": count, "remedy": remedy}
        found.append({"kind": "spoofed_source", **known, **spoofed})
    return found


def _elsewhere(vm: Vm, seen: Misses) -> Row:
    """Frames in a VLAN where nothing of the VM waits for them: its own addresses, or filters of clients.

    Nothing if its own addresses wait there and no filter elsewhere: what they were meant for is gone, or was mended.
    """
    vlan = seen.seen_vlan or None
    filters = [(mac, words) for mac, vid, words in filters_of(vm) if vid != seen.seen_vlan]
    at_home = (vm.config.vlan or 0) == seen.seen_vlan
    if at_home and not filters:
        return {}
    row: Row = {
        "kind": "wrong_vlan",
        "vlan": vlan,
        "count": seen.wrong_vlan,
        "filters": [one for _, one in filters],
    }
    told = f"set {'that filter' if len(filters) == 1 else 'one of these filters'} {_in(vlan)}: " + "; ".join(
        row["filters"]
    )
    if at_home:
        return row | {"kind": "filter_vlan", "mac": mac_text(filters[0][0]), "remedy": told}
    key = f"set vlan = {vlan} for" if vlan else "leave vlan out of"
    remedy = f"{key} [vm.{vm.name}], or send {_in(vm.config.vlan)}"
    return row | {"remedy": f"{remedy}; or {told}" if filters else remedy}


def _in(vlan: int | None) -> str:
    return f"in VLAN {vlan}" if vlan else "untagged"


def filters_of(vm: Vm) -> Iterator[tuple[int, int, str]]:
    """Plain filters in effect of clients that lead to receive queues of a VM: address, VLAN id, words."""
    effects, contract = vm.home.effects, vm.home.contract
    for queue, bound in effects.bound.items():
        for number, one in effects.in_effect.get(queue, {}).items():
            owner = contract.filter_parameters(None, number)["owner"]
            key = plain(one)
            if bound.vm is vm and owner != CONFIG and key is not None:
                mac, vid = key
                words = (
                    f"filter {number} of {owner}, receive queue {queue}, waits for {mac_text(mac)} {_in(vid)}"
                )
                yield mac, vid, words


def _strangers(engine: Engine) -> list[Row]:
    """Addresses that nobody has, most often seen first."""
    names = {opened.number: name for name, opened in engine.uplinks.items()}
    known = {
        (mac, vm.config.vlan or 0, engine.uplink_number(vm.config.uplink))
        for vm in engine.vms.values()
        for mac in vm.macs
    } | {
        (*key, engine.uplink_number(queues.effects.uplink))
        for queues in engine.queues.values()
        for key in queues.effects.entry.plain
    }
    counts: dict[tuple[int, int, int], int] = {}
    for worker in engine.workers:
        for row in worker.strangers[worker.strangers["count"] > 0]:
            key = int(row["mac"]), int(row["vid"]), int(row["uplink"])
            if key not in known:  # by now: it was not when the frame came
                counts[key] = counts.get(key, 0) + int(row["count"])
    return [
        {
            "kind": "unknown_mac",
            "vm": None,
            "uplink": names.get(uplink),
            "mac": mac_text(mac),
            "vlan": vid or None,
            "count": count,
            "remedy": "add it to mac of the VM that it is for; if it is a host's, all is well",
        }
        for (mac, vid, uplink), count in sorted(counts.items(), key=lambda item: -item[1])
    ]
