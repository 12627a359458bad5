"""How the service holds under load, changes, kills and a Letta that fails.

    python -m benchmarks.service [--only PART ...]

Clients and servers are processes of their own. What is compared is measured in alternating rounds
of one run, all servers up all the time. ``--only`` measures some parts again and keeps the figures
of the others. ``killed_postgres`` needs the address of a PostgreSQL in LETTA_GYM_TEST_POSTGRES:
.ci/with-postgres python -m benchmarks.service.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figure, at_least, below, equal, measured, report
from benchmarks.killed import kill
from benchmarks.load import Load, load
from benchmarks.servers import BARE, UNLOGGED, Server, settings_of, started
from letta_gym.library.skills import Skill, SkillLibrary
from letta_gym.library.suite import Suite, bundled_suite
from letta_gym.selection.policy import Policy
from letta_gym.selection.policy_file import DEFAULT_FILE
from letta_gym.store.models import SHARED
from letta_gym.store.stock import LIBRARY
from letta_gym.store.store import Store
from tests.fake_letta import HANDLE, FakeLetta
from tests.stores import POSTGRES, new_database

Figures = dict[str, Figure]

SKILLS, TASKS = 100, 200
ROUNDS, SECONDS, CLIENTS = 7, 4.0, 16
MANY_CLIENTS, LONG = 64, 60.0
SWAPS = 50
DEADLINE, NEVER = 2.0, 8.0  # seconds that a task may take, and that a slow Letta takes
EVERY = 0.25  # seconds between tasks that are carried out beside the load
FEW_CLIENTS, LETTA_SECONDS = 4, 8.0  # a load that leaves room: what is measured is who waits
MOODS = ("quick", "slow", "failing", "gone")
PACKAGES = ("fastapi", "uvicorn", "pydantic", "sqlalchemy")


def a_hundred(suite: Suite) -> SkillLibrary:
    """The bundled skills, and variations of them under names of their own."""
    own = list(suite.library)
    made: list[Skill] = []
    for number in range(SKILLS - len(own)):
        base, copy = own[number % len(own)], number // len(own) + 2
        name = f"{base.name}-{copy}"
        made.append(
            replace(base, id=name, name=name, description=f"{base.description} Variant {copy}.")
        )
    return SkillLibrary([*own, *made])


def prepared(folder: Path) -> tuple[dict[str, object], Path]:
    """A store with :data:`SKILLS` skills; the settings of a service on it, and bodies to send."""
    suite = bundled_suite()
    settings = settings_of(folder) | {"service.policy": DEFAULT_FILE}
    with Store(str(settings["service.store"])) as store:
        owner = store.agents.ensure(LIBRARY, scope=SHARED)
        store.offers.put(owner, tuple(a_hundred(suite)), actor="benchmark", scope=SHARED)
    bodies = folder / "bodies.json"
    tasks = [{"task": task.text, "k": 3} for task in suite.tasks[:TASKS]]
    bodies.write_text(json.dumps(tasks), encoding="utf-8")
    return settings, bodies


def warm(server: Server, bodies: Path, seconds: float = 2.0) -> None:
    """Let every task be embedded, and everything else that happens once."""
    for body in json.loads(bodies.read_text(encoding="utf-8")):
        status, _ = server.post("/tasks/select", body)
        if status != 200:
            raise RuntimeError(f"the service answered {status} to {body}")
    load(f"{server.url}/tasks/select", bodies, 4, seconds)


def throughput(folder: Path) -> Figures:
    """Choices per second beside a bare endpoint."""
    settings, bodies = prepared(folder)
    with (
        started(settings, BARE) as bare,
        started(settings, UNLOGGED) as unlogged,
        started(settings) as logged,
    ):
        servers = {"bare": bare, "unlogged": unlogged, "logged": logged}
        for server in servers.values():
            warm(server, bodies)
        found: dict[str, list[Load]] = {name: [] for name in servers}
        for _ in range(ROUNDS):
            for name, server in servers.items():
                found[name].append(load(f"{server.url}/tasks/select", bodies, CLIENTS, SECONDS))
    rates = {name: [one.per_second for one in loads] for name, loads in found.items()}

    def share(name: str) -> float:
        return median(own / bare for own, bare in zip(rates[name], rates["bare"], strict=True))

    failed = sum(one.failed() for loads in found.values() for one in loads)
    return {
        "bare_per_second": Figure(median(rates["bare"])),
        "select_per_second": Figure(median(rates["logged"])),
        "select_unlogged_per_second": Figure(median(rates["unlogged"])),
        "select_unlogged_share_of_bare": at_least(share("unlogged"), 0.5),
        "select_share_of_bare": at_least(share("logged"), 0.35),
        "select_unlogged_p99_ms": below(median([one.p99 for one in found["unlogged"]]), 20),
        "select_p99_ms": below(median([one.p99 for one in found["logged"]]), 20),
        "bare_p99_ms": Figure(median([one.p99 for one in found["bare"]])),
        "select_failed": equal(failed, 0),
    }


def steady(folder: Path) -> Figures:
    """Many clients for a minute: what failed, and how memory grew."""
    settings, bodies = prepared(folder)
    with started(settings) as server:
        warm(server, bodies, 10.0)
        before = server.resident
        found = load(f"{server.url}/tasks/select", bodies, MANY_CLIENTS, LONG)
        after = server.resident
    return {
        "clients_64_per_second": Figure(found.per_second),
        "clients_64_p99_ms": Figure(found.p99),
        "clients_64_failed_unless_shed": equal(found.failed(200, 429, 503), 0),
        "clients_64_shed": Figure(found.failed(200)),
        "clients_64_memory_mb": Figure(before),
        "clients_64_memory_growth": below(after / before - 1, 0.05),
    }


def swaps(folder: Path) -> Figures:
    """Policies take turns under load: does every answer fit the policy that it names?"""
    settings, bodies = prepared(folder)
    tasks = json.loads(bodies.read_text(encoding="utf-8"))
    with started(settings) as server:
        other = _other_policy(server)
        digests = [str(server.post("/tasks/select", tasks[0])[1]["policy_digest"]), other]
        expected: dict[str, list[object]] = {}
        for digest in [other, digests[0]]:
            _promote(server, digest)
            expected[digest] = [_chosen(server.post("/tasks/select", task)[1]) for task in tasks]
        failures: list[int] = []

        def swap() -> None:
            for number in range(SWAPS):
                failures.extend([] if _promote(server, digests[(number + 1) % 2]) else [number])
                time.sleep(0.1)
            done.set()

        done, loads = threading.Event(), list[Load]()
        thread = threading.Thread(target=swap)
        thread.start()
        while not done.is_set():
            loads.append(load(f"{server.url}/tasks/select", bodies, CLIENTS, 5.0, keep=1_000_000))
        thread.join()
    answers = [answer for one in loads for answer in one.answers]
    wrong = [
        number
        for number, answer in answers
        if expected.get(str(answer.get("policy_digest")), [None] * TASKS)[number] != _chosen(answer)
    ]
    named = [str(answer.get("policy_digest")) for _, answer in answers]
    return {
        "swaps": equal(SWAPS - len(failures), SWAPS),
        "swaps_answers": Figure(len(answers)),
        "swaps_failed_answers": equal(sum(one.failed() for one in loads), 0),
        "swaps_answers_unlike_their_policy": equal(len(wrong), 0),
        "swaps_rarer_policy_share": Figure(min(named.count(d) for d in digests) / len(named)),
        "swaps_tasks_told_apart": Figure(
            sum(a != b for a, b in zip(*expected.values(), strict=True))
        ),
    }


def _other_policy(server: Server) -> str:
    """Digest of a policy that chooses otherwise than the package's own; it is uploaded."""
    policy = Policy.load(DEFAULT_FILE)
    other = replace(policy, weights={n: 0.5 * w for n, w in policy.weights.items()})
    data = other.to_file(provenance={"made_by": "benchmarks.service"}).to_bytes()
    kind = {"Content-Type": "application/octet-stream"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{server.url}/policies", data, kind)
    ) as answer:
        return str(json.load(answer)["digest"])


