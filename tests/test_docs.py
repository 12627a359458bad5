"""The documentation is true: it is complete, its tables and links hold, and its examples run."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml
from pydantic import BaseModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import serve
import train
from agents.config import RunConfig, read
from agents.kinds import read_run
from agents.log_config import LogRunConfig
from agents.replay_config import ReplayRunConfig
from agents.stream_run import CURVES
from agents.suite_comparison import line_up
from agents.trial import metrics
from docs.build import DOCS, GENERATED, PICTURES, built
from letta_gym import cli, errors
from letta_gym.config import load
from letta_gym.envs.deployment import ReplayConfig
from letta_gym.envs.glue import EnvConfig
from letta_gym.envs.rehearsal import RehearsalOptions
from letta_gym.feedback.promotion import GateConfig
from letta_gym.feedback.quality import QualityConfig
from letta_gym.feedback.transfer import TransferConfig
from letta_gym.selection import policy_file, runtime
from letta_gym.selection.choice import Selection
from letta_gym.selection.exploration import ExplorationConfig
from letta_gym.service.app import bare_app
from letta_gym.service.config import AccessConfig, ServeConfig
from letta_gym.service.guard import RIGHT
from letta_gym.store.log import LogConfig

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
}
ALL = "\n".join(PAGES.values())
ENVIRONMENT, TRAINING = PAGES["docs/environment.md"], PAGES["docs/training.md"]
REPLAY = PAGES["docs/replay.md"]
SERVICE = PAGES["docs/service.md"]
RUNTIME, README = PAGES["docs/runtime.md"], PAGES["README.md"]
MOCK = "configs/mock.yaml"

TINY = [
    *("suite.path=bundled", "env.horizon=4", "env.history=[5, 10]", "train.steps=64"),
    *("train.ppo.num_envs=4", "train.ppo.num_steps=4", "policy.hidden=4", "evaluate.seeds=2"),
    *("evaluate.sessions=2", "evaluate.tune_sessions=2"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny run that was trained, evaluated and exported."""
    folder = tmp_path_factory.mktemp("docs") / "run"
    changes = [f"--set={assignment}" for assignment in TINY]
    assert train.main([f"--config={ROOT / MOCK}", f"--run-dir={folder}", *changes]) == 0
    return folder


# --- what the pages say of the code ---------------------------------------------------------------


@pytest.mark.parametrize("name", list(GENERATED))
def test_the_generated_parts_are_what_the_code_generates(name: str) -> None:
    page = PAGES[f"docs/{name}"]

    assert built(name, page) == page, "make it anew with: python -m docs.build"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_there_with_its_figures_and_is_what_the_code_draws(name: str) -> None:
    source, make = PICTURES[name]
    assert (DOCS / name).is_file() == source.is_file()
    if source.is_file():
        assert (DOCS / name).read_text(encoding="utf-8") == make()


def test_every_configuration_key_is_documented_with_its_value() -> None:
    config = _flat(read(ROOT / MOCK, []))
    documented = _column(_section(TRAINING, "Configuration"), 1)
    keywords = _column(_section(ENVIRONMENT, "Keywords"), 1)
    of_env = {key for key in config if key.startswith("env.")}

    assert documented == {key: config[key] for key in config if key not in of_env}
    assert {key.removeprefix("env.") for key in of_env} <= set(keywords)


def test_keys_that_are_left_out_have_the_value_that_is_stated() -> None:
    config, defaults = _flat(read(ROOT / MOCK, [])), _flat(RunConfig())
    tables = _section(TRAINING, "Configuration").split("| default |")[1:]
    stated = _column("\n".join(table.split("\n\n")[0] for table in tables), 2)

    assert set(stated) == {key for key in defaults if key.startswith("train.")}
    assert stated == {k: defaults[k] for k in stated}
    assert {k: v for k, v in config.items() if k not in stated} == {
        k: v for k, v in defaults.items() if k not in stated
    }


@pytest.mark.parametrize(
    ("page", "config"),
    [(ENVIRONMENT, EnvConfig()), (REPLAY, ReplayConfig())],
    ids=["mock", "replay"],
)
def test_every_keyword_of_an_environment_is_documented_with_its_default(
    page: str, config: BaseModel
) -> None:
    known = config.model_dump(mode="json")
    documented = _column(_section(page, "Keywords"), 1)
    sections = {name for name, value in known.items() if isinstance(value, dict)}

    assert set(documented) == set(known)
    assert {name for name, value in documented.items() if value is None} == sections
    assert {n: v for n, v in documented.items() if n not in sections} == {
        n: v for n, v in known.items() if n not in sections
    }


