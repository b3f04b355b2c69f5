# SPDX-License-Identifier: Apache-2.0
"""Command lines as people and libvirt write them."""

from __future__ import annotations

import pytest

from vmq.doctor.qemu import is_program, number, parse, read


@pytest.mark.parametrize(
    "name", ["qemu-system-x86_64", "/usr/bin/qemu-system-aarch64", "/usr/libexec/qemu-kvm", "kvm"]
)
def test_qemu_is_known_by_its_name(name: str) -> None:
    assert is_program(name)


@pytest.mark.parametrize("name", ["qemu-img", "bash", "", "my-qemu-system-x86_64", "qemu-system-x86_64.sh"])
def test_other_programs_are_not_qemu(name: str) -> None:
    assert not is_program(name)


@pytest.mark.parametrize(
    ("value", "implied", "options"),
    [
        ("socket,id=c,path=/x", "type", {"type": "socket", "id": "c", "path": "/x"}),
        ("socket,id=c,server", "type", {"type": "socket", "id": "c", "server": "on"}),
        ("path=/a,,b,id=c", "type", {"path": "/a,b", "id": "c"}),
        ('{"driver":"virtio-net-pci","mq":true}', "driver", {"driver": "virtio-net-pci", "mq": "on"}),
        (
            '{"addr":{"type":"unix","path":"/x"},"a":[1]}',
            "type",
            {"addr.type": "unix", "addr.path": "/x", "path": "/x"},
        ),
        ("{broken", "type", {}),
        ("", "type", {"type": ""}),
    ],
)
def test_an_option_has_keys_flags_and_doubled_commas(
    value: str, implied: str, options: dict[str, str]
) -> None:
    """QEMU's keyval form, and JSON as libvirt writes it."""
    assert parse(value, implied) == options


@pytest.mark.parametrize(
    ("smp", "vcpus"),
    [
        ("4", 4),
        ("cpus=2,maxcpus=8", 2),
        ("sockets=2,cores=2,threads=2", 8),
        ("4,sockets=1,cores=4", 4),
        ("x", 1),
    ],
)
def test_vcpus(smp: str, vcpus: int) -> None:
    assert read(["-smp", smp]).vcpus == vcpus
    assert read([]).vcpus == 1


@pytest.mark.parametrize(
    ("words", "shared"),
    [
        ("-object memory-backend-memfd,id=m,size=1G,share=on -machine q35,memory-backend=m", True),
        ("-object memory-backend-memfd,id=m,size=1G -machine q35,memory-backend=m", True),
        ("-object memory-backend-file,id=m,mem-path=/h,share=on -numa node,memdev=m", True),
        ("-object memory-backend-file,id=m,mem-path=/h -numa node,memdev=m", False),
        ("-object memory-backend-ram,id=m,size=1G -machine memory-backend=m", False),
        ("-object memory-backend-memfd,id=m,share=off -M q35,memory-backend=m", False),
        ("-object memory-backend-memfd,id=m,share=on -machine q35", False),  # nobody uses it
        (
            "-object memory-backend-memfd,id=a -object memory-backend-ram,id=b -numa node,memdev=a -numa node,memdev=b",
            False,
        ),
        ("-m 1G -mem-path /dev/hugepages", False),
        ("-object memory-backend-memfd,id=m -machine memory-backend=other", False),
    ],
)
def test_memory_is_shared_if_every_backend_in_use_is(words: str, shared: bool) -> None:
    """memfd is shared if nobody says, a file is not; a backend that is not used does nothing."""
    assert read(words.split()).shared == shared


@pytest.mark.parametrize(
    "words",
    [
        ["-device", '{"a":' * 5000 + "1" + "}" * 5000],
        ["-device", '{"a":' * 600 + "1" + "}" * 600],
        ["-smp", "9" * 5000],
        ["-device", "virtio-net-pci,vectors=" + "9" * 5000],
        ["-device", "[1]"],
        ["-device", '{"driver":["virtio-net-pci"]}'],
        ["-name", ",,,,", "-object", "=,=", "-netdev", ",", "-chardev", "="],
    ],
)
def test_nonsense_is_read_without_harm(words: list[str]) -> None:
    """Any process of the host may call itself QEMU."""
    said = read(words)

    assert (said.vcpus, said.shared) == (1, False)
    assert all(number(one.get("vectors")) is None for one in said.devices)


def test_a_word_that_is_a_value_is_no_option() -> None:
    """-append may say anything, and -nographic has no value."""
    said = read(
        ["-append", "machine", "q35,memory-backend=m", "-nographic", "-name", "guest=web,debug-threads=on"]
    )

    assert (said.name, said.shared) == ("web", False)
    assert read(["-device"]).devices == []
