# SPDX-License-Identifier: Apache-2.0
"""Near misses: frames that a VM nearly got, addresses that nobody has, and senders who use another's.

    wrong_vlan       one of the VM's addresses, in a VLAN that is not the VM's
    duplicate_mac    a station on the wire sends from one of the VM's addresses
    spoofed_source   the VM sends from an address that is not its own (spoof_check)
    unknown_mac      an address that no receive filter names; those seen most often

Each worker counts for itself (dataplane/classify.py); here the counts are added up. Each row comes with the remedy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vmq.abi.ethernet import mac_text
from vmq.dataplane import reasons
from vmq.engine.engine import Engine
from vmq.engine.vm import Vm

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
    if seen.wrong_vlan:
        vlan = seen.seen_vlan or None
        key = f"set vlan = {vlan} for" if vlan else "leave vlan out of"
        own = f"in VLAN {vm.config.vlan}" if vm.config.vlan else "untagged"
        remedy = f"{key} [vm.{vm.name}], or send {own}"
        found.append(
            {"kind": "wrong_vlan", **known, "vlan": vlan, "count": seen.wrong_vlan, "remedy": remedy}
        )
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


def _strangers(engine: Engine) -> list[Row]:
    """Addresses that nobody has, most often seen first."""
    names = {opened.number: name for name, opened in engine.uplinks.items()}
    known = {
        (mac, vm.config.vlan or 0, engine.uplink_number(vm.config.uplink))
        for vm in engine.vms.values()
        for mac in vm.macs
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
