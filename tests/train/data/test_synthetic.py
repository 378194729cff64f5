"""The generated set shows what its class names say."""

import numpy as np

from train.data.synthetic import SHAPES, synthetic


def test_the_shapes_are_named_as_they_are_drawn():
    images, labels = synthetic("test")
    names = np.array(SHAPES)[labels]
    border = images[:, (0, 31)].mean((1, 2), keepdims=True)
    stray = abs(images.astype(float) - border).mean(3)  # from the background

    def middle(shape):
        return stray[np.char.endswith(names, shape), 15:17, 15:17].mean()

    assert middle("ring") < 0.8 * middle("disk")  # a ring is hollow
    assert len(set(names)) == 10 and names[0] == "striped disk" and names[9] == "checked cross"
