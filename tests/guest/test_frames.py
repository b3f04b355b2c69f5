# SPDX-License-Identifier: Apache-2.0
"""Files of frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmq.guest.frames import HEAD, ROW, read_frames, write_frames


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_frames_are_read_as_written(tmp_path_factory, frames):
    path = tmp_path_factory.mktemp("frames") / "f"
    write_frames(path, frames)
    assert read_frames(path) == frames


@pytest.mark.parametrize("size", [0, 8, HEAD.itemsize, HEAD.itemsize + ROW.itemsize, -1])
def test_file_cut_short_is_refused(tmp_path, size):
    path = tmp_path / "f"
    write_frames(path, [b"one", b"two"])
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="frame"):
        read_frames(path)


def test_other_file_is_refused(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="not a file of frames"):
        read_frames(tmp_path / "f")
