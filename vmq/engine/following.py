# SPDX-License-Identifier: Apache-2.0
"""The addresses that a VM port follows: from what its guest asks for to its receive filters.

It lives with the VM port and runs while a front-end is connected: then QEMU is there, and when it goes its addresses are
free for others. Every answer of QEMU is judged anew (`vmq.qmp.wanted`), since meanwhile the configuration or other VMs may
have changed; the tables are published only when the addresses have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmq.abi.ethernet import mac_number, mac_text
from vmq.config.forms import cpu_text
from vmq.qmp import Follower, Note, RxFilter, Wanted, pick, wanted

if TYPE_CHECKING:
    from vmq.engine.vm import Vm

SHOWN_MAX = 64  # entries of a list in the row of a VM


class Following:
    """What one VM port follows. Without `qmp` in its configuration: nothing."""

    def __init__(self, vm: Vm, fresh: Callable[[str], bool]) -> None:
        """`fresh`: whether to say a line now; a guest can change its list without end."""
        self.wanted = Wanted()
        self._vm, self._fresh = vm, fresh
        self._seen: RxFilter | None = None  # what its device was asked for last
        self._follower: Follower | None = None
        self._unclear: Note | None = None  # why no device of QEMU is the VM port's

    @property
    def addresses(self) -> tuple[int, ...]:
        """Receive filters of the VM port."""
        return self.wanted.followed

    @property
    def trouble(self) -> tuple[str, str] | None:
        """What stands in the way of following, and the remedy. What a guest expects in vain is none: see `row`."""
        if self._follower is not None and self._follower.trouble is not None:
            return self._follower.trouble
        return self._unclear

    def start(self) -> None:
        """A front-end has come."""
        config = self._vm.config
        if config.qmp is not None and self._follower is None:
            self._follower = Follower(config.qmp, config.qmp_nic, self._answered, self._troubled)
            self._follower.start()

    def close(self) -> None:
        """The front-end has gone: nothing is followed. It does not publish."""
        if self._follower is not None:
            self._follower.close()
        self._follower, self._seen, self._unclear, self.wanted = None, None, None, Wanted()

    def reconfigure(self) -> None:
        """The VM port has another configuration, or another VM has: judge anew. It neither installs nor publishes."""
        follower, config = self._follower, self._vm.config
        if follower is not None and (follower.path, follower.nic) != (config.qmp, config.qmp_nic):
            self.close()
            self.start()
        elif follower is None and self._vm.port.connection is not None:
            self.start()
        self._judge()

    def row(self) -> dict[str, Any] | None:
        """For the row of the VM port; None without `qmp`."""
        if self._vm.config.qmp is None:
            return None
        seen = self._seen
        refused = [{"mac": mac_text(mac), "why": why} for mac, why in self.wanted.refused[:SHOWN_MAX]]
        return {
            "path": self._vm.config.qmp,
            "state": self._follower.state if self._follower is not None else "off",
            "nic": seen.name if seen else None,
            "followed": [mac_text(mac) for mac in self.addresses],
            "refused": refused,
            "multicast": [mac_text(mac) for mac in seen.multicast[:SHOWN_MAX]] if seen else [],
            "vlans": cpu_text(seen.vlans) if seen else "",
            "notes": [{"what": note.what, "remedy": note.remedy} for note in self.wanted.notes],
        }

    def _answered(self, devices: tuple[RxFilter, ...]) -> None:
        configured = frozenset(map(mac_number, self._vm.config.mac))
        before = self._seen.name if self._seen is not None else None
        found = pick(devices, configured, before)
        if found is None:
            names = ", ".join(one.name for one in devices[:8]) or "none"
            what = f"which network device of QEMU is this VM port's cannot be said: there are {names}"
            self._unclear = Note(what, 'set qmp_nic to the "id" of the device')
            return  # what was followed stays: nothing is known against it
        self._seen, self._unclear = found, None
        had = self._vm.macs
        self._judge()
        if set(self._vm.macs) != set(had):
            self._vm.home.follow(self._vm)
            self._tell(had)
            self._vm.engine.publish()

    def forget(self, mac: int, why: str) -> None:
        """It cannot be a filter: it quarrels with another's."""
        if mac in self.addresses:
            fit = tuple(one for one in self.addresses if one != mac)
            self.wanted = replace(self.wanted, followed=fit, refused=(*self.wanted.refused, (mac, why)))

    def _judge(self) -> None:
        """Decide about the last list."""
        vm = self._vm
        if self._seen is None:
            return
        taken = {
            mac: other.name
            for other in vm.engine.vms.values()
            if other is not vm and other.segment == vm.segment
            for mac in other.macs
        }
        self.wanted = wanted(vm.config, self._seen, learned=vm.learned, followed=self.addresses, taken=taken)
        vm.learned[:] = self.wanted.learned

    def _tell(self, before: tuple[int, ...]) -> None:
        now = self._vm.macs
        came = [mac_text(mac) for mac in now if mac not in before]
        went = [mac_text(mac) for mac in before if mac not in now]
        if (came or went) and self._fresh(f"followed {came} {went}"):
            self._vm.engine.journal.tell("followed", vm=self._vm.name, came=came, went=went)

    def _troubled(self, what: str, remedy: str) -> None:
        line = f"vm {self._vm.name}: qmp {what}. Remedy: {remedy}"
        if self._fresh(line):
            self._vm.engine.log(line)
