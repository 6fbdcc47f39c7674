"""
Stands in for a model: a server with the API that OpenAI's has, for a coding agent where there is no network.

	python3 server.py PORT PAUSE_MS GO

It listens on the loopback address. What it says follows from the last message alone, so that a test knows each word:

	"count N"        the words w0 … w(N-1), each an event, PAUSE_MS after the one before; the last when the file GO is there
	"run COMMAND"    the tool "bash" is to be called with that command
	a tool's result  "the tool said: " and its first line
"""
import http.server
import json
import os
import sys
import time

PORT, PAUSE_S, GO = int(sys.argv[1]), int(sys.argv[2]) / 1000, sys.argv[3]


def text_of(message):
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def count(n):
    for i in range(n):
        while i == n - 1 and not os.path.exists(GO):
            time.sleep(0.1)
        yield {"content": "w%d%s" % (i, " " if i + 1 < n else "")}
        time.sleep(PAUSE_S)


def answer(message):
    """The deltas of the answer, and why it ends."""
    text = text_of(message)
    if message["role"] == "tool":
        return [{"content": "the tool said: " + text.split("\n")[0]}], "stop"
    word, rest = text.split(" ", 1)
    if word == "count":
        return count(int(rest)), "stop"
    assert word == "run", text
    call = {"name": "bash", "arguments": json.dumps({"command": rest})}
    return [{"tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": call}]}], "tool_calls"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        deltas, reason = answer(asked["messages"][-1])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for delta in deltas:
                self.event({"role": "assistant", **delta}, None)
            self.event({}, reason)
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.log_message("the agent went away in the middle of an answer")

    def event(self, delta, reason):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk = {"id": "answer", "object": "chat.completion.chunk", "created": 0, "model": "test", "choices": [choice]}
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
