"""A small Letta server in memory: as much of its REST protocol as our client speaks.

Its agents answer as the stub model does to what stands in their prompt. Like the real one, it shows
an agent its blocks only as they were when it was compiled, and keeps blocks when their agent goes.
"""

from __future__ import annotations

import json
import threading
import uuid
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.http_server import Handler, Served
from tests.stub_llm import MODEL, Call, decide

Record = dict[str, Any]

HANDLE = f"vllm/{MODEL}"


class FakeLetta(Served):
    """The server, on a port of its own.

    Attributes:
        url: its address.
        key: the only key it takes; None takes any.
        agents, blocks: what is on it, by id.
        messages: every message that reached an agent, in order: agent id and text.
        feedback: by step id.
        headers: of every request, in order.
    """

    def __init__(self, key: str | None = None) -> None:
        super().__init__(_Handler)
        self.key = key
        self.agents: dict[str, Record] = {}
        self.blocks: dict[str, Record] = {}
        self.messages: list[tuple[str, str]] = []
        self.feedback: dict[str, Record] = {}
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    def add_agent(self, **fields: Any) -> str:
        """Put an agent on the server, as a person would; returns its id."""
        return str(self._create_agent(fields)["id"])

    def labels(self, agent_id: str) -> list[str]:
        """Labels of the blocks that are attached to an agent."""
        return [self.blocks[b]["label"] for b in self.agents[agent_id]["block_ids"]]

    # -- the protocol ------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: Record, body: Record) -> tuple[int, Any]:
        """Status and reply of one request."""
        with self.lock:
            match method, path.strip("/").split("/")[1:]:
                case "GET", ["models"]:
                    return 200, [{"handle": HANDLE}, {"handle": "letta/letta-free"}]
                case "POST", ["agents"]:
                    return 200, self._create_agent(body)
                case "GET", ["agents"]:
                    wanted = set(query.get("tags", []))
                    found = [a for a in self.agents.values() if wanted <= set(a["tags"])]
                    return 200, _page(found, query)
                case "POST", ["blocks"]:
                    return 200, self._create_block(body)
                case "GET", ["blocks"]:
                    part = query.get("label_search", [""])[0]
                    found = [b for b in self.blocks.values() if part in b["label"]]
                    return 200, _page(found, query)
                case "DELETE", ["blocks", block_id] if block_id in self.blocks:
                    del self.blocks[block_id]
                    for agent in self.agents.values():
                        agent["block_ids"] = [b for b in agent["block_ids"] if b != block_id]
                    return 200, {}
                case "PATCH", ["steps", step_id, "feedback"]:
                    self.feedback[step_id] = body
                    return 200, {"id": step_id}
                case _, ["agents", agent_id, *rest] if agent_id in self.agents:
                    return self._of_agent(method, self.agents[agent_id], rest, query, body)
        return 404, {"detail": f"nothing at {method} {path}"}

    def _of_agent(
        self, method: str, agent: Record, path: list[str], query: Record, body: Record
    ) -> tuple[int, Any]:
        match method, path:
            case "GET", []:
                return 200, agent
            case "DELETE", []:
                del self.agents[agent["id"]]
                return 200, {}
            case "POST", ["recompile"]:
                self._compile(agent)
                return 200, "recompiled"
            case "GET", ["core-memory", "blocks"]:
                return 200, _page([self.blocks[b] for b in agent["block_ids"]], query)
            case "PATCH", ["core-memory", "blocks", "attach", block_id]:
                if block_id not in agent["block_ids"]:
                    agent["block_ids"].append(block_id)
                return 200, agent
            case "PATCH", ["core-memory", "blocks", "detach", block_id]:
                if block_id not in agent["block_ids"]:
                    return 404, {"detail": "not attached"}
                agent["block_ids"].remove(block_id)
                return 200, agent
            case "POST", ["messages"]:
                return 200, self._converse(agent, body)
        return 404, {"detail": f"nothing at {method} {path}"}

    def _create_agent(self, body: Record) -> Record:
        agent = {
            "id": f"agent-{uuid.uuid4()}",
            "name": body.get("name", "agent"),
            "tags": body.get("tags", []),
            "block_ids": list(body.get("block_ids", [])),
            "history": [],
            "pending_approval": None,
        }
        self.agents[agent["id"]] = agent
        self._compile(agent)
        return agent

    def _create_block(self, body: Record) -> Record:
        block = {"id": f"block-{uuid.uuid4()}", **body}
        self.blocks[block["id"]] = block
        return block

    def _compile(self, agent: Record) -> None:
        agent["system"] = "\n".join(self.blocks[b]["value"] for b in agent["block_ids"])

    def _converse(self, agent: Record, body: Record) -> Record:
        history, run = agent["history"], f"run-{uuid.uuid4()}"
        approvals = [one for m in body.get("messages", []) for one in m["approvals"]]
        for one in approvals:
            history.append({"role": "tool", "content": one["tool_return"]})
        if "input" in body:
            history.append({"role": "user", "content": body["input"]})
            self.messages.append((agent["id"], body["input"]))
        listed = "\n".join(
            f"{s['name']}: {s['description']}" for s in body.get("client_skills", [])
        )
        system = {"role": "system", "content": f"{agent['system']}\n{listed}"}
        tools = frozenset(tool["name"] for tool in body.get("client_tools", []))
        said = decide([system, *history], tools)
        message: Record = {"run_id": run, "step_id": f"step-{uuid.uuid4()}"}
        returned = [
            {**message, "message_type": "tool_return_message", "status": one["status"]}
            for one in approvals
        ]
        agent["pending_approval"] = None
        if isinstance(said, Call):
            arguments = json.dumps(dict(said.arguments))
            call = {"name": said.tool, "arguments": arguments, "tool_call_id": uuid.uuid4().hex}
            function = {"name": said.tool, "arguments": arguments}
            history.append({"role": "assistant", "tool_calls": [{"function": function}]})
            message |= {"message_type": "approval_request_message", "tool_calls": [call]}
            agent["pending_approval"] = message
        else:
            history.append({"role": "assistant", "content": said})
            message |= {"message_type": "assistant_message", "content": said}
        stop = "requires_approval" if isinstance(said, Call) else "end_turn"
        return {
            "messages": [*returned, message],
            "stop_reason": {"message_type": "stop_reason", "stop_reason": stop},
            "usage": {"step_count": 1, "total_tokens": 100},
        }


def _page(records: list[Record], query: Record) -> list[Record]:
    ids = [record["id"] for record in records]
    start = ids.index(query["after"][0]) + 1 if "after" in query else 0
    return records[start : start + int(query.get("limit", ["50"])[0])]


class _Handler(Handler):
    def _serve(self) -> None:
        body = json.loads(self.body() or b"{}")
        url, fake = urlsplit(self.path), self.server.served
        fake.headers.append({name.lower(): value for name, value in self.headers.items()})
        if fake.key is not None and self.headers.get("authorization") != f"Bearer {fake.key}":
            self.reply_json(401, {"detail": "wrong key"})
            return
        self.reply_json(*fake.answer(self.command, url.path, parse_qs(url.query), body))

    do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815
