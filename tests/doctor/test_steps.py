# SPDX-License-Identifier: Apache-2.0
"""Steps: what is printed is what is done, and a file keeps them."""

from __future__ import annotations

import msgspec
import pytest

from vmq.config.edit import Change
from vmq.doctor.steps import Back, Command, Edit, Feature, Restore, Step, Write, edit, words, writes

VLAN = Change("vm.web", "vlan", None)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Command(("ip", "link", "set", "a b", "up"), ("true",)), "ip link set 'a b' up"),
        (Write("/proc/irq/30/smp_affinity_list", "1-2"), "echo 1-2 > /proc/irq/30/smp_affinity_list"),
        (Feature("eth0", "rx-gro", on=False), "ethtool -K eth0 rx-gro off"),
        (
            edit("vm.web", mtu=1500, vlan=None),
            "mtu = 1500 in [vm.web]; leave vlan out of [vm.web]; in vmq.toml",
        ),
        (edit("vm.web", mac=("a", "b")), 'mac = ["a", "b"] in [vm.web]; in vmq.toml'),
        (Restore((VLAN,), "a", "b"), "vmq.toml as it was before"),
    ],
)
def test_a_step_says_what_it_does(step: Step | Back, said: str) -> None:
    assert words(step, "vmq.toml") == said


def test_steps_come_back_from_a_file() -> None:
    steps: list[Step | Back] = [
        Command(("a",), ("b",)), Write("p", "v"), Feature("d", "n", on=True), edit("vm.web", mac=("x",), mtu=7, learn=None),
        Restore((VLAN,), "before", "after"),
    ]  # fmt: skip

    assert msgspec.json.decode(msgspec.json.encode(steps), type=list[Step | Back]) == steps


def test_only_keys_of_the_engine_itself_need_it_started_again() -> None:
    """On SIGHUP a running engine reads the others."""
    assert edit("engine", processors="1").restarts
    assert not edit("uplink.lan", processors="1").restarts
    assert Edit((VLAN, Change("engine", "group", "kvm"))).restarts


def test_one_value_for_several_files() -> None:
    assert writes(("/a", "/b"), "1") == (Write("/a", "1"), Write("/b", "1"))
