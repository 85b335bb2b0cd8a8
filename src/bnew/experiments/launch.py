"""Runs the stages of an experiment: in parallel processes on this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bnew.errors import BnewError, Interrupted, NumericalError, lookup
from bnew.experiments.plan import Stage
from bnew.process import cores, is_first_process, under_torchrun
from bnew.registry import dataset_row
from bnew.results.run import Run
from bnew.text import percent
from bnew.training.machine import Machine

logger = logging.getLogger("bnew")


def run(
    stages: Sequence[Stage],
    out: str | Path,
    machine: Machine,
    workers: int = 1,
    launcher: str = "local",
    address: str | None = None,
) -> dict[str, str]:
    """Run ``stages`` below ``out``, up to ``workers`` in parallel, each with a share of the cores.

    Each stage runs in its own process, so a crash does not affect the others. On several devices, the stages
    run one after the other, each in all processes. Stages that are already done are not run again. Returns
    name → reason for each stage that did not finish; empty if all are done.

    Args:
        stages: each after those that it needs.
        out: the experiment's folder. On a cluster, all machines must see it and the data.
        machine: where to compute.
        workers: see above.
        launcher: one of LAUNCHERS.
        address: of the Ray cluster; None: only this machine.

    Raises:
        BnewError: a stage's folder holds a run with another recipe or on other images; a stage needs one
            that is neither planned nor done; ``workers`` is below 1; options exclude each other.
        KeyboardInterrupt, Interrupted: the user or a signal stopped the run; every running stage is saved.
        ProcessLost: another one of several processes was lost.
    """
    launch = lookup("launcher", launcher, LAUNCHERS)
    if workers < 1:
        raise BnewError(f"workers is {workers}: give 1 or more")
    if address is not None and launcher != "ray":
        raise BnewError("--address is only for a Ray cluster: add --launcher ray")
    if machine.devices > 1 or under_torchrun():
        if workers > 1 or launcher != "local":
            raise BnewError("several devices train one run together: leave out --workers and --launcher ray")
        launch = _here
    out = Path(out)
    done = {stage.name for stage in stages if _is_done(stage, out, machine)}
    planned = {stage.name for stage in stages}
    for stage in stages:
        for need in stage.needs:
            if need not in planned and not Run(out / need).done:
                raise BnewError(
                    f"{stage.name} starts from {need}, which is not done in {out}: run that step too"
                )
    for stage in stages:
        if stage.name in done and dataset_row(stage.recipe.data).own_images:
            from bnew.training.run_data import check_finished

            check_finished(Run(out / stage.name), machine)
    waiting = [stage for stage in stages if stage.name not in done]
    if is_first_process():
        logger.info("%d of %d runs are already done", len(done), len(stages))
    if not waiting:
        return {}
    _check_inputs(waiting[0], out, machine)
    return launch(waiting, out, machine, workers, address)


def _check_inputs(stage: Stage, out: Path, machine: Machine) -> None:
    """Check what every stage on streamed images needs, so that not one after the other finds a mistake.

    Others would read all of their images for it.

    Raises:
        BnewError: there are no images, or no teacher.
    """
    if not dataset_row(stage.recipe.data).streamed:
        return
    from bnew.training.networks import load_teacher
    from bnew.training.run_data import load_data

    data = load_data(stage.recipe, machine)
    if stage.recipe.teacher is not None:
        load_teacher(stage.recipe.teacher, Run(out / stage.name), data)


def _is_done(stage: Stage, out: Path, machine: Machine) -> bool:
    """Whether ``stage`` is done, with this recipe.

    Raises:
        BnewError: its folder holds a run with another recipe.
    """
    run = Run(out / stage.name)
    if run.done or not machine.force:  # with --force, the run itself warns of differences
        run.check(stage.recipe)
    return run.done


def lost_to(stage: Stage, failed: dict[str, str]) -> str | None:
    """Why ``stage`` cannot run: a stage that it needs has failed; None if none has."""
    return next((f"{need} did not finish" for need in stage.needs if need in failed), None)


def say(name: str, out: Path, why: str | None) -> None:
    """Log how a stage ended."""
    if why is not None:
        logger.error("%s: %s", name, why)
    else:
        accuracy = Run(out / name).summary["test_accuracy"]
        logger.info("%s: done, test accuracy %s", name, percent(accuracy))


def train_stage(stage: Stage, out: Path, machine: Machine, threads: int) -> str | None:
    """Train ``stage`` in this process; returns one sentence on what went wrong, or None."""
    import torch

    from bnew.training.loop import train

    logging.basicConfig(level=logging.INFO, format=f"{stage.name}: %(message)s")
    torch.set_num_threads(threads)
    machine = replace(machine, decode_threads=machine.decode_threads or threads)
    try:
        train(stage.recipe, out / stage.name, machine)
    except BnewError as error:
        return str(error)
    except Interrupted:  # the launcher decides what to do
        raise
    except KeyboardInterrupt:
        return "stopped before its first step or after its last"
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


# ---------------------------------------------------------------------- this machine


def _locally(
    stages: Sequence[Stage], out: Path, machine: Machine, workers: int, address: str | None
) -> dict[str, str]:
    """In parallel processes on this machine."""
    if workers > 1:  # several displays would overwrite each other
        machine = replace(machine, quiet=True)
    waiting = {stage.name: stage for stage in stages}
    failed: dict[str, str] = {}
    running: dict[str, tuple[BaseProcess, Any]] = {}
    threads = max(1, cores() // workers)
    # Each stage is forked from a server that has loaded torch once and has no threads yet.
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["bnew.training.loop"])
    try:
        while waiting or running:
            for stage in list(waiting.values()):
                if lost := lost_to(stage, failed):
                    failed[stage.name] = lost
                    del waiting[stage.name]
                elif len(running) < workers and not any(n in waiting or n in running for n in stage.needs):
                    del waiting[stage.name]
                    said, says = context.Pipe(duplex=False)
                    process = context.Process(target=_run_stage, args=(stage, out, machine, threads, says))
                    process.start()
                    says.close()
                    running[stage.name] = process, said
                    logger.info("%s: started", stage.name)
            if running:  # wait([]) would block forever
                wait([process.sentinel for process, _ in running.values()])
            for name, (process, said) in list(running.items()):
                if process.exitcode is None:
                    continue
                del running[name]
                if process.exitcode:
                    try:
                        failed[name] = said.recv()
                    except EOFError:  # it died before it could send a reason
                        failed[name] = f"its process died with exit code {process.exitcode}"
                say(name, out, failed.get(name))
    except KeyboardInterrupt:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()
        raise
    return failed


def _run_stage(stage: Stage, out: Path, machine: Machine, threads: int, says: Any) -> None:
    try:
        why = train_stage(stage, out, machine, threads)
    except Interrupted as error:
        why = str(error)
    if why is not None:
        with suppress(OSError):  # the same signal may have ended the launcher
            says.send(why)
        sys.exit(1)


def _here(
    stages: Sequence[Stage], out: Path, machine: Machine, workers: int, address: str | None
) -> dict[str, str]:
    """One after the other in this process; all other processes of the run do the same."""
    from bnew.training.loop import train

    failed: dict[str, str] = {}
    for stage in stages:
        lost = lost_to(stage, failed)
        if lost is None:
            try:
                train(stage.recipe, out / stage.name, machine)
            except NumericalError as error:  # raised in all processes, unlike other errors
                lost = str(error)
        if lost is not None:
            failed[stage.name] = lost
        if is_first_process():
            say(stage.name, out, lost)
    return failed


def _on_ray(
    stages: Sequence[Stage], out: Path, machine: Machine, workers: int, address: str | None
) -> dict[str, str]:
    """As tasks of Ray, which only this function loads."""
    from bnew.experiments.launch_ray import on_ray

    return on_ray(stages, out, machine, workers, address)


LAUNCHERS: dict[str, Callable[[Sequence[Stage], Path, Machine, int, str | None], dict[str, str]]] = {
    "local": _locally,
    "ray": _on_ray,
}
