"""What every family must stand: memory formats, precisions, the compiler, another device."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import toy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models
from models import MODELS, build, layers
from train.engine.device import builds_kernels

SMALL = {
    "resnet": ("resnet18", {"width": 8}),
    "seresnet": ("seresnet20", {"width": 8, "zero_init": False}),
    "shakeshake-se": ("shakeshake26-40-se", {"width": 8}),
    "pyramidnet": ("pyramidnet", {"depth": 8, "widening": 12}),
    "pyramidnet-bottleneck": ("pyramidnet", {"depth": 11, "widening": 12, "bottleneck": True}),
    "flatse": ("flatse", {"width": 8, "depth": 16, "drop_path": 0.5}),
    "fastnet-res": ("fastnet", {"widths": (8, 16, 24), "residual": True}),
}

every_family = pytest.mark.parametrize("family", SMALL)
torch_warns = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of its own torch.jit


def small(family, **more):
    """A narrow model with one block in each stage: everything that one could stumble over, once."""
    name, options = SMALL[family]
    torch.manual_seed(0)
    model = build(name, **options, **more)
    if name != "fastnet":  # its stages are no stacks of blocks
        model.stage1, model.stage2, model.stage3 = model.stage1[:1], model.stage2[:1], model.stage3[:1]
    return model


def batch(count=4, dtype=torch.float32):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def learned(model):
    """{key: parameter} of all that is not frozen."""
    return {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}


def loss_of(logits):
    """The cross entropy with the labels 0, 1, 2, ..., the mean over the columns where there are several."""
    rows = logits.float().flatten(0, -2)
    return F.cross_entropy(rows, torch.arange(len(logits)).repeat_interleave(len(rows) // len(logits)))


def training_step(model, images, seed=2):
    """Logits and the gradient of every learned parameter in training mode."""
    torch.manual_seed(seed)
    logits = model.train()(images)
    return logits, torch.autograd.grad(loss_of(logits), list(learned(model).values()))


@every_family
def test_logits_have_a_column_per_class(family):
    name, options = SMALL[family]
    assert build(name, num_classes=7, **options)(batch(2)).shape == (2, 7)


@every_family
def test_every_parameter_learns(family):
    model = small(family)
    for part in model.modules():
        if isinstance(part, layers.SqueezeExcite):
            nn.init.ones_(part.squeeze.bias)  # so narrow that its only unit may happen to be dead
    _, gradients = training_step(model, batch(8))
    for key, gradient in zip(learned(model), gradients, strict=True):
        assert gradient.isfinite().all() and gradient.any(), key


@every_family
def test_evaluation_is_deterministic_and_treats_each_image_alone(family):
    model, images = small(family).double().eval(), batch(dtype=torch.float64)
    with torch.no_grad():
        logits = model(images)
        assert torch.equal(logits, model(images))
        torch.testing.assert_close(model(images[2:3]), logits[2:3])


@every_family
def test_the_seed_decides_a_training_step(family):
    model, images = small(family), batch()
    first, again, other = (training_step(model, images, seed)[0] for seed in (2, 2, 3))
    assert torch.equal(first, again)
    stochastic = family not in ("resnet", "seresnet", "fastnet-res")
    assert torch.equal(first, other) != stochastic


@every_family
@pytest.mark.parametrize("training", (False, True))
def test_channels_last_equals_contiguous(family, training):
    model, images = small(family).double().train(training), batch(dtype=torch.float64)
    logits = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(2)
        logits.append(model.to(memory_format=memory_format)(images.to(memory_format=memory_format)))
    torch.testing.assert_close(*logits)


class Departures(TorchDispatchMode):
    """`found`: the operations that write images (N, C, H, W), N being `count`, in another format than channels_last."""

    def __init__(self, count):
        super().__init__()
        self.count, self.found = count, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **kwargs or {})
        for result in [] if operation.is_view else tree_leaves(results):
            image = isinstance(result, torch.Tensor) and result.dim() == 4 and len(result) == self.count
            if image and min(result.shape[2:]) > 1 and not result.is_contiguous(memory_format=torch.channels_last):
                self.found.append(f"{operation} {tuple(result.shape)}")
        return results


def departures(family, precision="float32", **options):
    """What leaves channels_last in a training step of five images; nothing else in it is five long."""
    model = small(family, **options).to(memory_format=torch.channels_last).train()
    images = batch(5).contiguous(memory_format=torch.channels_last)
    with Departures(5) as departures:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(images)
        logits.float().square().sum().backward()
    return departures.found


@pytest.mark.parametrize("precision", ("float32", "bfloat16"))
@pytest.mark.parametrize("family, options", [*((family, {}) for family in SMALL), ("fastnet-res", {"columns": 2})])
def test_no_step_forward_or_back_leaves_channels_last(family, options, precision):
    """An addition of two formats takes ten times as long as one of the same."""
    assert departures(family, precision, **options) == []


def test_departures_are_seen(monkeypatch):
    monkeypatch.setattr(layers, "spatial_mean", lambda x: x.mean((2, 3)))
    assert departures("seresnet")


@pytest.mark.parametrize("side", (32, 16, 8, 20, 10, 5))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16))
def test_the_spatial_mean_has_the_bits_of_torch_s(dtype, side):
    generator = torch.Generator().manual_seed(side)
    x = torch.randn(16, 24, side, side, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    x, upstream = x.requires_grad_(), torch.randn(16, 24, generator=generator).to(dtype)
    found, wanted = layers.spatial_mean(x), x.mean((2, 3))
    assert torch.equal(found, wanted) and found.dtype == dtype
    assert torch.equal(*(torch.autograd.grad(mean, x, upstream)[0] for mean in (found, wanted)))


@every_family
def test_a_bfloat16_autocast_step_is_close_to_a_float32_step(family):
    model, images = small(family), batch(2)
    exact, _ = training_step(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        logits, gradients = training_step(model, images)
    assert logits.dtype == torch.bfloat16
    assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in gradients)
    assert (logits - exact).abs().max() < 0.3 * exact.abs().max()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", (False, True))
def test_forward_neither_asks_the_host_nor_names_a_device(name, training):
    """The meta device has no values to ask for and refuses to meet a tensor of another device."""
    with torch.device("meta"):
        model, images = build(name).train(training), torch.empty(4, 3, 32, 32)
    columns = model.options.get("columns", 1)
    assert model(images).shape == ((4, columns, 10) if training and columns > 1 else (4, 10))


@torch_warns
@every_family
def test_the_whole_graph_is_captured_and_equals_eager(family):
    """aot_eager traces forward and backward as any compiler would, and then runs torch's own kernels."""
    torch.compiler.reset()
    model, images = small(family), batch()
    expected = training_step(model, images)
    compiled = training_step(torch.compile(model, fullgraph=True, backend="aot_eager"), images)
    torch.testing.assert_close(compiled, expected, rtol=1e-3, atol=1e-4)


