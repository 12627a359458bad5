"""A stand-in for the ``letta`` command that misbehaves as the task says; websockets only.

It speaks as much of the App Server's protocol, and of ``-p --output-format stream-json``, as the
tests need. The skills below its folder are listed; the first is loaded, and the answer names it.
``FAKE <fault>`` in the task makes it hang, crash, loop and so on. ``--protocol N`` before its
arguments makes it claim another version of the protocol; ``--deaf`` makes it never answer.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.server import ServerConnection, serve

Message = dict[str, Any]

USAGE: Message = {"message_type": "usage_statistics", "total_tokens": 100, "run_id": "run-1"}
END: Message = {"message_type": "stop_reason", "stop_reason": "end_turn"}
MORE: Message = {"message_type": "stop_reason", "stop_reason": "requires_approval"}


def turn(text: str, folder: Path) -> Iterator[Message]:
    """The messages of one turn, up to where it ends or stays silent."""
    skills = sorted(path.name for path in folder.glob(".skills/*"))
    fault = re.search(r"FAKE (\w+)", text)
    match fault and fault[1]:
        case "loop":
            for number in itertools.count():
                time.sleep(0.02)
                yield from (USAGE, MORE, *_call(f"c{number}", "Bash", "ls", "error"))
        case "foreign":
            yield from (USAGE, MORE, *_call("c", "Skill", "elsewhere", "success"))
            yield from (_say("found it elsewhere"), USAGE, END)
        case "error":
            yield {"message_type": "loop_error", "message": "the model is gone"}
            yield {"message_type": "stop_reason", "stop_reason": "llm_api_error"}
        case "hang" | "stuck" | "crash" | "garbage":
            yield {"fault": fault and fault[1]}
        case _:
            for name in skills[:1]:
                yield from (USAGE, MORE, *_call("c", "Skill", name, "success"))
            yield from (_say("ANSWER "), _say(", ".join(skills) or "alone"), USAGE, END)


def _call(id: str, tool: str, argument: str, status: str) -> Iterator[Message]:
    arguments = json.dumps({"skill": argument})
    yield {
        "message_type": "client_tool_start",
        "tool_call_id": id,
        "tool_name": tool,
        "tool_args": arguments,
    }
    returned = {"tool_call_id": id, "status": status}
    yield {"message_type": "tool_return_message", **returned, "tool_returns": [returned]}


def _say(text: str) -> Message:
    return {
        "message_type": "assistant_message",
        "id": "answer",
        "content": [{"type": "text", "text": text}],
    }


class Connection:
    """Serves one WebSocket."""

    def __init__(self, socket: ServerConnection, protocol: int) -> None:
        self.socket, self.protocol = socket, protocol
        self.folders: dict[str, Path] = {}
        self.aborted: dict[str, threading.Event] = {}
        self.numbers = itertools.count(1)

    def serve(self) -> None:
        for raw in self.socket:
            message = json.loads(raw)
            answer = getattr(self, message["type"])(message)
            self.socket.send(json.dumps({"request_id": message["request_id"], **answer}))
            if message["type"] == "input":
                threading.Thread(target=self.run, args=(message,), daemon=True).start()

    def app_server_info(self, _: Message) -> Message:
        return {"protocol_version": self.protocol, "letta_code_version": "0.0.1"}

    def list_models(self, _: Message) -> Message:
        return {"entries": [{"handle": "openai-compatible/stub-1"}]}

    def runtime_start(self, message: Message) -> Message:
        id = f"conversation-{next(self.numbers)}"
        self.folders[id], self.aborted[id] = Path(message["cwd"]), threading.Event()
        return {"success": True, "runtime": {"agent_id": None, "conversation_id": id}}

    def input(self, _: Message) -> Message:
        return {"accepted": True}

    def abort_message(self, message: Message) -> Message:
        self.aborted[message["runtime"]["conversation_id"]].set()
        return {"success": True}

    def run(self, message: Message) -> None:
        """Play the turn of an accepted task."""
        runtime = message["runtime"]
        id, reason = runtime["conversation_id"], "end_turn"
        for delta in turn(message["payload"]["messages"][0]["content"], self.folders[id]):
            if self.aborted[id].is_set():
                reason = "cancelled"
                break
            match delta.get("fault"):
                case "crash":
                    os._exit(3)
                case "garbage":
                    self.socket.send("no JSON")
                case "hang":
                    self.aborted[id].wait()
                    reason = "cancelled"
                case "stuck":
                    return
            self.socket.send(
                json.dumps({"type": "stream_delta", "delta": delta, "runtime": runtime})
            )
            reason = delta.get("stop_reason", reason)
        finished = {"type": "turn_finished", "stop_reason": reason, "runtime": runtime}
        self.socket.send(json.dumps(finished))


def main(arguments: list[str]) -> None:
    protocol = 1
    if arguments[0] == "--protocol":
        protocol, arguments = int(arguments[1]), arguments[2:]
    if arguments[0] == "--deaf":
        threading.Event().wait()
    if arguments[0] == "server":
        token = Path(arguments[arguments.index("--ws-token-file") + 1]).read_text()
        with serve(
            lambda socket: Connection(socket, protocol).serve(),
            "127.0.0.1",
            0,
            process_request=lambda socket, request: (
                None
                if request.headers.get("Authorization") == f"Bearer {token}"
                else socket.respond(401, "")
            ),
        ) as server:
            print(f"Listening on ws://127.0.0.1:{server.socket.getsockname()[1]}", flush=True)
            server.serve_forever()
    elif "FAKE crash" in (text := sys.stdin.read()):
        sys.exit("it crashed")
    else:
        for message in turn(text, Path.cwd()):
            print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
