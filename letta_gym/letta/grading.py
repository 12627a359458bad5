"""Graders: whether a task was done right. Success is graded, never guessed.

Each grader is a section of the configuration, told apart by ``kind``, and grades by itself. A task
of a suite may bring its own under the key ``grader``, as long as that is plain data: a suite from
elsewhere must not run code or send keys anywhere.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, TypeAlias, cast

from pydantic import Field, field_validator

from letta_gym.config import Section, resolve
from letta_gym.errors import ConfigError, MissingExtraError
from letta_gym.library.tasks import Task


@dataclass(frozen=True, slots=True)
class Answer:
    """What is graded: the agent's final ``response`` to ``task``.

    ``metadata`` holds the other keys of the task, such as ``expected``.
    """

    task: str
    response: str
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict: ``success`` in [0, 1], or None where it could not be reached, and why.

    Raises:
        ConfigError: a success out of range.
    """

    success: float | None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.success is not None and not 0 <= self.success <= 1:
            raise ConfigError(f"a grade must lie in [0, 1]; got {self.success!r}")


class Grader(Protocol):
    """Judges answers."""

    async def grade(self, answer: Answer) -> Grade:
        """Judge one answer; a grader that fails says so by a grade without success."""
        ...

    async def check(self) -> None:
        """Find out whether it can judge at all.

        Raises:
            ConfigError: it cannot; the message has the remedy.
        """
        ...


class _Offline(Section):
    async def check(self) -> None:
        """Nothing can be wrong that the configuration did not show."""


class _Expecting(_Offline):
    """Compares with ``expected``, by default the task's own key of that name."""

    expected: str | tuple[str, ...] | None = None
    ignore_case: bool = False

    def wanted(self, answer: Answer) -> tuple[str, ...]:
        """The expected texts; none where neither the grader nor the task has any."""
        value = answer.metadata.get("expected") if self.expected is None else self.expected
        texts = (value,) if isinstance(value, str) else tuple(value or ())
        return tuple(self.folded(str(text)) for text in texts)

    def folded(self, text: str) -> str:
        """``text`` without outer white space, and without case if that is to be ignored."""
        return text.strip().casefold() if self.ignore_case else text.strip()


_NOTHING_EXPECTED = Grade(None, "neither the grader nor the task says what is expected")


class ExactGrader(_Expecting):
    """1 where the response is the expected text, or one of several; outer white space aside."""

    kind: Literal["exact"] = "exact"

    async def grade(self, answer: Answer) -> Grade:
        wanted = self.wanted(answer)
        if not wanted:
            return _NOTHING_EXPECTED
        return Grade(float(self.folded(answer.response) in wanted))


class ContainsGrader(_Expecting):
    """Share of the expected texts that stand in the response.

    Where a text begins or ends with a letter or a digit, a word begins or ends there, so that
    "answer 4" is not found in "answer 42".
    """

    kind: Literal["contains"] = "contains"

    async def grade(self, answer: Answer) -> Grade:
        wanted, response = self.wanted(answer), self.folded(answer.response)
        if not wanted:
            return _NOTHING_EXPECTED
        missing = [text for text in wanted if not re.search(_as_words(text), response)]
        return Grade(1 - len(missing) / len(wanted), f"missing: {missing}" if missing else "")


def _as_words(text: str) -> str:
    left = r"(?<!\w)" if re.match(r"\w", text) else ""
    right = r"(?!\w)" if re.search(r"\w\Z", text) else ""
    return f"{left}{re.escape(text)}{right}"


class RegexGrader(_Offline):
    """1 where ``pattern`` is found in the response; a search that takes over a second is given up.

    The syntax is that of the package ``regex``, a superset of Python's.
    """

    kind: Literal["regex"] = "regex"
    pattern: str
    ignore_case: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        regex = _regex()
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return pattern

    async def grade(self, answer: Answer) -> Grade:
        regex = _regex()
        flags = regex.IGNORECASE if self.ignore_case else 0
        try:
            found = regex.search(self.pattern, answer.response, flags, timeout=1.0)
        except TimeoutError:
            return Grade(None, f"the pattern {self.pattern!r} took more than a second")
        return Grade(float(found is not None))


def _regex() -> Any:
    try:
        import regex
    except ImportError as error:
        raise MissingExtraError("letta", "the grader 'regex'") from error
    return regex