@torch_warns
@pytest.mark.skipif(not builds_kernels(torch.device("cpu")), reason="there is no compiler")
def test_the_compiler_has_the_gradients_of_eager():
    """In float64, of a block with squeeze-and-excitation and a strided shortcut, in training."""
    torch.compiler.reset()
    block = small("seresnet").stage2[0].double()
    x = torch.randn(2, 32, 8, 8, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    wanted = [x, *block.parameters()]
    expected, found = (torch.autograd.grad(network(x).square().sum(), wanted)
                       for network in (block, torch.compile(block, fullgraph=True)))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


# --- initialisation ---


@pytest.mark.parametrize("name", ("resnet18", "shakeshake26-32", "seresnet164", "pyramidnet", "flatse"))
def test_initialisation(name):
    torch.manual_seed(0)
    for key, layer in build(name).named_modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is None
            check_normal(layer.weight, std=(2 / (layer.kernel_size[0] ** 2 * layer.out_channels)) ** 0.5)
        elif isinstance(layer, nn.Linear):
            check_normal(layer.weight, std=layer.in_features**-0.5)
            assert not layer.bias.any()
        elif isinstance(layer, nn.BatchNorm2d):
            last_of_residual = name == "seresnet164" and key.endswith("norm3")  # see zero_init
            assert (layer.weight == (0 if last_of_residual else 1)).all() and not layer.bias.any()


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_model_guesses_and_its_gradient_is_small(name):
    """At its full size, on noise. The loss of a guess is ln 10; ten steps of a gradient far above 1 would leave it."""
    torch.manual_seed(0)
    model, images = build(name).to(memory_format=torch.channels_last), batch(8)
    logits, gradients = training_step(model, images.contiguous(memory_format=torch.channels_last))
    assert abs(loss_of(logits) - math.log(10)) < 1
    assert 0.5 < torch.stack([gradient.norm() for gradient in gradients]).norm() < 20


def test_the_head_of_an_seresnet_starts_with_the_wanted_deviation():
    torch.manual_seed(0)
    model = build("seresnet20", head_std=1e-3)
    assert model.options["head_std"] == 1e-3 and not model.head.bias.any()
    check_normal(model.head.weight, std=1e-3)


def check_normal(weight, std):
    """Mean 0 and deviation `std`, within five standard errors."""
    error = std / weight.numel() ** 0.5
    assert abs(weight.mean()) < 5 * error
    assert abs(weight.std() - std) < 5 * error


@pytest.mark.parametrize("name, norm", (("resnet18", "norm2"), ("seresnet20", "norm3")))
def test_zero_init_makes_every_residual_zero(name, norm):
    model = build(name, width=8, zero_init=True)
    for block in (*model.stage1, *model.stage2, *model.stage3):
        assert not getattr(block, norm).weight.any()
        x = torch.randn(2, block.conv1.in_channels, 8, 8)
        torch.testing.assert_close(block(x), F.relu(block.shortcut(x)))


def test_a_strided_1x1_convolution_of_few_channels_has_the_right_gradient():
    """oneDNN's own is wrong or crashes there, with several threads: see StridedConv1x1. Hence the other process."""
    script = f"""
import sys, torch
sys.path.insert(0, {str(Path(models.__file__).parents[1])!r})
from models.layers import StridedConv1x1
torch.set_num_threads(2)
for channels, size, count in 3 * [(4, 32, 32), (4, 32, 31), (8, 16, 31)]:
    layer = StridedConv1x1(channels, 2 * channels, 2).to(memory_format=torch.channels_last)
    images = torch.randn(count, channels, size, size)
    out = layer(images.contiguous(memory_format=torch.channels_last))
    out.square().sum().backward()
    weight = layer.weight.detach().double().contiguous().requires_grad_()
    wanted = torch.nn.functional.conv2d(images.double(), weight, stride=2)
    wanted.square().sum().backward()
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-2)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr or done.returncode


def test_fastnet_whitens_patches_and_begins_as_the_identity():
    """Against numpy: the whitened patches are uncorrelated with variance one, and both signs of each are there."""
    torch.manual_seed(0)
    model = build("fastnet", width=32)
    images = torch.rand(50, 3, 32, 32).cumsum(3)  # neighbours are correlated
    model.whiten(images)
    filters = model.whitening.weight.double().flatten(1)
    patches = images.double().unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    answers = patches @ filters[:12].T
    second_moments = np.einsum("ni,nj->ij", answers.numpy(), answers.numpy()) / len(answers)
    variances = np.linalg.eigvalsh(patches.numpy().T @ patches.numpy() / len(patches))
    np.testing.assert_allclose(second_moments, np.diag(variances / (variances + 5e-4)), atol=1e-4)
    assert torch.equal(filters[12:], -filters[:12]) and not model.whitening.weight.requires_grad
    assert not model.whitening.bias.any()
    assert {layer.momentum for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.4}

    x = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(model.stage2[0](x)[:, :32], x)
    torch.testing.assert_close(model.stage3[4](torch.ones(1, 128, 3, 3)), torch.ones(1, 128, 3, 3))


def test_a_residual_of_fastnet_begins_as_the_identity_and_its_answer_is_added():
    model = build("fastnet", widths=(8, 16, 12), residual=True)
    for stage, channels in ((model.stage1, 8), (model.stage2, 16), (model.stage3, 12)):
        x = torch.randn(4, channels, 6, 6)
        torch.testing.assert_close(stage[7][0](x), x)
        whitened = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(stage[7](x), x + F.gelu(whitened))


@torch.no_grad()
def test_columns_of_fastnet_are_networks_side_by_side():
    """They answer as networks that share nothing but the whitening: in training each for itself, then their mean."""
    model = build("fastnet", widths=(8, 12, 10), residual=True, columns=3)
    first, *others = alone = toy.columns_of(model)
    images = torch.randn(6, 3, 32, 32)
    assert all(not torch.equal(first.stage2[0].weight, other.stage2[0].weight) for other in others)
    assert all(torch.equal(other.stage2[0].weight[:8], first.stage2[0].weight[:8]) for other in others)  # the identity
    torch.testing.assert_close(model(images), torch.stack([column(images) for column in alone], 1))
    model.eval(), [column.eval() for column in alone]
    torch.testing.assert_close(model(images), sum(column(images) for column in alone) / 3)
