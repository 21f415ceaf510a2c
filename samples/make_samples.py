"""Make the six sample crops again from photographs that pip packages carry: python -m samples.make_samples [FOLDER]"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from faces.dlib_models import five_of, largest_face
from faces.reader import read_image
from faces.template import ARCFACE_POINTS, SIZE, warp

# Eyes, nose tip and mouth corners of the cameraman, set by hand: in a profile the far ones are hidden.
CAMERAMAN_POINTS = np.array([(234.0, 146.5), (251.0, 145.5), (253.0, 166.5), (232.5, 181.5), (246.0, 177.5)])


def make_samples() -> dict[str, np.ndarray]:
    """The crops, RGB uint8 (112, 112, 3), by file name. Needs scikit-image and matplotlib for their photographs."""
    import matplotlib
    import skimage

    photographs = Path(skimage.__file__).parent / "data"
    astronaut = aligned_with_dlib(read_image(photographs / "astronaut.png"))
    hopper = aligned_with_dlib(read_image(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"))
    cameraman = warp(read_image(photographs / "camera.png"), CAMERAMAN_POINTS, ARCFACE_POINTS, SIZE)
    return {
        "astronaut.png": astronaut,
        "astronaut_blurred.png": cv2.GaussianBlur(astronaut, (0, 0), 3),
        "astronaut_occluded.png": cover_mouth(astronaut),
        "cameraman_turned.png": cameraman,
        "hopper_dark.png": darken(hopper),
        "hopper_tiny.png": cv2.resize(cv2.resize(hopper, (16, 16), interpolation=cv2.INTER_AREA), (SIZE, SIZE)),
    }


def aligned_with_dlib(rgb: np.ndarray) -> np.ndarray:
    """The crop of the largest face. dlib's points are kept, so that the samples stay what they are."""
    return warp(rgb, five_of(largest_face(rgb)), ARCFACE_POINTS, SIZE)


def cover_mouth(crop: np.ndarray) -> np.ndarray:
    """A woollen scarf over mouth and nose."""
    outline = np.array([(0, 74), (30, 68), (56, 63), (82, 68), (112, 74), (112, 112), (0, 112)])
    mask = cv2.fillPoly(np.zeros(crop.shape[:2], np.uint8), [outline], 255, cv2.LINE_AA)[..., None] / 255
    ribs = 12 * np.sin(np.arange(SIZE) / 2)[:, None, None]
    wool = ribs + np.random.default_rng(0).normal((110, 50, 60), 6, crop.shape)
    return (crop * (1 - mask) + wool * mask).astype(np.uint8)


def darken(crop: np.ndarray) -> np.ndarray:
    """A seventh of the light, and the noise of a sensor in it."""
    return np.random.default_rng(0).poisson(crop / 7).clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="(default: samples)")
    folder = parser.parse_args().folder
    for name, crop in make_samples().items():
        Image.fromarray(crop).save(folder / name, optimize=True)
