"""Pictures of what memories retrieve."""

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from hamdeq.plots import retrieval_gallery


def test_each_state_is_drawn_in_its_place():
    rows = {"stored": torch.sign(torch.randn(3, 6)), "recalled": torch.sign(torch.randn(3, 6))}
    figure = retrieval_gallery(rows, shape=(2, 3))
    assert len(figure.axes) == 6
    drawn = [axes.images[0].get_array() for axes in figure.axes]
    for image, state in zip(drawn, [*rows["stored"], *rows["recalled"]], strict=True):
        assert np.array_equal(np.asarray(image), state.reshape(2, 3).numpy())
    assert [figure.axes[0].get_ylabel(), figure.axes[3].get_ylabel()] == ["stored", "recalled"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "as many states in each"),
        ({"a": torch.ones(2, 6), "b": torch.ones(3, 6)}, r"got \[2, 3\]"),
        (
            {"a": torch.ones(2, 5)},
            r"expected states of 2 × 3 pixels, \(2, 6\), got \(2, 5\) in 'a'",
        ),
    ],
)
def test_what_is_no_gallery_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        retrieval_gallery(rows, shape=(2, 3))