def _promote(server: Server, digest: str) -> bool:
    return server.post(f"/policies/{digest}/promote", {"force": True})[0] == 200


def _chosen(answer: Mapping[str, object]) -> object:
    return answer.get("skills")


def killed_sqlite(folder: Path) -> Figures:
    """kill -9 in the middle of 500 writes to SQLite."""
    return _killed("sqlite", folder, None)


def killed_postgres(folder: Path) -> Figures:
    """The same on PostgreSQL."""
    if POSTGRES is None:
        raise SystemExit(
            "killed_postgres needs a PostgreSQL: .ci/with-postgres python -m benchmarks.service"
        )
    with new_database(folder) as store:
        return _killed("postgres", folder, store)


def _killed(kind: str, folder: Path, store: str | None) -> Figures:
    found = kill(folder, store)
    return {
        f"killed_{kind}_acknowledged": Figure(found.decisions + found.outcomes),
        f"killed_{kind}_lost": equal(found.lost, 0),
        f"killed_{kind}_heals": equal(found.heals, True),
    }


class _Letta(FakeLetta):
    """A Letta that is quick, slow, failing, or gone."""

    mood = "quick"

    def answer(
        self, method: str, path: str, query: dict[str, Any], body: dict[str, Any]
    ) -> tuple[int, Any]:
        """As the mood is."""
        if self.mood == "gone":
            raise SystemExit  # ends this connection's thread; no other connection is taken
        if method == "POST" and "messages" in path:
            if self.mood == "slow":
                time.sleep(NEVER)
            if self.mood == "failing":
                return 500, {"detail": "internal error"}
        return super().answer(method, path, query, body)

    def change(self, mood: str) -> None:
        """Be so from now on; who is gone does not come back."""
        self.mood = mood
        if mood == "gone":
            self._server.shutdown()
            self._server.server_close()


