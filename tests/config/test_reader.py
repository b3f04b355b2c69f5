# SPDX-License-Identifier: Apache-2.0
"""From text to Config: the design's example, every key by itself, and the exact line of each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmq.config import Config, Doctor, Engine, Memory, Packet, Pcap, Tap, Vm, Xdp, load, parse
from vmq.errors import ConfigError, ConfigErrors

EXAMPLE = """
[engine]
api        = "/run/vmq/api.sock"
processors = "1"
group      = "kvm"

[uplink.lan]
kind   = "tap"
device = "vmqtap0"
bridge = "br0"
mtu    = 1500

[vm.web]
socket = "/run/vmq/web.sock"
mode   = "listen"
uplink = "lan"
mac    = ["52:54:00:00:00:01"]
vlan   = 10
learn  = ["0e:fc:00:00:00:00/24", "0e:fd:00:00:00:00/24"]
processor = 1
"""
VM = '[vm.web]\nmac = "52:54:00:00:00:01"\n'
UPLINK = '[uplink.lan]\nkind = "tap"\ndevice = "t0"\n'


def lines(text: str, where: str = "/etc/vmq.toml") -> list[str]:
    """What is wrong with a text, a line each, without the name of the file."""
    with pytest.raises(ConfigErrors) as refused:
        parse(text, where, available={0, 1})
    found = str(refused.value).splitlines()
    assert len(found) == len(refused.value.errors)
    assert all(line.startswith(f"{where}: ") for line in found)
    return [line.removeprefix(f"{where}: ") for line in found]


def test_the_example_of_the_design_is_read_as_written() -> None:
    """design §4 What users write."""
    assert parse(EXAMPLE, "vmq.toml", available={0, 1}) == Config(
        engine=Engine(api="/run/vmq/api.sock", processors=(1,), group="kvm"),
        uplinks={"lan": Tap(device="vmqtap0", bridge="br0", mtu=1500)},
        vms={
            "web": Vm(
                socket="/run/vmq/web.sock",
                mode="listen",
                uplink="lan",
                mac=("52:54:00:00:00:01",),
                vlan=10,
                learn=("0e:fc:00:00:00:00/24", "0e:fd:00:00:00:00/24"),
                processor=1,
            )
        },
    )


def test_an_empty_file_is_an_engine_without_vms() -> None:
    """Nothing is required of a file but that what it has is right."""
    assert parse("", "vmq.toml") == Config()


def test_a_socket_left_out_is_named_after_its_vm_beside_the_api() -> None:
    """A path derived from the name is the same on both hosts of a migration."""
    config = parse(f'[engine]\napi = "/run/x/api.sock"\n{VM}', "vmq.toml")

    assert config.vms["web"].socket == "/run/x/web.sock"


def test_a_relative_path_counts_from_the_directory_of_the_file() -> None:
    """Where the process was started does not change what a file means."""
    config = parse(f'{VM}socket = "run/../web.sock"\n', "/etc/vmq/vmq.toml")

    assert config.vms["web"].socket == "/etc/vmq/web.sock"


def test_the_socket_and_the_device_of_qemu_are_read(tmp_path: Path) -> None:
    """[vm.NAME] qmp is a path, qmp_nic a name of QEMU's."""
    config = parse(f'{VM}qmp = "web.qmp"\nqmp_nic = "net0"\n', str(tmp_path / "vmq.toml"))

    assert (config.vms["web"].qmp, config.vms["web"].qmp_nic) == (f"{tmp_path}/web.qmp", "net0")


