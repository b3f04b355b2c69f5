# SPDX-License-Identifier: Apache-2.0
"""The API of a running engine: questions over a UNIX socket, answered from the counters without stopping anything."""
