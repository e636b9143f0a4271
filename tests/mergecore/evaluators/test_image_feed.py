"""Batches are the stored rows, normalised, whether the device holds them or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mergecore.data.images import Images
from mergecore.evaluators import image_feed
from mergecore.evaluators.image_feed import ImageFeed

BYTES = np.random.default_rng(0).integers(0, 256, (9, 1, 4, 5), dtype=np.uint8)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("rows", [slice(2, 5), np.array([7, 0, 3])], ids=["range", "rows"])
def test_rows_of_the_stored_images(held: bool, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(BYTES, np.zeros(9, dtype=np.int64), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), None, "key")
    monkeypatch.setattr(image_feed, "_fits", lambda *_: held)
    feed = ImageFeed(images, torch.device("cpu"), 4)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (images.mean, images.std))
    expected = (BYTES[rows] / 255 - mean) / std
    np.testing.assert_allclose(feed[rows].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert feed[rows].dtype == torch.float32
    assert (len(feed), feed.batcher.size) == (9, 4)


def test_the_host_reads_its_mapped_file_each_time() -> None:
    images = Images(BYTES, np.zeros(9, dtype=np.int64), (), (), None, "key")
    assert ImageFeed(images, torch.device("cpu"), "auto")._held is None
