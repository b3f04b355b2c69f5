# SPDX-License-Identifier: Apache-2.0
"""The driver's side: a vhost-user front-end with its virtqueues and memory, for the demo, benchmarks and tests.

It shares a socket, memory files and the layouts of vmq.abi with the engine, and nothing else.
"""
