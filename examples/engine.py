"""The Gram engine alone, in plain PyTorch: which samples help each other, and what the engine does to know."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_stiffness.functional import class_matrix, cosine_stiffness, own_class_alignment
from lightning_stiffness.gram import GramEngine


def losses(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return cross_entropy(module(batch[0]), batch[1], reduction="none")


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)).eval()
    batch = torch.randn(60, 1, 8, 8), torch.arange(60) % 3
    engine = GramEngine(model, losses)
    gram = engine.gram(batch)
    print(engine.explain(batch))
    print("class matrix of mean cosines\n", cosine_stiffness(gram.matrix, batch[1], 3))
    print("the same without pairs, for large batches\n", engine.class_cosine(batch, batch[1], 3).matrix)
    parts = engine.gram(batch, by="layer").parts
    share = {layer: round(float(part.trace() / gram.matrix.trace()), 3) for layer, part in parts.items()}
    print("share of the squared gradient norms in each layer", share)
    new = torch.randn(5, 1, 8, 8), torch.arange(5) % 3
    print("mean cosine of five new samples with the batch", engine.cross_gram(new, batch).cosines.mean(1))
    only = engine.gram(batch, within=batch[1])  # a third of the products
    print("within-class stiffness alone", class_matrix(only.cosines, batch[1], batch[1], 3).diagonal())
    alignment = own_class_alignment(gram.cosines, batch[1])
    print("samples which agree least with their class:", alignment.argsort()[:3].tolist())


if __name__ == "__main__":
    main()
