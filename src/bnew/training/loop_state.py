"""The training loop's own state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LoopState:
    """How far a run is; a checkpoint holds all of it."""

    step: int = 0
    """Optimizer steps done."""
    best: dict[str, float] = field(default_factory=dict)
    """Epoch, loss and accuracy of the best validation; empty before the first."""
    best_sha256: str | None = None
    """SHA-256 of the file with the best weights."""
    at_freezing: dict[str, float] = field(default_factory=dict)
    """The cost of freezing, and the distance to ±1 just before it."""
    last_val_accuracy: float = 0.0
    should_stop: bool = False
    """Whether a callback wants the run to end after this epoch."""
    stopped: bool = False
    """Whether the run ended before its last epoch: by a callback, or as validation no longer improved."""
    seconds: float = 0.0
    """Time spent in training steps, of the whole run."""
    epoch_seconds: float = 0.0
    """The same, of the epoch so far."""
    epoch_waited: float = 0.0
    """The part of ``epoch_seconds`` that was spent waiting for data."""

    def to_dict(self) -> dict[str, Any]:
        """The state as a checkpoint stores it."""
        return {
            "step": self.step,
            "best": self.best,
            "best_sha256": self.best_sha256,
            "at_freezing": self.at_freezing,
            "last_val_accuracy": self.last_val_accuracy,
            "should_stop": self.should_stop,
            "stopped": self.stopped,
            "seconds": (self.seconds, self.epoch_seconds, self.epoch_waited),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> LoopState:
        """The inverse of :meth:`to_dict`; ``saved`` must have been checked."""
        seconds, epoch_seconds, epoch_waited = saved["seconds"]
        names = ("step", "best", "best_sha256", "at_freezing", "last_val_accuracy", "should_stop", "stopped")
        return cls(
            **{name: saved[name] for name in names},
            seconds=seconds,
            epoch_seconds=epoch_seconds,
            epoch_waited=epoch_waited,
        )
