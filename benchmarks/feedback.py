"""The feedback loop: recording, estimates from logs, promotion, transfer, a broken skill.

``.ci/with-postgres python -m benchmarks.feedback --suites DIR`` measures everything: without the
server the store is measured on SQLite only, without the suites the estimates are left out.
"""

from __future__ import annotations

import os

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
import sys
from pathlib import Path

from benchmarks.figures import report
from benchmarks.loop import broken, deployments, estimates, promotions, recording


def main() -> int:
    """Measure, print and write the figures; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure the feedback loop.")
    parser.add_argument(
        "--suites", type=Path, metavar="DIR", help="folder that holds the suite llmrouter"
    )
    options = parser.parse_args()
    figures = estimates.figures(options.suites) | promotions.figures(options.suites)
    figures |= deployments.figures() | broken.figures() | recording.figures()
    report("feedback", figures, ("sqlalchemy",))
    return 0


if __name__ == "__main__":
    sys.exit(main())
