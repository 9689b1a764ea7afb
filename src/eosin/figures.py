"""Pictures as bytes: curves as SVG, contact sheets and outlines as pixels, anything as a data URI.

Draws with numpy, OpenCV and matplotlib's object interface (no pyplot, so no global figure list and no
window). Knows no runs, no pages and no torch.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]

# Colours that stand for a role while matplotlib draws; `line_chart` replaces them by CSS variables of the
# page, so that one drawing serves light and dark mode.
_ROLES = {
    "#010101": "var(--ink)",
    "#020202": "var(--rule)",
    "#030303": "var(--accent)",
    "#040404": "var(--second)",
}
_INK, _RULE, _ACCENT, _SECOND = _ROLES


def data_uri(data: bytes, mime: str) -> str:
    """`data` as a URI that needs no other file, `mime` for example "image/png"."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def jpeg(image: Image, quality: int = 85) -> bytes:
    """JPEG bytes of uint8 RGB [H, W, 3]; quality 1-100."""
    return _encode(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def png(image: Image) -> bytes:
    """PNG bytes of uint8 RGB [H, W, 3]."""
    return _encode(image, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _encode(image: Image, suffix: str, options: list[int]) -> bytes:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    _, encoded = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return bytes(encoded)


def shrink(image: Image, most_px: int) -> Image:
    """The image with its longer side at most `most_px`, by area averaging; a smaller one comes back as it
    is.
    """
    height, width = image.shape[:2]
    scale = most_px / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def contact_sheet(
    images: Sequence[Image] | Image, columns: int, cell_px: int, gap_px: int = 2, background: int = 128
) -> Image:
    """Images in reading order on one sheet: uint8 [rows·cell + (rows−1)·gap, columns·cell +
    (columns−1)·gap, 3].

    Every image [H, W, 3] is scaled to fit its cell (never distorted) and centred in it; cells without an
    image and the gaps have the grey `background`. Raises ValueError without images or with fewer than one
    column.
    """
    if len(images) == 0 or columns < 1:
        raise ValueError(f"a contact sheet needs images and columns, got {len(images)} and {columns}")
    rows = -(-len(images) // columns)
    pitch = cell_px + gap_px
    sheet = np.full((rows * pitch - gap_px, columns * pitch - gap_px, 3), background, dtype=np.uint8)
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        scale = cell_px / max(height, width)
        fit = (max(1, round(width * scale)), max(1, round(height * scale)))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        cell = image if scale == 1 else cv2.resize(np.ascontiguousarray(image), fit, interpolation=method)
        top = number // columns * pitch + (cell_px - fit[1]) // 2
        left = number % columns * pitch + (cell_px - fit[0]) // 2
        sheet[top : top + fit[1], left : left + fit[0]] = cell
    return sheet


def outline(
    image: Image, mask: npt.NDArray[np.bool_], colour: tuple[int, int, int] = (0, 150, 120), width_px: int = 1
) -> Image:
    """A copy of `image` [H, W, 3] with the border of `mask` bool [H, W] drawn inside it, `width_px` wide.

    Raises ValueError where the two differ in size.
    """
    if image.shape[:2] != mask.shape:
        raise ValueError(f"image {list(image.shape[:2])} and mask {list(mask.shape)} differ in size")
    side = 2 * width_px + 1
    # Outside the image counts as background, so that tissue cut by the edge has a closed outline.
    inner = cv2.erode(
        mask.astype(np.uint8), np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    drawn = image.copy()
    drawn[mask & (inner == 0)] = colour
    return drawn


def thin(x: FloatArray, y: FloatArray, most: int = 400) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """x, mean, lowest and highest y of at most `most` runs of consecutive points: four arrays of one
    length [M].

    With up to `most` points nothing is averaged. The extremes keep a spike visible that a mean would hide.
    """
    if len(x) <= most:
        return x, y, y, y
    edges = np.linspace(0, len(x), most + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(x)))
    return (
        np.add.reduceat(x, edges) / counts,
        np.add.reduceat(y, edges) / counts,
        np.minimum.reduceat(y, edges),
        np.maximum.reduceat(y, edges),
    )


def line_chart(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    name: str,
    x_label: str = "step",
    reference: float | None = None,
    interval: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
) -> str:
    """A small SVG of y against x, to be set into a page that defines --ink, --rule, --accent and --second.

    `x` and `y` are [N]; points with a non-finite y are left out. `name` must be unique in the page: the
    curve is the group with id "curve-NAME", its band of extremes (only with more than 400 points)
    "band-NAME". `reference` draws a dashed level line, and the axis reaches to it. `interval`: lower and upper ends
    [N], drawn as the band where all of them and of `y` are finite and no extremes take its place.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    at, value = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    at, mean, low, high = thin(at[np.isfinite(value)], value[np.isfinite(value)])
    ends = None if interval is None else np.asarray(interval, dtype=np.float64)  # [2, N]
    if ends is not None and len(mean) == len(value) == ends.shape[1] and np.isfinite(ends).all():
        low, high = ends
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"eosin-{slug}",
        "path.simplify": False,
        "font.size": 8.5,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(3.3, 1.75), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        if len(at) > 0 and not np.array_equal(low, high):
            axes.fill_between(at, low, high, color=_ACCENT, alpha=0.22, linewidth=0).set_gid(f"band-{slug}")
        (line,) = axes.plot(at, mean, color=_ACCENT, linewidth=1.4, solid_joinstyle="round")
        line.set_gid(f"curve-{slug}")
        if len(at) > 0:
            axes.plot(at[-1:], mean[-1:], "o", color=_ACCENT, markersize=3.2)
        if reference is not None:
            axes.axhline(reference, color=_SECOND, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel(x_label, color=_INK, fontsize=8)
        axes.grid(axis="y", color=_RULE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_RULE)
        axes.tick_params(colors=_INK, length=0, labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=False)
        axes.yaxis.get_offset_text().set_color(_INK)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _for_page(buffer.getvalue(), slug)


def _for_page(svg: str, slug: str) -> str:
    """The bare <svg> element: no XML prologue, no metadata, colours by role, ids that belong to this
    drawing only.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'(id="|url\(#|href="#)(?!curve-|band-)', rf"\1{slug}-", svg)
    for colour, role in _ROLES.items():
        svg = svg.replace(colour, role)
    return svg.strip()
