# SPDX-License-Identifier: Apache-2.0
"""The engine: VM ports, uplinks and processors of one process, and how a new configuration is brought about."""
