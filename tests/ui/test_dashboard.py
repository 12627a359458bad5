"""The dashboard in a real browser, on a real server; run by ``make test-ui``.

``LETTA_GYM_TEST_CHROMIUM`` is the path of the browser; without it these tests are skipped. What was
seen is kept as pictures in ``LETTA_GYM_TEST_PICTURES``, where that names a folder.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from letta_gym.selection.policy_file import PolicyFile
from letta_gym.store.keys import RIGHTS
from letta_gym.store.store import Store

CHROMIUM = os.environ.get("LETTA_GYM_TEST_CHROMIUM")
if CHROMIUM is None:
    pytest.skip("needs a browser: make test-ui", allow_module_level=True)

from playwright.sync_api import Page, expect, sync_playwright  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
PICTURES = os.environ.get("LETTA_GYM_TEST_PICTURES")
TASK = "Zap the frobnicators before lunch"
DRAGON = "Feed and groom a dragon before it flies"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SECONDS = 60_000  # milliseconds; a busy machine may be slow


@contextmanager
def served(folder: Path, *changes: str) -> Iterator[str]:
    """Address of ``serve.py`` with a store of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "service.port": port,
        "service.data": folder,
        "service.store": folder / "store.sqlite",
        "service.policy": "null",
        "training.folder": folder / "training",
    }
    options = [f"--set={name}={value}" for name, value in settings.items()]
    options += [f"--set={change}" for change in changes]
    command = [sys.executable, "serve.py", "--config", "configs/serve.yaml", *options]
    log = folder / "serve.log"
    with log.open("w") as file, subprocess.Popen(command, cwd=ROOT, stderr=file) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(address, process, log)
            yield address
        finally:
            process.terminate()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/health/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.2)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ui")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder) as url:
        yield url


