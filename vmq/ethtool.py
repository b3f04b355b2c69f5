# SPDX-License-Identifier: Apache-2.0
"""What a device's driver says: its name and version, its queues, which offloads are on, and rules by which it chooses a queue.

The kernel keeps this out of sysfs. It is asked by ioctl, as `ethtool -i`, `-l` and `-k` do; asking needs no right and
changes nothing. A device that does not answer has no record: whoever needs one says "unknown". `switch` is `ethtool -K`:
a driver may take the order and not follow it, so what is on is read again. A device in another network namespace is
asked by a socket of that one (`by`).

A rule here is always the same: frames to one address go to one receive queue (`ethtool -N NAME flow-type ether dst MAC
action QUEUE`). It has a place in a table of the device, which the driver chooses, or we do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vmq.abi import ethtool as et
from vmq.abi.ethernet import ETH_ALEN
from vmq.errors import HostError

WHOLE = 255  # of each byte of an address, in a mask: every bit of it counts


@dataclass(frozen=True)
class Driver:
    """One device's driver. `features`: name → whether it is on, by the names of `ethtool -k` in the kernel."""

    name: str = ""
    version: str = ""
    firmware: str = ""
    features: Mapping[str, bool] = field(default_factory=dict)
    bus: str = ""  # where it is, as a PCI address


def describe(device: str, by: socket.socket | None = None) -> Driver | None:
    """What the driver of a device says; None if it says nothing."""
    said, features = np.zeros(1, et.drvinfo), dict[str, bool]()
    with _asked(by) as asked:
        with contextlib.suppress(OSError):  # loopback has no driver
            _ask(asked, device, said, et.ETHTOOL_GDRVINFO)
        with contextlib.suppress(OSError):
            features = _features(asked, device)
    if not said["driver"][0] and not features:
        return None
    name, version, firmware, bus = (
        bytes(said[key][0]).decode(errors="replace")
        for key in ("driver", "version", "fw_version", "bus_info")
    )
    return Driver(name, version, firmware, features, bus)


def receive_queues(device: str) -> tuple[int, int]:
    """How many receive queues a device has, and may have; one, if its driver does not tell."""
    told = np.zeros(1, et.channels)
    try:
        with _asked() as asked:
            _ask(asked, device, told, et.ETHTOOL_GCHANNELS)
    except OSError:
        return 1, 1
    now, most = (int(told[f"{of}rx"][0]) + int(told[f"{of}combined"][0]) for of in ("", "max_"))
    return max(now, 1), max(now, most, 1)


def switch(device: str, feature: str, *, on: bool, by: socket.socket | None = None) -> None:
    """Switch a feature on or off; HostError if the kernel refuses, or it stays as it was."""
    where, word = f"ethtool -K {device} {feature}", "on" if on else "off"
    with _asked(by) as asked:
        try:
            names = _names(asked, device)
            if feature not in names:
                raise HostError(where, "the kernel has no such feature", f"ethtool -k {device} lists them")
            place, mask = divmod(names.index(feature), 32)
            order = np.zeros(1, et.sfeatures)
            order["size"] = (len(names) + 31) // 32
            order["features"][0][place] = (1 << mask, on << mask)
            _ask(asked, device, order, et.ETHTOOL_SFEATURES)
            stands = _features(asked, device)[feature]
        except OSError as error:
            remedy = "It takes CAP_NET_ADMIN" if error.errno == errno.EPERM else "Check the device"
            raise HostError(where, f"{word}: {error.strerror}", remedy) from None
    if stands is not on:
        raise HostError(where, f"the driver did not switch it {word}", f"ethtool -k {device} says [fixed]")


def rules(device: str) -> int:
    """How many rules its table has; OSError from a driver without one."""
    with _asked() as asked:
        return int(_ask(asked, device, np.zeros(1, et.rxnfc), et.ETHTOOL_GRXCLSRLCNT)["rule_cnt"][0])


def rule(mac: int, queue: int, location: int) -> Any:
    """The rule "frames to this address, to this receive queue", as the kernel takes it."""
    body = np.zeros(1, et.rxnfc)
    one = body["fs"]
    one["flow_type"], one["ring_cookie"], one["location"] = et.ETHER_FLOW, queue, location
    one["h_u"]["dst"][0] = np.frombuffer(mac.to_bytes(ETH_ALEN, "little"), np.uint8)
    one["m_u"]["dst"][0] = WHOLE
    return body


def place_for_rule(device: str) -> int:
    """Where a new rule may stand: wherever the driver wants, or the last free place; OSError without one."""
    with _asked() as asked:
        told = _ask(asked, device, np.zeros(1, et.rxnfc), et.ETHTOOL_GRXCLSRLCNT)[0]
        if int(told["data"]) & et.RX_CLS_LOC_SPECIAL:
            return et.RX_CLS_LOC_ANY
        taken, size = _places(asked, device)
    for place in range(size - 1, -1, -1):
        if place not in taken:
            return place
    raise OSError(errno.ENOSPC, "the table of rules has no free place")


