# SPDX-License-Identifier: Apache-2.0
"""Direct placement: what the kernel needs to put frames of a NIC into the memory of the VM that they belong to.

        NIC ─► its program ─► near end ══ veth ══ far end ─► program.py ─► socket.py: guest memory
                                          pair.py

A UMEM belongs to one queue of one device, so each VM has a device of its own: the far end of a veth pair, in a
namespace that has no name and nothing else in it.

Whether it pays: costs.py, from which length of frames on; figures.py, as was measured here; lengths.py, for one VM.
"""
