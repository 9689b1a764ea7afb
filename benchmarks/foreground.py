"""Foreground rules on slides whose tissue is known: nine disturbances, then harder cases, and the time a slide takes.

The slides come from the synthetic painter and, with a data folder, from real tiles put together on glass. Prints a
table of IoU and what passed, and writes a contact sheet of the masks.

    python benchmarks/foreground.py [DATA] [-o foreground.png] [--side 500]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from eosin import figures
from eosin.randomness import Words
from eosin.slides import open_slide
from eosin.slides.foreground import RULES
from eosin.slides.foreground_tidy import tidy
from eosin.slides.synthetic import TISSUES, paint_slide
from eosin.slides.synthetic_layout import draw_layout

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

MPP = 8.0
PAINT_MPP = 4.0
SEED = 7
GLASS = (243.0, 242.0, 245.0)
GREEN_DENSITY = 0.6  # mean over the tissue, natural log: ordinary H&E
LEAST, NINE = 0.85, 9
BROWN = ((0.27, 0.57, 0.78), (0.65, 0.70, 0.29))  # absorbance of diaminobenzidine and haematoxylin, RGB
MASSON = ((0.80, 0.60, 0.10), (0.10, 0.99, 0.30))  # aniline blue and fuchsin
SLIDES = {
    "slides/CMU-1-Small-Region.svs": None,
    "slides/TCGA-CR-7395-01A-01-TS1.svs": 0.5,
    "slides/1065626.svs": None,
    "her2st_patientC/C2.jpg": 0.687,
}
ROUNDS = 5


class Scene(NamedTuple):
    """A slide at 8 µm/px. density: natural log, relative to glass, float32 [h, w, 3], 0 off the tissue. truth: [h, w];
    tissues: parts of it by name.
    """

    name: str
    density: Floats
    truth: Mask
    tissues: dict[str, Mask]


Found = dict[str, dict[str, list[float]]]
Disturbed = tuple[Pixels, Mask]


def painted(side: int, number: int) -> Scene:
    """A slide of the synthetic painter: six tissues, among them fat and mucus; its pen strokes are cut out of it."""
    size = round(side * MPP / PAINT_MPP)
    pixels, _, stain = paint_slide(size, PAINT_MPP, SEED, number)
    layout = draw_layout(size, PAINT_MPP, Words(SEED, "slide", number, "layout"))
    edge, pen = (cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA) for part in (layout.edge_um, layout.pen))
    truth = (edge > 0) & (cv2.dilate(pen, np.ones((5, 5))) < 0.01)
    small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    density = np.clip(-np.log(np.maximum(small, 1) / stain.glass.astype(np.float32)), 0, None)
    labels = cv2.resize(layout.labels(size, 2), (side, side), interpolation=cv2.INTER_NEAREST)
    tissues = {name: truth & (labels == TISSUES.index(name)) for name in ("fat", "mucus")}
    return evenly_stained(f"painted {number}", density, truth, tissues)


def evenly_stained(name: str, density: Floats, truth: Mask, tissues: dict[str, Mask]) -> Scene:
    """The scene at one strength of stain, so that "pale x.12" means the same on all of them."""
    return Scene(name, density * truth[..., None] * (GREEN_DENSITY / density[truth][:, 1].mean()), truth, tissues)


def mosaic(data: Path, side: int) -> Scene:
    """Real H&E tiles of 124 µm put together in the outline of a painted slide; no tile is half glass."""
    tiles = []
    for path in sorted((data / "glas_train" / "images").glob("*.png")) + sorted(
        (data / "colon5_tiles" / "train").rglob("*.*g")
    ):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        mpp = 0.62 if "glas" in str(path) else 0.5
        small = cv2.resize(image, None, fx=mpp / MPP, fy=mpp / MPP, interpolation=cv2.INTER_AREA)
        if small.max(axis=2).min() > 0 and (small.min(axis=2) > 215).mean() < 0.3:
            tiles.append(-np.log(np.clip(small, 1, 240).astype(np.float32) / 240))
    words = Words(SEED, "mosaic")
    density = np.zeros((side, side, 3), np.float32)
    top = 0
    while top < side:
        left, height = 0, side
        while left < side:
            tile = tiles[int(words.integers(len(tiles)))]
            part = tile[: side - top, : side - left]
            density[top : top + part.shape[0], left : left + part.shape[1]] = part
            left, height = left + tile.shape[1], min(height, tile.shape[0])
        top += height
    layout = draw_layout(side * 2, PAINT_MPP, Words(SEED, "slide", 9, "layout"))
    truth = cv2.resize(layout.edge_um, (side, side), interpolation=cv2.INTER_AREA) > 0
    return evenly_stained("real tiles", density, truth, {})


def seen(density: Floats, words: Words, glass: tuple[float, ...] = GLASS, noise: float = 1.5) -> Pixels:
    """The pixels a camera makes of a density: uint8 [h, w, 3]."""
    light = np.asarray(glass, np.float32) * np.exp(-density)
    grain = words.normal(*density.shape[:2])[..., None] * [1.0, 0.0, 0.0]
    grain = grain + np.roll(grain, (31, 17), (0, 1))[..., [2, 0, 1]] + np.roll(grain, (57, 83), (0, 1))[..., [1, 2, 0]]
    return np.clip(light + noise * grain + 0.5, 0, 255).astype(np.uint8)


def shaded(scene: Scene, words: Words) -> Disturbed:
    """Light that falls off to the corners by 30 %."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in scene.truth.shape), indexing="ij")
    return (seen(scene.density, words) * (1 - 0.15 * (x**2 + y**2))[..., None]).astype(np.uint8), scene.truth


