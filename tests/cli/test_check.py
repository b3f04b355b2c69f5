# SPDX-License-Identifier: Apache-2.0
"""vmq check and vmq schema: what is printed is itself a configuration, with the same meaning."""

from __future__ import annotations

import json

import pytest

from tests.doctor.hosts import host
from vmq.config import Config, parse
from vmq.doctor import Facts

FILE = """
[engine]
processors = "0"

[uplink."w.an"]
kind = "pcap"
write = "/tmp/out.pcap"
repeat = true
rate = "2k"

[vm.web]
uplink = "w.an"
mac = "52-54-00-00-00-0A"
learn = "0e:fc:00:00:00:00/24"
"""
EFFECTIVE = """\
# {name}: no mistake found; 1 uplink, 1 VM

[engine]
api = "/run/vmq/api.sock"  # default
processors = "0"
# group is left open
guard = true  # default
placement = "static"  # default
# placement_figures is left open
idle = "sleep"  # default

[uplink."w.an"]
kind = "pcap"
# mtu is left open
link_local = "drop"  # default
# processors is left open
# numa_node is left open
# queues is left open
# read is left open
write = "/tmp/out.pcap"
repeat = true
rate = 2000
lossless = true  # default

[vm.web]
socket = "/run/vmq/web.sock"
mode = "listen"  # default
uplink = "w.an"
mac = ["52:54:00:00:00:0a"]
# vlan is left open
learn = ["0e:fc:00:00:00:00/24"]
learn_max = 8  # default
# qmp is left open
# qmp_nic is left open
# processor is left open
queue_pairs = 16  # default
weight = 100  # default
overload = "drop-newest"  # default
overload_frames = 256  # default
placement = "switched"  # default
# nic_queue is left open
indications = 0  # default
indication_frames = 0  # default
spoof_check = true  # default
storm_limit = 0  # default
accept = ["broadcast", "multicast"]  # default
# mtu is left open

[doctor]
ignore = []  # default
wake_us = 100  # default
busy_percent = 90  # default
single_percent = 90  # default
drops_per_million = 100  # default
ring = 1024  # default
busy_frames = 1000  # default
idle_percent = 10  # default
every = 60  # default
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(Facts, "read", classmethod(lambda *_, **__: Facts()))
    path = tmp_path / "vmq.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_check_prints_the_configuration_in_effect(vmq, file) -> None:
    """Defaults written out and marked; what stays open said."""
    assert vmq("check", str(file)) == (0, EFFECTIVE.format(name=file), "")


def test_what_check_prints_is_the_same_configuration(vmq, file) -> None:
    """Reading it again changes nothing: a plan from one to the other is empty."""
    printed = vmq("check", str(file))[1]

    assert parse(printed, str(file)) == parse(FILE, str(file)) != Config()


def test_check_in_json_has_the_words_of_the_file(vmq, file) -> None:
    """uplink and vm, as in the file; values as the engine takes them."""
    code, out, err = vmq("check", str(file), "-j")
    printed = json.loads(out)

    assert (code, err) == (0, "")
    assert printed["engine"] == {
        "api": "/run/vmq/api.sock",
        "processors": [0],
        "group": None,
        "guard": True,
        "idle": "sleep",
        "placement": "static",
        "placement_figures": None,
    }
    assert printed["uplink"]["w.an"]["kind"] == "pcap"
    assert printed["vm"]["web"]["mac"] == ["52:54:00:00:00:0a"]


REMARK = """
# D04 warning: processor 0: A receive queue is served on processor 0. A worker that is busy takes the processor \
away from the host's own work, and waits for it. Fix: processors = "1" in [engine] of {name}; processor of a VM, \
if set, likewise
"""


def test_check_remarks_what_is_set_up_badly_for_this_host(vmq, file, monkeypatch) -> None:
    """Rules of vmq doctor that need nothing started: comments, and the same configuration as before."""
    monkeypatch.setattr(Facts, "read", classmethod(lambda *_, **__: host("0", "1")))

    code, out, err = vmq("check", str(file))

    assert (code, err) == (0, "")
    assert out.endswith(REMARK.format(name=file))
    assert parse(out, str(file)) == parse(FILE, str(file))


def test_check_names_what_is_accepted(vmq, file, monkeypatch) -> None:
    """`ignore` of [doctor]: no remark, and not hidden either."""
    monkeypatch.setattr(Facts, "read", classmethod(lambda *_, **__: host("0", "1")))
    file.write_text(FILE + '[doctor]\nignore = "D04"\n', encoding="utf-8")

    code, out, _ = vmq("check", str(file))

    assert code == 0
    assert 'ignore = ["D04"]\n' in out
    assert out.splitlines()[-1] == "# D04 accepted: processor 0: A receive queue is served on processor 0."


def test_check_in_json_remarks_on_stderr(vmq, file, monkeypatch) -> None:
    """stdout is the configuration's alone."""
    monkeypatch.setattr(Facts, "read", classmethod(lambda *_, **__: host("0", "1")))

    code, out, err = vmq("check", str(file), "--json")

    assert code == 0
    assert "vm" in json.loads(out)
    assert [finding["code"] for finding in json.loads(err)["findings"]] == ["D04"]


def test_check_ends_with_1_where_traffic_would_be_lost(vmq, file) -> None:
    """A VM with a larger MTU than its uplink."""
    text = FILE.replace('rate = "2k"', 'rate = "2k"\nmtu = 1500') + "mtu = 9000\n"
    file.write_text(text, encoding="utf-8")

    code, out, _ = vmq("check", str(file))

    assert code == 1
    assert "\n# D28 error: VM web: MTUs do not match." in out


def test_check_of_a_wrong_file_prints_its_mistakes_and_ends_with_2(vmq, file) -> None:
    """One line each on stderr, nothing on stdout."""
    file.write_text(FILE + "vlan = 0\ntrunk = true\n", encoding="utf-8")

    assert vmq("check", str(file)) == (
        2,
        "",
        (
            f"{file}: [vm.web] vlan: 0 is not valid. Remedy: Set vlan to a number from 1 to 4094; "
            "leave it out for untagged and priority-tagged frames\n"
            f"{file}: [vm.web] trunk: not available in this version. Remedy: Remove the key\n"
        ),
    )


def test_schema_is_printed_as_json(vmq) -> None:
    """For an editor's #:schema line."""
    code, out, err = vmq("schema", "config")

    assert (code, err) == (0, "")
    assert set(json.loads(out)["$defs"]) == {
        "Config",
        "Engine",
        "Tap",
        "Packet",
        "Xdp",
        "Pcap",
        "Memory",
        "Vm",
        "Doctor",
    }


def test_the_api_is_described_without_an_engine(vmq, monkeypatch) -> None:
    """For a client in another language."""
    monkeypatch.setenv("VMQ_API", "/nonexistent")
    code, out, err = vmq("schema", "api")

    assert (code, err) == (0, "")
    assert set(json.loads(out)) >= {"api", "methods", "event", "$defs"}
    assert vmq("schema", "a")[1] == out
