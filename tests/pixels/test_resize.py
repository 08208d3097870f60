"""Averages over areas, against OpenCV's and against what can be computed by hand."""

import numpy as np
import pytest

from sb3_sparse.pixels.resize import resize


def noise(rows, columns):
    return np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


@pytest.mark.parametrize(("rows", "columns"), [(400, 600), (210, 160), (84, 85), (100, 100), (168, 84)])
def test_shrinking_is_opencvs_area_interpolation(rows, columns):
    cv2 = pytest.importorskip("cv2")
    frame = noise(rows, columns)
    expected = cv2.resize(frame, (84, 84), interpolation=cv2.INTER_AREA).astype(int)
    ours = resize(frame, 84, 84)
    assert (ours.shape, ours.dtype) == ((84, 84, 3), np.uint8)
    # Halves are rounded in another direction.
    assert np.abs(ours - expected).max() <= 1
    assert np.abs(ours - expected).mean() < 0.05


def test_whole_blocks_are_averaged():
    frame = noise(60, 40)
    blocks = frame.reshape(20, 3, 20, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(resize(frame, 20, 20) - blocks).max() < 0.5 + 1e-4


def test_parts_of_pixels_count_as_parts():
    frame = np.zeros((1, 3, 3), np.uint8)
    frame[0, :, 0] = [30, 60, 90]
    # Each of two pixels covers one and a half.
    assert resize(frame, 1, 2)[0, :, 0].tolist() == [(30 + 30) * 2 // 3, (30 + 90) * 2 // 3]


def test_growing_repeats_pixels_and_the_same_size_is_the_same():
    frame = noise(10, 20)
    assert np.array_equal(resize(frame, 20, 60), frame.repeat(2, axis=0).repeat(3, axis=1))
    assert resize(frame, 10, 20) is frame


def test_rows_stay_rows():
    frame = np.zeros((40, 80, 3), np.uint8)
    frame[:10] = 200
    small = resize(frame, 20, 20)
    assert (small[:5] == 200).all()
    assert (small[5:] == 0).all()
