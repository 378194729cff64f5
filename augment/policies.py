"""Policies that choose the operations: AutoAugment, TrivialAugment, AugMix.

For every image they draw what torchvision's v2 transform of that name draws: the operation,
whether it is applied, its magnitude and its sign. The draws of a whole batch are copied to the
host in one transfer, the only synchronisation; then each operation runs once, on the images that
drew it.

A draw is a pair of CPU tensors (steps, N): op, an index into NAMES, and magnitude.
"""

import torch

from augment.basic import dirichlet
from augment.ops import OPS, SIZE

NAMES = (*OPS, "Identity")

# Half of the draws of the affine operations and the blends are negated.
SIGNED = torch.arange(len(NAMES)) <= NAMES.index("Sharpness")

# The CIFAR-10 policy: one line is drawn, then its two (operation, probability, magnitude bin).
AUTOAUGMENT_CIFAR10 = (
    (("Invert", 0.1, None), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, None), ("Equalize", 0.9, None)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, None), ("Equalize", 0.5, None)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, None), ("AutoContrast", 0.4, None)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, None)),
    (("Equalize", 0.2, None), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.2, None), ("Equalize", 0.6, None)),
    (("Color", 0.9, 9), ("Equalize", 0.6, None)),
    (("AutoContrast", 0.8, None), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, None)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, None), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, None), ("Invert", 0.1, None)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, None)),
)

# The same by column, (2, 25): first and second operation of each line.
AUTOAUGMENT_OPS = torch.tensor([[NAMES.index(name) for name, _, _ in line] for line in AUTOAUGMENT_CIFAR10]).t()
AUTOAUGMENT_PROBABILITY = torch.tensor([[p for _, p, _ in line] for line in AUTOAUGMENT_CIFAR10]).t()
AUTOAUGMENT_BINS = torch.tensor([[bin or 0 for _, _, bin in line] for line in AUTOAUGMENT_CIFAR10]).t()


def _space(bins, shear, translate, rotate, blend, bits):
    """The magnitude of every operation at every bin, weakest first: (15, bins), in NAMES' order.

    The arguments are the strongest shear, translation (pixels), rotation (degrees) and blend, and how many bits
    Posterize keeps at its weakest and at its strongest.
    """
    # From weakest to strongest; the last four have none.
    ends = [(0, shear)] * 2 + [(0, translate)] * 2 + [(0, rotate)] + [(0, blend)] * 4 + [bits, (1, 0)] + [(0, 0)] * 4
    space = torch.stack([torch.linspace(*pair, bins) for pair in ends])
    space[NAMES.index("Posterize")].round_()
    return space


AUTOAUGMENT_SPACE = _space(10, 0.3, 150 / 331 * SIZE, 30, 0.9, bits=(8, 4))
TRIVIAL_SPACE = _space(31, 0.99, 32, 135, 0.99, bits=(8, 2))
AUGMIX_SPACE = _space(10, 0.3, SIZE / 3, 30, 0.9, bits=(4, 0))

# TrivialAugment draws from all but Invert; AugMix from all but Invert and Identity.
TRIVIAL_OPS = torch.tensor([NAMES.index(name) for name in NAMES if name != "Invert"])
AUGMIX_OPS = TRIVIAL_OPS[:-1]


