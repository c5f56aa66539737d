"Runs: their phases and learning rates, when they stop, what is best, and that an interruption changes nothing."
import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import SHORT, TINY, Random, changed, frozen, noise, same, state

from cssgan.data.cases import phantom_cases
from cssgan.data.datasets import UnpairedData, unpaired
from cssgan.fast import networks
from cssgan.guard import InputError
from cssgan.joint import make_optimizers
from cssgan.models import Networks, patch_size
from cssgan.scans.volumes import Grid
from cssgan.training import run as training
from cssgan.training import trainer
from cssgan.training.checkpoints import load_checkpoint
from cssgan.training.run import start, step
from cssgan.training.saving import resume_run, save_run, training_tensors
from cssgan.training.schedule import PAPER_PHASES, Phase, lr_factor, preset
from cssgan.training.schema import CheckpointError
from cssgan.training.trainer import Keeper, StopButton, Stopped, advance, fit, is_best, stalled

JOINT = replace(SHORT, phases=(Phase("joint", 1),))


@pytest.fixture(scope="module")
def data(): return noise()


@pytest.fixture(scope="module")
def batch(data): return next(data.epoch(0, 0))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    "A run without interruption, and its folder."
    folder = tmp_path_factory.mktemp("whole")
    return fit(data, SHORT, folder, progress=False), folder


# ---- phases, learning rates and presets

@pytest.mark.parametrize("phase, learn", [("segmentors", {"S_A", "S_B"}), ("generators", {"G_A", "G_B", "D_A", "D_B"}),
                                          ("joint", {"G_A", "G_B", "D_A", "D_B", "S_A", "S_B"})])
def test_each_phase_trains_its_own(batch, phase, learn):
    run = start(SHORT)
    before = {n: frozen(net) for n, net in run.nets.named_children()}
    step(run, phase, batch)
    assert {n for n, net in run.nets.named_children() if changed(net, before[n])} == learn


def test_learning_rate_is_constant_then_falls_to_nothing():
    factors = [lr_factor(Phase("joint", 3, 4), e) for e in range(8)]
    assert factors[:4] == [1, 1, 1, 0.8] and factors[4:] == pytest.approx([0.6, 0.4, 0.2, 0])


def test_the_papers_schedule():
    assert PAPER_PHASES == (Phase("segmentors", 100), Phase("generators", 60), Phase("joint", 50, 50, patience=5))
    config = preset("paper")
    assert (config.grid.shape, config.lr) == ((112, 112, 86), 2e-4)
    assert (config.lambda_cyc, config.gamma_shape, config.pool_size, config.batch_size) == (10, 1, 50, 1)
    groups = {n: o.param_groups[0]["betas"][0] for n, o in vars(make_optimizers(Networks(4, 1))).items()}
    assert groups["G"] == groups["D"] == 0.5


def test_the_studys_discriminator_sees_patches():
    "Its field is at most a third of the grid's sides; the paper's is larger than that."
    config = preset("study")
    assert patch_size(Networks(1, config.patch_layers).D_A) <= min(config.grid.shape) / 3


@pytest.mark.parametrize("name", ["papr", "", "CPU", None])
def test_unknown_preset(name):
    with pytest.raises(ValueError, match="known are paper, cpu, study, demo, pretrained, smoke") as e: preset(name)
    assert "\n" not in str(e.value)


# ---- stopping, and the best

def history(run, losses, dice=None):
    return replace(run, history=[{"phase": 0, "valid_loss": v, "dice_CT": d, "dice_MRI": d}
                                 for v, d in zip(losses, dice or [0] * len(losses))])


@pytest.mark.parametrize("losses, stop", [([5, 4, 3, 2], False), ([5, 4, 4, 4], True), ([5, 3, 4, 4], True),
                                          ([5, 4, 4, 3.9], False), ([5, 6], False), ([5, 6, 7], True)])
def test_stops_when_the_loss_no_longer_falls(losses, stop):
    run = start(replace(SHORT, phases=(Phase("joint", 50, 0, patience=2),)))
    assert stalled(history(run, losses)) is stop
    assert not stalled(history(replace(run, config=SHORT), losses))


def test_generators_alone_are_not_stopped_by_segmentors_that_do_not_learn(data, tmp_path):
    config = replace(SHORT, phases=(Phase("generators", 4, patience=1),))
    assert len(fit(data, config, tmp_path, progress=False).history) == 4


@pytest.mark.parametrize("wrong", [("Joint", 50), ("segmentor", 5), ("generators", 0), ("joint", -1, 5)])
def test_a_phase_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError): Phase(*wrong)


