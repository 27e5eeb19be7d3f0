"""Map-style data sets of torch in ``memfit.data.indexed``."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("PyTorch only", allow_module_level=True)

import torch

import memfit
from memfit import data


class Squares(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 30

    def __getitem__(self, number: int) -> Any:
        return torch.tensor([number, 1.0], dtype=torch.float64), torch.tensor(number**2)


def test_a_data_set_a_part_of_one_and_tensors_train() -> None:
    part = torch.utils.data.Subset(Squares(), range(5, 25))
    dataset = data.indexed(part, batch_size=8, seed=0)
    batches = list(dataset)
    numbers = np.concatenate([x[:, 0] for x, _ in batches])
    assert sorted(numbers.tolist()) == list(range(5, 25))
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), numbers**2)
    assert (batches[0][0].dtype, batches[0][1].dtype) == ("float32", "int64")
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("adam", "mse")
    tensors = torch.utils.data.TensorDataset(torch.zeros(20, 2, requires_grad=True), torch.ones(20))
    for found in (dataset, data.indexed(tensors, batch_size=8)):
        assert np.isfinite(memfit.fit(model, found, verbose=0).history["loss"]).all()
