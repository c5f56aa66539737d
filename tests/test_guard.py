"What cssgan.guard promises: input is checked first, messages are one short line, nothing foreign is replaced."
import errno
import gzip
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import filelock
import msgspec
import pytest

from cssgan import guard
from cssgan.guard import (
    LONGEST,
    InputError,
    InputWarning,
    brief,
    check_writable,
    folder_lock,
    gunzip,
    parse_json,
    printable,
    read_bytes,
    regular_file,
    remove_orphans,
    termination_interrupts,
    warn,
    write_whole,
)


def refused(call, *args, says="", **how):
    "The message of the InputError that the call must raise."
    with pytest.raises(InputError) as e: call(*args, **how)
    message = str(e.value)
    assert message.isprintable() and len(message) <= LONGEST and says in message, message
    return message


# ---- messages

@pytest.mark.parametrize("text", [
    "a\nb\tc", "\x1b[2J\x07bell", "M\udcfcller.nii", "‮gni.iin", "\0", "x" * 10_000, str(list(range(5900))),
    "9" * 5000, b"M\xfcller", Path("a\nb"), None, 3.5])
def test_a_message_is_one_short_line_whatever_comes_from_outside(text):
    said = str(InputError(text))
    assert said.isprintable() and len(said) <= LONGEST and said.encode()
    assert printable(text).isprintable() and len(brief(text, 20)) <= 20


def test_a_long_message_keeps_the_thing_and_the_cure():
    said = str(InputError(f"scan.nii holds {list(range(5900))}: translate them with a table"))
    assert said.startswith("scan.nii holds [0, 1, 2") and said.endswith("translate them with a table") and "…" in said


def test_a_name_in_another_writing_system_stays_readable():
    assert printable("患者 Müller é.nii") == "患者 Müller é.nii"


def test_what_was_guessed_is_a_warning_of_its_own_kind():
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        with pytest.raises(InputWarning, match="left out"): warn("a\nb was left out")


# ---- files

def test_only_a_regular_file_is_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "away").symlink_to("nowhere")
    (tmp_path / "good").write_bytes(b"x")
    (tmp_path / "link").symlink_to("good")
    for name in ("pipe", "loop", "away", "missing", "good/below", "x" * 300, "."):
        refused(regular_file, tmp_path / name)
    for name in ("/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/cpuinfo", "a\0b", ""): refused(regular_file, name)
    assert regular_file(tmp_path / "link") == tmp_path / "link"


def test_reading_is_bounded_and_at_once(tmp_path):
    with open(tmp_path / "sparse", "wb") as f: f.truncate(2**40)
    begun = time.monotonic()
    refused(read_bytes, tmp_path / "sparse", 1000, says="larger than")
    assert time.monotonic() - begun < 1
    (tmp_path / "full").write_bytes(b"x" * 1000)
    assert len(read_bytes(tmp_path / "full", 1000)) == 1000


# without a time in their headers: these bytes name the tests, and all processes must name them alike
ABC, AB, ZEROS = (gzip.compress(content, mtime=0) for content in (b"abc", b"ab", bytes(200)))


@pytest.mark.parametrize("content, most", [
    (gzip.compress(bytes(10**7), mtime=0), 10**6), (ABC[:-4], 100), (ABC[:9], 100), (b"\x1f\x8bnonsense", 100),
    (ABC + b"tail", 100), (AB + ZEROS, 100)])
def test_a_packed_file_is_whole_and_within_its_bound_or_refused(content, most):
    with pytest.raises(ValueError): gunzip(content, most)


def test_gunzip_reads_members_and_padding():
    assert gunzip(gzip.compress(b"a") + gzip.compress(b"b") + bytes(512), 2) == b"ab"
    assert gunzip(gzip.compress(b"abc"), 3) == b"abc"


# ---- schemas

class Toy(msgspec.Struct, forbid_unknown_fields=True):
    n: Annotated[int, msgspec.Meta(ge=0, le=10)]
    name: str | None = None


