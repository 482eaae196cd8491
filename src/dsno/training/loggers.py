"""What a training run logs, to TensorBoard or any other tracker Accelerate knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor

from dsno.support.console import alert
from dsno.support.errors import InputError, one_of
from dsno.support.images import to_uint8


def check_trackers(names: Sequence[str]) -> None:
    """Raise `InputError` unless every tracker is known and its package is installed."""
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        one_of(name, LOGGER_TYPE_TO_CLASS, "tracker")
        if name not in available:
            raise InputError(
                f"The tracker {name!r} needs a package that is not installed; install it, or name "
                "another in `log_with`."
            )


class Log:
    """The trackers of one training run; without any, nothing happens.

    Args:
        accelerator: made with `log_with` and a folder.
        name: of the run.
        step: where it starts; what a stopped run logged beyond is dropped (TensorBoard).
    """

    def __init__(self, accelerator: Accelerator, name: str, step: int) -> None:
        self._accelerator = accelerator
        self._is_broken = False
        if accelerator.log_with:
            accelerator.init_trackers(name, init_kwargs={"tensorboard": {"purge_step": step}})

    def values(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self._try(lambda tracker: tracker.log(dict(values), step=step))

    def images(self, images: Tensor, step: int) -> None:
        """Log samples, (n, C, H, W) in [-1, 1], where the tracker takes images."""
        pictures = to_uint8(images)
        if pictures.shape[-1] == 2:
            pictures = pictures[..., :1]

        def log(tracker: Any) -> None:
            if tracker.name == "tensorboard":
                tracker.log_images({"samples": pictures}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({"samples": list(pictures)}, step=step)

        self._try(log)

    def finish(self) -> None:
        """Close the trackers."""
        self._try(lambda tracker: tracker.finish())

    def _try(self, act: Callable[[Any], None]) -> None:
        for tracker in self._accelerator.trackers:
            if self._is_broken:
                return
            try:
                act(tracker)
            except OSError as error:  # a full disk: the run is worth more than its log
                self._is_broken = True
                alert(f"Nothing more is logged to {tracker.name}: {error}.")