def test_evaluators_that_are_given_stay(data, tmp_path):
    evaluators = torch.nn.ModuleDict({"S_A": Networks(4, 1, seed=5).S_A, "S_B": Networks(4, 1, seed=5).S_B})
    run = fit(data, replace(SHORT, phases=SHORT.phases[:1]), tmp_path, evaluators=evaluators, progress=False)
    assert same(evaluators.state_dict(), run.evaluators.state_dict())


def test_cyclegans_own_generators_train_and_go_on(data, tmp_path):
    config = replace(SHORT, resnet=True, phases=(Phase("generators", 1),))
    fit(data, config, tmp_path, progress=False)
    assert load_checkpoint(tmp_path)[1]["networks"]["resnet"]
    assert resume_run(config, tmp_path / "last").nets.sizes["resnet"]


def test_early_stop_ends_the_phase(data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "validate", lambda *_, **__: {"dice_CT": 0.0, "dice_MRI": 0.0, "valid_loss": 1.0})
    run = fit(data, replace(SHORT, phases=(Phase("segmentors", 9, patience=1), Phase("joint", 9, patience=2))),
              tmp_path, progress=False)
    assert [h["name"] for h in run.history] == ["segmentors"] * 2 + ["joint"] * 3


def test_the_best_is_the_highest_dice_of_the_last_phase(data, tmp_path, monkeypatch):
    scores = iter([90, 10, 30, 20])
    def scored(*_): return dict.fromkeys(("dice_CT", "dice_MRI"), next(scores)) | {"valid_loss": 1.0}
    monkeypatch.setattr(trainer, "validate", scored)
    kept = []
    def saves(run, *how, **more): save_run(run, *how, **more), kept.append(frozen(run.nets))
    monkeypatch.setattr(trainer, "save_run", saves)
    run = fit(data, replace(SHORT, phases=(Phase("segmentors", 1), Phase("joint", 3))), tmp_path, progress=False)
    best = load_checkpoint(tmp_path / "best")
    assert [h["dice_CT"] for h in best[1]["history"]] == [90, 10, 30]
    assert same(best[0].state_dict(), run.nets.state_dict())
    assert not same(load_checkpoint(tmp_path / "last")[0].state_dict(), run.nets.state_dict())


def test_equal_or_missing_dice_still_leaves_a_best(data, tmp_path):
    run = history(start(replace(SHORT, phases=(Phase("joint", 9),))), [1, 1, 1], [50, 60, 60])
    assert not is_best(run) and is_best(replace(run, history=run.history[:2]))
    nan = float("nan")
    unlabelled = history(run, [1], [nan])
    assert is_best(unlabelled) and is_best(history(run, [1, 1], [nan, None])), "no Dice at all: the latest"
    mixed = replace(run, history=[{"phase": 0, "dice_CT": d, "dice_MRI": nan} for d in (50, 40, 60)])
    shorter = replace(mixed, history=mixed.history[:2])
    assert is_best(mixed) and not is_best(shorter), "one domain without labels: the other one decides"


# ---- a run, and going on with it

def test_from_scratch(data, tmp_path):
    run = fit(data, replace(SHORT, phases=(Phase("joint", 1, 1, patience=5),)), tmp_path, progress=False)
    assert [h["name"] for h in run.history] == ["joint"] * 2 and run.phase == 1
    assert all(torch.isfinite(p).all() for p in run.nets.parameters())


def test_history_has_losses_and_scores_of_every_epoch(whole):
    first, _, last = whole[0].history[0], whole[0].history[1], whole[0].history[-1]
    assert {"S_A", "S_B", "dice_CT", "dice_MRI", "valid_loss"} <= set(first) and "s_ct_to_mri" not in first
    assert {"gan", "cyc", "shape", "D_A", "D_B", "S_A", "S_B"} <= set(last)
    assert {"s_ct_to_mri", "s_mri_to_ct", "dice_CT", "dice_MRI"} <= set(last)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_an_interrupted_run_ends_bit_for_bit_like_one_that_was_not(data, whole, tmp_path, epochs):
    half = start(SHORT, ranges=data.ranges())
    keep = Keeper(tmp_path / "last", data, StopButton(), save_every=0)
    for _ in range(epochs): advance(half, data, tmp_path, keep, progress=False)
    again = fit(data, SHORT, tmp_path, resume=True, progress=False)
    (a, b, c), (d, e, f) = state(whole[1]), state(tmp_path)
    assert same(a, d) and same(b, e) and c == f
    assert same(whole[0].nets.state_dict(), again.nets.state_dict()) and whole[0].history == again.history
    assert {"pool.A", "pool.B", "rng", "judge.S_A.net.last.bias"} <= set(b)


