"""Colours of the page, light and dark, as CSS variables: charts and text use the same ones, so that one switch does."""

from collections.abc import Sequence
from typing import Final

from lightning_stiffness.report.matrix_chart import HEAT

LIGHT: Final = {
    "paper": "#ffffff",
    "wash": "#f5f7f9",
    "ink": "#15191f",
    "muted": "#59626e",
    "line": "#d5dae1",
    "grid": "#edf0f3",
    "accent": "#0069a8",
    "within": "#0072b2",
    "between": "#d55e00",
    "watch": "#c25400",
    "good": "#00805d",
    "missing": "#e3e6ea",
}
DARK: Final = {
    "paper": "#12151a",
    "wash": "#1a1f26",
    "ink": "#e9ecf0",
    "muted": "#a0a9b5",
    "line": "#39414c",
    "grid": "#262c35",
    "accent": "#64b8f2",
    "within": "#58b4f0",
    "between": "#ff9a57",
    "watch": "#ff9a57",
    "good": "#45cba2",
    "missing": "#2b323b",
}
# Okabe and Ito's palette, yellow darkened on white, black as grey.
SERIES: Final = ("#0072b2", "#d55e00", "#00805d", "#b0508a", "#8a6d00", "#2f8fc4", "#737b86", "#7a4fc0")
SERIES_ON_DARK: Final = ("#58b4f0", "#ff9a57", "#45cba2", "#e58cc0", "#e6c34a", "#8fd3ff", "#a0a9b5", "#b99cf5")
HEAT_LIGHT: Final = ("#2166ac", "#8fc1de", "#f7f8f9", "#f3a683", "#b2182b")
HEAT_DARK: Final = ("#7cc0ff", "#2f6da6", "#1f252d", "#a4463b", "#ff937d")
# From classes that fight to classes that share: the colours of `figures.balancing`.
FIGHT_LIGHT: Final = ("#d55e00", "#eaaf80", "#ffffff", "#80b9d9", "#0072b2")
FIGHT_DARK: Final = ("#ff9a57", "#9c5a2c", "#1f252d", "#2f6da6", "#7cc0ff")


def css_variables(is_dark: bool) -> str:
    """All colours as declarations.

    >>> css_variables(is_dark=False).splitlines()[0]
    '--paper: #ffffff;'
    """
    series = SERIES_ON_DARK if is_dark else SERIES
    scales = {"heat": HEAT_DARK, "fight": FIGHT_DARK} if is_dark else {"heat": HEAT_LIGHT, "fight": FIGHT_LIGHT}
    cells = {f"{name}-{index}": color for name, anchors in scales.items() for index, color in enumerate(heat(anchors))}
    colors = {
        **(DARK if is_dark else LIGHT),
        **{f"series-{index}": color for index, color in enumerate(series, start=1)},
        **cells,
        **{f"on-{name}": _text_on(color) for name, color in cells.items()},
    }
    return "\n".join(f"--{name}: {color};" for name, color in colors.items())


def heat(anchors: Sequence[str], steps: int = HEAT) -> list[str]:
    """Colours at equal distances on straight lines between anchors.

    >>> heat(("#000000", "#ffffff"), steps=3)
    ['#000000', '#808080', '#ffffff']
    """
    places = [index * (len(anchors) - 1) / (steps - 1) for index in range(steps)]
    return [_mixed(anchors[int(place)], anchors[min(int(place) + 1, len(anchors) - 1)], place % 1) for place in places]


def contrast(first: str, second: str) -> float:
    """Contrast of two colours, from 1 to 21.

    Source: WCAG 2.2, contrast ratio.

    >>> round(contrast("#000000", "#ffffff"))
    21
    """
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _text_on(color: str) -> str:
    return max(("#ffffff", "#000000"), key=lambda text: contrast(text, color))


def _luminance(color: str) -> float:
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _mixed(first: str, second: str, share: float) -> str:
    channels = [(int(first[place : place + 2], 16), int(second[place : place + 2], 16)) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share + 1e-9):02x}" for a, b in channels)
