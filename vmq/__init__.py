# SPDX-License-Identifier: Apache-2.0
"""vmq: a receive queue of its own for every virtual machine of a Linux host."""

from __future__ import annotations

__version__ = "0.1.0"

# Where a running engine is asked, unless told otherwise. It stands here for the sake of the command line, which
# asks in under 150 ms and has no time to import the configuration.
API_SOCKET = "/run/vmq/api.sock"
