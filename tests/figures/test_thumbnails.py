import io

import pytest
import torch
from matplotlib.image import imread

from lightning_stiffness.figures.thumbnails import thumbnails


def pixels(picture):
    return torch.from_numpy(imread(io.BytesIO(picture)).copy())[..., :3]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 8, 6), (8, 6)),
        ((3, 32, 32), (32, 32)),
        ((16, 12, 3), (16, 12)),
        ((9, 9), (9, 9)),
        ((64,), (8, 8)),
        ((784,), (28, 28)),
        ((3072,), (32, 32)),
        ((3, 96, 200), (20, 40)),
    ],
)
def test_each_image_becomes_a_small_picture(shape, size):
    pictures = thumbnails((torch.rand(2, *shape), torch.arange(2)), 2)
    assert [tuple(pixels(picture).shape) for picture in pictures] == [(*size, 3)] * 2


@pytest.mark.parametrize("shape", [(5,), (2,), (7, 3), (12, 20, 20)])
def test_other_inputs_have_none(shape):
    assert thumbnails((torch.rand(2, *shape), torch.arange(2)), 2) == ()


def test_the_picture_shows_the_image_in_its_own_range():
    image = torch.arange(64.0).reshape(1, 1, 8, 8) - 30
    shown = pixels(thumbnails((image, torch.zeros(1, dtype=torch.int64)), 1)[0])
    torch.testing.assert_close(shown[..., 0], torch.arange(64.0).reshape(8, 8) / 63, atol=0.003, rtol=0)


def test_a_constant_image_is_no_trouble():
    assert len(thumbnails((torch.zeros(1, 1, 8, 8),), 1)) == 1
