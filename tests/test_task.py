"""What is translated into what: a task is data, and what does not fit is said in one line."""
import json

import numpy as np
import pytest

from cssgan.data.cases import apply_table, label_codes
from cssgan.data.finding import find_cases
from cssgan.data.prepared import load_case
from cssgan.guard import InputError
from cssgan.phantoms.scanners import phantom
from cssgan.scans.files import write_label, write_volume
from cssgan.scans.volumes import IGNORE, PAPER_GRID, SMALL_GRID, UNDRAWN
from cssgan.task import HEART, MODALITIES, REGIONS, Domain, as_task, read_task, task_json

ABDOMEN = {
    "name": "abdomen",
    "domains": [{"name": "CT", "unit": "HU", "window": [-200, 400], "nothing": -1024, "check": "HU"},
                {"name": "MR", "percentiles": [0.5, 99.5], "dicom": "MR"}],
    "regions": ["background", "liver", "right kidney", "left kidney", "spleen"],
    "tables": {"CHAOS-MR": {"63": "liver", "126": "right kidney", "189": "left kidney", "252": "spleen"},
               "CHAOS-CT": {"255": "liver"}},
    "table_of": {"CT": "CHAOS-CT", "MR": "CHAOS-MR"},
    "pieces": "each",
    "grid": {"shape": [64, 48, 40], "spacing": [6, 6, 6]}}
DOMAIN = ABDOMEN["domains"][0]


def test_the_heart_is_what_it_was_before_tasks():
    assert (REGIONS, MODALITIES) == (("background", "LV", "RV", "LA", "RA", "myocardium"), ("CT", "MRI"))
    assert (PAPER_GRID.shape, PAPER_GRID.spacing) == ((112, 112, 86), (1.5, 1.5, 1.5))
    assert HEART.domain("CT").window == (-1000, 1000)
    assert label_codes(HEART, "CT", "cssgan") == {**{k: k for k in range(6)}, IGNORE: IGNORE}
    assert label_codes(HEART, "CT", "MM-WHS") == {0: 0, 500: 1, 600: 2, 420: 3, 421: 3, 550: 4, 205: 5, 820: 0, 850: 0}


@pytest.mark.parametrize("task", [HEART, as_task(ABDOMEN)], ids=["heart", "abdomen"])
def test_a_task_comes_back_from_its_file(task, tmp_path):
    file = tmp_path / "task.json"
    file.write_text("// what is translated into what\n" + task_json(task), encoding="utf-8")
    assert read_task(file) == task


WRONG = {
    "no background": (dict(regions=["liver", "spleen"]), "background"),
    "one region": (dict(regions=["background"]), "regions"),
    "a region twice": (dict(regions=["background", "liver", "liver"], tables={}, table_of={}), "same name"),
    "a region that no folder can be called": (dict(regions=["background", "../liver"]), "regions"),
    "ignore as a region": (dict(regions=["background", "ignore"], tables={}, table_of={}), "ignore"),
    "one domain twice": (dict(domains=[DOMAIN, DOMAIN | {"name": "ct"}]), "CT"),
    "three domains": (dict(domains=[DOMAIN] * 3), "domains"),
    "an unknown field": (dict(mode="fast"), "mode"),
    "an unknown rule": (dict(pieces="one"), "pieces"),
    "a window that falls": (dict(domains=[DOMAIN | {"window": [400, -200]}, ABDOMEN["domains"][1]]), "rise"),
    "a window of one number": (dict(domains=[DOMAIN | {"window": [400]}, ABDOMEN["domains"][1]]), "window"),
    "window and percentiles": (dict(domains=[DOMAIN | {"percentiles": [1, 99]}, ABDOMEN["domains"][1]]), "one of"),
    "percentiles above 100": (dict(domains=[DOMAIN, {"name": "MR", "percentiles": [1, 101]}]), "percentiles"),
    "knots that do not end at 1": (
        dict(domains=[{"name": "CT", "knots": [[-1000, -1], [0, 0]]}, ABDOMEN["domains"][1]]), "rise from -1 to 1"),
    "a region that a table made up": (dict(tables={"t": {"1": "livver"}}, table_of={}), "livver"),
    "a table of background": (dict(tables={"t": {"0": "background"}}, table_of={}), "no region"),
    "a number that is none": (dict(tables={"t": {"1.5": "liver"}}, table_of={}), "1.5"),
    "a table that draws what it does not read": (
        dict(tables={"t": {"1": "liver", "draws": ["spleen"]}}, table_of={}), "table t"),
    "a table that draws in one word": (dict(tables={"t": {"1": "liver", "draws": "spleen"}}, table_of={}), "spleen"),
    "a table that draws more than it reads": (
        dict(tables={"t": {"1": "liver", "draws": ["liver", "spleen"]}}, table_of={}), "no number for it"),
    "a table that is not there": (dict(tables={}), "no table"),
    "a table of another domain": (dict(table_of={"T1": "CHAOS-MR"}), "T1"),
    "colours for other regions": (dict(colours=["#ff0000"]), "colours"),
    "a colour that is none": (dict(colours=["red"] * 4), "colours"),
    "a grid of two sides": (dict(grid={"shape": [64, 64], "spacing": [1, 1, 1]}), "grid"),
    "no grid": ({"grid": None}, "grid"),
}


