"""Configuration files: what fits is read exactly, and what does not is said with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, Field

from agents.config import RunConfig, read
from agents.kinds import read_run
from agents.replay_config import ReplayRunConfig
from letta_gym.config import Section, dump, load, override, read_yaml, resolve
from letta_gym.errors import ConfigError
from letta_gym.service.config import ServeConfig

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


class Inner(Section):
    rate: float = Field(default=0.5, ge=0, le=1)
    sizes: tuple[int, int] = (1, 2)


class Outer(Section):
    name: str = "café"
    count: int = Field(default=3, ge=1)
    inner: Inner = Inner()
    perhaps: Inner | None = None


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema that holds a value."""
    for name, field in model.model_fields.items():
        inner = list(sections(field.annotation))
        for section in inner:
            yield from keys(section, f"{prefix}{name}.")
        if not inner:
            yield prefix + name


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every section that a key may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from sections(inner)


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a file that holds a value."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


# --- letta_gym/config.py --------------------------------------------------------------------------


def test_a_file_overrides_defaults_key_by_key(tmp_path: Path) -> None:
    config = load(Outer, write(tmp_path, "count: 7\ninner: {sizes: [3, 4]}\n"))
    assert config == Outer(count=7, inner=Inner(sizes=(3, 4)))
    assert config.inner.rate == 0.5


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(Outer, write(tmp_path, "# nothing\n")) == Outer()


def test_a_dumped_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = Outer(count=9, inner=Inner(rate=1e-7), perhaps=Inner(sizes=(5, 6)))
    text = dump(config)
    assert "café" in text
    assert load(Outer, write(tmp_path, text)) == config


def test_a_configuration_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().count = 4


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "0.0003", "3.0e-4"])
def test_a_float_may_be_written_in_any_usual_way(tmp_path: Path, text: str) -> None:
    assert load(Outer, write(tmp_path, f"inner: {{rate: {text}}}")).inner.rate == 0.0003
    assert load(Outer, write(tmp_path, ""), [f"inner.rate={text}"]).inner.rate == 0.0003


def test_overrides_win_over_the_file_and_the_last_one_over_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, "count: 7\nname: file\n")
    config = load(Outer, path, ["count=8", "inner.sizes=[8, 9]", "count = 10", "name=a=b"])
    assert (config.count, config.inner.sizes, config.name) == (10, (8, 9), "a=b")


