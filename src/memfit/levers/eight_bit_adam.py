"""Adam and AdamW whose two moments take a byte each: 2.03 bytes of state a parameter instead of 8.

The moments are kept in blocks of 256 entries, each with a float32 scale, in the dynamic code (``quantile_code``): Dettmers et
al. 2022, arXiv:2110.02861. As published there, tensors of fewer than 4096 entries keep float32 moments, and the update itself
is computed in float32 from decoded moments. Two things are done to keep weights that are rarely updated in order:

- a second moment above zero never becomes zero, so that a first moment is never divided by epsilon alone;
- where the gradient is exactly zero (a row of an embedding that the batch did not use), the first moment is rounded towards
  zero. Rounded to the nearest code, the smallest would stay where they are and push the weight for ever.

An update holds float32 copies of one tensor's moments at a time, of a large tensor's one chunk of rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from memfit import backends
from memfit.backends import keras_optimizer
from memfit.backends.protocol import Chunks
from memfit.levers.block_code import coded_moments, in_blocks, is_coded, num_blocks, strides
from memfit.levers.quantile_code import SIGNED, UNSIGNED, DynamicCode


@keras.saving.register_keras_serializable("memfit")
class EightBitAdam(keras.optimizers.Optimizer):
    """Adam with 8-bit moments: an ordinary Keras optimizer, on TensorFlow, JAX and PyTorch.

    Args:
        learning_rate: A float, a ``keras.optimizers.schedules.LearningRateSchedule`` or a callable.
        beta_1: The decay of the first moment.
        beta_2: The decay of the second moment.
        epsilon: Added to the root of the second moment.
        **options: Those of every Keras optimizer: ``weight_decay``, ``clipnorm``, ``clipvalue``, ``global_clipnorm``,
            ``use_ema`` (whose averages are float32), ``loss_scale_factor``, ``gradient_accumulation_steps``, ``name`` ...

    Example:
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(128)])
        >>> model.compile(EightBitAdam(1e-3), "mse")
        >>> model.optimizer.build(model.trainable_variables)
        >>> kernel, bias = model.optimizer.moments
        >>> [variable.dtype for variable in kernel.variables]
        ['uint8', 'float32', 'uint8', 'float32']
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **options)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.moments: list[FloatMoments | EightBitMoments | None] = []
        self._after: Any = None

    def build(self, variables: list[Any]) -> None:
        """Creates the moments of each variable, all zero."""
        self.build_with(variables, created=lambda variable: None)

    def build_with(self, variables: list[Any], *, created: Callable[[Any], None]) -> None:
        """``build``, with each variable of the moments handed to a function before the next is made."""
        if self.built:
            return
        super().build(variables)
        self.moments = []
        for variable in variables:
            overwritten = getattr(variable, "overwrite_with_gradient", False)
            self.moments.append(None if overwritten else self._new_moments(variable, created))

    def _new_moments(self, variable: Any, created: Callable[[Any], None]) -> FloatMoments | EightBitMoments:
        kind = EightBitMoments if is_coded(variable.shape) else FloatMoments
        path = getattr(variable, "path", variable.name).replace("/", "_").replace(":", "_")
        variables = []
        for name, shape, dtype in kind.layout(tuple(variable.shape)):
            variables.append(self.add_variable(shape, dtype=dtype, name=f"{path}_{name}"))
            created(variables[-1])
        return kind(variables)

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Updates the variables, the last first: theirs are the gradients that a backward pass has first."""
        grads = list(grads)
        if trainable_variables is None:
            trainable_variables = keras_optimizer.optimized_variables(self) if len(grads) else []
        trainable_variables = list(trainable_variables)
        if not self.built and trainable_variables:
            self.build(trainable_variables)
        self._after = None
        try:
            return super().apply(grads[::-1], trainable_variables[::-1])
        finally:
            self._after = None

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable and its moments, in chunks of rows."""
        moments = self.moments[keras_optimizer.optimizer_index(self, variable)]
        assert moments is not None  # Keras itself assigns variables that are overwritten with their gradients
        local_step = ops.cast(self.iterations + 1, "float32")
        corrections = [1 - ops.power(ops.cast(beta, "float32"), local_step) for beta in (self.beta_1, self.beta_2)]
        rate = ops.cast(learning_rate, "float32") * ops.sqrt(corrections[1]) / corrections[0]

        def update(gradient: Any, squared: Any, values: list[Any]) -> list[Any]:
            weight, *kept = values
            gradient, squared = (moments.arranged(ops.cast(one, "float32")) for one in (gradient, squared))
            first, second = moments.decoded(kept)
            first = first + (gradient - first) * (1 - self.beta_1)
            second = second + (squared - second) * (1 - self.beta_2)
            step = moments.as_weight(first * rate / (ops.sqrt(second) + self.epsilon), weight)
            return [weight - ops.cast(step, weight.dtype), *moments.encoded(first, second, gradient, kept)]

        chunks = Chunks([variable, *moments.variables], moments.strides(tuple(variable.shape)))
        self._after = backends.current().update_in_chunks(update, gradient, chunks, after=self._after)

    def get_config(self) -> dict[str, Any]:
        own = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("memfit")
