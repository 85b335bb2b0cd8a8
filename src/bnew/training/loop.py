"""The one training loop; :mod:`bnew.training.callbacks` says what it calls of a user's own."""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger
from torch import Tensor, nn

from bnew.errors import BnewError, Interrupted, NumericalError
from bnew.files import write_json
from bnew.layers import binary_parameters, named_binary_parameters
from bnew.methods import create_method
from bnew.process import is_first_process
from bnew.recipe import Recipe
from bnew.references import check_apart
from bnew.results.run import Run
from bnew.training.averaging import averaged
from bnew.training.callbacks import check_callbacks
from bnew.training.distributed import synchronize_batch_norm
from bnew.training.evaluation import Meter, evaluate, shares
from bnew.training.failures import explained
from bnew.training.loggers import log, logging_to
from bnew.training.loop_state import LoopState
from bnew.training.losses import make_loss, mixed
from bnew.training.machine import Machine, make_fabric
from bnew.training.networks import linked, load_start, load_teacher, load_weights, start_model
from bnew.training.optimizers import make_optimizer
from bnew.training.progress import Show, display
from bnew.training.provenance import conditions, environment
from bnew.training.recording import Recorder, layer_rows, recorder
from bnew.training.run_data import check_finished, check_hold_out, hold_out_of, load_data
from bnew.training.saving import Saver
from bnew.training.signals import stop_signals

logger = logging.getLogger("bnew")

# On a CPU, compiling takes about a minute and then saves about 20 ms per step.
COMPILE_FROM_STEPS = 2000
# Every so many steps the loss is checked, and on accelerators also whether any process must stop: both
# synchronize with the accelerator.
CHECK_EVERY = 20


def train(
    recipe: Recipe,
    path: str | Path,
    machine: Machine = Machine(),  # noqa: B008 (frozen)
    *,
    callbacks: Sequence[object] = (),
    loggers: Sequence[Logger] = (),
) -> Run:
    """Train ``recipe`` in the folder ``path``, or resume the run there; a finished run is returned as it is.

    A resumed run gives the same result as an uninterrupted one: bit for bit on a CPU with the same number of
    threads.

    Args:
        recipe: what to train.
        path: the run's folder.
        machine: where to compute.
        callbacks: your own, see :mod:`bnew.training.callbacks`.
        loggers: of Lightning Fabric; each gets the rows of metrics.csv.

    Raises:
        BnewError: bad input; a callback is a class in place of an object; the folder holds a run with another
            recipe, on other images or by other code, or is in use.
        NumericalError: the loss became NaN or infinite.
        Interrupted: SIGINT or SIGTERM arrived; the run is saved.
        ProcessLost: another one of several processes was lost.
    """
    check_callbacks(callbacks)
    run = Run(path)
    check_apart((recipe.model, recipe.data), run.path)
    # The first process holds the folder's lock for the processes that it starts.
    with run.locked() if is_first_process() else nullcontext():
        run.check(recipe, conditions(recipe, machine), machine.force)
        if run.done:
            check_finished(run, machine)
            logger.info("%s is already done", run.path)
            return run
        with logging_to(run, recipe, loggers, machine.wandb) as used:
            fabric = make_fabric(machine, callbacks, used)
            try:
                Trainer(recipe, run, machine, fabric).fit()
            except Exception as error:
                if said := explained(error, run, recipe, machine, fabric.world_size):
                    raise said from error
                raise
    return Run(path)


