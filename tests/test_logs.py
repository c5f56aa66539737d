"The log of a run: every epoch once, nothing that breaks or slows the run, the first of several processes writes."
import csv
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
from lightning_fabric.loggers import CSVLogger
from tiny import SHORT, noise

from cssgan.guard import InputWarning
from cssgan.training import logs
from cssgan.training.checkpoints import load_checkpoint
from cssgan.training.logs import TrainingLog, epoch_line, history_rows
from cssgan.training.schedule import Phase
from cssgan.training.trainer import Stopped, fit

RUN = replace(SHORT, phases=(Phase("segmentors", 2), Phase("generators", 1), Phase("joint", 1, 1)))


@pytest.fixture(scope="module")
def data(): return noise()


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    "A run with a log, without an interruption: the run, its folder, its lines."
    folder, lines = tmp_path_factory.mktemp("whole"), []
    run = fit(data, RUN, folder, progress=False, callback=TrainingLog(folder, data, lines.append))
    return run, folder, lines


def tell(whole, log, epochs=(5,)):
    "Call a log as `fit` does after these epochs of the whole run, without training again."
    run = replace(whole[0], history=[], phase=0, epoch=0, seen=1)
    keep = SimpleNamespace(data=noise(), button=SimpleNamespace(pressed=False))
    log(run, keep)
    run.seen = 0
    for n in epochs:
        run.history = whole[0].history[:n]
        run.phase = [0, 0, 1, 2, 2, 3][n]
        run.epoch = [0, 1, 0, 0, 1, 0][n]
        log(run, keep)
    return run


def table(folder): return list(csv.DictReader((folder / "history.csv").read_text().splitlines()))


# ---- what is written

def test_every_epoch_has_a_row_and_a_line(whole):
    run, folder, lines = whole
    rows = table(folder)
    assert [row["epoch"] for row in rows] == list("12345") and len(lines) == 5
    assert [row["phase"] for row in rows] == ["segmentors"] * 2 + ["generators"] + ["joint"] * 2
    assert float(rows[-1]["dice_CT.LV"]) == pytest.approx(run.history[-1]["dice_CT.LV"]) and rows[0]["cyc"] == ""
    assert float(rows[-1]["lr"]) == pytest.approx(RUN.lr / 2)


def test_the_line_says_losses_scores_rate_and_time(whole):
    first, last = whole[2][0], whole[2][-1]
    assert first.startswith("segmentors 1/2: S_A ") and "Dice CT" in first and "left" in first
    assert "S-score" not in first
    for words in ("joint 2/2: gan ", " cyc ", "shape", "Dice CT", "(LV ", "MRI", "S-score CT→MRI", "pairs/s"):
        assert words in last
    assert "\n" not in last and "left" not in last


