from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit import budgeting
from memfit.budgeting import device
from memfit.budgeting.decide import budget
from memfit.budgeting.presets import PRESETS, Preset, preset
from memfit.errors import BudgetError, MemfitError
from memfit.records import Budget, DeviceMemory

if TYPE_CHECKING:
    from conftest import Machine

GIB = 1024**3


class FakeBackend:
    """A backend with so much device memory, or none."""

    def __init__(self, total: int | None = None, used: int = 0) -> None:
        self.memory = None if total is None else DeviceMemory("gpu", total, used, used)

    def device_memory(self) -> DeviceMemory | None:
        return self.memory


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "device_use", lambda memory: None)


@pytest.fixture
def ceiling(machine: Machine) -> int:
    """What the fake machine allows."""
    return budget(root=machine.root).host_bytes


def gpu(total: int, used: int = 0) -> Any:
    return FakeBackend(total, used)


def test_this_machine() -> None:
    found = budgeting.budget()
    assert found.host_bytes > 0
    assert found.device_bytes is None
    assert "held by this process" in found.source


def test_machine_with_a_device(machine: Machine, ceiling: int) -> None:
    found = budget(backend=gpu(4 * GIB), root=machine.root)
    assert (found.host_bytes, found.device_bytes) == (ceiling, 4 * GIB)
    assert found.device_source == "the framework may allocate 4 GiB"


def test_backend_without_a_device(machine: Machine, ceiling: int) -> None:
    backend: Any = FakeBackend()
    found = budget(backend=backend, root=machine.root)
    assert (found.host_bytes, found.device_bytes, found.device_source) == (ceiling, None, None)


@pytest.mark.parametrize(
    "spec", [2 * GIB, np.int64(2 * GIB), np.uint32(2 * GIB), np.array(2 * GIB), "2 GiB", " 2g ", str(2 * GIB)]
)
def test_number_bounds_the_host_on_a_cpu(machine: Machine, spec: Any) -> None:
    found = budget(spec, root=machine.root)
    assert found.host_bytes == 2 * GIB
    assert type(found.host_bytes) is int
    assert found.source == f"asked for with budget={spec!r}"


def test_number_bounds_the_device_where_there_is_one(machine: Machine, ceiling: int) -> None:
    found = budget("2 GiB", backend=gpu(4 * GIB), root=machine.root)
    assert (found.host_bytes, found.device_bytes) == (ceiling, 2 * GIB)
    assert found.device_source == "asked for with budget='2 GiB'"
    assert "held by this process" in found.source


def test_number_above_what_is_free_is_lowered_and_says_so(machine: Machine, ceiling: int) -> None:
    found = budget("15 GiB", root=machine.root)
    assert found.host_bytes == ceiling < 15 * GIB
    assert found.source.startswith("15 GiB asked for with budget='15 GiB', lowered to what is there: 1 GiB held")


@pytest.mark.parametrize("spec", [0, -1, np.int64(-5), "0", "0 GiB", "0.1 B", -(2**70)])
def test_not_positive(machine: Machine, spec: Any) -> None:
    with pytest.raises(BudgetError) as caught:
        budget(spec, root=machine.root)
    assert str(caught.value) == (
        f"`budget` must be positive. Received: budget={spec!r}. Leave it out to use what this machine allows."
    )


@pytest.mark.parametrize(
    "spec", [True, False, np.True_, 1.5, 1e9, float("nan"), float("inf"), np.float32(3), [], {}, b"2 GiB", object(), 1j]
)
def test_not_a_whole_number(machine: Machine, spec: Any) -> None:
    with pytest.raises(BudgetError) as caught:
        budget(spec, root=machine.root)
    message = str(caught.value)
    assert message.startswith("`budget` must be a whole number of bytes. Received: budget=")
    assert f"({type(spec).__name__})" in message
    assert "colab-t4" in message


@pytest.mark.parametrize("spec", ["", "much", "nan", "-2 GiB", "2 GiB free", "12 gigs", "1e9", "colab-t5", "9" * 400])
def test_unreadable_text(machine: Machine, spec: str) -> None:
    with pytest.raises(BudgetError) as caught:
        budget(spec, root=machine.root)
    message = str(caught.value)
    assert message.startswith("`budget` cannot be read. Received: budget='")
    assert all(known.name in message for known in PRESETS)
    assert len(message) < 500


def test_more_than_the_machine_has_names_both(machine: Machine) -> None:
    with pytest.raises(BudgetError) as caught:
        budget("17 GiB", root=machine.root)
    assert str(caught.value) == (
        "`budget` must not be more than there is: 16 GiB (the machine's memory). Received: 17 GiB "
        "(asked for with budget='17 GiB'). Leave it out to use what this machine allows."
    )


