"""Budgets of well-known machines: what would this model do on a free Colab session?

A preset is what a training process gets there, not what is printed on the box: the system, the notebook server and the
driver's context are taken off. On such a machine itself leave the budget out; then it is measured.

Sources: memory as the sessions show it (Colab's "12.7 GB" is GiB, 0.9 to 1.4 of it taken before the user's first line;
see https://linux-blog.anracom.com/2023/05/04/), Kaggle's and NVIDIA's published figures. Services change: read every
number as "about".
"""

from __future__ import annotations

import dataclasses

from memfit import units


@dataclasses.dataclass(frozen=True)
class Preset:
    """A machine by name.

    Attributes:
        name: What the user writes.
        machine: The machine in words.
        host_bytes: Host memory that a training process may hold there.
        device_bytes: Bytes that its tensors may take on the (first) accelerator, or None where there is none.
    """

    name: str
    machine: str
    host_bytes: int
    device_bytes: int | None = None

    @property
    def source(self) -> str:
        """The sentence that goes with the host number."""
        return f"preset {self.name}: {self.machine}, less what the system holds"

    @property
    def device_source(self) -> str | None:
        """The sentence that goes with the device number, or None where there is no device."""
        if self.device_bytes is None:
            return None
        return f"preset {self.name}: {self.machine}, less the driver's context and the framework's reserve"


def _gib(size: float) -> int:
    return int(size * units.GIB)


PRESETS: tuple[Preset, ...] = (
    Preset("colab-cpu", "Colab session without a GPU, 12.7 GiB of RAM", _gib(11.3)),
    Preset("colab-t4", "Colab session with a T4, 12.7 GiB of RAM and 15 GiB on the device", _gib(11.3), _gib(13.6)),
    Preset("colab-l4", "Colab session with an L4, 53 GiB of RAM and 22.5 GiB on the device", _gib(50), _gib(20.9)),
    Preset("colab-a100", "Colab session with an A100, 83.5 GiB of RAM and 40 GiB on the device", _gib(79), _gib(37.5)),
    Preset("kaggle-cpu", "Kaggle session without a GPU, 30 GiB of RAM", _gib(27.5)),
    Preset("kaggle-t4", "Kaggle session with T4s, 30 GiB of RAM and 15 GiB on each device", _gib(27.5), _gib(13.6)),
    Preset("kaggle-p100", "Kaggle session with a P100, 30 GiB of RAM and 16 GiB on the device", _gib(27.5), _gib(14.8)),
    Preset("laptop-8gb", "laptop with 8 GB of RAM, a desktop and a browser open", _gib(4.5)),
    Preset("laptop-16gb", "laptop with 16 GB of RAM, a desktop and a browser open", _gib(11)),
    Preset("laptop-32gb", "laptop with 32 GB of RAM, a desktop and a browser open", _gib(26)),
)


def preset(name: str) -> Preset | None:
    """The preset of that name, in any case, or None where there is none.

    Example:
        >>> preset("Colab-T4").device_bytes, preset("12 GiB")
        (14602888806, None)
    """
    wanted = name.strip().lower()
    return next((known for known in PRESETS if known.name == wanted), None)
