"""Letta Code: a warm App Server against a cold command, and how long a hook takes.

Parts of ``python -m benchmarks.letta``. Warm and cold take turns in one run, so that a busy machine
slows both; the model is the tests' stub, which answers at once.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal
from unittest import mock

from benchmarks.figures import Figure, at_least, below, equal
from benchmarks.runtime import untrained
from letta_gym.letta import hook_server, hook_settings
from letta_gym.letta.code import CodeConfig, code_backend
from letta_gym.letta.hook_record import Recorder
from letta_gym.library.suite import bundled_suite
from letta_gym.selection.runtime import SkillSelector
from letta_gym.store.store import Store
from tests.side_by_side import side_by_side
from tests.stub_llm import MODEL, StubLLM

ROOT = Path(__file__).parent.parent
LETTA = ROOT / ".letta-code" / "bin" / "letta"
ROUNDS, WARM, COLD, CONCURRENCY = 3, 64, 8, 8
SIDE_BY_SIDE = 48
PROMPTS = 40

Transport = Literal["app-server", "cli"]


def rollouts() -> dict[str, Figure]:
    """Rollouts with different skills, 8 at once, each graded as the stub must answer."""
    asked, must = side_by_side(SIDE_BY_SIDE)
    with StubLLM() as stub, code_backend(_config(stub, "app-server", CONCURRENCY)) as backend:
        outcomes = backend.run(asked)
    right = sum(outcome.success == m for outcome, m in zip(outcomes, must, strict=True))
    return {"code/graded_right": equal(right, SIDE_BY_SIDE)}


def pace() -> dict[str, Figure]:
    """Rollouts per second through a warm App Server and through the command, and their quotient.

    One at a time, and several: on a busy machine the second favours the command, whose processes
    get a share of it each. The quotient of processor seconds includes the start of the App Server.
    """
    figures: dict[str, Figure] = {}
    everything = []
    with StubLLM() as stub:
        for at_once in (1, CONCURRENCY):
            quick, slow = [], []
            for _ in range(ROUNDS):
                quick.append(_round(stub, "app-server", at_once, WARM))
                slow.append(_round(stub, "cli", at_once, COLD))
            rates = [warm[0] / cold[0] for warm, cold in zip(quick, slow, strict=True)]
            processor = [cold[1] / warm[1] for warm, cold in zip(quick, slow, strict=True)]
            everything += [*quick, *slow]
            figures |= {
                f"code/warm_rollouts_per_s/{at_once}": Figure(max(rate for rate, _, _ in quick)),
                f"code/cold_rollouts_per_s/{at_once}": Figure(max(rate for rate, _, _ in slow)),
                f"code/warm_over_cold/{at_once}": at_least(statistics.median(rates), 8),
                f"code/warm_over_cold_processor/{at_once}": at_least(
                    statistics.median(processor), 8
                ),
            }
    right = all(graded for _, _, graded in everything)
    return {**figures, "code/all_graded_right": equal(right, True)}


def _round(
    stub: StubLLM, transport: Transport, at_once: int, count: int
) -> tuple[float, float, bool]:
    """Rollouts per second, processor seconds for each, and whether all were graded right."""
    before = _processor()
    with code_backend(_config(stub, transport, at_once)) as backend:
        if transport == "app-server":
            backend.run(side_by_side(CONCURRENCY)[0])  # the first ones compile
        asked, must = side_by_side(count)
        started = time.perf_counter()
        outcomes = backend.run(asked)
        took = time.perf_counter() - started
    right = [outcome.success for outcome in outcomes] == must
    return count / took, (_processor() - before) / count, right


def _config(stub: StubLLM, transport: Transport, at_once: int) -> CodeConfig:
    return CodeConfig(
        model=MODEL,
        base_url=stub.url,
        executable=LETTA,
        transport=transport,
        concurrency=at_once,
    )


def _processor() -> float:
    """Processor seconds of the child processes that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def hook_times() -> dict[str, Figure]:
    """Milliseconds of a hook as Letta Code runs it: through the shell, the process included."""
    vectors = bundled_suite().vectors
    assert vectors is not None
    selector = SkillSelector.load(untrained(vectors, 12), ROOT / "skills")
    selector.select("Load the embedder.")
    texts = [task.text for task in bundled_suite().tasks[:PROMPTS]]
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"XDG_STATE_HOME": folder}),
    ):
        project = Path(folder) / "project"
        project.mkdir()
        place = hook_settings.Place.of(project)
        hook_settings.install(place, ["/bin/true"], list(selector.shelf.library))
        settings = json.loads(place.settings.read_text(encoding="utf-8"))
        command = settings["hooks"]["UserPromptSubmit"][0]["hooks"][0]["command"]
        dead = [_hook(command, text) for text in texts]
        warm = _served(selector, place, command, texts)
        chosen = len(place.decisions.read_text(encoding="utf-8").splitlines())
        with Store(Path(folder) / "store.sqlite") as store:
            with Recorder(store.log(store.agents.ensure("letta-code"))) as selector.log:
                kept = _served(selector, place, command, texts)
            outcomes = sum(one.outcome is not None for one in store.history().decisions())
    bare = [_timed(lambda: subprocess.run(["sh", "-c", "exec true"], check=True)) for _ in texts]
    python = f"exec {shlex.quote(sys.executable)} -I -S -c pass"
    empty = [_timed(lambda: subprocess.run(["sh", "-c", python], check=True)) for _ in texts]
    return {
        "hook/warm_median_ms": Figure(statistics.median(warm)),
        "hook/warm_p95_ms": below(_p95(warm), 300),
        "hook/warm_with_store_p95_ms": below(_p95(kept), 300),
        "hook/without_server_p95_ms": below(_p95(dead), 300),
        "hook/empty_python_median_ms": Figure(statistics.median(empty)),
        "hook/empty_shell_median_ms": Figure(statistics.median(bare)),
        "hook/prompts_narrowed": equal(chosen, PROMPTS),
        "hook/prompts_in_store": equal(outcomes, PROMPTS),
    }


def _served(
    selector: SkillSelector, place: hook_settings.Place, command: str, texts: Sequence[str]
) -> list[float]:
    """Milliseconds of the hook for each prompt, with a server."""
    narrowing = hook_server.Narrowing(selector, place.skills, place.decisions)
    server = threading.Thread(
        target=hook_server.serve, args=(narrowing, place.socket, 60.0), daemon=True
    )
    server.start()
    while not place.socket.exists():
        time.sleep(0.01)
    took = [_hook(command, text) for text in texts]
    hook_settings.stop_server(place)
    server.join()
    return took


def _hook(command: str, prompt: str) -> float:
    event = {"event_type": "UserPromptSubmit", "prompt": prompt, "is_command": False}
    text = json.dumps(event)
    return _timed(lambda: subprocess.run(["sh", "-c", command], input=text, text=True, check=True))


def _timed(run: Callable[[], object]) -> float:
    """Milliseconds that ``run`` takes."""
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)


def _p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]
