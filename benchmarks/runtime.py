"""How fast the runtime is: from process start to the first choice, and each choice after that.

Everything runs on one BLAS thread. Each figure is the best of several repeats, which is what an
otherwise idle machine would show; a plain NumPy top-k over 100 vectors is measured between the
repeats, and tells how fast the machine was.
"""

from __future__ import annotations

import os

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, below, equal, report
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.library.passages import described
from letta_gym.library.skills import SkillLibrary
from letta_gym.library.suite import Suite, bundled_suite
from letta_gym.library.vectors import SuiteVectors, VectorTable, snap, text_hash
from letta_gym.selection import network
from letta_gym.selection.candidates import RetrievalConfig
from letta_gym.selection.opening import Opening
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import SkillSelector
from letta_gym.selection.shelf import Shelf

ROOT = Path(__file__).parent.parent
CANDIDATES, OUTCOMES, STARTS, REPEATS = 64, 500, 9, 40

_START = """
import sys, time
import numpy
from letta_gym.selection.runtime import SkillSelector
policy, skills, embedding, started = sys.argv[1:]
selector = SkillSelector.load(policy, skills)
selector.select("Merge three PDF files and number the pages.", embedding=numpy.load(embedding))
print(time.time() - float(started), "torch" in sys.modules)
"""


def untrained(vectors: SuiteVectors, slots: int) -> Policy:
    """An untrained policy: it costs what a trained one does."""
    weights = network.initial(np.random.default_rng(0), 32, sharpness=30.0, threshold=0.03)
    return Policy(
        weights={name: w.astype(np.float32) for name, w in weights.items()},
        evidence=EvidenceConfig(),
        retrieval=RetrievalConfig(),
        token_price=4e-5,
        max_skills=3,
        slots=slots,
        embedder=vectors.identity,
        probes=vectors.probes,
        opening=Opening(),
    )


def first_choice(vectors: SuiteVectors) -> tuple[float, bool]:
    """Seconds from the start of a process to its first choice, and whether torch was imported."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        policy, embedding = Path(folder, "policy.safetensors"), Path(folder, "task.npy")
        untrained(vectors, slots=12).to_file().save(policy)
        np.save(embedding, vectors.tasks.matrix[0])
        given = [str(policy), str(ROOT / "skills"), str(embedding)]
        for _ in range(STARTS):
            command = [sys.executable, "-c", _START, *given, str(time.time())]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            seconds, torch = done.stdout.split()
            runs.append((float(seconds), torch == "True"))
    return min(runs)


def library_of_64(suite: Suite, vectors: SuiteVectors) -> tuple[SkillLibrary, VectorTable]:
    """The bundled skills and near copies of some, 64 in all, with their vectors."""
    rng = np.random.default_rng(0)
    own = list(suite.library)
    copies = [replace(s, id=f"{s.id}-2", name=f"{s.name}-2") for s in own]
    moved = vectors.skills.matrix + 0.02 * rng.standard_normal(vectors.skills.matrix.shape)
    skills = (own + copies)[:CANDIDATES]
    matrix = np.concatenate([vectors.skills.matrix, snap(moved)])[:CANDIDATES]
    hashes = tuple(text_hash(described(skill)) for skill in skills)
    table = VectorTable(tuple(skill.id for skill in skills), matrix, hashes)
    return SkillLibrary(skills), table


def choices(selector: SkillSelector, suite: Suite, vectors: SuiteVectors) -> Callable[[int], None]:
    """A function that chooses for the i-th task of the suite, all candidates in slots."""
    texts, embeddings = [task.text for task in suite.tasks], vectors.tasks.matrix

    def choose(i: int) -> None:
        at = i % len(texts)
        selector.select(texts[at], embedding=embeddings[at])

    return choose


def remember(selector: SkillSelector, vectors: SuiteVectors, outcomes: int) -> None:
    """Fill the memory with random outcomes."""
    rng = np.random.default_rng(1)
    for _ in range(outcomes):
        key = selector.shelf.keys[rng.integers(len(selector.shelf.keys))]
        vector = vectors.tasks.matrix[rng.integers(len(vectors.tasks))]
        selector.memory.add(key, vector, float(rng.integers(5)) / 4)


def top_k(vectors: SuiteVectors) -> Callable[[int], None]:
    """The yardstick: the best 12 of 100 vectors by their dot product, in plain NumPy."""
    matrix, tasks = vectors.tasks.matrix[:100].copy(), vectors.tasks.matrix

    def search(i: int) -> None:
        scores = matrix @ tasks[i % len(tasks)]
        best = np.argpartition(-scores, 12)[:12]
        best[np.argsort(-scores[best])]

    return search


def medians(*functions: Callable[[int], None], calls: int = 100) -> list[float]:
    """Median microseconds of one call of each function; the best of interleaved repeats."""
    best = [float("inf")] * len(functions)
    for repeat in range(REPEATS):
        for f, function in enumerate(functions):
            times = np.empty(calls)
            for i in range(calls):
                start = time.perf_counter_ns()
                function(repeat * calls + i)
                times[i] = time.perf_counter_ns() - start
            best[f] = min(best[f], float(np.median(times)) / 1e3)
    return best


def main() -> None:
    """Measure, print and write the figures."""
    suite = bundled_suite()
    vectors = suite.vectors
    assert vectors is not None
    seconds, torch = first_choice(vectors)
    policy = untrained(vectors, slots=CANDIDATES)
    library, table = library_of_64(suite, vectors)
    empty, filled = (SkillSelector(policy, Shelf(library, policy, table)) for _ in range(2))
    remember(filled, vectors, OUTCOMES)
    without, with_outcomes, yardstick = medians(
        choices(empty, suite, vectors), choices(filled, suite, vectors), top_k(vectors)
    )
    report(
        "runtime",
        {
            "load_and_first_select_s": below(seconds, 0.5),
            "first_select_imports_torch": equal(torch, False),
            "select_64_candidates_us": below(without, 150),
            f"select_64_candidates_{OUTCOMES}_outcomes_us": Figure(with_outcomes),
            "yardstick_numpy_top_12_of_100_us": Figure(yardstick),
        },
    )


if __name__ == "__main__":
    main()
