# SPDX-License-Identifier: Apache-2.0
"""Programs in the kernel, made in Python: an assembler, maps, loading and running, links.

    Code (assembler.py) ──► Program (program.py) ──► Link (link.py): attached until its descriptor is closed
                                 └── Map (maps.py): what a program and the engine share

Everything here is a descriptor of this process. Nothing is pinned, so whatever ends the process takes programs, maps
and links with it, and a device is as it was. docs/adr/0010
"""
