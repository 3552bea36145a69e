"""Lines, figures and small PNGs, without pyplot: no global state, no display."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from PIL import Image

from pipeline.trials import Float32
from shards.windows import Int64

LEGEND: Any = {"loc": "outside lower center", "fontsize": 8, "frameon": False}
MOST_LETTERS = 32
MOST_POINTS = 600  # a panel is no more pixels wide
MOST_BYTES = 25_000  # of a picture, which metadata carry as text


def extreme_places(line: Float32, most: int) -> Int64:
    """Return at most `most` places to draw a line by that lose neither a peak nor a trough.

    Of each stretch they are the lowest and the highest value; one without values stays a gap.
    """
    if len(line) <= most:
        return np.arange(len(line))
    size = -(-len(line) // (most // 2))
    first = np.arange(0, len(line), size)
    stretches = np.full((len(first), size), np.nan)
    stretches.reshape(-1)[: len(line)] = line
    low = np.where(np.isnan(stretches), np.inf, stretches).argmin(axis=1)
    high = np.where(np.isnan(stretches), -np.inf, stretches).argmax(axis=1)
    return np.unique(np.concatenate([first + low, first + high]))


def trace(axes: Axes, start: int, line: Float32, color: str, *, style: str = "-") -> None:
    """Draw a line from row `start` on; a value between two gaps becomes a dot."""
    places = extreme_places(line, MOST_POINTS)
    drawn = line[places]
    absent = np.isnan(np.concatenate([[np.nan], drawn, [np.nan]]))
    alone = np.flatnonzero(absent[:-2] & ~absent[1:-1] & absent[2:])  # no line reaches these
    axes.plot(start + places, drawn, style, color=color, linewidth=1)
    if len(alone):
        axes.plot(start + places[alone], drawn[alone], ".", color=color, markersize=4)


def number_rows(axes: Axes) -> None:
    """Make the ticks of a panel small, and those of rows integers."""
    axes.tick_params(labelsize=7)
    axes.locator_params(axis="x", integer=True)


def new_figure(height: float, title: str = "") -> Figure:
    """Return a figure 700 pixels wide; `height` in inches of 100 pixels."""
    figure = Figure(figsize=(7, height), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure


def render_png(figure: Figure, entries: list[tuple[str, str]] | None = None) -> bytes:
    """Return the figure in as many colours as its bytes allow: noise is all edges, and large."""
    if entries:
        fitting = 110 // (8 + max(len(plain(name)) for name, _ in entries))
        # The space: matplotlib leaves out a label that begins with an underscore.
        lines = [Line2D([], [], color=c, linewidth=3, label=f" {plain(s)}") for s, c in entries]
        figure.legend(handles=lines, ncols=fitting, **LEGEND)
    canvas: Any = FigureCanvasAgg(figure)  # which has no types
    canvas.draw()  # once: savefig does it twice where there is a layout
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    for n_colors in (128, 64, 32, 16):
        out = io.BytesIO()
        few = picture.quantize(n_colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(out, "PNG", optimize=True)
        if out.tell() <= MOST_BYTES:
            break
    return out.getvalue()


def plain(text: str) -> str:
    """Return a name without mathematics, glyphs the font lacks, or, where long, its beginning."""
    cut = text if len(text) <= MOST_LETTERS else "…" + text[1 - MOST_LETTERS :]
    has = get_font(findfont(FontProperties())).get_char_index
    known = (c if c.isprintable() and has(ord(c)) else "\ufffd" for c in cut)
    return "".join(known).replace("$", r"\$")
