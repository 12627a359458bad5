"""The tool by which an agent on Letta's REST API loads a skill that was listed to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from letta_gym.letta.wire import AgentRecord, Response, ToolCall, arguments
from letta_gym.library.skills import Skill

NAME = "Skill"


def by_name(skills: Sequence[Skill]) -> dict[str, Skill]:
    """The skills by a name that is each one's own: where two are called alike, by their id."""
    names = [skill.name for skill in skills]
    return {s.name if names.count(s.name) == 1 else s.id: s for s in skills}


def listing(skills: Mapping[str, Skill]) -> dict[str, Any]:
    """Options of a message that list the skills and offer the tool that loads one."""
    listed = [
        {"name": name, "description": skill.description, "location": f"skills/{name}/SKILL.md"}
        for name, skill in skills.items()
    ]
    parameters = {
        "type": "object",
        "properties": {"skill": {"type": "string", "description": "name of the skill"}},
        "required": ["skill"],
    }
    tool = {
        "name": NAME,
        "description": "Load the instructions of one of the available skills, by its name.",
        "parameters": parameters,
    }
    return {"client_skills": listed, "client_tools": [tool]}


def calls_of(response: Response) -> list[ToolCall]:
    """Calls of the tool ``Skill`` that the response waits for."""
    if response.stop_reason.stop_reason != "requires_approval" or not response.messages:
        return []
    calls = response.messages[-1].tool_calls or []
    return calls if all(one.name == NAME for one in calls) else []


def answers(asked: Sequence[ToolCall], skills: Mapping[str, Skill]) -> dict[str, Any]:
    """The message that answers calls of the tool: bodies, or a refusal of what is not listed."""
    results = []
    for one in asked:
        skill = skills.get(str(arguments(one.arguments).get("skill")))
        refusal = f"There is no such skill. Available: {', '.join(skills) or 'none'}."
        results.append(
            {
                "type": "tool",
                "tool_call_id": one.tool_call_id,
                "tool_return": refusal if skill is None else skill.body or skill.text,
                "status": "error" if skill is None else "success",
            }
        )
    return {"type": "approval", "approvals": results}


def pending(agent: AgentRecord) -> list[ToolCall]:
    """Calls of our tool that an agent still waits for an answer to."""
    waiting = (agent.pending_approval or {}).get("tool_calls") or []
    calls = [ToolCall.model_validate(one) for one in waiting]
    return calls if all(one.name == NAME for one in calls) else []
