"""Small pictures of the samples of a probe, where they are images."""

import io
import math
from typing import Any, Final

import torch
from jaxtyping import UInt8
from matplotlib.image import imsave
from torch import Tensor

from lightning_stiffness.inputs import inputs_of

LARGEST_SIDE: Final = 48  # pixels of a small picture
# Vectors of these lengths are images in the data sets that people begin with: digits, MNIST, CIFAR.
FLAT_IMAGES: Final = {64: (1, 8, 8), 784: (1, 28, 28), 1024: (1, 32, 32), 3072: (3, 32, 32)}
CHANNELS: Final = (1, 3, 4)


def thumbnails(batch: Any, samples: int) -> tuple[bytes, ...]:
    """A PNG of each input of a batch, where inputs are images; nothing where they are not.

    Images are [n, channels, height, width], [n, height, width, channels], [n, height, width], or vectors of 64, 784,
    1,024 or 3,072 numbers. Each is stretched to its own range, and made smaller by leaving out pixels.

    >>> len(thumbnails((torch.rand(3, 1, 8, 8), torch.arange(3)), samples=3))
    3
    """
    inputs = inputs_of(batch, samples)
    images = None if inputs is None else _as_images(inputs.cpu())
    return () if images is None else tuple(_png(image) for image in images)


def _as_images(inputs: Tensor) -> Tensor | None:
    """[n, height, width, channels], or None."""
    shape = tuple(inputs.shape[1:])
    if len(shape) == 1 and shape[0] in FLAT_IMAGES:
        return inputs.reshape(-1, *FLAT_IMAGES[shape[0]]).permute(0, 2, 3, 1)
    if len(shape) == 2 and min(shape) >= 8:
        return inputs[..., None]
    if len(shape) == 3 and shape[0] in CHANNELS and min(shape[1:]) >= 4:
        return inputs.permute(0, 2, 3, 1)
    if len(shape) == 3 and shape[2] in CHANNELS and min(shape[:2]) >= 4:
        return inputs
    return None


def _png(image: Tensor) -> bytes:
    step = math.ceil(max(image.shape[:2]) / LARGEST_SIDE)
    file = io.BytesIO()
    imsave(file, _bytes(image[::step, ::step]).numpy(), format="png")
    return file.getvalue()


def _bytes(image: Tensor) -> UInt8[Tensor, "h w 3"]:
    image = image.double().nan_to_num()
    low, high = image.min(), image.max()
    scaled = ((image - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    return scaled[..., :3] if scaled.shape[-1] >= 3 else scaled[..., :1].expand(-1, -1, 3)
