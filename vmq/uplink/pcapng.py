# SPDX-License-Identifier: Apache-2.0
"""The blocks of a pcapng capture beside its packets: what was looked at, and what the capture itself has lost.

        section ─► interface 0, 1, … ─► packets, in any order ─► statistics of each interface

Packets are written by kernels (dataplane/observe.py), their times in nanoseconds since 1970. Blocks may be joined end
to end, and cut between any two.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmq.abi import capture as cap
from vmq.dataplane.state import M32

ALIGN = 4


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % ALIGN)


def _record(layout: np.dtype[Any], *values: int) -> bytes:
    return np.array([values], layout).tobytes()


def _option(code: int, value: bytes) -> bytes:
    return _record(cap.option_header, code, len(value)) + _padded(value)


def _block(kind: int, body: bytes, options: bytes) -> bytes:
    content = body + options + _option(cap.OPTION_END, b"")
    length = cap.BLOCK_LEAST + len(content)
    return _record(cap.block_header, kind, length) + content + length.to_bytes(4, "little")


def section(application: str) -> bytes:
    """The beginning of a capture: pcapng "Section Header Block", of a length that nobody knows yet."""
    body = _record(cap.section_body, cap.BYTE_ORDER_MAGIC, 1, 0, -1)
    return _block(cap.BLOCK_SECTION, body, _option(cap.OPTION_USER_APPLICATION, application.encode()))


def interface(name: str, description: str, comment: str, snaplen: int) -> bytes:
    """What frames were captured at: pcapng "Interface Description Block". They are numbered as they come."""
    options = (
        _option(cap.OPTION_COMMENT, comment.encode())
        + _option(cap.OPTION_IF_NAME, name.encode())
        + _option(cap.OPTION_IF_DESCRIPTION, description.encode())
        + _option(cap.OPTION_TSRESOL, bytes([cap.NANOSECONDS]))
    )
    return _block(
        cap.BLOCK_INTERFACE, _record(cap.interface_body, cap.LINKTYPE_ETHERNET, 0, snaplen), options
    )


def statistics(number: int, began_ns: int, ended_ns: int, received: int, lost: int) -> bytes:
    """What became of the frames at one interface: pcapng "Interface Statistics Block"."""

    def time(value: int) -> bytes:
        return (value >> 32).to_bytes(4, "little") + (value & M32).to_bytes(4, "little")

    options = (
        _option(cap.OPTION_ISB_START, time(began_ns))
        + _option(cap.OPTION_ISB_END, time(ended_ns))
        + _option(cap.OPTION_ISB_RECEIVED, received.to_bytes(8, "little"))
        + _option(cap.OPTION_ISB_DROPPED, lost.to_bytes(8, "little"))
    )
    body = _record(cap.statistics_body, number, ended_ns >> 32, ended_ns & M32)
    return _block(cap.BLOCK_STATISTICS, body, options)