@pytest.mark.parametrize(
    ("text", "uplink"),
    [
        ('kind = "packet"\ndevice = "eth1"\npromiscuous = true', Packet(device="eth1", promiscuous=True)),
        (
            'kind = "packet"\ndevice = "eth1"\nlink_local = "forward"',
            Packet(device="eth1", link_local="forward"),
        ),
        (
            'kind = "xdp"\ndevice = "eth1"\nmode = "native"\nzero_copy = "off"\nprepared = true',
            Xdp(device="eth1", mode="native", zero_copy="off", prepared=True),
        ),
        (
            'kind = "tap"\ndevice = "t"\ncreate = false\npersist = true',
            Tap(device="t", create=False, persist=True),
        ),
        ('kind = "pcap"\nwrite = "/o"\nrepeat = true\nrate = "2k"', Pcap(write="/o", repeat=0, rate=2000)),
        (
            'kind = "pcap"\nwrite = "/o"\nlossless = false\nrepeat = 3',
            Pcap(write="/o", repeat=3, lossless=False),
        ),
        ('kind = "memory"', Memory(size=64, flows=1, count=None, lossless=True)),
        ('kind = "memory"\nsize = 1514\nflows = 4096\ncount = 9', Memory(size=1514, flows=4096, count=9)),
    ],
)
def test_each_kind_of_uplink_has_its_own_keys(text: str, uplink: object) -> None:
    """[uplink.NAME] kind chooses the keys."""
    assert parse(f"[uplink.x]\n{text}\n", "vmq.toml").uplinks == {"x": uplink}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[vms]", "vms: unknown table. Remedy: Did you mean vm?"),
        ("[zzz]", "zzz: unknown table. Remedy: Use one of engine, uplink, vm, doctor"),
        ("uplink = 5", "uplink: not a table. Remedy: Write [uplink.NAME] and its keys below"),
        ("engine = 5", "engine: not a table. Remedy: Write [engine] and its keys below"),
        ("[uplink]\nlan = 5", "[uplink] lan: outside of a table. Remedy: Write it below [uplink.NAME]"),
        (
            '[vm."a b"]',
            (
                '[vm."a b"]: not usable as a name. '
                "Remedy: Use at most 63 letters, digits, and after the first also _ . and -"
            ),
        ),
        ("[engine]\ngruop = 'kvm'", "[engine] gruop: unknown key. Remedy: Did you mean group?"),
        (
            "[engine]\nzzz = 5",
            "[engine] zzz: unknown key. Remedy: Use one of api, processors, group, guard, placement, placement_figures, idle",
        ),
        (
            "[engine]\ngroup = ''",
            (
                '[engine] group: "" is not valid. '
                "Remedy: Set group to the name of the group that owns the sockets, QEMU's"
            ),
        ),
        (
            "[engine]\nprocessors = '1-'",
            (
                '[engine] processors: "1-" is not a list of processors. Remedy: Set processors to the processors of '
                'the workers, as "1" or "0-3,8"; leave it out to let the engine choose'
            ),
        ),
        (
            "[uplink.x]\ndevice = 't0'",
            "[uplink.x] kind: missing. Remedy: Set kind to one of tap, packet, xdp, pcap, memory",
        ),
        (
            "[uplink.x]\nkind = 'tun'",
            '[uplink.x] kind: "tun" is no kind of uplink. Remedy: Set kind to one of tap, packet, xdp, pcap, memory',
        ),
        (
            "[uplink.x]\nkind = 'xdp'\ndevice = 'eth0'\nmode = 'skb'",
            (
                '[uplink.x] mode: "skb" is not valid. Remedy: Set mode to "auto", "native" or "generic": '
                "whether the driver runs the program, or the kernel behind it"
            ),
        ),
        (
            "[uplink.x]\nkind = 'tap'",
            "[uplink.x] device: missing. Remedy: Set device to the name of a network device, at most 15 characters",
        ),
        (
            "[uplink.x]\nkind = 'tap'\ndevise = 't0'",
            "[uplink.x] devise: unknown key. Remedy: Did you mean device?",
        ),
        (
            f"{UPLINK}mtu = '1500'",
            (
                '[uplink.lan] mtu: "1500" is not valid. '
                "Remedy: Set mtu to a number from 68 to 65535; leave it out to keep the device's own"
            ),
        ),
        (
            f"{UPLINK}link_local = 'pass'",
            (
                '[uplink.lan] link_local: "pass" is not valid. '
                'Remedy: Set link_local to "drop" or "forward": what becomes of frames to 01:80:c2:00:00:00 to 0f'
            ),
        ),
        (
            f"{VM}vlan = 0",
            (
                "[vm.web] vlan: 0 is not valid. Remedy: Set vlan to a number from 1 to 4094; "
                "leave it out for untagged and priority-tagged frames"
            ),
        ),
        (
            f"{VM}vlan = 4095",
            (
                "[vm.web] vlan: 4095 is not valid. Remedy: Set vlan to a number from 1 to 4094; "
                "leave it out for untagged and priority-tagged frames"
            ),
        ),
        (
            f"{VM}queue_pairs = 17",
            (
                "[vm.web] queue_pairs: 17 is not valid. "
                "Remedy: Set queue_pairs to the number of receive queues offered to the guest, from 1 to 16"
            ),
        ),
        (
            f"{VM}mode = 'server'",
            (
                '[vm.web] mode: "server" is not valid. '
                'Remedy: Set mode to "listen" (QEMU connects) or "connect" (QEMU listens)'
            ),
        ),
        (
            f'{VM}socket = "\\u0000"',
            (
                '[vm.web] socket: "\\u0000" is not valid. '
                "Remedy: Set socket to the path of its vhost-user socket, at most 107 bytes"
            ),
        ),
        (
            "[vm.web]\nmac = []",
            (
                "[vm.web] mac: [] is not valid. "
                'Remedy: Set mac to its address, as "52:54:00:00:00:01", or a list of them'
            ),
        ),
        (
            "[vm.web]\nmac = '01:00:5e:00:00:01'",
            (
                '[vm.web] mac: "01:00:5e:00:00:01" is a multicast address, which no VM can own. '
                'Remedy: Set mac to its address, as "52:54:00:00:00:01", or a list of them'
            ),
        ),
        (
            "[vm.web]",
            '[vm.web] mac: missing. Remedy: Set mac to its address, as "52:54:00:00:00:01", or a list of them',
        ),
        (
            f"{VM}spoof_check = 1",
            (
                "[vm.web] spoof_check: 1 is not valid. "
                "Remedy: Set spoof_check to true or false: drop frames from an address that is not the VM's"
            ),
        ),
        (
            f"{VM}weight = 101",
            (
                "[vm.web] weight: 101 is not valid. Remedy: Set weight to what its traffic counts where receive queues "
                "are scarce, a number from 0 to 100 (0: never one of its own)"
            ),
        ),
        (
            f"{UPLINK}queues = 1025",
            (
                "[uplink.lan] queues: 1025 is not valid. Remedy: Set queues to the number of VMs that have a receive "
                "queue of their own at a time, from 0 to 1024; leave it out for as many as there are VMs"
            ),
        ),
        (
            "[engine]\nplacement = 'direct'",
            (
                '[engine] placement: "direct" is not valid. Remedy: Set placement to "static" or "dynamic": '
                "whether VMs move to other processors as load comes and goes"
            ),
        ),
        (f"{VM}trunk = true", "[vm.web] trunk: not available in this version. Remedy: Remove the key"),
        (f"{VM}lossless = []", "[vm.web] lossless: not available in this version. Remedy: Remove the key"),
        (
            f"{VM}qmp = '/q'\nqmp_nic = '/machine'",
            (
                '[vm.web] qmp_nic: "/machine" cannot be the id of a device in QEMU. Remedy: Set qmp_nic to the "id" of '
                "its network device in QEMU; leave it out to tell it by its addresses"
            ),
        ),
        (
            "[vm.web",
            (
                "not TOML: Expected ']' at the end of a table declaration (at end of document). "
                "Remedy: Correct that place: texts need quotes, a table comes once"
            ),
        ),
    ],
)
def test_each_mistake_is_one_line_with_file_key_and_remedy(text: str, line: str) -> None:
    """Errors name the file, the key and the remedy on one line."""
    assert lines(text) == [line]


