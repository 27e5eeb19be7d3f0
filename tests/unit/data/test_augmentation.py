"""Augmentation: what is drawn, one warp against SciPy's, and the normalizations."""

from __future__ import annotations

import dataclasses
import doctest
from typing import Any

import numpy as np
import pytest

from memfit import errors
from memfit.data import augmentation, warping
from memfit.data.augmentation import Augmentation
from memfit.data.image_transform import Transform

ndimage = pytest.importorskip("scipy.ndimage")

MOVED = Transform(theta=25, tx=3.4, ty=-2.2, shear=12, zx=0.8, zy=1.2, flip_horizontal=True)


def picture(height: int = 23, width: int = 31, channels: int = 3, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width, channels))
    return np.rint(ndimage.gaussian_filter(noise, (2, 2, 0)) * 3 - 255).clip(0, 255).astype(np.uint8)


def by_scipy(image: np.ndarray, matrix: np.ndarray, fill_mode: str, order: int = 1) -> np.ndarray:
    """The same warp in SciPy's (row, column) order."""
    linear, offset = matrix[::-1, 1::-1], matrix[::-1, 2]
    bands = [
        ndimage.affine_transform(band.astype(np.float64), linear, offset, order=order, mode=fill_mode, cval=7)
        for band in np.moveaxis(image, -1, 0)
    ]
    return np.stack(bands, -1)


