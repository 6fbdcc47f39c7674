"""
Looks at what pi wrote: whole lines of JSON on standard input, of one prompt up to its end.

	python3 lines.py count N    the answer is the words w0 … w(N-1)
	python3 lines.py says TEXT  the last answer is TEXT
	python3 lines.py json       they are JSON, no more
"""
import json
import sys

raw = sys.stdin.buffer.read()
assert raw.endswith(b"\n"), "the last line is torn: %r" % raw[-80:]
lines = [json.loads(line) for line in raw[:-1].split(b"\n")]
if sys.argv[1] != "json":
    end = lines[-1]
    assert end["type"] == "agent_end", end["type"]
    assert [line["type"] for line in lines].count("agent_start") == 1
    last = end["messages"][-1]
    assert last["role"] == "assistant" and last["stopReason"] == "stop", last
    said = "".join(part["text"] for part in last["content"] if part["type"] == "text")
    if sys.argv[1] == "says":
        assert said == sys.argv[2], said
    else:
        should = " ".join("w%d" % i for i in range(int(sys.argv[2])))
        # As it was streamed, a delta a line: none is lost, doubled or in the wrong place.
        parts = [line["assistantMessageEvent"] for line in lines if line["type"] == "message_update"]
        streamed = "".join(part["delta"] for part in parts if part["type"] == "text_delta")
        assert streamed == should, streamed
        assert said == should, said
print("%d lines, %d bytes" % (len(lines), len(raw)))