@contextmanager
def page_at(browser: Any, address: str, width: int = 1280, theme: str = "light") -> Iterator[Page]:
    """The dashboard in a window; nothing may be asked of another machine."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    context.set_default_timeout(SECONDS)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}/ui/?__theme={theme}")
    page.wait_for_selector("#task textarea")
    yield page
    here = (address, address.replace("http", "ws", 1), "data:", "blob:")
    assert [url for url in asked if not url.startswith(here)] == []
    context.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    with page_at(browser, address) as opened:
        yield opened


def open_tab(page: Page, name: str) -> None:
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
        return
    tab.click()


def picture(page: Page, name: str) -> None:
    if PICTURES is not None:
        page.wait_for_timeout(700)
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def run_task(page: Page, task: str, button: str = "#run") -> str:
    page.fill("#task textarea", task)
    page.click(button)
    page.wait_for_selector("#outcome :text('Why these skills')")
    return str(page.inner_text("#outcome"))


def test_a_task_is_run_and_its_outcome_judged(page: Page) -> None:
    expect(page.locator("#outcome")).to_contain_text("Nothing was run yet")
    said = run_task(page, "Merge these three PDF files and number the pages")
    assert "graded by simulation" in said
    assert "pdf-generation" in said
    picture(page, "run")
    page.click("#up")
    expect(page.locator(".toast-body")).to_contain_text("Thank you")
    expect(page.locator("#feedback")).not_to_be_visible()


def test_an_empty_task_is_refused_in_words(page: Page) -> None:
    page.fill("#task textarea", " ")
    page.click("#run")
    expect(page.locator(".toast-body")).to_contain_text("Write what the agent should do")


def test_a_skill_is_made_and_chosen_then_removed(page: Page) -> None:
    open_tab(page, "Skills")
    expect(page.locator("#skills-table")).to_contain_text("api-design")
    picture(page, "skills")
    page.get_by_text("Create or change a skill").click()
    page.fill("#skill-name input, #skill-name textarea", "frob-zapping")
    page.get_by_label("Description").fill(TASK)
    page.get_by_label("Instructions (Markdown)").fill("<b>Zap</b> them all.")
    page.click("#skill-save")
    expect(page.locator("#skill-detail")).to_contain_text("<b>Zap</b> them all.")
    open_tab(page, "Run a task")
    assert "frob-zapping" in run_task(page, TASK, "#choose")
    open_tab(page, "Skills")
    page.click("#skill-remove")
    expect(page.locator("#skill-detail")).to_contain_text("No skill is open")
    open_tab(page, "Run a task")
    page.click("#choose")
    expect(page.locator("#outcome")).not_to_contain_text("frob-zapping")


def test_a_policy_is_uploaded_promoted_and_rolled_back(page: Page, folder: Path) -> None:
    (path,) = (folder / "policies").glob("*.safetensors")
    file = PolicyFile.load(path)
    header = file.header.model_copy(update={"provenance": {"made by": "a test"}})
    other = PolicyFile(header, file.tensors, file.probes)
    other.save(folder / "other.safetensors")

    open_tab(page, "Policies")
    shown = page.locator("#policies")
    expect(shown).to_contain_text("untrained baseline")
    page.set_input_files("#policy-file input[type=file]", folder / "other.safetensors")
    expect(shown).to_contain_text(other.digest[:12])
    pick(page, "#policy-pick", other.digest[:12])
    page.click("#judge")
    expect(page.get_by_text("holds 0 explored decisions").first).to_be_visible()
    page.click("#shadow")
    expect(shown).to_contain_text("was not asked yet")
    pick(page, "#policy-pick", other.digest[:12])
    page.click("#canary")
    expect(shown).to_contain_text("chooses for 10 % of the tasks")
    pick(page, "#policy-pick", other.digest[:12])
    page.click("#stop")
    expect(shown).to_contain_text("nobody is one")
    pick(page, "#policy-pick", other.digest[:12])
    page.click("#promote")
    active = page.locator("#policies tr.lg-on")
    expect(active).to_contain_text(file.digest[:12])
    picture(page, "policies-refused")
    page.get_by_label("Whatever the log says").check()
    page.click("#promote")
    expect(active).to_contain_text(other.digest[:12])
    picture(page, "policies")
    page.click("#rollback")
    expect(active).to_contain_text(file.digest[:12])


def test_a_run_is_watched_to_its_end_and_its_policy_promoted_and_rolled_back(page: Page) -> None:
    open_tab(page, "Training")
    shown, runs = page.locator("#training"), page.locator("#runs")
    toast = page.locator(".toast-body").last
    expect(shown).to_contain_text("Nothing was trained yet")
    picture(page, "training-empty")
    page.get_by_role("spinbutton", name="Decisions").fill("60000")
    page.get_by_text("More settings").click()
    page.fill("#more textarea", "train.step = 5")
    page.click("#train")
    expect(toast).to_contain_text("did you mean 'steps'?", timeout=SECONDS)
    page.fill("#more textarea", "evaluate.sessions=4\nevaluate.seeds=2\nevaluate.tune_sessions=2")
    page.click("#train")
    expect(shown).to_contain_text("Run 1", timeout=SECONDS)
    page.wait_for_selector("#return-plot canvas, #return-plot svg")
    picture(page, "training-goes")
    page.wait_for_timeout(1000)  # the button takes no click until its last one is dealt with
    page.click("#train")
    expect(toast).to_contain_text("training run 1 is under way", timeout=SECONDS)
    expect(shown).to_contain_text("is a candidate", timeout=SECONDS)
    expect(page.locator("#cancel")).not_to_be_visible()
    picture(page, "training-done")
    trained = re.search(r"policy ([0-9a-f]{12}) is", shown.inner_text())
    assert trained is not None

    open_tab(page, "Policies")
    active = page.locator("#policies tr.lg-on")
    before = active.inner_text()[:12]
    pick(page, "#policy-pick", trained[1][:12])
    page.get_by_label("Whatever the log says").check()
    page.click("#promote")
    expect(active).to_contain_text(trained[1])
    page.click("#rollback")
    expect(active).to_contain_text(before)

    open_tab(page, "Training")
    page.get_by_role("spinbutton", name="Decisions").fill("2000000")
    page.get_by_role("spinbutton", name="Learning rate").fill("0.005")
    page.click("#train")
    expect(shown).to_contain_text("Run 2", timeout=SECONDS)
    page.wait_for_selector("#success-plot canvas, #success-plot svg")
    page.click("#cancel")
    expect(shown).to_contain_text("Cancelled", timeout=SECONDS)
    page.click("#resume")
    expect(shown).to_contain_text("Training", timeout=SECONDS)
    page.click("#cancel")
    expect(runs).to_contain_text("cancelled", timeout=SECONDS)
    for number in (1, 2):
        page.click("#compare-runs input")
        page.get_by_role("option", name=re.compile(f"^{number} ·")).click()
    expect(page.locator("#compared")).to_contain_text("train.ppo.learning_rate")
    page.keyboard.press("Escape")
    picture(page, "training")


def test_metrics_follow_from_what_was_run(page: Page) -> None:
    run_task(page, "Translate the release notes into German")
    open_tab(page, "Metrics")
    expect(page.locator("#summary")).to_contain_text("Tokens saved")
    picture(page, "metrics")


def test_a_skill_shows_its_history(page: Page) -> None:
    open_tab(page, "Skills")
    page.locator("#skills-table").get_by_text("api-design", exact=True).last.click()
    expect(page.locator("#skill-detail")).to_contain_text("Versions")
    expect(page.locator("#skill-detail tr.lg-on")).to_have_count(1)
    picture(page, "skill")


@pytest.fixture(scope="module")
def team(address: str) -> None:
    """An agent that did well with a skill of which another has a content of its own."""
    skill = {"name": "dragon-care", "description": DRAGON, "body": "Coal first.", "scope": "team"}
    for agent, body in (("ada", skill), ("bob", {**skill, "body": "Sing to it."})):
        post(f"{address}/agents", {"name": agent, "team": "dragons", "scope": "team"})
        post(f"{address}/skills", body, agent)
    for _ in range(8):
        made = post(f"{address}/tasks/select", {"task": DRAGON}, "ada")["decision_id"]
        post(f"{address}/tasks/{made}/feedback", {"success": 1.0}, "ada")
    post(f"{address}/tasks/select", {"task": DRAGON}, "bob")


def post(url: str, body: dict[str, Any], agent: str = "default") -> Any:
    headers = {"Content-Type": "application/json", "Letta-Agent": agent}
    asked = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)


def pick(page: Page, box: str, option: str) -> None:
    page.click(f"{box} input")
    page.get_by_role("option", name=re.compile(option)).click()


def test_a_recommended_skill_is_taken_over_once_its_conflict_is_decided(
    page: Page, team: None
) -> None:
    open_tab(page, "Transfer")
    pick(page, "#transfer-agent", "bob")
    shown = page.locator("#transfers")
    expect(shown).to_contain_text("it has another of this name")
    picture(page, "transfer")
    pick(page, "#transfer-offer", "dragon-care")
    page.click("#transfer-accept")
    page.locator("#transfer-conflicts").get_by_text("dragon-care").click()
    picture(page, "transfer-conflict")
    page.click("#transfer-go")
    expect(page.locator("#transfer-result")).to_contain_text("the bundle's was taken")


def test_a_bundle_is_made_and_taken_in(page: Page, team: None, folder: Path) -> None:
    open_tab(page, "Transfer")
    pick(page, "#transfer-agent", "bob")
    expect(page.locator("#transfers")).not_to_contain_text("This agent has no tasks yet")
    pick(page, "#transfer-source", "ada")
    page.click("#transfer-pack")
    with page.expect_download() as coming:
        page.locator("#transfer-packed a[download]").first.click()
    coming.value.save_as(folder / "ada.bundle")
    page.set_input_files("#transfer-file input[type=file]", folder / "ada.bundle")
    expect(page.locator("#transfer-result")).to_contain_text("dragon-care")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_narrow_window_shows_everything(browser: Any, address: str, theme: str) -> None:
    with page_at(browser, address, width=390, theme=theme) as page:
        for name in ("Run a task", "Skills", "Training", "Policies", "Metrics", "Transfer"):
            open_tab(page, name)
            if name == "Run a task":
                run_task(page, "Merge these three PDF files and number the pages")
            page.wait_for_timeout(500)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
            picture(page, f"narrow-{theme}-{name.split()[0].lower()}")


def test_with_keys_the_page_shows_nothing_until_one_is_entered(
    browser: Any, tmp_path: Path
) -> None:
    with Store(tmp_path / "store.sqlite") as store:
        key = store.keys.make("me", RIGHTS, actor="test")
    with served(tmp_path, "access.keys=true") as address, page_at(browser, address) as page:
        page.fill("#task textarea", TASK)
        page.click("#run")
        expect(page.locator(".toast-body")).to_contain_text("Enter one at the top of the page")
        page.get_by_label("API key").fill(key)
        page.get_by_label("API key").press("Tab")
        assert "graded by simulation" in run_task(page, TASK)