@pytest.mark.parametrize("change, word", WRONG.values(), ids=WRONG)
def test_a_wrong_task_is_refused_in_one_line_that_names_it(change, word, tmp_path):
    file = tmp_path / "task.json"
    file.write_text(json.dumps(ABDOMEN | change))
    with pytest.raises(InputError) as e: read_task(file)
    assert word in str(e.value) and "task.json" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"name": NaN}'])
def test_what_is_no_task_is_refused(content, tmp_path):
    (tmp_path / "task.json").write_bytes(content)
    with pytest.raises(InputError, match="task.json"): read_task(tmp_path / "task.json")


def test_a_name_that_is_none_is_refused():
    with pytest.raises(InputError, match="CT or MRI"): HEART.domain("PET")
    with pytest.raises(InputError, match="ACDC"): HEART.table("MRI", "acdc")


def test_a_domain_knows_its_curve():
    assert Domain("CT", window=(-200.0, 400.0)).curve == ((-200, -1), (400, 1))
    assert Domain("MR", percentiles=(0.5, 99.5)).curve == ()


def test_what_a_table_draws_may_be_one_word():
    said = {"1": "liver", "2": "spleen", "draws": "liver"}
    table = as_task(ABDOMEN | dict(tables={"t": said}, table_of={})).table("CT", "t")
    assert table.values == {0: 0, 1: 1, 2: 4} and table.undrawn == {2, 3, 4}


# ---- the heart's data sets

@pytest.mark.parametrize("table, number, region", [
    ("ACDC", 1, "RV"), ("ACDC", 3, "LV"), ("M&Ms", 1, "LV"), ("M&Ms", 3, "RV"), ("HVSMR", 4, "RA"),
    ("TotalSegmentator-heartchambers", 1, "myocardium"), ("TotalSegmentator-heartchambers", 3, "LV"),
    ("TotalSegmentator-v1", 46, "LV"), ("MM-WHS", 421, "LA")])
def test_a_number_means_what_its_data_set_says(table, number, region):
    assert apply_table(np.array([[[number]]]), label_codes(HEART, "CT", table)).item() == REGIONS.index(region)


@pytest.mark.parametrize("table, undrawn", [("ACDC", {"LA", "RA"}), ("HVSMR", {"myocardium"}), ("MM-WHS", set())])
def test_where_a_data_set_draws_nothing_may_be_what_it_does_not_draw(table, undrawn):
    assert {REGIONS[k] for k in HEART.table("MRI", table).undrawn} == undrawn
    assert label_codes(HEART, "MRI", table)[0] == (UNDRAWN if undrawn else 0)


def test_an_acdc_label_is_read_by_a_manifest_that_names_its_table(tmp_path):
    scan = phantom(1, "MRI", SMALL_GRID)
    drawn = [scan.label == REGIONS.index(region) for region in ("RV", "myocardium", "LV")]
    acdc = np.select(drawn, (1, 2, 3), 0).astype(np.uint8)
    write_volume(scan, tmp_path / "a.nii.gz")
    write_label(acdc, scan.affine, tmp_path / "a_label.nii.gz")
    write_volume(phantom(2, "CT", SMALL_GRID), tmp_path / "b.nii.gz")
    (tmp_path / "cases.csv").write_text(
        "image,label,modality,split,table\na.nii.gz,a_label.nii.gz,MRI,train,ACDC\nb.nii.gz,,CT,train,\n")
    case = next(c for c in find_cases(tmp_path / "cases.csv") if c.modality == "MRI")
    read = load_case(case, SMALL_GRID).label
    assert set(np.unique(read)) == {1, 2, 5, UNDRAWN}
