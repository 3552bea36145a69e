"""PNG pictures inside metadata: the event log keeps every one of them, so they must be small."""

import base64
import io

import dagster as dg

MAX_BYTES = 48_000
MAX_WIDTH = 900
"""Pixels; what the page's dialog shows without scrolling."""


def picture(png: bytes) -> dg.MarkdownMetadataValue:
    """Return a PNG as metadata that the web page shows inline."""
    text = base64.b64encode(shrink_png(png)).decode()
    return dg.MetadataValue.md(f"![](data:image/png;base64,{text})")


def shrink_png(png: bytes) -> bytes:
    """Return a PNG as it is if it is small, else narrower and with fewer colours."""
    if len(png) <= MAX_BYTES:
        return png
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.width > MAX_WIDTH:
        height = round(image.height * MAX_WIDTH / image.width)
        image = image.resize((MAX_WIDTH, height), Image.Resampling.LANCZOS)
    small = io.BytesIO()
    for n_colours in (64, 32):
        small = io.BytesIO()
        image.quantize(n_colours, dither=Image.Dither.NONE).save(small, "png", optimize=True)
        if small.tell() <= MAX_BYTES:
            break
    return small.getvalue()
