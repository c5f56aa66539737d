"""What every command owes to input that it cannot use, asked of one input after the other.

A table is a list of `Bad`: a name, a function that makes the input in an empty folder and gives the words of the
command, and what the one line on stderr must name. `refuses` runs the command in this process and checks status,
line, leftovers, inputs, time and memory.
"""
import hashlib
import os
import re
import resource
import time
from pathlib import Path
from typing import Callable, NamedTuple

LONGEST = 300  # characters of a message, the command's name left out
SECONDS = 20  # until the refusal, on a busy machine
MEGABYTES = 700  # that the process may grow by


class Bad(NamedTuple):
    "One input that cannot be used."
    name: str  # of the case
    make: Callable  # (an empty folder) → the words after the command, as a list
    names: str  # a part of the name of what is wrong: a file, an option, a field
    says: str = ""  # a regular expression that the line must match
    status: tuple = (1, 2)  # exit statuses that are right


def listing(folder):
    "Everything below a folder: names, kinds, and what regular files hold."
    found = {}
    for top, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(top, name)
            what = os.lstat(path)
            is_file = os.path.isfile(path) and not os.path.islink(path)
            small = is_file and what.st_size < 1e8
            content = hashlib.sha256(Path(path).read_bytes()).digest() if small else what.st_size
            found[os.path.relpath(path, folder)] = (what.st_mode, content)
    return found


def run(main, words):
    "A command in this process: its exit status."
    try: return main([os.fspath(w) for w in words])
    except SystemExit as e: return e.code


def refuses(main, bad, folder, capfd, allowed=()):
    """The command must refuse the input: one short line, at once, nothing left behind (but what `allowed` matches),
    inputs unchanged."""
    words = bad.make(folder)
    before, begun, memory = listing(folder), time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    capfd.readouterr()
    status = run(main, words)
    seconds, grown = time.monotonic() - begun, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1000
    out, err = capfd.readouterr()
    assert status in bad.status, f"status {status}: {out} {err}"
    assert "Traceback" not in err and err.count("\n") == 1 and err.endswith("\n"), f"not one line: {err!r}"
    assert len(err) <= LONGEST + 40, f"{len(err)} characters: {err}"
    assert err.rstrip("\n").isprintable(), f"a terminal would obey: {err!r}"
    assert bad.names in err, f"does not name {bad.names!r}: {err}"
    assert re.search(bad.says, err), f"does not say {bad.says!r}: {err}"
    assert out == "", f"also said: {out!r}"
    after = listing(folder)
    left = {n for n in after.keys() - before.keys() if not any(re.fullmatch(a, n) for a in allowed)}
    assert not left, f"left behind: {sorted(left)}"
    assert {n: after.get(n) for n in before} == before, "an input was changed"
    assert seconds < SECONDS, f"took {seconds:.0f} s"
    assert grown < MEGABYTES, f"grew by {grown:.0f} MB"
