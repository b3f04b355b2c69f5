# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of processors, read from recorded directories and from this host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from vmq.errors import HostError
from vmq.topology import Topology, model, read


def record(root: Path, files: Mapping[str, str]) -> Path:
    """A recorded topology: path below sys → text."""
    for name, text in files.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def host(online: str, *cores: str, nodes: tuple[str, ...] = (), **more: str) -> dict[str, str]:
    """The files of a host: its cores as sibling lists, its nodes as lists of processors."""
    from vmq.config import cpu_list

    files = {"devices/system/cpu/online": online}
    for core in cores:
        for cpu in cpu_list(core):
            files[f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = core
    for number, cpus in enumerate(nodes):
        files[f"devices/system/node/node{number}/cpulist"] = cpus
    return files | {f"devices/system/cpu/{name}": text for name, text in more.items()}


def test_two_processors_of_two_cores(tmp_path: Path):
    """A small virtual machine."""
    found = read(root=record(tmp_path, host("0-1", "0", "1", nodes=("0-1",), isolated="")))
    assert found == Topology((0, 1), {0: (0,), 1: (1,)}, {0: 0, 1: 0})
    assert not found.several_nodes


@pytest.mark.parametrize(
    ("cores", "of_one"),
    [
        (("0-1", "2-3", "4-5", "6-7"), {0: (0, 1), 1: (0, 1), 6: (6, 7)}),
        (("0,4", "1,5", "2,6", "3,7"), {0: (0, 4), 4: (0, 4), 3: (3, 7)}),
    ],
)
def test_threads_of_a_core_may_be_neighbours_or_far_apart(
    tmp_path: Path, cores: tuple[str, ...], of_one: dict[int, tuple[int, ...]]
):
    """Numbers say nothing; thread_siblings_list does."""
    found = read(root=record(tmp_path, host("0-7", *cores)))
    assert {cpu: found.core(cpu) for cpu in of_one} == of_one


def test_nodes_isolation_and_where_a_nic_stands(tmp_path: Path):
    files = host("0-7", nodes=("0-3", "4-7"), isolated="2-3", nohz_full="3,6")
    files |= {"class/net/eth0/device/numa_node": "1", "class/net/eth1/device/numa_node": "-1"}
    found = read(["eth0", "eth1", "br0"], record(tmp_path, files))
    assert found.several_nodes
    assert [found.nodes[cpu] for cpu in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert found.isolated == {2, 3, 6}
    assert found.nics == {"eth0": 1}


def test_a_node_of_memory_alone_has_no_processors(tmp_path: Path):
    """cpulist is empty; and has_cpu is no node."""
    files = host("0-1", nodes=("0-1", "")) | {"devices/system/node/nodes/cpulist": "0"}
    assert read(root=record(tmp_path, files)).nodes == {0: 0, 1: 0}


@pytest.mark.parametrize("text", ["", "(null)", "nonsense"])
def test_what_cannot_be_read_is_unknown(tmp_path: Path, text: str):
    """No SMT, no nodes, an empty nohz_full: nothing is guessed."""
    found = read(["eth0"], record(tmp_path, host("0-1", nohz_full=text)))
    assert found == Topology((0, 1))
    assert found.core(1) == (1,)


def test_siblings_that_leave_out_their_own_processor_are_not_believed(tmp_path: Path):
    files = host("0-1") | {"devices/system/cpu/cpu0/topology/thread_siblings_list": "5"}
    assert read(root=record(tmp_path, files)).core(0) == (0,)


def test_a_directory_that_records_nothing_is_refused(tmp_path: Path):
    with pytest.raises(HostError, match=r"online: no processors are listed there. Remedy: Name a directory"):
        read(root=tmp_path)


def test_of_this_host_those_that_the_process_may_use():
    """A cpuset or taskset narrows what may be used, not what is online."""
    found = read(["lo"])
    assert found.allowed == tuple(sorted(os.sched_getaffinity(0)))
    assert all(cpu in found.core(cpu) for cpu in found.allowed)
    assert found.nics == {}


def test_processors_have_a_name() -> None:
    """On any line of its own; without one the architecture stands for it."""
    assert model().strip() == model() != ""