def _places(asked: socket.socket, device: str) -> tuple[set[int], int]:
    """Where its rules stand, and how many places there are."""
    told = _ask(asked, device, np.zeros(1, et.rxnfc), et.ETHTOOL_GRXCLSRLCNT)[0]
    listed, count = np.zeros(1, et.rxnfc_all), int(told["rule_cnt"])
    if count > et.RULES_MAX:  # what is not read might be overwritten
        raise OSError(errno.E2BIG, f"the table has {count} rules, too many to look through")
    listed["rule_cnt"] = count  # some drivers look for as many as are asked for, and fail
    known = _ask(asked, device, listed, et.ETHTOOL_GRXCLSRLALL)[0]
    return {int(place) for place in known["rule_locs"][: int(known["rule_cnt"])]}, int(known["data"])


def rules_to(device: str) -> dict[int, int]:
    """Addresses that rules of this kind lead to a receive queue, and which; OSError from a driver without a table."""
    found = dict[int, int]()
    with _asked() as asked:
        for place in sorted(_places(asked, device)[0]):
            one = _at(asked, device, place)
            if one["flow_type"] == et.ETHER_FLOW and _is_of_destination(one):
                found.setdefault(_address(one), int(one["ring_cookie"]))
    return found


def add_rule(device: str, mac: int, queue: int, location: int) -> int:
    """Where it stands now."""
    with _asked() as asked:
        return int(
            _ask(asked, device, rule(mac, queue, location), et.ETHTOOL_SRXCLSRLINS)["fs"]["location"][0]
        )


def rule_at(device: str, location: int) -> tuple[int, int]:
    """The address and the receive queue of the rule at a place; OSError if there is none."""
    with _asked() as asked:
        one = _at(asked, device, location)
    return _address(one), int(one["ring_cookie"])


def _at(asked: socket.socket, device: str, location: int) -> Any:
    body = np.zeros(1, et.rxnfc)
    body["fs"]["location"] = location
    return _ask(asked, device, body, et.ETHTOOL_GRXCLSRULE)["fs"][0]


def _is_of_destination(one: Any) -> bool:
    """Whether a rule asks for a whole destination address, and for nothing else."""
    mask = one["m_u"].tobytes()
    return (
        mask[:ETH_ALEN] == b"\xff" * ETH_ALEN and not any(mask[ETH_ALEN:]) and not any(one["m_ext"].tobytes())
    )


def _address(one: Any) -> int:
    return int.from_bytes(one["h_u"]["dst"].tobytes(), "little")


def delete_rule(device: str, location: int) -> None:
    body = np.zeros(1, et.rxnfc)
    body["fs"]["location"] = location
    with _asked() as asked:
        _ask(asked, device, body, et.ETHTOOL_SRXCLSRLDEL)


@contextlib.contextmanager
def _asked(by: socket.socket | None = None) -> Iterator[socket.socket]:
    """Whom to ask: a socket of this namespace, if none was given."""
    if by is not None:
        yield by
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ours:
            yield ours


def _features(asked: socket.socket, device: str) -> dict[str, bool]:
    names = _names(asked, device)
    question = np.zeros(1, et.gfeatures)
    question["size"] = (len(names) + 31) // 32
    blocks = _ask(asked, device, question, et.ETHTOOL_GFEATURES)[0]["features"]["active"]
    return {name: bool(int(blocks[bit // 32]) >> bit % 32 & 1) for bit, name in enumerate(names)}


def _names(asked: socket.socket, device: str) -> list[str]:
    """Features, in the order of their bits."""
    question = np.zeros(1, et.sset_info)
    question["sset_mask"] = 1 << et.ETH_SS_FEATURES
    count = min(int(_ask(asked, device, question, et.ETHTOOL_GSSET_INFO)[0]["data"]), et.FEATURES_MAX)
    words = np.zeros(1, et.gstrings)
    words["string_set"], words["len"] = et.ETH_SS_FEATURES, count
    said = _ask(asked, device, words, et.ETHTOOL_GSTRINGS)[0]["data"]
    return [bytes(said[bit]).decode(errors="replace") for bit in range(count)]


def _ask(asked: socket.socket, device: str, body: Any, command: int) -> Any:
    """Put one question; the answer stands where the question stood."""
    body["cmd"] = command
    request = np.zeros(1, et.ifreq_data)
    request["name"], request["data"] = device.encode(), body.__array_interface__["data"][0]
    fcntl.ioctl(asked, et.SIOCETHTOOL, request.tobytes())
    return body
