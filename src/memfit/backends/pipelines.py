"""Which module looks at a user's own input pipeline: asked of the data, because ``fit`` takes it on every backend."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Protocol

from memfit.backends.pipeline_records import Change, Stage


class PipelineTools(Protocol):
    """What a framework answers about its pipelines."""

    def stages(self, dataset: Any) -> tuple[Stage, ...]:
        """The stages of a pipeline, from the source."""

    def rebuilt(self, dataset: Any, changes: tuple[Change, ...], *, ram_budget: int | None) -> Any:
        """The pipeline with changes.

        Args:
            dataset: As the user made it; stays as it is.
            changes: At most one a stage, of stages that are changeable.
            ram_budget: Bytes that buffers which the framework sizes itself may take together; None to leave it to it.

        Raises:
            ValueError: The pipeline cannot be built again; the text says why.
        """


def tools_for(data: Any) -> PipelineTools | None:
    """The tools for ``data``, or None where it is no pipeline of a framework. Imports no framework that is not loaded."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and isinstance(data, tensorflow.data.Dataset):
        tools: PipelineTools = importlib.import_module("memfit.backends.on_tensorflow.pipelines")
        return tools
    return None
