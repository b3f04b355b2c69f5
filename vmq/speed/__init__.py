# SPDX-License-Identifier: Apache-2.0
"""`vmq bench`: what this machine can do, in a minute. No peers, no NIC, no root.

trial.py     what one measurement found
stand.py     an engine in this process, and built-in guests that only receive, a process each
bridge.py    the way without vmq: Linux bridge, TAP, and what QEMU's virtio-net does for a frame; a program of its own
program.py   the rows, in turn, and what is printed
"""
