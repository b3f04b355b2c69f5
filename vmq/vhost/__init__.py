# SPDX-License-Identifier: Apache-2.0
"""The guest's side in plain Python: vhost-user messages, sessions, connections, memory."""
