"The networks: any size in, the same size out; the paper's shape; reproducible; every weight can learn."
from copy import deepcopy

import pytest
import torch
from torch import nn

from cssgan.fast import networks
from cssgan.fast.networks import PLAIN, QUICK, accelerate, decelerate
from cssgan.models import (
    Generator,
    Networks,
    PatchDiscriminator,
    ResnetGenerator,
    Segmentor,
    crop_like,
    pad_to_multiple,
    patch_size,
)

SIZES = [(16, 16, 16), (17, 23, 9), (8, 24, 5), (1, 1, 1), (30, 7, 12)]
MAKERS = {
    "Generator": lambda: Generator(4),
    "Segmentor": lambda: Segmentor(4),
    "ResnetGenerator": lambda: ResnetGenerator(4, blocks=1),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_any_size_comes_out_as_it_went_in(name, size):
    with torch.no_grad(): out = MAKERS[name]()(torch.randn(1, 1, *size))
    assert out.shape == (1, 6 if name == "Segmentor" else 1, *size) and out.isfinite().all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_discriminator_scores_any_size(size):
    with torch.no_grad(): out = PatchDiscriminator(4, 2)(torch.randn(2, 1, *size))
    assert out.shape[:2] == (2, 1) and out.numel() > 0 and out.isfinite().all()


@pytest.mark.parametrize("name", ["Generator", "ResnetGenerator"])
def test_translations_stay_between_minus_one_and_one(name):
    with torch.no_grad(): out = MAKERS[name]()(100 * torch.randn(1, 1, 16, 16, 16))
    assert out.abs().max() <= 1


@pytest.mark.parametrize("layers, size", [(1, 16), (2, 34), (3, 70)])
def test_patch_is_as_large_as_said(layers, size):
    D = PatchDiscriminator(2, layers)
    assert patch_size(D) == size
    local = nn.Sequential(
        *[m for m in D.net if not isinstance(m, nn.InstanceNorm3d)]
    )  # the norm looks at the whole volume
    for m in local.modules():
        if isinstance(m, nn.Conv3d): nn.init.constant_(m.weight, 0.01)
    x = torch.zeros(1, 1, 160, 32, 32, requires_grad=True)
    scores = local(x)
    scores[0, 0, scores.shape[2] // 2].sum().backward()
    assert (x.grad != 0).any(4).any(3).sum().item() == size


def test_the_papers_blocks():
    G, S = Generator(4), Segmentor(4)
    strided = [m for m in G.modules() if isinstance(m, nn.Conv3d) and m.stride == (2, 2, 2)]
    assert len(strided) == 3 and all(m.kernel_size == (3, 3, 3) for m in strided)
    assert any(isinstance(m, nn.InstanceNorm3d) for m in G.modules()) and not any(
        isinstance(m, nn.MaxPool3d) for m in G.modules()
    )
    assert sum(isinstance(m, nn.MaxPool3d) for m in S.modules()) == 3
    assert not any("Norm" in type(m).__name__ for m in S.modules())
    assert any(isinstance(m, nn.LeakyReLU) for m in PatchDiscriminator(4).modules())


def test_same_seed_same_weights_and_the_callers_randomness_is_left_alone():
    torch.manual_seed(7)
    a = Networks(4, 1, seed=3).state_dict()
    after = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(3))
    b, c = Networks(4, 1, seed=3).state_dict(), Networks(4, 1, seed=4).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(
        a["G_A.net.first.0.0.weight"], c["G_A.net.first.0.0.weight"]
    )


def test_the_two_of_a_kind_begin_differently():
    nets = Networks(4, 1)
    for a, b in ((nets.G_A, nets.G_B), (nets.D_A, nets.D_B), (nets.S_A, nets.S_B)):
        assert not torch.equal(next(a.parameters()), next(b.parameters()))


@pytest.mark.parametrize("name", ["G_A", "G_B", "D_A", "D_B", "S_A", "S_B"])
def test_every_weight_has_a_finite_gradient(name):
    torch.manual_seed(0)
    net = getattr(Networks(4, 1), name)
    net(torch.randn(1, 1, 16, 16, 16)).square().mean().backward()
    for key, p in net.named_parameters(): assert p.grad is not None and p.grad.isfinite().all(), key
    assert sum((p.grad != 0).any().item() for p in net.parameters()) > 0.8 * len(list(net.parameters()))


def test_padding_repeats_the_edge_and_is_undone():
    x = torch.randn(1, 2, 5, 8, 9)
    y = pad_to_multiple(x, 8)
    assert (
        y.shape == (1, 2, 8, 8, 16)
        and torch.equal(y[:, :, :5, :, :9], x)
        and torch.equal(y[:, :, 7, :, 15], x[:, :, 4, :, 8])
    )
    assert (
        torch.equal(crop_like(y, x), x)
        and pad_to_multiple(y, 8) is y
        and pad_to_multiple(x, 1, (4, 9, 12)).shape[2:] == (5, 9, 12)
    )


def litter():
    "Leave no-numbers in the memory that is handed out next."
    for _ in range(3): [torch.full((n,), float("nan")) for n in (100, 1000, 5000, 28000, 60000, 200000)]


@pytest.mark.parametrize(
    "size", [(16, 16, 16), (9, 17, 12), (16, 24, 8), (24, 24, 16), (32, 16, 16), (40, 8, 8), (3, 40, 20)], ids=str
)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name", ["Generator", "Segmentor", "ResnetGenerator", "Discriminator 1", "Discriminator 2", "Discriminator 3"]
)
def test_gradients_of_mixed_precision_are_right_at_small_sizes(name, size):
    "Some bfloat16 kernels return uninitialised memory where an axis gets very short; no network may come there."
    torch.manual_seed(0)
    net = accelerate(MAKERS[name]() if name in MAKERS else PatchDiscriminator(4, int(name[-1])))
    x, grads = torch.randn(1, 1, *size), []
    for fast in (False, True, True):  # the slow kernels are the reference
        net.zero_grad(set_to_none=True)
        with torch.backends.mkldnn.flags(enabled=fast), torch.autocast("cpu", torch.bfloat16):
            out = net(x)
            litter()
            (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads[1:])), "twice the same, twice different"
    kernels = [
        (key, slow, fast) for (key, _), slow, fast in zip(net.named_parameters(), *grads[:2]) if slow.dim() == 5
    ]  # a bias of four numbers is all rounding
    for key, slow, fast in kernels:
        assert (slow - fast).norm() < 0.5 * slow.norm() + 1e-3 * max(g.norm() for g in grads[0]), key