def test_a_run_killed_within_an_epoch_goes_on_from_the_one_before(data, whole, tmp_path, monkeypatch):
    calls = []
    def dies(*args):
        calls.append(1)
        if len(calls) == 8: raise KeyboardInterrupt
        return step(*args)
    monkeypatch.setattr(training, "step", dies)
    with pytest.raises(KeyboardInterrupt): fit(data, SHORT, tmp_path, progress=False)
    monkeypatch.undo()
    again = fit(data, SHORT, tmp_path, resume=True, progress=False)
    assert same(whole[0].nets.state_dict(), again.nets.state_dict()) and whole[0].history == again.history


def test_a_finished_run_is_not_trained_again(data, whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "run")
    again = fit(None, SHORT, tmp_path / "run", resume=True, progress=False)
    assert same(again.nets.state_dict(), whole[0].nets.state_dict())


def test_going_on_with_nothing_is_beginning(data, whole, tmp_path):
    assert same(fit(data, SHORT, tmp_path, resume=True, progress=False).nets.state_dict(), whole[0].nets.state_dict())


def test_an_existing_run_is_not_overwritten(data, whole):
    with pytest.raises(CheckpointError, match="already holds a run"): fit(data, SHORT, whole[1], progress=False)


@pytest.mark.parametrize("other", [{"lr": 1e-4}, {"width": 8}, {"seed": 1}, {"phases": (Phase("joint", 1),)},
                                   {"grid": Grid((16, 16, 16), (7.0, 7.0, 8.0))}, {"gamma_shape": 0.0}], ids=str)
def test_a_run_goes_on_under_its_own_configuration_only(data, whole, other):
    with pytest.raises(CheckpointError, match=next(iter(other))) as e:
        fit(data, replace(SHORT, **other), whole[1], resume=True, progress=False)
    assert "\n" not in str(e.value)


def test_a_checkpoint_that_no_run_wrote_cannot_go_on(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "last")
    with pytest.raises(CheckpointError) as e: resume_run(SHORT, tmp_path / "last")
    assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)


def test_a_lost_best_is_said_in_one_line(data, whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "best")
    with pytest.raises(CheckpointError): fit(data, SHORT, tmp_path / "run", resume=True, progress=False)


def test_same_seed_same_run_other_seed_other_run(data, whole, tmp_path):
    again = fit(data, SHORT, tmp_path / "a", progress=False)
    other = fit(data, replace(SHORT, seed=1), tmp_path / "b", progress=False)
    assert same(again.nets.state_dict(), whole[0].nets.state_dict())
    assert not same(other.nets.state_dict(), whole[0].nets.state_dict())


def test_given_weights_are_started_from_and_left_as_they_are(data, tmp_path):
    nets = Networks(4, 1, seed=8)
    before = frozen(nets)
    run = start(SHORT, nets=nets)
    assert same(run.nets.state_dict(), before)
    step(run, "joint", next(data.epoch(0, 0)))
    assert same(nets.state_dict(), before) and not same(run.nets.state_dict(), before)


def test_a_loss_that_is_no_number_names_the_cases(data, tmp_path):
    bad = UnpairedData(Random(1, "spoilt", 0), data.train_B, data.valid_A, data.valid_B)
    bad.train_A.made[0][0][0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="spoilt0"): fit(bad, SHORT, tmp_path, progress=False)


def test_unequal_domains_train_on_every_case(tmp_path):
    seen = []
    data = UnpairedData(Random(1, "A", 0), Random(4, "B", 1), Random(1, "vA", 2), Random(1, "vB", 3))
    original = data.epoch
    data.epoch = lambda *a: (seen.append(b.ids) or b for b in original(*a))
    fit(data, replace(SHORT, phases=(Phase("joint", 1),)), tmp_path, progress=False)
    assert len(seen) == 4 and {i for ids in seen for i in ids} == {"A0", "B0", "B1", "B2", "B3"}


def test_batches_of_two(data, tmp_path):
    run = fit(data, replace(SHORT, batch_size=2, phases=(Phase("joint", 1),)), tmp_path, progress=False)
    assert len(run.history) == 1 and len(run.pools["A"].volumes) == 2


