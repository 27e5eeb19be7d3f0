"""The models of ``prediction.py``: each as users write it, on any Keras backend, with three batch sizes.

``calibration`` models are such as the margins were set on; ``validation`` models are of kinds that no margin has seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from memfit.backends import keras_seam
from memfit.records import TensorSpec

LABEL = TensorSpec((), "int32")
NUM_CLASSES = 10
"""Whole numbers of any target lie below this."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A model before it is compiled, and what one sample of its data looks like.

    Attributes:
        model: Not compiled yet.
        loss: As ``compile`` takes it.
        x: Nested structure of specs without a batch axis.
        y: The same for the targets.
        vocabulary: Whole numbers of ``x`` lie below this.
    """

    model: Any
    loss: Any
    x: Any
    y: Any
    vocabulary: int = 10

    def arrays(self, num_samples: int) -> tuple[Any, Any]:
        """Synthetic x and y."""
        rng = np.random.default_rng(0)

        def leaf(spec: TensorSpec, limit: int) -> np.ndarray:
            shape = (num_samples, *spec.shape)
            whole = spec.dtype == "int32"
            return rng.integers(0, limit, shape, "int32") if whole else rng.random(shape, "float32")

        x = keras_seam.map_leaves(lambda spec: leaf(spec, self.vocabulary), self.x)
        return x, keras_seam.map_leaves(lambda spec: leaf(spec, NUM_CLASSES), self.y)

    def batch(self, num_samples: int) -> tuple[Any, Any, None]:
        """The specs of a batch: x, y, and no sample weights."""
        specs = (self.x, self.y)
        x, y = keras_seam.map_leaves(lambda leaf: TensorSpec((num_samples, *leaf.shape), leaf.dtype), specs)
        return x, y, None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of the table of models.

    Attributes:
        build: Makes the case.
        role: "calibration" or "validation".
        batches: Samples of a small, a middle and a large batch: on a CPU the large one takes 1 to 4 GiB where three
            steps of it take less than a minute.
    """

    build: Callable[[], Case]
    role: str
    batches: tuple[int, int, int]


def _classifier(body: list[Any], *, shape: tuple[int, ...], classes: int = NUM_CLASSES) -> Case:
    head = layers.Dense(classes, activation="softmax")
    model = keras.Sequential([keras.Input(shape), *body, head])
    return Case(model, "sparse_categorical_crossentropy", TensorSpec(shape, "float32"), LABEL)


def _application(name: str, size: int = 224) -> Callable[[], Case]:
    """A model of ``keras.applications`` with its head of 1000 classes and random weights."""

    def build() -> Case:
        shape = (size, size, 3)
        model = getattr(keras.applications, name)(weights=None, input_shape=shape)
        return Case(model, "sparse_categorical_crossentropy", TensorSpec(shape, "float32"), LABEL)

    return build


def mlp_small() -> Case:
    """Few weights, large batches: activations and the loss hold the peak."""
    return _classifier([layers.Dense(256, activation="gelu") for _ in range(12)], shape=(256,), classes=1000)


def mlp_wide() -> Case:
    """Many weights: gradients and the update hold the peak."""
    return _classifier([layers.Dense(3072, activation="relu") for _ in range(5)], shape=(1024,))


def small_cnn() -> Case:
    body = [layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten()]
    return _classifier(body, shape=(150, 150, 3))


def unet() -> Case:
    inputs = keras.Input((128, 128, 3))
    hidden, skips = inputs, []
    for filters in (16, 32, 64):
        for _ in range(2):
            hidden = layers.Conv2D(filters, 3, padding="same", activation="relu")(hidden)
        skips.append(hidden)
        hidden = layers.MaxPooling2D()(hidden)
    hidden = layers.Conv2D(128, 3, padding="same", activation="relu")(hidden)
    for filters, skip in zip((64, 32, 16), reversed(skips), strict=True):
        hidden = layers.Conv2DTranspose(filters, 2, strides=2)(hidden)
        hidden = layers.Concatenate()([hidden, skip])
        hidden = layers.Conv2D(filters, 3, padding="same", activation="relu")(hidden)
    outputs = layers.Conv2D(1, 1, activation="sigmoid")(hidden)
    specs = TensorSpec((128, 128, 3), "float32"), TensorSpec((128, 128, 1), "float32")
    return Case(keras.Model(inputs, outputs), "binary_crossentropy", *specs)


