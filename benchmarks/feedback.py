"""The feedback loop: recording, estimates from logs, promotion and transfer.

``.ci/with-postgres python -m benchmarks.feedback`` measures the store on PostgreSQL too.
"""

from __future__ import annotations

import os

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import sys

from benchmarks.figures import report
from benchmarks.loop import recording


def main() -> int:
    """Measure, print and write the figures; returns the exit code."""
    report("feedback", recording.figures(), ("sqlalchemy",))
    return 0


if __name__ == "__main__":
    sys.exit(main())
