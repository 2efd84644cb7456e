"""Stiffness of a classifier at its last layer, and below it.

The gradient of a sample's cross entropy with respect to the last linear layer is (p - e_y) h^T, with its probabilities
p, its class y and its features h. Where two classes take probability from each other, these gradients are opposed: the
classes fight, at the level of the classifier, however much they share in the features below.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.stiffness import class_matrix, cosine_pairs
from lightning_stiffness.functional.tally import class_sums
from lightning_stiffness.functional.validation import require_matrix, require_targets
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.products import row_products

CLASSIFIER: Final = "classifier"
FEATURES: Final = "features"


@dataclass(frozen=True, eq=False)
class StiffnessLevels:
    """Cosines of the samples' gradients, level by level.

    Attributes:
        classifier: Of the classifier's parameters, [n, n]; nan where a pair does not count.
        chance: What they would be if each sample's lost probability were split evenly among the other classes.
        features: Of all other parameters; None where there are no trainable ones.
        targets: Class of each sample.
        num_classes: Number c of classes.
        separation: By how much more probability a class gets from its own samples than from others, mean over classes,
            in [-1, 1]; about 0 for an untrained network.
    """

    classifier: Float[Tensor, "n n"]
    chance: Float[Tensor, "n n"]
    features: Float[Tensor, "n n"] | None
    targets: Int[Tensor, "n"]
    num_classes: int
    separation: float

    @property
    def classifier_matrix(self) -> Float[Tensor, "c c"]:
        """Class matrix at the classifier: negative where two classes fight; nan where no pair counts."""
        return class_matrix(self.classifier, self.targets, self.targets, self.num_classes)

    @property
    def feature_matrix(self) -> Float[Tensor, "c c"] | None:
        """Class matrix of the features: positive where two classes share what is being learnt."""
        if self.features is None:
            return None
        return class_matrix(self.features, self.targets, self.targets, self.num_classes)


def classifier_gram(
    probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"], features: Float[Tensor, "n d"], bias: bool = True
) -> Float[Tensor, "n n"]:
    """Gram matrix of the cross-entropy gradients of a linear classifier, without computing a gradient.

    Args:
        probabilities: Predicted ones, rows sum to 1.
        targets: Class of each sample.
        features: Input of the classifier.
        bias: Whether it has a bias.

    Returns:
        ((p - e)(p - e)^T) * (h h^T + 1 for the bias), elementwise; symmetric, positive semi-definite, float64.

    Raises:
        StiffnessError: The probabilities are no matrix, or a target is none of the classes.

    Source: ours; the gradient (p - e_y) h^T is textbook.

    >>> classifier_gram(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([0, 1]), torch.ones(2, 1), bias=False)
    tensor([[ 0.5000, -0.5000],
            [-0.5000,  0.5000]], dtype=torch.float64)
    """
    require_matrix(probabilities, "probabilities")
    targets = require_targets(targets, len(probabilities), probabilities.shape[1])
    return _error_gram(probabilities, targets) * _input_gram(features, bias)


def chance_gram(
    probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"], features: Float[Tensor, "n d"], bias: bool = True
) -> Float[Tensor, "n n"]:
    """What `classifier_gram` would be if what each sample loses went in equal parts to all other classes.

    Nobody is confused with anybody then. With the probability l_i that sample i loses, the product of (p - e) of two
    samples is l_i l_j c / (c - 1) in one class, and -l_i l_j c / (c - 1)^2 across classes: corners of a simplex.

    Args:
        probabilities: Of at least 2 classes, rows sum to 1.
        targets: As in `classifier_gram`.
        features: Likewise.
        bias: Likewise.

    Returns:
        As `classifier_gram`.

    Raises:
        StiffnessError: As `classifier_gram`, or there is one class.

    Source: ours.

    >>> chance_gram(torch.tensor([[0.6, 0.4, 0], [0, 0, 1.0]]), torch.tensor([0, 1]), torch.ones(2, 1), bias=False)
    tensor([[ 0.2400, -0.3000],
            [-0.3000,  1.5000]], dtype=torch.float64)
    """
    require_matrix(probabilities, "probabilities")
    targets = require_targets(targets, len(probabilities), probabilities.shape[1])
    return _even_gram(probabilities, targets) * _input_gram(features, bias)


def _error_gram(probabilities: Tensor, targets: Tensor) -> Float[Tensor, "n n"]:
    errors = probabilities.to(torch.float64, copy=True)
    errors[torch.arange(len(errors), device=errors.device), targets.long()] -= 1
    return row_products(errors)


def _even_gram(probabilities: Tensor, targets: Tensor) -> Float[Tensor, "n n"]:
    classes = probabilities.shape[1]
    if classes < 2:
        raise StiffnessError(f"At least 2 classes are needed, found {classes}: alone, a class loses nothing to others.")
    lost = 1 - probabilities.double().gather(1, targets.long()[:, None])
    same = targets[:, None] == targets
    return torch.where(same, classes - 1.0, -1.0).to(lost).mul_(lost).mul_(lost.T * (classes / (classes - 1) ** 2))


def _even_errors(probabilities: Tensor, targets: Tensor) -> Float[Tensor, "n c"]:
    """The errors that `_even_gram` is of: what a sample loses, in equal parts at the other classes."""
    classes = probabilities.shape[1]
    if classes < 2:
        raise StiffnessError(f"At least 2 classes are needed, found {classes}: alone, a class loses nothing to others.")
    own = targets.long()[:, None]
    lost = 1 - probabilities.gather(1, own)
    return (lost / (classes - 1)).expand(-1, classes).scatter(1, own, -lost)


def _input_gram(features: Tensor, bias: bool) -> Float[Tensor, "n n"]:
    return row_products(features.double()) + float(bias)


def measure_levels(
    engine: GramEngine, loss: Callable[[Any, Any], Tensor], batch: Any, targets: Int[Tensor, "n"], layer: nn.Module
) -> StiffnessLevels:
    """Stiffness at the classifier and below it, for a network that is trained with cross entropy.

    Args:
        engine: The engine of the module, put in eval mode.
        loss: Its loss, (module, batch) -> losses [n].
        batch: The samples, such as a class-balanced `Probe`'s.
        targets: Their classes.
        layer: The layer that makes the logits: a linear one, or any other with trainable parameters.

    Returns:
        The cosines of both levels: two forward passes and a Gram matrix of the features; of a layer that is not linear
        a third pass and a Gram matrix, for its chance.

    Raises:
        StiffnessError: The layer is not called once with a row for each sample, it is not linear and has no trainable
            parameters, or as `GramEngine.gram`.

    Source: ours.
    """
    inputs, logits = seen_at(layer, lambda: loss(engine.module, batch), len(targets))
    parts = engine.gram(batch, by=level_of(engine.module, layer)).parts
    if is_linear(layer):
        return levels_of(inputs, logits, targets, parts.get(FEATURES), has_bias(layer))
    chance = chance_at(engine.module, layer, loss, batch, (logits, targets))
    return levels_of_grams(parts[CLASSIFIER], chance, logits, targets, parts.get(FEATURES))


def chance_at(
    module: nn.Module,
    layer: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    batch: Any,
    seen: tuple[Float[Tensor, "n c"], Int[Tensor, "n"]],
) -> Float[Tensor, "n n"]:
    """`chance_gram` of a classifier of any kind: the Gram matrix of the gradients that it would have by chance.

    Args:
        module: The module, in eval mode.
        layer: The classifier.
        loss: As of `measure_levels`.
        batch: The samples.
        seen: What the classifier makes of them, and their classes.

    Raises:
        StiffnessError: The classifier has no trainable parameters, there is one class, or as `GramEngine.gram`.
    """
    if not any(parameter.requires_grad for parameter in layer.parameters()):
        raise StiffnessError(
            f"The classifier must be a Linear layer or have trainable parameters, found none in "
            f"{type(layer).__name__}. Name the module that holds them and gives the logits."
        )
    logits, targets = seen
    errors = _even_errors(logits.detach().double().softmax(1), targets.to(logits.device)).to(logits)
    engine = GramEngine(module, _ErrorLoss(layer, loss))
    return engine.gram((batch, errors), by=level_of(module, layer)).parts[CLASSIFIER]


class _ErrorLoss:
    """Losses with given gradients with respect to the logits."""

    def __init__(self, layer: nn.Module, loss: Callable[[Any, Any], Tensor]) -> None:
        self._layer, self._loss = layer, loss

    def __call__(self, module: nn.Module, batch: tuple[Any, Float[Tensor, "n c"]]) -> Float[Tensor, "n"]:
        samples, errors = batch
        seen: list[Tensor] = []
        handle = self._layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
        try:
            self._loss(module, samples)
        finally:
            handle.remove()
        return (seen[0] * errors.to(seen[0])).sum(1)


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a Linear one whose own parameters are its weights, so that `classifier_gram` holds for it.

    Not one with adapters (LoRA) or with a weight made of other parameters (weight_norm).
    """
    return getattr(type(layer), "forward", None) is nn.Linear.forward and "weight" in dict(
        layer.named_parameters(recurse=False)
    )