def test_an_override_leaves_the_data_it_was_given_alone() -> None:
    data = {"inner": {"rate": 0.1}}
    assert override(data, ["inner.rate=0.2"]) == {"inner": {"rate": 0.2}}
    assert data == {"inner": {"rate": 0.1}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("count", "key=value"),
        ("=3", "key=value"),
        ("inner..rate=3", "key=value"),
        ("count.deep=3", "'count' holds a value, not a section"),
        ("count=[1", "not YAML"),
        ("count=2026-31-31", "not YAML"),
    ],
)
def test_an_override_that_is_none_is_refused(tmp_path: Path, assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(Outer, write(tmp_path, "count: 7"), [assignment])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"cuont": 3}, "cuont: unknown key; did you mean 'count'"),
        ({"inner": {"rats": 3}}, "inner.rats: unknown key; did you mean 'rate'"),
        ({"perhaps": {"size": [1, 2]}}, "perhaps.size: unknown key; did you mean 'sizes'"),
        ({"zzz": 3}, "zzz: unknown key; known keys: count, inner, name, perhaps"),
        ({3: 3}, "3: "),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_known_one(data: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(Outer, data, "run.yaml")
    assert str(error.value).startswith("run.yaml does not fit:")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("data", "key", "got"),
    [
        ({"inner": {"rate": 1.5}}, "inner.rate", "1.5"),
        ({"inner": {"rate": float("nan")}}, "inner.rate", "nan"),
        ({"inner": {"rate": "fast"}}, "inner.rate", "'fast'"),
        ({"inner": {"sizes": [1]}}, "inner.sizes.1", ""),
        ({"inner": 4}, "inner", "4"),
        ({"count": 0}, "count", "0"),
        ({"count": 2.5}, "count", "2.5"),
        ({"count": None}, "count", "None"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key_and_itself(
    data: Any, key: str, got: str
) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(Outer, data)
    assert f"  {key}: " in str(error.value)
    assert got in str(error.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        resolve(Outer, {"cuont": 3, "count": 0, "inner": {"rate": 2}})
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"count: [1", "not valid YAML"),
        (b"count: \xff", "not valid YAML"),
        (b"count: 2026-31-31", "not valid YAML"),
        (b"count: !!python/object:os.system {}", "not valid YAML"),
        (b"- 1\n- 2\n", "must hold a mapping of keys; got list"),
        (b"7", "must hold a mapping of keys; got int"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(tmp_path)


# --- agents/config.py and the files of the project ------------------------------------------------


def read_any(path: Path) -> Section:
    """A configuration of a run, or that of the service."""
    return load(ServeConfig, path) if path.name == "serve.yaml" else read_run(path, [])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_of_the_project_fits_and_survives_a_round_trip(
    path: Path, tmp_path: Path
) -> None:
    config = read_any(path)
    assert set(leaves(read_yaml(path))) <= set(keys(type(config)))
    written = tmp_path / path.name
    written.write_text(dump(config), encoding="utf-8")
    assert read_any(written) == config


@pytest.mark.parametrize(("name", "schema"), [("mock", RunConfig), ("replay", ReplayRunConfig)])
def test_a_configuration_file_names_every_key_there_is(name: str, schema: type[Section]) -> None:
    (path,) = (path for path in CONFIGS if path.name == f"{name}.yaml")
    named = set(leaves(yaml.safe_load(path.read_text(encoding="utf-8"))))
    assert sorted(set(keys(schema)) - named - {"kind"}) == []


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.stepps=3", "did you mean 'steps'"),
        ("train.ppo.learning_rat=3", "did you mean 'learning_rate'"),
        ("env.suite=x", "env.suite: unknown key"),
        ("train.steps=0", "train.steps"),
        ("train.ppo.clip_coef=1", "train.ppo.clip_coef"),
        ("train.ppo.num_minibatches=7", "must be a multiple of num_minibatches"),
        ("env.none_share=1.1", "env.none_share"),
        ("env.world=flat", "env.world"),
        ("env.token_budget=.inf", "env.token_budget"),
        ("mock.harm=[0.5, 0.1]", "low <= high"),
        ("mock.strong_share=0.9", "sum to at most 1"),
        ("policy.threshold=.nan", "policy.threshold"),
        ("evaluate.seeds=1", "evaluate.seeds"),
        ("evaluate.first_seed=1", "evaluate.first_seed"),
        ("seed=-1", "seed"),
    ],
)
def test_a_run_refuses_what_it_cannot_do(tmp_path: Path, assignment: str, message: str) -> None:
    path = write(tmp_path, "train: {ppo: {num_envs: 64, num_steps: 32}}\n")
    with pytest.raises(ConfigError, match=message):
        read(path, [assignment])


def test_the_environment_of_a_run_has_the_values_of_its_sections() -> None:
    config = RunConfig.model_validate(
        {
            "env": {"max_skills": 2, "horizon": 5},
            "mock": {"checks": 7},
            "evidence": {"bandwidth": 0.3},
            "retrieval": {"lexical_weight": 0.25},
            "suite": {"path": "elsewhere"},
        }
    )
    env = config.environment(split="test", horizon=6)
    assert (env.max_skills, env.horizon, env.split, env.obs) == (2, 6, "test", "compact")
    assert (env.mock, env.evidence, env.retrieval) == (
        config.mock,
        config.evidence,
        config.retrieval,
    )
    assert env.suite == "elsewhere"
    with pytest.raises(ConfigError, match="did you mean 'horizon'"):
        config.environment(horizn=6)
