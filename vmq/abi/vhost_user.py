# SPDX-License-Identifier: Apache-2.0
"""vhost-user on the wire: request numbers, header flags, protocol features, payload layouts.

A message is a header of twelve bytes and a payload, in the byte order of the host, without padding. It never
enters a kernel, so its layouts are `struct` formats and not dtypes. Feature names are bit numbers.

Virtqueues of queue pair i: 2i carries frames to the guest, 2i + 1 frames from the guest.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct


class Request(IntEnum):
    """vhost-user "Front-end message types"."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


# vhost-user "Header": bits 0 and 1 of the flags are the version
FLAG_VERSION_MASK = 0x3
FLAG_VERSION = 0x1
FLAG_REPLY = 0x4
FLAG_NEED_REPLY = 0x8
REPLY_FLAGS = FLAG_VERSION | FLAG_REPLY  # exactly these: front-ends refuse any other bit

# vhost-user "Protocol features"
VHOST_USER_PROTOCOL_F_MQ = 0
VHOST_USER_PROTOCOL_F_LOG_SHMFD = 1
VHOST_USER_PROTOCOL_F_RARP = 2
VHOST_USER_PROTOCOL_F_REPLY_ACK = 3
VHOST_USER_PROTOCOL_F_MTU = 4
VHOST_USER_PROTOCOL_F_RESET_DEVICE = 13
VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15
VHOST_USER_PROTOCOL_F_STATUS = 16

# vhost-user "Payload"
HEADER = Struct("=III")  # request, flags, size of the payload
U64 = Struct("=Q")
VRING_STATE = Struct("=II")  # index, num
VRING_ADDR = Struct("=IIQQQQ")  # index, flags, desc, used, avail, log: used before avail
MEMORY = Struct("=II")  # regions, padding; MEMORY_REGION as often follows
MEMORY_REGION = Struct("=QQQQ")  # guest address, size, user address, offset in the file
MEM_REG = Struct("=QQQQQ")  # padding, then as MEMORY_REGION
LOG = Struct("=QQ")  # size, offset in the file

for _layout, _size in (
    (HEADER, 12), (U64, 8), (VRING_STATE, 8), (VRING_ADDR, 40), (MEMORY, 8), (MEMORY_REGION, 32), (MEM_REG, 40), (LOG, 16),
):  # fmt: skip
    if _layout.size != _size:
        raise TypeError(f"{_layout.format} has {_layout.size} bytes, declared {_size}")

VRING_NOFD = 1 << 8  # vhost-user "Front-end message types": of SET_VRING_KICK, CALL, ERR; bits 0-7: index
VHOST_VRING_F_LOG = 1 << 0  # vhost-user "A vring address description": writes to the used ring are logged

MEMORY_BASELINE_NREGIONS = 8  # vhost-user "Multiple Memory regions description": of one SET_MEM_TABLE
FDS_MAX = MEMORY_BASELINE_NREGIONS  # no message brings more descriptors
