# SPDX-License-Identifier: Apache-2.0
"""D22: more receive queues, and slower with them. It is decided by a measurement, and by nothing else.

    vmq doctor --prove VM   ┐  the VM's own traffic takes both ways in turns        ┌ slower       found
    the engine's guard      ┴► (vmq/engine/proving.py); the engine keeps the last ──┼ not slower   clear
                               verdict of each VM, as `proved` of `vmq show vms`    └ cannot tell  unknown, as without any

The guard hears its own measurements and no other: what --prove found out is for people to act upon. In the plain half of
any measurement a VM is on the default queue, and that is nobody's decision.

A VM of weight 0 has no receive queue of its own, so none makes it slower; then its verdict is the reason for that weight,
and D10 leaves it alone. What the number of queues inside a guest costs shows under the guest's own load only.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmq.doctor.finding import RELOAD, Evidence, Fix, Outcome, found, listed, settled, unknown
from vmq.doctor.situation import PortView, Row, Situation

ACTED = "The engine's guard has it served by the default queue meanwhile, and measures again."
OWN_ONLY = "The engine's guard acts on what it measures itself, not on --prove."
GUARD = "guard = true in [engine], which falls back by itself where its own measurements say so"
PROVED = "vmq show vms --json: proved, {}"


def proved(port: PortView) -> Row:
    """What the last measurement of a VM said; empty without one."""
    said = port.row.get("proved")
    return said if isinstance(said, Mapping) else {}


def slower(see: Situation) -> list[Outcome]:
    """D22: a receive queue of its own makes a VM slower than the default queue, as its own traffic was measured."""
    verdicts = {port.name: said for port in see.ports if (said := proved(port)).get("answer")}
    if not verdicts:
        return [
            unknown(
                "nothing was measured yet: vmq doctor --prove VM, with traffic, or the engine's guard does it"
            )
        ]
    outcomes = [
        _slower(see, port, verdicts[port.name])
        for port in see.ports
        if port.weight and verdicts.get(port.name, {}).get("answer") == "slower"
    ]
    unsure = [
        one.name
        for one in see.ports
        if verdicts.get(one.name, {}).get("answer") not in ("slower", "not slower")
    ]
    if unsure:
        outcomes.append(
            unknown(f"not measured, or with too little traffic to tell: {listed(unsure)}", vms=tuple(unsure))
        )
    return settled(
        outcomes, *(Evidence(PROVED.format(vm), str(said.get("why"))) for vm, said in verdicts.items())
    )


def _slower(see: Situation, port: PortView, said: Row) -> Outcome:
    settings = {one.get("name"): one for one in port.row.get("settings") or ()}
    way = settings.get("receive_queue", {})
    fallen = bool(port.row.get("own_queue")) and str(way.get("why")).startswith("the guard")
    guarded = see.config is None or see.config.engine.guard
    return found(
        port.label,
        Evidence(PROVED.format(port.name), str(said.get("why")), "not slower"),
        Evidence("vmq show settings: receive_queue", _way(way), "the faster of the two"),
        vms=(port.name,),
        confidence="likely",
        severity="note" if fallen else None,
        why="A receive queue is there to be faster, and this VM's frames cost more through it than through the default queue."
        + (f" {ACTED if fallen else OWN_ONLY}" if guarded or fallen else ""),
        fix=Fix(
            f"weight = 0 in [vm.{port.name}] of {see.where}" + ("" if guarded else f"; or {GUARD}"),
            RELOAD,
            f"the default queue serves VM {port.name}",
        ),
        undo=f"weight = {port.weight} in [vm.{port.name}]",
    )


def _way(setting: Row) -> str:
    """Where the frames of a VM go, and whose doing it is."""
    why = setting.get("why")
    return f"{setting.get('effective', 'own')}{f': {why}' if why else ''}"
