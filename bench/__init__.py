# SPDX-License-Identifier: Apache-2.0
"""Measurements of the engine beside its peers; `python -m bench`, as root. Nothing here is a test: nothing fails."""
