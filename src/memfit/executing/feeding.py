"""How a run's data reaches the step: as the user passed it, or by index where Keras would copy whole arrays."""

from __future__ import annotations

import math
from typing import Any

import keras

from memfit.backends import keras_data, keras_seam
from memfit.backends.array_feed import COPY_LIMIT, ArrayFeed, copied_bytes
from memfit.errors import ArgumentError
from memfit.units import text


def streamed(arguments: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The arguments of ``fit`` with large arrays replaced by index feeds, and the sentence that says so.

    The order of the batches, and the split of ``validation_split``, stay those of ``fit``.
    """
    copied = copied_bytes(tuple(arguments.get(name) for name in ("x", "y", "sample_weight")))
    validation = arguments.get("validation_data")
    validation_copied = copied_bytes(validation) if isinstance(validation, (tuple, list)) else 0
    if max(copied, validation_copied) <= COPY_LIMIT:
        return arguments, None
    fed = dict(arguments)
    if copied > COPY_LIMIT:
        _split_validation(fed)
        fed["x"] = _train_feed(fed)
        fed["y"] = fed["sample_weight"] = fed["class_weight"] = None
    if isinstance(fed.get("validation_data"), (tuple, list)) and copied_bytes(fed["validation_data"]) > COPY_LIMIT:
        fed["validation_data"] = _validation_feed(fed)
    reason = (
        f"arrays of {text(copied + validation_copied)} are fed by index, a batch at a time: "
        "turned into tensors they would be held once or twice more"
    )
    return fed, reason


def _split_validation(arguments: dict[str, Any]) -> None:
    """Carries ``validation_split`` out on views, at the place where ``fit`` cuts."""
    share = arguments.get("validation_split")
    if not share or arguments.get("validation_data") is not None:
        return
    arrays = tuple(arguments.get(name) for name in ("x", "y", "sample_weight"))
    num_samples = keras_seam.flatten(arrays)[0].shape[0]
    cut = math.floor(num_samples * (1.0 - share))
    if not 0 < cut < num_samples:
        raise ArgumentError(
            f"`validation_split` must leave samples on both sides. Received: validation_split={share} of {num_samples} samples."
        )
    first, rest = (
        tuple(keras_seam.rows(array, part) for array in arrays) for part in (slice(0, cut), slice(cut, None))
    )
    arguments.update(zip(("x", "y", "sample_weight"), first, strict=True))
    arguments["validation_data"] = rest
    arguments["validation_split"] = 0.0


def _train_feed(arguments: dict[str, Any]) -> ArrayFeed:
    x, y, sample_weight = (arguments.get(name) for name in ("x", "y", "sample_weight"))
    if arguments.get("class_weight") is not None:
        if sample_weight is not None:
            raise ArgumentError("Pass `class_weight` or `sample_weight`, not both. Received: both.")
        sample_weight = keras_data.class_weights(y, arguments["class_weight"])
    elif sample_weight is not None and keras.tree.is_nested(y) and not keras.tree.is_nested(sample_weight):
        sample_weight = keras_seam.map_leaves(lambda _: sample_weight, y)
    return ArrayFeed(
        (x, y, sample_weight),
        batch_size=arguments.get("batch_size"),
        steps=arguments.get("steps_per_epoch"),
        shuffle=arguments.get("shuffle", True),
    )


def _validation_feed(arguments: dict[str, Any]) -> ArrayFeed:
    arrays = keras.utils.unpack_x_y_sample_weight(tuple(arguments["validation_data"]))
    batch_size = arguments.get("validation_batch_size") or arguments.get("batch_size")
    return ArrayFeed(arrays, batch_size=batch_size, steps=arguments.get("validation_steps"), shuffle=False)