def pale(strength: float) -> Callable[[Scene, Words], Disturbed]:
    return lambda scene, words: (seen(scene.density * strength, words), scene.truth)


def penned(scene: Scene, words: Words) -> Disturbed:
    """Felt-pen strokes in blue, green and black beside and across the tissue; what they cover is not tissue."""
    side = len(scene.truth)
    density, ink = scene.density.copy(), np.zeros(scene.truth.shape, np.uint8)
    for colour in ((1.9, 1.2, 0.35), (1.9, 0.7, 1.6), (2.3, 2.3, 2.25)):
        stroke = np.zeros_like(ink)
        ends = (words.between(0.03, 0.97, 3, 2) * side).astype(np.int32)
        cv2.polylines(stroke, [ends], False, 255, max(side // 50, 2), cv2.LINE_AA)
        cover = cv2.GaussianBlur(stroke.astype(np.float32) / 255, (0, 0), 1.0)[..., None]
        density += cover * np.float32(colour) * np.float32(words.between(0.8, 1.1))
        ink |= stroke
    return seen(density, words), scene.truth & (ink < 128)


def dusty(scene: Scene, words: Words) -> Disturbed:
    """Grey specks, fibres and the edge of a cover slip."""
    side = len(scene.truth)
    picture = seen(scene.density, words)
    for x, y in (words.uniform(side // 6, 2) * side).astype(int).tolist():
        cv2.circle(picture, (x, y), 1 + int(words.integers(3)), (95, 95, 95), -1, cv2.LINE_AA)
    for x, y in (words.uniform(6, 2) * side).astype(int).tolist():
        cv2.ellipse(picture, (x, y), (side // 20, side // 30), 40, 0, 140, (120, 118, 121), 1, cv2.LINE_AA)
    cv2.line(picture, (side // 50, 0), (side // 30, side - 1), (190, 191, 190), max(side // 250, 1), cv2.LINE_AA)
    cv2.line(picture, (0, side // 40), (side - 1, side // 35), (150, 151, 150), max(side // 250, 1), cv2.LINE_AA)
    return picture, scene.truth


def padded(scene: Scene, words: Words) -> Disturbed:
    """A black frame, as scanners put where they did not look."""
    picture, truth = seen(scene.density, words), scene.truth.copy()
    edge = len(truth) // 6
    for part in (np.s_[:edge], np.s_[:, :edge]):
        picture[part], truth[part] = 0, False
    return picture, truth


def compressed(scene: Scene, words: Words) -> Disturbed:
    """JPEG at quality 50, 4:2:0."""
    coded = cv2.imencode(".jpg", seen(scene.density, words)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    return np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]), scene.truth


def bubbled(scene: Scene, words: Words) -> Disturbed:
    """Air bubbles under the cover slip: dark grey rims, a little less light inside."""
    side = len(scene.truth)
    picture = seen(scene.density, words).astype(np.float32)
    for x, y in (words.uniform(8, 2) * side).astype(int).tolist():
        radius = int(side * float(words.between(0.02, 0.06)))
        disc = np.zeros(scene.truth.shape, np.float32)
        cv2.circle(disc, (x, y), radius, 0.06, -1, cv2.LINE_AA)
        cv2.circle(disc, (x, y), radius, 0.5, max(side // 200, 1), cv2.LINE_AA)
        picture *= 1 - disc[..., None]
    return picture.astype(np.uint8), scene.truth


def stained(dyes: tuple[tuple[float, ...], ...], strength: float) -> Callable[[Scene, Words], Disturbed]:
    """The same tissue in other dyes: the first where eosin was, by regions, the second where haematoxylin was."""

    def disturb(scene: Scene, words: Words) -> Disturbed:
        amount = scene.density.mean(axis=2)
        side = len(amount)
        clouds = cv2.GaussianBlur(words.normal(side, side).astype(np.float32), (0, 0), side / 25)
        positive = (clouds > 0)[..., None]
        first, second = (np.asarray(dye, np.float32) for dye in dyes)
        density = amount[..., None] * strength * np.where(positive, 3.0 * first + 0.3 * second, 1.2 * second)
        return seen(density.astype(np.float32), words), scene.truth

    return disturb


DISTURBANCES: dict[str, Callable[[Scene, Words], Disturbed]] = {
    "clean": lambda scene, words: (seen(scene.density, words), scene.truth),
    "warm glass": lambda scene, words: (seen(scene.density, words, (236.0, 231.0, 220.0)), scene.truth),
    "shading": shaded,
    "pale x.25": pale(0.25),
    "pale x.12": pale(0.12),
    "pen": penned,
    "dust, cover slip": dusty,
    "noise": lambda scene, words: (seen(scene.density, words, noise=6.0), scene.truth),
    "black padding": padded,
    "JPEG 50": compressed,
    "bubbles": bubbled,
    "lilac glass": lambda scene, words: (seen(scene.density, words, (232.0, 219.0, 236.0)), scene.truth),
    "brown IHC": stained(BROWN, 1.0),
    "brown IHC, pale": stained(BROWN, 0.3),
    "blue and red (Masson)": stained(MASSON, 1.0),
}


def grey_otsu(pixels: Pixels, mpp: float) -> Mask:
    """Otsu's threshold on grey, closed and freed of specks as the others are."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    dark = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)[1] > 0
    return tidy(dark, dark, mpp)


CANDIDATES: dict[str, Callable[[Pixels, float], Mask]] = {
    **{name: rule.find for name, rule in RULES.items()},
    "grey Otsu": grey_otsu,
}


def iou(one: Mask, other: Mask) -> float:
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else 1.0


def measure(scenes: list[Scene]) -> tuple[Found, list[Pixels]]:
    """IoU [disturbance][rule] of every scene, and rows of the contact sheet."""
    found: Found = {}
    cells = []
    for disturbance, disturb in DISTURBANCES.items():
        found[disturbance] = {name: [] for name in CANDIDATES}
        for scene in scenes:
            picture, truth = disturb(scene, Words(SEED, scene.name, disturbance))
            masks = {name: rule(picture, MPP) for name, rule in CANDIDATES.items()}
            for name, mask in masks.items():
                found[disturbance][name].append(iou(mask, truth))
            if scene is scenes[0] or scene is scenes[-1]:
                cells.append(row_of(picture, truth, masks))
    return found, cells


def row_of(picture: Pixels, truth: Mask, masks: dict[str, Mask], side: int = 220) -> Pixels:
    """The picture and each rule's mask on it: green outline = truth, what is not found is darkened."""
    parts = [picture]
    for mask in masks.values():
        part = np.where(mask[..., None], picture, picture // 3)
        edges, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        parts.append(cv2.drawContours(np.ascontiguousarray(part), edges, -1, (0, 230, 60), 2))
    return np.hstack([cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA) for part in parts])


def print_table(found: Found, scenes: list[Scene]) -> None:
    print(f"IoU with the known mask, mean (least) of the slides\n\n| disturbance | {' | '.join(CANDIDATES)} |")
    print("|---" * (len(CANDIDATES) + 1) + "|")
    for disturbance, by_rule in found.items():
        cells = [f"{statistics.mean(values):.2f} ({min(values):.2f})" for values in by_rule.values()]
        print(f"| {disturbance} | {' | '.join(cells)} |")
    for at, scene in enumerate(scenes):
        means = [statistics.mean(found[d][name][at] for d in nine(found)) for name in CANDIDATES]
        print(f"| mean of the first {NINE}, {scene.name} | {' | '.join(f'{value:.3f}' for value in means)} |")
    print()


def print_shares(scenes: list[Scene]) -> None:
    """What is found of fat and mucus on the clean slides, of a slide without glass, and of bare glass."""
    shares = {}
    for tissue in ("fat", "mucus"):
        shares[f"{tissue}, found of it"] = [
            rule(seen(scene.density, Words(SEED, scene.name)), MPP)[scene.tissues[tissue]].mean()
            for rule in CANDIDATES.values()
            for scene in scenes[:1]
        ]
    rows, columns = np.nonzero(scenes[-1].truth)
    middle, half = (int(np.median(rows)), int(np.median(columns))), 62
    crop = scenes[-1].density[middle[0] - half : middle[0] + half, middle[1] - half : middle[1] + half]
    pictures = {
        "1 mm of tissue, no glass: kept": seen(crop, Words(SEED, "crop")),
        "the same, pale x.25: kept": seen(crop * 0.25, Words(SEED, "crop")),
        "bare glass: kept": seen(np.zeros_like(scenes[0].density), Words(SEED, "bare")),
        "bare warm glass: kept": seen(np.zeros_like(scenes[0].density), Words(SEED, "bare"), (236.0, 231.0, 220.0)),
    }
    shares |= {name: [rule(picture, MPP).mean() for rule in CANDIDATES.values()] for name, picture in pictures.items()}
    print(f"| share | {' | '.join(CANDIDATES)} |\n" + "|---" * (len(CANDIDATES) + 1) + "|")
    for name, values in shares.items():
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |")
    print()


def print_slides(data: Path | None, scene: Scene) -> None:
    """mm² found and CPU time on real slides, and the time of the painted one."""
    print(f"| slide | MP at 8 µm/px | {' | '.join(f'{name}: mm², ms' for name in CANDIDATES)} |")
    print("|---" * (len(CANDIDATES) + 2) + "|")
    pictures = {scene.name: seen(scene.density, Words(SEED, scene.name))}
    for name, mpp in SLIDES.items() if data is not None else ():
        with open_slide(data / name, mpp) as slide:
            pictures[name.split("/")[-1]] = slide.whole(MPP)
    for name, picture in pictures.items():
        cells = []
        for rule in CANDIDATES.values():
            times = []
            for _ in range(ROUNDS):
                start = time.process_time()
                mask = rule(picture, MPP)
                times.append((time.process_time() - start) * 1e3)
            cells.append(f"{mask.sum() * MPP**2 / 1e6:.2f}, {statistics.median(times):.0f}")
        print(f"| {name} | {picture.shape[0] * picture.shape[1] / 1e6:.2f} | {' | '.join(cells)} |")
    print()


def nine(found: Found) -> list[str]:
    return list(found)[:NINE]


def verdicts(found: Found) -> bool:
    """Print a line for each claim; True where all hold."""
    held = []
    for disturbance in nine(found):
        value = statistics.mean(found[disturbance]["density"])
        held.append((value >= LEAST, f"{disturbance}: density {value:.3f} >= {LEAST}"))
    means = {name: statistics.mean(v for d in nine(found) for v in found[d][name]) for name in CANDIDATES}
    for other in ("clam", "otsu", "grey Otsu"):
        passed = means["density"] >= means[other]
        held.append((passed, f"mean of nine: density {means['density']:.3f} >= {other} {means[other]:.3f}"))
    for passed, line in held:
        print("PASS" if passed else "FAIL", line)
    return all(passed for passed, _ in held)


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("data", nargs="?", type=Path, help="folder with glas_train, colon5_tiles and slides")
    given.add_argument("-o", "--out", type=Path, default=Path("foreground.png"), help="the contact sheet")
    given.add_argument("--side", type=int, default=500, help="px of 8 µm; a smaller slide has fewer structures")
    words = given.parse_args()
    cv2.setNumThreads(1)
    scenes = [painted(words.side, number) for number in (1, 2)]
    if words.data is not None:
        scenes.append(mosaic(words.data, words.side))
    found, rows = measure(scenes)
    print_table(found, scenes)
    print_shares(scenes)
    print_slides(words.data, scenes[0])
    words.out.write_bytes(figures.png(np.vstack([np.hstack(rows[at : at + 2]) for at in range(0, len(rows), 2)])))
    print(f"{words.out}: {', '.join(['the slide', *CANDIDATES])}; outlined in green: the truth; dark: not found\n")
    sys.exit(0 if verdicts(found) else 1)


if __name__ == "__main__":
    main()
