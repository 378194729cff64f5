"""Mixing the images of a batch, and their targets with them: RICAP, CutMix, mixup.

    images, targets = ricap(generator, images, targets)
    images, hard, soft = cutmix(generator, images, hard, soft)

A mix takes a generator, a batch of images (N, C, H, W) and any number of float target tensors
(N, K), and returns all of them mixed in the same way. The geometry is drawn once per batch and
the partners per image, as in the papers; both stay on the device, so nothing waits for the
host. A target's weight is exactly the share of pixels that its image gives. RICAP and CutMix
copy pixels of any dtype, and are cheapest on bytes: mix first, then normalize.
"""

import torch
import torch.nn.functional as F


def none(generator, images, *targets):
    """No mixing: the arguments as they came."""
    return images, *targets


def ricap(generator, images, *targets, beta=0.3):
    """Four random crops in one image, meeting at a random point: RICAP.

    The point's coordinates are Beta(beta, beta) shares of the width and the height, rounded to
    whole pixels, so a crop may be empty. Takahashi et al., Data Augmentation using Random Image
    Cropping and Patching for Deep CNNs, 2018.
    """
    height, width = images.shape[2:]
    share_y, share_x = _beta(generator, beta, 2)
    cut_y, cut_x = (share_y * height).round(), (share_x * width).round()
    crop = torch.arange(4, device=images.device)
    shift_y = _shift(generator, height, cut_y, crop // 2)
    shift_x = _shift(generator, width, cut_x, crop % 2)
    partners = _permutations(generator, 4, len(images))

    # Each new row is the left part of one source row and the right part of another.
    y, x = _positions(images)
    below, right = y >= cut_y, x >= cut_x
    halves = [_rows(images, partners[k], y + shift_y[k], shift_x[k]) for k in (2 * below, 2 * below + 1)]
    rows, columns = torch.stack([cut_y, height - cut_y]), torch.stack([cut_x, width - cut_x])
    area = (rows[:, None] * columns).view(4)
    return _choose(right, *halves), *_average(area / (height * width), partners, targets)


def cutmix(generator, images, *targets, alpha=1.0):
    """A box of another image pasted into each, at the same place: CutMix.

    The box has the image's proportions and, before it is clipped at the border, the share
    1 - Beta(alpha, alpha) of its area; its centre is uniform. Yun et al., CutMix: Regularization
    Strategy to Train Strong Classifiers, 2019.
    """
    height, width = images.shape[2:]
    side = (1 - _beta(generator, alpha, 1)).sqrt()
    y, x = _positions(images)
    inside_y, inside_x = _near(generator, y, height, side), _near(generator, x, width, side)
    itself = torch.arange(len(images), device=images.device)
    partners = torch.cat([itself[None], _permutations(generator, 1, len(images))])
    pasted = _rows(images, partners[inside_y.long()], y, torch.zeros_like(y))
    area = inside_y.sum() * inside_x.sum() / (height * width)
    return _choose(inside_x, images, pasted), *_average(torch.stack([1 - area, area]), partners, targets)


def mixup(generator, images, *targets, alpha=1.0):
    """A weighted sum of two images, the weight being Beta(alpha, alpha): mixup.

    The sum is not rounded: bytes become float32 pixel values in 0..255. Normalization is affine,
    so it may come before or after. Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017.
    """
    weight = _beta(generator, alpha, 1)
    (partner,) = _permutations(generator, 1, len(images))
    return _blend(images, partner, weight), *(_blend(t, partner, weight).to(t.dtype) for t in targets)


def _rows(images, partners, y, x):
    """Row j of new image n is the row y[j] of image partners[j, n], read from its pixel x[j] on.

    partners: (H, N), y, x: (H,), all long. What lies before or behind the source row, where x is
    not 0, is of no meaning.
    """
    n, channels, height, width = images.shape
    # A row is a window of the flattened batch: copying windows is far cheaper than single pixels.
    windows = F.pad(images.reshape(-1), (width, width)).unfold(0, width, 1)
    image = partners.t()[:, None] * (channels * height * width)
    channel = torch.arange(channels, device=images.device)[:, None] * (height * width)
    first_pixel = image + (channel + (y * width + x + width))
    return windows.index_select(0, first_pixel.reshape(-1)).view(images.shape)


def _choose(second, one, other):
    """`other` in the columns where `second` (W,) is true, `one` elsewhere.

    Bytes wrap around, so the sum below is exact for them, and several times faster on a CPU than
    torch.where.
    """
    if one.dtype == torch.uint8:
        return torch.addcmul(one, other - one, second.to(torch.uint8))
    return torch.where(second, other, one)


def _average(shares, partners, targets):
    """Targets averaged with the parts' shares of the area as weights.

    shares: (P,) float, exact, as areas are whole numbers over a power of two; partners: (P, N)
    long. Yields one (N, K) tensor per target.
    """
    weights = shares.view(-1, 1, 1)
    return ((weights * target[partners]).sum(0).to(target.dtype) for target in targets)


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


def _permutations(generator, count, n):
    """`count` independent permutations of n images, (count, n) long."""
    return torch.rand(count, n, generator=generator, device=generator.device).argsort(1)


def _positions(images):
    """The coordinates y (H,) and x (W,) of rows and columns."""
    return (torch.arange(size, device=images.device) for size in images.shape[2:])