class EightBitAdamW(EightBitAdam):
    """``EightBitAdam`` with decoupled weight decay, 0.004 like that of ``keras.optimizers.AdamW``."""

    def __init__(self, learning_rate: Any = 0.001, weight_decay: float = 0.004, **options: Any) -> None:
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, **options)


class FloatMoments:
    """The moments of a small tensor, float32, in its shape.

    Attributes:
        variables: First and second moment.
    """

    def __init__(self, variables: list[Any]) -> None:
        self.variables = variables

    @staticmethod
    def layout(shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, shape and dtype of each variable."""
        return [("momentum", shape, "float32"), ("velocity", shape, "float32")]

    def strides(self, shape: tuple[int, ...]) -> None:
        """All at once."""

    def arranged(self, tensor: Any) -> Any:
        """A gradient as the moments are arranged."""
        return tensor

    def as_weight(self, step: Any, weight: Any) -> Any:
        """What is arranged as the moments are, as the weight."""
        return step

    def decoded(self, kept: list[Any]) -> list[Any]:
        """Both moments as floats."""
        return kept

    def encoded(self, first: Any, second: Any, gradient: Any, kept: list[Any]) -> list[Any]:
        """Both moments as they are kept."""
        return [first, second]


class EightBitMoments:
    """The moments of a large tensor: codes of its entries in a row, and a scale for each block of them.

    The scale of a first moment is the block's entry farthest from zero with its sign, so that this entry is kept exactly.
    All zero stands for moments that are zero.

    Attributes:
        variables: Codes and scales of the first moment, codes and scales of the second.
    """

    def __init__(self, variables: list[Any]) -> None:
        self.variables = variables

    @staticmethod
    def layout(shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, shape and dtype of each variable."""
        size = math.prod(shape)
        kinds = (("codes", (size,), "uint8"), ("scales", (num_blocks(size),), "float32"))
        return [
            (f"{moment}_{kind}", shape, dtype) for moment in ("momentum", "velocity") for kind, shape, dtype in kinds
        ]

    def strides(self, shape: tuple[int, ...]) -> list[int] | None:
        """Those of ``block_code.strides``."""
        return strides(shape)

    def arranged(self, tensor: Any) -> Any:
        """A tensor's entries in blocks, ``(num_blocks, 256)``; the last is filled with zeros."""
        return in_blocks(tensor, ops)

    def as_weight(self, step: Any, weight: Any) -> Any:
        """What is in blocks, as the weight."""
        return ops.reshape(ops.reshape(step, (-1,))[: math.prod(weight.shape)], weight.shape)

    def decoded(self, kept: list[Any]) -> list[Any]:
        """Both moments as floats in blocks."""
        first, first_scales, second, second_scales = kept
        return [
            _number(SIGNED, first) * ops.expand_dims(first_scales, 1),
            _number(UNSIGNED, second) * ops.expand_dims(second_scales, 1),
        ]

    def encoded(self, first: Any, second: Any, gradient: Any, kept: list[Any]) -> list[Any]:
        """Both moments in codes and scales."""
        coded = coded_moments(first, second, gradient, ops)
        return [
            ops.cast(ops.reshape(one, (-1,))[: like.shape[0]], like.dtype)
            for one, like in zip(coded, kept, strict=True)
        ]


def _number(code: DynamicCode, codes: Any) -> Any:
    return ops.take(ops.convert_to_tensor(code.table), ops.cast(in_blocks(codes, ops), "int32"), axis=0)
