# SPDX-License-Identifier: Apache-2.0
"""`vmq bench`: what this machine can do, in a minute. No peers, no NIC, no root.

trial.py     what one measurement found
stand.py     an engine in this process, and built-in guests that only receive, a process each
bridge.py    the way without vmq: Linux bridge, TAP, and what QEMU's virtio-net does for a frame; a program of its own
program.py   the rows, in turn, and what is printed

`vmq bench --placement`, as root: what frames cost by either placement.

wire.py       a veth in a namespace of its own, and a generator of frames in the kernel
placed.py     an engine in a process of its own that is stopped while frames come, and guests of both placements
placement.py  lengths and rounds, in turn, what is printed, and what is kept
"""
