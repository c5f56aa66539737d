"The quick layers: what fills the processor's registers computes what PyTorch's own layers compute."
import pytest
import torch
from torch import nn

from cssgan.fast.layers import Conv3x3, Doubling, FoldedConv, FoldedNorm, InstanceNorm, UpConv3d
from cssgan.fast.networks import accelerate
from cssgan.models import conv_block


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 2, 5)])
def test_upconv_is_nearest_doubling_and_a_convolution(bias, size):
    torch.manual_seed(0)
    layer, x = UpConv3d(3, 2, 3, padding=1, bias=bias).double(), torch.randn(2, 3, *size).double().requires_grad_()
    plain = torch.nn.functional.conv3d(
        torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"), layer.weight, layer.bias, padding=1
    )
    pull = torch.randn_like(plain)
    for ours, theirs in zip(
        torch.autograd.grad(layer(x), [x, *layer.parameters()], pull),
        torch.autograd.grad(plain, [x, *layer.parameters()], pull),
    ):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.allclose(layer(x), plain, rtol=1e-12, atol=1e-12) and set(layer.state_dict()) == {"weight", "bias"} - (
        {"bias"} if not bias else set()
    )


def gradients(y, of, pull):
    "What autograd makes of `pull`; None where a tensor needs none."
    return torch.autograd.grad(y, [t for t in of if t.requires_grad], pull)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("depth", [8, 6, 5])  # divides by four voxels, by two, by none
@pytest.mark.parametrize("c_in, c_out", [(1, 8), (8, 8), (16, 8), (8, 16), (4, 4), (2, 5), (3, 20)])
def test_folded_convolution_is_the_plain_one(c_in, c_out, depth, bias):
    torch.manual_seed(0)
    layer = Conv3x3(c_in, c_out, 3, padding=1, bias=bias).double()
    x = torch.randn(2, c_in, 3, 5, depth).double().requires_grad_()
    folded = FoldedConv.apply(x, layer.weight, layer.bias)
    plain = nn.functional.conv3d(x, layer.weight, layer.bias, padding=1)
    pull, leaves = torch.randn_like(plain), [x, *layer.parameters()]
    assert torch.allclose(folded, plain, rtol=0, atol=1e-11) and torch.equal(layer(x), plain)
    for ours, theirs in zip(gradients(folded, leaves, pull), gradients(plain, leaves, pull)):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["input alone", "weights alone"])
def test_folded_convolution_gives_only_the_gradients_that_are_asked_for(needs):
    torch.manual_seed(0)
    x = torch.randn(1, 8, 4, 4, 4).requires_grad_(needs[0])
    weight = torch.randn(8, 8, 3, 3, 3).requires_grad_(needs[1])
    pull = torch.randn(1, 8, 4, 4, 4)
    ours, theirs = (
        gradients(y, (x, weight), pull)
        for y in (FoldedConv.apply(x, weight, None), nn.functional.conv3d(x, weight, padding=1))
    )
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
    for a, b in zip(gradients(ours, leaves, pull), gradients(theirs, leaves, pull)):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)


