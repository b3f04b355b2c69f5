# SPDX-License-Identifier: Apache-2.0
"""A wire for uplinks on devices of the kernel: a veth pair between two namespaces of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm.lab.netns import Namespace


@pytest.fixture
def wires() -> Iterator[tuple[Namespace, Namespace]]:
    """The engine's host with `left0`, and `peer0` at its other end, as the kernel makes them."""
    with Namespace("engine") as engine, Namespace("peer") as peer:
        for host in (engine, peer):
            host.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        engine.veth("left0", peer, "peer0")
        yield engine, peer
