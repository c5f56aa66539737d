"What the joint loop is compared with gets the same data, the same start and the same number of updates."
from collections import Counter
from dataclasses import replace

import pytest
import torch

from cssgan.data.datasets import UnpairedData
from cssgan.joint import round_trips
from cssgan.models import Networks
from cssgan.scans.volumes import Grid
from cssgan.training import run as training
from cssgan.training.baselines import (
    HalfAndHalf,
    RealFakeRec,
    SyntheticSamples,
    in_place_of_joint,
    translate_offline,
)
from cssgan.training.schedule import Config, Phase
from cssgan.training.trainer import fit

CONFIG = Config(Grid((24, 16, 16), (7.0, 7.0, 8.0)), 4, 1, phases=(Phase("joint", 1, 1),), lr=1e-3)


class Random:
    "Volumes of noise, with random labels, one by one."
    def __init__(self, n, name, seed):
        rng = torch.Generator().manual_seed(seed)
        self.cases = list(range(n))
        self.made = [(torch.rand(1, 24, 16, 16, generator=rng) * 2 - 1,
                      torch.randint(0, 6, (24, 16, 16), generator=rng), f"{name}{i}") for i in range(n)]

    def __len__(self): return len(self.made)
    def __getitem__(self, i): return self.made[i]
    def prepared(self, case): return {"range": torch.tensor([0.0, 100.0])}


@pytest.fixture(scope="module")
def nets(): return Networks(4, 1, seed=2).eval()


@pytest.fixture(scope="module")
def data(): return UnpairedData(Random(3, "a", 0), Random(2, "b", 1), Random(1, "va", 2), Random(1, "vb", 3))


@pytest.fixture(scope="module")
def offline(nets, data, tmp_path_factory): return translate_offline(nets, data, tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="module")
def mixed(data, offline): return HalfAndHalf(data.train_A, data.train_B, data.valid_A, data.valid_B, *offline)


def test_synthetic_data_are_translated_and_reconstructed(offline):
    A, B = ([s[i][2] for i in range(len(s))] for s in offline)
    assert sorted(A) == ["fake_A_of_b0", "fake_A_of_b1", "rec_A_of_a0", "rec_A_of_a1", "rec_A_of_a2"]
    assert sorted(B) == ["fake_B_of_a0", "fake_B_of_a1", "fake_B_of_a2", "rec_B_of_b0", "rec_B_of_b1"]


def test_synthetic_volumes_are_the_generators_and_have_their_sources_labels(nets, data, offline):
    by_name = {s[i][2]: s[i] for s in offline for i in range(len(s))}
    real, labels, _ = data.train_A[1]
    with torch.no_grad():
        fake = nets.G_B(real[None])
        rec = nets.G_A(fake)
    for name, made in (("fake_B_of_a1", fake), ("rec_A_of_a1", rec)):
        volume, y, _ = by_name[name]
        assert volume.dtype == torch.float32 and (volume - made[0].float()).abs().max() < 2e-3
        assert torch.equal(y, labels)
    assert torch.equal(by_name["fake_A_of_b0"][1], data.train_B[0][1])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_batch_is_half_real_half_synthetic(mixed, data, batch_size):
    real, half = list(data.epoch(0, 4, batch_size)), list(mixed.epoch(0, 4, batch_size))
    assert len(real) == len(half) and mixed.length() == data.length()
    for r, h in zip(real, half):
        n = len(r.real_A)
        assert torch.equal(h.real_A[:n], r.real_A) and torch.equal(h.y_A[:n], r.y_A)
        assert torch.equal(h.real_B[:n], r.real_B)
        assert len(h.real_A) == len(h.y_A) == 2 * n and len(h.real_B) == len(h.y_B) == 2 * n
        kinds = Counter(i.split("_")[0] for i in h.ids)
        assert kinds["fake"] + kinds["rec"] >= 2 * n
        assert {i for i in h.ids if not i.startswith(("fake", "rec"))} == set(r.ids)
        for volume, y in zip(h.real_A[n:], h.y_A[n:]):
            assert any(torch.equal(volume, v) and torch.equal(y, l) for v, l, _ in mixed.synthetic_A)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_thirds_are_what_the_joint_loop_would_have_made_of_the_same_pairs(data, offline, nets, batch_size):
    thirds = RealFakeRec(data.train_A, data.train_B, data.valid_A, data.valid_B, *offline)
    for pair, both in zip(data.epoch(0, 4, batch_size), thirds.epoch(0, 4, batch_size), strict=True):
        with torch.no_grad(): passes = round_trips(nets, pair.real_A, pair.real_B)
        of_A = (pair.real_A, pair.y_A), (passes.fake_A, pair.y_B), (passes.rec_A, pair.y_A)
        of_B = (pair.real_B, pair.y_B), (passes.fake_B, pair.y_A), (passes.rec_B, pair.y_B)
        for (volumes, labels), seen in (((both.real_A, both.y_A), of_A), ((both.real_B, both.y_B), of_B)):
            assert torch.equal(labels, torch.cat([y for _, y in seen]))
            assert (volumes - torch.cat([x for x, _ in seen])).abs().max() < 2e-3  # kept in half precision
        kinds = Counter(id.split("_")[0] for id in both.ids)
        assert kinds["fake"] == kinds["rec"] == 2 * batch_size and len(both.ids) == 6 * batch_size


