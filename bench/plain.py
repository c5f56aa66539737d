"""The joint step as anybody would write it: each network asked about each volume on its own, doubling as a tensor of
its own, PyTorch's own layers and optimizers. The judge of the toolkit's step, in correctness and in time."""
from contextlib import nullcontext
from copy import deepcopy
import torch
from torch import nn
import torch.nn.functional as F
from cssgan.joint import Optimizers, train_only, upcast
from cssgan.losses import adversarial_loss, cycle_loss, discriminator_loss, generator_objective, shape_loss
from cssgan.layers import Conv3x3, InstanceNorm, UpConv3d
from cssgan.models import Networks


class DoubleThenConv(nn.Conv3d):
    "Nearest ×2, then a 3×3×3 convolution of the large volume."
    def forward(self, x): return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


def plain_layer(layer: nn.Module, # any layer of the toolkit's networks
                keep_norm: bool, # leave the toolkit's instance norm as it is?
                ) -> nn.Module: # the literal layer with the same weights and names, or `layer` itself
    "What a layer means, in PyTorch's own layers."
    if isinstance(layer, UpConv3d):
        plain = DoubleThenConv(layer.in_channels, layer.out_channels, 3, padding=1, bias=layer.bias is not None)
    elif isinstance(layer, Conv3x3):
        plain = nn.Conv3d(layer.in_channels, layer.out_channels, 3, padding=1, bias=layer.bias is not None)
    elif isinstance(layer, InstanceNorm) and not keep_norm:
        plain = nn.InstanceNorm3d(layer.num_features, layer.eps, affine=True)
    else: return layer
    plain.load_state_dict(layer.state_dict())
    return plain.to(layer.weight)


def plain_networks(nets: Networks, # the six networks; they stay as they are
                   layout: torch.memory_format=torch.contiguous_format, # or torch.channels_last_3d
                   ) -> Networks: # a copy with the same weights under the same names
    """The six networks in literal layers.

    In the channels-last layout PyTorch's instance norm has a wrong gradient at batch 1 on CPU; there the toolkit's stays."""
    plain = deepcopy(nets)
    for parent in list(plain.modules()):
        for name, layer in list(parent.named_children()):
            setattr(parent, name, plain_layer(layer, keep_norm=layout == torch.channels_last_3d))
    return plain.to(memory_format=layout)


def plain_optimizers(nets: Networks, # the six networks
                     lr: float=2e-4, # learning rate
                     ) -> Optimizers:
    "Three ordinary Adams with the paper's betas."
    pair = lambda a, b, betas: torch.optim.Adam([*a.parameters(), *b.parameters()], lr=lr, betas=betas)
    return Optimizers(G=pair(nets.G_A, nets.G_B, (.5, .999)), D=pair(nets.D_A, nets.D_B, (.5, .999)),
                      S=pair(nets.S_A, nets.S_B, (.9, .999)))


def plain_descend(optimizer: torch.optim.Optimizer, # of the networks that learn now
                  loss: torch.Tensor, # scalar
                  ):
    "One step down the gradient."
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def plain_generators(nets, optimizer, batch, lambda_cyc, gamma_shape, precision):
    "Optimize `G_A, G_B`, everybody else fixed; gives the two translations, the two reconstructions, and the losses."
    real_A, y_A, real_B, y_B, _ = batch
    train_only(nets, "G_A", "G_B")
    with precision():
        fake_A, fake_B = nets.G_A(real_B), nets.G_B(real_A)
        rec_A, rec_B = nets.G_A(fake_B), nets.G_B(fake_A)
        gan = adversarial_loss(upcast(nets.D_A(fake_A))) + adversarial_loss(upcast(nets.D_B(fake_B)))
        cyc = cycle_loss(upcast(rec_A), real_A) + cycle_loss(upcast(rec_B), real_B)
        shape = shape_loss(upcast(nets.S_A(fake_A)), y_B) + shape_loss(upcast(nets.S_B(fake_B)), y_A)
    plain_descend(optimizer, generator_objective(gan, cyc, shape, lambda_cyc, gamma_shape))
    return [x.detach() for x in (fake_A, fake_B, rec_A, rec_B)], {"gan": gan, "cyc": cyc, "shape": shape}


def plain_segmentors(nets, optimizer, batch, fake_A, fake_B, rec_A, rec_B, precision):
    "Optimize `S_A, S_B` on real, translated and reconstructed volumes, one after the other."
    real_A, y_A, real_B, y_B, _ = batch
    train_only(nets, "S_A", "S_B")
    with precision():
        loss = lambda S, x, labels: shape_loss(upcast(S(x)), labels)
        S_A = (loss(nets.S_A, real_A, y_A) + loss(nets.S_A, fake_A, y_B) + loss(nets.S_A, rec_A, y_A)) / 3
        S_B = (loss(nets.S_B, real_B, y_B) + loss(nets.S_B, fake_B, y_A) + loss(nets.S_B, rec_B, y_B)) / 3
    plain_descend(optimizer, S_A + S_B)
    return {"S_A": S_A, "S_B": S_B}


def plain_discriminators(nets, optimizer, batch, fake_A, fake_B, precision):
    "Optimize `D_A, D_B` on real volumes and on translations, one after the other."
    train_only(nets, "D_A", "D_B")
    with precision():
        D_A = discriminator_loss(upcast(nets.D_A(batch.real_A)), upcast(nets.D_A(fake_A)))
        D_B = discriminator_loss(upcast(nets.D_B(batch.real_B)), upcast(nets.D_B(fake_B)))
    plain_descend(optimizer, D_A + D_B)
    return {"D_A": D_A, "D_B": D_B}


def plain_step(nets: Networks, # of `plain_networks`
               optimizers: Optimizers, # of `plain_optimizers`
               pools: dict, # "A", "B": past translations
               rng: torch.Generator, # of the pools
               batch, # real volumes and their labels
               lambda_cyc: float=10., # weight of the cycle loss
               gamma_shape: float=1., # weight of the shape loss
               precision=nullcontext, # gives a context for the networks' passes, e.g. autocast
               ) -> dict: # losses by name
    "One joint step: generators, segmentors, discriminators."
    passes, losses = plain_generators(nets, optimizers.G, batch, lambda_cyc, gamma_shape, precision)
    losses |= plain_segmentors(nets, optimizers.S, batch, *passes, precision)
    fake_A, fake_B = pools["A"].exchange(passes[0], rng), pools["B"].exchange(passes[1], rng)
    losses |= plain_discriminators(nets, optimizers.D, batch, fake_A, fake_B, precision)
    return {name: loss.detach() for name, loss in losses.items()}
