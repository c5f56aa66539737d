"Averages of the weights: what they are, that they are scored and kept, and that an interruption changes nothing."
import json
from dataclasses import replace

import pytest
import torch
from tiny import AVERAGED, SHORT, Random, frozen, noise, same, state

from cssgan.data.datasets import UnpairedData
from cssgan.training import run as training
from cssgan.training import trainer
from cssgan.training.checkpoints import load_checkpoint
from cssgan.training.run import UNLIKELY, begin_with_background, follow, start, step, train_epoch, validate
from cssgan.training.saving import refuse_other_tensors, resume_run, save_run, training_tensors
from cssgan.training.schedule import Phase
from cssgan.training.schema import CheckpointError, checksum_of
from cssgan.training.trainer import Keeper, StopButton, Stopped, advance, fit

JOINT = replace(AVERAGED, phases=(Phase("joint", 2),))


@pytest.fixture(scope="module")
def data(): return noise()


def weights_after_every_update(monkeypatch):
    "A list that fills with S_A's last bias, after each update."
    seen = []
    def stepped(run, *how):
        losses = step(run, *how)
        seen.append(run.nets.S_A.net.last.bias.detach().clone())
        return losses
    monkeypatch.setattr(training, "step", stepped)
    return seen


# ---- what they are

def test_a_long_phase_is_averaged_as_the_formula_says(data, monkeypatch):
    run = start(replace(AVERAGED, averaging=0.5, phases=(Phase("segmentors", 5),)))
    expected, seen = run.nets.S_A.net.last.bias.detach().double(), weights_after_every_update(monkeypatch)
    for _ in range(5): train_epoch(run, data, progress=False); run.epoch, run.seen = run.epoch + 1, 0
    for n, weights in enumerate(seen):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights.double()
    assert len(seen) == 15 and (10 + 8) / (1 + 8) == 2, "both the warm-up and the decay decided"
    torch.testing.assert_close(run.averages.S_A.net.last.bias.double(), expected, rtol=1e-5, atol=1e-7)


def test_what_does_not_learn_is_its_own_average_to_the_last_bit(data):
    run = start(AVERAGED)
    train_epoch(run, data, progress=False)  # segmentors alone
    assert same(run.averages.G_A.state_dict(), run.nets.G_A.state_dict())
    assert not same(run.averages.S_A.state_dict(), run.nets.S_A.state_dict())


def test_weights_are_all_that_the_networks_have():
    assert not [*start(SHORT).nets.buffers()] and not [*start(replace(SHORT, resnet=True)).nets.buffers()]


def test_training_goes_on_with_the_weights(data):
    plain, run = start(SHORT), start(AVERAGED)
    for one in (plain, run): train_epoch(one, data, progress=False)
    assert same(plain.nets.state_dict(), run.nets.state_dict()) and plain.losses == run.losses


def test_without_averaging_nothing_is_copied():
    run = start(SHORT)
    assert run.averages is None and run.result is run.nets


def test_averages_begin_with_the_bias_that_the_weights_begin_with():
    run, data = start(AVERAGED), noise()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "never_drawn", lambda samples: {3})
        begin_with_background(run, data)
    assert run.averages.S_A.net.last.bias[3] == UNLIKELY


def test_a_phase_leaves_its_averages_and_the_next_begins_anew_from_them(data, tmp_path, monkeypatch):
    config = replace(AVERAGED, phases=(Phase("segmentors", 2), Phase("joint", 1)))
    run, asked = start(config, ranges=data.ranges()), []
    monkeypatch.setattr(training, "follow", lambda *how: (asked.append(how[3]), follow(*how)))
    keep = Keeper(tmp_path / "last", data, StopButton())
    advance(run, data, tmp_path, keep, progress=False)
    assert not same(run.nets.state_dict(), run.averages.state_dict())
    advance(run, data, tmp_path, keep, progress=False)
    assert same(run.nets.state_dict(), run.averages.state_dict())
    assert same(run.evaluators.S_A.state_dict(), run.averages.S_A.state_dict())
    advance(run, data, tmp_path, keep, progress=False)
    assert asked == [*range(6), *range(3)]


# ---- what is scored and kept

def test_the_averages_are_scored(data):
    run = start(AVERAGED)
    for net in run.averages.children(): net.requires_grad_(False).apply(spoil)
    spoilt = replace(run, nets=run.averages, averages=None)
    assert validate(run, data) == validate(spoilt, data) != validate(replace(run, averages=None), data)


