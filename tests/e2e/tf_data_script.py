"""Goes twice through a tf.data pipeline of 192 MiB with a cache and a shuffle; prints how much anonymous memory grew.

python tf_data_script.py plain|bounded
"""

from __future__ import annotations

import sys
from typing import Any

import tensorflow as tf

from memfit import budgeting
from memfit.data import pipelines

COUNT = 1024
SHARE = 32 * 2**20


def image(number: Any) -> Any:
    return tf.fill((128, 128, 3), tf.cast(number, tf.float32)), number


def main() -> None:
    data = tf.data.Dataset.range(COUNT).map(image, num_parallel_calls=2).cache().shuffle(COUNT).batch(8).prefetch(2)
    before = budgeting.reading().host_bytes
    findings: tuple[str, ...] = ()
    if sys.argv[1] == "bounded":
        data, findings = pipelines.bounded(data, SHARE)
    most, seen = 0, []
    for _ in range(2):
        for index, (_, numbers) in enumerate(data):
            seen.extend(numbers.numpy().tolist())
            if index % 8 == 7:
                most = max(most, budgeting.reading().host_bytes)
    assert sorted(seen) == sorted(2 * list(range(COUNT)))
    print(len(findings), most - before)


if __name__ == "__main__":
    main()