@pytest.mark.parametrize("module", [augmentation, warping])
def test_examples(module: Any) -> None:
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize("with_opencv", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("fill_mode", warping.FILL_MODES)
def test_the_warp_is_scipys(fill_mode: str, dtype: Any, with_opencv: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_opencv:
        monkeypatch.setattr(warping, "opencv", lambda: None)
    image = picture().astype(dtype)
    matrix = MOVED.matrix(image.shape)
    assert matrix is not None
    expected = by_scipy(image, matrix, fill_mode)
    found = warping.warped(image, matrix, fill_mode=fill_mode, cval=7)
    assert found.dtype == dtype
    assert np.abs(found - expected).max() <= (0.51 if dtype is np.uint8 else 0.02)


@pytest.mark.parametrize("fill_mode", warping.FILL_MODES)
def test_masks_move_as_their_images_and_get_no_new_values(fill_mode: str) -> None:
    image = np.zeros((20, 30, 1), np.uint8)
    image[6:14, 9:20] = 200
    mask = (image[..., 0] > 0).astype(np.int32) * 3
    changes = Augmentation(fill_mode=fill_mode)
    moved = changes(image, MOVED)[..., 0] > 100
    moved_mask = changes.mask(mask, MOVED)
    assert moved_mask.dtype == np.int32
    assert set(np.unique(moved_mask)) <= {0, 3}
    assert ((moved_mask == 3) != moved).mean() < 0.03


def test_flips_and_whole_shifts_are_exact() -> None:
    image = picture()
    changes = Augmentation()
    assert np.array_equal(changes(image, Transform(flip_horizontal=True)), image[:, ::-1])
    assert np.array_equal(changes(image, Transform(flip_vertical=True)), image[::-1])
    assert np.array_equal(changes(image, Transform(tx=4))[:, :-4], image[:, 4:])
    assert np.array_equal(changes(image, Transform(ty=4))[:-4], image[4:])
    assert np.array_equal(Augmentation(fill_mode="constant", cval=9)(image, Transform(tx=4))[:, -4:].ravel(), [9] * 276)
    assert np.array_equal(
        Augmentation(fill_mode="constant", cval=-1)(image, Transform(tx=4))[:, -4:].ravel(), [-1] * 276
    )


def test_draws_lie_in_their_ranges_and_are_a_function_of_the_generator() -> None:
    changes = Augmentation(
        rotation_range=20,
        width_shift_range=0.25,
        height_shift_range=[2, 5],
        shear_range=10,
        zoom_range=0.3,
        channel_shift_range=15,
        brightness_range=(0.5, 1.5),
        horizontal_flip=True,
    )
    drawn = [changes.drawn((40, 80, 3), np.random.default_rng((1, index))) for index in range(400)]
    assert drawn[7] == changes.drawn((40, 80, 3), np.random.default_rng((1, 7)))
    extremes = {
        field.name: (min(values), max(values))
        for field in dataclasses.fields(Transform)
        for values in [[getattr(transform, field.name) for transform in drawn]]
    }
    for name, (low, high) in {
        "theta": (-20, 20),
        "tx": (-20, 20),
        "shear": (-10, 10),
        "zx": (0.7, 1.3),
        "zy": (0.7, 1.3),
        "channel_shift": (-15, 15),
        "brightness": (0.5, 1.5),
    }.items():
        span = high - low
        assert low <= extremes[name][0] < low + 0.05 * span, name
        assert high - 0.05 * span < extremes[name][1] <= high, name
    assert {transform.ty for transform in drawn} == {-5, -2, 2, 5}
    assert 150 < sum(transform.flip_horizontal for transform in drawn) < 250
    assert not any(transform.flip_vertical for transform in drawn)
    assert changes.without_randomness.drawn((40, 80, 3), np.random.default_rng(0)) == Transform()


def test_levels_are_shifted_within_the_images_and_brightened_as_bytes() -> None:
    image = np.array([[[10, 100, 200, 90]]], np.uint8)
    changes = Augmentation()
    assert changes(image, Transform(channel_shift=20.5)).ravel().tolist() == [30.5, 120.5, 200, 110.5]
    # The alpha of four channels stays.
    assert changes(image, Transform(brightness=1.5)).ravel().tolist() == [15, 150, 255, 90]
    assert changes(image[..., :3], Transform(channel_shift=0.5, brightness=0.55)).ravel().tolist() == [5, 55, 110]


def test_normalizations() -> None:
    images = np.stack([picture(8, 8, seed=seed) for seed in range(40)])
    scaled = images / 255
    featurewise = Augmentation(featurewise_std_normalization=True, rescale=1 / 255)
    with pytest.raises(errors.ArgumentError, match="fitted"):
        featurewise(images[0], np.random.default_rng(0))
    fitted = featurewise.fitted(np.array_split(images, 3))
    result = np.stack([fitted(image, Transform()) for image in images])
    assert np.allclose(result.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    assert np.allclose(result.std(axis=(0, 1, 2)), 1, atol=1e-3)
    samplewise = Augmentation(samplewise_std_normalization=True)(images[0], Transform())
    assert abs(samplewise.mean()) < 1e-5
    assert abs(samplewise.std() - 1) < 1e-3
    small = images[:, :2, :2]
    whitened = Augmentation(zca_whitening=True, rescale=1 / 255).fitted(small)
    flat = np.stack([whitened(image, Transform()) for image in small]).reshape(40, -1)
    centred = (scaled[:, :2, :2] - scaled[:, :2, :2].mean(axis=(0, 1, 2))).reshape(40, -1)
    u, s, _ = np.linalg.svd(centred.T, full_matrices=False)
    assert np.allclose(flat, centred @ (u * (np.sqrt(40) / (s + 1e-6)) @ u.T), atol=2e-3)
    with pytest.raises(errors.ArgumentError, match="at most 4096"):
        Augmentation(zca_whitening=True).fitted(np.zeros((2, 40, 40, 3)))


def test_the_preprocessing_function_comes_before_the_factor() -> None:
    image = picture()
    changes = Augmentation(preprocessing_function=lambda pixels: 255 - pixels, rescale=1 / 255)
    assert np.allclose(changes(image, Transform()), (255 - image.astype(np.float32)) / 255)
    with pytest.raises(errors.ArgumentError, match="must keep the shape"):
        Augmentation(preprocessing_function=lambda pixels: pixels[:2])(image, Transform())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fill_mode": "mirror"}, "`fill_mode` must be one of"),
        ({"zoom_range": 1.5}, "`zoom_range` must be"),
        ({"zoom_range": (0.5,)}, "least, greatest"),
        ({"brightness_range": 0.4}, "`brightness_range` must be"),
        ({"rotation_range": "20"}, "`rotation_range` must be a number"),
        ({"width_shift_range": []}, "`width_shift_range` must be"),
        ({"interpolation_order": 3}, "`interpolation_order`"),
    ],
)
def test_values_that_cannot_work(options: dict[str, Any], match: str) -> None:
    with pytest.raises(errors.ArgumentError, match=match):
        Augmentation(**options)
