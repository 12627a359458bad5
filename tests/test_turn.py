"""A turn of Letta Code, read from its messages."""

from __future__ import annotations

from typing import Any

import pytest

from letta_gym.letta.failures import InfrastructureError, Kind
from letta_gym.letta.turn import Turn

IDS = {"pdf-tools": "pdf-tools", "charts-1a2b": "Charts!"}


def say(text: str, id: str = "m1") -> dict[str, Any]:
    return {"message_type": "assistant_message", "id": id, "content": [{"text": text}]}


def call(id: str, skill: str, tool: str = "Skill") -> dict[str, Any]:
    arguments = f'{{"skill": "{skill}"}}'
    start = {"tool_call_id": id, "tool_name": tool, "tool_args": arguments}
    return {"message_type": "client_tool_start", **start}


def returned(id: str, status: str = "success") -> dict[str, Any]:
    result = {"tool_call_id": id, "status": status}
    return {"message_type": "tool_return_message", **result, "tool_returns": [result]}


def usage(tokens: int, run: str = "run-1") -> dict[str, Any]:
    return {"message_type": "usage_statistics", "total_tokens": tokens, "run_id": run}


def stop(reason: str) -> dict[str, Any]:
    return {"message_type": "stop_reason", "stop_reason": reason}


def read(*messages: dict[str, Any]) -> Turn:
    turn = Turn()
    for message in messages:
        turn.feed(message)
    return turn


def test_a_turn_counts_steps_tokens_and_failed_tools() -> None:
    turn = read(
        *(usage(40), stop("requires_approval"), call("a", "pdf-tools"), returned("a")),
        *(
            usage(60, "run-2"),
            call("b", "", "Bash"),
            returned("b", "error"),
            returned("b", "error"),
        ),
        *(say("done"), usage(5, "run-2"), stop("end_turn")),
    )

    reply = turn.reply(IDS, "conversation-1")

    assert (reply.steps, reply.usage, reply.tool_errors) == (3, 105, 1)
    assert reply.loaded == ("pdf-tools",)
    assert (reply.response, reply.stop_reason, reply.run_id) == (
        "done",
        "end_turn",
        "conversation-1",
    )
    assert reply.step_ids == ("run-1", "run-2")


def test_the_answer_is_the_last_message_put_together_from_its_pieces() -> None:
    turn = read(say("Let me see."), say("The ", "m2"), say("answer", "m2"), stop("end_turn"))

    assert turn.reply(IDS).response == "The answer"


def test_an_answer_may_be_plain_text() -> None:
    turn = read({"message_type": "assistant_message", "content": "42"}, stop("end_turn"))

    assert turn.reply({}).response == "42"


def test_skills_are_reported_by_their_id_once_and_only_if_loading_succeeded() -> None:
    turn = read(
        *(call("a", "charts-1a2b"), returned("a"), call("b", "charts-1a2b"), returned("b")),
        *(call("c", "pdf-tools"), returned("c", "error"), stop("end_turn")),
    )

    assert turn.reply(IDS).loaded == ("Charts!",)


def test_a_skill_that_was_not_chosen_is_foreign() -> None:
    turn = read(call("a", "elsewhere"), returned("a"), stop("end_turn"))

    assert turn.reply(IDS).foreign == ("elsewhere",)


def test_a_list_that_shows_other_skills_than_chosen_is_no_evidence() -> None:
    turn = read(stop("end_turn"))
    turn.show([{"name": "pdf-tools"}, {"name": "elsewhere"}])

    with pytest.raises(InfrastructureError, match="elsewhere") as caught:
        turn.reply(IDS)

    assert caught.value.kind == Kind.FOREIGN


def test_preloaded_skills_count_as_loaded() -> None:
    assert read(stop("end_turn")).reply({}, preloaded=("a", "b")).loaded == ("a", "b")


def test_a_call_of_the_command_line_reads_like_one_of_the_app_server() -> None:
    name = {"name": "Skill", "tool_call_id": "a", "arguments": '{"skill":"pdf-tools"}'}
    back = {"message_type": "tool_return_message", "tool_call_id": "a", "status": "success"}

    turn = read({"message_type": "tool_call_message", "tool_call": name}, back, stop("end_turn"))

    assert turn.reply(IDS).loaded == ("pdf-tools",)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("error", Kind.MODEL),
        ("llm_api_error", Kind.MODEL),
        ("invalid_llm_response", Kind.MODEL),
        ("insufficient_credits", Kind.CREDIT),
        ("cancelled", Kind.CANCELLED),
    ],
)
def test_a_turn_that_failed_is_no_outcome(reason: str, kind: Kind) -> None:
    turn = read({"message_type": "loop_error", "api_error": {"message": "no luck"}}, stop(reason))

    with pytest.raises(InfrastructureError, match="no luck") as caught:
        turn.reply(IDS)

    assert caught.value.kind == kind
    assert caught.value.may_have_run


def test_a_turn_that_never_ended_is_no_outcome() -> None:
    with pytest.raises(InfrastructureError):
        read(say("half an ans")).reply(IDS)


def test_the_end_of_a_turn_says_why_where_nothing_else_did() -> None:
    turn = Turn()
    turn.finish("error", "disk full")

    with pytest.raises(InfrastructureError, match="disk full"):
        turn.reply(IDS)


@pytest.mark.parametrize(
    "message",
    [
        {"message_type": "assistant_message"},
        {"message_type": "tool_return_message", "status": "success"},
        {"message_type": "usage_statistics", "total_tokens": "many"},
        {"message_type": "client_tool_start", "tool_call_id": "a", "tool_name": "Skill"},
    ],
)
def test_a_message_that_misses_something_is_malformed(message: dict[str, Any]) -> None:
    with pytest.raises(InfrastructureError, match="cannot be read") as caught:
        read(message)

    assert caught.value.kind == Kind.MALFORMED


def test_a_skill_call_without_a_name_is_the_agents_own_mistake() -> None:
    broken = {"tool_call_id": "a", "tool_name": "Skill", "tool_args": '{"skill'}

    turn = read(
        {"message_type": "client_tool_start", **broken}, returned("a", "error"), stop("end_turn")
    )

    assert (turn.tool_errors, turn.reply(IDS).loaded) == (1, ())
