"""Where and how a run is computed: settings that are not part of its recipe."""

from __future__ import annotations

import ctypes
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnew.errors import BnewError
from bnew.process import cores, is_first_process, under_torchrun

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.loggers.logger import Logger


@dataclass(frozen=True)
class Machine:
    """Where the data are, and what computes."""

    data_dir: str | None = None
    """Folder of the data sets, or of your own images. Default: data; to evaluate a run, that which it was
    trained on."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    devices: int = 1
    """Number of devices, with one process each; ignored under torchrun, which starts the processes."""
    precision: str = "32-true"
    """Precision, as Lightning Fabric names it: 32-true, bf16-mixed, 16-mixed and others."""
    compile: bool | None = None
    """Use torch.compile. Default: only if the run is long enough to pay for it."""
    accumulate: int = 1
    """Number of parts in which each process computes its share of a batch, to need less memory; batch norm
    then sees one part at a time."""
    sync_batch_norm: bool = True
    """Compute batch norm over the batch of all processes, so that their number does not change the result."""
    decode_threads: int = 0
    """Threads (for imagenet, processes) that decode images; 0: one per core, shared among the devices."""
    max_broken: int = 10
    """How many broken images of imagenet to skip at most."""
    save_every: int = 1000
    """Save every so many steps too, not only at the end of each epoch; 0: only at the end of each epoch."""
    force: bool = False
    """Resume a run even if the recipe, the code, the images or the way to compute have changed since."""
    quiet: bool = False
    """Show no progress."""
    wandb: str | None = None
    """Send the numbers of each epoch to this project of Weights & Biases, too."""

    def __post_init__(self) -> None:
        for name, least in (("accumulate", 1), ("decode_threads", 0), ("max_broken", 0), ("save_every", 0)):
            if getattr(self, name) < least:
                raise BnewError(f"{name} is {getattr(self, name)}: give {least} or more")

    @property
    def readers(self) -> int:
        """Threads or processes that decode images, per training process."""
        local, _ = self.processes
        return self.decode_threads or max(1, cores() // local)

    @property
    def processes(self) -> tuple[int, int]:
        """(training processes per machine, machines): torchrun's, or ``devices`` and 1."""
        if not under_torchrun():
            return self.devices, 1
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local

    @property
    def data_path(self) -> Path:
        """The folder of the data sets."""
        return Path(self.data_dir or "data")


def keep_memory() -> None:
    """Keep freed memory in this process, in large pages: training on a CPU soon needs it again.

    By default glibc returns large blocks to the system and gets them again, page by page, at every step. For
    a small network this takes a tenth of a training step. Does nothing without glibc. PyTorch's environment
    variable THP_MEM_ALLOC_ENABLE keeps its value if it is set.
    """
    trim_threshold, mmap_threshold = -1, -3  # of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**31 - 1):
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def make_fabric(machine: Machine, callbacks: Sequence[object] = (), loggers: Sequence[Logger] = ()) -> Fabric:
    """Lightning Fabric for ``machine``, launched; on a CPU also calls :func:`keep_memory`.

    Args:
        machine: where to compute.
        callbacks: the objects that ``fabric.call`` calls.
        loggers: the loggers that ``fabric.log_dict`` calls.

    Raises:
        BnewError: the device does not exist, the precision is unknown, or processes cannot reach each other.
    """
    from lightning_fabric import Fabric

    from bnew.training.distributed import watch_started, watch_starter

    devices, nodes = machine.processes
    if devices > 1 and is_first_process() and not under_torchrun():
        _check_port()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        fabric = Fabric(
            accelerator=machine.device, devices=devices, num_nodes=nodes,
            precision=machine.precision, callbacks=list(callbacks),  # type: ignore[arg-type]
            loggers=list(loggers),
        )  # fmt: skip
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise BnewError(
            f"{devices} × {machine.device} at precision {machine.precision} cannot be used: {error}"
        ) from error
    if fabric.device.type == "cpu":
        keep_memory()
    if devices > 1 and not under_torchrun():
        if not is_first_process():
            watch_starter()
        elif started := getattr(fabric.strategy.launcher, "procs", None):
            watch_started(started[:])
            started.clear()  # Fabric would kill this process without a message
    return fabric


def _check_port() -> None:
    """Check that MASTER_PORT is free, if it is set: otherwise the processes would wait for each other.

    Raises:
        BnewError: the port is in use.
    """
    port = os.environ.get("MASTER_PORT")
    if port is None or "LOCAL_RANK" in os.environ:  # Fabric chooses a free one, or the processes run already
        return
    try:
        socket.create_server(("", int(port))).close()
    except (OSError, OverflowError, ValueError) as error:
        raise BnewError(
            f"MASTER_PORT is {port}, which processes cannot use ({error}): set it to a free port, or unset it"
        ) from None
