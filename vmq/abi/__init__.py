# SPDX-License-Identifier: Apache-2.0
"""Other people's layouts and numbers, each declared once and cited; no behaviour."""
