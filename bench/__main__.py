# SPDX-License-Identifier: Apache-2.0
"""python -m bench [--quick | --fresh] [ROW …]: measure, and write docs/measurements.md and bench/results/.

ROW is a row, a part of the page, or a pattern of rows in quotes, as '64-4-*'; without any, all are measured
(parts.py). What was measured before on this machine with the same code is taken from bench/results, so that a page can
be made in several runs, and one that was interrupted goes on; --fresh measures everything that is named anew. A part of
the page is brought up to date when all of its rows are known. A row in which the machine was too noisy is measured up to
three times, and the attempt with the least spread is kept.

--quick takes one run of our own engine with the built-in guests, needs no peers, prints and writes nothing.

Everything that a run starts or makes has a supervisor (supervisor.py): however it ends, nothing is left.

Exit codes: 0 all rows have their figures, 1 one was refused or this machine lacks something.
"""

from __future__ import annotations

import sys

from bench import supervisor

if __name__ == "__main__":
    sys.exit(supervisor.run([sys.executable, "-m", "bench.run", *sys.argv[1:]]))
