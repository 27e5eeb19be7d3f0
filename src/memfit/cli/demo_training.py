"""What ``memfit demo`` runs in a child process: one model, trained on one folder, one way or the other.

``python -m memfit.cli.demo_training --way plain|memfit ...``. Both ways build, feed and train the same; they differ in
the one line that trains. Keras is imported inside the functions, so that importing this module imports no framework.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

WAYS = ("plain", "memfit")
MODELS = ("shallow", "deeper")
IMAGE_SIZE = (150, 150)
VALIDATION_SPLIT = 0.2

# A forward pass alone takes little at this size, and how much is not what the demo is about.
_VALIDATION_BATCH_SIZE = 32
_LEARNING_RATE = 2e-3
_SEED = 7
_MARK = "@memfit-demo "
_PROGRESS_SECONDS = 0.25


@dataclasses.dataclass(frozen=True)
class Task:
    """What a child trains.

    Attributes:
        directory: The image folder.
        model: One of ``MODELS``.
        way: "plain" for ``model.fit``, "memfit" for ``memfit.fit``.
        batch_size: Images of one update.
        epochs: Passes over the training images.
        budget: Bytes to hand to memfit; None where it is to find the limit by itself.
    """

    directory: str
    model: str
    way: str
    batch_size: int
    epochs: int
    budget: int | None = None

    def argv(self) -> list[str]:
        """The command line of a child that does this."""
        options = [f"--{name.replace('_', '-')}={value}" for name, value in dataclasses.asdict(self).items() if value]
        return [sys.executable, "-m", "memfit.cli.demo_training", *options]


def event_in(line: str) -> dict[str, Any] | None:
    """The event that a line of a child's output holds: its "kind" and its values. None for any other line."""
    return json.loads(line.removeprefix(_MARK)) if line.startswith(_MARK) else None


def train(task: Task) -> None:
    """Trains, and sends events to standard output: "batch", "epoch" and, at the end, "done"."""
    import keras

    keras.utils.set_random_seed(_SEED)
    model = build(task.model)
    training, validation = (_images(task, subset) for subset in ("training", "validation"))
    arguments: dict[str, Any] = {
        "x": training,
        "validation_data": validation,
        "epochs": task.epochs,
        "callbacks": [_progress(len(training) * task.epochs)],
        # Not 0: memfit says on standard error what it does, and the demo shows it.
        "verbose": 2,
    }
    _send("done", **_result(_fitted(model, task, arguments)))


def _fitted(model: Any, task: Task, arguments: dict[str, Any]) -> Any:
    """The only difference between the two ways."""
    import memfit

    if task.way == "plain":
        return model.fit(**arguments)
    return memfit.fit(model, **arguments, budget=task.budget)


def build(name: str) -> Any:
    """A compiled classifier of ten classes: "shallow" has one convolution, "deeper" four."""
    import keras
    from keras import layers

    def block(filters: int) -> list[Any]:
        return [layers.Conv2D(filters, 3, activation="relu"), layers.MaxPooling2D()]

    filters = {"shallow": (32,), "deeper": (32, 32, 64, 64)}[name]
    model = keras.Sequential(
        [
            keras.Input((*IMAGE_SIZE, 3)),
            layers.Rescaling(1 / 255),
            *(layer for number in filters for layer in block(number)),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(_LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _images(task: Task, subset: str) -> Any:
    import memfit

    return memfit.data.image_folder(
        task.directory,
        image_size=IMAGE_SIZE,
        batch_size=task.batch_size if subset == "training" else _VALIDATION_BATCH_SIZE,
        validation_split=VALIDATION_SPLIT,
        subset=subset,
        seed=_SEED,
        # A step takes longer than decoding the next batch: more of these large batches ahead would gain nothing.
        max_queue_size=1,
    )


def _progress(num_batches: int) -> Any:
    """A callback that sends how far training is: a few times a second, and at the end of each epoch."""
    import keras

    class Progress(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.num_done = 0
            self.last_sent = time.monotonic()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.num_done += 1
            if time.monotonic() - self.last_sent >= _PROGRESS_SECONDS:
                _send("batch", done=self.num_done, total=num_batches)
                self.last_sent = time.monotonic()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            _send("epoch", epoch=epoch + 1, accuracy=float((logs or {})["val_accuracy"]))

    return Progress()


def _result(history: Any) -> dict[str, Any]:
    """What the parent cannot see: the accuracy on held-out images, and what memfit did where it was there."""
    result: dict[str, Any] = {"accuracy": float(history.history["val_accuracy"][-1])}
    report = getattr(history, "memfit", None)
    if report is not None:
        plan, budget = report.plan, report.plan.budget.limiting_bytes
        result["micro_batch_size"] = plan.micro_batch_size
        result["plan"] = plan.summary
        result["predicted_peak_bytes"] = None if plan.peak is None else plan.peak.most_under(budget)
        result["budget_bytes"] = budget
        result["planning_seconds"] = report.planning_seconds
    return result


def _send(kind: str, **values: Any) -> None:
    # On a line of its own: Keras may have left one without an end.
    sys.stdout.write(f"\n{_MARK}{json.dumps({'kind': kind, **values})}\n")
    sys.stdout.flush()


def _task(argv: Sequence[str] | None) -> Task:
    parser = argparse.ArgumentParser(prog="python -m memfit.cli.demo_training")
    parser.add_argument("--directory", required=True)
    parser.add_argument("--model", required=True, choices=MODELS)
    parser.add_argument("--way", required=True, choices=WAYS)
    parser.add_argument("--batch-size", required=True, type=int)
    parser.add_argument("--epochs", required=True, type=int)
    parser.add_argument("--budget", type=int)
    return Task(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None, *, do: Callable[[Task], None] = train) -> None:
    """Trains what the command line says."""
    do(_task(argv))


if __name__ == "__main__":
    main()
