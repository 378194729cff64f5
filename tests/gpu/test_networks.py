"""Networks on the GPU: bfloat16, the compiler with and without CUDA graphs, their noise, and scores as on the CPU."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import models
from augment.basic import normalize
from distill import student
from models import MODELS
from train.engine.device import autocast
from train.engine.loop import parameter_groups, train_step
from train.engine.network import Frozen, logits

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")]

STOCHASTIC = {
    "shakeshake": ("shakeshake26-40-se", {"width": 8}),
    "pyramidnet": ("pyramidnet", {"depth": 8, "widening": 12}),
    "flatse": ("flatse", {"width": 8, "depth": 16, "drop_path": 0.5}),
}
SMALL = STOCHASTIC | {"resnet": ("resnet18", {"width": 8}), "seresnet": ("seresnet20", {"width": 8}),
                      "fastnet": ("fastnet", {"width": 8, "columns": 2})}


def build(name, device, **options):
    torch.manual_seed(0)
    return models.build(name, **options).to(device, memory_format=torch.channels_last)


def small(family, device):
    """A narrow model with one block in each stage: whatever a compiler could stumble over, once."""
    name, options = SMALL[family]
    model = build(name, device, **options)
    if family != "fastnet":
        model.stage1, model.stage2, model.stage3 = model.stage1[:1], model.stage2[:1], model.stage3[:1]
    return model.train()


def pictures(count, seed=1):
    """uint8 (N, 3, 32, 32): a colour and some noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 100, (count, 3, 32, 32), generator=generator)
    return (noise + torch.randint(0, 155, (count, 3, 1, 1), generator=generator)).to(torch.uint8)


def batch(device, count=16, seed=1):
    return normalize(pictures(count, seed).to(device)).contiguous(memory_format=torch.channels_last)


def step(model, network, images, seed, precision="float32"):
    """(logits, all gradients as one vector) of a training step of `network`, the model or what was compiled from it."""
    torch.manual_seed(seed)
    model.zero_grad()
    with autocast(images.device, precision):
        found = network(images)
    rows = found.float().flatten(0, -2)  # of each column, where there are several
    F.cross_entropy(rows, torch.arange(len(rows), device=images.device) % 10).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    return found.detach().float().clone(), torch.cat(gradients).clone()


def distance(found, wanted):
    """The norm of the difference, as a share of the norm of what is wanted."""
    return ((found - wanted).norm() / wanted.norm()).item()


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_close_to_float32(name, device):
    model, images = build(name, device).train(), batch(device)
    (exact, slope), (found, gradient) = (step(model, model, images, 2, p) for p in ("float32", "bfloat16"))
    assert gradient.isfinite().all() and distance(found, exact) < 0.2
    assert F.cosine_similarity(gradient, slope, 0) > 0.8


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_the_cpu(name, device):
    model, images = build(name, "cpu"), pictures(20)
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    wanted = logits(model, images, tta=True)
    found = logits(model.to(device), images, tta=True)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max().clamp(min=1)


# ---------------------------------------------------------------- the compiler


@pytest.mark.parametrize("family", SMALL)
def test_compiled_equals_eager_with_gradients_and_noise(family, device, compiled):
    model = small(family, device)
    network = compiled(model)
    for seed in (3, 4, 5, 3):  # the first compiles, the second records the graphs, the others replay them
        images = batch(device, seed=seed)
        with torch._inductor.config.patch(fallback_random=True):  # torch's own numbers, as eager draws them
            found, gradient = step(model, network, images, seed)
        wanted, slope = step(model, model, images, seed)
        assert distance(found, wanted) < 1e-3 and distance(gradient, slope) < 1e-2, seed


@pytest.mark.parametrize("family", STOCHASTIC)
def test_noise_differs_from_step_to_step_and_follows_from_the_seed(family, device, compiled):
    model, images = small(family, device), batch(device)
    network = compiled(model)
    step(model, network, images, 0), step(model, network, images, 0)  # to compile, and to record the graphs
    first, other, again = (step(model, network, images, seed) for seed in (5, 6, 5))
    for one, two, three in zip(first, other, again, strict=True):  # logits, gradients
        assert distance(two, one) > 1e-2 and distance(three, one) < 1e-4


@pytest.mark.parametrize("family", STOCHASTIC)
def test_a_captured_step_draws_new_noise_within_one_seed(family, device, compiled):
    model, images = small(family, device), batch(device)
    network = compiled(model)
    step(model, network, images, 0)
    torch.manual_seed(1)
    found = []
    for _ in range(4):
        model.zero_grad()  # a graph's gradients are gone with its next run
        one = network(images)
        found.append(one.detach().clone())
        one.sum().backward()
    assert all(distance(a, b) > 1e-2 for i, a in enumerate(found) for b in found[:i])


# ---------------------------------------------------------------- teachers


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_teachers_answer_as_eager_ones(precision, device, compiler):
    networks = [small(family, device) for family in ("resnet", "seresnet")]
    for network in networks:
        network(batch(device))  # running statistics of its own
    eager, fast = Frozen(networks, precision), Frozen(networks, precision)
    for network in fast.networks:
        network.compile(dynamic=False)
    first = fast(batch(device, seed=1))
    kept, second = first.clone(), fast(batch(device, seed=2))
    tolerance = 1e-4 if precision == "float32" else 3e-2
    assert torch.equal(first, kept), "logits are not overwritten by the next"
    for found, seed in ((first, 1), (second, 2)):
        assert found.dtype == torch.float32 and distance(found, eager(batch(device, seed=seed))) < tolerance


def test_a_student_and_its_teachers_train_compiled_as_eager(device, compiled):
    args = student.configuration("--model seresnet20 --teachers teacher.pt --precision float32 --lr 0.01".split())
    teacher, loss, losses = small("resnet", device), partial(student.loss, args), []
    teacher(batch(device))
    for compiling in (False, True):
        model, teach = small("seresnet", device), Frozen([teacher])
        network = compiled(model) if compiling else model
        if compiling:
            teach.networks[0].compile(dynamic=False)
        optimizer = torch.optim.SGD(parameter_groups(args, model), lr=args.lr, momentum=args.momentum, nesterov=True,
                                    weight_decay=args.weight_decay, fused=device.type == "cuda")
        hard, parts = F.one_hot(torch.arange(16, device=device) % 10, 10).float(), []
        for images in (batch(device, seed=seed) for seed in range(4)):
            parts += train_step(network, optimizer, args, loss, images, [hard, teach(images)])[:1]
        losses.append(torch.tensor([[part["loss"].item(), part["soft"].item()] for part in parts]))
    assert torch.allclose(*losses, rtol=1e-2) and losses[0].isfinite().all()
