"Runs so small that they end in seconds, for the tests of training."
from dataclasses import replace

import torch

from cssgan.data.datasets import UnpairedData
from cssgan.scans.volumes import IGNORE, Grid
from cssgan.training.checkpoints import load_checkpoint
from cssgan.training.schedule import Config, Phase

TINY = Grid((24, 24, 16), (7.0, 7.0, 8.0))
SHORT = Config(TINY, 4, 1, phases=(Phase("segmentors", 1), Phase("generators", 1), Phase("joint", 1, 1)), lr=1e-3,
               pool_size=2)
AVERAGED = replace(SHORT, averaging=0.9)


class Random:
    "Volumes of noise, with random labels; `missing`: this share of the labels is unknown, more in later cases."
    def __init__(self, n, name, seed, missing=0.0):
        rng = torch.Generator().manual_seed(seed)
        self.cases = [f"{name}{i}" for i in range(n)]
        self.made = [(torch.rand(1, 16, 16, 16, generator=rng) * 2 - 1,
                      torch.randint(0, 6, (16, 16, 16), generator=rng), case) for case in self.cases]
        for i, (_, labels, _) in enumerate(self.made):
            labels[torch.rand(labels.shape, generator=rng) < missing * (i + 1) / n] = IGNORE

    def __len__(self): return len(self.made)
    def __getitem__(self, i): return self.made[i]
    def prepared(self, case): return {"range": torch.tensor([0.0, 100.0])}


def noise(n_A=3, n_B=2, missing=0.0):
    "Noise of both domains to train with, and one volume of each to validate with."
    return UnpairedData(Random(n_A, "A", 0, missing), Random(n_B, "B", 1, missing), Random(1, "vA", 2),
                        Random(1, "vB", 3))


def frozen(net): return {k: v.clone() for k, v in net.state_dict().items()}
def changed(net, before): return any(not torch.equal(v, before[k]) for k, v in net.state_dict().items())
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def state(folder):
    "Everything that the last checkpoint of a run holds: weights, the tensors of training, and the words."
    nets, about, tensors = load_checkpoint(folder / "last", with_training=True)
    words = "history", "phase", "epoch", "seen", "losses", "config", "ranges", "data"
    return nets.state_dict(), tensors, {word: about[word] for word in words}
