"""Where and how a run is computed, which is not part of its recipe."""

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


@dataclass(frozen=True)
class Machine:
    """Where the data is, and what computes."""

    data_dir: str | None = None
    """Folder of the data sets, or of one's own images; None: data, and to evaluate a run the folder that it
    was trained with."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    devices: int = 1
    """Number of devices or processes; under torchrun, its processes are used and this says nothing."""
    precision: str = "32-true"
    """Any precision of Lightning Fabric, such as bf16-mixed."""
    compile: bool | None = None
    """Use torch.compile; by default where the run is long enough to pay for it."""
    accumulate: int = 1
    """Parts that each process computes its share of a batch in, one after the other, to need less memory;
    batch norm then sees a part at a time."""
    sync_batch_norm: bool = True
    """Have batch norm see the batch of all processes, so that their number does not change the result."""
    decode_threads: int = 0
    """Threads that decode images, or for imagenet processes; 0 is one a core, shared among the devices."""
    max_broken: int = 10
    """How many broken images of imagenet to go on without."""
    save_every: int = 1000
    """Save every so many steps too; 0 is at the end of each epoch only."""
    force: bool = False
    """Go on with a run that was begun with another recipe, other code, other images, or another way to
    compute."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        for name, least in (("accumulate", 1), ("decode_threads", 0), ("max_broken", 0), ("save_every", 0)):
            if getattr(self, name) < least:
                raise BnewError(f"{name} is {getattr(self, name)}: give {least} or more")

    @property
    def readers(self) -> int:
        """How many threads or processes decode images for each process that trains."""
        local, _ = self.processes
        return self.decode_threads or max(1, cores() // local)

    @property
    def processes(self) -> tuple[int, int]:
        """How many processes train on each machine, and on how many machines: torchrun's, or ``devices``."""
        if not under_torchrun():
            return self.devices, 1
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local

    @property
    def data_path(self) -> Path:
        """The folder of the data sets."""
        return Path(self.data_dir or "data")


def keep_memory() -> None:
    """Let this process keep what it frees, in large pages: training on a CPU soon asks for it again.

    By default glibc gives large blocks back to the system and gets them anew, page by page, at every step.
    That is a tenth of a training step of a small network. Without glibc, or where the environment variable
    THP_MEM_ALLOC_ENABLE of PyTorch is set already, pages stay as they are.
    """
    trim_threshold, mmap_threshold = -1, -3  # of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**31 - 1):
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def make_fabric(machine: Machine, callbacks: Sequence[object] = ()) -> Fabric:
    """Lightning Fabric for ``machine``, launched; on a CPU, memory is kept, see :func:`keep_memory`.

    Args:
        machine: where to compute.
        callbacks: what ``fabric.call`` calls.

    Raises:
        BnewError: the device is not there, the precision unknown, or processes cannot reach each other.
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
            started.clear()  # Fabric would kill this process without a word
    return fabric


def _check_port() -> None:
    """Check that processes can meet at MASTER_PORT, if that is set: they would wait for each other for long.

    Raises:
        BnewError: the port is taken.
    """
    port = os.environ.get("MASTER_PORT")
    if port is None or "LOCAL_RANK" in os.environ:  # one that is free is chosen, or was before
        return
    try:
        socket.create_server(("", int(port))).close()
    except (OSError, OverflowError, ValueError) as error:
        raise BnewError(
            f"MASTER_PORT is {port}, where processes cannot meet ({error}): set it to a port that is free, "
            "or leave it out"
        ) from None
