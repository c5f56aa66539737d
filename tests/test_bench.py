"The measurements that are kept say what was measured, and nothing else."
import json
import sys

import pytest
from conftest import ROOT


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import run
    return run


def test_the_table_is_made_from_the_results(bench):
    results = json.loads((ROOT / "bench/results.json").read_text(encoding="utf-8"))
    assert (ROOT / "bench/README.md").read_text(encoding="utf-8") == bench.readme(results)


def test_every_goal_says_whether_it_was_reached(bench):
    results = json.loads((ROOT / "bench/results.json").read_text(encoding="utf-8"))
    rows = [row for part in results.values() for row in part["rows"]]
    assert (
        rows
        and all(row["met"] in ("yes", "no") for row in rows if row["goal"])
        and all("machine" in part for part in results.values())
    )


def test_results_name_no_host_and_no_folder():
    text = (ROOT / "bench/results.json").read_text(encoding="utf-8") + (ROOT / "bench/README.md").read_text(
        encoding="utf-8"
    )
    assert not [word for word in ("/work", "/home", "/root", "/tmp", sys.prefix) if word in text]


def test_the_questions_quote_the_memory_that_was_measured():
    detail = json.loads((ROOT / "bench/results.json").read_text(encoding="utf-8"))["memory"]["detail"]
    GB = lambda width, how: f"{detail[width][how]['peak_MB'] / 1000:.1f}"
    sentence = (
        f"takes {GB('8', 'kept')} GB at width 8 and {GB('16', 'kept')} GB at width 16; "
        f"sparing makes that {GB('8', 'spared')} and {GB('16', 'spared')} GB"
    )
    faq = (ROOT / "nbs/howto/faq.ipynb").read_text(encoding="utf-8")
    assert sentence in faq, f"nbs/howto/faq.ipynb should say that it {sentence}"