def test_thresholds_of_the_doctor_and_what_is_accepted() -> None:
    """[doctor] may be left out; codes are read in either case, one or several."""
    found = parse('[doctor]\nignore = ["d13", "D30"]\nwake_us = 200\n', "vmq.toml").doctor

    assert (found.ignore, found.wake_us, found.ring) == (("D13", "D30"), 200, 1024)
    assert parse('[doctor]\nignore = "d01"\n', "vmq.toml").doctor.ignore == ("D01",)
    assert parse("", "vmq.toml").doctor == Doctor()


def test_all_mistakes_of_a_file_are_reported_at_once() -> None:
    """A file is corrected once, not once for each of its errors."""
    found = lines(f"[engin]\n{UPLINK}mtu = 9\n{VM}vlan = 0\nuplink = 'wan'\n[vm.b]\n")

    assert [line.partition(": ")[0] for line in found] == [
        "engin",
        "[uplink.lan] mtu",
        "[vm.web] vlan",
        "[vm.b] mac",
    ]


def test_a_table_with_a_mistake_still_counts_as_there() -> None:
    """One mistake, one line: a VM on a wrong uplink is not also told that the uplink is missing."""
    assert lines(f'{UPLINK}mtu = 9\n{VM}uplink = "lan"\n') == [
        (
            "[uplink.lan] mtu: 9 is not valid. "
            "Remedy: Set mtu to a number from 68 to 65535; leave it out to keep the device's own"
        )
    ]


def test_load_reads_a_file_and_judges_its_processors_by_this_process(tmp_path: Path) -> None:
    """A processor outside of the affinity of the process cannot be pinned to."""
    file = tmp_path / "vmq.toml"
    file.write_text(f"{VM}processor = 8000\n", encoding="utf-8")

    with pytest.raises(ConfigErrors, match=r"\[vm.web\] processor: there is no processor 8000"):
        load(file)
    assert load(file, available={8000}).vms["web"].processor == 8000


def test_load_of_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """Exit 2, one line: the file and the remedy."""
    with pytest.raises(ConfigError) as missing:
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError) as directory:
        load(tmp_path)
    (tmp_path / "latin1.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(ConfigError) as latin1:
        load(tmp_path / "latin1.toml")

    assert str(missing.value) == (
        f"{tmp_path}/none.toml: cannot be read: No such file or directory. Remedy: Give the path of a readable file"
    )
    assert "Is a directory" in str(directory.value)
    assert (
        str(latin1.value)
        == f"{tmp_path}/latin1.toml: is not UTF-8. Remedy: Save it as UTF-8, as TOML demands"
    )
    assert missing.value.exit_code == directory.value.exit_code == latin1.value.exit_code == 2


def test_keys_of_dynamic_placement_and_scarce_queues() -> None:
    """Left out, nothing moves and nobody goes without."""
    found = parse(f"[engine]\nplacement = 'dynamic'\n{UPLINK}queues = 0\n{VM}weight = 0\n", "vmq.toml")
    assert (found.engine.placement, found.uplinks["lan"].queues, found.vms["web"].weight) == ("dynamic", 0, 0)

    plain = parse(f"{UPLINK}{VM}", "vmq.toml")
    assert (plain.engine.placement, plain.uplinks["lan"].queues, plain.vms["web"].weight) == (
        "static",
        None,
        100,
    )
