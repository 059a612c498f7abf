"""A Hugging Face Space: what codes keep of a picture, beside JPEG and WebP of as many bytes.

    pip install "gradio>=6" "viq[codec]"
    python space/app.py

`viq web` shows more; this is for machines where gradio serves.
"""

from __future__ import annotations

import gradio as gr
import numpy as np
from PIL import Image

import viq
from viq.image.codecs import fit_codec
from viq.image.open import limit_pixels
from viq.metrics.images import fidelity
from viq.report.samples import PICTURES, SAMPLES

TOKENIZER = viq.load("viq-transform")
MAX_PIXELS = 1_000_000  # a Space has two cores

Row = list[str | int | float]


def rebuild(picture: Image.Image | None) -> tuple[tuple, list, list[Row], str]:
    """Original and reconstruction, the codecs' pictures, a table, and a sentence."""
    if picture is None:
        raise gr.Error("Choose a picture first.")
    original = limit_pixels(picture.convert("RGB"), MAX_PIXELS)
    codes = TOKENIZER.encode(original)[0]
    decoded = TOKENIZER.decode(codes)[0]
    size, shown, rows = (
        len(codes.to_bytes()),
        [],
        [_row("ViQ", original, decoded, codes.to_bytes())],
    )
    for codec, title in (("jpeg", "JPEG"), ("webp", "WebP")):
        fitted = fit_codec(original, codec, size)
        if fitted is None:
            rows.append([title, 0, 0.0, 0.0])
            continue
        data, image, quality = fitted
        shown.append((image, f"{title}, quality {quality}"))
        rows.append(_row(title, original, image, data))
    (height, width), (down, across) = codes.size, codes.grid
    about = (
        f"{width} × {height} px, {down} × {across} patches, {codes.total:,} codes, {size:,} bytes"
    )
    return (original, decoded), shown, rows, about


def _row(name: str, original: Image.Image, picture: Image.Image, data: bytes) -> Row:
    figures = fidelity(np.asarray(original), np.asarray(picture))
    psnr = figures["psnr"]
    return [name, len(data), round(psnr, 2) if psnr else 99.0, round(figures["ssim"] or 0, 3)]


with gr.Blocks(title="ViQ", analytics_enabled=False) as demo:
    gr.Markdown("# ViQ\nA picture becomes four codes for each patch of 16 × 16 px, and back.")
    with gr.Row():
        source = gr.Image(type="pil", label="Picture", sources=["upload", "clipboard"])
        slider = gr.ImageSlider(label="Original and reconstruction", interactive=False)
    facts = gr.Markdown()
    table = gr.Dataframe(headers=["", "Bytes", "PSNR, dB", "SSIM"], label="At equal bytes")
    others = gr.Gallery(label="JPEG and WebP of as many bytes", columns=2)
    gr.Examples([str(PICTURES / sample.file) for sample in SAMPLES.values()], source)
    source.change(rebuild, source, [slider, others, table, facts])

if __name__ == "__main__":
    demo.queue(max_size=20).launch()
