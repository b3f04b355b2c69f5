# SPDX-License-Identifier: Apache-2.0
"""A tier of direct placement: how frames of one kind of uplink get into guest memory without a copy of the engine's.

`Directing` asks the tiers in turn whether they serve a VM, and has it go on with a VM, or leave, at every look.

        obstacle ─► "" : go_on, look by look, until stage is LED       otherwise: leave

Around every new version of the tables: `prepare` says what is to stand in it, `follow` brings about what must come after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from vmq.config.records import Config
from vmq.uplink import Uplink

if TYPE_CHECKING:
    from vmq.engine.engine import Engine
    from vmq.engine.vm import Vm

LED = "led"  # the stage of a VM whose frames the kernel places
SWITCHED = "switched"  # that of one of which a tier has nothing
PASS_SECONDS, PAUSE_SECONDS = 0.2, 0.0002  # for what is on its way to arrive


class Tier(Protocol):
    """One tier, for all VMs of an engine. `measured`: what it costs is what `vmq bench --placement` measures."""

    measured: bool

    def serves(self, vm: Vm) -> bool:
        """Whether this VM is this tier's: its uplink is, and the tier has not had to refuse it."""

    def obstacle(self, vm: Vm) -> str:
        """What of this tier keeps a VM from being direct; empty if nothing does."""

    def words(self, vm: Vm) -> str:
        """How frames of a VM come that is direct."""

    def polled(self, vm: Vm) -> bool:
        """Whether the kernel's work for it is done by its own processor while frames are many."""

    def stage(self, vm: Vm) -> str:
        """SWITCHED, LED, or a word for what is under way."""

    def tidy(self) -> None:
        """Forget what was made for VMs, memory or configurations that are gone."""

    def go_on(self, vm: Vm) -> None:
        """Nothing is in the way of a VM: begin, or take the next step."""

    def leave(self, whys: Mapping[Vm, str]) -> None:
        """Something is in the way of these, and what: switched from now on."""

    def set_out(self, workers: Mapping[Vm, int]) -> None:
        """The receive queues of these go to these processors, or to the default queue or from there, in the next version."""

    def make_way(self, new: Config) -> None:
        """Another configuration is about to be brought about."""

    def prepare(self) -> None:
        """Another version of the tables is about to be built."""

    def follow(self) -> None:
        """All processors have adopted it."""

    def close(self) -> None:
        """Everything is switched, and given back."""


def uplink_of(vm: Vm) -> Uplink | None:
    """None also where it could not be opened."""
    opened = vm.engine.uplinks.get(vm.config.uplink or "")
    return opened and opened.uplink


def keys_led(engine: Engine) -> dict[Vm, set[tuple[int, int]]]:
    """Of each VM, the (address, VLAN id) that lead to its first receive queue and nowhere else.

    As the tables have it: filters of their own come before those of VMs, and of VMs with the same the first has it.
    """
    owners = {
        (name, key): queue
        for name, queues in engine.queues.items()
        for key, queue in queues.effects.entry.plain.items()
    }
    found: dict[Vm, set[tuple[int, int]]] = {}
    for vm in engine.vms.values():
        where = vm.config.uplink
        found[vm] = {
            key for key in vm.keys if owners.setdefault((where, key), vm.first_queue) == vm.first_queue
        }
    return found


def soon(condition: Callable[[], bool], seconds: float = PASS_SECONDS) -> bool:
    """Wait a moment until it holds; whether it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_SECONDS)
    return True
