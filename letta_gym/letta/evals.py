"""Graders and data sets of letta-evals, for those who have them; needs the extra ``evals``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from letta_gym.config import Section
from letta_gym.errors import ConfigError, MissingExtraError, SuiteError
from letta_gym.letta.grading import Answer, Grade
from letta_gym.library.skills import SkillLibrary
from letta_gym.library.suite import Suite
from letta_gym.library.tasks import Task

# What these functions compare with; without it they give 0 where no verdict was possible.
_NEED_TRUTH = frozenset({"exact_match", "contains", "regex_match"})


class EvalsGrader(Section):
    """Grades by a grader of letta-evals, ``grader``, written as in one of its suites.

    The task's ``expected`` is the sample's ground truth. ``base_dir`` is where relative paths of
    the grader begin.
    """

    kind: Literal["evals"] = "evals"
    grader: dict[str, Any]
    base_dir: Path | None = None

    async def check(self) -> None:
        """Build the grader.

        Raises:
            ConfigError: letta-evals refuses it.
            MissingExtraError: letta-evals is not installed.
        """
        self._build()

    async def grade(self, answer: Answer) -> Grade:
        """Grade the answer as a transcript of one message.

        letta-evals gives 0 where its grader failed; such an answer is left without a grade.
        """
        try:
            models, grader = _letta_evals("models"), self._build()
            sample = models.Sample(
                id=0,
                input=answer.task,
                ground_truth=_text(answer.metadata.get("expected")),
                rubric=_text(answer.metadata.get("rubric")),
                rubric_vars=answer.metadata.get("rubric_vars"),
                extra_vars=answer.metadata.get("extra_vars"),
            )
            if sample.ground_truth is None and self.grader.get("function") in _NEED_TRUTH:
                return Grade(None, "the task does not say what is expected")
            result, _ = await grader.grade(sample, [[_message(answer.response)]])
        except (ConfigError, MissingExtraError):
            raise
        except Exception as error:  # functions of users, and clients of three providers
            return Grade(None, f"letta-evals raised {type(error).__name__}: {error}")
        if problem := result.metadata.get("error"):
            return Grade(None, f"letta-evals: {problem}")
        return Grade(float(result.score), result.rationale or "")

    def _build(self) -> Any:
        specs, graders = _letta_evals("models.specs"), _letta_evals("graders.tool")
        own = {key: value for key, value in self.grader.items() if key != "base_dir"}
        common = {"extractor", "extractor_config", "base_dir"}
        try:
            if own.get("kind") == "model_judge":
                spec = specs.ModelJudgeGraderSpec(**own, base_dir=self.base_dir)
                rubric = _letta_evals("graders.rubric").RubricGrader
                wanted = {"prompt", "model", "temperature", "provider", "max_retries", "timeout"}
                return rubric(**_fields(spec, common | wanted | {"system_prompt"}))
            spec = specs.ToolGraderSpec(**own, base_dir=self.base_dir)
            return graders.ToolGrader(**_fields(spec, common | {"function"}))
        except (ValueError, ImportError, AttributeError, OSError) as error:
            raise ConfigError(f"letta-evals refuses the grader {own}: {error}") from error


def read_evals_suite(
    path: Path | str, library: SkillLibrary
) -> tuple[Suite, Mapping[str, EvalsGrader]]:
    """The tasks of a letta-evals suite with the skills of ``library``, and its graders by name.

    Only what can be graded here is taken over: the samples' single input and ground truth, and the
    graders. The target and the reward are letta-evals' own business.

    Raises:
        SuiteError: the file or its data set is malformed, or a sample has several inputs.
        MissingExtraError: letta-evals is not installed.
    """
    path = Path(path)
    specs, datasets = _letta_evals("models.specs"), _letta_evals("datasets.loader")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        written = {name: dict(spec) for name, spec in (data.get("graders") or {}).items()}
        spec = specs.SuiteSpec.from_yaml(data, base_dir=path.parent)
        samples = list(
            datasets.load_dataset(
                Path(spec.dataset),
                max_samples=spec.max_samples,
                sample_tags=spec.sample_tags,
                base_dir=path.parent,
            )
        )
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise SuiteError(f"{path} is no suite of letta-evals: {error}") from error
    graders = {
        name: EvalsGrader(grader=grader, base_dir=path.parent) for name, grader in written.items()
    }
    return Suite(spec.name, library, tuple(_task(sample) for sample in samples)), graders


def _task(sample: Any) -> Task:
    if not isinstance(sample.input, str):
        raise SuiteError(f"sample {sample.id!r} has {len(sample.input)} inputs; a task has one")
    extra = {
        "expected": sample.ground_truth,
        "rubric": sample.rubric,
        "rubric_vars": sample.rubric_vars,
        "extra_vars": sample.extra_vars,
    }
    known = {name: value for name, value in extra.items() if value is not None}
    return Task(id=str(sample.id), text=sample.input, metadata=known)


def _message(response: str) -> Any:
    types = importlib.import_module("letta_client.types.agents")
    return types.AssistantMessage(
        id="message-0",
        date="2000-01-01T00:00:00Z",
        content=response,
        message_type="assistant_message",
    )


def _fields(spec: Any, names: set[str]) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in names}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _letta_evals(module: str) -> Any:
    try:
        return importlib.import_module(f"letta_evals.{module}")
    except ImportError as error:
        raise MissingExtraError("evals", "a grader of letta-evals") from error
