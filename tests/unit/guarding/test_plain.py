from __future__ import annotations

import json
import random
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from memfit.guarding import plain


def through(value: Any) -> Any:
    arrays: plain.Arrays = {}
    document = json.loads(json.dumps(plain.encoded(value, arrays)))
    return plain.decoded(document, arrays)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        float("inf"),
        "text",
        [1, (2, "three")],
        {"a": 1, 2: [None]},
        {"array": 1},
        random.getstate(),
        np.float32(1.5),
        {"pairs": [{"tuple": ()}]},
        {"monitor_op": np.less},
    ],
)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    found = through(value)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "dtype", ["float32", "bool", "int64", "complex64", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_arrays_come_back_with_type_and_shape(dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    found = through({"value": array})["value"]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)


@pytest.mark.parametrize("value", [object(), [print], np.array([object()]), {1: {2: set()}}])
def test_what_is_not_plain_is_refused(value: Any) -> None:
    with pytest.raises(plain.NotPlainError, match="Received: a "):
        plain.encoded(value, {})


class Owner:
    def __init__(self) -> None:
        self.count = 3
        self.order = np.arange(5)
        self.data = np.zeros(2**20)
        self.function = print


def test_attributes_are_the_state_and_not_the_data() -> None:
    owner = Owner()
    constant = plain.large_arrays(owner)
    assert set(plain.attributes(owner, constant)) == {"count", "order"}
    owner.data = np.ones(2**20)  # replaced on the way: it is state
    assert set(plain.attributes(owner, constant)) == {"count", "order", "data"}


def test_functions_come_from_two_modules_alone() -> None:
    with pytest.raises(ValueError, match="no function of os"):
        plain.decoded({"function": ["os", "system"]}, {})