def test_every_key_of_training_on_a_suite_is_documented_with_its_value_and_default() -> None:
    config, defaults = _flat(read_run(ROOT / "configs/replay.yaml", [])), _flat(ReplayRunConfig())
    page = _section(REPLAY, "Training").split("### TensorBoard")[0]
    values, stated = _column(page, 1), _column(page, 2)
    of_mock = ("evidence.", "retrieval.", "train.ppo.")
    own = {key for key in config if not key.startswith((*of_mock, "env."))}
    changed = {k for k in config if k.startswith(("evidence.", "retrieval."))}
    changed = {key for key in changed if config[key] != defaults[key]}

    assert set(values) == own | changed | {"env.max_skills"}
    assert values == {key: config[key] for key in values}
    assert stated == {key: defaults[key] for key in stated}
    assert {k for k in config if k.startswith("env.") and config[k] != defaults[k]} == {
        "env.max_skills"
    }


def test_every_agent_metric_and_tag_of_a_suite_is_documented() -> None:
    agents = {agent.name for agent in line_up(ReplayRunConfig())} | {"learned"}
    text = _section(REPLAY, "Evaluation") + _section(REPLAY, "Training")
    columns = ["needed", "hit", "skills", "success", "utility", "tokens", "regret"]
    known = {name: np.zeros(0, bool) for name in columns} | {"top": np.zeros((0, 5))}
    tags = {f"validation/{name}" for name in CURVES} | {"validation/curve", "rehearsal/reward"}

    assert {"linucb", "hybrid"} <= agents
    assert [n for n in {*agents, *metrics(known), *tags} if f"`{n}`" not in text] == []


def test_every_option_of_rehearsal_is_documented_with_its_default() -> None:
    documented = _column(_section(REPLAY, "Rehearsal"), 1)

    assert documented == RehearsalOptions().model_dump()


@pytest.mark.parametrize(
    ("page", "section", "of"),
    [
        ("docs/store.md", "Decisions and outcomes", LogConfig()),
        ("docs/feedback.md", "Exploration", ExplorationConfig()),
        ("docs/feedback.md", "Quality", QualityConfig()),
        ("docs/feedback.md", "Promotion", GateConfig()),
        ("docs/feedback.md", "Transfer", TransferConfig()),
    ],
    ids=["log", "exploration", "quality", "gate", "transfer"],
)
def test_every_key_of_the_feedback_loop_is_documented_with_its_default(
    page: str, section: str, of: BaseModel
) -> None:
    text = _section(PAGES[page], section).split("| key | default |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (`.*?`(?:, `.*?`)*) \|", text, re.M)
    names = [name for keys, _ in rows for name in re.findall(r"`(.*?)`", keys)]
    values = [value for _, defaults in rows for value in re.findall(r"`(.*?)`", defaults)]
    found = dict(zip(names, map(yaml.safe_load, values), strict=True))

    assert found == of.model_dump(mode="json")


def test_every_key_of_learning_from_a_log_is_documented_with_its_default() -> None:
    text = _section(PAGES["docs/feedback.md"], "Learning from the log")
    rows = re.findall(r"^\| (`[\w.]+`(?:, `[\w.]+`)*) \| (`.*?`(?:, `.*?`)*) \|", text, re.M)
    names = [name for keys, _ in rows for name in re.findall(r"`(.*?)`", keys)]
    values = [value for _, defaults in rows for value in re.findall(r"`(.*?)`", defaults)]
    found = dict(zip(names, map(yaml.safe_load, values), strict=True))
    known = _flat(LogRunConfig()) | _flat(read_run(ROOT / "configs/from-log.yaml", []))

    assert known == _flat(LogRunConfig())
    assert found == {key: value for key, value in known.items() if key != "kind"}


def test_every_environment_id_is_documented() -> None:
    ids = [name for name in gymnasium.registry if name.startswith("letta_gym/")]

    assert ids
    assert [name for name in ids if f"`{name}`" not in ENVIRONMENT] == []


