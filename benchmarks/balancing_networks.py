"""The networks of the benchmark of imbalanced classes: a perceptron and a small CNN."""

from itertools import pairwise

from torch import Size, nn

HIDDEN = {"mnist": (256, 128), "look-alike": (128, 64), "digits": (128, 64)}
TABLE_HIDDEN = (32, 32)
CHANNELS = {"mnist": (16, 32), "cifar10": (32, 64, 64)}


def network(kind: str, data: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """A network for inputs of this shape."""
    return convolutions(data, shape, classes) if kind == "cnn" else perceptron(data, shape, classes)


def perceptron(data: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Linear layers and ReLU."""
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = (Size(shape).numel(), *HIDDEN.get(data, TABLE_HIDDEN))
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def convolutions(data: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Convolutions, each of which halves the image by its stride, and two linear layers."""
    layers: list[nn.Module] = []
    for before, after in pairwise((shape[0], *CHANNELS[data])):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    side = -(-shape[1] // 2 ** len(CHANNELS[data]))
    width = CHANNELS[data][-1] * side * side
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, classes))
