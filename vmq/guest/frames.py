# SPDX-License-Identifier: Apache-2.0
"""A file of frames, for one program to hand to another: what a guest is to expect, or to send.

    header: magic, count │ rows: offset in the file, length │ bytes of the frames

All numbers are 64 bits of this machine: the file does not leave it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vmq.abi.layout import i64, layout

MAGIC = int.from_bytes(b"vmqframe", "little")
HEAD = layout(16, ("magic", i64), ("count", i64))
ROW = layout(16, ("offset", i64), ("length", i64))


def write_frames(path: str | os.PathLike[str], frames: Sequence[bytes]) -> None:
    head = np.array([(MAGIC, len(frames))], HEAD)
    lengths = np.array([len(frame) for frame in frames], np.int64)
    rows = np.zeros(len(frames), ROW)
    rows["length"] = lengths
    rows["offset"] = HEAD.itemsize + rows.nbytes + np.cumsum(lengths) - lengths
    Path(path).write_bytes(head.tobytes() + rows.tobytes() + b"".join(frames))


def read_frames(path: str | os.PathLike[str]) -> list[bytes]:
    """The frames of a file; ValueError if it is none."""
    data = Path(path).read_bytes()
    head = np.frombuffer(data[: HEAD.itemsize].ljust(HEAD.itemsize, b"\0"), HEAD)[0]
    end = HEAD.itemsize + int(head["count"]) * ROW.itemsize
    if head["magic"] != MAGIC or not HEAD.itemsize <= end <= len(data):
        raise ValueError(f"{os.fspath(path)} is not a file of frames")
    rows = np.frombuffer(data[HEAD.itemsize : end], ROW).tolist()
    if any(offset < end or length < 0 or offset + length > len(data) for offset, length in rows):
        raise ValueError(f"{os.fspath(path)}: a frame lies outside the file")
    return [data[offset : offset + length] for offset, length in rows]
