"""What TensorBoard finds in the folder of a run."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG

ALL = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}


def events_of(logger):
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, ALL)
    events.Reload()
    return events


def points(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def card(events, tag):
    """The last text under a tag, and its step."""
    event = events.Tensors(f"{tag}/text_summary")[-1]
    return event.step, event.tensor_proto.string_val[0].decode()


def layout(events):
    """Categories of custom charts, each with kind and tags of its charts by their titles, as TensorBoard takes them."""
    last = Layout.FromString(events.Tensors(CONFIG_SUMMARY_TAG)[-1].tensor_proto.string_val[0])
    return {category.title: {chart.title: _chart(chart) for chart in category.chart} for category in last.category}


def _chart(chart):
    if chart.WhichOneof("content") == "margin":
        (series,) = chart.margin.series
        return ("Margin", [series.value, series.lower, series.upper])
    return ("Multiline", list(chart.multiline.tag))