def test_registers_are_filled_in_mixed_precision_on_a_cpu_and_only_there():
    def kind(layer, x): return type(layer(x).grad_fn).__name__
    x = torch.randn(1, 8, 4, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert kind(accelerate(conv_block(8, 8, norm=False))[0], x) == "FoldedConvBackward"
        assert kind(UpConv3d(8, 8, 3, padding=1), x) == "DoublingBackward"
        assert "Folded" not in kind(accelerate(conv_block(8, 16, stride=2, norm=False))[0], x)
        assert "Folded" not in kind(Conv3x3(16, 16, 3, padding=1), torch.randn(1, 16, 4, 4, 4))
        assert Conv3x3(8, 8, 3, padding=1).to("meta")(x.to("meta")).device.type == "meta"
    assert "Folded" not in kind(Conv3x3(8, 8, 3, padding=1), x) and "Doubling" not in kind(
        UpConv3d(8, 8, 3, padding=1), x
    )


@pytest.mark.parametrize(
    "layer",
    [
        Conv3x3(8, 8, 3, padding=1),
        Conv3x3(1, 8, 3, padding=1),
        Conv3x3(16, 8, 3, padding=1, bias=False),
        UpConv3d(16, 8, 3, padding=1),
    ],
    ids=str,
)
def test_full_registers_move_nothing_in_memory(layer):
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(1, layer.in_channels, 8, 8, 8).to(memory_format=torch.channels_last_3d))
    assert y.is_contiguous(memory_format=torch.channels_last_3d) and y.dtype == torch.bfloat16 and not y._is_view()


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize("size", [(4, 4, 4), (3, 5, 2), (3, 5, 7)], ids=str)  # 32 neighbours, 2, 1
@pytest.mark.parametrize("channels", [1, 8, 20])
def test_folded_norm_is_the_plain_one(channels, size, last):
    torch.manual_seed(0)
    layout = {"memory_format": torch.channels_last_3d if last else torch.contiguous_format}
    norm = nn.InstanceNorm3d(channels, affine=True).double()
    x = (3 * torch.randn(1, channels, *size).double() + 5).to(**layout).requires_grad_()
    for weight in norm.parameters(): nn.init.normal_(weight)
    folded = FoldedNorm.apply(x, norm.weight, norm.bias, norm.eps)
    plain = norm(x.contiguous())
    pull = torch.randn(1, channels, *size).double() + 1
    leaves = [x, *norm.parameters()]
    assert torch.allclose(folded, plain, rtol=0, atol=1e-11)
    for ours, theirs in zip(gradients(folded, leaves, pull.to(**layout)), gradients(plain, leaves, pull)):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("last", [True, False], ids=["gradient with channels last", "gradient with channels first"])
@pytest.mark.parametrize(
    "shape", [(1, 8, 16, 16, 16), (1, 8, 48, 48, 16), (1, 20, 24, 24, 24), (2, 8, 16, 16, 16)], ids=str
)  # batch norm, folded, folded, PyTorch's own
def test_norm_of_mixed_precision_is_right_but_for_rounding(shape, last):
    """Within two roundings to bfloat16.

    And what is left of the gradient's mean is nothing, since no shift of a volume matters."""
    torch.manual_seed(0)
    norm = InstanceNorm(shape[1], affine=True)
    x = 3 * torch.randn(shape) * (torch.rand(shape) < 0.5) + 5
    x = x.bfloat16().to(memory_format=torch.channels_last_3d).requires_grad_()
    for weight in norm.parameters(): nn.init.uniform_(weight, .5, 2)
    pull = (torch.randn(shape) + torch.randn(1, shape[1], 1, 1, 1)).bfloat16()
    pull = pull.to(memory_format=torch.channels_last_3d if last else torch.contiguous_format)
    with torch.autocast("cpu", torch.bfloat16): y = norm(x)
    ours, exact = [y, *gradients(y, [x, *norm.parameters()], pull)], nn.InstanceNorm3d(shape[1], affine=True).double()
    exact.load_state_dict(norm.state_dict())
    x64 = x.detach().double().contiguous().requires_grad_()
    theirs = [exact(x64), *gradients(exact(x64), [x64, *exact.parameters()], pull.double().contiguous())]
    for a, b, tolerance in zip(ours, theirs, (0.003, 0.003, 0.001, 0.001)):
        assert (a.double() - b).norm() < tolerance * b.norm()
    assert (ours[1].double().mean((0, 2, 3, 4)).abs() < .001 * ours[1].double().abs().mean((0, 2, 3, 4))).all()
    assert y.is_contiguous(memory_format=torch.channels_last_3d) and y.dtype == torch.bfloat16 and not y._is_view()


def test_norms_fill_registers_for_one_large_volume_in_mixed_precision_and_only_there():
    kind = lambda x: type(InstanceNorm(8, affine=True)(x.requires_grad_()).grad_fn).__name__
    large, small = torch.randn(1, 8, 48, 48, 16), torch.randn(1, 8, 16, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert kind(large) == "FoldedNormBackward" and kind(small) == "NativeBatchNormBackward0"
        assert "Folded" not in kind(torch.randn(2, 8, 48, 48, 16)) and InstanceNorm(8)(large).shape == large.shape
    assert "Folded" not in kind(large)