class JsonSchemaGrader(_Offline):
    """1 where the response is JSON that fits ``schema``.

    JSON may stand in a fenced code block, of which the last counts.
    """

    kind: Literal["json_schema"] = "json_schema"
    # pydantic keeps the name `schema` for itself.
    json_schema: dict[str, Any] = Field(alias="schema")

    @field_validator("json_schema")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        jsonschema = _jsonschema()
        try:
            jsonschema.validators.validator_for(schema).check_schema(schema)
        except jsonschema.exceptions.SchemaError as error:
            raise ValueError(f"is no JSON schema: {error.message}") from error
        return schema

    async def grade(self, answer: Answer) -> Grade:
        import referencing

        jsonschema = _jsonschema()
        try:
            value = json.loads(_json_part(answer.response))
        except (ValueError, RecursionError) as error:
            return Grade(0.0, f"the response is not JSON: {error}")
        kind = jsonschema.validators.validator_for(self.json_schema)
        # An empty registry: references to elsewhere are not fetched.
        validator = kind(self.json_schema, registry=referencing.Registry())
        try:
            problem = jsonschema.exceptions.best_match(validator.iter_errors(value))
        except referencing.exceptions.Unresolvable as error:
            return Grade(None, f"the schema refers to what it does not hold: {error}")
        return Grade(1.0) if problem is None else Grade(0.0, problem.message)


def _json_part(response: str) -> str:
    fenced = re.findall(r"^```(?:json)?[ \t]*\n(.*?)^```", response, re.M | re.S)
    return str(fenced[-1]) if fenced else response


def _jsonschema() -> Any:
    try:
        import jsonschema
    except ImportError as error:
        raise MissingExtraError("letta", "the grader 'json_schema'") from error
    return jsonschema


Verdict: TypeAlias = Grade | float | bool | None
Judgement: TypeAlias = Callable[[Answer], Verdict | Awaitable[Verdict]]


class FunctionGrader:
    """Grades by a function: answer -> :class:`Grade`, number in [0, 1], bool, or None.

    A plain function is called in a thread, so that a slow one holds nothing up. An exception is
    logged nowhere but in the grade: the outcome counts as not graded.
    """

    def __init__(self, function: Judgement) -> None:
        self.function = function

    async def check(self) -> None:
        """Nothing to find out before it is called."""

    async def grade(self, answer: Answer) -> Grade:
        """Call the function."""
        try:
            if inspect.iscoroutinefunction(self.function):
                verdict = await self.function(answer)
            else:
                verdict = await asyncio.to_thread(self.function, answer)
                if inspect.isawaitable(verdict):
                    verdict = await verdict
            return as_grade(cast(Verdict, verdict))
        except Exception as error:
            return Grade(None, f"the grader raised {type(error).__name__}: {error}")


class PythonGrader(Section):
    """Grades by the function ``call``, written "module:function"; see :class:`FunctionGrader`."""

    kind: Literal["python"] = "python"
    call: str = Field(pattern=r"^[\w.]+:[\w.]+$")

    async def check(self) -> None:
        """Import the function."""
        self._function()

    async def grade(self, answer: Answer) -> Grade:
        return await FunctionGrader(self._function()).grade(answer)

    def _function(self) -> Judgement:
        module, _, path = self.call.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"the grader {self.call!r} cannot be imported: {error}") from error
        if not callable(found):
            raise ConfigError(f"the grader {self.call!r} must be callable; got {found!r}")
        return cast(Judgement, found)


def as_grade(verdict: Verdict) -> Grade:
    """What a function returned, as a grade.

    Raises:
        ConfigError: it is no verdict.
    """
    if verdict is None:
        return Grade(None, "the grader gave no verdict")
    if isinstance(verdict, Grade):
        return verdict
    if isinstance(verdict, bool | int | float) and math.isfinite(verdict):
        return Grade(float(verdict))
    raise ConfigError(f"a grader returns a Grade, a number in [0, 1], or None; got {verdict!r}")


PlainGrader = Annotated[
    ExactGrader | ContainsGrader | RegexGrader | JsonSchemaGrader, Field(discriminator="kind")
]
"""Graders that are plain data, which a task may bring."""


class _OfTask(Section):
    grader: PlainGrader


def grader_of(task: Task, default: Grader | None) -> Grader | None:
    """The grader that ``task`` brings under the key ``grader``, or else ``default``.

    Raises:
        ConfigError: what it brings is no grader, or one that runs code or asks a model: those are
            named in the configuration.
    """
    own = task.metadata.get("grader")
    if own is None:
        return default
    return resolve(_OfTask, {"grader": own}, f"the grader of task {task.id!r}").grader
