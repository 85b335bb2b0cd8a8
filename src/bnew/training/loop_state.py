"""How far a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LoopState:
    """The loop's own state, all of which a checkpoint holds."""

    step: int = 0
    """Optimizer steps that are done."""
    best: dict[str, float] = field(default_factory=dict)
    """Epoch, loss and accuracy of the best validation; empty before the first."""
    best_sha256: str | None = None
    """Of the file with the best weights."""
    at_freezing: dict[str, float] = field(default_factory=dict)
    """What freezing cost."""
    last_val_accuracy: float = 0.0
    stopped: bool = False
    """Whether a callback ended the run before its last epoch."""
    seconds: float = 0.0
    """Spent in training steps, of the whole run and of the epoch up to now."""
    epoch_seconds: float = 0.0
    epoch_waited: float = 0.0
    """Of the epoch's seconds, those that were spent waiting for data."""

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint has it."""
        return {
            "step": self.step,
            "best": self.best,
            "best_sha256": self.best_sha256,
            "at_freezing": self.at_freezing,
            "last_val_accuracy": self.last_val_accuracy,
            "stopped": self.stopped,
            "seconds": (self.seconds, self.epoch_seconds, self.epoch_waited),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> LoopState:
        """That of a checkpoint, which is checked."""
        seconds, epoch_seconds, epoch_waited = saved["seconds"]
        names = ("step", "best", "best_sha256", "at_freezing", "last_val_accuracy", "stopped")
        return cls(
            **{name: saved[name] for name in names},
            seconds=seconds,
            epoch_seconds=epoch_seconds,
            epoch_waited=epoch_waited,
        )
