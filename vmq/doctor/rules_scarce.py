# SPDX-License-Identifier: Apache-2.0
"""D07, D08, D10, D11, D17, D34: who has a receive queue of its own, and who should.

An uplink gives so many VMs a receive queue of their own (`queues`), by weight; the others are served by the default
queue, and lose nothing but their own place. One ranking, by frames since the start, decides whose finding it is:

    weight 0, and busy                                        D10   somebody took its queue away, and it shows
    no queue of its own, busy, and an idle VM has one         D11   a swap would help
    the same, and nobody is idle                              D08   there are too few
    weight 0 for every VM of an uplink, or no queues at all   D34   "disabled", and was that measured?
    it has one, and was measured to be slower with it         D22   weight 0 is right, then, and not D10's

A VM that sends and gets nothing while its neighbours do is D07's: a NIC that swallows an address shows in no counter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vmq.config.edit import Change
from vmq.doctor.finding import (
    RELOAD,
    Evidence,
    Fix,
    Outcome,
    clear,
    found,
    listed,
    not_applicable,
    sentence,
    settled,
    unknown,
)
from vmq.doctor.rules_proved import proved
from vmq.doctor.situation import PortView, Row, Situation, UplinkView, ports_on
from vmq.doctor.steps import Edit, edit
from vmq.dynamic import first_holders
from vmq.forecast import TOO_FEW
from vmq.placement import QUEUES_MAX, VMS_MAX

WEIGHT = 100  # of a VM that says none
QUEUES = "vmq show queues"
NOT_TOLD = "no engine runs, or it does not tell which receive queue is a VM's own"


@dataclass(frozen=True)
class Share:
    """What a VM has: frames since the start, and whether its receive queue is its own."""

    port: PortView
    frames: int
    own: bool
    why: str
    weight: int  # 0: it shall have none

    @property
    def vm(self) -> str:
        return self.port.name


def shares(see: Situation) -> list[Share] | None:
    """The VMs, the busiest first; None if no engine tells whose queue is its own."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in see.rows("queues") or ():
        if isinstance(row.get("own"), bool):
            rows[str(row.get("vm"))].append(row)
    if not rows:
        return None
    made = (_share(port, rows[port.name]) for port in see.ports if port.name in rows)
    return sorted(made, key=lambda share: -share.frames)


def _share(port: PortView, rows: list[Row]) -> Share:
    """The VM's first receive queue is the one that may be its own; frames come through all of them."""
    first = min(rows, key=lambda row: row.get("queue") or 0)
    weight = first.get("weight")
    return Share(
        port,
        sum(row.get("offered_to_guest") or 0 for row in rows),
        first["own"],
        str(first.get("why") or ""),
        weight if isinstance(weight, int) else port.weight,
    )


def starved(see: Situation, ranking: list[Share]) -> Iterator[tuple[Share, Share | None]]:
    """Busy VMs that asked for a queue of their own and have none; with the idlest VM that has one, each given once."""
    holders = [share for share in reversed(ranking) if share.own]
    for share in ranking:
        if share.own or not share.weight or share.frames < see.limits.busy_frames:
            continue
        idle = share.frames * see.limits.idle_percent / 100
        able = (one for one in holders if one.port.uplink == share.port.uplink and one.frames < idle)
        swap = next(able, None)
        if swap is not None:
            holders.remove(swap)
        yield share, swap


def _counted(share: Share, expected: str = "") -> Evidence:
    return Evidence(f"{QUEUES}: offered_to_guest, {share.vm}", f"{share.frames} frames", expected)


def _why(share: Share) -> Evidence:
    return Evidence(f"{QUEUES}: own, {share.vm}", f"no: {share.why or 'the engine gives no reason'}", "yes")


# --- D08: too few -------------------------------------------------------------------------------------------