def test_every_command_and_option_is_documented() -> None:
    commands = dict(_commands(cli._parser(), "letta-gym"))
    missing = [name for name in commands if f"`{name}" not in RUNTIME]
    missing += [
        f"{name} {option}"
        for name, options in commands.items()
        for option in options
        if not re.search(rf"`{option}\b", RUNTIME)
    ]

    assert {"letta-gym select", "letta-gym skills validate"} <= set(commands)
    assert missing == []


@pytest.mark.parametrize(
    ("script", "page"),
    [(train, "training.md"), (evaluate, "training.md"), (serve, "service.md")],
    ids=["train.py", "evaluate.py", "serve.py"],
)
def test_every_option_of_the_scripts_is_documented(
    script: Any, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, text = _options(script.main, capsys), PAGES[f"docs/{page}"]

    assert {"--config", "--set"} <= options
    assert [option for option in options if not re.search(rf"`{option}\b", text)] == []


def test_every_route_of_the_service_is_documented_with_its_right() -> None:
    operations = {
        f"{method.upper()} {path}": operation.get(RIGHT)
        for path, of_path in bare_app().openapi()["paths"].items()
        for method, operation in of_path.items()
    }
    rows = re.findall(r"^\| `([A-Z]+ /\S+)` \| (\w*) ?\|", SERVICE, re.M)

    assert {route: right or None for route, right in rows} == operations


def test_the_configuration_of_the_service_is_documented_and_is_the_file() -> None:
    file = load(ServeConfig, ROOT / "configs/serve.yaml")
    known = {
        key: value
        for key, value in _flat(file).items()
        if not key.startswith(
            ("baseline.evidence.", "baseline.retrieval.", "letta.mock.", "letta.reward.")
        )
    }
    documented = _column(_section(SERVICE, "Configuration"), 1)

    assert documented == {k: str(v) if isinstance(v, Path) else v for k, v in known.items()}
    assert file == ServeConfig(access=AccessConfig(keys=False))


def test_every_make_target_is_documented() -> None:
    targets = _targets()

    assert {"train", "test", "tensorboard", "try"} <= targets
    assert [name for name in targets if not re.search(rf"make {name}\b", ALL)] == []


def test_every_extra_is_documented() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = README.split("| extra | brings |")[1].split("\n\n")[0]
    documented = re.findall(r"`([a-z]+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.M)))

    assert sorted(documented) == sorted(project["optional-dependencies"])


def test_every_agent_and_metric_of_an_evaluation_is_documented(run: Path) -> None:
    evaluation = yaml.safe_load((run / "summary.json").read_text(encoding="utf-8"))["evaluation"]
    metrics = {metric for metrics in evaluation["agents"].values() for metric in metrics}
    names = {*evaluation, *evaluation["agents"], *metrics} - {"agents"}

    assert {"learned", "return", "regret", "hit_at_1/new"} <= names
    assert [name for name in names if f"`{name}`" not in TRAINING] == []


def test_every_tensorboard_tag_is_documented(run: Path) -> None:
    events = EventAccumulator(str(run)).Reload()
    tags = events.Tags()
    scalars = [tag for tag in tags["scalars"] if not tag.startswith("eval/")]
    texts = [tag for tag in tags["tensors"] if not tag.startswith("_hparams_/")]
    groups = {f"{tag.split('/')[0]}/*" for tag in {*tags["histograms"], *tags["scalars"]}}
    groups -= {"charts/*", "losses/*", "selection/*", "greedy/*", "untrained/*"}
    wanted = {*scalars, *tags["images"], *texts, *groups}

    assert {"losses/entropy", "selection/success", "weights/*", "gradients/*", "eval/*"} <= wanted
    assert [tag for tag in wanted if f"`{tag}`" not in TRAINING] == []


def test_every_file_of_a_run_is_documented(run: Path) -> None:
    files = {file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file()}
    names = {re.sub(r"(tfevents\.).*", r"\1*", name) for name in files}

    assert len(names) == 5
    assert [name for name in names if f"`{name}`" not in TRAINING] == []


def test_the_readme_shows_the_table_that_is_printed(run: Path) -> None:
    shown = README.split("<!-- table:start -->")[1].split("<!-- table:end -->")[0]
    evaluation = yaml.safe_load((run / "summary.json").read_text(encoding="utf-8"))["evaluation"]
    rows = [line.split() for line in shown.splitlines() if "±" in line or "gap" in line]

    assert [row[0] for row in rows[1:]] == ["agent", *evaluation["agents"]]
    assert len(rows[1]) > 5
    assert set(rows[1][1:-2]) <= set(evaluation["agents"]["none"])


def test_every_error_is_documented() -> None:
    names = [name for name, value in vars(errors).items() if isinstance(value, type)]

    assert len(names) > 5
    assert [name for name in names if f"{name}`" not in RUNTIME] == []


def test_the_runtime_page_names_every_argument_and_field() -> None:
    selector = runtime.SkillSelector
    functions: list[Callable[..., Any]] = [
        selector.load,
        selector.select,
        selector.select_many,
        selector.session,
    ]
    names = {name for function in functions for name in _arguments(function)}
    names |= {name for name in Selection.__annotations__ if not name.startswith("_")}
    names |= set(policy_file.PolicyHeader.model_fields)

    assert {"explore", "log_propensity", "embedder", "schema_hash"} <= names
    assert [name for name in names if not re.search(rf"`[^`\n]*\b{name}\b", RUNTIME)] == []


# --- links, commands, examples --------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PAGES))
def test_every_relative_link_leads_somewhere(name: str) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", PAGES[name]):
        target, _, anchor = "".join(link).partition("#")
        if "://" in target:
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        if not path.exists() or (anchor and anchor not in _anchors(path)):
            broken.append("".join(link))

    assert broken == []


@pytest.mark.parametrize("name", list(PAGES))
def test_every_shell_command_is_one_that_exists(name: str) -> None:
    for block in _blocks(PAGES[name], "sh"):
        for line in block.splitlines():
            _check_command(shlex.split(line))


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if "```python" in page])
def test_every_python_example_runs(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "runs" / "mock" / "policy.safetensors"
    policy.parent.mkdir(parents=True)
    policy.write_bytes((run / "policy.safetensors").read_bytes())
    (tmp_path / "skills").symlink_to(ROOT / "skills")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    for number, block in enumerate(_blocks(PAGES[name], "python"), 1):
        exec(compile(block, f"{name}, example {number}", "exec"), names)


# --- reading pages and programs -------------------------------------------------------------------


def _section(page: str, title: str) -> str:
    """What stands below a heading of the second level."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    return str(text)


def _column(text: str, column: int) -> dict[str, Any]:
    """A column of the tables in ``text``, read as YAML, by the name in the first."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\| `[\w.]+` \|.*$", text, re.M)
    ]
    names = [row[0].strip("`") for row in rows]
    assert len(set(names)) == len(names), "a name stands in two rows"
    return {name: yaml.safe_load(row[column]) for name, row in zip(names, rows, strict=True)}


