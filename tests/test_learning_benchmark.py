"""What the benchmark of learning says of the package's policy, on small suites."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.learning import compared, default
from tests.small_suite import make_suite, write_suite


def test_the_policy_of_the_package_is_measured_beside_retrieval_before_any_outcome(
    tmp_path: Path,
) -> None:
    for name in ("metatool", "bfcl", "llmrouter"):
        write_suite(tmp_path / name, make_suite(200, shift=1.6, noise=0.8))
    found = {key: figure.value for key, figure in default(tmp_path).items()}
    assert found["hybrid_bfcl_hit_at_1"] == found["tuned_hybrid_bfcl_hit_at_1"]
    assert found["hybrid_bfcl_skills_per_task"] == 1
    assert found["hybrid_bfcl_none_recall"] == 0
    over = float(found["default_bfcl_utility"]) - float(found["hybrid_bfcl_utility"])
    assert abs(float(found["default_bfcl_utility_over_hybrid"]) - over) < 1e-9


def test_a_difference_holds_unless_its_interval_lies_below_zero() -> None:
    rng = np.random.default_rng(0)
    needed, right = np.ones(200, bool), rng.random(200) < 0.5
    worse = right & (rng.random(200) < 0.5)

    def rows(values: np.ndarray) -> dict[str, np.ndarray]:
        return {"needed": needed, "hit": values, "success": values, "utility": values}

    below = compared(rows(worse), rows(right), "default", "hybrid")
    assert {key: f.holds for key, f in below.items() if f.target} == {
        "default_hit_at_1_over_hybrid": False,
        "default_success_over_hybrid": False,
        "default_utility_over_hybrid": False,
    }
    level = compared(rows(right), rows(right[::-1].copy()), "default", "hybrid")
    assert all(figure.holds for figure in level.values() if figure.target)