def autoaugment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The CIFAR-10 policy: one of 25 pairs of operations, each with its own probability.

    images: (N, 3, 32, 32) uint8. Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data, 2019.
    """
    return apply_ops(images, *draw_autoaugment(generator, len(images)))


def trivialaugment(images: torch.Tensor, generator: torch.Generator, p: float = 1.0) -> torch.Tensor:
    """One operation at one of 31 strengths, both uniform, in the wide space, on a share `p` of the images.

    images: (N, 3, 32, 32) uint8. Mueller and Hutter, TrivialAugment, 2021.
    """
    return apply_ops(images, *draw_trivialaugment(generator, len(images), p))


def augmix(images: torch.Tensor, generator: torch.Generator, severity: int = 3, width: int = 3,
           alpha: float = 0.4) -> torch.Tensor:
    """The image mixed with `width` chains of one to three operations on it, in Dirichlet(alpha) shares.

    images: (N, 3, 32, 32) uint8. severity: magnitudes come from the weakest bins of ten, 1 to 10. The operations are
    nearest-neighbour here as elsewhere (torchvision's AugMix is bilinear by default). Hendrycks et al., AugMix: A
    Simple Data Processing Method to Improve Robustness and Uncertainty, 2020.
    """
    n = len(images)
    chains = apply_ops(images.repeat(width, 1, 1, 1), *draw_augmix(generator, n * width, severity))

    original, augmented = dirichlet(generator, alpha, n, 2).t()
    mixed = images.float().mul_(original.view(-1, 1, 1, 1))
    for share, chain in zip(dirichlet(generator, alpha, n, width).t(), chains.split(n), strict=True):
        mixed += chain.float().mul_((share * augmented).view(-1, 1, 1, 1))
    return mixed.to(torch.uint8)


def apply_ops(images: torch.Tensor, ops: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """uint8 images (N, 3, 32, 32): in step k, image i goes through NAMES[ops[k, i]] at magnitudes[k, i].

    ops (long) and magnitudes (float) are (steps, N), on the CPU.
    """
    position = torch.arange(len(images))  # where each image is: every step changes the order
    for op, magnitude in zip(ops, magnitudes, strict=True):
        order = op.argsort()
        images = _take(images, position[order])
        counts = op.bincount(minlength=len(NAMES)).tolist()
        # Groups are views of `images`, written in place. OPS ends before Identity, whose images stay unchanged.
        groups = zip(OPS.values(), images.split(counts), magnitude[order].split(counts), strict=False)
        for function, group, strengths in groups:
            if len(group):
                group.copy_(function(group, strengths))
        position = order.argsort()
    return _take(images, position)


def draw_autoaugment(generator: torch.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two operations for each of n images: op, magnitude (2, n)."""
    uniform = _uniforms(generator, 5, n)
    line = _pick(uniform[0], len(AUTOAUGMENT_CIFAR10))
    happens = uniform[1:3] <= AUTOAUGMENT_PROBABILITY[:, line]
    op = torch.where(happens, AUTOAUGMENT_OPS[:, line], NAMES.index("Identity"))
    magnitude = AUTOAUGMENT_SPACE[op, AUTOAUGMENT_BINS[:, line]]
    return op, _negate(op, magnitude, uniform[3:])


def draw_trivialaugment(generator: torch.Generator, n: int, p: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """One operation for each of n images, Identity for all but a share `p`: op, magnitude (1, n)."""
    uniform = _uniforms(generator, 3 if p == 1 else 4, 1, n)
    which, bin, sign = uniform[:3]
    op = TRIVIAL_OPS[_pick(which, len(TRIVIAL_OPS))]
    if p < 1:
        op = torch.where(uniform[3] < p, op, NAMES.index("Identity"))
    return op, _negate(op, TRIVIAL_SPACE[op, _pick(bin, TRIVIAL_SPACE.shape[1])], sign)


def draw_augmix(generator: torch.Generator, n: int, severity: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """One to three operations for each of n chains, then Identity: op, magnitude (3, n)."""
    uniform = _uniforms(generator, 10, n)
    last, (which, bin, sign) = _pick(uniform[0], 3), uniform[1:].view(3, 3, n)
    op = AUGMIX_OPS[_pick(which, len(AUGMIX_OPS))]
    op = torch.where(torch.arange(3)[:, None] <= last, op, NAMES.index("Identity"))
    return op, _negate(op, AUGMIX_SPACE[op, _pick(bin, severity)], sign)


def _take(images, index):
    return images.index_select(0, index.to(images.device, non_blocking=True))


def _uniforms(generator, *shape):
    """Numbers in [0, 1), drawn on the generator's device and copied to the host at once."""
    return torch.rand(shape, generator=generator, device=generator.device).cpu()


def _pick(uniform, n):
    """A uniform integer in 0..n-1 from each uniform number."""
    return (uniform * n).long()


def _negate(op, magnitude, uniform):
    """The magnitudes, of which half are negated where the operation has a sign."""
    return torch.where(SIGNED[op] & (uniform <= 0.5), -magnitude, magnitude)
