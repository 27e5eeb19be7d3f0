"""What may be used: the host's and the device's ceilings, measured or asked for, each with its source."""

from __future__ import annotations

from memfit.budgeting.decide import asked_device_bytes, budget
from memfit.budgeting.presets import PRESETS, Preset
from memfit.budgeting.usage import reading

__all__ = ["PRESETS", "Preset", "asked_device_bytes", "budget", "reading"]
