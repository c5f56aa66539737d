"The same training on a CPU and on a GPU; where there is no GPU, the CPU's half alone."
import pytest
import torch
from test_joint import doubled, quick, steps
from tiny import SHORT, noise

from cssgan import joint
from cssgan.fast import step as fast
from cssgan.models import Networks
from cssgan.training.checkpoints import load_checkpoint
from cssgan.training.run import start, step, to_device
from cssgan.training.saving import resume_run, save_run, training_tensors

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def batches(device):
    "Three steps' volumes, on a device."
    return [to_device(batch, torch.device(device)) for batch in noise().epoch(0, 0)]


@pytest.mark.parametrize("device", DEVICES)
def test_three_fast_steps_are_three_plain_steps(device):
    nets, plain = (make(4, 1, seed=3).to(device, torch.float64) for make in (quick, Networks))
    three = [doubled(batch) for batch in batches(device)]
    for ours, literal in zip(steps(fast, nets, three), steps(joint, plain, three), strict=True):
        for name in literal: assert ours[name].item() == pytest.approx(literal[name].item(), rel=1e-9), name
    weights = plain.state_dict()
    for name, weight in nets.state_dict().items():
        assert torch.allclose(weight, weights[name], rtol=1e-9, atol=1e-9 * weights[name].abs().max().item()), name


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_of_any_device_is_read_on_the_cpu_and_goes_on_where_this_machine_trains(device, tmp_path):
    run = start(SHORT, device=torch.device(device))
    for batch in batches(device): step(run, "joint", batch)
    save_run(run, tmp_path, with_training=True)
    nets, _, _ = load_checkpoint(tmp_path)
    again = resume_run(SHORT, tmp_path)
    for name, weight in run.nets.state_dict().items():
        assert nets.state_dict()[name].device.type == "cpu" and torch.equal(nets.state_dict()[name], weight.cpu())
    kept, restored = training_tensors(run), training_tensors(again)
    assert kept.keys() == restored.keys() and all(
        torch.equal(restored[name].cpu(), tensor.cpu()) for name, tensor in kept.items()
    )
    assert all(torch.isfinite(loss) for loss in step(again, "joint", batches(again.device)[0]).values())
