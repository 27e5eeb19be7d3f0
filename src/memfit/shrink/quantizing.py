"""``memfit.shrink.quantize``: Keras' own quantization on a copy of a model, with what it saved and what it cost."""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import Any

import keras

from memfit.backends import keras_seam
from memfit.errors import ArgumentError
from memfit.reporting.console import say
from memfit.shrink import calibrating, fine_tuning, litert, measuring, rebuilding
from memfit.shrink.measuring import Measured

MODES = ("int8", "int4", "float8", "gptq", "awq")
_CALIBRATED = ("gptq", "awq")
_CALIBRATION_SAMPLES = 512


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantized model, beside the one it was made from.

    Attributes:
        model: The quantized model: it predicts and evaluates, and where ``unsaved`` is empty it saves and loads; it is
            compiled as the model was.
        mode: How it was quantized.
        before: The model as it was; None where there was no data.
        after: The quantized model; None where there was no data.
        left: Layers with weights that Keras cannot quantize in this mode, by name.
        exported: Bytes of the LiteRT file, or None.
        unsaved: Layers that this Keras does not save whole in this mode, by name: a file of the model would not load again.
    """

    model: Any
    mode: str
    before: Measured | None
    after: Measured | None
    left: tuple[str, ...]
    exported: int | None = None
    unsaved: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [] if self.before is None or self.after is None else [measuring.table((self.before, self.after))]
        if self.left:
            lines.append(f"Keras has no {self.mode} for: {', '.join(self.left)}; they stay as they are")
        if self.unsaved:
            lines.append(
                f"Keras {keras.__version__} does not save {self.mode} whole: a file of this model does not load again, because "
                f"of {', '.join(self.unsaved)}. Keep it in memory, or take int8 or int4"
            )
        if self.exported is not None:
            lines.append(f"LiteRT file: {self.exported:,} bytes")
        return "\n".join(lines) or f"quantized to {self.mode}"


def quantize(
    model: Any,
    mode: str = "int8",
    data: Any = None,
    *,
    export: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    verbose: int = 1,
) -> Quantized:
    """A quantized copy of a model, with size, peak, speed and accuracy before and after.

    Keras quantizes the weights of Dense, EinsumDense (and with it attention) and Embedding layers; others, convolutions
    among them, stay as they are and are named. A LiteRT file quantizes those too.

    Args:
        model: A built model; it is left as it is.
        mode: "int8", "int4", "float8", or "gptq" and "awq", which need data to calibrate and reach 4 bits.
        data: ``(x, y)`` or a dataset: to calibrate with (512 samples, one batch in memory at a time) and to measure on.
        export: Where to write a LiteRT file (``.tflite``) of the model with dynamic-range int8 weights. Needs TensorFlow.
        batch_size: Samples of a step.
        verbose: 0 to print nothing.

    Raises:
        ArgumentError: There is no such mode, a mode needs data, the model is not built or already quantized.
        MemfitError: The LiteRT file cannot be made.

    Example:
        >>> import keras, memfit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(10)])
        >>> memfit.shrink.quantize(model, "int8", verbose=0).model.layers[0].quantization_mode
        'int8'
    """
    arguments = None if data is None else fine_tuning.fit_data(data, "quantize")
    _check(model, mode, arguments)
    if export is not None:
        litert.check_path(export)

    def change(made: Any) -> None:
        settings: dict[str, Any] = {}
        if mode in _CALIBRATED and arguments is not None:
            x = arguments["x"]
            settings["filters"] = calibrating.can_be_calibrated
            settings["config"] = calibrating.config(made, mode, x, samples=_CALIBRATION_SAMPLES, batch_size=batch_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of each layer that it leaves; they are named below
            made.quantize(mode, **settings)
        if "config" in settings:
            # The layers keep the configuration and would save what the calibration took.
            config = settings["config"]
            config.dataset, config.tokenizer, config.quantization_layer_structure = None, None, None
        _name_policies(made)

    copy = rebuilding.copied(model, change=change)
    layers = keras_seam.flat_layers(copy)
    left = tuple(layer.name for layer in layers if _is_left(layer))
    unsaved = tuple(layer.name for layer in layers if _mode_of(layer) and not _is_saved_whole(layer))
    rows: tuple[Measured | None, ...] = (None, None)
    if arguments is not None:
        rows = measuring.measured({"before": model, mode: copy}, arguments, batch_size)
    exported = None if export is None else litert.export(model, export)
    done = Quantized(copy, mode, rows[0], rows[1], left, exported, unsaved)
    say(f"memfit: {model.name} quantized to {mode}\n{done}", quiet=verbose == 0)
    return done


def _check(model: Any, mode: str, arguments: Any) -> None:
    if mode not in MODES:
        raise ArgumentError(f"`mode` is one of {', '.join(MODES)}. Received: mode={mode!r}.")
    if not isinstance(model, keras.Model) or not model.built:
        raise ArgumentError(
            f"Only a built Keras model has weights to quantize. Received: {getattr(model, 'name', model)!r}. Add a keras.Input "
            "as its first layer, or call it once on data."
        )
    if measuring.is_quantized(model):
        raise ArgumentError(
            f"The model is quantized already. Received: {model.name!r}. Quantize the one it was made from."
        )
    if mode in _CALIBRATED and arguments is None:
        raise ArgumentError(
            f"{mode} needs data to calibrate with. Received: data=None. Pass (x, y) or a dataset, or take mode='int8'."
        )


def _name_policies(model: Any) -> None:
    """Gives layers made of layers, such as attention, the policy of each, which Keras would not write into a file."""
    for layer in keras_seam.flat_layers(model):
        inner = [one for one in keras_seam.flat_layers(layer) if _mode_of(one)]
        if not inner or isinstance(layer, keras.Model):
            continue
        policies = keras.dtype_policies.DTypePolicyMap(default_policy=layer.dtype_policy)
        for one in inner:
            policies[one.path] = one.dtype_policy
        layer.dtype_policy = policies


def _is_saved_whole(layer: Any) -> bool:
    """Whether Keras writes as many variables as it will look for (3.15 leaves out the zero points of GPTQ and AWQ)."""
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    return len(store) >= len(layer.variables)


def _is_left(layer: Any) -> bool:
    """Whether a layer of its own has a kernel that is still of floats."""
    own = [weight for weight in getattr(layer, "weights", ()) if len(weight.shape) > 1]
    alone = not keras_seam.flat_layers(layer)
    return bool(alone and own and not _mode_of(layer))


def _mode_of(layer: Any) -> str | None:
    return getattr(layer, "quantization_mode", None)
