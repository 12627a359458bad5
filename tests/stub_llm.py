"""A deterministic model with OpenAI's protocol that knows nothing but what stands in its prompt.

It follows these rules, so that success depends on the right skill really reaching it:

- The task is the last ``TASK <family>: ...`` that a user wrote.
- ``PROCEDURE <family>: answer <code>`` anywhere in the prompt: it answers ``ANSWER <code>``.
- ``PROCEDURE <family>: call <tool> <value>``: it calls the tool with ``{"x": value}``, and answers
  ``ANSWER <what the tool returned>``.
- Otherwise, where it has a tool ``Skill`` and its prompt lists skills called ``<family>`` or
  ``<family>-...``, it loads them one after the other until one holds the procedure.
- Otherwise it answers that it does not know.
- Asked to judge, it gives 1 where what was expected stands in the response, and 0 elsewhere; with
  the rubric ``mumble`` it gives no verdict.
- ``FAULT sleep <seconds>`` or ``FAULT status <code>`` in the task makes it slow, or fail.

Run it with ``python -m tests.stub_llm --port 9099``, or as a context manager in a test.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.http_server import Handler, Served

MODEL = "stub-1"
CONTEXT_WINDOW = 32_000
JUDGE = "You judge whether"


@dataclass(frozen=True)
class Call:
    """A tool call that the model decided on."""

    tool: str
    arguments: Mapping[str, str]


def decide(messages: Sequence[Mapping[str, Any]], tools: frozenset[str]) -> Call | str:
    """What the model says to ``messages``, given the names of its tools."""
    texts = [_text(message) for message in messages]
    if texts and JUDGE in texts[0]:
        return _verdict(texts[1])
    asked = [
        (i, family)
        for i, message in enumerate(messages)
        if message.get("role") == "user"
        for family in re.findall(r"TASK ([\w-]+):", texts[i])
    ]
    if not asked:
        return "There is no TASK in my prompt."
    start, family = asked[-1]
    prompt, since = "\n".join(texts), messages[start + 1 :]
    procedure = rf"PROCEDURE {re.escape(family)}: "
    if found := re.search(procedure + r"answer ([\w.-]+)", prompt):
        return f"ANSWER {found[1]}"
    called = _calls(since)
    if found := re.search(procedure + r"call (\w+) ([\w.-]+)", prompt):
        results = [_text(m) for m in since if m.get("role") == "tool"]
        if found[1] in [call.tool for call in called] and results:
            return f"ANSWER {results[-1]}"
        return Call(found[1], {"x": found[2]})
    if "Skill" in tools:
        tried = {call.arguments.get("skill") for call in called if call.tool == "Skill"}
        for name in _listed(prompt, family):
            if name not in tried:
                return Call("Skill", {"skill": name})
    return f"I do not know how to do {family}."


def _listed(prompt: str, family: str) -> Iterator[str]:
    """Names of skills for ``family`` that stand in the prompt, outside of tasks and procedures."""
    rest = re.sub(r"(TASK|PROCEDURE) [\w-]+:", "", prompt)
    pattern = rf"(?<![\w/-]){re.escape(family)}(?:-[a-z0-9]+)*(?![\w-])"
    yield from dict.fromkeys(re.findall(pattern, rest))


def _calls(messages: Sequence[Mapping[str, Any]]) -> list[Call]:
    calls = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call["function"]
            calls.append(Call(function["name"], json.loads(function["arguments"] or "{}")))
    return calls


def _verdict(material: str) -> str:
    case = json.loads(material)
    if case.get("rubric") == "mumble":
        return "Well, it depends."
    right = bool(case["expected"]) and str(case["expected"]) in case["response"]
    return json.dumps({"success": float(right), "reason": "compared with what was expected"})


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content)
    return content or ""


class StubLLM(Served):
    """The model behind HTTP, on a port of its own.

    Attributes:
        url: base of its API, such as ``http://127.0.0.1:9099/v1``.
        requests: every chat request so far, oldest first.
        headers: the headers of each, names in lower case.
    """

    def __init__(self, port: int = 0) -> None:
        super().__init__(_Handler, port)
        self.url += "/v1"
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []


class _Handler(Handler):
    def _get(self) -> None:
        if self.path.rstrip("/").endswith("/models"):
            model = {"id": MODEL, "object": "model", "created": 1, "owned_by": "stub"}
            window = dict.fromkeys(("max_model_len", "context_window"), CONTEXT_WINDOW)
            self.reply_json(200, {"object": "list", "data": [model | window]})
        else:
            self.reply_json(200, {"ok": True})

    def _post(self) -> None:
        request = json.loads(self.body() or b"{}")
        if self.path.endswith("/chat/completions"):
            self._chat(request)
        elif self.path.endswith("/embeddings"):
            self._embed(request)
        else:
            self.reply_json(404, {"error": {"message": f"no route {self.path}"}})

    do_GET, do_POST = _get, _post  # noqa: N815

    def _chat(self, request: dict[str, Any]) -> None:
        self.server.served.requests.append(request)
        self.server.served.headers.append({k.lower(): v for k, v in self.headers.items()})
        messages = request["messages"]
        if request.get("model") != MODEL:
            self.reply_json(404, {"error": {"message": f"no model {request.get('model')!r}"}})
            return
        asked = next((t for m in reversed(messages) if "TASK " in (t := _text(m))), "")
        if found := re.search(r"FAULT sleep ([\d.]+)", asked):
            time.sleep(float(found[1]))
        if found := re.search(r"FAULT status (\d+)", asked):
            self.reply_json(int(found[1]), {"error": {"message": "as the task wants it"}})
            return
        tools = request.get("tools") or []
        said = decide(messages, frozenset(t["function"]["name"] for t in tools if "function" in t))
        message: dict[str, Any] = {"role": "assistant", "content": said}
        if isinstance(said, Call):
            function = {"name": said.tool, "arguments": json.dumps(dict(said.arguments))}
            call = {"id": f"call_{uuid.uuid4().hex[:20]}", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        read, wrote = sum(len(_text(m)) for m in messages) // 4, len(json.dumps(message)) // 4
        usage = {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": MODEL}
        reason = "tool_calls" if isinstance(said, Call) else "stop"
        if request.get("stream"):
            self._stream(head, message, reason, usage)
            return
        choice = {"index": 0, "message": message, "finish_reason": reason}
        whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        self.reply_json(200, whole)

    def _stream(
        self, head: dict[str, Any], message: dict[str, Any], reason: str, usage: dict[str, int]
    ) -> None:
        delta = dict(message)
        if "tool_calls" in delta:
            delta["tool_calls"] = [{"index": 0, **delta["tool_calls"][0]}]
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
            {"choices": [], "usage": usage},
        ]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for chunk in chunks:
            event = json.dumps({**head, "object": "chat.completion.chunk", **chunk})
            self.wfile.write(f"data: {event}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _embed(self, request: dict[str, Any]) -> None:
        texts = request.get("input")
        count = len(texts) if isinstance(texts, list) else 1
        rows = [
            {"object": "embedding", "index": i, "embedding": [0.01] * 1536} for i in range(count)
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        self.reply_json(200, {"object": "list", "model": MODEL, "data": rows, "usage": usage})


def main() -> None:
    """Serve until the process is ended; prints the address first."""
    parser = argparse.ArgumentParser(description="a deterministic model for tests")
    parser.add_argument("--port", type=int, default=0)
    with StubLLM(parser.parse_args().port) as stub:
        print(stub.url, flush=True)
        stub.join()


if __name__ == "__main__":
    main()
