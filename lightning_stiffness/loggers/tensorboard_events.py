"""What TensorBoard's writer has no method for: layouts beside layouts, pictures that are PNG already, columns."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
    LegacyEventFileLoader,
)
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # type: ignore[import-untyped]
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG  # type: ignore[import-untyped]
from torch.utils.tensorboard.summary import custom_scalars, hparams

Charts = Mapping[str, tuple[str, list[str]]]
EARLY: Final = 2000  # events of a file in which a layout is looked for


def add_layout(writer: Any, title: str, charts: Charts) -> None:
    """Adds a category to the custom charts of a run, or replaces the one of this title.

    TensorBoard shows the last layout of a run only. So what others have laid out there is taken over: the user, or
    another monitor.

    Args:
        writer: A SummaryWriter.
        title: Of the category.
        charts: Kind and tags of each chart by its title, as `SummaryWriter.add_custom_scalars` has it.
    """
    writer.flush()
    summary = custom_scalars({title: charts})
    (value,) = summary.value
    (ours,) = Layout.FromString(value.tensor.string_val[0]).category
    others = [category for category in _last_layout(writer.log_dir).category if category.title != title]
    value.tensor.string_val[0] = Layout(category=[*others, ours]).SerializeToString()
    _write(writer, summary)
    writer.flush()


def add_png(writer: Any, tag: str, png: bytes, size: tuple[int, int], step: int) -> None:
    """Adds a picture of this width and height."""
    width, height = size
    image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
    _write(writer, Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def add_columns(writer: Any, hyperparameters: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Says of which hyperparameters and metrics the table of runs has columns; values are logged by Lightning."""
    experiment, _, _ = hparams(dict(_flat(hyperparameters)), dict.fromkeys(metrics, 0.0))
    _write(writer, experiment)


def _write(writer: Any, summary: Any, step: int | None = None) -> None:
    writer._get_file_writer().add_summary(summary, step)  # as Lightning's own logger does


def _last_layout(folder: str) -> Any:
    layout = Layout()
    for path in sorted(Path(folder).glob("*tfevents*")):
        for event in islice(LegacyEventFileLoader(str(path)).Load(), EARLY):
            for value in event.summary.value:
                if value.tag == CONFIG_SUMMARY_TAG:
                    layout = Layout.FromString(value.tensor.string_val[0])
    return layout


def _flat(parameters: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values as Lightning writes them."""
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value if isinstance(value, bool | int | float | str) else str(value)
