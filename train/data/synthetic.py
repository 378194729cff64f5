"""The generated set: ten classes of textured shapes, for trials and demos without CIFAR-10."""

import numpy as np

# The shapes of the ten generated classes, and their typical hues.
HUES = (
    (0.90, 0.20, 0.20), (0.90, 0.55, 0.15), (0.85, 0.85, 0.20), (0.45, 0.85, 0.20), (0.20, 0.80, 0.40),
    (0.20, 0.80, 0.85), (0.20, 0.50, 0.90), (0.30, 0.25, 0.90), (0.65, 0.25, 0.90), (0.90, 0.25, 0.65),
)
SHAPES = tuple(f"{texture} {shape}" for shape in ("disk", "square", "triangle", "ring", "cross")
               for texture in ("striped", "checked"))


def synthetic(part: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (N, 32, 32, 3), labels int64 (N,)): 5,000 training or 2,000 test images of the generated set.

    Ten classes: five shapes by two textures, each with a typical hue. Position, size, angle, colour, the period of the
    texture and a sloping background vary, and there is noise on top: a linear model gets a third right. It uses only
    + - * / and square roots, which IEEE 754 defines exactly, so every machine generates the same bytes.
    """
    seed, count = {"train": (1, 5_000), "test": (2, 2_000)}[part]
    labels, random = np.arange(count) % len(HUES), np.random.default_rng([20_09, seed])
    pieces = [draw_shapes(random, piece) for piece in np.split(labels, count // 100)]  # which fit in the cache
    return np.concatenate(pieces), labels


def draw_shapes(random: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """uint8 images (N, 32, 32, 3) for labels (N,)."""
    count = len(labels)

    def uniform(low, high, *shape):
        return np.float32(low) + np.float32(high - low) * random.random((count, *(shape or (1, 1))), dtype=np.float32)

    grid = np.arange(32, dtype=np.float32)
    x, y = grid[None, None, :] - uniform(11, 20), grid[None, :, None] - uniform(11, 20)

    # A random direction (a point on a line, normalized) turns the shape and its texture by up to 31 degrees.
    a, b = uniform(-0.6, 0.6), np.float32(1)
    length = np.sqrt(a * a + b * b)
    u, v = (x * b + y * a) / length, (y * b - x * a) / length
    size = uniform(7, 12)
    radius = np.sqrt(u * u + v * v)
    distance = np.choose(labels[:, None, None] // 2, [  # 1 on the outline
        radius / size,
        np.maximum(abs(u), abs(v)) / size * 1.15,
        np.maximum(abs(u) * 1.6 + v * 0.8, -v * 1.4) / size,
        abs(radius - 0.72 * size) / size * 3.2,
        np.minimum(np.maximum(abs(u), abs(v) * 3.2), np.maximum(abs(u) * 3.2, abs(v))) / size,
    ])
    inside = np.clip((1 - distance) * size / 1.5 + 0.5, 0, 1)[..., None]

    # Stripes and checks are triangle waves of a random period along one or both axes.
    period = uniform(3.5, 6)
    along, across = (abs((t / period + uniform(0, 1)) % 1 - 0.5) * 4 - 1 for t in (u, v))
    texture = np.clip(1.5 * np.where(labels[:, None, None] % 2, along * across * 2, along), -1, 1)[..., None]

    hue = np.array(HUES, dtype=np.float32)[labels][:, None, None, :]
    colour = np.float32(0.6) * hue + np.float32(0.4) * uniform(0, 1, 1, 1, 3)
    foreground = colour + uniform(0.12, 0.25, 1, 1, 1) * texture
    slope = uniform(-0.012, 0.012, 1, 1, 3) * x[..., None] + uniform(-0.012, 0.012, 1, 1, 3) * y[..., None]
    background = uniform(0.1, 0.9, 1, 1, 3) + slope
    noise = uniform(-0.2, 0.2, 32, 32, 3) + uniform(-0.2, 0.2, 32, 32, 3)
    image = background + (foreground - background) * inside + noise
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)
