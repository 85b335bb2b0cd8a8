"""Runs the stages of an experiment on a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnew.errors import BnewError, Interrupted, first_line
from bnew.experiments.launch import lost_to, say, train_stage
from bnew.experiments.plan import Stage
from bnew.training.machine import Machine

RETRIES = 3  # per stage, when its process or machine dies


def on_ray(
    stages: Sequence[Stage], out: Path, machine: Machine, workers: int, address: str | None
) -> dict[str, str]:
    """As tasks of Ray, which starts each stage after those that it needs, and restarts a stage that dies."""
    try:
        import ray
    except ImportError as error:
        raise BnewError(f"Ray is not installed ({error}): pip install 'bnew[ray]'") from None
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address is not None and address.count(":"):
            host, port = address.rpartition("/")[2].rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray would retry for minutes
        ray.init(address=address, log_to_driver=not machine.quiet, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        raise BnewError(
            f"there is no Ray cluster at {address or 'RAY_ADDRESS'} ({first_line(error)}): start one by "
            "ray start --head"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray would end this process at once
    # Ray's tasks run in other working directories.
    machine = replace(machine, data_dir=str(machine.data_path.resolve()), quiet=True)
    out = Path(os.path.abspath(out))  # not resolve(): links between runs are relative to this path
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    threads, on_gpu = share_of_a_machine(nodes, workers, machine.device)

    # Preempted nodes get SIGTERM: the task saves and exits, and Ray reschedules it.
    again: Any = [Interrupted]

    @ray.remote(num_cpus=threads, num_gpus=int(on_gpu), max_retries=RETRIES, retry_exceptions=again)
    def task(stage: Stage, *needed: str | None) -> str | None:
        failed = {name: why for name, why in zip(stage.needs, needed, strict=False) if why is not None}
        return lost_to(stage, failed) or train_stage(stage, out, machine, threads)

    tasks: dict[str, Any] = {}
    for stage in stages:
        # A needed stage that is already done has no task.
        tasks[stage.name] = task.options(name=stage.name).remote(
            stage, *(tasks.get(need) for need in stage.needs)
        )
    failed: dict[str, str] = {}
    waiting = dict(zip(tasks.values(), stages, strict=True))
    try:
        while waiting:
            (ref,), _ = ray.wait(list(waiting), num_returns=1)
            stage = waiting.pop(ref)
            try:
                why = ray.get(ref)
            except ray.exceptions.RayError as error:
                why = lost_to(stage, failed) or f"Ray could not finish it ({first_line(error)})"
            if why is not None:
                failed[stage.name] = why
            say(stage.name, out, why)
    except KeyboardInterrupt:
        for ref in waiting:
            ray.cancel(ref)  # acts like Ctrl-C, so that each task saves
        ray.wait(list(waiting), num_returns=len(waiting), timeout=120)
        raise
    finally:
        ray.shutdown()
    return failed


def share_of_a_machine(nodes: Sequence[Mapping[str, float]], workers: int, device: str) -> tuple[int, bool]:
    """The number of cores of a Ray task, and whether it has a GPU, on machines with these resources.

    Without GPUs, the cores of the largest machine divided by ``workers``. With GPUs, the cores per GPU of the
    machine that has the fewest. So every task fits on some machine.
    """
    with_gpu = [node for node in nodes if node.get("GPU")]
    on_gpu = bool(with_gpu) and device in ("auto", "cuda", "gpu")
    if on_gpu:
        most = min(node.get("CPU", 1) / node["GPU"] for node in with_gpu)
    else:
        most = max(node.get("CPU", 1) for node in nodes) / workers
    return max(1, int(most)), on_gpu
