"""The distillation objectives against numbers computed by hand and slow loops."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F

from distill.loss import (
    OBJECTIVES,
    decoupled_divergence,
    distillation_loss,
    kl_divergence,
    soft_targets_of,
    standardize,
)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 10, generator=generator, dtype=torch.float64) * 3
    hard = torch.rand(6, 10, generator=generator, dtype=torch.float64)
    return student, teacher, hard / hard.sum(1, keepdim=True)


def by_hand(student, teacher, hard, temperature, alpha):
    """The design's formula, one number at a time."""
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), hard.tolist(), strict=True):
        soft_t = [math.exp(v / temperature) for v in t]
        soft_s = [math.exp(v / temperature) for v in s]
        plain = [math.exp(v) for v in s]
        p = [v / sum(soft_t) for v in soft_t]
        q = [v / sum(soft_s) for v in soft_s]
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        ce = -sum(a * math.log(b / sum(plain)) for a, b in zip(y, plain, strict=True))
        total += alpha * temperature**2 * kl + (1 - alpha) * ce
    return total / len(student)


@pytest.mark.parametrize("temperature, alpha", [(4.0, 0.9), (1.0, 0.5), (2.5, 1.0), (4.0, 0.0)])
def test_formula_to_1e_9(batch, temperature, alpha):
    student, teacher, hard = batch
    found = distillation_loss(student, soft_targets_of(teacher, temperature), hard, temperature, alpha)
    assert found["loss"].item() == pytest.approx(by_hand(student, teacher, hard, temperature, alpha), abs=1e-9)


def test_two_classes_by_hand():
    """Teacher (ln 3, 0) at T = 1 is (3/4, 1/4), an indifferent student (1/2, 1/2)."""
    soft = soft_targets_of(torch.tensor([[math.log(3), 0.0]], dtype=torch.float64), 1.0)
    student, hard = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = distillation_loss(student, soft, hard, 1.0, 0.9)
    assert found["loss"].item() == pytest.approx(0.9 * kl + 0.1 * math.log(2), abs=1e-12)


def test_a_student_like_its_teacher_learns_nothing_from_it(batch):
    _, teacher, hard = batch
    student = teacher.clone().requires_grad_()
    for objective in OBJECTIVES:
        soft = soft_targets_of(teacher, 4.0, objective)
        (gradient,) = torch.autograd.grad(distillation_loss(student, soft, hard, 4.0, 1.0, objective)["loss"], student)
        assert gradient.abs().max() < 1e-12, objective


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_parts_are_those_of_the_objective_and_of_the_labels(batch, objective):
    student, teacher, hard = batch
    soft, (transform, divergence) = soft_targets_of(teacher, 4.0, objective), OBJECTIVES[objective]
    parts = distillation_loss(student, soft, hard, 4.0, 0.3, objective)
    torch.testing.assert_close(parts["soft"], divergence(transform(student), soft, hard, 4.0))
    assert parts["hard"] == F.cross_entropy(student, hard)
    torch.testing.assert_close(parts["loss"], 0.3 * parts["soft"] + 0.7 * parts["hard"])
    assert distillation_loss(student, soft, hard, 4.0, 0.0, objective)["loss"] == F.cross_entropy(student, hard)


def test_smoothing_is_that_of_torch_and_leaves_images_without_a_label_alone(batch):
    student, teacher, hard = batch
    soft = soft_targets_of(teacher, 4.0)
    found = distillation_loss(student, soft, hard, smoothing=0.2)["hard"]
    torch.testing.assert_close(found, F.cross_entropy(student, hard, label_smoothing=0.2))
    hard = hard * (torch.arange(6) < 4)[:, None]
    found = distillation_loss(student, soft, hard, smoothing=0.2)["hard"]
    torch.testing.assert_close(found, F.cross_entropy(student[:4], hard[:4], label_smoothing=0.2) * 4 / 6)


