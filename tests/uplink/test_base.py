# SPDX-License-Identifier: Apache-2.0
"""What all kinds of uplink share."""

from __future__ import annotations

import errno
import os

import pytest

from vmq.errors import ConfigError, HostError
from vmq.uplink.base import check_device, refusing


@pytest.mark.parametrize("device", ["", ".", "..", "a b", "a/b", "a:b", "a\n", "sixteen-letters0", "ü" * 8])
def test_names_that_no_device_has_are_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="Use 1 to 15 characters"):
        check_device("here", device)


@pytest.mark.parametrize("device", ["eth0", "vmqtap0", "fifteen-letters", "br-1.2_3"])
def test_names_of_devices_are_accepted(device: str) -> None:
    check_device("here", device)


def test_an_error_of_the_kernel_is_one_line_with_its_remedy() -> None:
    for code, remedy in ((errno.EPERM, "be root"), (errno.EIO, "think")):
        with (
            pytest.raises(HostError, match=f"^here: cannot do it: {os.strerror(code)}. Remedy: {remedy}$"),
            refusing("here", "cannot do it", {errno.EPERM: "be root"}, "think"),
        ):
            raise OSError(code, os.strerror(code))
