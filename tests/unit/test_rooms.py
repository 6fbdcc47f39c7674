#!/usr/bin/env python3
"""Which folder includes from which, as arrows; a circle of folders is a failure.

	test_rooms.py [SOURCE]       the tests; SOURCE: the checkout (default: the current folder)
	test_rooms.py --draw         the arrows, one a line, for people
	test_rooms.py --objects OBJ  where a build's objects are (default: those of `make check-unit`, or
	                             build/plain/obj)

A header belongs to its folder, and so does what includes it. Tests may include anything and nobody includes
tests, so they are left out. The order of the rooms is that of ARCHITECTURE.md: what stands further right may
include what stands further left.
"""
import collections
import os
import re
import subprocess
import sys

ROOMS = {  # room: the rooms it may include from
    "common": set(),
    "vmm": {"common"},
    "hygiene": {"common"},
    "guest-agent": {"common", "hygiene"},
    "golden": {"common", "hygiene"},
    "swarm": {"common", "hygiene"},
    "host": {"common", "vmm", "hygiene", "golden", "swarm"},
}
LAYERED = [  # folders whose files do not call each other in circles
    "common", "common/wire", "vmm", "swarm",
    "guest-agent/server", "guest-agent/identity", "guest-agent/supervisor", "guest-agent/system", "guest-agent/tools",
    "host/agent", "host/api", "host/cli", "host/client", "host/pandod", "host/scope", "host/store", "host/testvm",
]
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


def sources(top):
    for room in ROOMS:
        for folder, _, names in os.walk(os.path.join(top, room)):
            for name in names:
                if name.endswith((".c", ".h")):
                    yield os.path.relpath(os.path.join(folder, name), top)


def arrows(top):
    """{(from folder, to folder): [(file, include)…]}"""
    found = collections.defaultdict(list)
    for path in sources(top):
        with open(os.path.join(top, path), encoding="utf-8") as f:
            text = f.read()
        for include in INCLUDE.findall(text):
            if os.path.exists(os.path.join(top, include)):  # else it is generated
                a, b = os.path.dirname(path), os.path.dirname(include)
                if a != b:
                    found[a, b].append((path, include))
    return found


def circles(edges):
    """Strongly connected sets of more than one folder or file (Tarjan)."""
    graph = collections.defaultdict(set)
    for a, b in edges:
        graph[a].add(b)
        graph[b]
    index, low, stack, on, out = {}, {}, [], set(), []

    def visit(v):
        index[v] = low[v] = len(index)
        stack.append(v)
        on.add(v)
        for w in sorted(graph[v]):
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in on:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            group = []
            while True:
                w = stack.pop()
                on.discard(w)
                group.append(w)
                if w == v:
                    break
            if len(group) > 1:
                out.append(sorted(group))

    for v in sorted(graph):
        if v not in index:
            visit(v)
    return out


def symbols(path):
    """(what an object defines for others, what it needs of others)"""
    has, needs = set(), set()
    for line in subprocess.check_output(["nm", "-P", path], text=True).splitlines():
        name, kind = line.split()[:2]
        if kind in "Uwv":
            needs.add(name)
        elif kind.isupper():
            has.add(name)
    return has, needs


def calls(top, objects, folder):
    """{(file, file it needs a symbol of): [symbol…]} of a folder. A file that calls upwards by a pointer it was
    given needs no symbol: that is how a lower layer may. Objects of files that are gone do not count."""
    of = {}
    for name in sorted(os.listdir(os.path.join(top, folder))):
        path = os.path.join(objects, folder, name[:-2] + ".o")
        if name.endswith(".c") and os.path.exists(path):
            of[name] = symbols(path)
    home = {symbol: name for name, (has, _) in of.items() for symbol in has}
    found = collections.defaultdict(list)
    for name, (_, needs) in of.items():
        for symbol in sorted(needs):
            if home.get(symbol, name) != name:
                found[name, home[symbol]].append(symbol)
    return found


def test_no_circle_of_files_in_a_layered_folder(top, found, objects):
    wrong = []
    for folder in LAYERED:
        edges = calls(top, objects, folder)
        if not edges and os.path.isdir(objects):
            wrong.append("%s/: no objects in %s" % (folder, objects))
        for group in circles(edges):
            wrong.append("%s/, a circle: %s" % (folder, ", ".join(group)))
            for (a, b), names in sorted(edges.items()):
                if a in group and b in group:
                    wrong.append("  %s calls %s: %s" % (a, b, ", ".join(names)))
    return wrong


def test_no_circle_of_folders(top, found):
    wrong = []
    for group in circles(found):
        wrong.append("a circle: " + ", ".join(group))
        for (a, b), files in sorted(found.items()):
            if a in group and b in group:
                wrong += ["  %s includes %s" % x for x in files]
    return wrong


def test_rooms_include_only_from_their_left(top, found):
    room = lambda folder: folder.split("/")[0]
    return ["%s includes %s" % x for (a, b), files in sorted(found.items()) for x in files
            if room(a) != room(b) and room(b) not in ROOMS[room(a)]]


def test_no_room_compiles_the_files_of_another(top, found):
    """In a module.mk, X_SRCS of a program or library names files of its own room only."""
    wrong = []
    for room in ROOMS:
        for folder, _, names in os.walk(os.path.join(top, room)):
            if "module.mk" not in names:
                continue
            path = os.path.join(folder, "module.mk")
            with open(path, encoding="utf-8") as f:
                text = f.read().replace("\\\n", " ")
            for name, words in re.findall(r"^(\S+)_SRCS\s*[:+]?=(.*)$", text, re.M):
                if name.startswith(("test_", "fuzz_", "bench_")) or name.endswith("_fuzz"):
                    continue
                for word in re.findall(r"(?<![\w/.$(-])([\w-]+)/[\w/.-]+\.c", words):
                    if word in ROOMS and word != room:
                        wrong.append("%s: %s has files of %s/" % (os.path.relpath(path, top), name, word))
    return wrong


def test_host_has_no_source_at_its_top(top, found):
    return ["host/" + n for n in sorted(os.listdir(os.path.join(top, "host"))) if n.endswith((".c", ".h"))]


def test_a_circle_is_found():
    found = circles({("a", "b"): 1, ("b", "c"): 1, ("c", "a"): 1, ("c", "d"): 1})
    return [] if found == [["a", "b", "c"]] else ["in a, b, c, a it found %r" % found]


def main():
    top = os.getcwd()
    words = sys.argv[1:]
    draw = "--draw" in words
    objects = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../obj")  # installed beside a build's
    if "--objects" in words:
        at = words.index("--objects")
        objects = words[at + 1]
        del words[at:at + 2]
    for word in words:
        if word != "--draw":
            top = word
    if not os.path.isdir(objects):
        objects = os.path.join(top, "build/plain/obj")
    found = arrows(top)
    if draw:
        for (a, b), files in sorted(found.items()):
            print("%-28s -> %-28s %d" % (a, b, len(files)))
        return 0
    if not found:
        print("no sources in %s" % top)
        return 1
    tests = [(n, f) for n, f in sorted(globals().items()) if n.startswith("test_")]
    failed = 0
    print("1..%d" % len(tests))
    for number, (name, test) in enumerate(tests, 1):
        wrong = test(*(top, found, objects)[:test.__code__.co_argcount])
        for line in wrong:
            print("# " + line)
        print("%sok %d - %s" % ("not " if wrong else "", number, name[len("test_"):]))
        failed += bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