def test_phantoms_train_from_end_to_end(tmp_path):
    data = unpaired(phantom_cases({"train": (1, 2), "valid": (1, 1)}), TINY, tmp_path / "cache")
    run = fit(data, preset("smoke"), tmp_path / "run", progress=False)
    about = json.loads((tmp_path / "run/best/checkpoint.json").read_text())
    assert about["grid"]["shape"] == [24, 24, 16] and about["ranges"]["CT"] == [-1000, 1000]
    assert 0 <= about["ranges"]["MRI"][0] < about["ranges"]["MRI"][1] < 2000
    assert len(run.history) == sum(p.epochs + p.decay for p in preset("smoke").phases)
    assert not [p for p in Path(tmp_path / "run").rglob("*") if p.is_file()
                and p.suffix not in (".json", ".safetensors")]


def test_training_tensors_are_all_of_the_memory(whole):
    names = {n.split(".")[0] for n in training_tensors(whole[0])}
    assert names == {"rng", "judge", "pool", "G", "D", "S"}


# ---- before the first step

class Prepared(UnpairedData):
    "Data that can be prepared, and whose name follows its content."
    calls, content, trouble = (), "one", None
    def names(self): return super().names()._replace(content=f"{super().names().content[:8]}-{self.content}")
    def prepare(self, progress):
        self.calls += (progress,)
        if self.trouble: raise self.trouble


def prepared(**facts):
    d = noise()
    made = Prepared(d.train_A, d.train_B, d.valid_A, d.valid_B)
    for name, fact in facts.items(): setattr(made, name, fact)
    return made


@pytest.fixture
def untrained(monkeypatch): monkeypatch.setattr(training, "step", lambda *_: pytest.fail("trained"))


def test_every_case_is_prepared_before_the_first_step(tmp_path, untrained):
    data = prepared(trouble=InputError("the validation scan V7.nii is not there"))
    with pytest.raises(InputError, match="V7"): fit(data, SHORT, tmp_path, progress=False)
    assert data.calls == (False,) and list(tmp_path.iterdir()) == []


def test_a_folder_in_which_nothing_was_trained_is_free(tmp_path):
    with pytest.raises(InputError): fit(prepared(trouble=InputError("V7")), JOINT, tmp_path, progress=False)
    assert fit(prepared(), JOINT, tmp_path, progress=False).phase == 1


def test_a_case_that_fails_in_the_first_step_leaves_the_folder_free(tmp_path, monkeypatch):
    def fails(*_): raise InputError("spoilt")
    monkeypatch.setattr(training, "step", fails)
    with pytest.raises(InputError, match="spoilt"): fit(noise(), JOINT, tmp_path, progress=False)
    monkeypatch.undo()
    assert fit(noise(), JOINT, tmp_path, progress=False).phase == 1


def test_scans_that_were_exchanged_under_the_same_names_are_noticed(tmp_path, untrained):
    data, last = prepared(), tmp_path / "last"
    save_run(start(JOINT), last, True, data)
    with pytest.raises(CheckpointError, match="have changed"): resume_run(JOINT, last, prepared(content="two"))
    assert resume_run(JOINT, last, data).phase == 0
    old = noise()
    old.name = lambda: old.names()[1]  # as a version before named its cases
    save_run(start(JOINT), last, True, old)
    assert resume_run(JOINT, last, data).phase == 0


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_cases_are_prepared_interrupts(tmp_path, untrained, signal_):
    class Slow(Prepared):
        def prepare(self, progress):
            os.kill(os.getpid(), signal_)
            time.sleep(5)
    d = noise()
    with pytest.raises(KeyboardInterrupt):
        fit(Slow(d.train_A, d.train_B, d.valid_A, d.valid_B), SHORT, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_while_a_run_validates_stops_it_after(tmp_path, monkeypatch):
    validate = trainer.validate
    def asked(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*args)
    monkeypatch.setattr(trainer, "validate", asked)
    with pytest.raises(Stopped, match="epoch 2"):
        fit(noise(), replace(JOINT, phases=(Phase("joint", 2),)), tmp_path, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "last"]
    assert len(load_checkpoint(tmp_path / "last")[1]["history"]) == 1


@pytest.mark.parametrize("place", ["best", "last"])
def test_a_place_for_checkpoints_that_is_none_is_said_before_training(tmp_path, untrained, place):
    (tmp_path / place).touch()
    with pytest.raises(InputError, match=place): fit(noise(), SHORT, tmp_path, progress=False)


@pytest.mark.parametrize("wrong", [
    {"seed": -1}, {"seed": 2**32}, {"seed": 2**64}, {"seed": 0.5},
    {"lr": 0}, {"lr": float("nan")}, {"lr": -1e-3}, {"lr": float("inf")},
    {"batch_size": 0}, {"batch_size": 10**9}, {"pool_size": -1}, {"width": 0}, {"width": 2**70}, {"patch_layers": 99},
    {"averaging": 1.0}, {"averaging": -0.1}, {"averaging": float("nan")}, {"averaging": "0.9"}, {"keep": "first"},
    {"lambda_cyc": float("nan")}, {"gamma_shape": -1}, {"phases": ()}, {"phases": (1,)},
    {"grid": "small"}, {"grid": None}, {"grid": Grid((4096, 4096, 16), (7, 7, 8))},
    {"grid": Grid((24, 24, 16), (7, 7, 1e-300))}], ids=str)
def test_a_configuration_that_cannot_be_is_refused_at_once(wrong):
    with pytest.raises(InputError) as e: replace(SHORT, **wrong)
    assert next(iter(wrong)) in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) <= 300


