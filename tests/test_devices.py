"The same training on a CPU and on a GPU; where there is no GPU, the CPU's half alone."
import sys

import pytest
import torch

from cssgan.checkpoints import load_checkpoint
from cssgan.datasets import Batch
from cssgan.joint import Pool, make_optimizers, update_discriminators, update_generators_and_segmentors
from cssgan.models import Networks
from cssgan.training import resume, save_run, start, step, to_device, training_tensors
from conftest import ROOT
from tiny import SHORT, noise

sys.path.append(str(ROOT / "bench"))
from plain import plain_networks, plain_optimizers, plain_step

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def batches(device, dtype=torch.float32):
    "Three steps' volumes, on a device."
    for real_A, y_A, real_B, y_B, ids in noise(3, 2).epoch(0, 0): yield to_device(Batch(real_A.to(dtype), y_A, real_B.to(dtype), y_B, ids), torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
def test_three_fast_steps_are_three_plain_steps(device):
    nets = Networks(4, 1, seed=3).to(device, torch.float64)
    plain = plain_networks(nets)
    fast_adams, plain_adams, pools = make_optimizers(nets, 1e-3), plain_optimizers(plain, 1e-3), {side: Pool(0) for side in "AB"}
    for batch in batches(device, torch.float64):
        passes, losses = update_generators_and_segmentors(nets, fast_adams, batch)
        losses |= update_discriminators(nets, fast_adams.D, batch, passes.fake_A, passes.fake_B)
        for name, loss in plain_step(plain, plain_adams, pools, None, batch).items(): assert losses[name].item() == pytest.approx(loss.item(), rel=1e-9), name
    weights = plain.state_dict()
    for name, weight in nets.state_dict().items(): assert torch.allclose(weight, weights[name], rtol=1e-9, atol=1e-9 * weights[name].abs().max().item()), name


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_of_any_device_is_read_on_the_cpu_and_goes_on_where_this_machine_trains(device, tmp_path):
    run = start(SHORT, device=torch.device(device))
    for batch in batches(device): step(run, "joint", batch)
    save_run(run, tmp_path, with_training=True)
    nets, _, _ = load_checkpoint(tmp_path)
    again = resume(SHORT, tmp_path)
    for name, weight in run.nets.state_dict().items():
        assert nets.state_dict()[name].device.type == "cpu" and torch.equal(nets.state_dict()[name], weight.cpu())
    kept, restored = training_tensors(run), training_tensors(again)
    assert kept.keys() == restored.keys() and all(torch.equal(restored[name].cpu(), tensor.cpu()) for name, tensor in kept.items())
    assert all(torch.isfinite(loss) for loss in step(again, "joint", next(batches(again.device))).values())
