"""From what the user asked for and what the machine has to a budget."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex

from memfit import units
from memfit.budgeting import device, host
from memfit.budgeting.ceiling import Ceiling
from memfit.budgeting.presets import PRESETS, Preset, preset
from memfit.errors import BudgetError
from memfit.records import Budget, DeviceMemory

if TYPE_CHECKING:
    from memfit.backends.protocol import Backend

_WHAT_TO_WRITE = "Write a number of bytes, a text like '12 GiB', or a preset: " + ", ".join(
    known.name for known in PRESETS
)
_LEAVE_OUT = "Leave it out to use what this machine allows."


def budget(
    spec: SupportsIndex | str | Budget | None = None, *, backend: Backend | None = None, root: Path = Path("/")
) -> Budget:
    """What training may take, and how that is known.

    Args:
        spec: None for what this machine allows; a ceiling in bytes or as text ("12 GiB") on the memory that holds the
            training step, which is the device's where there is one and the host's otherwise; the name of a preset
            ("colab-t4"), which bounds both; or a ``Budget``, returned as it is. A number or a preset above what is free
            at the moment is lowered to that: what others hold cannot be trained in.
        backend: Asked for the device's memory; None leaves the device out.
        root: Where ``proc`` and ``sys`` are looked for.

    Raises:
        BudgetError: The ceiling is not positive, cannot be read, or is more than the machine has. Never for None.

    Example:
        >>> budget("64 MiB").host_bytes
        67108864
    """
    memory = None if backend is None else backend.device_memory()
    if isinstance(spec, Budget):
        return _checked(spec, memory, root)
    known = preset(spec) if isinstance(spec, str) else None
    if known is not None:
        return _from_preset(known, memory, root)
    wanted = None if spec is None else Ceiling(_bytes(spec), f"asked for with budget={spec!r}")
    machine = host.host_ceiling(root=root)
    if memory is None:
        _refuse_more_than(host.host_total(root=root), wanted)
        ceiling = _lowered(wanted, machine)
        return Budget(ceiling.bytes, ceiling.source)
    _refuse_more_than(_device_total(memory), wanted)
    ceiling = _lowered(wanted, _device_ceiling(memory))
    return Budget(machine.bytes, machine.source, ceiling.bytes, ceiling.source)


def asked_device_bytes(spec: SupportsIndex | str | Budget | None) -> int | None:
    """What a ``budget`` argument asks for on an accelerator, were there one; None where it asks for nothing.

    Raises:
        BudgetError: It is not positive or cannot be read.
    """
    if spec is None or isinstance(spec, Budget):
        return None if spec is None else spec.device_bytes
    known = preset(spec) if isinstance(spec, str) else None
    return _bytes(spec) if known is None else known.device_bytes


def _from_preset(known: Preset, memory: DeviceMemory | None, root: Path) -> Budget:
    wanted = Ceiling(known.host_bytes, known.source)
    _refuse_more_than(host.host_total(root=root), wanted)
    ceiling = _lowered(wanted, host.host_ceiling(root=root))
    if memory is None:
        return Budget(ceiling.bytes, ceiling.source)
    on_device = _device_of(known, memory)
    return Budget(ceiling.bytes, ceiling.source, on_device.bytes, on_device.source)


def _device_of(known: Preset, memory: DeviceMemory) -> Ceiling:
    """A preset's bound on the device that is there."""
    if known.device_bytes is None:
        return _device_ceiling(memory)
    wanted = Ceiling(known.device_bytes, known.device_source or known.source)
    # JAX takes three quarters of a device by default: the preset's own machine must not be refused for that.
    if known.device_bytes * 3 // 4 > memory.total_bytes:
        _refuse_more_than(_device_total(memory), wanted)
    return _lowered(wanted, _device_ceiling(memory))


def _checked(given: Budget, memory: DeviceMemory | None, root: Path) -> Budget:
    _refuse_more_than(host.host_total(root=root), Ceiling(_bytes(given.host_bytes), given.source))
    if given.device_bytes is not None:
        device_bytes = _bytes(given.device_bytes)
        if memory is not None:
            _refuse_more_than(_device_total(memory), Ceiling(device_bytes, given.device_source or given.source))
    return given


def _lowered(wanted: Ceiling | None, now: Ceiling) -> Ceiling:
    """What is asked for, or what is there now where that is less or nothing was asked for."""
    if wanted is None:
        return now
    if wanted.bytes <= now.bytes:
        return wanted
    return Ceiling(now.bytes, f"{units.text(wanted.bytes)} {wanted.source}, lowered to what is there: {now.source}")


def _refuse_more_than(total: Ceiling, wanted: Ceiling | None) -> None:
    if wanted is not None and wanted.bytes > total.bytes:
        raise BudgetError(
            f"`budget` must not be more than there is: {units.text(total.bytes)} ({total.source}). "
            f"Received: {units.text(wanted.bytes)} ({wanted.source}). {_LEAVE_OUT}"
        )


def _device_ceiling(memory: DeviceMemory) -> Ceiling:
    return device.device_ceiling(memory, device.device_use(memory))


def _device_total(memory: DeviceMemory) -> Ceiling:
    return Ceiling(memory.total_bytes, f"all that the framework may allocate on the {memory.kind}")


def _bytes(spec: SupportsIndex | str) -> int:
    """The positive number of bytes that the user wrote."""
    num_bytes = _parsed(spec) if isinstance(spec, str) else _whole(spec)
    if num_bytes <= 0:
        raise BudgetError(f"`budget` must be positive. Received: budget={spec!r:.100}. {_LEAVE_OUT}")
    return num_bytes


def _parsed(spec: str) -> int:
    try:
        return units.parse(spec)
    except (ValueError, OverflowError) as error:
        raise BudgetError(f"`budget` cannot be read. Received: budget={spec!r:.100}. {_WHAT_TO_WRITE}.") from error


def _whole(spec: SupportsIndex) -> int:
    # True is an int to Python and one byte to nobody.
    if not isinstance(spec, bool):
        try:
            return operator.index(spec)
        except TypeError:
            pass
    raise BudgetError(
        f"`budget` must be a whole number of bytes. Received: budget={spec!r:.100} ({type(spec).__name__}). "
        f"{_WHAT_TO_WRITE}."
    )
