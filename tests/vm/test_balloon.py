# SPDX-License-Identifier: Apache-2.0
"""A real guest with a memory balloon: when pages go back to the host, the kernel writes to its memory no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.arena import MACS, until
from tests.vm.lab.engine import EngineProcess
from tests.vm.lab.image import NET, Contents
from tests.vm.lab.netns import Namespace
from tests.vm.lab.nic import vhost_user
from tests.vm.lab.qemu import Guest
from tests.vm.test_direct import DIRECT, is_placed, placement
from tests.vm.test_xdp import UPLINK, vm

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.timeout(200)]
HOST, GUEST = "10.0.0.1", "10.0.0.2"
MEMORY, LEFT = 256, 200  # MiB


def test_a_vm_whose_balloon_is_inflated_is_switched_and_goes_on(
    tmp_path: Path, ends: tuple[Namespace, Namespace]
) -> None:
    near, far = ends
    far.address("host0", f"{HOST}/24")
    with (
        EngineProcess(tmp_path, UPLINK + vm("attacker", DIRECT), near) as engine,
        Guest(
            "balloon",
            [vhost_user(tmp_path / "attacker.sock", MACS["attacker"], f"{GUEST}/24")],
            image=Contents((*NET.modules, "virtio_balloon")),
            memory=MEMORY,
            arguments=["-device", "virtio-balloon-pci"],
        ) as guest,
    ):
        guest.run(f"modprobe virtio_balloon; ping -c 3 {HOST}")
        until(lambda: is_placed(engine, "attacker", "direct"))
        guest.run(f"ping -c 3 {HOST}")
        placed = engine.show("vms")["attacker"]["frames_placed"]
        assert placed >= 3

        guest.qmp.execute("balloon", value=LEFT << 20)

        until(lambda: is_placed(engine, "attacker", "switched"))
        assert "a memory balloon" in placement(engine, "attacker")["why"]
        until(lambda: guest.qmp.execute("query-balloon")["actual"] == LEFT << 20)
        placed = engine.show("vms")["attacker"]["frames_placed"]
        guest.qmp.execute("balloon", value=MEMORY << 20)
        until(lambda: guest.qmp.execute("query-balloon")["actual"] == MEMORY << 20)
        guest.run(f"ping -c 3 {HOST}")
        assert is_placed(engine, "attacker", "switched")
        assert engine.show("vms")["attacker"]["frames_placed"] == placed
