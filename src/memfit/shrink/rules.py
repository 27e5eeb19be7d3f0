"""Which rule follows the channels through a layer or operation."""

from __future__ import annotations

from typing import Any

import keras

from memfit.shrink import rules_attention, rules_joining, rules_passing, rules_recurrent, rules_weighted
from memfit.shrink.calls import Rule

_RULES: dict[str, Rule] = {
    **rules_weighted.RULES,
    **rules_recurrent.RULES,
    **rules_attention.RULES,
    **rules_joining.RULES,
    **rules_passing.RULES,
}


def rule_of(layer: Any) -> tuple[Rule | None, str]:
    """The rule for a layer or operation of Keras' own, or None with the reason why there is none."""
    kind = type(layer)
    if not kind.__module__.startswith("keras."):
        return None, f"a {kind.__name__} of your own has no rule"
    if getattr(layer, "lora_enabled", False):
        return None, "its weights are adapted by LoRA"
    if getattr(layer, "quantization_mode", None) is not None:
        return None, "its weights are quantized"
    is_layer = isinstance(layer, keras.layers.Layer)
    rule = _RULES.get(kind.__name__ if is_layer else f"ops.{kind.__name__}")
    return rule, "" if rule is not None else f"there is no rule for {kind.__name__}"