def spoil(layer):
    if getattr(layer, "bias", None) is not None: layer.bias += torch.arange(len(layer.bias)) / 3


def test_best_and_what_fit_returns_are_averages_and_last_has_both(data, tmp_path):
    seen = {}
    def watch(run, keep):
        if run.phase == 0 and run.epoch == 1 and run.seen == 0:
            keep.save(run)
            seen.update(nets=frozen(run.nets), averages=frozen(run.averages))
    run = fit(data, JOINT, tmp_path / "two", progress=False, callback=watch)
    assert not same(seen["nets"], seen["averages"])
    one = start(JOINT, ranges=data.ranges())
    advance(one, data, tmp_path / "one", Keeper(tmp_path / "one/last", data, StopButton(), 0), progress=False)
    nets, _, tensors = load_checkpoint(tmp_path / "one/last", with_training=True)
    assert same(nets.state_dict(), seen["nets"])
    assert same({n.removeprefix("average."): t for n, t in tensors.items() if "average." in n}, seen["averages"])
    assert same(load_checkpoint(tmp_path / "one/best").nets.state_dict(), seen["averages"])
    assert same(load_checkpoint(tmp_path / "two/best").nets.state_dict(), run.nets.state_dict())
    assert same(run.result.state_dict(), run.nets.state_dict())


@pytest.mark.parametrize("keep, kept", [("best", 1), ("last", 3)])
def test_the_last_epoch_is_kept_if_that_is_asked_for(data, tmp_path, monkeypatch, keep, kept):
    scores = iter([90, 10, 30])
    monkeypatch.setattr(trainer, "validate", lambda *_: dict.fromkeys(("dice_CT", "dice_MRI"), next(scores)))
    run = fit(data, replace(SHORT, keep=keep, phases=(Phase("joint", 3),)), tmp_path, progress=False)
    assert len(load_checkpoint(tmp_path / "best").about["history"]) == kept
    assert same(load_checkpoint(tmp_path / "last").nets.state_dict(), run.nets.state_dict()) is (keep == "last")


def test_without_validation_labels_the_last_epoch_is_kept(tmp_path):
    data = UnpairedData(Random(2, "A", 0), Random(2, "B", 1), Random(1, "vA", 2, 1.1), Random(1, "vB", 3, 1.1))
    fit(data, replace(SHORT, phases=(Phase("joint", 2),)), tmp_path, progress=False)
    assert len(load_checkpoint(tmp_path / "best").about["history"]) == 2


# ---- going on

@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_a_run_with_averages_that_is_interrupted_ends_bit_for_bit_like_one_that_was_not(data, tmp_path, engine):
    config = replace(AVERAGED, engine=engine)
    whole = fit(data, config, tmp_path / "whole", progress=False)
    def stop(run, keep): keep.button.pressed = (run.phase, run.epoch, run.seen) in {(0, 0, 1), (1, 0, 0), (2, 1, 2)}
    for _ in range(3):
        with pytest.raises(Stopped): fit(data, config, tmp_path / "run", resume=True, progress=False, callback=stop)
    again = fit(data, config, tmp_path / "run", resume=True, progress=False)
    (a, b, c), (d, e, f) = state(tmp_path / "whole"), state(tmp_path / "run")
    assert same(a, d) and same(b, e) and c == f and "average.S_A.net.last.bias" in b
    assert same(whole.nets.state_dict(), again.nets.state_dict()) and whole.history == again.history


def test_a_run_of_a_version_without_averages_is_resumed(data, tmp_path):
    save_run(start(SHORT), tmp_path / "last", True, data)
    file = tmp_path / "last/checkpoint.json"
    said = {name: fact for name, fact in json.loads(file.read_text()).items() if name != "checksum"}
    del said["config"]["averaging"], said["config"]["keep"]
    file.write_text(json.dumps(said | {"checksum": checksum_of(said)}))
    assert resume_run(SHORT, tmp_path / "last", data).averages is None
    for other in ({"averaging": 0.9}, {"keep": "last"}):
        with pytest.raises(CheckpointError, match=next(iter(other))):
            resume_run(replace(SHORT, **other), tmp_path / "last", data)


def test_averages_that_a_run_does_not_have_are_refused(data):
    plain, run = start(SHORT), start(AVERAGED)
    for one, tensors in ((plain, training_tensors(run)), (run, training_tensors(plain))):
        with pytest.raises(CheckpointError, match="average"): refuse_other_tensors(one, tensors, data, "a folder")
