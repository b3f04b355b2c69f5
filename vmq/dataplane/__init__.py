# SPDX-License-Identifier: Apache-2.0
"""The data plane: everything compiled, nothing that talks. docs/architecture.md follows a frame through it."""
