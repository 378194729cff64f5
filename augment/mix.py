"""Mixing the images of a batch, together with their targets: RICAP, CutMix, mixup.

    images, targets = ricap(generator, images, targets)
    images, hard, soft = cutmix(generator, images, hard, soft, batch=128)

A mix takes a generator, images (N, C, H, W) and any number of float target tensors (N, K), and
returns all of them mixed in the same way. The geometry is drawn once per batch and the partners
per image, from the same batch, as in the papers. The images are one batch, or several of size
`batch`, which take hardly more calls than one. All draws stay on the device, so that nothing waits
for the host. A target's weight is exactly the share of pixels that its image contributes. RICAP
and CutMix copy pixels of any dtype, and are cheapest on bytes: mix first, then normalize.
"""

import torch

from augment.basic import dirichlet


def none(generator: torch.Generator, images: torch.Tensor, *targets: torch.Tensor, batch: int | None = None) -> tuple:
    """No mixing: returns images and targets unchanged."""
    return images, *targets


def ricap(generator: torch.Generator, images: torch.Tensor, *targets: torch.Tensor, batch: int | None = None,
          beta: float = 0.3) -> tuple:
    """Four random crops in one image, meeting at a random point: RICAP.

    The point's coordinates are Beta(beta, beta) shares of the width and the height, rounded to
    whole pixels, so a crop may be empty. Takahashi et al., Data Augmentation using Random Image
    Cropping and Patching for Deep CNNs, 2018.
    """
    height, width = images.shape[2:]
    member, batches = _batches(images, batch)
    share_y, share_x = _beta(generator, beta, 2 * batches).view(2, batches, 1)
    cut_y, cut_x = (share_y * height).round(), (share_x * width).round()
    crop = torch.arange(4, device=images.device)
    shift_y = _shift(generator, height, cut_y, crop // 2)
    shift_x = _shift(generator, width, cut_x, crop % 2)
    partners = _permutations(generator, 4, member)

    # Each new row is the left part of one source row and the right part of another.
    y, x = _positions(images)
    below, right = 2 * (y >= cut_y), x >= cut_x
    shift = shift_y * width + shift_x
    rows, columns = torch.cat([cut_y, height - cut_y], 1), torch.cat([cut_x, width - cut_x], 1)
    area = (rows[:, :, None] * columns[:, None]).view(batches, 4)
    mixed = _choose(right, member, *_rows(images, partners, shift, (below, below + 1), member))
    return mixed, *_average((area / (height * width))[member], partners, targets)


def cutmix(generator: torch.Generator, images: torch.Tensor, *targets: torch.Tensor, batch: int | None = None,
           alpha: float = 1.0, p: float = 1.0) -> tuple:
    """A box of another image pasted into each, at the same place: CutMix.

    The box has the image's proportions and, before it is clipped at the border, the share
    1 - Beta(alpha, alpha) of its area; its centre is uniform. A batch is mixed with probability p, and
    else gets an empty box. Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers, 2019.
    """
    height, width = images.shape[2:]
    member, batches = _batches(images, batch)
    side = (1 - _beta(generator, alpha, batches)).sqrt()[:, None]
    if p < 1:
        side = side * (torch.rand(side.shape, generator=generator, device=images.device) < p)
    y, x = _positions(images)
    inside_y, inside_x = _near(generator, y, height, side), _near(generator, x, width, side)
    itself = torch.arange(len(images), device=images.device)
    partners = torch.stack([itself, *_permutations(generator, 1, member)])
    (pasted,) = _rows(images, partners, partners.new_zeros(batches, 2), [inside_y.long()], member)
    area = inside_y.sum(1) * inside_x.sum(1) / (height * width)
    weights = torch.stack([1 - area, area], 1)[member]
    return _choose(inside_x, member, images, pasted), *_average(weights, partners, targets)


def mixup(generator: torch.Generator, images: torch.Tensor, *targets: torch.Tensor, batch: int | None = None,
          alpha: float = 1.0) -> tuple:
    """A weighted sum of two images, the weight being Beta(alpha, alpha): mixup.

    The sum is not rounded: bytes become float32 pixel values in 0..255. Normalization is affine,
    so it may come before or after. Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017.
    """
    member, batches = _batches(images, batch)
    weight = _beta(generator, alpha, batches)[member]
    (partner,) = _permutations(generator, 1, member)
    return _blend(images, partner, weight), *(_blend(t, partner, weight).to(t.dtype) for t in targets)


def _batches(images, batch):
    """The index of each image's batch, (N,) long, and the number of batches; the last batch may be smaller."""
    batch = batch or len(images)
    return torch.arange(len(images), device=images.device) // batch, -(-len(images) // batch)


def _rows(images, partners, shift, parts, member):
    """For each `part` of parts, new images whose rows come from the images partners[part].

    partners: (P, N), shift: (B, P), part: (B, H), member: (N,), all long. Row j of image n, of batch b = member[n],
    is read from row j of image partners[part[b, j], n], starting shift[b, part[b, j]] pixels after its start. Pixels
    before or after the source row have no meaning.
    """
    _, channels, height, width = images.shape
    # A row is a window of the flattened images; copying windows is far cheaper than copying single pixels.
    pixels = images.reshape(-1)
    windows = torch.cat((pixels[:width], pixels, pixels[-width:])).unfold(0, width, 1)
    plane = height * width * torch.arange(channels, device=images.device)[:, None]
    own_row = width * torch.arange(1, height + 1, device=images.device)
    first_pixel = channels * height * width * partners.t()
    for part in parts:
        within = (own_row + shift.gather(1, part))[member]
        index = (first_pixel.gather(1, part[member]) + within)[:, None] + plane
        yield windows.index_select(0, index.view(-1)).view(images.shape)


def _choose(second, member, one, other):
    """`other`, which is overwritten, in the columns where second[member] is true, `one` elsewhere.

    second: (B, W) bool, member: (N,) long. On a CPU, three bitwise operations on bytes are many times faster than
    torch.where, if the mask is expanded to whole images.
    """
    height, width = one.shape[2:]
    in_bytes = one.dtype == torch.uint8
    mask = second.to(torch.uint8) * 255 if in_bytes else second
    mask = mask[:, None].expand(-1, height, -1).flatten(1).index_select(0, member).view(-1, 1, height, width)
    return other.bitwise_xor_(one).bitwise_and_(mask).bitwise_xor_(one) if in_bytes else torch.where(mask, other, one)


def _average(weights, partners, targets):
    """Targets averaged with the parts' shares of the area as weights.

    weights: (N, P) float, exact, as areas are whole numbers over a power of two; partners: (P, N)
    long. Yields one (N, K) tensor per target.
    """
    weights = weights.t()[:, :, None]
    return ((weights * target[partners]).sum(0).to(target.dtype) for target in targets)


def _shift(generator, size, cut, far):
    """How far each crop is moved along an axis, so that it starts anywhere that it fits.

    cut: (B, 1) whole numbers; far: (P,) 0 for a crop that fills 0..cut of the new image, 1 for
    cut..size. Returns (B, P) long, source minus new position.
    """
    room = torch.where(far > 0, cut, size - cut)
    start = (torch.rand(room.shape, generator=generator, device=far.device) * (room + 1)).floor()
    return (start - far * cut).long()


def _near(generator, position, size, share):
    """(B, size) true for positions within share * size / 2 (rounded down) of a uniform centre. share: (B, 1)."""
    centre = torch.randint(size, share.shape, generator=generator, device=position.device)
    half = (share * size / 2).floor()
    return (position >= centre - half) & (position < centre + half)


def _blend(tensor, partner, weight):
    weight = weight.view(-1, *[1] * (tensor.dim() - 1))
    return weight * tensor + (1 - weight) * tensor[partner]


def _beta(generator, alpha, count):
    """(count,) draws from Beta(alpha, alpha)."""
    return dirichlet(generator, alpha, count, 2)[:, 0]


def _permutations(generator, count, member):
    """`count` independent permutations of the images, each within its own batch, (count, N) long."""
    uniform = torch.rand(count, len(member), generator=generator, device=member.device)
    return (uniform + member.double()).argsort(1)  # double, so that the sum is never rounded up into the next batch


def _positions(images):
    """The coordinates y (H,) and x (W,) of rows and columns."""
    return (torch.arange(size, device=images.device) for size in images.shape[2:])
