"The networks: any size in, the same size out; the paper's shape; reproducible; every weight can learn."
import pytest
import torch
from torch import nn

from cssgan.models import (Conv3x3, Doubling, FoldedConv, FoldedNorm, Generator, InstanceNorm, Networks, PatchDiscriminator, ResnetGenerator, Segmentor, UpConv3d,
                           conv_block, crop_like, mixed_precision, pad_to_multiple, patch_size)

SIZES = [(16, 16, 16), (17, 23, 9), (8, 24, 5), (1, 1, 1), (30, 7, 12)]
MAKERS = {"Generator": lambda: Generator(4), "Segmentor": lambda: Segmentor(4), "ResnetGenerator": lambda: ResnetGenerator(4, blocks=1)}


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
    local = nn.Sequential(*[m for m in D.net if not isinstance(m, nn.InstanceNorm3d)])  # the norm looks at the whole volume
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
    assert any(isinstance(m, nn.InstanceNorm3d) for m in G.modules()) and not any(isinstance(m, nn.MaxPool3d) for m in G.modules())
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
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["G_A.net.first.0.0.weight"], c["G_A.net.first.0.0.weight"])


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
    assert y.shape == (1, 2, 8, 8, 16) and torch.equal(y[:, :, :5, :, :9], x) and torch.equal(y[:, :, 7, :, 15], x[:, :, 4, :, 8])
    assert torch.equal(crop_like(y, x), x) and pad_to_multiple(y, 8) is y and pad_to_multiple(x, 1, (4, 9, 12)).shape[2:] == (5, 9, 12)


def litter():
    "Leave no-numbers in the memory that is handed out next."
    for _ in range(3): [torch.full((n,), float("nan")) for n in (100, 1000, 5000, 28000, 60000, 200000)]


@pytest.mark.parametrize("size", [(16, 16, 16), (9, 17, 12), (16, 24, 8), (24, 24, 16), (32, 16, 16), (40, 8, 8), (3, 40, 20)], ids=str)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["Generator", "Segmentor", "ResnetGenerator", "Discriminator 1", "Discriminator 2", "Discriminator 3"])
def test_gradients_of_mixed_precision_are_right_at_small_sizes(name, size):
    "Some bfloat16 kernels return uninitialised memory where an axis gets very short; no network may come there."
    torch.manual_seed(0)
    net = MAKERS[name]() if name in MAKERS else PatchDiscriminator(4, int(name[-1]))
    x, grads = torch.randn(1, 1, *size), []
    for fast in (False, True, True):  # the slow kernels are the reference
        net.zero_grad(set_to_none=True)
        with torch.backends.mkldnn.flags(enabled=fast), torch.autocast("cpu", torch.bfloat16):
            out = net(x)
            litter()
            (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads[1:])), "twice the same, twice different"
    kernels = [(key, slow, fast) for (key, _), slow, fast in zip(net.named_parameters(), *grads[:2]) if slow.dim() == 5]  # a bias of four numbers is all rounding
    for key, slow, fast in kernels: assert (slow - fast).norm() < 0.5 * slow.norm() + 1e-3 * max(g.norm() for g in grads[0]), key


def test_mixed_precision_changes_little():
    torch.manual_seed(0)
    S, x = Segmentor(4).eval(), torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        exact = S(x)
        with mixed_precision(x.device): mixed = S(x).float()
    assert (exact - mixed).abs().max() < 0.05 * exact.abs().max() + 0.05


