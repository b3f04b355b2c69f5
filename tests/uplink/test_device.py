# SPDX-License-Identifier: Apache-2.0
"""A device that was there before: what it has while its uplink serves, afterwards, and when the uplink never serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.vm.lab.netns import Namespace
from vmq.config.records import Packet, Tap
from vmq.errors import ConfigError
from vmq.uplink import link, open_uplink
from vmq.uplink.device import DeviceUplink
from vmq.uplink.packet import PacketUplink
from vmq.uplink.tap import TapUplink

pytestmark = pytest.mark.root
DEVICES = pytest.mark.parametrize("kind", [Tap, Packet])


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host with a TAP that is down, and its MTU 1450."""
    with Namespace("host") as made:
        made.run("ip", "tuntap", "add", "tap7", "mode", "tap")
        made.run("ip", "link", "set", "tap7", "mtu", "1450")
        yield made


def opened(host: Namespace, kind: type[Tap | Packet], **keys: Any) -> DeviceUplink:
    uplink = host.call(lambda: open_uplink("lan", kind(device="tap7", **keys), 1))
    assert isinstance(uplink, DeviceUplink)
    return uplink


def found(host: Namespace) -> tuple[int, bool]:
    """The MTU of the device, and whether it is up."""
    known = host.call(lambda: link.describe(link.index_of("tap7")))
    assert known is not None
    return known.mtu, known.up


@DEVICES
def test_what_is_not_to_serve_after_all_leaves_its_device_as_it_was(
    host: Namespace, kind: type[Tap | Packet]
) -> None:
    with closing(opened(host, kind, mtu=1400)) as uplink:
        assert found(host) == (1400, True)
        assert [int(row["frame_max"]) for row in uplink.lanes] == [1414]
        host.call(uplink.discard)
        assert (found(host), uplink.descriptors()) == ((1450, False), [None])
        host.run("ip", "link", "set", "tap7", "mtu", "1300")
        host.call(uplink.discard)
        assert found(host) == (1300, False)


@DEVICES
def test_what_has_served_leaves_its_device_as_the_configuration_says(
    host: Namespace, kind: type[Tap | Packet]
) -> None:
    host.call(opened(host, kind, mtu=1400).close)
    assert found(host) == (1400, True)


@DEVICES
def test_an_mtu_that_is_not_ours_is_left_alone(host: Namespace, kind: type[Tap | Packet]) -> None:
    """Without the key it is somebody else's, before and after; a device that was up stays up."""
    host.up("tap7")
    with closing(opened(host, kind)) as uplink:
        assert [int(row["frame_max"]) for row in uplink.lanes] == [1464]
        host.run("ip", "link", "set", "tap7", "mtu", "1300")
        host.call(uplink.discard)
        assert found(host) == (1300, True)


@pytest.mark.parametrize(("kind", "uplink"), [(Tap, TapUplink), (Packet, PacketUplink)])
def test_what_is_refused_late_leaves_its_device_as_it_was(
    host: Namespace, kind: type[Tap | Packet], uplink: type[DeviceUplink], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: DeviceUplink) -> None:
        assert found(host) == (1400, True)
        raise MemoryError

    monkeypatch.setattr(uplink, "_buffers", full)
    with pytest.raises(MemoryError):
        opened(host, kind, mtu=1400)
    assert found(host) == (1450, False)


def test_a_refusal_of_the_host_leaves_the_device_as_it_was(host: Namespace) -> None:
    with pytest.raises(ConfigError, match="there is no bridge nobr0"):
        opened(host, Tap, mtu=1400, bridge="nobr0")
    assert found(host) == (1450, False)
    for kind in (Tap, Packet):
        with pytest.raises(ConfigError, match=r"^\[uplink.lan\] mtu: tap7 does not take 65535: "):
            opened(host, kind, mtu=65535)
        assert found(host) == (1450, False)