def _flat(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a configuration, values as in YAML."""
    flat: dict[str, Any] = {}
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _commands(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, list[str]]]:
    """Every command below ``parser`` that does something, with its long options."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in below:
        for word, inner in action.choices.items():
            yield from _commands(inner, f"{name} {word}")
    if not below:
        options = [o for a in parser._actions for o in a.option_strings if o.startswith("--")]
        yield name, [option for option in options if option != "--help"]


def _options(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    return set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}


def _targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))


def _arguments(function: Callable[..., Any]) -> Iterator[str]:
    count = function.__code__.co_argcount + function.__code__.co_kwonlyargcount
    yield from (n for n in function.__code__.co_varnames[:count] if n not in ("self", "cls"))


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)


def _anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as Markdown viewers make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def _check_command(words: list[str]) -> None:
    """Assert that a command of the pages exists and takes these arguments."""
    match words:
        case ["make", target, *_]:
            assert target in _targets(), words
        case ["letta-gym", *arguments]:
            cli._parser().parse_args(arguments)
        case ["python", "train.py" | "evaluate.py", *arguments]:
            pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
            config = {option: value for option, value in pairs if option == "--config"}
            changes = [value for option, value in pairs if option == "--set"]
            read_run(ROOT / config["--config"], changes)
        case ["python", "serve.py", "--config", config_file]:
            load(ServeConfig, ROOT / config_file)
        case ["python", "-m", module]:
            assert importlib.util.find_spec(module) is not None, words
        case ["pip", "install", "-e", where]:
            assert (ROOT / where / "pyproject.toml").is_file(), words
        case _:
            pytest.fail(f"what command is this? {words}")
