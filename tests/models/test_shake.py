"""The random mixes: their values, their gradients, and what is drawn for whom."""

import pytest
import torch

from models import build
from models.layers import drop_path, swap_gradient
from models.pyramidnet import ShakeDrop
from models.shakeshake import shake_shake

MANY = 4000


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def shake_coefficients(images):
    """alpha and beta of every pixel (images, 2, 2, 2), read off the output and the gradient of shake_shake."""
    ones = torch.ones(images, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    alpha = shake_shake(ones, torch.zeros_like(ones), training=True)
    (beta,) = torch.autograd.grad(alpha.sum(), ones)
    return alpha.detach(), beta


def drop_factors(images, survival):
    """Forward and backward factor of every pixel (images, 2, 2, 2) of ShakeDrop."""
    ones = torch.ones(images, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    forward = ShakeDrop(survival)(ones)
    (backward,) = torch.autograd.grad(forward.sum(), ones)
    return forward.detach(), backward


def one_per_image(pixels):
    """The single value of each image, having checked that it is single."""
    flat = pixels.flatten(1)
    assert torch.equal(flat, flat[:, :1].expand_as(flat))
    return flat[:, 0]


def correlation(a, b):
    return torch.corrcoef(torch.stack((a, b)))[0, 1].abs()


# --- swapping a gradient ---


def test_swap_gradient_has_the_value_of_one_and_the_gradient_of_the_other():
    x, upstream = double(3, 4), torch.randn(3, 4, dtype=torch.float64)
    result = swap_gradient(x**3, x.sin())
    (gradient,) = torch.autograd.grad(result, x, upstream)
    assert torch.equal(result, x**3)
    torch.testing.assert_close(gradient, upstream * x.cos())


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_swap_gradient_loses_no_bit_of_the_value(dtype):
    value, surrogate = torch.randn(1000).to(dtype), 1e4 * torch.randn(1000).to(dtype)
    assert torch.equal(swap_gradient(value, surrogate), value)


# --- Shake-Shake ---


def test_shake_mixes_forward_with_alpha_and_backward_with_beta():
    branch1, branch2, upstream = double(3, 2, 2, 2), double(3, 2, 2, 2), torch.randn(3, 2, 2, 2, dtype=torch.float64)
    torch.manual_seed(1)
    alpha, beta = shake_coefficients(3)
    torch.manual_seed(1)
    mix = shake_shake(branch1, branch2, training=True)
    gradients = torch.autograd.grad(mix, (branch1, branch2), upstream)

    torch.testing.assert_close(mix, alpha * branch1 + (1 - alpha) * branch2)
    torch.testing.assert_close(gradients, (upstream * beta, upstream * (1 - beta)))


def test_shake_coefficients_are_uniform_per_image_and_independent():
    torch.manual_seed(0)
    alpha, beta = map(one_per_image, shake_coefficients(MANY))
    for coefficient in (alpha, beta):
        assert coefficient.unique().numel() > 0.99 * MANY  # one per image, not one per batch
        assert 0 <= coefficient.min() < 0.01 and 0.99 < coefficient.max() < 1
        assert abs(coefficient.mean() - 0.5) < 0.02 and abs(coefficient.std() - 12**-0.5) < 0.01
    assert correlation(alpha, beta) < 0.06
    assert correlation(alpha[1:], alpha[:-1]) < 0.06


def test_shake_evaluates_to_the_expectation():
    branch1, branch2 = torch.full((MANY, 1, 1, 1), 3.0), torch.full((MANY, 1, 1, 1), -1.0)
    torch.manual_seed(0)
    training, evaluation = shake_shake(branch1, branch2, True), shake_shake(branch1, branch2, False)
    assert torch.equal(evaluation, torch.ones_like(evaluation))
    assert abs(training.mean() - 1) < 0.06


def test_every_block_of_a_model_draws_its_own_coefficients():
    torch.manual_seed(0)
    model = build("shakeshake26-32", width=4)
    draws = []

    def record(_, __, output):
        draws.append(output)

    for block in (*model.stage1, *model.stage2, *model.stage3):
        torch.nn.init.zeros_(block.branch1[5].weight)  # branch 1 becomes 1 everywhere, branch 2 becomes 0
        torch.nn.init.ones_(block.branch1[5].bias)
        torch.nn.init.zeros_(block.branch2[5].weight)
        torch.nn.init.zeros_(block.shortcut.norm.weight) if hasattr(block.shortcut, "norm") else None
        block.register_forward_hook(record)
    model(torch.randn(2, 3, 32, 32))
    sums = [one_per_image(draw) for draw in draws]  # alphas add up within a stage of four blocks
    alphas = [sums[k] - (sums[k - 1] if k % 4 else 0) for k in range(12)]
    assert torch.stack(alphas).round(decimals=4).unique().numel() == 24


def test_without_shake_the_branches_are_averaged_in_training_too():
    block, x = build("shakeshake26-32", width=4, shake=False).stage1[1], torch.randn(2, 4, 8, 8, requires_grad=True)
    output, wanted = block(x), x + 0.5 * (block.branch1(x) + block.branch2(x))
    upstream = torch.randn_like(output)
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, upstream)[0] for y in (output, wanted)))