@pytest.mark.parametrize("size", [(24, 24, 16), (19, 30, 22)])
@pytest.mark.parametrize("name", [*MAKERS, "PatchDiscriminator1", "PatchDiscriminator2"])
def test_gradients_are_right_in_the_channels_last_layout(name, size):
    "PyTorch's instance norm has a wrong gradient at batch size 1 where the gradient comes with channels last."
    torch.manual_seed(0)
    net = (MAKERS[name]() if name in MAKERS else PatchDiscriminator(4, int(name[-1]))).to(memory_format=torch.channels_last_3d)
    x, grads = torch.randn(1, 1, *size), []
    for dtype in (torch.float64, torch.float32):
        net.to(dtype).zero_grad(set_to_none=True)
        out = net(x.to(dtype))
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)).sum().backward()
        grads.append([p.grad.double() for p in net.parameters()])
    for (key, _), exact, ours in zip(net.named_parameters(), *grads): assert (ours - exact).norm() < 1e-3 * exact.norm() + 1e-6 * max(g.norm() for g in grads[0]), key


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 2, 5)])
def test_upconv_is_nearest_doubling_and_a_convolution(bias, size):
    torch.manual_seed(0)
    layer, x = UpConv3d(3, 2, bias).double(), torch.randn(2, 3, *size).double().requires_grad_()
    plain = torch.nn.functional.conv3d(torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"), layer.weight, layer.bias, padding=1)
    pull = torch.randn_like(plain)
    for ours, theirs in zip(torch.autograd.grad(layer(x), [x, *layer.parameters()], pull), torch.autograd.grad(plain, [x, *layer.parameters()], pull)):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.allclose(layer(x), plain, rtol=1e-12, atol=1e-12) and set(layer.state_dict()) == {"weight", "bias"} - ({"bias"} if not bias else set())


def gradients(y, of, pull):
    "What autograd makes of `pull`; None where a tensor needs none."
    return torch.autograd.grad(y, [t for t in of if t.requires_grad], pull)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("depth", [8, 6, 5])  # divides by four voxels, by two, by none
@pytest.mark.parametrize("c_in, c_out", [(1, 8), (8, 8), (16, 8), (8, 16), (4, 4), (2, 5), (3, 20)])
def test_folded_convolution_is_the_plain_one(c_in, c_out, depth, bias):
    torch.manual_seed(0)
    layer, x = Conv3x3(c_in, c_out, bias).double(), torch.randn(2, c_in, 3, 5, depth).double().requires_grad_()
    folded, plain = FoldedConv.apply(x, layer.weight, layer.bias), nn.functional.conv3d(x, layer.weight, layer.bias, padding=1)
    pull, leaves = torch.randn_like(plain), [x, *layer.parameters()]
    assert torch.allclose(folded, plain, rtol=0, atol=1e-11) and torch.equal(layer(x), plain)
    for ours, theirs in zip(gradients(folded, leaves, pull), gradients(plain, leaves, pull)): assert torch.allclose(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["input alone", "weights alone"])
def test_folded_convolution_gives_only_the_gradients_that_are_asked_for(needs):
    torch.manual_seed(0)
    x, weight, pull = torch.randn(1, 8, 4, 4, 4).requires_grad_(needs[0]), torch.randn(8, 8, 3, 3, 3).requires_grad_(needs[1]), torch.randn(1, 8, 4, 4, 4)
    ours, theirs = (gradients(y, (x, weight), pull) for y in (FoldedConv.apply(x, weight, None), nn.functional.conv3d(x, weight, padding=1)))
    assert len(ours) == len(theirs) == 1 and torch.allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("c_out", [2, 8, 12])  # folded, folded, not
def test_doubling_in_full_registers_is_the_plain_one(c_out, bias):
    torch.manual_seed(0)
    x, kernel = (torch.randn(shape).double().requires_grad_() for shape in ((2, 3, 3, 4, 5), (3, c_out, 4, 4, 4)))
    b = torch.randn(c_out).double().requires_grad_() if bias else None
    ours, theirs = Doubling.apply(x, kernel, b), nn.functional.conv_transpose3d(x, kernel, b, stride=2, padding=1)
    pull, leaves = torch.randn_like(theirs), [x, kernel] + [b] * bias
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-11)
    for a, b in zip(gradients(ours, leaves, pull), gradients(theirs, leaves, pull)): assert torch.allclose(a, b, rtol=0, atol=1e-11)


