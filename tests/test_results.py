"Means and spreads are what they say, whatever the order of the records."
import json
import math

import pandas as pd
import pytest

from cssgan.experiments.results import mean_sd, plot_shares, plus_minus, read_results, runs_present, table
from cssgan.guard import InputError

RUNS = [("ours", 1, 74.), ("base", 0, 70.), ("ours", 0, 72.), ("base", 1, 71.), ("ours", 2, 60.)]
RECORDS = pd.DataFrame([{"method": m, "seed": s, "fraction": .14, "score": "Dice", "mean": v} for m, s, v in RUNS])


def test_one_value_has_no_spread(): assert math.isnan(mean_sd([1.])[1]) and plus_minus([1.]) == "1.0 (1)"


def test_a_table_says_how_many_seeds_stand_behind_a_cell():
    assert table(RECORDS, "method", "fraction").loc["base", .14] == "70.5 ± 0.7 (2)"


def write(file, records): file.write_text(json.dumps({"command": "x", "made_by": [], "rows": records}))


def test_a_file_is_read_with_what_was_chosen(tmp_path):
    file = tmp_path / "r.json"
    write(file, RECORDS.to_dict("records"))
    assert len(read_results(file, method="ours")) == 3
    with pytest.raises(InputError, match="no record"): read_results(file, method="theirs")
    with pytest.raises(InputError, match="is not there"): read_results(tmp_path / "none.json")


def test_a_column_of_older_files_has_its_new_name(tmp_path):
    file = tmp_path / "r.json"
    write(file, [{"way": "CT→MRI", "mean": 1.}, {"way": "MRI→CT", "mean": 2.}])
    assert read_results(file, direction="MRI→CT")["mean"].tolist() == [2.]


def test_a_method_has_one_colour_in_all_figures():
    methods = "ADA (R+S)", "Ours (R+S)", *"abcde"
    frame = pd.DataFrame([{"method": m, "fraction": f, "mean": 1.} for m in methods for f in (.1, 1.)])
    colours = lambda f: {line.get_label(): line.get_color() for line in plot_shares(f, "fraction").axes[0].lines}
    assert (len(colours(frame)) == 7
            and colours(frame[2:])["Ours (R+S)"] == colours(frame)["Ours (R+S)"] != colours(frame)["ADA (R+S)"])


def test_curves_show_every_record():
    ax = plot_shares(RECORDS, "fraction").axes[0]
    assert len(ax.lines) == 2 and sum(len(c.get_offsets()) for c in ax.collections) == len(RECORDS)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", '{"rows": []}', '{"command": "x", "made_by": [], "rows": [3]}',
        '{"command": "x", "made_by": [], "rows": []}', "[" * 100_000, '{"command": "x", "made_by": [], "rows": NaN}',
    ],
)
def test_a_damaged_result_file_is_named(tmp_path, content):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(InputError, match="table.json"): read_results(tmp_path / "table.json")


# ---- which runs of a grid a file holds

def test_a_record_of_one_share_is_of_one_run():
    runs = {str(f): {"seed": 0, "fractions": [f]} for f in (.14, .28, .57, 1.)}
    assert runs_present(runs, [{"seed": 0, "fractions": "[0.14]", "fraction": .14}]) == (["0.14"], 0)
    assert runs_present(runs, [{"seed": 0, "fractions": [1.0]}]) == (["1.0"], 0)
    assert runs_present(runs, [{"seed": 0, "fractions": "[0.3]"}]) == ([], 1)


def test_other_methods_are_another_grid():
    runs = {f"seed={s}": {"seed": s, "methods": ["R", "ADA", "ours"]} for s in (0, 1)}
    assert runs_present(runs, [{"seed": 1, "methods": "['all real']", "method": "all real"}]) == ([], 1)
    assert runs_present(runs, [{"seed": 1, "methods": "['R', 'ADA', 'ours']", "method": "R"}]) == (["seed=1"], 0)


def test_a_list_of_another_grid_is_seen_beside_the_right_one():
    runs = {f"seed={s}": {"seed": s, "shares": [.5, 1.]} for s in (1, 2)}
    assert runs_present(runs, [{"seed": 1, "shares": "[0.5, 1.0]"}, {"seed": 2, "shares": "[0.5]"}]) == (["seed=1"], 1)


def test_what_a_record_says_for_itself_is_not_its_list():
    runs = {f"seed={s}": {"seed": s, "augment": [True]} for s in (0, 1)}
    assert runs_present(runs, [{"seed": 0, "augment": "all"}]) == (["seed=0"], 0)
