"""The formulas once more as plain Python loops in float64, without any of the package's code."""

from collections.abc import Callable, Sequence
from math import isnan, nan, sqrt

Matrix = Sequence[Sequence[float]]


def mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not isnan(value)]
    return sum(defined) / len(defined) if defined else nan


def pairs(gram: Matrix, value: Callable[[float, float, float], float]) -> list[list[float]]:
    size = len(gram)
    result = [[nan] * size for _ in range(size)]
    for i in range(size):
        for j in range(size):
            if i != j and gram[i][i] > 0 and gram[j][j] > 0:
                result[i][j] = value(gram[i][j], gram[i][i], gram[j][j])
    return result


def cosine_pairs(gram: Matrix) -> list[list[float]]:
    return pairs(gram, lambda product, first, second: max(-1.0, min(1.0, product / sqrt(first * second))))


def sign_pairs(gram: Matrix) -> list[list[float]]:
    return pairs(gram, lambda product, _first, _second: float((product > 0) - (product < 0)))


def class_matrix(values: Matrix, rows: Sequence[int], columns: Sequence[int], num_classes: int) -> list[list[float]]:
    found: list[list[list[float]]] = [[[] for _ in range(num_classes)] for _ in range(num_classes)]
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            found[row][column].append(values[i][j])
    return [[mean(entry) for entry in line] for line in found]


def within_class(matrix: Matrix) -> float:
    return mean([matrix[a][a] for a in range(len(matrix))])


def between_class(matrix: Matrix) -> float:
    return mean([matrix[a][b] for a in range(len(matrix)) for b in range(len(matrix)) if a != b])


def superclass_within(matrix: Matrix, superclasses: Sequence[int]) -> float:
    classes = range(len(matrix))
    same = [matrix[a][b] for a in classes for b in classes if a != b and superclasses[a] == superclasses[b]]
    return mean(same)


def superclass_between(matrix: Matrix, superclasses: Sequence[int]) -> float:
    classes = range(len(matrix))
    return mean([matrix[a][b] for a in classes for b in classes if superclasses[a] != superclasses[b]])


def own_class_alignment(values: Matrix, targets: Sequence[int]) -> list[float]:
    samples = range(len(targets))
    return [mean([values[i][j] for j in samples if targets[j] == targets[i]]) for i in samples]


def summaries(values: Matrix, rows: Sequence[int], columns: Sequence[int], num_classes: int) -> tuple[float, float]:
    matrix = class_matrix(values, rows, columns, num_classes)
    return within_class(matrix), between_class(matrix)


def replicates(values: Matrix, targets: Sequence[int], num_classes: int) -> list[tuple[float, float]]:
    result = []
    for left_out in range(len(targets)):
        kept = [i for i in range(len(targets)) if i != left_out]
        labels = [targets[i] for i in kept]
        result.append(summaries([[values[i][j] for j in kept] for i in kept], labels, labels, num_classes))
    return result


def cross_replicates(
    values: Matrix, rows: Sequence[int], columns: Sequence[int], num_classes: int
) -> list[tuple[float, float]]:
    result = []
    for left_out in range(len(rows)):
        kept = [i for i in range(len(rows)) if i != left_out]
        result.append(summaries([values[i] for i in kept], [rows[i] for i in kept], columns, num_classes))
    for left_out in range(len(columns)):
        kept = [j for j in range(len(columns)) if j != left_out]
        shorter = [[line[j] for j in kept] for line in values]
        result.append(summaries(shorter, rows, [columns[j] for j in kept], num_classes))
    return result


def jackknife_error(values: Sequence[float], strata: Sequence[int]) -> float:
    variance = 0.0
    groups = [[value for value, of in zip(values, strata, strict=True) if of == stratum] for stratum in set(strata)]
    if all(len(group) == 1 for group in groups):
        return nan
    for group in groups:
        if len(group) > 1:
            centre = sum(group) / len(group)
            variance += (len(group) - 1) / len(group) * sum((value - centre) ** 2 for value in group)
    return sqrt(variance)
