"""Everything memfit raises.

MemfitError
├── ArgumentError (ValueError)     an argument cannot work; nothing was changed
│   └── BudgetError                the budget is zero, negative, unreadable, or more than the machine has
├── DoesNotFitError (MemoryError)  no plan fits the budget; raised before any training, or after an attempt in vain
├── OutOfMemoryError (MemoryError) training ran out of memory and no smaller plan was left
├── ProbeError                     a probe could not be made at all (not the same as "does not fit")
├── SnapshotError                  a snapshot is broken, of another model or call, or cannot be kept
└── WorkerError                    a worker process could not take over the training, or ended without a result
"""

from __future__ import annotations


class MemfitError(Exception):
    """Base of every error that memfit raises on purpose."""


class ArgumentError(MemfitError, ValueError):
    """An argument cannot work. The model and the data are untouched."""


class BudgetError(ArgumentError):
    """The budget is zero, negative, unreadable, or more than the machine has."""


class DoesNotFitError(MemfitError, MemoryError):
    """No plan fits the budget. The model is untouched: nothing was trained, or in a process that memory has ended."""


class OutOfMemoryError(MemfitError, MemoryError):
    """Training ran out of memory and no smaller plan was left to try."""


class ProbeError(MemfitError):
    """A probe could not be made: the model cannot be shipped, or the child could not start."""


class SnapshotError(MemfitError):
    """A snapshot is broken, of another model, call or version, or its folder cannot be used. The model is untouched."""


class WorkerError(MemfitError):
    """A worker process could not take over the training, or ended without a result. The model is as it was."""