class Trainer:
    """One run in progress: the recipe's network, data, optimizer and method, and the loop's state.

    :func:`train` makes it, holds the lock of the run's folder and reports errors.
    """

    def __init__(self, recipe: Recipe, run: Run, machine: Machine, fabric: Fabric) -> None:
        self.recipe, self.run, self.machine, self.fabric = recipe, run, machine, fabric
        self.resume_from: Path | None = fabric.broadcast(run.newest)
        self.data = load_data(recipe, machine)
        if run.fingerprint is None:
            check_hold_out(run, self.data)
        fingerprint = fabric.broadcast(self.data.fingerprint if fabric.is_global_zero else None)
        assert fingerprint is not None
        self.fingerprint = fingerprint
        run.check_data(fingerprint, machine.data_path, machine.force)
        share = shares(fabric)
        self.batches = self.data.batches("train", recipe.batch_size, train=True, seed=recipe.seed, **share)
        self.val, self.test = (self.data.batches(split, train=False, **share) for split in ("val", "test"))
        self.total_steps = recipe.epochs * len(self.batches)
        together = machine.sync_batch_norm or fabric.world_size == 1
        if self.batches.size(len(self.batches) - 1) // (1 if together else fabric.world_size) == 1:
            raise BnewError(
                f"{self.batches.count} images in batches of {recipe.batch_size} leave a batch of one, "
                "which batch norm cannot use: change the batch size"
            )

        fabric.seed_everything(recipe.seed, verbose=False)
        model = start_model(recipe, run, self.data, self.resume_from is not None)
        if recipe.init is not None and self.resume_from is None:
            start = linked(run, recipe.init)
            load_start(model, recipe, start)
            if start.recipe.data == recipe.data and start.data_dir in (
                None,
                str(machine.data_path.resolve()),
            ):
                check_hold_out(start, self.data)
        if fabric.world_size > 1 and machine.sync_batch_norm:
            model = synchronize_batch_norm(model, fabric.device)
        layers = named_binary_parameters(model)
        self.layer_names = [name for name, _ in layers]
        real = recipe.method == "real" and not layers  # an ordinary network
        self.method = create_method(
            None if real else recipe.method,
            (w for _, w in layers),
            self.total_steps,
            **recipe.method_arguments,
        )
        optimizer = make_optimizer(recipe, model, self.method.binary_lr)
        # Fabric moves the parameters in place, so the method sets their first values after it.
        self.model, self.optimizer = fabric.setup(self._compiled(model), optimizer)
        self.method.attach(optimizer)
        self.average = averaged(recipe, self.module)
        self.loss = make_loss(recipe, self.data, fabric.device)
        self.teacher: nn.Module | None = None
        if recipe.teacher is not None:
            teacher = load_teacher(recipe.teacher, run, self.data)
            self.teacher = fabric.to_device(teacher).requires_grad_(False)

        self.state = LoopState()
        self.saver = Saver(self)
        self._signalled = threading.Event()
        self._shown = Show.nothing()
        self.meter = Meter(self.data.num_classes, fabric.device)

    def _compiled(self, model: nn.Module) -> nn.Module:
        wanted = self.machine.compile
        if wanted is None:
            compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
            wanted = self.total_steps >= COMPILE_FROM_STEPS and compiler is not None
        return torch.compile(model, dynamic=False) if wanted else model  # type: ignore[return-value]

    # ------------------------------------------------------------------ the loop

    @property
    def should_stop(self) -> bool:
        """Whether the run is to end after this epoch; a callback sets it, and a checkpoint has it."""
        return self.state.should_stop

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        self.state.should_stop = bool(value)  # a NumPy one could not be loaded

    def fit(self) -> None:
        """Train to the end, from the last checkpoint if there is one; then test once."""
        self.method.layer_flips()  # counts flips from the first values on
        if self.resume_from is not None:
            self.saver.resume(self.resume_from)
        first = self.state.step // len(self.batches)
        if self.fabric.is_global_zero:  # only now: a run that fails before must not claim the folder
            self.run.rewind(first)
            self._begin()
        records = recorder(self.run, first, self.fabric.is_global_zero)
        with stop_signals() as self._signalled, self._display() as self._shown, records as record:
            self.fabric.call("on_train_start", self)
            for epoch in range(first, self.recipe.epochs):
                if self.state.stopped:
                    break
                if epoch >= self.recipe.freeze_epoch and not self.method.frozen:
                    self.freeze()
                self.train_epoch(epoch)
                self._end_epoch(epoch, record)
                if self.state.stopped and epoch + 1 < self.recipe.epochs and is_first_process():
                    logger.info(
                        "%s is stopped after %d of %d epochs, %s",
                        self.run.path, epoch + 1, self.recipe.epochs,
                        "by a callback" if self.state.should_stop else "as validation has not improved since "
                        f"epoch {self.state.best['epoch'] + 1}",
                    )  # fmt: skip
                if self._any(self._signalled.is_set()) and not self._ends_with(epoch):
                    raise self._interrupted(epoch)
        self.finish()
        self.fabric.call("on_train_end", self)

    def _ends_with(self, epoch: int) -> bool:
        return self.state.stopped or epoch + 1 == self.recipe.epochs

    def _begin(self) -> None:
        """Record the run and its machine; log the settings that the method chose by the run's length."""
        chosen = self.method.settings
        if self.recipe.binary_lr is not None and "binary_lr" in chosen:
            chosen["binary_lr"] = self.recipe.binary_lr
        if chosen:
            said = ", ".join(f"{name} {value:.4g}" for name, value in chosen.items() if value is not None)
            logger.info("%s, %d steps: %s", self.recipe.method, self.total_steps, said)
        started = {
            **environment(self.fabric),
            "data_dir": str(self.machine.data_path.resolve()),
            "conditions": conditions(self.recipe, self.machine),
            "method": chosen,
        }
        self.run.begin(self.recipe, started, self.data.preparation, self.fingerprint, hold_out_of(self.data))

    def train_epoch(self, epoch: int) -> None:
        """The remaining steps of ``epoch``, which counts from 0."""
        if self.state.step % len(self.batches) == 0:  # not where a run resumes within the epoch
            self.fabric.call("on_train_epoch_start", self, epoch)
        started = time.perf_counter()

        def count_time() -> None:
            nonlocal started
            now = time.perf_counter()
            self.state.seconds += now - started
            self.state.epoch_seconds += now - started
            started = now

        state = self.state
        first = state.step % len(self.batches)
        for batch, (x, y) in enumerate(self._waiting(self.batches.epoch(epoch, start=first)), first):
            self.train_step(x, y, self.batches.size(batch))
            state.step += 1
            self.fabric.call("on_train_batch_end", self, epoch, state.step)
            self._shown.step(epoch, state.step)
            if state.step % CHECK_EVERY == 0:
                self._check_finite(epoch)
            if batch + 1 == len(self.batches):
                break  # the end of the epoch saves, together with its records
            stopping = self._stopping()
            if stopping or (self.machine.save_every and state.step % self.machine.save_every == 0):
                self._check_finite(epoch)
                count_time()
                self.saver.save()
            if stopping:
                raise self._interrupted(epoch)
        self._check_finite(epoch)
        count_time()

    def _waiting(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches; measures the time spent waiting for them."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.state.epoch_waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def train_step(self, x: Tensor, y: Tensor, total: int) -> None:
        """One optimizer step on this process's share of a batch with ``total`` images."""
        lr = self._lr(self.state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        # Random layers such as dropout depend on the step only, so that a run can resume at any step.
        numbers = (self.recipe.seed, self.fabric.global_rank, self.state.step)
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
        # Synchronized batch norm needs as many parts in all processes, with at least two images in each.
        count = max(1, min(self.machine.accumulate, total // self.fabric.world_size // 2))
        parts = list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))
        # The last, smaller batch is not worth compiling a second graph.
        with torch.compiler.set_stance("default" if total == self.recipe.batch_size else "force_eager"):
            for images, labels in parts[:-1]:
                with self._apart():
                    self._backward(images, labels, total)
            self._backward(*parts[-1], total)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update()

    def _lr(self, step: int) -> float:
        """The learning rate of optimizer step ``step``, which counts from 0."""
        return self.recipe.lr_at(step / self.total_steps)

    def _apart(self) -> AbstractContextManager[object]:
        """Context without gradient synchronization, for all parts of a batch but the last."""
        several = self.fabric.world_size > 1
        return self.fabric.no_backward_sync(self.model) if several else nullcontext()

    def _backward(self, images: Tensor, labels: Tensor, total: int) -> None:
        """Add the gradient of these images' share of the mean loss over ``total`` images."""
        images, targets = mixed(self.recipe, images, labels, self.data.num_classes)
        targets = self.targets(images, targets)
        logits = self.model(images.contiguous(memory_format=torch.channels_last)).float()
        loss = self.loss(logits, targets)
        # DDP averages over processes. That is the mean over images only if all have the same number.
        share = len(labels) * self.fabric.world_size / total
        self.fabric.backward(loss if share == 1 else loss * share)
        self.meter.update(loss, logits, labels)

    def _any(self, mine: bool) -> bool:
        """Whether ``mine`` is true in any process. All processes must call this, and get the same result."""
        if self.fabric.world_size == 1:
            return mine
        votes = self.fabric.all_reduce(torch.tensor(float(mine), device=self.fabric.device), reduce_op="sum")
        return bool(votes)

    def _stopping(self) -> bool:
        """Whether to stop after this step, the same in all processes."""
        if self.fabric.world_size > 1 and self.fabric.device.type != "cpu" and self.state.step % CHECK_EVERY:
            return False
        return self._any(self._signalled.is_set())

    def _interrupted(self, epoch: int) -> Interrupted:
        return Interrupted(
            f"stopped in epoch {epoch + 1} of {self.recipe.epochs}, saved in {self.run.path}: "
            "start the same command again to resume"
        )

    def targets(self, x: Tensor, y: Tensor) -> Tensor:
        """Labels, or the teacher's softmax: cross-entropy with it is the distillation loss."""
        if self.teacher is None:
            return y
        with torch.no_grad(), self.fabric.autocast():
            return self.teacher(x).float().softmax(1)  # type: ignore[no-any-return]

    def _check_finite(self, epoch: int, loss: float | None = None) -> None:
        """Raise NumericalError unless ``loss`` is finite; the default is the epoch's loss so far."""
        if self._any(not math.isfinite(self.meter.sums[0] if loss is None else loss)):
            saved = f"the last checkpoint before it is {self.run.last}; " if self.run.last.exists() else ""
            raise NumericalError(
                f"the loss became NaN or infinite in epoch {epoch + 1}, by step {self.state.step}: "
                f"{saved}lower the learning rate ({self.recipe.lr}) or look for broken images"
            )

    def validate(self) -> dict[str, float]:
        """Loss and accuracy on the validation images, with the weights as they are."""
        return evaluate(self.model, self.val, self.fabric, self.data.num_classes)

    def freeze(self) -> None:
        """Freeze the binary weights; record the cost in accuracy unless this is the start of the run."""
        if self.state.step == 0:
            self.method.freeze(warn=False)
            return
        before = self.validate()["accuracy"]
        self.state.at_freezing = {
            "distance_before_freezing": self.method.distance(),
            "share_at_one_before_freezing": self.method.share_at_one(),
        }
        self.method.freeze(warn=False)
        self.state.at_freezing["freezing_cost"] = before - self.validate()["accuracy"]

    def _end_epoch(self, epoch: int, record: Recorder | None) -> None:
        state = self.state
        with self.average.in_place(), self.method.binarized():
            val = self.validate()
            self._check_finite(epoch, val["loss"])  # the training losses do not include the last step
            if val["accuracy"] > state.best.get("accuracy", -1.0):
                state.best = {"epoch": epoch, **val}
                self.saver.save_best()
        trained = self.meter.result(self.fabric)
        self.meter = Meter(self.data.num_classes, self.fabric.device)
        layers = layer_rows(epoch, self.layer_names, self.method)
        row = {
            "epoch": epoch,
            "lr": self._lr(state.step - 1),
            **{f"train_{k}": v for k, v in trained.items()},
            **{f"val_{k}": v for k, v in val.items()},
            **self.method.schedule(),
            "distance": self.method.distance(),
            "share_at_one": self.method.share_at_one(),
            "flips": sum(layer["flips"] for layer in layers),
            "seconds": round(state.seconds, 3),
            "data_wait": round(state.epoch_waited / state.epoch_seconds, 4),
        }
        state.epoch_seconds = state.epoch_waited = 0.0
        state.last_val_accuracy = val["accuracy"]
        if record is not None:
            record.epoch(row, layers, self.method)
        log(self.fabric, row, epoch)
        self.fabric.call("on_train_epoch_end", self, epoch, row)
        waited = epoch - int(state.best["epoch"])
        state.stopped = self._any(state.should_stop or waited >= (self.recipe.patience or math.inf))
        self.saver.save()
        self._shown.epoch(epoch, state, row)

    def finish(self) -> None:
        """Test the best weights, once; without mixed precision, as the packed network computes."""
        state = self.state
        load_weights(self.module, self.run, state.best_sha256)
        model = self.module if self.machine.precision.endswith("mixed") else self.model
        tested = evaluate(model, self.test, self.fabric, self.data.num_classes)
        summary: dict[str, Any] = {
            "val_accuracy": state.best["accuracy"],
            "best_epoch": state.best["epoch"],
            "best_sha256": state.best_sha256,
            "last_val_accuracy": state.last_val_accuracy,
            **{f"test_{k}": v for k, v in tested.items()},
            **state.at_freezing,
            "distance": self.method.distance(),
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "binary_parameters": sum(p.numel() for p in binary_parameters(self.module)),
            "epochs": state.step // len(self.batches),
            "steps": state.step,
            "train_seconds": round(state.seconds, 3),
            "classes": self.data.num_classes,
            "train_images": self.batches.count,
            "broken_images": sorted(self.saver.share_broken()),
        }
        if self.fabric.is_global_zero:
            write_json(self.run.path / "summary.json", summary)
        log(self.fabric, {f"test_{name}": value for name, value in tested.items()}, self.recipe.epochs)
        self.fabric.barrier()

    @property
    def module(self) -> nn.Module:
        """The network itself, without the wrappers of Fabric and torch.compile."""
        module: nn.Module = self.model.module
        return getattr(module, "_orig_mod", module)

    # ------------------------------------------------------------------ the display

    def _display(self) -> AbstractContextManager[Show]:
        """The progress display; only the first process shows one."""
        quiet = self.machine.quiet or not self.fabric.is_global_zero
        rate, binary = self.batches.count / len(self.batches), bool(self.method.params)
        return display(self.recipe.epochs, self.total_steps, self.state, rate, quiet, binary)