def cnn_3d() -> Case:
    body: list[Any] = []
    for filters in (16, 32, 64):
        body += [
            layers.Conv3D(filters, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling3D(),
        ]
    return _classifier([*body, layers.GlobalAveragePooling3D()], shape=(16, 64, 64, 1))


def _recurrent(layer: Callable[..., Any]) -> Callable[[], Case]:
    def build() -> Case:
        body = [layer(128, return_sequences=True), layer(128, return_sequences=True), layer(64)]
        return _classifier(body, shape=(80, 64))

    return build


def _block(hidden: Any, *, heads: int, causal: bool = False, rate: float = 0.1) -> Any:
    """A transformer block that normalizes first."""
    width = hidden.shape[-1]
    normed = layers.LayerNormalization()(hidden)
    attended = layers.MultiHeadAttention(heads, width // heads, dropout=rate)(normed, normed, use_causal_mask=causal)
    hidden = layers.Add()([hidden, layers.Dropout(rate)(attended)])
    wide = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(hidden))
    return layers.Add()([hidden, layers.Dropout(rate)(layers.Dense(width)(wide))])


class Positions(layers.Layer):
    """Adds a learned vector for each place of a sequence."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, inputs: Any) -> Any:
        return inputs + self.table


def transformer() -> Case:
    """An encoder that classifies texts."""
    inputs = keras.Input((128,), dtype="int32")
    hidden = Positions()(layers.Embedding(20_000, 192)(inputs))
    for _ in range(3):
        hidden = _block(hidden, heads=6)
    outputs = layers.Dense(NUM_CLASSES, activation="softmax")(layers.GlobalAveragePooling1D()(hidden))
    model = keras.Model(inputs, outputs)
    return Case(model, "sparse_categorical_crossentropy", TensorSpec((128,), "int32"), LABEL, vocabulary=20_000)


def gpt() -> Case:
    """A causal language model: the logits of every place count."""
    inputs = keras.Input((192,), dtype="int32")
    hidden = Positions()(layers.Embedding(8000, 256)(inputs))
    for _ in range(4):
        hidden = _block(hidden, heads=8, causal=True)
    outputs = layers.Dense(8000)(layers.LayerNormalization()(hidden))
    tokens = TensorSpec((192,), "int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Case(keras.Model(inputs, outputs), loss, tokens, tokens, vocabulary=8000)


def vit() -> Case:
    """The size of ViT-Tiny at half its depth."""
    inputs = keras.Input((224, 224, 3))
    patches = layers.Conv2D(192, 16, strides=16)(layers.Rescaling(1 / 255)(inputs))
    hidden = Positions()(layers.Reshape((196, 192))(patches))
    for _ in range(6):
        hidden = _block(hidden, heads=3)
    pooled = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(hidden))
    outputs = layers.Dense(1000, activation="softmax")(pooled)
    spec = TensorSpec((224, 224, 3), "float32")
    return Case(keras.Model(inputs, outputs), "sparse_categorical_crossentropy", spec, LABEL)


def two_in_two_out() -> Case:
    image, table = keras.Input((64, 64, 3), name="image"), keras.Input((32,), name="table")
    hidden = layers.Conv2D(32, 5, strides=2, activation="relu")(image)
    hidden = layers.Flatten()(layers.Conv2D(64, 3, activation="relu")(hidden))
    hidden = layers.Concatenate()([hidden, layers.Dense(256, activation="relu")(table)])
    outputs = {
        "label": layers.Dense(NUM_CLASSES, activation="softmax", name="label")(hidden),
        "value": layers.Dense(1, name="value")(hidden),
    }
    model = keras.Model({"image": image, "table": table}, outputs)
    x = {"image": TensorSpec((64, 64, 3), "float32"), "table": TensorSpec((32,), "float32")}
    y = {"label": LABEL, "value": TensorSpec((1,), "float32")}
    return Case(model, {"label": "sparse_categorical_crossentropy", "value": "mse"}, x, y)


def embedding() -> Case:
    """Nearly all weights are a table of which a batch reads a part."""
    inputs = keras.Input((100,), dtype="int32")
    hidden = layers.GlobalAveragePooling1D()(layers.Embedding(500_000, 64)(inputs))
    outputs = layers.Dense(1, activation="sigmoid")(layers.Dense(64, activation="relu")(hidden))
    specs = TensorSpec((100,), "int32"), TensorSpec((1,), "float32")
    return Case(keras.Model(inputs, outputs), "binary_crossentropy", *specs, vocabulary=500_000)


MODELS: dict[str, Entry] = {
    "mlp_small": Entry(mlp_small, "calibration", (2048, 16_384, 32_768)),
    "mlp_wide": Entry(mlp_wide, "calibration", (64, 512, 4096)),
    "small_cnn": Entry(small_cnn, "calibration", (32, 96, 256)),
    "unet": Entry(unet, "calibration", (8, 24, 64)),
    "lstm": Entry(_recurrent(layers.LSTM), "calibration", (64, 192, 512)),
    "gru": Entry(_recurrent(layers.GRU), "calibration", (64, 192, 512)),
    "transformer": Entry(transformer, "calibration", (8, 24, 96)),
    "two_in_two_out": Entry(two_in_two_out, "calibration", (128, 512, 1024)),
    "embedding": Entry(embedding, "calibration", (256, 2048, 8192)),
    "vgg16": Entry(_application("VGG16"), "validation", (1, 2, 8)),
    "resnet50": Entry(_application("ResNet50"), "validation", (2, 4, 16)),
    "mobilenet_v3_small": Entry(_application("MobileNetV3Small"), "validation", (8, 24, 96)),
    "mobilenet_v3_large": Entry(_application("MobileNetV3Large"), "validation", (4, 12, 48)),
    "efficientnet_b0": Entry(_application("EfficientNetB0"), "validation", (2, 6, 16)),
    "densenet121": Entry(_application("DenseNet121"), "validation", (2, 4, 16)),
    "cnn_3d": Entry(cnn_3d, "validation", (8, 24, 64)),
    "gpt": Entry(gpt, "validation", (2, 6, 24)),
    "vit": Entry(vit, "validation", (4, 12, 48)),
}
