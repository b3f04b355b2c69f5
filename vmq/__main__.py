# SPDX-License-Identifier: Apache-2.0
"""`python -m vmq`: the command line, as the installed command `vmq` runs it."""

from __future__ import annotations

import sys

from vmq.cli import main

if __name__ == "__main__":
    sys.exit(main())
