"Grids, records and numbers that cannot be used: one line that names the file, at once, and nothing started."
import json
import os
from pathlib import Path

import nbformat
import pytest
from malformed import Bad, refuses

from cssgan.cli import commands as cli
from cssgan.experiments.runs import RunError, metrics_of, record_of
from cssgan.experiments.sweeps import collect, collected
from cssgan.guard import InputError

HEAD = "notebook: toy.ipynb\n"
LAUGHS = "a: &a [ha, ha]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


def toy(path, source="x = 1\nmode = 'ok'\nout_dir = '.'", tags=("parameters",)):
    "A notebook that can be given x and mode."
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})]), path
    )


def grid(content, prepare=lambda folder: None, words="grid.yaml"):
    def make(folder):
        os.chdir(folder)
        toy("toy.ipynb")
        if content is not None:
            Path("grid.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        prepare(folder)
        return words.split()
    return make


ROWS = []
def row(name, make, names="grid.yaml", says="", **more): ROWS.append(Bad(name, make, names, says, **more))

for name, content in {
    "billion laughs": LAUGHS, "an alias": HEAD + "grid: {x: &v [1], mode: *v}",
    "a merge": HEAD + "parameters: {<<: &p {x: 1}}\ngrid: {<<: *p}", "itself": HEAD + "grid: &g {x: [*g]}",
    "deep lists": HEAD + "grid: {x: " + "[" * 3000,
    "deep lists that end": HEAD + "grid: {x: " + "[" * 50 + "]" * 50 + "}",
    "deep maps": HEAD + "".join(" " * k + "a:\n" for k in range(100)), "a name twice": HEAD + "grid: {x: [1], x: [2]}",
    "notebook twice": HEAD * 2, "two documents": HEAD + "---\n" + HEAD, "a tag": HEAD + "grid: !!python/tuple [1]",
    "binary": b"\x00\x01\x02", "no UTF-8": b"\xff\xfe", "a text": "grid", "a number": "12", "nothing": "", "null": "~",
    "a list as name": "? [a, b]\n: 1", "a number as name": HEAD + "3: 4", "unknown name": HEAD + "workers: 2",
    "a long name": HEAD + "n" * 2000 + ": 1", "steering": HEAD + '"\\e[2Jred": 1', "null notebook": "notebook: ~",
    "empty notebook": 'notebook: ""', "a long notebook": "notebook: " + "n" * 3000,
    "NUL in notebook": 'notebook: "a\\0b"', "empty out": HEAD + 'out: ""\ngrid: {x: [1]}',
    "NUL in out": HEAD + 'out: "a\\0b"\ngrid: {x: [1]}', "a number for out": HEAD + "out: 3",
    "a date for out": HEAD + "out: 2026-01-01", "huge integer": HEAD + "grid: {x: [1" + "0" * 40 + "]}",
    "a thousand digits": HEAD + "grid: {x: [" + "9" * 1000 + "]}",
    "five thousand digits": HEAD + "grid: {x: [" + "9" * 5000 + "]}", "NaN": HEAD + "grid: {x: [.nan]}",
    "infinity": HEAD + "grid: {x: [1, -.inf]}", "1e999": HEAD + "grid: {x: [1.0e+999]}",
    "a date": HEAD + "grid: {x: [2026-01-01]}", "no date": HEAD + "grid: {x: [2026-13-45]}",
    "a set": HEAD + "grid: {x: [!!set {a, b}]}", "bytes": HEAD + "grid: {x: [!!binary aGE=]}",
    "a long text": HEAD + "grid: {mode: [" + "t" * 2000 + "]}",
    "a long list": HEAD + "grid: {x: [" + "1," * 30_000 + "]}",
    "too many points": HEAD + f"grid: {{x: {list(range(200))}, mode: {[str(k) for k in range(200)]}}}",
    "values of a map": HEAD + "grid: {x: {a: 1}}", "an empty list": HEAD + "grid: {x: []}",
    "grid is a text": HEAD + "grid: all", "parameters is a list": HEAD + "parameters: [x]",
    "a map of maps": HEAD + "parameters: {x: {a: {b: 1}}}", "empty name": HEAD + 'grid: {"": [1]}',
}.items():
    row(name, grid(content), "a\\x00b" if "NUL" in name else "grid.yaml")

for name, prepare in {
    "a pipe": lambda f: os.mkfifo(f / "grid.yaml"), "a folder": lambda f: (f / "grid.yaml").mkdir(),
    "a link to itself": lambda f: (f / "grid.yaml").symlink_to("grid.yaml"),
    "a link that leads nowhere": lambda f: (f / "grid.yaml").symlink_to("gone"),
    "a device": lambda f: (f / "grid.yaml").symlink_to("/dev/zero"),
    "4 GB of nothing": lambda f: os.truncate(os.open(f / "grid.yaml", os.O_WRONLY | os.O_CREAT), 2**32),
    "not there": lambda f: None,
}.items():
    row(f"the grid is {name}", grid(None, prepare))

PLAIN = HEAD + "grid: {x: [1]}"
ODD_CELL = {"cell_type": "code", "metadata": {"tags": 3}, "source": "x=1", "outputs": [], "execution_count": None}
ODD_TAGS = {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [ODD_CELL]}
for name, prepare in {
    "a pipe": lambda f: ((f / "toy.ipynb").unlink(), os.mkfifo(f / "toy.ipynb")),
    "4 GB of nothing": lambda f: os.truncate(f / "toy.ipynb", 2**32),
    "a folder": lambda f: ((f / "toy.ipynb").unlink(), (f / "toy.ipynb").mkdir()),
    "deep": lambda f: (f / "toy.ipynb").write_text("[" * 100_000),
    "a number": lambda f: (f / "toy.ipynb").write_text("3"),
    "no cells": lambda f: (f / "toy.ipynb").write_text('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}'),
    "odd tags": lambda f: (f / "toy.ipynb").write_text(json.dumps(ODD_TAGS)),
    "odd version": lambda f: (f / "toy.ipynb").write_text('{"nbformat": "four", "cells": []}'),
    "binary": lambda f: (f / "toy.ipynb").write_bytes(b"\x80\xff"),
    "without the cell": lambda f: toy(f / "toy.ipynb", tags=()),
    "with a cell that is no Python": lambda f: toy(f / "toy.ipynb", "x = (((\nout_dir"),
    "a link to itself": lambda f: ((f / "toy.ipynb").unlink(), (f / "toy.ipynb").symlink_to("toy.ipynb")),
}.items():
    row(f"the notebook is {name}", grid(PLAIN, prepare), "grid.yaml" if "no Python" in name else "toy.ipynb")

for name, prepare in {
    "a file": lambda f: (f / "out").write_text("mine"), "a pipe": lambda f: os.mkfifo(f / "out"),
    "a link to itself": lambda f: (f / "out").symlink_to("out"),
    "a link that leads nowhere": lambda f: (f / "out").symlink_to("gone/gone"),
}.items():
    row(f"out is {name}", grid(PLAIN + "\nout: out", prepare), "out", "cannot be made")
row("out is below a file", grid(PLAIN + "\nout: toy.ipynb/runs"), "toy.ipynb/runs", "cannot be made")

for name, prepare in {
    "the grid": lambda f: None, "notes": lambda f: (f / "all.json").write_text("mine"),
    "other JSON": lambda f: (f / "all.json").write_text('{"rows": 3}'), "empty": lambda f: (f / "all.json").touch(),
    "a pipe": lambda f: os.mkfifo(f / "all.json"), "a folder": lambda f: (f / "all.json").mkdir(),
    "a link to the grid": lambda f: (f / "all.json").symlink_to("grid.yaml"),
    "a hard link to the grid": lambda f: os.link(f / "grid.yaml", f / "all.json"),
    "a link that leads nowhere": lambda f: (f / "all.json").symlink_to("gone"),
    "deep JSON": lambda f: (f / "all.json").write_text("[" * 100_000),
}.items():
    file = "grid.yaml" if name == "the grid" else "all.json"
    row(f"--collect {name}", grid(PLAIN, prepare, f"grid.yaml --collect {file} --force"), file)
EARLIER = '{"command": "x", "made_by": [], "rows": [{"x": 1}]}'
row("--collect an earlier result",
    grid(PLAIN, lambda f: (f / "all.json").write_text(EARLIER), "grid.yaml --collect all.json"), "all.json", "--force")
row("--collect below a file",
    grid(PLAIN, lambda f: None, "grid.yaml --collect toy.ipynb/all.json"), "toy.ipynb", "cannot be made")


@pytest.mark.parametrize("bad", ROWS, ids=[bad.name for bad in ROWS])
def test_refused_at_once(bad, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "there"
    folder.mkdir()
    refuses(cli.sweep_main, bad, folder, capfd)


def test_enough_rows(): assert len(ROWS) >= 40 and len({bad.name for bad in ROWS}) == len(ROWS)


# ---- what runs left

RECORD = {"state": "done", "parameters": {"x": 1}, "cssgan": "0", "commit": None, "changed": False, "machine": {}}
RECORDS = {
    "nothing": "", "half": '{"state": "do', "a list": "[]", "no state": json.dumps(RECORD | {"state": None}),
    "another state": json.dumps(RECORD | {"state": "well"}),
    "parameters of text": json.dumps(RECORD | {"parameters": "x"}),
    "no version": json.dumps({k: v for k, v in RECORD.items() if k != "cssgan"}),
    "an error of text": json.dumps(RECORD | {"state": "failed", "error": "E"}),
    "half an error": json.dumps(RECORD | {"state": "failed", "error": {"name": "E"}}), "depth": "[" * 100_000,
    "deep parameters": '{"parameters":' * 5000, "digits": json.dumps(RECORD).replace("1", "9" * 5000),
    "NaN for everything": "NaN",
}


@pytest.mark.parametrize("how", RECORDS)
def test_a_damaged_record_is_named(tmp_path, how):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/made_by.json").write_text(RECORDS[how])
    for job in (lambda: record_of(tmp_path / "a"), lambda: collect(tmp_path)):
        with pytest.raises(RunError, match="made_by.json") as said: job()
        assert len(str(said.value)) <= 300


@pytest.mark.parametrize("how", ["pipe", "device", "large"])
def test_a_record_that_is_no_file_is_named(tmp_path, how):
    path = tmp_path / "made_by.json"
    if how == "pipe": os.mkfifo(path)
    elif how == "device": path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 2**32)
    with pytest.raises(RunError, match="made_by.json"): record_of(tmp_path)


METRICS = {
    "nothing": "", "half": '[{"a":', "text": '"a"', "no rows": "[]", "numbers": "[1, 2]", "null": "null",
    "a list of lists": "[[]]", "depth": "[" * 100_000, "deep rows": '{"a":' * 600 + "1" + "}" * 600,
    "digits": '{"a": ' + "9" * 5000 + "}", "binary": "\x00",
}


@pytest.mark.parametrize("how", METRICS)
def test_damaged_numbers_are_named(tmp_path, how):
    (tmp_path / "metrics.json").write_text(METRICS[how])
    with pytest.raises(RunError, match="metrics.json") as said: metrics_of(tmp_path)
    assert len(str(said.value)) <= 300


def test_numbers_that_are_odd_are_kept(tmp_path):
    (tmp_path / "metrics.json").write_text('{"a": NaN, "b": 1e999, "c": {"d": null}}')
    row, = metrics_of(tmp_path)
    assert row["a"] != row["a"] and row["b"] == float("inf") and row["c.d"] is None


def test_only_what_was_collected_is_recognised(tmp_path):
    path = tmp_path / "all.json"
    for text, ours in (
        ('{"command": "x", "made_by": [{}], "rows": [{"a": 1}]}', True), ('{"rows": [{"a": 1}]}', False),
        ('{"command": "x", "made_by": [], "rows": []}', False), ("notebook: x", False),
    ):
        path.write_text(text)
        assert collected(path) is ours
    assert issubclass(RunError, InputError)
