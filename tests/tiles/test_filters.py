"""The HSV rule against a pixel loop, on colours with a known answer and on real tiles."""

from __future__ import annotations

import colorsys
from pathlib import Path

import cv2
import numpy as np

from eosin.tiles import hsv_share


def slow_hsv_share(tile: np.ndarray) -> float:
    """Each pixel by Python's own colour conversion, on OpenCV's scale, rounded as OpenCV rounds."""
    inside = 0
    for pixel in tile.reshape(-1, 3):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        inside += 90 <= round(hue * 180) <= 180 and round(saturation * 255) >= 8 and value * 255 >= 103
    return inside / (tile.size // 3)


def test_known_colours() -> None:
    def flat(*rgb: int) -> np.ndarray:
        return np.full((4, 4, 3), rgb, dtype=np.uint8)

    assert hsv_share(flat(200, 120, 190)) == 1.0  # eosin pink
    assert hsv_share(flat(255, 255, 255)) == 0.0  # glass
    assert hsv_share(flat(40, 140, 60)) == 0.0  # green pen
    assert hsv_share(flat(60, 40, 70)) == 0.0  # too dark


def test_against_a_pixel_loop(shared_data: Path) -> None:
    for path in sorted((shared_data / "colon5_tiles" / "val").rglob("*.jpg"))[::100]:
        tile = cv2.imread(str(path))[::3, ::3, ::-1]
        assert abs(hsv_share(np.ascontiguousarray(tile)) - slow_hsv_share(tile)) < 0.01
