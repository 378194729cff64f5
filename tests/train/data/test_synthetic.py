"""The generated set shows what its class names say."""

import numpy as np

from train.data.synthetic import SHAPES, draw_shapes


class Middle:
    """A generator that gives the middle of every range: no turn, no noise, a plain background."""

    def random(self, shape, dtype):
        return np.full(shape, 0.5, dtype)


def test_the_shapes_are_named_as_they_are_drawn():
    """Which of four pixels a shape covers, from its definition: the centre; right and up; right and down; beyond."""
    places = (15, 15), (10, 22), (21, 22), (23, 23)
    covered = {"disk": "1110", "square": "1111", "triangle": "1100", "ring": "0110", "cross": "1000"}
    for name, image in zip(SHAPES, draw_shapes(Middle(), np.arange(10)), strict=True):
        shown = "".join(str(int((image[place] != image[0, 0]).any())) for place in places)
        assert shown == covered[name.split()[1]], name