def test_more_than_the_control_group_has(machine: Machine) -> None:
    machine.belongs_to("0::/job").mounts(("/sys/fs/cgroup", "/", "cgroup2", "rw"))
    machine.group_2("sys/fs/cgroup/job", limit=4 * GIB, used=GIB)
    with pytest.raises(BudgetError, match=r"4 GiB \(memory.max of this process's control group\)"):
        budget("5 GiB", root=machine.root)


def test_more_than_the_device_has(machine: Machine) -> None:
    with pytest.raises(BudgetError, match=r"4 GiB \(all that the framework may allocate on the gpu\)"):
        budget("5 GiB", backend=gpu(4 * GIB), root=machine.root)


def test_preset_sets_both(machine: Machine) -> None:
    machine.memory(total=64 * GIB, available=60 * GIB)
    known = preset("colab-t4")
    assert known is not None
    found = budget("Colab-T4", backend=gpu(40 * GIB), root=machine.root)
    assert found == Budget(known.host_bytes, known.source, known.device_bytes, known.device_source)


def test_presets_device_is_left_out_where_there_is_none(machine: Machine) -> None:
    machine.memory(total=64 * GIB, available=60 * GIB)
    assert budget("colab-t4", root=machine.root).device_bytes is None


def test_preset_without_a_device_leaves_the_device_as_it_is(machine: Machine) -> None:
    assert budget("laptop-8gb", backend=gpu(4 * GIB), root=machine.root).device_bytes == 4 * GIB


def test_preset_on_its_own_machine_under_jax_which_takes_three_quarters(machine: Machine) -> None:
    found = budget("colab-t4", backend=gpu(11 * GIB), root=machine.root)
    assert found.device_bytes == 11 * GIB
    assert "lowered to what is there" in str(found.device_source)


def test_preset_that_is_more_than_the_host_or_the_device(machine: Machine) -> None:
    with pytest.raises(BudgetError, match="preset colab-l4"):
        budget("colab-l4", backend=gpu(80 * GIB), root=machine.root)
    with pytest.raises(BudgetError, match="preset kaggle-t4"):
        budget("kaggle-t4", root=machine.memory(total=16 * GIB, available=GIB).root)
    with pytest.raises(BudgetError, match="preset colab-t4"):
        budget("colab-t4", backend=gpu(8 * GIB), root=machine.root)


@pytest.mark.parametrize("known", PRESETS, ids=lambda known: known.name)
def test_presets_are_sound(known: Preset) -> None:
    assert preset(known.name.upper()) is known
    assert known.name in known.source
    assert known.host_bytes > GIB
    assert (known.device_bytes is None) == (known.device_source is None)


def test_budget_is_returned_as_it_is(machine: Machine) -> None:
    given_budget = Budget(2 * GIB, "mine", 3 * GIB, "mine too")
    assert budget(given_budget, root=machine.root) is given_budget
    assert budget(given_budget, backend=gpu(4 * GIB), root=machine.root) is given_budget


@pytest.mark.parametrize(
    "bad",
    [Budget(0, "x"), Budget(17 * GIB, "x"), Budget(GIB, "x", 0), Budget(GIB, "x", 5 * GIB), Budget(1.5, "x")],  # type: ignore[arg-type]
)
def test_budget_is_checked(machine: Machine, bad: Budget) -> None:
    with pytest.raises(BudgetError):
        budget(bad, backend=gpu(4 * GIB), root=machine.root)


def test_none_never_raises(tmp_path: Path) -> None:
    assert budget(root=tmp_path).host_bytes > 0
    assert budget(root=tmp_path, backend=gpu(0)).device_bytes == 1


def test_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="must be positive") as caught:
        budgeting.budget(0)
    assert isinstance(caught.value, MemfitError)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60 * GIB), st.integers(1, 60 * GIB))
def test_asking_for_less_never_gives_more(first: int, second: int) -> None:
    total = 64 * GIB
    less, more = sorted((first, second))
    given_less, given_more = (budget(spec, backend=gpu(total)).device_bytes for spec in (less, more))
    assert given_less == less <= more == given_more


def test_imports_no_framework() -> None:
    script = (
        "import sys, memfit.budgeting, memfit.guarding.watch, memfit.probing.capped\n"
        "found = {'keras', 'tensorflow', 'jax', 'torch', 'pynvml', 'numpy'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_is_asked_for_on_a_device_is_known_before_the_device_is_looked_at() -> None:
    from memfit.budgeting import asked_device_bytes

    assert asked_device_bytes(None) is None
    assert asked_device_bytes("2 GiB") == asked_device_bytes(2**31) == 2**31
    assert asked_device_bytes("colab-t4") == preset("colab-t4").device_bytes
    assert asked_device_bytes(Budget(10, "mine", 5, "mine")) == 5
    with pytest.raises(BudgetError):
        asked_device_bytes("much")
