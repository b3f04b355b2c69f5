# SPDX-License-Identifier: Apache-2.0
"""What generic receive filters say of a frame, for `vmq explain` and `vmq show settings`.

All filters in effect on an uplink are one list, asked in order (vmq/filters/reference.py is the definition): the first
that matches decides. One that leads to the first receive queue of the VM port with that address changes nothing; any
other takes the frame.

    Frame      all bytes are known: a filter matches or does not
    Outline    addresses and tag are: of a filter that looks at more only the bytes can say (None)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vmq.abi.ethernet import MAC_BROADCAST, MAC_GROUP_BIT, VLAN_HLEN, VLAN_VID_MASK, mac_text
from vmq.contract import CONFIG, DEFAULT_QUEUE, DROP_QUEUE
from vmq.dataplane.state import HEAD, NONE
from vmq.engine.queues import TableEffects, UplinkQueues
from vmq.engine.vm import Vm
from vmq.filters import Field, FieldTest, Filter, Flag, PacketType, matches, overlap
from vmq.filters.compiled import in_order, plain
from vmq.filters.model import ADDRESSES

TAG = frozenset({Field.VLAN_ID, Field.PRIORITY})


@dataclass(frozen=True)
class Frame:
    """A frame in normal form: without tag, its VLAN id and priority beside it."""

    data: bytes
    tci: int | None  # of its tag; None: it has none
    vid: int  # of its segment
    from_guest: bool

    @property
    def head(self) -> bytes:
        """What filters may look at: of a guest's frame, what was copied before it was checked."""
        priority_tag = self.from_guest and self.tci is not None
        return self.data[: HEAD - VLAN_HLEN * priority_tag] if self.from_guest else self.data

    def passes(self, one: Filter) -> bool | None:
        tci = (self.tci or 0) & ~VLAN_VID_MASK | self.vid
        tagged = self.tci is not None or (self.from_guest and self.vid > 0)
        return matches(one, self.head, self.vid, tci, tagged)


@dataclass(frozen=True)
class Outline:
    """Any frame to this address, with or without a tag."""

    mac: int
    vid: int  # of its segment
    tagged: bool
    source: int | None = None  # None: nobody has said

    @property
    def _known(self) -> Mapping[Field, int]:
        group = PacketType.BROADCAST if self.mac == MAC_BROADCAST else PacketType.MULTICAST
        kind = group if self.mac & MAC_GROUP_BIT else PacketType.UNICAST
        known = {Field.MAC_DESTINATION: self.mac, Field.PACKET_TYPE: int(kind)}
        known |= {Field.VLAN_ID: self.vid} if self.tagged else {}
        return known | ({} if self.source is None else {Field.MAC_SOURCE: self.source})

    def passes(self, one: Filter) -> bool | None:
        """None: only the bytes can say. With ENCAPSULATION they always have a word: is there an inner frame?"""
        if Flag.VLAN_UNTAGGED_OR_ZERO in one.flags and self.tagged and self.vid:
            return False
        inner = Flag.ENCAPSULATION in one.flags
        found = [self._passes(test, inner) for test in one.tests]
        return False if False in found else None if inner or None in found else True

    def _passes(self, test: FieldTest, inner: bool) -> bool | None:
        if test.field in TAG and not self.tagged:
            return False
        known = {} if inner and test.field in ADDRESSES else self._known
        return test.passes(known[test.field]) if test.field in known else None


@dataclass(frozen=True)
class Claim:
    """A filter takes the frame: to a queue pair of a VM, or (None) to the drop queue."""

    vm: Vm | None
    pair: int
    words: str


@dataclass(frozen=True)
class Ruling:
    """What filters say: who takes the frame (None: nobody), and whether a filter before that might decide otherwise."""

    claim: Claim | None
    doubtful: bool = False


