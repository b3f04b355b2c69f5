# SPDX-License-Identifier: Apache-2.0
"""The hazards of compiled Python (H28), on a whole engine. Every file of this folder runs in every mode.

H28.2 and H28.3 are those runs: the engine process is in the mode of the tests, and what it counts is compared with
the same exact numbers in each. H28.4 is H20.9 (test_memory.py). H28.1 is tested against the kernels in
tests/dataplane/test_memory.py, and here from the descriptor in guest memory to the counter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.hostile.arena import WAYS, Way, frame
from tests.hostile.attack import Attack, exchange
from vmq.abi.vhost_user import U64, Request
from vmq.cli.client import capturing
from vmq.guest.driver import HEADER
from vmq.guest.rings import Descriptor

KIB = 1 << 10
REGIONS = [
    (0, 3 << 20),
    *((edge - 4 * KIB, 8 * KIB) for edge in (1 << 31, 1 << 32)),
    ((1 << 63) - 8 * KIB, 8 * KIB),
]
EDGES = sorted({edge + step for edge in (1, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 2) for step in (-1, 0, 1)})
LENGTHS = (0, 1, 2, 100, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, (1 << 32) - 1)


def is_memory(address: int, length: int) -> bool:
    """By unbounded integers: whether a buffer lies in guest memory (the regions are not adjacent)."""
    return any(
        start <= address < start + size and address + length <= start + size for start, size in REGIONS
    )


@pytest.mark.parametrize("way", WAYS[:2], ids=lambda way: way.name)
def test_h28_1_addresses_at_every_edge_are_judged_as_unbounded_integers_would(attack: Attack, way: Way):
    """Each chain: a sound piece, and one at an edge. All at once; every one is counted by what the model says."""
    ring = attack.on(way, regions=REGIONS, post=0, size=256)
    memory = attack.guest().memory
    good = memory.store(bytes(HEADER) + frame("peer", "attacker", size=60))
    expected: Counter[str] = Counter()
    for address in EDGES:
        heads = []
        for length in LENGTHS:
            chain: list[Descriptor] = [(good, HEADER + 60, 0), (address, length, 0)]
            heads.append(ring.write_chain(chain, indirect=way.indirect))
            expected["frames_from_guest"] += 1
            if not is_memory(address, length):
                expected["from_guest_bad_address"] += 1
            elif 60 + length > 1514:
                expected["from_guest_too_long"] += 1
            else:
                expected.update(("forwarded", "copies"))
        ring.push(*heads)
        ring.show()
        ring.kick()
        assert attack.guest().sent()
        ring.harvest()
    delivered = {"offered_to_guest": expected["forwarded"], "frames_to_guest": expected["forwarded"]}
    attack.counts(attacker=dict(expected), peer=delivered)


def flags(environment: dict[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith("NUMBA_") and name != "NUMBA_CACHE_DIR"
    }


def test_h28_2_the_engine_runs_in_the_mode_of_the_tests(attack: Attack):
    """Interpreted, with bounds checks, or as released: otherwise these passes would prove nothing."""
    text = Path(f"/proc/{attack.arena.engine.pid}/environ").read_text()
    theirs = dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
    assert flags(theirs) == flags(dict(os.environ))


DYING = """
import sys, types, pathlib
import vmq.daemon, vmq.worker

def run(address):
    raise RuntimeError("a kernel has raised")

vmq.daemon.compile_kernels = lambda *_: 0
vmq.worker.loop = types.SimpleNamespace(run=run)
sys.exit(vmq.daemon.run(pathlib.Path(sys.argv[1])))
"""


def test_h28_5_a_processor_that_dies_ends_the_process_with_its_reason(tmp_path: Path):
    """Never silent: a service manager starts it again, and the guests reconnect. No socket stays behind."""
    config = tmp_path / "vmq.toml"
    config.write_text(
        f'[engine]\napi = "{tmp_path}/api.sock"\n[vm.one]\nsocket = "{tmp_path}/one.sock"\nmac = "52:54:00:00:00:01"\n'
    )
    done = subprocess.run([sys.executable, "-c", DYING, config], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "a kernel has raised" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vmq.toml"]


def test_h28_6_nothing_compiles_once_frames_can_flow(attack: Attack):
    """Whatever configuration, front-ends and API ask for: the engine says itself what it has compiled since."""
    engine = attack.arena.engine
    guest = attack.guest(queues=2, mergeable=False, event_idx=False, regions=3)
    exchange(guest, attack.peer, ("attacker", "peer"))
    guest.frontend.tell(Request.NET_SET_MTU, U64.pack(1400))
    guest.stop()
    guest.start()
    engine.ask("measure", vm="peer")
    with capturing(str(engine.api), vm="peer") as pieces:
        exchange(guest, attack.peer, ("attacker", "peer"))
        pieces.enough()
        assert sum(len(content) for content, _ in pieces) > 0
    for what in ("vms", "queues", "filters", "uplinks", "processors", "histograms"):
        engine.ask("show", what=what)
    engine.ask("explain", mac=guest.mac)
    engine.reload()
    exchange(guest, attack.peer, ("attacker", "peer"))
    assert engine.ask("ping")["compiled_after_start"] == []
