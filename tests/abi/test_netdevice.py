# SPDX-License-Identifier: Apache-2.0
"""Requests as C lays them out, by the format letters of the standard library."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from vmq.abi import netdevice as nd


@pytest.mark.parametrize(
    ("layout", "format_", "values"),
    [
        (nd.tpacket_stats, "=II", (1, 2)),
        (nd.sock_filter, "=HBBI", (1, 2, 3, 4)),
        (nd.sock_fprog, "=H6xQ", (1, 2)),
        (nd.nlmsghdr, "=IHHII", (1, 2, 3, 4, 5)),
        (nd.nlattr, "=HH", (1, 2)),
        (nd.genlmsghdr, "=BBH", (1, 2, 3)),
        (nd.ifinfomsg, "=BBHiII", (1, 2, 3, 4, 5, 6)),
    ],
)
def test_fields_have_the_order_and_width_of_c(
    layout: np.dtype[Any], format_: str, values: tuple[int, ...]
) -> None:
    row = np.zeros(1, layout)  # padding is zero
    row[0] = values

    assert row.tobytes() == struct.pack(format_, *values)


def test_an_interface_request_is_a_name_and_a_union() -> None:
    request = np.zeros(1, nd.ifreq)
    request["name"], request["value"] = b"lo", 7

    assert request.tobytes() == struct.pack("=16si20x", b"lo", 7)
    assert nd.ifreq.itemsize == struct.calcsize("=16s24x")
