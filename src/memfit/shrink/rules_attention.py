"""Rules for attention: whole heads are kept or removed, the width of a head stays."""

from __future__ import annotations

from typing import Any

import numpy as np

from memfit.shrink.calls import Call, Rule
from memfit.shrink.channels import Atoms, Channels


def multi_head(call: Call) -> list[Channels] | None:
    """Heads are of the layer's own; what it gives has the query's width unless it says another."""
    heads = call.made(call.layer.num_heads)
    call.size(("num_heads",), heads)
    return _attention(call, heads, heads)


def grouped_query(call: Call) -> list[Channels] | None:
    """Heads of keys and values are kept or removed with the queries' heads that use them."""
    shared = call.made(call.layer.num_key_value_heads)
    each = call.layer.num_query_heads // call.layer.num_key_value_heads
    queries = np.repeat(shared, each)
    call.size(("num_key_value_heads",), shared)
    call.size(("num_query_heads",), queries)
    return _attention(call, queries, shared)


def _attention(call: Call, query_heads: Atoms, shared_heads: Atoms) -> list[Channels] | None:
    query, value, key = (_argument(call, i, name) for i, name in enumerate(("query", "value", "key")))
    taken = {"query": call.along(query), "value": call.along(value), "gate": call.along(query)}
    taken["key"] = taken["value"] if key is None else call.along(key)
    config = call.layer.get_config()
    if len(query.shape) != 3:
        return None
    if config.get("output_shape") is None:
        given = taken["query"]
    else:
        given = call.made(call.shapes[0][-1] or 0)
        call.size(("output_shape",), given)
    for weight in call.layer.weights:
        *_, owner, name = weight.path.split("/")
        heads = shared_heads if owner in ("key", "value") else query_heads
        if owner == "attention_output":
            call.cut(weight, {0: heads, 2: given} if name == "kernel" else {0: given}, scores=name == "kernel")
        elif owner in taken:
            call.cut(weight, {0: taken[owner], 1: heads} if name == "kernel" else {0: heads}, scores=name == "kernel")
    return [call.given(given), *(call.given(None, number=i) for i in range(1, len(call.shapes)))]


def _argument(call: Call, position: int, name: str) -> Any:
    return call.args[position] if position < len(call.args) else call.kwargs.get(name)


def dot_product(call: Call) -> list[Channels] | None:
    """``Attention`` without weights over channels: query and key must match, what it gives is the values'."""
    tensors = call.args[0]
    query, value = tensors[0], tensors[1]
    key = tensors[2] if len(tensors) > 2 else value
    tied = call.ties.tie(call.along(query), call.along(key))
    for weight in call.layer.weights:
        call.cut(weight, {0: tied} if len(weight.shape) == 1 else {})
    given = call.along(value)
    return [call.given(given), *(call.given(None, number=i) for i in range(1, len(call.shapes)))]


RULES: dict[str, Rule] = {
    "MultiHeadAttention": multi_head,
    "GroupedQueryAttention": grouped_query,
    "Attention": dot_product,
    "AdditiveAttention": dot_product,
}