@pytest.mark.parametrize("epochs", [(10**9,), (1, 10**9), (0.5,), ("5",), (True,), (1, 0, 0), (1, 0, -1)], ids=str)
def test_a_phase_of_numbers_that_cannot_be(epochs):
    with pytest.raises(InputError, match="phase joint"): Phase("joint", *epochs)


# ---- which engine runs

SAYS = re.compile(r"^engine .*$", re.MULTILINE)


@pytest.mark.parametrize("engine, fast, words", [
    ("fast", True, "engine fast: bfloat16 on a CPU"), ("fast", False, "engine fast: float32 on a CPU"),
    ("reference", True, "engine reference: plain PyTorch, float32")])
def test_a_run_says_once_which_engine_runs_and_in_which_precision(tmp_path, monkeypatch, capfd, engine, fast, words):
    monkeypatch.setattr(networks, "has_fast_bfloat16", lambda device: fast)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fit(noise(), replace(SHORT, engine=engine), tmp_path)
    said, = SAYS.findall(capfd.readouterr().err)
    assert said.startswith(words)


def test_a_resumed_run_says_so_again_and_a_quiet_one_does_not(tmp_path, capfd):
    config = replace(JOINT, phases=(Phase("joint", 2),))
    def stop(run, keep): keep.button.pressed = run.seen == 2
    with pytest.raises(Stopped): fit(noise(), config, tmp_path, callback=stop)
    assert len(SAYS.findall(capfd.readouterr().err)) == 1
    with pytest.raises(Stopped): fit(noise(), config, tmp_path, resume=True, callback=stop)
    assert len(SAYS.findall(capfd.readouterr().err)) == 1
    fit(noise(), config, tmp_path, resume=True, progress=False)
    assert capfd.readouterr().err == ""


# ---- numbers that mean something

def test_a_domain_without_labels_has_no_scores(tmp_path):
    data = noise()
    for samples in (data.train_B, data.valid_B):
        for _, labels, _ in samples.made: labels.fill_(255)
    run = fit(data, replace(SHORT, phases=(Phase("segmentors", 1, patience=1), Phase("joint", 3, patience=1))),
              tmp_path, progress=False)
    last = run.history[-1]
    assert last["dice_MRI"] is None and last["s_ct_to_mri"] is None and last["s_mri_to_ct"] is None
    assert last["dice_CT"] >= 0 and last["valid_loss"] > 0
    assert "NaN" not in (tmp_path / "best" / "checkpoint.json").read_text() and load_checkpoint(tmp_path)[1]["history"]
    assert fit(None, run.config, tmp_path, resume=True, progress=False).history == run.history


def test_evaluators_that_were_given_may_score_a_domain_without_labels(tmp_path):
    data = noise()
    for _, labels, _ in data.train_B.made: labels.fill_(255)
    evaluators = torch.nn.ModuleDict({"S_A": Networks(4, 1, seed=5).S_A, "S_B": Networks(4, 1, seed=5).S_B})
    def stop(run, keep): keep.button.pressed = run.seen == 2
    with pytest.raises(Stopped): fit(data, JOINT, tmp_path, evaluators=evaluators, progress=False, callback=stop)
    assert fit(data, JOINT, tmp_path, resume=True, progress=False).history[-1]["s_ct_to_mri"] is not None


def test_no_labels_at_all_train_and_end(tmp_path):
    data = noise(missing=0)
    for samples in (data.train_A, data.train_B, data.valid_A, data.valid_B):
        for _, labels, _ in samples.made: labels.fill_(255)
    run = fit(data, replace(JOINT, phases=(Phase("joint", 2, patience=1),)), tmp_path, progress=False)
    assert run.phase == 1 and all(h["valid_loss"] is None and h["dice_CT"] is None for h in run.history)