# --- ShakeDrop ---


def test_shakedrop_scales_forward_and_backward_by_their_own_factor():
    residual, upstream = double(6, 2, 2, 2), torch.randn(6, 2, 2, 2, dtype=torch.float64)
    torch.manual_seed(1)
    forward, backward = drop_factors(6, survival=0.5)
    torch.manual_seed(1)
    output = ShakeDrop(0.5)(residual)
    (gradient,) = torch.autograd.grad(output, residual, upstream)
    torch.testing.assert_close(output, forward * residual.detach())
    torch.testing.assert_close(gradient, upstream * backward)


@pytest.mark.parametrize("survival", (0.5, 0.8))
def test_shakedrop_factors_are_drawn_per_image_in_their_ranges(survival):
    torch.manual_seed(0)
    forward, backward = map(one_per_image, drop_factors(MANY, survival))
    kept = forward == 1
    assert torch.equal(kept, backward == 1)  # one gate b for both passes
    assert abs(kept.double().mean() - survival) < 0.03
    alpha, beta = forward[~kept], backward[~kept]
    assert -1 <= alpha.min() < -0.98 and 0.98 < alpha.max() < 1
    assert 0 <= beta.min() < 0.02 and 0.98 < beta.max() < 1
    assert abs(alpha.mean()) < 0.06 and abs(beta.mean() - 0.5) < 0.03
    assert correlation(alpha, beta) < 0.11


@pytest.mark.parametrize("survival", (0.5, 0.8, 1.0))
def test_shakedrop_evaluates_to_the_expectation(survival):
    layer, residual = ShakeDrop(survival), torch.full((MANY, 1, 1, 1), 2.0)
    torch.manual_seed(0)
    assert abs(layer(residual).mean() - 2 * survival) < 0.06
    assert torch.equal(layer.eval()(residual), residual * survival)


def test_shakedrop_decays_linearly_to_its_last_probability():
    model = build("pyramidnet", depth=20, widening=9, shakedrop=0.8)
    survival = [part.survival for part in model.modules() if isinstance(part, ShakeDrop)]
    assert survival == pytest.approx([1 - 0.2 * k / 9 for k in range(1, 10)])


# --- drop path ---


def test_drop_path_drops_whole_images_and_keeps_the_expectation():
    torch.manual_seed(0)
    values = one_per_image(drop_path(torch.ones(MANY, 2, 2, 2), 0.2, training=True))
    assert set(values.tolist()) == {0.0, 1.25}
    assert abs(values.mean() - 1) < 0.03


def test_drop_path_keeps_the_expectation_in_bfloat16():
    """1 / (1 - 0.1) as a bfloat16 is 0.16 % too small; rounding the product errs in both directions."""
    torch.manual_seed(0)
    x = (1 + torch.rand(MANY, 2, 2, 2)).bfloat16()
    kept = drop_path(x, 0.1, training=True)
    survived = kept[:, 0, 0, 0] > 0
    assert abs((kept[survived].double().sum() / x[survived].double().sum()).item() * 0.9 - 1) < 3e-4


def test_drop_path_is_the_identity_in_evaluation_and_at_rate_zero():
    x = torch.randn(5, 2, 2, 2)
    assert drop_path(x, 0.5, training=False) is x
    assert drop_path(x, 0.0, training=True) is x


def test_drop_path_rates_grow_linearly_to_the_last_block():
    model = build("flatse", width=8, depth=16, drop_path=0.14)
    rates = [block.drop_rate for block in (*model.stage1, *model.stage2, *model.stage3)]
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.10, 0.12, 0.14])
