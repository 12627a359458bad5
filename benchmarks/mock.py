"""How well the policy trained on the mock does, on tasks and worlds it was not trained on.

Evaluates ``runs/mock/policy.safetensors``, which ``make train`` makes, and trains it first where it
is missing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from threadpoolctl import threadpool_limits

import train
from agents.config import read
from agents.evaluation import compare
from agents.training import POLICY, SUMMARY
from benchmarks.figures import Figure, at_least, below, report
from evaluate import checked

ROOT = Path(__file__).parent.parent
CONFIG, RUN = ROOT / "configs/mock.yaml", ROOT / "runs/mock"


def main() -> int:
    """Measure, print and write the figures; returns the exit code."""
    if not (RUN / POLICY).is_file():
        code = train.main(["--config", str(CONFIG), "--run-dir", str(RUN)])
        if code:
            return code
    config = read(CONFIG, [])
    policy = checked(str(RUN / POLICY), config)
    with threadpool_limits(1):
        result = compare(config, policy.weights)
    print(f"{result.table()}\n")
    best = result.best_baseline()
    lead = result.lead("learned", "evidence")
    new = result.lead("learned", best, "utility/new")
    gap = result.interval("oracle", "return").mean - result.interval(best, "return").mean
    closed, informed = result.closed("learned"), result.closed("informed")
    seconds = float(json.loads((RUN / SUMMARY).read_text(encoding="utf-8"))["seconds"])
    figures = {
        "gap_per_task": at_least(gap, 0.06),
        "best_baseline": Figure(best, "not none", best != "none"),
        "gap_closed_by_learned": at_least(closed, 0.5),
        "gap_closed_by_evidence": Figure(result.closed("evidence")),
        "gap_closed_by_informed": Figure(informed),
        "learned_share_of_informed": Figure(closed / informed),
        "lead_over_evidence_mean": Figure(lead.mean),
        "lead_over_evidence_low": Figure(lead.low, "> 0", lead.low > 0),
        "lead_on_new_skills_mean": Figure(new.mean),
        "lead_on_new_skills_high": Figure(new.high, ">= 0", new.high >= 0),
        "none_recall": at_least(result.interval("learned", "none_recall").mean, 0.8),
        "training_seconds": below(seconds, 90),
    }
    report("mock", figures, ("gymnasium",))
    return 0


if __name__ == "__main__":
    sys.exit(main())
