"""Pictures in metadata are small, and still pictures."""

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from pipeline.orchestration.inline import MAX_WIDTH, shrink_png


def png_of(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_a_small_picture_stays_as_it_is():
    png = png_of(np.zeros((20, 30, 3), np.uint8))
    assert shrink_png(png) == png


def test_a_large_plot_becomes_small_and_keeps_its_shape_and_colours():
    figure = Figure(figsize=(14, 7))
    axes, x = figure.add_subplot(), np.linspace(0, 60, 3000)
    for shift in range(40):
        color = ("#1f6fb4", "#c8782a")[shift % 2]
        axes.plot(x, np.sin(x + shift / 9) + shift / 9, ".-", color=color, linewidth=0.7)
    file = io.BytesIO()
    figure.savefig(file, dpi=130)
    small = shrink_png(file.getvalue())
    image = Image.open(io.BytesIO(small)).convert("RGB")
    assert (image.width, image.height) == (MAX_WIDTH, MAX_WIDTH // 2)
    assert 5 * len(small) < len(file.getvalue())
    colors = np.asarray(image).reshape(-1, 3).astype(int)
    for color in ((31, 111, 180), (200, 120, 40), (255, 255, 255)):
        assert np.abs(colors - color).sum(axis=1).min() < 60
