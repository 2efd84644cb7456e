"""The published formulas on the Gram matrix of per-sample gradients, as functions of tensors.

From the Gram matrix to one value for each pair: `cosine_pairs`, `sign_pairs`.
From pairs to classes: `class_matrix`, `class_pair_sums` (its additive form, a `Tally`).
From pairs to samples: `class_alignment`, `own_class_alignment`.
Both steps in one: `cosine_stiffness`, `sign_stiffness`.
From the class matrix to numbers: `within_class`, `between_class`, `superclass_within`, `superclass_between`.
All of it with standard errors: `summarise`, `summarise_cross` (they give a `Stiffness`), `jackknife_error`.
The same for several batches, pairs across them not counted: `pair_rows`, `summarise_rows`.
Beyond the summaries: `pair_detail` (a `Detail` of samples, histograms, distances), `class_tree`, `distance_curve`.
Whether a label is right: `label_evidence`, `label_margin`, `label_quality`, `suggested_labels`.
How often classes are drawn, and what is added to their logits: `square_root_rates`, `balanced_softmax_loss` and others.
How labels are smoothed in a loss that somebody else computes: `smoothed_label_logits`.
What a network would say without a sample: `Exposure`, `own_share`, `leave_one_out_scores`.
"""

from lightning_stiffness.functional.class_rates import (
    DeferredRates,
    effective_number_rates,
    inverse_frequency_rates,
    natural_rates,
    power_rates,
    sample_weights,
    square_root_rates,
    within_group_rates,
)
from lightning_stiffness.functional.class_tree import ClassTree, Merge, class_tree
from lightning_stiffness.functional.detail import Detail, pair_detail, pair_histograms
from lightning_stiffness.functional.distance import DistanceCurve, distance_curve, input_distances
from lightning_stiffness.functional.jackknife import (
    Stiffness,
    jackknife_error,
    pair_rows,
    summarise,
    summarise_cross,
    summarise_rows,
)
from lightning_stiffness.functional.label_score import label_evidence, label_margin, label_quality, suggested_labels
from lightning_stiffness.functional.leave_one_out import (
    Exposure,
    LeaveOneOutScores,
    leave_one_out_scores,
    own_share,
)
from lightning_stiffness.functional.logit_offsets import (
    balanced_softmax_loss,
    posthoc_logit_adjustment,
    probabilities_under_frequencies,
    smoothed_frequencies,
    training_logit_adjustment,
)
from lightning_stiffness.functional.smoothed_labels import smoothed_label_logits
from lightning_stiffness.functional.stiffness import (
    between_class,
    class_alignment,
    class_matrix,
    class_pair_sums,
    cosine_pairs,
    cosine_stiffness,
    own_class_alignment,
    sign_pairs,
    sign_stiffness,
    superclass_between,
    superclass_within,
    within_class,
)
from lightning_stiffness.functional.tally import Tally

__all__ = [
    "ClassTree",
    "DeferredRates",
    "Detail",
    "DistanceCurve",
    "Exposure",
    "LeaveOneOutScores",
    "Merge",
    "Stiffness",
    "Tally",
    "balanced_softmax_loss",
    "between_class",
    "class_alignment",
    "class_matrix",
    "class_pair_sums",
    "class_tree",
    "cosine_pairs",
    "cosine_stiffness",
    "distance_curve",
    "effective_number_rates",
    "input_distances",
    "inverse_frequency_rates",
    "jackknife_error",
    "label_evidence",
    "label_margin",
    "label_quality",
    "leave_one_out_scores",
    "natural_rates",
    "own_class_alignment",
    "own_share",
    "pair_detail",
    "pair_histograms",
    "pair_rows",
    "posthoc_logit_adjustment",
    "power_rates",
    "probabilities_under_frequencies",
    "sample_weights",
    "sign_pairs",
    "sign_stiffness",
    "smoothed_frequencies",
    "smoothed_label_logits",
    "square_root_rates",
    "suggested_labels",
    "summarise",
    "summarise_cross",
    "summarise_rows",
    "superclass_between",
    "superclass_within",
    "training_logit_adjustment",
    "within_class",
    "within_group_rates",
]
