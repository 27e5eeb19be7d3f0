"""A function that TensorFlow computes again in the backward pass.

``tf.custom_gradient`` would densify or refuse the sparse gradient of an embedding inside, registers each gradient for ever,
and differs between eager and graph mode; the tape's own record of an operation does none of that.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from memfit.backends.protocol import PureFunction

_SCOPE = "gradient_tape/recomputed"


def rematerialized(function: PureFunction, *, num_inputs: int, compiled: bool) -> PureFunction:
    """The function as one operation of the gradient tape, whose gradient waits for the upstream one and computes it again.

    Args:
        function: A function of tensors.
        num_inputs: How many of its arguments, from the first, are made by the forward pass.
        compiled: Whether XLA compiles the step.
    """

    def call(tensors: list[Any]) -> tuple[list[Any], list[Any]]:
        tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]  # a variable is read here, on the tape
        with record.stop_recording():
            outputs, others = function(tensors)
            outputs = [tf.identity(output) for output in outputs]
            others = [tf.stop_gradient(other) for other in others]

        def gradient(*upstream: Any) -> list[Any]:
            with tf.name_scope(_SCOPE):
                arguments = _after(list(upstream), tensors, num_inputs if compiled else None)
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch([argument for argument in arguments if argument.dtype.is_floating])
                    again, _ = function(arguments)
                pairs = [(o, g) for o, g in zip(again, upstream, strict=True) if g is not None]
                return tape.gradient([o for o, _ in pairs], arguments, [g for _, g in pairs])

        record.record_operation("Rematerialized", outputs, tensors, gradient)
        return outputs, others

    return call


def _after(upstream: list[Any], tensors: list[Any], chosen: int | None) -> list[Any]:
    """The tensors as they are once the upstream gradients are there.

    XLA ignores control dependencies and, on a CPU, its own barriers. There the first ``chosen`` tensors pass through a choice
    that depends on the gradients and always falls the same way, which the compiler cannot know.
    """
    known = [tf.convert_to_tensor(gradient) for gradient in upstream if gradient is not None]
    if tf.executing_eagerly():
        return [tf.identity(tensor) for tensor in tensors]
    if chosen is None:
        with tf.control_dependencies(known):
            return [tf.identity(tensor) for tensor in tensors]
    firsts = [tf.cast(tf.reshape(gradient, [-1])[0], tf.float32) for gradient in known]
    never = tf.reduce_any([first > float("inf") for first in firsts])
    return [tf.where(never, tf.zeros_like(tensor), tensor) for tensor in tensors[:chosen]] + tensors[chosen:]
