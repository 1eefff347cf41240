"""Pictures of what memories retrieve."""

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from hamdeq.plots import retrieval_gallery, weight_images


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


def test_colours_are_drawn_between_their_limits():
    x = torch.rand(2, 3, 4, 5) * 2 - 1
    x[1, 0, 2, 3] = torch.nan  # unknown
    for rows in ({"given": x}, {"given": x.flatten(1)}):
        figure = retrieval_gallery(rows, (3, 4, 5))
        first, second = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
        wanted = (x.permute(0, 2, 3, 1).numpy() + 1) / 2
        assert np.allclose(first[..., :3], wanted[0])
        assert first[..., 3].all()
        assert second[..., 3].sum() == 19
        assert second[2, 3, 3] == 0
    grey = retrieval_gallery({"a": torch.rand(1, 1, 4, 5)}, (1, 4, 5))
    assert grey.axes[0].images[0].get_array().shape == (4, 5)


def test_weights_of_colours_are_drawn_around_grey():
    weights = torch.zeros(2, 60)
    weights[0, 7] = 2.0
    figure = weight_images(weights, (3, 4, 5))
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    assert drawn[1, 2, :3].tolist() == [1.0, 0.5, 0.5]
    assert len(figure.axes) == 2  # no bar of one colour


@pytest.mark.parametrize("shape", [(4, 5, 3), (2, 4, 5), (20,), (1, 1, 4, 5)])
def test_shapes_that_are_none_of_an_image_are_refused(shape):
    states = torch.rand(2, int(np.prod(shape)))
    for draw in (
        lambda: retrieval_gallery({"a": states}, shape),
        lambda: weight_images(states, shape),
    ):
        with pytest.raises(
            ValueError, match=r"expected \(height, width\), or \(3, height, width\)"
        ):
            draw()
