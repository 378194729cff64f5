"""Each family against a second, slow reading of its paper.

The references below use no module of `models`: plain functions that walk a state_dict, whose values come
from a fixed formula. A misplaced ReLU, stem, normalization or shortcut changes the logits.
"""

import pytest
import torch
import torch.nn.functional as F

from models import build

IMAGES = 2 * torch.sin(torch.arange(3 * 3 * 32 * 32, dtype=torch.float64) ** 2 * 0.7).view(3, 3, 32, 32)


def fill(model):
    """Fixed float64 values for every tensor: order-one activations, no symmetry, positive variances."""
    state = {}
    for number, (key, tensor) in enumerate(model.state_dict().items(), start=1):
        wave = torch.sin(torch.arange(1, tensor.numel() + 1, dtype=torch.float64) ** 2 * (1 + 0.37 * number))
        wave = wave.view(tensor.shape)
        if tensor.dim() >= 2:
            state[key] = wave * (3 / tensor[0].numel()) ** 0.5
        elif key.endswith("weight") or key.endswith("running_var"):
            state[key] = 1 + 0.5 * wave
        else:
            state[key] = 0.3 * wave
    model.double().load_state_dict(state)
    return {key: value.clone() for key, value in state.items()}  # training moves the model's own statistics


class Reference:
    """The primitives, on one state_dict and in one mode."""

    def __init__(self, state, training):
        self.state, self.training = state, training

    def conv(self, key, x, stride=1):
        weight = self.state[f"{key}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, key, x):
        mean, variance = self.state[f"{key}.running_mean"], self.state[f"{key}.running_var"]
        if self.training:
            mean = x.mean((0, 2, 3))
            variance = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
        scale = self.state[f"{key}.weight"] / (variance + 1e-5) ** 0.5
        shift = self.state[f"{key}.bias"] - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def linear(self, key, x):
        return x @ self.state[f"{key}.weight"].T + self.state[f"{key}.bias"]

    def squeeze_excite(self, key, x):
        hidden = relu(self.linear(f"{key}.squeeze", x.sum((2, 3)) / (x.shape[2] * x.shape[3])))
        return x / (1 + torch.exp(-self.linear(f"{key}.excite", hidden)))[:, :, None, None]

    def head(self, x):
        return self.linear("head", x.sum((2, 3)) / 64)

    def blocks(self):
        """(key, stride, first of its stage) of every block."""
        for stage in (1, 2, 3):
            count = len({key.split(".")[1] for key in self.state if key.startswith(f"stage{stage}.")})
            for number in range(count):
                yield f"stage{stage}.{number}", 2 if stage > 1 and number == 0 else 1, number == 0


def relu(x):
    return torch.where(x > 0, x, 0.0)


def average_pool(x):
    return (x[:, :, ::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, ::2] + x[:, :, 1::2, 1::2]) / 4


def resnet(ref, x):
    x = relu(ref.norm("stem.1", ref.conv("stem.0", x)))
    for key, stride, _ in ref.blocks():
        y = relu(ref.norm(f"{key}.norm1", ref.conv(f"{key}.conv1", x, stride)))
        y = ref.norm(f"{key}.norm2", ref.conv(f"{key}.conv2", y))
        if stride == 2:
            x = ref.norm(f"{key}.shortcut.1", ref.conv(f"{key}.shortcut.0", x[:, :, ::2, ::2]))
        x = relu(x + y)
    return ref.head(x)


def seresnet(ref, x):
    x = relu(ref.norm("stem.1", ref.conv("stem.0", x)))
    for key, stride, first in ref.blocks():
        y = relu(ref.norm(f"{key}.norm1", ref.conv(f"{key}.conv1", x)))
        y = relu(ref.norm(f"{key}.norm2", ref.conv(f"{key}.conv2", y, stride)))
        y = ref.squeeze_excite(f"{key}.se", ref.norm(f"{key}.norm3", ref.conv(f"{key}.conv3", y)))
        if stride == 2:
            x = average_pool(x)
        if first:
            x = ref.norm(f"{key}.shortcut.2", ref.conv(f"{key}.shortcut.1", x))
        x = relu(x + y)
    return ref.head(x)


def shakeshake(ref, x):
    def branch(key, x, stride):
        y = ref.norm(f"{key}.2", ref.conv(f"{key}.1", relu(x), stride))
        y = ref.norm(f"{key}.5", ref.conv(f"{key}.4", relu(y)))
        return ref.squeeze_excite(f"{key}.6", y) if f"{key}.6.squeeze.weight" in ref.state else y

    x = ref.norm("stem.1", ref.conv("stem.0", x))
    for key, stride, _ in ref.blocks():
        y1, y2 = branch(f"{key}.branch1", x, stride), branch(f"{key}.branch2", x, stride)
        if x.shape[1] != y1.shape[1]:
            shifted = torch.zeros_like(x)
            shifted[:, :, 1:, 1:] = relu(x)[:, :, :-1, :-1]
            straight = ref.conv(f"{key}.shortcut.conv1", relu(x)[:, :, ::stride, ::stride])
            shifted = ref.conv(f"{key}.shortcut.conv2", shifted[:, :, ::stride, ::stride])
            x = ref.norm(f"{key}.shortcut.norm", torch.cat((straight, shifted), 1))
        alpha = 0.5
        if ref.training:
            alpha, _ = torch.rand(len(x), 1, 1, 1), torch.rand(len(x), 1, 1, 1)  # the second is the backward mix
        x = x + alpha * y1 + (1 - alpha) * y2
    return ref.head(relu(x))


def pyramidnet(ref, x):
    x = ref.norm("stem.1", ref.conv("stem.0", x))
    keys = list(ref.blocks())
    for number, (key, stride, _) in enumerate(keys, start=1):
        y = ref.conv(f"{key}.residual.1", ref.norm(f"{key}.residual.0", x), stride=1 if bottleneck(ref) else stride)
        y = ref.conv(f"{key}.residual.4", relu(ref.norm(f"{key}.residual.2", y)), stride if bottleneck(ref) else 1)
        y = ref.norm(f"{key}.residual.5", y)
        if bottleneck(ref):
            y = ref.norm(f"{key}.residual.8", ref.conv(f"{key}.residual.7", relu(y)))
        if stride == 2:
            x = average_pool(x)
        survival = 1 - 0.5 * number / len(keys)
        factor = survival
        if ref.training:
            survives = torch.rand(len(x), 1, 1, 1) < survival
            alpha, _ = 2 * torch.rand(len(x), 1, 1, 1) - 1, torch.rand(len(x), 1, 1, 1)
            factor = torch.where(survives, 1.0, alpha)
        y = factor * y
        x = torch.cat((x + y[:, : x.shape[1]], y[:, x.shape[1] :]), 1)
    return ref.head(relu(ref.norm("norm", x)))


def bottleneck(ref):
    return "stage1.0.residual.7.weight" in ref.state


def flatse(ref, x):
    x = ref.conv("stem", x)
    keys = list(ref.blocks())
    for number, (key, stride, first) in enumerate(keys, start=1):
        activated = relu(ref.norm(f"{key}.norm1", x))
        y = ref.conv(f"{key}.conv1", activated, stride)
        y = ref.conv(f"{key}.conv2", relu(ref.norm(f"{key}.norm2", y)))
        if first and stride == 2:
            x = ref.conv(f"{key}.shortcut.1", average_pool(activated))
        y = ref.squeeze_excite(f"{key}.se", y)
        if ref.training:  # the rate of dropped paths grows to 0.5
            rate = 0.5 * number / len(keys)
            y = y * (torch.rand(len(x), 1, 1, 1) >= rate) / (1 - rate)
        x = x + y
    return ref.head(relu(ref.norm("norm", x)))


def fastnet(ref, x):
    x = F.conv2d(x, ref.state["whitening.weight"], ref.state["whitening.bias"])
    x = gelu(x)
    for stage in (1, 2, 3):
        x = ref.conv(f"stage{stage}.0", x)
        side = x.shape[2] // 2 * 2
        x = torch.stack([x[:, :, i:side:2, j:side:2] for i in (0, 1) for j in (0, 1)]).amax(0)
        x = gelu(ref.norm(f"stage{stage}.2", x))
        x = gelu(ref.norm(f"stage{stage}.5", ref.conv(f"stage{stage}.4", x)))
        if f"stage{stage}.7.0.weight" in ref.state:
            x = x + gelu(ref.norm(f"stage{stage}.7.1", ref.conv(f"stage{stage}.7.0", x)))
    return x.flatten(2).amax(2) @ ref.state["head.weight"].T / 9


def gelu(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


@pytest.mark.parametrize("training", (False, True), ids=("evaluation", "training"))
@pytest.mark.parametrize(
    "reference, name, options",
    (
        (resnet, "resnet18", {"width": 4}),
        (resnet, "resnet20x4", {"width": 4}),
        (seresnet, "seresnet20", {"width": 4}),
        (shakeshake, "shakeshake26-32", {"width": 4}),
        (shakeshake, "shakeshake26-40-se", {"width": 4}),
        (shakeshake, "shakeshake26-32", {"width": 16}),  # no ReLU in the first shortcut hides the stem
        (pyramidnet, "pyramidnet", {"depth": 14, "widening": 11}),
        (pyramidnet, "pyramidnet", {"depth": 20, "widening": 11, "bottleneck": True}),
        (flatse, "flatse", {"width": 8, "depth": 16, "drop_path": 0.5}),
        (fastnet, "fastnet", {"widths": (4, 16, 12)}),
        (fastnet, "fastnet", {"widths": (4, 6, 5), "residual": True}),
    ),
)
@torch.no_grad()
def test_logits_equal_the_reference(reference, name, options, training):
    model = build(name, **options).train(training)
    state = fill(model)
    torch.manual_seed(5)
    logits = model(IMAGES)
    torch.manual_seed(5)
    expected = reference(Reference(state, training), IMAGES)
    assert expected.std() > 0.05 and (expected[0] - expected[1]).abs().max() > 0.01  # it says something
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