def level_of(module: nn.Module, layer: nn.Module) -> Callable[[str], str]:
    """The level of each parameter, by its name, for `GramEngine.gram(by=...)`."""
    own = {id(parameter) for parameter in layer.parameters()}
    names = {name for name, parameter in module.named_parameters() if id(parameter) in own}
    return lambda name: CLASSIFIER if name in names else FEATURES


def has_bias(layer: nn.Module) -> bool:
    """Whether a linear layer adds a bias."""
    return getattr(layer, "bias", None) is not None


def levels_of(
    inputs: Float[Tensor, "n d"],
    logits: Float[Tensor, "n c"],
    targets: Int[Tensor, "n"],
    features: Float[Tensor, "n n"] | None,
    bias: bool = True,
) -> StiffnessLevels:
    """Both levels from what the classifier was given, what it made of it, and the Gram matrix of the features.

    Raises:
        StiffnessError: A target is none of the classes, or there is one class.
    """
    targets = require_targets(targets.to(logits.device), len(targets), logits.shape[1])
    probabilities = logits.double().softmax(1)
    seen = _input_gram(inputs, bias)
    own = _error_gram(probabilities, targets).mul_(seen)
    return levels_of_grams(own, _even_gram(probabilities, targets).mul_(seen), logits, targets, features)