def too_many(see: Situation) -> list[Outcome]:
    """D08: VMs ask for more receive queues, or there are more of them, than an engine or an uplink has."""
    if not see.ports:
        return [not_applicable("there is no VM")]
    outcomes = [said for uplink in see.uplinks.values() for said in _too_few(see, uplink)]
    asked = sum(port.queue_pairs for port in see.ports)
    looked = (
        Evidence("sum of queue_pairs", str(asked), f"at most {QUEUES_MAX}"),
        Evidence("VMs", str(len(see.ports)), f"at most {VMS_MAX}"),
    )
    if asked <= QUEUES_MAX and len(see.ports) <= VMS_MAX:
        return settled(outcomes, *looked)
    enough = max(QUEUES_MAX // len(see.ports), 1)
    without, left = [], QUEUES_MAX
    for port in see.ports:
        left -= port.queue_pairs
        if left < 0:
            without.append(port.name)
    large = [port for port in see.ports if port.queue_pairs > enough]
    changes = tuple(Change(f"vm.{port.name}", "queue_pairs", enough) for port in large)
    return [
        *outcomes,
        found(
            "engine",
            *looked,
            Evidence("VMs that would have none", listed(without)),
            why="Receive queues are taken in the order of the configuration, and the engine refuses what is too many.",
            fix=Fix(
                f"queue_pairs = {enough} in each [vm.NAME] of {see.where}",
                RELOAD,
                "guests that use more receive queues reconnect with fewer",
                (Edit(changes),) if len(see.ports) <= VMS_MAX else (),
            ),
        ),
    ]


def _too_few(see: Situation, uplink: UplinkView) -> Iterator[Outcome]:
    """More VMs of an uplink than receive queues for them; of a running engine, who has none, the busiest first."""
    asking = [port for port in ports_on(see, uplink.name) if port.weight]
    if uplink.queues is None or len(asking) <= uplink.queues or not uplink.queues:
        return
    ranking = shares(see)
    if ranking is None:  # as they will be given out
        holders = first_holders({port.name: port.weight for port in asking}, uplink.queues)
        without = [port.name for port in asking if port.name not in holders]
        seen, busy = [Evidence("VMs that would have none", listed(without))], True
    else:
        poor = [share for share in ranking if share.port in asking and not share.own]
        short = {share.vm for share, swap in starved(see, ranking) if swap is None}
        without = [share.vm for share in poor]
        seen, busy = [_counted(share) for share in poor[:8]], bool(short & set(without))
    yield found(
        uplink.label,
        Evidence(see.key(f"uplink.{uplink.name}", "queues"), str(uplink.queues), f"at least {len(asking)}"),
        *seen,
        vms=tuple(without),
        severity=None if busy else "note",
        why=sentence(TOO_FEW),
        fix=Fix(
            f"queues = {len(asking)} in [uplink.{uplink.name}] of {see.where}, or weight = 0 for VMs that need none",
            RELOAD,
            "",
            (edit(f"uplink.{uplink.name}", queues=len(asking)),),
        ),
        undo=f"queues = {uplink.queues} in [uplink.{uplink.name}]",
    )


# --- D10, D11: taken away, or held in vain ------------------------------------------------------------------


def left_without(see: Situation) -> list[Outcome]:
    """D10: weight 0 keeps a busy VM from a receive queue of its own."""
    ranking = shares(see)
    if ranking is None:
        return [unknown(NOT_TOLD)]
    limit = see.limits.busy_frames
    outcomes = [
        found(
            f"VM {share.vm}",
            _counted(share, f"fewer than {limit} (busy_frames)"),
            _why(share),
            Evidence(see.key(f"vm.{share.vm}", "weight"), "0", "more, for a VM that is busy"),
            vms=(share.vm,),
            confidence="likely",
            why="Its frames share the default queue with those of all others, because its weight is 0.",
            fix=Fix(
                f"weight = {WEIGHT} in [vm.{share.vm}] of {see.where}",
                RELOAD,
                "where queues are scarce, another VM gives its own away",
                (edit(f"vm.{share.vm}", weight=WEIGHT),),
            ),
            undo=f"weight = 0 in [vm.{share.vm}]",
        )
        for share in ranking
        if not share.own and not share.weight and share.frames >= limit
        if proved(share.port).get("answer") != "slower"
    ]
    return settled(
        outcomes, Evidence(f"{QUEUES}: own", f"{sum(share.own for share in ranking)} of {len(ranking)} VMs")
    )


def held_idle(see: Situation) -> list[Outcome]:
    """D11: an idle VM has a receive queue of its own, and a busy one of its uplink has none."""
    ranking = shares(see)
    if ranking is None:
        return [unknown(NOT_TOLD)]
    outcomes = [
        found(
            f"VM {poor.vm}",
            _counted(poor, f"a receive queue of its own from {see.limits.busy_frames} on (busy_frames)"),
            _why(poor),
            _counted(idle, f"at least {see.limits.idle_percent} % of that (idle_percent)"),
            vms=(poor.vm, idle.vm),
            confidence="likely",
            why=f"VM {idle.vm} is idle and has a receive queue of its own; VM {poor.vm} is busy and has none.",
            fix=Fix(
                f"weight = 1 in [vm.{idle.vm}] of {see.where}: then others come before it",
                RELOAD,
                f"the default queue serves VM {idle.vm}",
                (edit(f"vm.{idle.vm}", weight=1),),
            ),
            undo=f"weight = {idle.port.weight} in [vm.{idle.vm}]",
        )
        for poor, idle in starved(see, ranking)
        if idle is not None
    ]
    return settled(
        outcomes, Evidence(f"{QUEUES}: own", "no busy VM without one beside an idle VM that has one")
    )


# --- D07, D17, D34 ------------------------------------------------------------------------------------------


def swallowed(see: Situation) -> list[Outcome]:
    """D07: a NIC takes an address and gives none of its frames. No driver of Linux is known for it: only this shows it."""
    asked = [one for one in see.uplinks.values() if one.kind in ("packet", "xdp") and not one.promiscuous]
    if not asked:
        return [not_applicable("no uplink asks a NIC for single addresses: all frames are taken")]
    queues = see.rows("queues")
    if queues is None:
        return [unknown("no engine runs: frames are not counted")]
    got: dict[str, int] = defaultdict(int)
    sent: dict[str, int] = defaultdict(int)
    for row in queues:
        got[str(row.get("vm"))] += row.get("offered_to_guest") or 0
        sent[str(row.get("vm"))] += row.get("forwarded") or 0
    outcomes = [
        _swallowed(see, uplink, port, sent[port.name])
        for uplink in asked
        for port in ports_on(see, uplink.name)
        if sent[port.name] >= see.limits.busy_frames and not got[port.name]
        if any(got[other.name] for other in ports_on(see, uplink.name))
    ]
    looked = (Evidence(f"{QUEUES}: offered_to_guest, {name}", str(count)) for name, count in got.items())
    return settled(outcomes, Evidence(f"{QUEUES}: VMs", str(len(got))), *looked)


def _swallowed(see: Situation, uplink: UplinkView, port: PortView, sent: int) -> Outcome:
    driver = uplink.link.driver if uplink.link else None
    named = f"{driver.name} {driver.version}, firmware {driver.firmware}" if driver else "not told"
    return found(
        f"{port.label} on {uplink.label}",
        Evidence(
            f"{QUEUES}: forwarded, {port.name}",
            f"{sent} frames",
            f"below {see.limits.busy_frames} (busy_frames)",
        ),
        Evidence(f"{QUEUES}: offered_to_guest, {port.name}", "0 frames", "some, as its neighbours have"),
        Evidence(f"ethtool -i {uplink.device}", named),
        vms=(port.name,),
        severity="warning",
        confidence="possible",
        why="The VM sends and nothing comes back, while its neighbours get frames: the NIC may swallow its address; "
        "or nobody answers it.",
        fix=Fix(
            f"promiscuous = true in [uplink.{uplink.name}] of {see.where}: then the NIC does not choose",
            RELOAD,
            f"the uplink is opened anew, and VMs of {uplink.name} reconnect",
            (edit(f"uplink.{uplink.name}", promiscuous=True),),
        ),
        undo=f"promiscuous = false in [uplink.{uplink.name}]",
    )


def stale_ids(see: Situation) -> list[Outcome]:
    """D17: somebody used the id of a receive queue or filter that is gone. It was counted, and led nowhere."""
    told = {
        (view, str(row.get("name") or row.get("uplink") or "engine")): row["stale_ids"]
        for view in see.shown or ()
        for row in see.rows(view) or ()
        if isinstance(row.get("stale_ids"), int | Mapping)
    }
    if not told:
        return [unknown("no engine runs, or it does not tell stale ids")]
    outcomes = []
    for (view, subject), said in told.items():
        counts = said if isinstance(said, Mapping) else {"queues": said}
        if any(counts.values()):
            outcomes.append(
                found(
                    subject,
                    *(
                        Evidence(f"vmq show {view} --json: stale_ids, {kind}", str(count), "0")
                        for kind, count in counts.items()
                    ),
                    why="A client of the API used an id after it was given back. Each is refused: an id is never used twice.",
                    fix=Fix("None needed here: the client that keeps old ids is at fault (vmq events)"),
                )
            )
    return outcomes or [clear(Evidence("vmq show --json: stale_ids", "0"))]


def disabled(see: Situation) -> list[Outcome]:
    """D34: own receive queues are switched off for all VMs of an uplink, as scripts do."""
    outcomes: list[Outcome] = []
    for uplink in see.uplinks.values():
        ports = list(ports_on(see, uplink.name))
        none, weightless = uplink.queues == 0, not any(port.weight for port in ports)
        if not ports or not (none or weightless):
            continue
        where = see.key(f"uplink.{uplink.name}", "queues") if none else see.key("vm.NAME", "weight")
        outcomes.append(
            found(
                uplink.label,
                Evidence(where, "0" if none else f"0 for all {len(ports)} VMs", "a measurement that says so"),
                vms=tuple(port.name for port in ports),
                why="No VM of this uplink may have a receive queue of its own: that is VMQ switched off, measured or not.",
                fix=Fix(
                    f"Measure both; then leave queues out of [uplink.{uplink.name}] of {see.where}"
                    if none
                    else f"Measure both; then leave weight out of its VMs in {see.where}",
                    RELOAD,
                ),
            )
        )
    if not see.uplinks:
        return [not_applicable("there is no uplink")]
    return settled(
        outcomes, Evidence("queues and weight", f"of {len(see.uplinks)} uplinks: not switched off")
    )
