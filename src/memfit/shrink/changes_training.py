"""Changes to how a model is trained: a lighter optimizer, sparse labels, adapters on frozen layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import keras

from memfit.backends import keras_graph, keras_saving
from memfit.profiling import layers as layer_bytes
from memfit.shrink import anatomy, rebuilding
from memfit.shrink.changes import Change, layers_in, weights_of

_RANK = 4
_SPARSE = {
    "categorical_crossentropy": "sparse_categorical_crossentropy",
    "CategoricalCrossentropy": "SparseCategoricalCrossentropy",
    "categorical_accuracy": "sparse_categorical_accuracy",
    "CategoricalAccuracy": "SparseCategoricalAccuracy",
    "top_k_categorical_accuracy": "sparse_top_k_categorical_accuracy",
    "TopKCategoricalAccuracy": "SparseTopKCategoricalAccuracy",
}


def all_of(model: Any) -> Iterator[Change]:
    """Every change of this family."""
    yield from _lighter_optimizers(model)
    yield from _sparse_labels(model)
    yield from _adapters(model)


def _recompiled(model: Any, config: dict[str, Any]) -> Any:
    return rebuilding.rebuilt(model, lambda layer: None, compile_config=config)


def _config(model: Any) -> dict[str, Any]:
    with keras_saving.no_imports():
        return copy.deepcopy(model.get_compile_config())


# Optimizers


def _lighter_optimizers(model: Any) -> Iterator[Change]:
    trained = layer_bytes.variable_bytes(model.trainable_variables)
    state = layer_bytes.variable_bytes(model.optimizer.variables)
    if state < 1.5 * trained:
        return
    lighter = {
        "Lion": (
            "one moment instead of two; a rate of a third to a tenth",
            lambda rate: keras.optimizers.Lion(rate / 5),
        ),
        "Adafactor": ("rows and columns of moments instead of all", lambda rate: keras.optimizers.Adafactor(rate)),
        "SGD": (
            "momentum alone; a rate ten times as high, and a schedule",
            lambda rate: keras.optimizers.SGD(10 * rate, momentum=0.9, nesterov=True),
        ),
    }
    for name, (why, make) in lighter.items():

        def build(make: Any = make) -> Any:
            config = _config(model)
            rate = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
            with keras_saving.no_imports():
                config["optimizer"] = keras.saving.serialize_keras_object(make(rate))
            return _recompiled(model, config)

        yield Change(
            "optimizer",
            f"{name} instead of {type(model.optimizer).__name__}: {why}",
            "all weights; the learning rate has to be tuned",
            state - trained - (name != "Lion"),
            build,
        )


# Labels


def _sparse_labels(model: Any) -> Iterator[Change]:
    config = _config(model)
    if not _is_categorical(config.get("loss")):
        return

    def build() -> Any:
        changed = _config(model)
        for name in ("loss", "metrics", "weighted_metrics"):
            changed[name] = _sparse(changed.get(name))
        return _recompiled(model, changed)

    yield Change(
        "sparse labels",
        "class numbers instead of one-hot rows: sparse categorical crossentropy",
        "all weights; pass y.argmax(-1) as labels",
        32 * 4 * sum((output.shape[-1] or 1) for output in model.outputs),
        build,
    )


def _is_categorical(loss: Any) -> bool:
    if isinstance(loss, dict) and "class_name" in loss:
        smooth = loss["config"].get("label_smoothing", 0) if isinstance(loss["config"], dict) else 0
        return loss["class_name"] == "CategoricalCrossentropy" and not smooth
    return loss == "categorical_crossentropy"


def _sparse(entry: Any) -> Any:
    if isinstance(entry, str):
        return _SPARSE.get(entry, entry)
    if isinstance(entry, list):
        return [_sparse(one) for one in entry]
    if isinstance(entry, dict) and entry.get("class_name") in _SPARSE:
        name = _SPARSE[entry["class_name"]]
        kept = {key: one for key, one in entry["config"].items() if key != "label_smoothing"}
        kept["name"] = _SPARSE.get(kept.get("name", ""), kept.get("name"))
        return {**entry, "class_name": name, "registered_name": None, "config": kept}
    return entry


# Adapters


def _adapters(model: Any) -> Iterator[Change]:
    graph = keras_graph.flattened(anatomy.checked_graph(model))
    outputs = {id(one.called) for one in graph.operations if set(one.writes) & set(graph.outputs)}
    adapted = [layer for layer in layers_in(model) if id(layer) not in outputs and _can_be_adapted(layer)]
    if not adapted:
        return
    chosen = {id(layer) for layer in adapted}

    def build() -> Any:
        made: list[Any] = []

        def replace(layer: Any) -> Any:
            if id(layer) not in chosen:
                return None
            new = rebuilding.from_config(layer, layer.get_config())
            made.append((layer, new))
            return new

        def finish() -> None:
            for old, new in made:
                rebuilding.copy_weights(old, new)
                new.enable_lora(_RANK)

        return rebuilding.rebuilt(model, replace, finish=finish)

    yield Change(
        "LoRA",
        f"adapters of rank {_RANK} on frozen kernels of {len(adapted)} layers (the last layer trains whole)",
        "all weights, to the last bit; for fine-tuning a trained model",
        sum(map(weights_of, adapted)) * 2 // 3,
        build,
    )


def _can_be_adapted(layer: Any) -> bool:
    if not hasattr(layer, "enable_lora") or getattr(layer, "lora_enabled", False) or not layer.trainable_variables:
        return False
    if getattr(layer, "quantization_mode", None) is not None or getattr(layer, "groups", 1) != 1:
        return False
    large = max(layer.weights, key=lambda weight: len(weight.shape))
    *rest, last = large.shape
    first = 1
    for size in rest:
        first *= size
    return bool(first * last > 4 * _RANK * (first + last))
