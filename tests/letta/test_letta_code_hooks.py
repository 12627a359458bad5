"""Hooks in a real interactive session of Letta Code, in a terminal."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from letta_gym.letta import hook_client, hook_server, hook_settings
from letta_gym.letta.code_home import Home, openai_compatible
from letta_gym.letta.hook_server import Narrowing
from letta_gym.letta.hook_settings import Place
from letta_gym.library.skills import Skill, SkillLibrary
from tests.letta.terminal import Terminal
from tests.letta.test_letta_code import LETTA
from tests.stub_llm import MODEL, StubLLM
from tests.test_runtime import selector

DOES = {
    "alpha": "chart the figures",
    "beta": "translate a letter",
    "gamma": "mend a test",
    "delta": "draw a map",
}
SKILLS = [Skill(n, n, does, f"PROCEDURE {n}: answer CODE-{n}") for n, does in DOES.items()]


FIRST = "TASK alpha: chart the figures, and keep gamma in mind"
SECOND = "TASK gamma: translate a letter then translate a letter"
"""The model will ask for the skill of its task, gamma, which is not the one that is chosen."""


def test_each_prompt_of_a_session_sees_and_loads_only_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with StubLLM() as stub:
        home = Home.make(tmp_path / "letta", openai_compatible(stub.url, "none"))
        place = Place.of(home.runs)
        hook_settings.install(place, ["/bin/false"], SKILLS)
        _give_time(place, tmp_path / "hook_client.py")
        narrowing = Narrowing(selector(SkillLibrary(SKILLS)), place.skills, place.decisions, k=1)
        server = threading.Thread(
            target=hook_server.serve, args=(narrowing, place.socket, 300.0), daemon=True
        )
        server.start()
        command = [str(LETTA), "--backend", "local", "--new-agent"]
        command += ["--model", f"openai-compatible/{MODEL}"]
        with Terminal(command, home.runs, home.environment) as letta:
            letta.wait(lambda: "Try " in letta.text, 90)
            letta.type(FIRST)
            letta.wait(lambda: "CODE-alpha" in letta.text, 60)
            _wait_for_decisions(letta, place, 1)
            letta.type(SECOND)
            _wait_for_decisions(letta, place, 2)
        hook_settings.stop_server(place)
        server.join(10)

    first, second = _decisions(place)
    assert (first["skills"], first["loaded"]) == (["alpha"], ["alpha"])
    assert (second["skills"], second["loaded"], second["refused"]) == (["beta"], [], ["gamma"])
    assert first["stop_reason"] == second["stop_reason"] == "end_turn"
    assert "CODE-gamma" not in letta.text
    assert hook_settings.uninstall(place)
    assert not place.skills.exists()


def _give_time(place: Place, client: Path) -> None:
    """Let hooks wait longer than a person would want to: the machine may be busy."""
    source = Path(hook_client.__file__).read_text(encoding="utf-8")
    client.write_text(source.replace(f"LIMIT = {hook_client.LIMIT}", "LIMIT = 30"))
    settings = place.settings.read_text(encoding="utf-8")
    settings = settings.replace(hook_client.__file__, str(client))
    place.settings.write_text(settings.replace(": 300,", ": 40000,"), encoding="utf-8")


def _decisions(place: Place) -> list[dict[str, Any]]:
    if not place.decisions.is_file():
        return []
    return [json.loads(line) for line in place.decisions.read_text("utf-8").splitlines()]


def _wait_for_decisions(letta: Terminal, place: Place, count: int) -> None:
    letta.wait(lambda: len(_decisions(place)) >= count, 60)
    time.sleep(0.5)  # until the prompt is back
