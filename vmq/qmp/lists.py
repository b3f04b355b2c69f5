# SPDX-License-Identifier: Apache-2.0
"""What QEMU answers to `query-rx-filter`: one entry for each of its network devices that has a receive filter.

`RxFilterInfo` is the entry as it is written (qmp "query-rx-filter"), typed and bounded: an answer that breaks a bound is
refused whole. `RxFilter` is what the rest of vmq sees: addresses as numbers, text of the peer made printable.

The name of a device is the `id` of QEMU's -device, or, without one, its model and a number.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from vmq.abi.ethernet import mac_number

DEVICES_MAX = 256
ADDRESSES_MAX = 1024  # of one table; QEMU's holds 64
TEXT_MAX = 80  # characters of a peer's text that are repeated

_Text = Annotated[str, msgspec.Meta(max_length=1024)]
_Address = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}\Z")]
_Addresses = Annotated[tuple[_Address, ...], msgspec.Meta(max_length=ADDRESSES_MAX)]
_Vlans = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=4095)], ...], msgspec.Meta(max_length=4096)]
_State = Literal["normal", "none", "all"]


class RxFilterInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """One device. Members that are not named here are passed over."""

    name: _Text
    main_mac: _Address
    promiscuous: bool = False
    unicast: _State = "normal"
    vlan: _State = "normal"
    unicast_overflow: bool = False
    unicast_table: _Addresses = ()
    multicast_table: _Addresses = ()
    vlan_table: _Vlans = ()


RxFilterInfos = Annotated[tuple[RxFilterInfo, ...], msgspec.Meta(max_length=DEVICES_MAX)]


@dataclass(frozen=True, slots=True)
class RxFilter:
    """What one network device was asked for by its guest."""

    name: str
    main: int
    unicast: tuple[int, ...] = ()
    multicast: tuple[int, ...] = ()
    vlans: tuple[int, ...] = ()  # empty also when the guest did not choose any
    everything: bool = False  # all frames, or all unicast frames
    overflow: bool = False  # `unicast` is not the whole list

    @classmethod
    def of(cls, info: RxFilterInfo) -> RxFilter:
        return cls(
            name=printable(info.name),
            main=mac_number(info.main_mac),
            unicast=tuple(map(mac_number, info.unicast_table)),
            multicast=tuple(map(mac_number, info.multicast_table)),
            vlans=tuple(sorted(set(info.vlan_table))) if info.vlan == "normal" else (),
            everything=info.promiscuous or info.unicast == "all",
            overflow=info.unicast_overflow,
        )


def printable(text: str) -> str:
    """A peer's text, short enough for one line, without what would move the cursor or break an encoding."""
    short = text if len(text) <= TEXT_MAX else f"{text[: TEXT_MAX - 3]}..."
    return "".join(char if char.isprintable() else "?" for char in short)


def pick(devices: Sequence[RxFilter], configured: Collection[int], before: str | None) -> RxFilter | None:
    """The device of a VM port; None where that cannot be said.

    The only one there is, else the one with a configured address, as its own rather than in its table, else the one
    that it was `before`: a guest that gives its device another address does not become another VM.
    """
    if len(devices) == 1:
        return devices[0]
    own = [one for one in devices if one.main in configured]
    found = own or [one for one in devices if not set(configured).isdisjoint(one.unicast)]
    if len(found) == 1:
        return found[0]
    return next((one for one in found or devices if one.name == before), None)
