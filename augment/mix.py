"""Mixing the images of a batch, and their targets with them: RICAP, CutMix, mixup.

    images, targets = ricap(generator, images, targets)
    images, hard, soft = cutmix(generator, images, hard, soft)

A mix takes a generator, a batch of images (N, C, H, W) and any number of float target tensors
(N, K), and returns all of them mixed in the same way. The geometry is drawn once per batch and
the partners per image, as in the papers; both stay on the device, so nothing waits for the
host. A target's weight is exactly the share of pixels that its image gives.
"""

import torch


def none(generator, images, *targets):
    """No mixing: the arguments as they came."""
    return images, *targets


def ricap(generator, images, *targets, beta=0.3):
    """Four random crops in one image, meeting at a random point: RICAP.

    The point's coordinates are Beta(beta, beta) shares of the width and the height, rounded to
    whole pixels, so a crop may be empty. Pixels are copied: any dtype; the result is
    channels_last in memory. Takahashi et al., Data Augmentation using Random Image Cropping
    and Patching for Deep CNNs, 2018.
    """
    height, width = images.shape[2:]
    share_y, share_x = _beta(generator, beta, 2)
    cut_y, cut_x = (share_y * height).round(), (share_x * width).round()
    y, x = _grid(images)
    part = 2 * (y >= cut_y) + (x >= cut_x)
    crop = torch.arange(4, device=images.device)
    y = y + _shift(generator, height, cut_y, crop // 2)[part]
    x = x + _shift(generator, width, cut_x, crop % 2)[part]
    partners = torch.stack([_permutation(generator, len(images)) for _ in range(4)])
    return _patch(part, y * width + x, partners, images, targets)


def cutmix(generator, images, *targets, alpha=1.0):
    """A box of another image pasted into each, at the same place: CutMix.

    The box has the image's proportions and, before it is clipped at the border, the share
    1 - Beta(alpha, alpha) of its area; its centre is uniform. Pixels are copied: any dtype; the
    result is channels_last in memory. Yun et al., CutMix: Regularization Strategy to Train
    Strong Classifiers, 2019.
    """
    height, width = images.shape[2:]
    side = (1 - _beta(generator, alpha, 1)).sqrt()
    y, x = _grid(images)
    part = (_near(generator, y, height, side) & _near(generator, x, width, side)).long()
    itself = torch.arange(len(images), device=images.device)
    partners = torch.stack([itself, _permutation(generator, len(images))])
    return _patch(part, y * width + x, partners, images, targets)


def mixup(generator, images, *targets, alpha=1.0):
    """A weighted sum of two images, the weight being Beta(alpha, alpha): mixup.

    Meant for a normalized float batch, where it is the paper's sum. A uint8 batch is blended in
    float32 and rounded to the nearest value. Zhang et al., mixup: Beyond Empirical Risk
    Minimization, 2017.
    """
    weight = _beta(generator, alpha, 1)
    partner = _permutation(generator, len(images))
    mixed = _blend(images, partner, weight)
    mixed = mixed if images.is_floating_point() else mixed.round_()
    return mixed.to(images.dtype), *(_blend(t, partner, weight).to(t.dtype) for t in targets)


def _patch(part, place, partners, images, targets):
    """Pixel p of new image n is pixel place[p] of image partners[part[p], n].

    part, place: (H, W) long, in 0..P-1 and 0..HW-1; partners: (P, N) long. Targets are averaged
    with the areas of the parts as weights.
    """
    n, channels, height, width = images.shape
    first_pixel = (partners.t() * (height * width)).int()  # of each partner, (N, P)
    source = first_pixel.gather(1, part.view(1, -1).expand(n, -1)).add_(place.int().view(-1))
    pixels = images.contiguous(memory_format=torch.channels_last)
    pixels = pixels.permute(0, 2, 3, 1).reshape(-1, channels)
    mixed = pixels.index_select(0, source.view(-1)).view(n, height, width, channels)
    area = torch.stack([(part == k).sum() for k in range(len(partners))])
    weights = (area / part.numel()).view(-1, 1, 1)
    return mixed.permute(0, 3, 1, 2), *((weights * t[partners]).sum(0).to(t.dtype) for t in targets)


def _shift(generator, size, cut, far):
    """How far each crop is moved along an axis, so that it starts anywhere that it fits.

    far: (P,) 0 for a crop that fills 0..cut of the new image, 1 for cut..size. Returns (P,) long,
    source minus new position.
    """
    room = torch.where(far > 0, cut, size - cut)
    start = (torch.rand(len(far), generator=generator, device=far.device) * (room + 1)).floor()
    return (start - far * cut).long()


def _near(generator, position, size, share):
    """True for positions within share * size / 2 (rounded down) of a uniform centre."""
    centre = torch.randint(size, (1,), generator=generator, device=position.device)
    half = (share * size / 2).floor()
    return (position >= centre - half) & (position < centre + half)


def _blend(tensor, partner, weight):
    return weight * tensor + (1 - weight) * tensor[partner]


def _beta(generator, alpha, count):
    """(count,) draws from Beta(alpha, alpha); torch.distributions would take no generator."""
    concentration = torch.full((count, 2), float(alpha), device=generator.device)
    return torch._sample_dirichlet(concentration, generator)[:, 0]


def _permutation(generator, n):
    return torch.randperm(n, generator=generator, device=generator.device)


def _grid(images):
    """Pixel coordinates y (H, 1) and x (W,)."""
    height, width = images.shape[2:]
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    return y[:, None], x
