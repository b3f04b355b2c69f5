# SPDX-License-Identifier: Apache-2.0
"""What a guest asks its network device for, followed over QEMU's own socket.

A guest's lists of addresses, groups and VLANs travel on the control virtqueue, which QEMU serves itself: a
vhost-user back-end never sees them. QEMU tells them to who asks (`query-rx-filter`), and says when to ask again.

    lists.py      what QEMU answers, as records; which of its devices is the VM port's
    dialogue.py   the protocol without I/O: bytes in, bytes and answers out
    follower.py   the socket: connect, ask, within limits, again whenever it goes
    policy.py     which of the guest's addresses become receive filters, which not, and why
"""

from __future__ import annotations

from vmq.qmp.follower import Follower
from vmq.qmp.lists import RxFilter, pick
from vmq.qmp.policy import Note, Wanted, wanted

__all__ = ["Follower", "Note", "RxFilter", "Wanted", "pick", "wanted"]