def test_mixed_precision_changes_little():
    torch.manual_seed(0)
    S, x = Segmentor(4).eval(), torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        exact, mixed = S(x), accelerate(S)(x)
    assert (exact - mixed).abs().max() < 0.05 * exact.abs().max() + 0.05


@pytest.mark.parametrize("size", [(24, 24, 16), (19, 30, 22)])
@pytest.mark.parametrize("name", [*MAKERS, "PatchDiscriminator1", "PatchDiscriminator2"])
def test_gradients_are_right_in_the_channels_last_layout(monkeypatch, name, size):
    "PyTorch's instance norm has a wrong gradient at batch size 1 where the gradient comes with channels last."
    torch.manual_seed(0)
    plain = MAKERS[name]() if name in MAKERS else PatchDiscriminator(4, int(name[-1]))
    quick = accelerate(deepcopy(plain))
    x, grads = torch.randn(1, 1, *size), []
    monkeypatch.setattr(networks, "has_fast_bfloat16", lambda device: False)
    for net, dtype in ((plain, torch.float64), (quick, torch.float32)):
        out = net.to(dtype)(x.to(dtype))
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)).sum().backward()
        grads.append([p.grad.double() for p in net.parameters()])
    for (key, _), exact, ours in zip(plain.named_parameters(), *grads):
        assert (ours - exact).norm() < 1e-3 * exact.norm() + 1e-6 * max(g.norm() for g in grads[0]), key


# ---- plain and quick

def kinds(net): return [type(layer) for layer in net.modules()]


@pytest.mark.parametrize("resnet", [False, True])
def test_plain_networks_are_made_of_pytorchs_own_layers(resnet):
    "And of our containers: no layout, no precision."
    nets = Networks(4, 1, resnet=resnet)
    leaves = {type(layer) for layer in nets.modules() if not list(layer.children())} - {networks.Join}
    assert all(kind.__module__.startswith("torch.nn") for kind in leaves)
    assert all(weight.is_contiguous() for weight in nets.parameters()) and not any(True for _ in nets.buffers())


@pytest.mark.parametrize("resnet", [False, True])
def test_accelerating_keeps_names_weights_and_the_very_parameters(resnet):
    nets = Networks(4, 1, resnet=resnet, seed=2)
    before, parameters, layers = nets.state_dict(), dict(nets.named_parameters()), dict(nets.named_modules())
    before = {name: weight.clone() for name, weight in before.items()}
    assert accelerate(nets) is nets
    assert nets.state_dict().keys() == before.keys() and all(
        torch.equal(nets.state_dict()[n], w) for n, w in before.items()
    )
    assert all(weight is parameters[name] for name, weight in nets.named_parameters())
    assert all(layer is layers[name] for name, layer in nets.named_modules())


def test_accelerating_twice_is_accelerating_once_and_it_can_be_undone():
    nets = Networks(4, 1)
    plain, quick = kinds(nets), kinds(accelerate(nets))
    assert kinds(accelerate(nets)) == quick != plain
    assert kinds(decelerate(nets)) == plain and all(weight.is_contiguous() for weight in nets.parameters())
    assert len(PLAIN) == len(QUICK) + 3 and not set(PLAIN) & set(QUICK)


def test_copies_and_pickles_of_quick_networks_stay_quick(tmp_path):
    nets, x = accelerate(Networks(4, 1)), torch.rand(1, 1, 16, 16, 16)
    torch.save(nets, tmp_path / "nets.pt")
    for again in (deepcopy(nets), torch.load(tmp_path / "nets.pt", weights_only=False)):
        assert kinds(again) == kinds(nets) and torch.equal(again.S_A(x), nets.S_A(x))


def test_only_what_has_a_quick_equal_is_exchanged():
    "A layer of somebody else's keeps its class: another size, stride or padding, and a doubling of its own."
    others = nn.Sequential(
        nn.Conv3d(1, 2, 5),
        nn.Conv3d(2, 2, 3),
        nn.Conv3d(2, 2, 3, 2, padding=1),
        nn.Upsample(scale_factor=2),
        nn.Conv3d(2, 2, 3, padding=1, padding_mode="replicate"),
        nn.Conv3d(2, 2, 3, padding=1, groups=2),
    )
    before = kinds(others)
    assert kinds(accelerate(others)) == before


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_quick_network_chooses_its_precision_and_answers_in_that_of_its_input(monkeypatch, bfloat16):
    monkeypatch.setattr(networks, "has_fast_bfloat16", lambda device: bfloat16)
    S, x, seen = accelerate(Segmentor(4)), torch.rand(1, 1, 16, 16, 16), []
    S.net.last.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    assert S(x).dtype == torch.float32 and S.double()(x.double()).dtype == torch.float64
    assert seen == [torch.bfloat16 if bfloat16 else torch.float32, torch.float64]
    assert networks.which_path(x.device).startswith("bfloat16" if bfloat16 else "float32")
