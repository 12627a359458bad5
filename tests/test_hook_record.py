"""What the hooks decide gets into a store, behind the back of whoever waits for a prompt."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.log_config import LogLearningConfig
from agents.log_learning import read_samples
from letta_gym import cli
from letta_gym.errors import StoreError
from letta_gym.feedback.decision import Decision, Waiting
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta import hook_server, hook_settings
from letta_gym.letta.hook_record import Recorder
from letta_gym.letta.hook_server import Narrowing
from letta_gym.letta.hook_settings import Place
from letta_gym.library.embeddings import VectorSpace
from letta_gym.selection.runtime import SkillSelector
from letta_gym.store.history import Logged
from letta_gym.store.store import Store
from tests.test_hooks import event, hooked, place, prompt, skill_call
from tests.test_runtime import selector

__all__ = ["place"]


class Slow:
    """A log that takes its time, or fails."""

    def __init__(self, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.seconds, self.error = seconds, error
        self.kept: list[str] = []

    def _keep(self, what: str) -> None:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.kept.append(what)

    def begin(self, space: VectorSpace) -> None:
        """Vectors of any model are kept."""

    def decided(self, decision: Decision) -> None:
        self._keep(decision.task)

    def waiting(self, decision_id: str) -> Waiting:
        raise StoreError("away")

    def recorded(self, decision_id: str, outcome: Outcome) -> bool:
        self._keep(f"{outcome.stop_reason}")
        return True


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


def with_log(recorder: Recorder) -> SkillSelector:
    made = selector()
    made.log = recorder
    return made


def turn(narrowing: Narrowing, text: str, *, loads: bool = True) -> None:
    """A prompt whose turn ends, after its chosen skill was loaded."""
    narrowing.handle(prompt(text))
    assert narrowing._open is not None
    for name in narrowing._open.skills if loads else ():
        call = skill_call("PostToolUse", name, tool_result={"status": "success"})
        narrowing.handle(call)
    narrowing.handle(event("Stop", stop_reason="end_turn"))


def logged(store: Store) -> list[Logged]:
    return list(store.history().decisions())


def test_a_log_that_is_slow_or_away_keeps_nobody_waiting_and_gets_all_in_order(
    place: Place,
) -> None:
    slow = Slow(0.05)
    with Recorder(slow) as recorder:
        narrowing = Narrowing(with_log(recorder), place.skills, place.decisions, k=1)
        started = time.monotonic()
        for text in ("translate a letter", "mend a test"):
            narrowing.handle(prompt(text))
            narrowing.handle(event("Stop", stop_reason="end_turn"))
        assert time.monotonic() - started < 0.15
    assert slow.kept == ["translate a letter", "end_turn", "mend a test", "end_turn"]

    with Recorder(Slow(error=StoreError("away"))) as recorder:
        narrowing = Narrowing(with_log(recorder), place.skills, place.decisions, k=1)
        turn(narrowing, "translate a letter")
    assert len(place.decisions.read_text(encoding="utf-8").splitlines()) == 3


def test_a_prompt_is_narrowed_in_time_though_the_store_hangs(place: Place) -> None:
    with Recorder(Slow(1.0)) as recorder:
        narrowing = Narrowing(with_log(recorder), place.skills, place.decisions, k=1)
        thread = threading.Thread(target=hook_server.serve, args=(narrowing, place.socket, 30.0))
        thread.start()
        while not place.socket.exists():
            time.sleep(0.01)
        for text in ("translate a letter", "mend a test"):
            code, said, took = hooked(place, prompt(text))
            assert (code, said) == (0, "")
            assert took < 0.9  # the store would have taken a second
            assert narrowing._open is not None
            assert narrowing._open.prompt == text
        assert hook_settings.stop_server(place)
        thread.join(10)


def test_a_session_is_in_the_store_with_what_was_loaded_and_counts_when_it_is_rated(
    store: Store, place: Place
) -> None:
    agent = store.agents.ensure("letta-code")
    with Recorder(store.log(agent)) as recorder:
        narrowing = Narrowing(with_log(recorder), place.skills, place.decisions, k=1, explore=True)
        turn(narrowing, "translate a letter")
        turn(narrowing, "mend a test", loads=False)
        narrowing.handle(prompt("mend a test"))
        narrowing.close()  # in mid-turn
    first, second, third = logged(store)

    assert [pick.loaded for pick in first.picks] == [True] * len(first.picks)
    assert [pick.loaded for pick in second.picks] == [False] * len(second.picks)
    assert first.decision.explored
    outcomes = [one.outcome for one in (first, second, third)]
    assert all(o is not None and not o.evidence and o.source == "session" for o in outcomes)
    assert [o.stop_reason for o in outcomes if o] == ["end_turn", "end_turn", "interrupted"]
    assert list(store.trials()) == []

    line = hook_settings.decided(place, first.decision.id)
    with Recorder(store.log(agent)) as recorder:  # another server, after a restart
        narrowing = Narrowing(with_log(recorder), place.skills, place.decisions, k=1)
        rating = {"decision_id": line["decision_id"], "loaded": line["loaded"], "success": 0.75}
        verdict = narrowing.handle(event(hook_server.RATING, **rating))
        assert verdict.allowed
        assert verdict.reason == hook_server.DONE
        assert len(narrowing.selector.memory) == 1
    (trial,) = store.trials()
    assert (trial.success, trial.loaded) == (0.75, trial.chosen)
    (sample, *_) = read_samples(logged(store)[:1] * 2, LogLearningConfig(min_decisions=2))
    assert sample.reward == 0.75
    assert logged(store)[0].outcome.stop_reason == "end_turn"  # type: ignore[union-attr]


def test_a_prompt_is_rated_by_the_command_line_once(
    store: Store, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = ["--project", str(place.project)]
    with Recorder(store.log(store.agents.ensure("ada"))) as recorder:
        narrowing = Narrowing(with_log(recorder), place.skills, place.decisions, k=1)
        turn(narrowing, "translate a letter")
        turn(narrowing, "mend a test")

    assert cli.main(["hook", "rate", "1", *project]) == cli.ERROR
    assert "install the hooks with --store" in capsys.readouterr().err
    url = str(tmp_path / "store.sqlite")
    words = ["/bin/false", "--store", url, "--agent", "ada"]
    hook_settings.install(place, words, list(selector().shelf.library))
    assert cli.main(["hook", "rate", "1.5", *project]) == cli.ERROR
    assert "[0, 1]" in capsys.readouterr().err
    assert cli.main(["hook", "rate", "1", *project]) == cli.OK
    assert capsys.readouterr().out.startswith("'mend a test': 1 for ")
    assert cli.main(["hook", "rate", "0", *project]) == cli.ERROR
    assert "was rated already" in capsys.readouterr().err
    first = json.loads(place.decisions.read_text(encoding="utf-8").splitlines()[0])
    id = first["decision_id"]
    assert cli.main(["hook", "rate", "0", "--decision", id, *project]) == cli.OK

    assert [trial.success for trial in store.trials()] == [0, 1]


def test_a_rating_reaches_the_running_server(store: Store, place: Place) -> None:
    with Recorder(store.log(store.agents.ensure("ada"))) as recorder:
        narrowing = Narrowing(with_log(recorder), place.skills, place.decisions, k=1)
        thread = threading.Thread(target=hook_server.serve, args=(narrowing, place.socket, 30.0))
        thread.start()
        while not place.socket.exists():
            time.sleep(0.01)
        turn(narrowing, "translate a letter")
        one = hook_settings.decided(place)
        assert hook_settings.rate(place, one["decision_id"], 1.0, one["loaded"])
        assert not hook_settings.rate(place, "unknown", 1.0, [])
        assert hook_settings.stop_server(place)
        thread.join(10)
        assert len(narrowing.selector.memory) == len(one["loaded"])
    assert not hook_settings.rate(place, one["decision_id"], 1.0, one["loaded"])
    assert [trial.success for trial in store.trials()] == [1]