def test_curves_are_a_picture(whole):
    assert (whole[1] / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_mean_is_the_mean_of_the_regions(whole):
    last = whole[0].history[-1]
    regions = [value for name, value in last.items() if name.startswith("dice_CT.") and value is not None]
    assert len(regions) == 5 and last["dice_CT"] == pytest.approx(sum(regions) / 5, abs=1e-3)


def test_a_domain_without_labels_has_none(tmp_path):
    data = noise()
    for samples in (data.train_B, data.valid_B):
        for _, labels, _ in samples.made: labels.fill_(255)
    lines, config = [], replace(RUN, phases=(Phase("joint", 1),))
    fit(data, config, tmp_path, progress=False, callback=TrainingLog(tmp_path, data, lines.append))
    assert "MRI none" in lines[0] and "CT→MRI none" in lines[0] and "nan" not in lines[0]
    assert table(tmp_path)[0]["dice_MRI"] == ""


def test_old_histories_can_be_told(whole):
    "Written by a version that knew no Dice by region."
    old = [{name: value for name, value in row.items() if "." not in name} for row in whole[0].history]
    run = replace(whole[0], history=old)
    assert "Dice CT" in epoch_line(run) and len(history_rows(run)) == 5


@pytest.mark.parametrize("run, left", [((0, 1), 4 * (1 + 2.7 + 2 * 5.5)), ((2, 1), 4 * 1.0), ((3, 0), 0)])
def test_time_left_is_made_of_what_phases_cost(whole, run, left):
    phase, epoch = run
    history = whole[0].history[:[1, None, 4, 5][phase]]
    part = replace(whole[0], phase=phase, epoch=epoch, history=history)
    seconds = logs.seconds_left(part, rate=1.0, pairs=4)
    assert seconds == pytest.approx(left)


# ---- TensorBoard

def events(folder):
    "(tag, step) of what TensorBoard shows, in order; pictures by their tag."
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seen = accumulators.EventAccumulator(str(folder / "tensorboard"))
    seen.Reload()
    tags = seen.Tags()
    return {tag: [e.step for e in seen.Scalars(tag)] for tag in tags["scalars"]}, tags["images"]


def test_tensorboard_has_losses_scores_regions_and_pictures(whole):
    scalars, images = events(whole[1])
    assert scalars["losses/S_A"] == [1, 2, 4, 5] and scalars["scores/s_ct_to_mri"] == [3, 4, 5]
    assert scalars["regions/dice_MRI.RA"] == [1, 2, 4, 5] and scalars["lr"] == [1, 2, 3, 4, 5]
    assert images == ["validation/vA0", "validation/vB0"]


def test_without_tensorboard_the_rest_is_written(data, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    tell(whole, TrainingLog(tmp_path, data))
    assert len(table(tmp_path)) == 5 and (tmp_path / "curves.png").exists() and not (tmp_path / "tensorboard").exists()


# ---- any logger of Lightning Fabric

def numbers(folder):
    "What Lightning's CSVLogger has written: a row an epoch."
    file, = folder.rglob("metrics.csv")
    return list(csv.DictReader(file.read_text().splitlines()))


def test_another_logger_gets_all_numbers_and_tensorboard_none(data, whole, tmp_path):
    log = TrainingLog(tmp_path, data, loggers=[CSVLogger(tmp_path / "csv")])
    fit(data, RUN, tmp_path, progress=False, callback=log)
    rows = numbers(tmp_path / "csv")
    assert [row["step"] for row in rows] == list("12345") and not (tmp_path / "tensorboard").exists()
    for row, known in zip(rows, map(logs.in_groups, history_rows(whole[0]))):
        assert {name: float(value) for name, value in row.items() if value and name != "step"} == pytest.approx(known)


def test_another_logger_travels_and_two_processes_log_once(data, tmp_path):
    config = replace(RUN, phases=(Phase("segmentors", 1), Phase("joint", 1)))
    log = TrainingLog(tmp_path, data, loggers=[CSVLogger(tmp_path / "csv")])
    assert pickle.loads(pickle.dumps(log)).given[0].root_dir == str(tmp_path / "csv")
    fit(data, config, tmp_path, progress=False, devices=2, callback=log)
    assert [row["step"] for row in numbers(tmp_path / "csv")] == ["1", "2"]


# ---- it changes nothing, and loses nothing

def test_the_run_is_bit_for_bit_the_same_with_a_log(data, whole, tmp_path):
    plain = fit(data, RUN, tmp_path, progress=False)
    assert plain.history == whole[0].history
    assert load_checkpoint(tmp_path).about["files"] == load_checkpoint(whole[1]).about["files"]


@pytest.mark.parametrize("epochs, seen", [(1, 2), (3, 0), (4, 1)])
def test_interrupted_and_resumed_no_epoch_is_twice_or_lost(data, whole, tmp_path, epochs, seen):
    class Interrupts(TrainingLog):
        def __call__(self, run, keep):
            super().__call__(run, keep)
            keep.button.pressed = len(run.history) == epochs and run.seen == seen
    with pytest.raises(Stopped): fit(data, RUN, tmp_path, progress=False, callback=Interrupts(tmp_path, data))
    fit(data, RUN, tmp_path, resume=True, progress=False, callback=TrainingLog(tmp_path, data))
    assert (tmp_path / "history.csv").read_bytes() == (whole[1] / "history.csv").read_bytes()


def test_an_epoch_that_was_logged_and_then_lost_is_there_once(data, whole, tmp_path):
    "The log is written, the power fails before the checkpoint is: the epoch is trained again."
    class PowerFails(BaseException): pass
    class Fails(TrainingLog):
        def __call__(self, run, keep):
            super().__call__(run, keep)
            if len(run.history) == 3 and run.seen == 0: raise PowerFails
    log = Fails(tmp_path, data)
    with pytest.raises(PowerFails): fit(data, RUN, tmp_path, progress=False, save_every=0, callback=log)
    assert len(table(tmp_path)) == 3
    fit(data, RUN, tmp_path, resume=True, progress=False, callback=TrainingLog(tmp_path, data))
    assert (tmp_path / "history.csv").read_bytes() == (whole[1] / "history.csv").read_bytes()
    assert events(tmp_path)[0]["lr"] == [1, 2, 3, 4, 5]


# ---- it breaks nothing

def broken(*_, **__): raise OSError(28, "No space left on device")


@pytest.mark.parametrize("part", ["write_whole", "plot_curves", "tensorboard", "epoch_line", "translation_picture"])
def test_a_log_that_fails_says_so_once_and_raises_nothing(data, whole, tmp_path, monkeypatch, part):
    monkeypatch.setattr(logs, part, broken)
    with pytest.warns(InputWarning) as told: tell(whole, TrainingLog(tmp_path, data, [].append), range(1, 6))
    said = [str(one.message) for one in told if issubclass(one.category, InputWarning)]
    assert len(said) == 1 and "training goes on" in said[0] and "No space left" in said[0]


def test_a_terminal_that_is_gone_costs_the_lines_only(data, whole, tmp_path):
    def say(line): raise BrokenPipeError(32, "Broken pipe")
    with pytest.warns(InputWarning): tell(whole, TrainingLog(tmp_path, data, say), range(1, 6))
    assert len(table(tmp_path)) == 5


def test_pictures_wait_until_they_are_a_small_share(data, whole, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(TrainingLog, "draw", lambda self, run: drawn.append(len(run.history)))
    tell(whole, TrainingLog(tmp_path, data, share=0.), range(1, 6))
    assert drawn == [5], "the last ones are always drawn"
    tell(whole, TrainingLog(tmp_path, data, share=1e9), range(1, 6))
    assert drawn == [5, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("epochs, seen", [(2, 0), (3, 1), (4, 2)])
def test_who_interrupts_finds_the_curves_as_far_as_the_run_is(data, tmp_path, monkeypatch, epochs, seen):
    "The button is pressed while an update runs, as by Ctrl-C or SIGTERM; pictures may take no time at all."
    class Interrupts(TrainingLog):
        def __call__(self, run, keep):
            keep.button.pressed = len(run.history) == epochs and run.seen == seen
            super().__call__(run, keep)
    drawn, plot = [], logs.plot_curves
    def watched(curves, **how):
        drawn.append(len(curves["Dice on CT"]))
        return plot(curves, **how)
    monkeypatch.setattr(logs, "plot_curves", watched)
    with pytest.raises(Stopped):
        fit(data, RUN, tmp_path, progress=False, callback=Interrupts(tmp_path, data, share=0.))
    assert drawn == [epochs] and (tmp_path / "curves.png").exists()
    fit(data, RUN, tmp_path, resume=True, progress=False, callback=TrainingLog(tmp_path, data, share=0.))
    assert drawn == [epochs, 5], "and at the end"


# ---- processes

def test_it_travels_and_only_the_first_process_writes(data, whole, tmp_path, monkeypatch):
    log = pickle.loads(pickle.dumps(TrainingLog(tmp_path, data, print)))
    monkeypatch.setattr(logs, "rank", lambda: 1)
    tell(whole, log)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    tell(whole, log)
    assert len(table(tmp_path)) == 5


def test_two_processes_write_one_log(data, tmp_path):
    config = replace(RUN, phases=(Phase("segmentors", 1), Phase("joint", 1)))
    fit(data, config, tmp_path, progress=False, devices=2, callback=TrainingLog(tmp_path, data))
    assert [row["phase"] for row in table(tmp_path)] == ["segmentors", "joint"]


def test_a_callback_that_does_not_travel_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="travel"):
        fit(data, RUN, tmp_path, progress=False, devices=2, callback=lambda run, keep: None)