def test_the_weight_does_not_depend_on_the_number_of_classes_or_images(batch):
    """KLDivLoss with reduction="mean" would divide by the ten classes too."""
    student, teacher, hard = batch
    once = kl_divergence(student, soft_targets_of(teacher, 4.0), hard, 4.0)
    student, teacher, hard = (torch.cat([tensor] * 2) for tensor in batch)
    twice = kl_divergence(student, soft_targets_of(teacher, 4.0), hard, 4.0)
    torch.testing.assert_close(once, twice)


def test_decoupled_takes_the_teachers_class_where_most_of_an_image_has_no_label(batch):
    student, teacher, _ = batch
    soft, cat = soft_targets_of(teacher, 4.0), F.one_hot(torch.tensor(3), 10)
    answer = decoupled_divergence(student, soft, torch.zeros(6, 10), 4.0)
    labelled = decoupled_divergence(student, soft, cat.expand(6, 10).double(), 4.0)
    assert abs(answer - labelled) > 1e-3
    for share, expected in ((0.05, answer), (0.6, labelled)):
        torch.testing.assert_close(decoupled_divergence(student, soft, share * cat.expand(6, 10), 4.0), expected)


def test_decoupled_against_a_slow_loop(batch):
    student, teacher, hard = batch
    temperature, beta, total = 3.0, 8.0, 0.0
    rows = (soft_targets_of(student, temperature), soft_targets_of(teacher, temperature), hard.argmax(1))
    for s, t, y in zip(*(tensor.tolist() for tensor in rows), strict=True):
        target = t[y] * math.log(t[y] / s[y]) + (1 - t[y]) * math.log((1 - t[y]) / (1 - s[y]))
        rest = sum(t[k] / (1 - t[y]) * math.log((t[k] / (1 - t[y])) / (s[k] / (1 - s[y]))) for k in range(10) if k != y)
        total += target + beta * rest
    soft = soft_targets_of(teacher, temperature, "dkd")
    found = distillation_loss(student, soft, hard, temperature, 1.0, "dkd")["loss"]
    assert found.item() == pytest.approx(temperature**2 * total / len(student), abs=1e-9)


def test_decoupled_with_plain_weights_is_plain_kl(batch):
    """KL = TCKD + (1 - p_target) NCKD (Zhao et al. 2022, eq. 6)."""
    student, teacher, hard = (tensor[:1] for tensor in batch)
    soft = soft_targets_of(teacher, 2.0)
    rest = 1 - soft[0, hard.argmax()].item()
    found = decoupled_divergence(student, soft, hard, 2.0, beta=rest)
    torch.testing.assert_close(found, kl_divergence(student, soft, hard, 2.0))


def test_decoupled_stays_finite_with_a_certain_teacher():
    student = torch.randn(4, 10, requires_grad=True)
    hard = F.one_hot(torch.arange(4), 10).float()
    loss = decoupled_divergence(student, soft_targets_of(hard * 1000, 1.0), hard, 1.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


def test_standardized_logits_ignore_shift_and_scale(batch):
    student, teacher, hard = batch
    rows = standardize(teacher)
    torch.testing.assert_close(rows.mean(1), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(rows.std(1), torch.ones(6, dtype=torch.float64), atol=1e-6, rtol=0)
    soft = soft_targets_of(5 * student + 3, 2.0, "standardized")
    loss = distillation_loss(student, soft, hard, 2.0, 1.0, "standardized")["loss"]
    assert loss.item() == pytest.approx(0, abs=1e-9)


def test_standardized_logits_weigh_as_in_their_source(batch):
    """9 T^2 KL of the standardized logits + 0.1 CE at alpha 0.9, one number at a time (Sun et al. 2024)."""
    student, teacher, hard = batch
    rows = [torch.tensor([[(v - statistics.mean(row)) / statistics.stdev(row) for v in row] for row in logits.tolist()])
            for logits in (student, teacher)]
    expected = 9 * by_hand(*rows, hard, 2.0, 1.0) + 0.1 * by_hand(student, teacher, hard, 2.0, 0.0)
    soft = soft_targets_of(teacher, 2.0, "standardized")
    loss = distillation_loss(student, soft, hard, 2.0, 0.9, "standardized")["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
