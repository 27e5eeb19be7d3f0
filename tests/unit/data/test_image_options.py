from __future__ import annotations

from typing import Any

import pytest

from memfit import errors
from memfit.data.image_options import ImageOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 150),
        ("image_size", (150,)),
        ("image_size", (150, 0)),
        ("image_size", (150, 150.0)),
        ("image_size", (150, True)),
        ("image_size", (150, 150, 3)),
        ("image_size", None),
        ("batch_size", 0),
        ("batch_size", -1),
        ("batch_size", 2.0),
        ("batch_size", True),
        ("batch_size", None),
        ("label_mode", "sparse"),
        ("color_mode", "bgr"),
        ("color_mode", None),
        ("interpolation", "lanczos"),
        ("rescale", 0),
        ("rescale", float("nan")),
        ("rescale", "1/255"),
        ("seed", -1),
        ("seed", 1.5),
        ("workers", -1),
        ("max_queue_bytes", 0),
        ("max_queue_size", -1),
        ("max_broken", -1),
    ],
)
def test_what_cannot_work_is_an_error_with_the_value(name: str, value: Any) -> None:
    with pytest.raises(errors.ArgumentError, match=f"`{name}` must be (?s:.*)Received: {name}=") as caught:
        ImageOptions(**{name: value})
    assert repr(value) in str(caught.value)


def test_what_works() -> None:
    options = ImageOptions(image_size=[20, 30], color_mode="grayscale", rescale=1 / 255)  # type: ignore[arg-type]
    assert options.image_size == (20, 30)
    assert options.image_shape == (20, 30, 1)