def test_thirds_go_on_where_an_epoch_was_interrupted_and_change_every_volume(data, offline):
    thirds = RealFakeRec(data.train_A, data.train_B, data.valid_A, data.valid_B, *offline, pairs=4)
    whole = list(thirds.epoch(0, 4))
    assert [b.ids for b in thirds.epoch(0, 4, seen=1)] == [b.ids for b in whole[1:]] and len(whole) == 4


def test_all_of_the_synthetic_data_is_used(mixed):
    seen = {i for epoch in range(12) for b in mixed.epoch(0, epoch) for i in b.ids}
    assert {s[i][2] for s in (mixed.synthetic_A, mixed.synthetic_B) for i in range(len(s))} <= seen


def test_few_synthetic_volumes_are_used_again(data, offline):
    few = HalfAndHalf(data.train_A, data.train_B, data.valid_A, data.valid_B, SyntheticSamples(offline[0].files[:1]),
                      SyntheticSamples(offline[1].files[:1]))
    assert [len(b.real_A) for b in few.epoch(0, 0)] == [2, 2, 2]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_epoch_that_was_interrupted_goes_on_with_the_same_synthetic_volumes(mixed, batch_size):
    whole = [b.ids for b in mixed.epoch(0, 4, batch_size)]
    assert [b.ids for b in mixed.epoch(0, 4, batch_size, seen=batch_size)] == whole[1:]


def test_processes_share_the_synthetic_volumes_too(mixed):
    together = [Counter(b.ids) for b in mixed.epoch(0, 4, 2)]
    shares = zip(*(mixed.epoch(0, 4, 1, 0, (which, 2)) for which in range(2)))
    assert [Counter(one.ids) + Counter(other.ids) for one, other in shares] == together


def test_the_order_is_a_function_of_seed_and_epoch(mixed):
    ids = lambda *at: [b.ids for b in mixed.epoch(*at)]
    assert ids(0, 1) == ids(0, 1) and ids(0, 1) != ids(0, 2) and ids(0, 1) != ids(1, 1)


def test_the_same_course_with_another_phase():
    config = replace(CONFIG, phases=(Phase("segmentors", 3), Phase("joint", 5, 4, patience=2)))
    baseline = in_place_of_joint(config, "segmentors")
    assert baseline.phases == (Phase("segmentors", 3), Phase("segmentors", 5, 4, patience=2))
    assert replace(baseline, phases=config.phases) == config


def test_all_arms_make_the_same_number_of_updates_from_the_same_start(nets, data, mixed, tmp_path, monkeypatch):
    made, starts = Counter(), []
    original = training.step
    def count(run, phase, batch):
        if not made[arm]: starts.append(next(run.nets.S_A.parameters()).clone())
        made[arm] += 1
        return original(run, phase, batch)
    monkeypatch.setattr(training, "step", count)
    for arm, samples, config in (("joint", data, CONFIG), ("baseline", data, in_place_of_joint(CONFIG, "segmentors")),
                                 ("ada", mixed, in_place_of_joint(CONFIG, "segmentors")),
                                 ("without shape", data, in_place_of_joint(CONFIG, "generators"))):
        fit(samples, config, tmp_path / arm, nets=nets, progress=False)
    assert set(made.values()) == {6} and len(made) == 4 and all(torch.equal(starts[0], s) for s in starts)
