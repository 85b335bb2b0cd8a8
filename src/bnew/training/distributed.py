"""What processes that train one network together need beyond Fabric."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnew.process import is_first_process

# How long a process may take to exit by itself after another one is lost.
GRACE = 10.0  # seconds
# How long a process that failed waits for the others to fail in the same way.
ALIKE = 5.0  # seconds
# Phrases in a backend's error when another process, or the connection to it, is lost.
_LOST = (
    "connection closed by peer",
    "connection reset",
    "broken pipe",
    "gloo",
    "nccl",
    "socket",
    "timed out",
)


class TotalBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, for CPUs: ``torch.nn.SyncBatchNorm`` runs only on GPUs.

    ``y = (x − μ) / √(σ² + ε) · weight + bias``. In training, mean μ and variance σ² of each channel are over
    all images of all processes. Gradients flow through both to all processes: each gets the gradient of the
    sum of all losses. Any shape (N, C, ...); processes may have batches of different sizes.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) → (N, C, ...)."""
        if not self.training:
            return super().forward(input)
        dims = (0, *range(2, input.dim()))
        shape = (1, -1, *(1,) * (input.dim() - 2))
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.new_tensor([x.numel() // x.shape[1]])
        sums = _sum(torch.cat((x.sum(dims), count)))
        total = sums[-1]
        mean = sums[:-1] / total
        centred = x - mean.view(shape)
        variance = _sum(centred.square().sum(dims)) / total
        self._track(mean.detach(), variance.detach(), total.detach())
        y: Tensor = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics as ``torch.nn.BatchNorm2d`` does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), share)


def _sum(values: Tensor) -> Tensor:
    """The sum over all processes; its gradient is the sum of their gradients."""
    with warnings.catch_warnings():  # deprecated, but the replacement has no gradient
        warnings.simplefilter("ignore", FutureWarning)
        from torch.distributed.nn.functional import all_reduce

        total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
    return total


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Make all batch norms of ``model`` normalise over the batch of all processes; returns the model.

    Names and parameters stay the same, so checkpoints still fit.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                total = TotalBatchNorm(
                    child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
                )
                total.load_state_dict(child.state_dict())
                setattr(
                    parent, name, total.to(next(child.parameters(), torch.empty(0))).train(child.training)
                )
    return model


def is_lost(error: RuntimeError) -> bool:
    """Whether ``error`` reports that another process was lost."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return any(word in str(error).lower() for word in _LOST)


def leave_together() -> None:
    """Wait for all processes, so that none is killed for another's exit code while it still works."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        try:
            torch.distributed.barrier()
        except RuntimeError as error:  # another one has exited already
            if not is_lost(error):
                raise
        disconnect()


def disconnect() -> None:
    """Destroy the process group.

    A Gloo thread still running at interpreter shutdown aborts the process (SIGABRT). Call this only when
    nothing waits for the other processes any more, as destroying the group would then wait too.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def say_once(message: str) -> bool:
    """Print ``message`` on stderr, unless another process of the run has printed the same message.

    Returns whether all processes fail with this message; waits up to ALIKE seconds for them. The processes
    share PyTorch's rendezvous store. A process that cannot reach it prints.
    """
    key = f"bnew/{hashlib.sha256(message.encode()).hexdigest()}"
    try:
        store: Any = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            timeout=timedelta(seconds=ALIKE),
            wait_for_workers=False,
        )
        first = store.add(key, 1) == 1
    except (KeyError, RuntimeError, ValueError):
        store, first = None, True
    if first:
        print(f"{message}\n", end="", file=sys.stderr, flush=True)  # one write: processes' lines do not mix
    if store is None:
        return False
    try:
        alike = _come(store, f"{key}/failed", wait=True)
        if alike:  # the first process, which may host the store, exits last
            _come(store, f"{key}/known", wait=is_first_process())
    except RuntimeError:  # the process that hosts the store has exited
        return False
    return alike


def _come(store: Any, key: str, wait: bool) -> bool:
    """Count this process under ``key``; with ``wait``, wait up to ALIKE seconds for the others.

    Returns whether all processes have been counted.
    """
    world_size, until = int(os.environ["WORLD_SIZE"]), time.monotonic() + ALIKE
    here = store.add(key, 1)
    while wait and here < world_size and time.monotonic() < until:
        time.sleep(0.05)
        here = store.add(key, 0)
    return bool(here == world_size)


def watch_started(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End this process with a message when one that it started is lost, whatever this one waits for."""

    def wait(process: subprocess.Popen[bytes]) -> None:
        if process.wait() != 0:
            _end_lost(f"exit code {process.returncode}", processes)

    for process in processes:
        threading.Thread(target=wait, args=(process,), daemon=True).start()


def watch_starter() -> None:
    """End this process with a message when the one that started it is lost, whatever this one waits for."""
    starter = os.getppid()

    def wait() -> None:
        while os.getppid() == starter:
            time.sleep(1)
        _end_lost("the first one")

    threading.Thread(target=wait, daemon=True).start()


def _end_lost(which: str, started: Sequence[subprocess.Popen[bytes]] = ()) -> None:
    time.sleep(GRACE)  # meanwhile this process may fail by itself, with a better message
    for process in started:
        process.kill()
    print(
        f"bnew: another process of the run was lost ({which}): start the same command again to resume from "
        "the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # the main thread may wait for the other process forever