def levels_of_grams(
    own: Float[Tensor, "n n"],
    chance: Float[Tensor, "n n"],
    logits: Float[Tensor, "n c"],
    targets: Int[Tensor, "n"],
    features: Float[Tensor, "n n"] | None,
) -> StiffnessLevels:
    """Both levels from their Gram matrices: of the classifier as it is and as by chance (`chance_at`), the features.

    Raises:
        StiffnessError: A target is none of the classes.
    """
    targets = require_targets(targets.to(logits.device), len(targets), logits.shape[1])
    probabilities = logits.double().softmax(1)
    return StiffnessLevels(
        classifier=cosine_pairs(own),
        chance=cosine_pairs(chance),
        features=None if features is None else cosine_pairs(features),
        targets=targets,
        num_classes=logits.shape[1],
        separation=_separation(probabilities, targets),
    )


def seen_at(layer: nn.Module, run: Callable[[], Any], samples: int) -> tuple[Tensor, Tensor]:
    """What a layer is given, and what it makes of it, while a function runs without gradients.

    Raises:
        StiffnessError: The layer is not called once with a row for each sample; what is not linear may be given more
            than a matrix.
    """
    seen: list[tuple[Any, Any]] = []
    handle = layer.register_forward_hook(
        lambda _, inputs, named, output: seen.append(((*inputs, *named.values())[0], output)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    if len(seen) != 1 or any(value.ndim != 2 or len(value) != samples for value in seen[0][not is_linear(layer) :]):
        raise StiffnessError(
            f"The classifier must be called once, with a row for each of {samples} samples; found "
            f"{[tuple(value.shape) for call in seen for value in call]} as inputs and outputs. Pass the layer that "
            "makes the logits."
        )
    return seen[0]


def _separation(probabilities: Tensor, targets: Tensor) -> float:
    sizes = class_sums(torch.ones_like(probabilities[:, 0]), targets, probabilities.shape[1])
    own = class_sums(probabilities, targets, probabilities.shape[1]).diagonal()
    others = (probabilities.sum(0) - own) / (len(targets) - sizes)
    return float((own / sizes - others).nanmean())