def letta(folder: Path) -> Figures:
    """Letta slow, failing and gone: what choices beside it feel, and how its callers are told."""
    settings, bodies = prepared(folder)
    with _Letta() as agents:
        rest = {"model": HANDLE, "base_url": agents.url, "grader": {"kind": "contains"}}
        settings |= {
            "letta.backend": "rest",
            "letta.rest": json.dumps(rest),
            "letta.deadline": DEADLINE,
        }
        with started(settings) as server:
            warm(server, bodies)
            p99: dict[str, list[float]] = {mood: [] for mood in MOODS}
            executed: dict[str, list[Executed]] = {mood: [] for mood in MOODS}
            # Gone comes last, and has a quick Letta before it in every round but its own.
            for mood in [*(mood for _ in range(3) for mood in MOODS[:3]), *["gone"] * 3]:
                agents.change(mood)
                found, beside = _beside(server, bodies)
                p99[mood].append(found.p99)
                executed[mood] += beside
    quick = median(p99["quick"])
    figures: Figures = {"letta_quick_select_p99_ms": Figure(quick)}
    for mood in MOODS[1:]:
        own = executed[mood]
        figures |= {
            f"letta_{mood}_select_p99_ms": Figure(median(p99[mood])),
            f"letta_{mood}_select_p99_ratio": below(median(p99[mood]) / quick, 1.2),
            f"letta_{mood}_longest_beyond_deadline_s": below(
                max(one.seconds for one in own) - DEADLINE, 0.25
            ),
            f"letta_{mood}_answered_by_problem": equal(
                sum(one.status in (502, 503, 504) and "detail" in one.answer for one in own),
                len(own),
            ),
        }
    return figures


@dataclass(frozen=True, slots=True)
class Executed:
    """A task that was to be carried out: the answer and its seconds."""

    status: int
    answer: Mapping[str, object]
    seconds: float


def _beside(server: Server, bodies: Path) -> tuple[Load, list[Executed]]:
    """Load choices, and let a task be carried out every :data:`EVERY` seconds beside them."""
    tasks = json.loads(bodies.read_text(encoding="utf-8"))

    def execute(number: int) -> Executed:
        time.sleep(number * EVERY)
        start = time.perf_counter()
        status, answer = server.post("/tasks/execute", {"task": tasks[number]["task"]})
        return Executed(status, answer, time.perf_counter() - start)

    many = round(LETTA_SECONDS / EVERY)
    with ThreadPoolExecutor(many) as pool:
        coming = [pool.submit(execute, number) for number in range(many)]
        found = load(f"{server.url}/tasks/select", bodies, FEW_CLIENTS, LETTA_SECONDS)
        return found, [one.result() for one in coming]


PARTS: Mapping[str, Callable[[Path], Figures]] = {
    part.__name__: part
    for part in (throughput, steady, swaps, killed_sqlite, killed_postgres, letta)
}


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    chosen = parser.parse_args().only
    figures = {} if set(chosen) == set(PARTS) else measured("service")
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            figures |= PARTS[name](Path(folder))
    report("service", figures, PACKAGES)


if __name__ == "__main__":
    main()