def test_registers_are_filled_in_mixed_precision_on_a_cpu_and_only_there():
    x = torch.randn(1, 8, 4, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert type(conv_block(8, 8, norm=False)[0](x).grad_fn).__name__ == "FoldedConvBackward" and UpConv3d(8, 8)(x).grad_fn.name() == "DoublingBackward"
        assert "Folded" not in conv_block(8, 16, stride=2, norm=False)[0](x).grad_fn.name() and "Folded" not in Conv3x3(16, 16)(torch.randn(1, 16, 4, 4, 4)).grad_fn.name()
        assert Conv3x3(8, 8).to("meta")(x.to("meta")).device.type == "meta"
    assert "Folded" not in Conv3x3(8, 8)(x).grad_fn.name() and "Doubling" not in UpConv3d(8, 8)(x).grad_fn.name()


@pytest.mark.parametrize("layer", [Conv3x3(8, 8), Conv3x3(1, 8), Conv3x3(16, 8, bias=False), UpConv3d(16, 8)], ids=str)
def test_full_registers_move_nothing_in_memory(layer):
    with torch.autocast("cpu", torch.bfloat16): y = layer(torch.randn(1, layer.in_channels, 8, 8, 8).to(memory_format=torch.channels_last_3d))
    assert y.is_contiguous(memory_format=torch.channels_last_3d) and y.dtype == torch.bfloat16 and not y._is_view()


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize("size", [(4, 4, 4), (3, 5, 2), (3, 5, 7)], ids=str)  # 32 neighbours, 2, 1
@pytest.mark.parametrize("channels", [1, 8, 20])
def test_folded_norm_is_the_plain_one(channels, size, last):
    torch.manual_seed(0)
    layout = {"memory_format": torch.channels_last_3d if last else torch.contiguous_format}
    norm, x = nn.InstanceNorm3d(channels, affine=True).double(), (3 * torch.randn(1, channels, *size).double() + 5).to(**layout).requires_grad_()
    for weight in norm.parameters(): nn.init.normal_(weight)
    folded, plain, pull = FoldedNorm.apply(x, norm.weight, norm.bias, norm.eps), norm(x.contiguous()), torch.randn(1, channels, *size).double() + 1
    leaves = [x, *norm.parameters()]
    assert torch.allclose(folded, plain, rtol=0, atol=1e-11)
    for ours, theirs in zip(gradients(folded, leaves, pull.to(**layout)), gradients(plain, leaves, pull)): assert torch.allclose(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("last", [True, False], ids=["gradient with channels last", "gradient with channels first"])
@pytest.mark.parametrize("shape", [(1, 8, 16, 16, 16), (1, 8, 48, 48, 16), (1, 20, 24, 24, 24), (2, 8, 16, 16, 16)], ids=str)  # batch norm, folded, folded, PyTorch's own
def test_norm_of_mixed_precision_is_right_but_for_rounding(shape, last):
    "Within two roundings to bfloat16; and what is left of the gradient's mean is nothing, since no shift of a volume matters."
    torch.manual_seed(0)
    norm, x = InstanceNorm(shape[1], affine=True), (3 * torch.randn(shape) * (torch.rand(shape) < .5) + 5).bfloat16().to(memory_format=torch.channels_last_3d).requires_grad_()
    for weight in norm.parameters(): nn.init.uniform_(weight, .5, 2)
    pull = (torch.randn(shape) + torch.randn(1, shape[1], 1, 1, 1)).bfloat16().to(memory_format=torch.channels_last_3d if last else torch.contiguous_format)
    with torch.autocast("cpu", torch.bfloat16): y = norm(x)
    ours, exact = [y, *gradients(y, [x, *norm.parameters()], pull)], nn.InstanceNorm3d(shape[1], affine=True).double()
    exact.load_state_dict(norm.state_dict())
    x64 = x.detach().double().contiguous().requires_grad_()
    theirs = [exact(x64), *gradients(exact(x64), [x64, *exact.parameters()], pull.double().contiguous())]
    for a, b, tolerance in zip(ours, theirs, (.003, .003, .001, .001)): assert (a.double() - b).norm() < tolerance * b.norm()
    assert (ours[1].double().mean((0, 2, 3, 4)).abs() < .001 * ours[1].double().abs().mean((0, 2, 3, 4))).all()
    assert y.is_contiguous(memory_format=torch.channels_last_3d) and y.dtype == torch.bfloat16 and not y._is_view()


def test_norms_fill_registers_for_one_large_volume_in_mixed_precision_and_only_there():
    kind = lambda x: type(InstanceNorm(8, affine=True)(x.requires_grad_()).grad_fn).__name__
    large, small = torch.randn(1, 8, 48, 48, 16), torch.randn(1, 8, 16, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert kind(large) == "FoldedNormBackward" and kind(small) == "NativeBatchNormBackward0"
        assert "Folded" not in kind(torch.randn(2, 8, 48, 48, 16)) and InstanceNorm(8)(large).shape == large.shape
    assert "Folded" not in kind(large)
