# SPDX-License-Identifier: Apache-2.0
"""docs/administrators.md, carried out: each row of its tables, on an engine that runs, with guests.

A row names what Windows has, what is to be done here, and where it is seen: a command whose JSON has the value, or a key
of the configuration that is in effect after SIGHUP. So a row that does not do what it says fails; and what Windows has and
no row names fails, too. No root is needed: the wire is a capture.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.control.daemon import Process
from tests.engine.running import FIRST_CPU, MACS, TWO_CPUS, exchange, until
from vmq.config import cpu_text
from vmq.topology import read
from vmq.uplink.pcapfile import CaptureWriter

PAGE = (Path(__file__).parents[2] / "docs" / "administrators.md").read_text()
NODE = read().nodes.get(FIRST_CPU)  # None: this host has no nodes
NOWHERE = "–"

# What administrators know. MSFT_NetAdapterVmqSettingData, Get-NetAdapterVmqQueue, Set-NetAdapterVmq, Set-VMNetworkAdapter, …
WINDOWS = ["Name", "InterfaceDescription", "Enabled", "BaseProcessorGroup", "BaseProcessorNumber", "MaxProcessors", "MaxProcessorNumber", "NumaNode", "NumberOfReceiveQueues", "TotalNumberOfMacAddresses", "NumMacAddressesPerPort", "NumVlansPerPort", "VlanFilteringSupported", "AnyVlanSupported", "LookaheadSplitSupported", "MinLookaheadSplitSize", "MaxLookaheadSplitSize", "DynamicProcessorAffinityChangeSupported", "InterruptVectorCoalescingSupported", "QueueID", "MacAddress", "VlanID", "Processor", "VmFriendlyName", "Enable-NetAdapterVmq", "Disable-NetAdapterVmq", "Set-NetAdapterVmq", "-BaseProcessorGroup", "-BaseProcessorNumber", "-MaxProcessors", "-MaxProcessorNumber", "-NumaNode", "-Enabled", "-NoRestart", "-WhatIf", "-Name", "-InterfaceDescription", "-IncludeHidden", "-InputObject", "-PassThru", "-AsJob", "-CimSession", "-ThrottleLimit", "-Confirm", "Set-VMNetworkAdapter", "-VmqWeight", "-VmmqEnabled", "-VmmqQueuePairs", "-VrssEnabled", "-IovWeight", "-IovQueuePairsRequested", "-IovInterruptModeration", "-PacketDirectModerationCount", "-PacketDirectModerationInterval", "-PacketDirectNumProcs", "-MinimumBandwidthAbsolute", "-MinimumBandwidthWeight", "-MaximumBandwidth", "-MacAddressSpoofing", "-StaticMacAddress", "-DynamicMacAddress", "-DhcpGuard", "-RouterGuard", "-StormLimit", "-IeeePriorityTag", "-PortMirroring", "-IPsecOffloadMaximumSecurityAssociation", "-VirtualSubnetId", "-AllowTeaming", "Set-VMNetworkAdapterVlan", "Set-VMSwitch", "-EnableSoftwareRsc", "-DefaultQueueVrssEnabled", "-DefaultQueueVmmqEnabled", "-DefaultQueueVmmqQueuePairs", "New-NetLbfoTeam", "-EnableEmbeddedTeaming", "Validate-HypvRssVMQ.ps1", "!ndiskd.rcvqueue", "Get-NetAdapterVPort", "-VPortID", "-SwitchID", "-FunctionID", "-PhysicalFunction"]  # fmt: skip

# What has no equivalent: the page says why, in words. A row that loses its command has to be put here.
WITHOUT = ["BaseProcessorGroup", "MinLookaheadSplitSize", "MaxLookaheadSplitSize", "-BaseProcessorGroup", "-NoRestart", "-Name", "-InterfaceDescription", "-IncludeHidden", "-InputObject", "-PassThru", "-AsJob", "-CimSession", "-ThrottleLimit", "-Confirm", "-VrssEnabled", "-IovWeight", "-IovQueuePairsRequested", "-PacketDirectNumProcs", "-MinimumBandwidthAbsolute", "-MinimumBandwidthWeight", "-MaximumBandwidth", "-DhcpGuard", "-RouterGuard", "-IeeePriorityTag", "-VirtualSubnetId", "-AllowTeaming", "-IPsecOffloadMaximumSecurityAssociation", "-PortMirroring", "Set-VMSwitch", "-EnableSoftwareRsc", "-DefaultQueueVrssEnabled", "-DefaultQueueVmmqEnabled", "-DefaultQueueVmmqQueuePairs", "New-NetLbfoTeam", "New-VMSwitch", "-EnableEmbeddedTeaming"]  # fmt: skip

NOT_TO_BE_RUN = {"vmq run", "vmq filter set"}  # named in a remark, as a word


@dataclass(frozen=True)
class Row:
    """One row of a table: what Windows has, what to do here, where it is seen, and a remark."""

    there: str
    here: str
    seen: str
    remark: str

    @property
    def names(self) -> list[str]:
        """The words of Windows."""
        return [word for one in re.findall(r"`([^`]+)`", self.there) for word in one.split()]

    @property
    def does(self) -> str:
        """The command, or the key; nothing where there is none."""
        return self.here.strip("`") if self.here != NOWHERE else ""


def rows() -> list[Row]:
    """All rows of all tables, without their heads."""
    found = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("| ")
    ]
    assert {len(cells) for cells in found} == {4}
    return [Row(*cells) for cells in found if cells[1:3] != ["here", "seen in"]]


def title(row: Row) -> str:
    return (row.names or [row.seen.strip("`")])[0]


ROWS = rows()
READ = [row for row in ROWS if row.does.startswith("vmq ") and not row.seen.startswith("`vmq ")]
KEYS = [row for row in ROWS if " = " in row.does]
OPERATIONS = [row for row in ROWS if row.does.startswith("vmq ") and row.seen.startswith("`vmq ")]
OTHERS = [row for row in ROWS if row not in READ + KEYS + OPERATIONS]


def test_every_word_of_windows_has_a_row() -> None:
    """And none has lost what is to be done."""
    assert set(WINDOWS) - {word for row in ROWS for word in row.names} == set()
    without = {word for row in ROWS if not row.does for word in row.names}
    assert without == set(WITHOUT)
    assert [row for row in ROWS if not row.does and not row.remark] == []
    assert [row.does for row in OTHERS if row.does] == ["[uplink.NAME]"]


# --- the engine


class Engine:
    """`vmq run` with two VMs and their guests, and the file that it reads."""

    def __init__(self, folder: Path, process: Process) -> None:
        self.folder, self.process = folder, process
        self.wire = str(folder / "wire.pcap")
        with contextlib.closing(CaptureWriter(self.wire)) as made:
            made.write(bytes(60))
        self.tables: dict[str, dict[str, Any]] = {
            "engine": {"api": process.api, "processors": cpu_text(TWO_CPUS)},
            "uplink.lan": {"kind": "pcap", "read": self.wire, "processors": cpu_text(TWO_CPUS)},
            "vm.web": {"uplink": "lan", "mac": MACS[0], "vlan": 5, "queue_pairs": 2},
            "vm.db": {"uplink": "lan", "mac": MACS[1], "vlan": 5, "queue_pairs": 1},
        }
        self.write()

    def write(self, **changes: dict[str, Any]) -> None:
        """The file, with other keys in some tables."""
        tables = {
            name: self.tables.get(name, {}) | changes.get(name, {}) for name in {**self.tables, **changes}
        }
        lines = [
            line
            for name, keys in tables.items()
            for line in (f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()))
        ]
        self.process.path.write_text("\n".join([*lines, ""]))

    def reload(self, **changes: dict[str, Any]) -> None:
        """SIGHUP with a changed file; what is refused fails here."""
        self.write(**changes)
        before = self.process.ask("events")[-1]["number"]
        self.process.kill(signal.SIGHUP)

        def answer() -> list[dict[str, Any]]:
            told = self.process.ask("events", since=before)
            return [one for one in told if one["event"] == "configured"]

        assert until(answer)[0]["wrong"] is None


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("administrators")
    process = Process(folder)
    one = Engine(folder, process)
    with process.start().ready(), process.guest("web", MACS[0]) as web, process.guest("db", MACS[1]) as db:
        exchange(web, db, 3)
        until(lambda: all(row["frames_to_guest"] == 3 for row in process.show("vms")))
        yield one
    assert "fault" not in process.log


@dataclass
class Words:
    """A command of the page, with what is to be put in."""

    engine: Engine
    vmq: Run

    def put_in(self, text: str, **more: str) -> str:
        file = (
            str(self.engine.folder / "capture.pcapng") if "capture" in text else str(self.engine.process.path)
        )
        names = {
            "uplink NAME": "uplink lan",
            "uplink.NAME": "uplink.lan",
            "vm NAME": "vm web",
            "vm.NAME": "vm.web",
            "VM": "web",
            "FILE": file,
            "CPU": str(FIRST_CPU),
            "NODE": str(NODE),
        }
        for name, value in (names | more).items():
            text = re.sub(rf"(?<![\w-]){name}(?![\w-])", value, text)
        return text

    def run(self, command: str, *options: str, **more: str) -> str:
        """What it prints; the doctor may have found something."""
        words = self.put_in(command, **more).split()[1:]
        if words[0] == "doctor":
            options = (*options, "--config", str(self.engine.process.path))
        code, out, err = self.vmq(*words, *options)
        assert code in ({0, 1} if words[0] == "doctor" else {0}), (command, err)
        return out

    def values(self, command: str, key: str, **more: str) -> list[Any]:
        """What is seen under a key of the JSON; of a list, all that is in it."""
        answer = json.loads(self.run(command, "--json", **more))
        of, colon, name = self.put_in(key).partition(": ")
        if colon:
            return [row for row in answer if (row["of"], row["name"]) == (of, name)]
        found = [answer]
        for part in key.split("."):
            found = [one[part] for one in flat(found) if one]
        return flat(found)

    def seen(self, row: Row) -> list[Any]:
        """Of a row whose command to look is in the third column."""
        command, key = re.findall(r"`([^`]+)`", row.seen)
        return self.values(command, key)


def flat(values: list[Any]) -> list[Any]:
    """One level of lists less."""
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


@pytest.fixture
def words(engine: Engine, vmq: Run, monkeypatch: pytest.MonkeyPatch) -> Words:
    monkeypatch.setenv("VMQ_API", engine.process.api)
    return Words(engine, vmq)


# --- what is read


def expected(engine: Engine) -> dict[str, Any]:
    """Row → what is among its values; in a tuple, what is not."""
    processors = cpu_text(TWO_CPUS)
    return {
        "Name": "lan",
        "InterfaceDescription": engine.wire,
        "Enabled": "up",
        "BaseProcessorNumber": processors,
        "NumaNode": None,
        "NumberOfReceiveQueues": 4096,
        "TotalNumberOfMacAddresses": MACS[0],
        "NumVlansPerPort": 5,
        "VlanFilteringSupported": "vlan_id",
        "AnyVlanSupported": True,
        "LookaheadSplitSupported": ("lookahead_split",),
        "DynamicProcessorAffinityChangeSupported": "dynamic_processor_affinity_change",
        "InterruptVectorCoalescingSupported": ("interrupt_vector_coalescing",),
        "QueueID": 0,
        "MacAddress": MACS[1],
        "VlanID": 5,
        "Processor": FIRST_CPU,
        "VmFriendlyName": "web",
        "state": "Running",
        "frames_to_guest": 3,
        "-WhatIf": "web",
        "Get-NetAdapterVPort": "db",
        "Validate-HypvRssVMQ.ps1": "D06",
        "!ndiskd.rcvqueue": "Running",
        "106": "D01",
        "113": "D08",
        "28": "D15",
        "\\Hyper-V": 3,
    }


@pytest.mark.parametrize("row", READ, ids=title)
def test_what_is_named_is_in_the_answer(words: Words, row: Row) -> None:
    """Under the key that the row gives, with the value that this engine has."""
    key = row.seen.strip("`")
    name = re.sub(r"event ", "", row.there) if row.there.startswith("event") else title(row)
    want, values = expected(words.engine)[name], words.values(row.does, key)
    if ": " in key:
        (setting,) = values
        assert (setting["requested"], setting["effective"]) == (want, want)
    elif isinstance(want, tuple):
        assert values
        assert set(want) & set(values) == set()
    elif name == "-WhatIf":
        assert want in [one["name"] for one in values]
    else:
        assert want in values


def test_every_row_that_is_read_is_read_once(engine: Engine) -> None:
    """Nothing is expected of a row that is no longer there."""
    assert len(expected(engine)) == len(READ)


# --- what is set


def asked(row: Row, words: Words) -> tuple[str, str, Any]:
    """Table, key and value of a row such as `[vm.NAME] weight = 50`."""
    table, _, line = words.put_in(row.does).partition(" ")
    ((key, value),) = tomllib.loads(line).items()
    return table.strip("[]"), key, value


@pytest.mark.parametrize("row", KEYS, ids=title)
def test_a_switch_is_in_effect_when_the_file_was_read_again(words: Words, row: Row) -> None:
    """The same engine goes on; the view has another value than before, and the one that the page says."""
    if "NODE" in row.does and NODE is None:
        pytest.skip("the kernel of this host names no nodes")
    table, key, value = asked(row, words)
    pid = words.engine.process.ask("ping")["pid"]
    (before,) = words.seen(row)
    words.engine.reload(**{table: {key: value}})
    (after,) = words.seen(row)
    words.engine.reload()

    assert after["requested"] != before["requested"] or value == before["requested"] == str(FIRST_CPU)
    assert after["requested"] in (value, [value], ", ".join(value) if isinstance(value, list) else value)
    if key == "queue_pairs":  # the guest decides how many of them it enables
        assert after["why"]
    else:
        assert after["effective"] == after["requested"]
    assert words.seen(row) == [before] or key == "queue_pairs"
    assert words.engine.process.ask("ping")["pid"] == pid


def test_an_uplink_is_there_or_not(words: Words) -> None:
    """Enable, disable: the table in the file."""
    (row,) = (row for row in OTHERS if row.does)
    for changes, names in (
        ({}, ["lan"]),
        ({"uplink.wan": {"kind": "memory", "count": 0}}, ["lan", "wan"]),
        ({}, ["lan"]),
    ):
        words.engine.reload(**changes)
        assert words.seen(row) == names


def test_operations_of_drivers_have_their_commands(words: Words) -> None:
    """In the order of the page: each changes what is seen."""
    ids: dict[str, str] = {}
    for row in OPERATIONS:
        command, key = re.findall(r"`([^`]+)`", row.seen)
        before = words.values(command, key)
        words.run(row.does, **ids)
        after = words.values(command, key)
        assert after != before, row
        for noun, verb in (("QUEUE", "vmq queue list"), ("FILTER", "vmq filter list")):
            mine = [one for one in json.loads(words.run(verb, "--json")) if one["owner"] == "cli"]
            if mine:
                ids[noun] = str(mine[0][noun.lower()])
    assert [one for one in json.loads(words.run("vmq queue list", "--json")) if one["owner"] == "cli"] == []


# --- what is remarked


@pytest.mark.parametrize(
    "command",
    sorted({one for row in ROWS for one in re.findall(r"`(vmq [^`]+)`", row.remark)} - NOT_TO_BE_RUN),
)
def test_a_command_in_a_remark_can_be_run(words: Words, command: str) -> None:
    assert words.run(command) or "capture" in command