def rule(effects: TableEffects, frame: Frame | Outline, sender: Vm | None, steps: list[str]) -> Ruling:
    """The generic filter that takes a frame, if one does; what is worth saying goes to `steps`."""
    found = {one: queue for queue, filters in effects.in_effect.items() for one in filters.values()}
    doubts: set[tuple[Vm | None, int] | None] = set()  # where filters may lead; None: nowhere else
    claim: Claim | None = None
    for one, queue in in_order(found.items()):
        bound, passes = effects.bound.get(queue), frame.passes(one)
        if passes is False:
            continue
        if queue in effects.first:  # an address of a VM port
            break
        leaves = queue != DROP_QUEUE and (queue == DEFAULT_QUEUE or bound is None or bound.vm is sender)
        to = None if bound is None else bound.vm, 0 if bound is None else bound.pair
        if passes is None:
            verb = "leave it to the addresses" if leaves else "take it"
            steps.append(f"a filter may {verb}, which only its bytes can say: {one}")
            doubts.add(None if leaves else to)
            continue
        if leaves:
            steps.append(f"a filter leaves it to the addresses: {one}")
        else:
            claim = Claim(*to, f"a filter of priority {one.priority} takes it: {one}")
        break
    return Ruling(claim, bool(doubts - {None if claim is None else (claim.vm, claim.pair)}))


# --- addresses that filters take away ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """A filter that takes frames to an address of a VM port: all of them, or some."""

    mac: int
    whole: bool
    why: str


def taken(vm: Vm) -> Iterator[Taken]:
    """What filters of owners of the API take from the addresses of a VM port."""
    effects, contract = vm.home.effects, vm.home.contract
    queues = effects.in_effect
    others = {name: queues[name] for name in queues.keys() - effects.first.keys()}
    rivals: dict[Filter, tuple[int, int]] = {
        one: (queue, number) for queue, filters in others.items() for number, one in filters.items()
    }
    if not rivals:
        return
    for mac, (_, own) in vm.filters.items():
        before = [one for one, _ in in_order([*((one, 0) for one in rivals), (own, NONE)])]
        for one in before[: before.index(own)]:
            how, (queue, number) = _takes(one, vm, mac, own), rivals[one]
            if how and queue == DEFAULT_QUEUE:
                break  # what comes after it is not asked
            bound = effects.bound.get(queue)
            if how is False or queue == DEFAULT_QUEUE or (bound is not None and bound.vm is vm):
                continue
            owner = contract.filter_parameters(None, number)["owner"]
            frames = "all frames" if how else "some frames"
            filter_words = f"filter {number} of owner {owner} (priority {one.priority})"
            yield Taken(mac, how is True, f"{filter_words} takes {frames} to {mac_text(mac)}")
            if how:
                break


def _takes(one: Filter, vm: Vm, mac: int, own: Filter) -> bool | None:
    """Whether a filter matches all frames to an address of a VM port (True), some (None) or no frame."""
    vlan = vm.config.vlan
    shapes = [Outline(mac, vlan or 0, tagged=True)] + [Outline(mac, 0, tagged=False)] * (vlan is None)
    found = {shape.passes(one) for shape in shapes}
    if found == {True}:
        return True
    return None if found != {False} and overlap(one, own) else False


# --- frames that other filters take from a filter -----------------------------------------------------------------


def taken_from(queues: UplinkQueues, queue: int, number: int) -> Iterator[tuple[bool, str]]:
    """Who gets frames that a filter in effect matches, because it is asked before: all of them (True) or some; in words."""
    effects = queues.effects
    mine = effects.in_effect[queue][number]
    places = {one: (name, at) for name, filters in effects.in_effect.items() for at, one in filters.items()}
    order = [one for one, _ in in_order([(one, 0) for one in places])]
    for one in order[: order.index(mine)]:
        name, at = places[one]
        left = name == DEFAULT_QUEUE and plain(mine) is not None  # to the addresses, of which this is one
        if name == queue and _covers(one, mine):
            return  # they go where they are to go
        if name == queue or left or not overlap(one, mine):
            continue
        owner = queues.contract.filter_parameters(None, at)["owner"]
        whose = (
            f"{effects.first[name].name}'s address" if owner == CONFIG else f"filter {at} of owner {owner}"
        )
        whole = _covers(one, mine)
        yield (
            whole,
            f"{whose} (priority {one.priority}) takes {'all' if whole else 'some'} of its frames: {one}",
        )
        if whole:
            return


def _covers(one: Filter, other: Filter) -> bool:
    """Whether a filter asks for nothing that the other does not ask for, too."""
    same_frame = not (one.flags ^ other.flags) & Flag.ENCAPSULATION
    return same_frame and not one.flags & ~other.flags and set(one.tests) <= set(other.tests)
