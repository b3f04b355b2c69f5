# SPDX-License-Identifier: Apache-2.0
"""File structures by the format letters of the standard library; whole files: tests/uplink/test_pcapfile.py."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from vmq.abi import capture as cap


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("layout", "letters", "values"),
    [
        (cap.pcap_file, "IHHiIII", (cap.PCAP_NANOSECONDS, 2, 4, 0, 0, 9, 1)),
        (cap.pcap_record, "IIII", (1, 2, 3, 4)),
        (cap.block_header, "II", (1, 2)),
        (cap.section_body, "IHHq", (cap.BYTE_ORDER_MAGIC, 1, 0, -1)),
        (cap.interface_body, "HHI", (1, 2, 3)),
        (cap.option_header, "HH", (1, 2)),
        (cap.enhanced_body, "IIIII", (1, 2, 3, 4, 5)),
        (cap.obsolete_body, "HHIIII", (1, 2, 3, 4, 5, 6)),
        (cap.enhanced_block, "IIIIIII", (6, 2, 3, 4, 5, 6, 7)),
        (cap.enhanced_tail, "HHIII", (2, 4, 1, 0, 60)),
        (cap.statistics_body, "III", (1, 2, 3)),
    ],
)
def test_fields_have_the_order_and_width_of_the_format(
    order: Any, layout: np.dtype[Any], letters: str, values: tuple[int, ...]
) -> None:
    assert np.array([values], layout.newbyteorder(order)).tobytes() == struct.pack(order + letters, *values)


def test_a_section_begins_the_same_in_both_orders() -> None:
    """pcapng "Section Header Block": its type is a palindrome, so that it is found before the order is known."""
    kind = cap.BLOCK_SECTION.to_bytes(4, "little")

    assert kind == kind[::-1]