@pytest.mark.parametrize("content", [
    b"", b"\xff\xfe", b"[]", b"null", b"{}", b'{"n": 11}', b'{"n": -1}', b'{"n": "1"}', b'{"n": 1.5}', b'{"n": NaN}',
    b'{"n": Infinity}', b'{"n": 1e999}', b'{"n": true}', b'{"n": 1, "m": 2}', b'{"n": 1, "name": 3}', b"[" * 100_000,
    b'{"n":' * 100_000, b'{"n": ' + b"9" * 5000 + b"}", b'{"n": 1', b'{"n": 1}}', b'{"n": "\\ud800"}'])
def test_what_does_not_fit_the_schema_is_refused_with_its_place(content):
    assert "toy.json" in refused(parse_json, content, Toy, "toy.json", "copy it again", says="copy it again")


def test_what_fits_the_schema_is_read():
    assert parse_json(b'{"n": 3, "name": null}', Toy, "toy.json", "copy it again") == Toy(3)


# ---- writing

def test_written_whole_with_a_name_of_255_bytes_and_through_a_link(tmp_path):
    name = "n" * 255
    write_whole(tmp_path / name, b"long")
    (tmp_path / "link").symlink_to(name)
    write_whole(tmp_path / "link", lambda f: f.write(b"new"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / name).read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_cannot_be_written_leaves_the_old_one_and_no_litter(tmp_path, error):
    (tmp_path / "a").write_bytes(b"old")
    def breaks(f):
        f.write(b"half")
        raise error
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        write_whole(tmp_path / "a", breaks)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_only_orphans_of_this_place_and_of_processes_that_are_gone_are_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    own, other = (guard._part_names(tmp_path / name)[1] for name in "ab")
    orphan, others_orphan = (name.replace(f"-{os.getpid()}-", f"-{gone.pid}-") for name in (own, other))
    names = [orphan, own, others_orphan, ".cssgan-x.part", ".other.part"]
    for n in names: (tmp_path / n).touch()
    remove_orphans(tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])


def test_a_command_replaces_nothing_but_its_own_and_only_if_told(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    os.link(tmp_path / "a", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("a")
    (tmp_path / "away").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    mine = lambda path: True
    assert check_writable(tmp_path / "new") and check_writable(tmp_path / "a", mine, force=True)
    refused(check_writable, tmp_path / "a", mine, says="--force")
    refused(check_writable, tmp_path / "a", lambda path: False, force=True, says="not made by cssgan")
    for name in ("hard", "soft", "a"):
        refused(check_writable, tmp_path / name, mine, force=True, inputs=[tmp_path / "a"], says="itself")
    for name in ("away", "pipe", ".", "no/a", "a/b", "x" * 256, "a\0b"):
        refused(check_writable, tmp_path / name, mine, force=True)


# ---- locks and signals

HOLD = """
import sys, time
from cssgan.guard import folder_lock
with folder_lock(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)"""


def test_a_folder_is_held_by_one_process_and_free_when_it_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        refused(folder_lock(tmp_path).__enter__, says="another process is at this run")
    finally:
        holder.kill()
        holder.wait()
    with folder_lock(tmp_path): pass


def test_without_the_systems_locks_a_file_takes_their_place_and_it_is_said(tmp_path, monkeypatch, capsys):
    class None_(filelock.FileLock):
        def _acquire(self): raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(filelock, "FileLock", None_)
    with folder_lock(tmp_path):
        assert guard.NO_LOCKS in capsys.readouterr().err
        refused(folder_lock(tmp_path).__enter__, says="another process")
    with folder_lock(tmp_path): pass


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "file").touch()
    refused(folder_lock(tmp_path / "file").__enter__, says="cannot be locked")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_asked_to_end_it_is_interrupted_and_the_signals_are_given_back(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), termination_interrupts():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert signal.getsignal(number) == before
