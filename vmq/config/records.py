# SPDX-License-Identifier: Apache-2.0
"""The records of a configuration: every key, declared once.

    Config ── engine: Engine
           ├─ uplinks: name → Tap | Packet | Xdp | Pcap | Memory      (`kind` in the file chooses which)
           ├─ vms:     name → Vm
           └─ doctor: Doctor                                   (what the doctor finds, and how often it looks)

A record is immutable, and compared and hashed by value: two equal configurations plan no action. Its texts
are canonical: addresses in lower case with colons, paths absolute. `None` means that the key was left out;
the words of each key say what happens then.

The description of a key is a phrase that completes "Set KEY to …": errors print it so. A range is given
twice, for the reader (`ge`, `le`) and for the person (in the phrase); a test compares the two.

`trunk` and a VM's `lossless` are no keys yet: the reader refuses them in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from vmq import API_SOCKET

QUEUE_PAIRS_MAX = 16  # receive queues of one VM port
SOCKET_PATH_MAX = 107  # unix(7) "Address format": sun_path has 108 bytes, and the last is a NUL


def says(phrase: str, **limits: Any) -> msgspec.Meta:
    """What a key is set to: in words, and in msgspec's limits (`ge`, `le`, `min_length`)."""
    meta: msgspec.Meta = msgspec.Meta(description=phrase, **limits)
    return meta


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Immutable, compared and hashed by value."""


class Engine(Record, frozen=True, kw_only=True):
    """The process itself."""

    api: Annotated[str, says("the path of the socket that vmq show asks")] = API_SOCKET
    processors: (
        Annotated[
            tuple[int, ...],
            says('the processors of the workers, as "1" or "0-3,8"; leave it out to let the engine choose'),
        ]
        | None
    ) = None
    group: Annotated[str, says("the name of the group that owns the sockets, QEMU's")] | None = None
    guard: Annotated[
        bool,
        says(
            "true or false: whether a VM that its own receive queue makes slower falls back to the default queue"
        ),
    ] = True
    placement: Annotated[
        Literal["static", "dynamic"],
        says('"static" or "dynamic": whether VMs move to other processors as load comes and goes'),
    ] = "static"
    placement_figures: (
        Annotated[
            str,
            says(
                "the path of what vmq bench --placement has measured; leave it out for the file that it writes"
            ),
        ]
        | None
    ) = None
    idle: Annotated[
        Literal["sleep", "poll"],
        says('"sleep" or "poll": whether a processor without work sleeps, or looks for it all the time'),
    ] = "sleep"


class Uplink(Record, frozen=True, kw_only=True, tag_field="kind"):
    """Where frames enter and leave the host: what all kinds have."""

    mtu: (
        Annotated[
            int, says("a number from 68 to 65535; leave it out to keep the device's own", ge=68, le=65535)
        ]
        | None
    ) = None
    link_local: Annotated[
        Literal["drop", "forward"],
        says('"drop" or "forward": what becomes of frames to 01:80:c2:00:00:00 to 0f'),
    ] = "drop"
    processors: (
        Annotated[
            tuple[int, ...],
            says(
                'the processors that may serve its VMs, as "2-7"; leave it out to let the engine choose from all'
            ),
        ]
        | None
    ) = None
    numa_node: (
        Annotated[
            int,
            says(
                "the node of the processors that serve its VMs, a number from 0 to 1023; "
                "leave it out to prefer the node of its NIC",
                ge=0,
                le=1023,
            ),
        ]
        | None
    ) = None

    queues: (
        Annotated[
            int,
            says(
                "the number of VMs that have a receive queue of their own at a time, from 0 to 1024; "
                "leave it out for as many as there are VMs",
                ge=0,
                le=1024,
            ),
        ]
        | None
    ) = None

    @property
    def kind(self) -> str:
        return str(self.__struct_config__.tag)


class Tap(Uplink, frozen=True, kw_only=True, tag="tap"):
    """A TAP device: the host itself is at the other end."""

    device: Annotated[str, says("the name of a network device, at most 15 characters")]
    bridge: Annotated[str, says("the name of the bridge that the device joins")] | None = None
    create: Annotated[bool, says("true or false: create the device if it does not exist")] = True
    persist: Annotated[bool, says("true or false: leave a created device behind at the end")] = False


class Packet(Uplink, frozen=True, kw_only=True, tag="packet"):
    """A NIC or a veth through AF_PACKET: its kernel driver stays."""

    device: Annotated[str, says("the name of a network device, at most 15 characters")]
    promiscuous: Annotated[bool, says("true or false: take all frames, not only those of a filter")] = False


class Xdp(Packet, frozen=True, kw_only=True, tag="xdp"):
    """The same through AF_XDP: a program in the kernel hands over the frames to VMs, and leaves the host the others."""

    mode: Annotated[
        Literal["auto", "native", "generic"],
        says('"auto", "native" or "generic": whether the driver runs the program, or the kernel behind it'),
    ] = "auto"
    zero_copy: Annotated[
        Literal["auto", "on", "off"],
        says('"auto", "on" or "off": whether the NIC itself writes into memory of the engine'),
    ] = "auto"
    prepared: Annotated[
        bool,
        says("true or false: frames come with VLAN tags and whole checksums in them, as from a wire"),
    ] = False


class Pcap(Uplink, frozen=True, kw_only=True, tag="pcap"):
    """A capture replayed as frames from the wire, another written with what leaves; either may be absent."""

    read: Annotated[str, says("the path of a capture to replay")] | None = None
    write: Annotated[str, says("the path of a capture to write")] | None = None
    # In the record, 0 is without end: in Python True == 1, so a flag would compare equal to "once".
    repeat: Annotated[int, says("a number of replays from 1, or true for no end", ge=0)] = 1
    rate: (
        Annotated[int, says('frames a second, as 5000 or "1M"; leave it out for full speed', ge=1)] | None
    ) = None
    lossless: Annotated[bool, says("true or false: read no further while a destination is full")] = True


class Memory(Uplink, frozen=True, kw_only=True, tag="memory"):
    """Frames made in memory, to the VMs of the uplink in turn, and a sink; for tests and benchmarks."""

    size: Annotated[int, says("the bytes of a frame, a number from 60 to 65535", ge=60, le=65535)] = 64
    flows: Annotated[int, says("a number of flows from 1 to 1048576", ge=1, le=1048576)] = 1
    count: (
        Annotated[int, says("the number of frames to make, 0 for none; leave it out for no end", ge=0)] | None
    ) = None
    lossless: Annotated[bool, says("true or false: make no more while a destination is full")] = True


class Vm(Record, frozen=True, kw_only=True):
    """A VM port: its socket, its receive filters, its receive queues."""

    # The reader fills in the default: the VM's name, beside the socket of the API.
    socket: Annotated[str, says(f"the path of its vhost-user socket, at most {SOCKET_PATH_MAX} bytes")] = ""
    mode: Annotated[
        Literal["listen", "connect"], says('"listen" (QEMU connects) or "connect" (QEMU listens)')
    ] = "listen"
    uplink: (
        Annotated[
            str,
            says("the NAME of an [uplink.NAME]; leave it out to reach only VMs without one"),
        ]
        | None
    ) = None
    mac: Annotated[
        tuple[str, ...], says('its address, as "52:54:00:00:00:01", or a list of them', min_length=1)
    ]
    vlan: (
        Annotated[
            int,
            says(
                "a number from 1 to 4094; leave it out for untagged and priority-tagged frames", ge=1, le=4094
            ),
        ]
        | None
    ) = None
    learn: Annotated[
        tuple[str, ...],
        says('a list of prefixes of source addresses it may add to its filters, as "0e:fc:00:00:00:00/24"'),
    ] = ()
    learn_max: Annotated[
        int, says("the most addresses it may add, a number from 1 to 1024", ge=1, le=1024)
    ] = 8
    qmp: (
        Annotated[
            str,
            says(
                f"the path of a QMP socket of its QEMU, at most {SOCKET_PATH_MAX} bytes; "
                "leave it out to follow nothing"
            ),
        ]
        | None
    ) = None
    qmp_nic: (
        Annotated[
            str,
            says('the "id" of its network device in QEMU; leave it out to tell it by its addresses'),
        ]
        | None
    ) = None
    processor: (
        Annotated[int, says("the number of a processor; leave it out to let the engine choose", ge=0)] | None
    ) = None
    queue_pairs: Annotated[
        int,
        says(
            f"the number of receive queues offered to the guest, from 1 to {QUEUE_PAIRS_MAX}",
            ge=1,
            le=QUEUE_PAIRS_MAX,
        ),
    ] = QUEUE_PAIRS_MAX
    weight: Annotated[
        int,
        says(
            "what its traffic counts where receive queues are scarce, a number from 0 to 100 (0: never one of its own)",
            ge=0,
            le=100,
        ),
    ] = 100
    overload: Annotated[
        Literal["drop-newest", "drop-oldest", "hold"],
        says(
            '"drop-newest", "drop-oldest" or "hold": what becomes of frames for which the guest has posted no buffer'
        ),
    ] = "drop-newest"
    overload_frames: Annotated[
        int,
        says(
            "the most frames that wait for buffers, a number from 1 to 4096 (not with drop-newest)",
            ge=1,
            le=4096,
        ),
    ] = 256
    placement: Annotated[
        Literal["switched", "direct", "auto"],
        says(
            '"switched", "direct" or "auto": whether the engine writes frames into guest memory, or the kernel, where it can, '
            "or whoever takes less of the machine for frames of their length"
        ),
    ] = "switched"
    nic_queue: (
        Annotated[
            int,
            says(
                "the number of a receive queue of the NIC that is this VM's alone, from 1 to 65535 (uplink of kind xdp); "
                "leave it out to have none",
                ge=1,
                le=65535,
            ),
        ]
        | None
    ) = None
    indications: Annotated[
        int,
        says(
            "the most indications a second to the guest, a number from 0 to 1000000 (0: one a batch)",
            ge=0,
            le=1_000_000,
        ),
    ] = 0
    indication_frames: Annotated[
        int,
        says(
            "the frames for which the guest is told before its time, a number from 0 to 1000000 (0: none)",
            ge=0,
            le=1_000_000,
        ),
    ] = 0
    spoof_check: Annotated[bool, says("true or false: drop frames from an address that is not the VM's")] = (
        True
    )
    storm_limit: Annotated[
        int,
        says(
            "the most broadcast and multicast frames a second from the guest, a number from 0 to 100000000 (0: any)",
            ge=0,
            le=100_000_000,
        ),
    ] = 0
    accept: Annotated[
        tuple[Literal["broadcast", "multicast", "unknown"], ...],
        says(
            'a list out of "broadcast", "multicast", "unknown": the frames it gets beside those for its addresses'
        ),
    ] = ("broadcast", "multicast")
    mtu: (
        Annotated[int, says("a number from 68 to 65535; leave it out to take the uplink's", ge=68, le=65535)]
        | None
    ) = None


class Doctor(Record, frozen=True, kw_only=True):
    """From where on the doctor calls something a mistake, and how often. docs/doctor.md: where each default comes from."""

    ignore: Annotated[
        tuple[str, ...], says('a list of codes whose findings are accepted, as "D13" or ["D13", "D30"]')
    ] = ()
    wake_us: Annotated[
        int,
        says("microseconds that a worker's processor may take to wake, from 1 to 100000", ge=1, le=100_000),
    ] = 100
    busy_percent: Annotated[
        int, says("the share of time from which on a processor is saturated, from 1 to 100", ge=1, le=100)
    ] = 90
    single_percent: Annotated[
        int, says("the share of indications with one frame that is too many, from 1 to 100", ge=1, le=100)
    ] = 90
    drops_per_million: Annotated[
        int,
        says(
            "how many of a million frames may find no receive buffer, a number from 0 to 1000000",
            ge=0,
            le=1_000_000,
        ),
    ] = 100
    ring: Annotated[
        int, says("the least entries of a guest's receive ring, a number from 64 to 1024", ge=64, le=1024)
    ] = 1024
    busy_frames: Annotated[
        int, says("how many frames make a VM busy, a number from 1 to 1000000000", ge=1, le=1_000_000_000)
    ] = 1000
    idle_percent: Annotated[
        int,
        says("the share of a busy VM's frames below which another is idle, from 0 to 100", ge=0, le=100),
    ] = 10
    every: Annotated[
        int,
        says(
            "after how many seconds a running engine looks again, from 0 to 86400; 0: it never looks",
            ge=0,
            le=86_400,
        ),
    ] = 60


AnyUplink = Tap | Packet | Xdp | Pcap | Memory
KINDS: dict[str, type[AnyUplink]] = {
    "tap": Tap,
    "packet": Packet,
    "xdp": Xdp,
    "pcap": Pcap,
    "memory": Memory,
}


class Config(msgspec.Struct, frozen=True, kw_only=True, rename={"uplinks": "uplink", "vms": "vm"}):
    """A whole configuration. The mappings are not to be changed."""

    engine: Engine = Engine()
    uplinks: Mapping[str, AnyUplink] = msgspec.field(default_factory=dict)
    vms: Mapping[str, Vm] = msgspec.field(default_factory=dict)
    doctor: Doctor = Doctor()

    def __hash__(self) -> int:
        return hash((self.engine, self.doctor, frozenset(self.uplinks.items()), frozenset(self.vms.items())))


def tables(config: Config) -> dict[str, dict[str, Any]]:
    """A configuration as its tables, `vm.web` → keys and values of JSON, those too that the file leaves out."""
    said: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config))
    named = {f"{kind}.{name}": keys for kind in ("uplink", "vm") for name, keys in said[kind].items()}
    return {"engine": said["engine"], "doctor": said["doctor"], **named}
