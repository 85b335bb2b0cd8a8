"""The one training loop, and its checkpoints."""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.tensorboard import SummaryWriter

from bnew.display import Show, display
from bnew.distributed import is_lost, synchronize_batch_norm
from bnew.errors import BnewError, Interrupted, NumericalError, ProcessLost, first_line
from bnew.evaluate import (
    Meter,
    build_model,
    evaluate,
    linked,
    load_finished,
    load_teacher,
    load_weights,
    shares,
)
from bnew.layers import binary_parameters, named_binary_parameters
from bnew.machine import Machine, conditions, environment, is_first_process, make_fabric
from bnew.methods import create_method
from bnew.recipes import Recipe
from bnew.results import Run, write_atomically, write_json
from bnew.run_data import check_finished, load_data
from bnew.signals import stop_signals

logger = logging.getLogger("bnew")

HISTOGRAM_BINS = 40
# Compiling takes about a minute and then saves some 20 ms a step on a CPU.
COMPILE_FROM_STEPS = 2000
# Every so many steps the loss is looked at, and on accelerators several processes ask each other whether to
# stop: it makes an accelerator wait.
CHECK_EVERY = 20


def train(recipe: Recipe, path: str | Path, machine: Machine = Machine()) -> Run:  # noqa: B008 (frozen)
    """Train ``recipe`` in the folder ``path``, or go on where a stopped run left off; a finished run is kept.

    A resumed run ends exactly where an unbroken one ends: bit for bit on a CPU with as many threads.

    Raises:
        BnewError: bad input; the folder holds a run with another recipe, on other images or by other code, or
            is in use.
        NumericalError: the loss became NaN or infinite.
        Interrupted: SIGINT or SIGTERM came; the run is saved.
        ProcessLost: of several processes, another one is gone.
    """
    run = Run(path)
    # The first process holds the folder for those that it starts.
    with run.locked() if is_first_process() else nullcontext():
        run.check(recipe, conditions(machine), machine.force)
        if run.done:
            check_finished(run, machine)
            logger.info("%s is done already", run.path)
            return run
        fabric = make_fabric(machine)
        try:
            _Training(recipe, run, machine, fabric).fit()
        except RuntimeError as error:
            if fabric.world_size == 1 or not is_lost(error):
                raise
            raise ProcessLost(
                f"another of the {fabric.world_size} processes that train {run.path} is gone: start the same "
                f"command again to go on from what was saved last ({first_line(error)})"
            ) from error
    return Run(path)


class _Training:
    """One run in progress."""

    def __init__(self, recipe: Recipe, run: Run, machine: Machine, fabric: Fabric) -> None:
        self.recipe, self.run, self.machine, self.fabric = recipe, run, machine, fabric
        self.resuming = fabric.broadcast(run.last.exists())
        self.data = load_data(recipe, machine)
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
        model = build_model(recipe, self.data.num_classes, self.data.in_channels)
        if recipe.init is not None and not self.resuming:
            load_finished(model, linked(run, recipe.init))
        if fabric.world_size > 1 and machine.sync_batch_norm:
            model = synchronize_batch_norm(model, fabric.device)
        optimizer = make_optimizer(recipe, model)
        layers = named_binary_parameters(model)
        self.layer_names = [name for name, _ in layers]
        self.method = create_method(
            recipe.method, (w for _, w in layers), self.total_steps, **recipe.method_options
        )
        # Fabric moves the parameters in place, so the method's first values come after it.
        self.model, self.optimizer = fabric.setup(self._compiled(model), optimizer)
        self.method.attach(optimizer)
        self.teacher: nn.Module | None = None
        if recipe.teacher is not None:
            teacher = load_teacher(recipe.teacher, run, self.data)
            self.teacher = fabric.to_device(teacher).requires_grad_(False)

        self.step = 0
        self.best: dict[str, float] = {}
        self.at_freezing: dict[str, float] = {}
        self.last_val_accuracy = 0.0
        self.seconds = 0.0
        self.epoch_seconds = 0.0
        self.epoch_waited = 0.0
        self.meter = Meter(self.data.num_classes, fabric.device)

    def _compiled(self, model: nn.Module) -> nn.Module:
        wanted = self.machine.compile
        if wanted is None:
            compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
            wanted = self.total_steps >= COMPILE_FROM_STEPS and compiler is not None
        return torch.compile(model, dynamic=False) if wanted else model  # type: ignore[return-value]

    # ------------------------------------------------------------------ the loop

    def fit(self) -> None:
        """Train from the last checkpoint, if there is one, to the end; then test once."""
        if self.resuming:
            self._resume()
        else:
            if self.fabric.is_global_zero:
                self.run.rewind(0)
            self.method.layer_flips()  # counting starts at the first values
        if self.fabric.is_global_zero:  # only now: a mistake is not to claim the folder
            where = {"data_dir": str(self.machine.data_path.resolve())}
            how = {"conditions": conditions(self.machine)}
            record = {**environment(self.fabric), **where, **how}
            self.run.begin(self.recipe, record, self.data.preparation, self.fingerprint)
        first = self.step // len(self.batches)
        with stop_signals() as stop, self._display() as show, self._events(first) as writer:
            for epoch in range(first, self.recipe.epochs):
                if epoch >= self.recipe.freeze_epoch and not self.method.frozen:
                    self._freeze()
                self._train_epoch(epoch, stop, show)
                self._end_epoch(epoch, writer, show)
                if self._any(stop.is_set()) and epoch + 1 < self.recipe.epochs:
                    raise self._interrupted(epoch)
        self._finish()

    def _train_epoch(self, epoch: int, stop: threading.Event, show: Show) -> None:
        started = time.perf_counter()

        def count_time() -> None:
            nonlocal started
            now = time.perf_counter()
            self.seconds += now - started
            self.epoch_seconds += now - started
            started = now

        first = self.step % len(self.batches)
        for batch, (x, y) in enumerate(self._waiting(self.batches.epoch(epoch, start=first)), first):
            self._step(x, y, self.batches.size(batch))
            self.step += 1
            if self.step % CHECK_EVERY == 0:
                self._check_finite(epoch)
                show.step(epoch, self.step)
            if batch + 1 == len(self.batches):
                break  # the end of the epoch saves, with what it records
            stopping = self._stopping(stop)
            if stopping or (self.machine.save_every and self.step % self.machine.save_every == 0):
                self._check_finite(epoch)
                count_time()
                self._save()
            if stopping:
                raise self._interrupted(epoch)
        self._check_finite(epoch)
        count_time()

    def _waiting(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches; counts the time that they let one wait."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.epoch_waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def _step(self, x: Tensor, y: Tensor, total: int) -> None:
        """One step of the optimizer on a batch that has ``total`` images in all processes."""
        lr = self._lr(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        # What a network draws in training (dropout, say) depends on nothing that came before.
        numbers = (self.recipe.seed, self.fabric.global_rank, self.step)
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
        # As many in all processes, for batch norm to be synchronized, and of two images at least.
        count = max(1, min(self.machine.accumulate, total // self.fabric.world_size // 2))
        parts = list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))
        # A last, smaller batch is not worth a graph of its own.
        with torch.compiler.set_stance("default" if total == self.recipe.batch_size else "force_eager"):
            for images, labels in parts[:-1]:
                with self._apart():
                    self._backward(images, labels, total)
            self._backward(*parts[-1], total)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _lr(self, step: int) -> float:
        """The rate of optimizer step ``step``, from 0."""
        return self.recipe.lr_at(step / self.total_steps)

    def _apart(self) -> AbstractContextManager[object]:
        """Inside, processes do not tell each other their gradients: there are more to come."""
        several = self.fabric.world_size > 1
        return self.fabric.no_backward_sync(self.model) if several else nullcontext()

    def _backward(self, images: Tensor, labels: Tensor, total: int) -> None:
        """Add to the gradients what these images have in that of the mean loss of ``total`` images."""
        logits = self.model(images.contiguous(memory_format=torch.channels_last)).float()
        loss = F.cross_entropy(logits, self._targets(images, labels))
        # DDP takes the mean over processes, which is that over images only where each has as many.
        share = len(labels) * self.fabric.world_size / total
        self.fabric.backward(loss if share == 1 else loss * share)
        self.meter.update(loss, logits, labels)

    def _any(self, mine: bool) -> bool:
        """Whether ``mine`` is true in any process. All of them must ask, and so do the same."""
        if self.fabric.world_size == 1:
            return mine
        votes = self.fabric.all_reduce(torch.tensor(float(mine), device=self.fabric.device), reduce_op="sum")
        return bool(votes)

    def _stopping(self, stop: threading.Event) -> bool:
        """Whether to stop after this step, the same in all processes."""
        if self.fabric.world_size > 1 and self.fabric.device.type != "cpu" and self.step % CHECK_EVERY:
            return False
        return self._any(stop.is_set())

    def _interrupted(self, epoch: int) -> Interrupted:
        return Interrupted(
            f"stopped in epoch {epoch + 1} of {self.recipe.epochs}, saved in {self.run.path}: "
            "start the same command again to go on"
        )

    def _targets(self, x: Tensor, y: Tensor) -> Tensor:
        """Labels, or with a teacher its softmax: the cross-entropy with it is the distillation loss."""
        if self.teacher is None:
            return y
        with torch.no_grad(), self.fabric.autocast():
            return self.teacher(x).float().softmax(1)  # type: ignore[no-any-return]

    def _check_finite(self, epoch: int, loss: float | None = None) -> None:
        """Raise NumericalError unless ``loss`` is finite, by default that of the epoch up to now."""
        if self._any(not math.isfinite(self.meter.sums[0] if loss is None else loss)):
            saved = f"what was saved before is in {self.run.last}; " if self.run.last.exists() else ""
            raise NumericalError(
                f"the loss became NaN or infinite in epoch {epoch + 1}, by step {self.step}: "
                f"{saved}lower the rate ({self.recipe.lr}) or look for broken images"
            )

    def _validate(self) -> dict[str, float]:
        return evaluate(self.model, self.val, self.fabric, self.data.num_classes)

    def _freeze(self) -> None:
        """Freeze the binary weights, and record what that costs if they were trained before."""
        if self.step == 0:
            self.method.freeze()
            return
        before = self._validate()["accuracy"]
        self.at_freezing = {
            "distance_before_freezing": self.method.distance(),
            "share_at_one_before_freezing": self.method.share_at_one(),
        }
        self.method.freeze()
        self.at_freezing["freezing_cost"] = before - self._validate()["accuracy"]

    def _end_epoch(self, epoch: int, writer: SummaryWriter | None, show: Show) -> None:
        with self.method.binarized():
            val = self._validate()
            self._check_finite(epoch, val["loss"])  # what the last step did, no training loss has shown
            if val["accuracy"] > self.best.get("accuracy", -1.0):
                self.best = {"epoch": epoch, **val}
                self._save_best()
        trained = self.meter.result(self.fabric)
        self.meter = Meter(self.data.num_classes, self.fabric.device)
        layers = zip(
            self.layer_names,
            self.method.layer_distances(),
            self.method.layer_shares_at_one(),
            self.method.layer_flips(),
            strict=False,  # a real network has no method, but perhaps binary layers
        )
        rows: list[dict[str, Any]] = [
            {"epoch": epoch, "layer": name, "distance": distance, "share_at_one": share, "flips": flips}
            for name, distance, share, flips in layers
        ]
        row = {
            "epoch": epoch,
            "lr": self._lr(self.step - 1),
            **{f"train_{k}": v for k, v in trained.items()},
            **{f"val_{k}": v for k, v in val.items()},
            **self.method.schedule(),
            "distance": self.method.distance(),
            "share_at_one": self.method.share_at_one(),
            "flips": sum(r["flips"] for r in rows),
            "seconds": round(self.seconds, 3),
            "data_wait": round(self.epoch_waited / self.epoch_seconds, 4),
        }
        self.epoch_seconds = self.epoch_waited = 0.0
        self.last_val_accuracy = val["accuracy"]
        if writer is not None:
            self.run.append("metrics", row)
            self.run.append("layers", *rows)
            self._record_weights(epoch, writer)
            for name, value in row.items():
                writer.add_scalar(name, value, epoch)
            for layer in rows:
                for name in ("distance", "share_at_one", "flips"):
                    writer.add_scalar(f"{name}/{layer['layer']}", layer[name], epoch)
            writer.flush()  # before the checkpoint: a resumed run does not say it again
        self._save()
        show.epoch(epoch, row)

    def _record_weights(self, epoch: int, writer: SummaryWriter) -> None:
        if self.method.params:
            weights = torch.cat([v.flatten() for v in self.method.values()]).float().cpu()
            counts = weights.histc(HISTOGRAM_BINS, -1, 1).int().tolist()
            self.run.append("histogram", {"epoch": epoch, **{f"bin{i}": n for i, n in enumerate(counts)}})
            writer.add_histogram("binary weights", weights, epoch)

    def _finish(self) -> None:
        """Test the best checkpoint, once."""
        load_weights(self._module, self.run)
        tested = evaluate(self.model, self.test, self.fabric, self.data.num_classes)
        summary: dict[str, Any] = {
            "val_accuracy": self.best["accuracy"],
            "best_epoch": self.best["epoch"],
            "last_val_accuracy": self.last_val_accuracy,
            **{f"test_{k}": v for k, v in tested.items()},
            **self.at_freezing,
            "distance": self.method.distance(),
            "parameters": sum(p.numel() for p in self._module.parameters()),
            "binary_parameters": sum(p.numel() for p in binary_parameters(self._module)),
            "epochs": self.recipe.epochs,
            "steps": self.total_steps,
            "train_seconds": round(self.seconds, 3),
            "classes": self.data.num_classes,
            "train_images": self.batches.count,
            "broken_images": sorted(self._share_broken()),
        }
        if self.fabric.is_global_zero:
            write_json(self.run.path / "summary.json", summary)
        self.fabric.barrier()

    # ------------------------------------------------------------------ checkpoints

    @property
    def _module(self) -> nn.Module:
        """The network itself, out of the wrappers of Fabric and torch.compile."""
        module: nn.Module = self.model.module
        return getattr(module, "_orig_mod", module)

    def _save_best(self) -> None:
        if self.fabric.is_global_zero:
            weights = {name: t.contiguous() for name, t in self._module.state_dict().items()}
            write_atomically(self.run.best, lambda path: save_file(weights, path))

    def _share_broken(self) -> dict[str, str]:
        """The broken images that any process has met, which from now on all of them know.

        Raises:
            BnewError: there are too many.
        """
        if self.data.max_broken and self.fabric.world_size > 1:
            parts: list[Any] = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(parts, self.data.broken)
            for part in parts:
                self.data.add_broken(part)
        return self.data.broken

    def _save(self) -> None:
        state = {
            "model": self._module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "step": self.step,
            "meter": self.meter.total(self.fabric),
            "best": self.best,
            "at_freezing": self.at_freezing,
            "last_val_accuracy": self.last_val_accuracy,
            "seconds": (self.seconds, self.epoch_seconds, self.epoch_waited),
            "precision": self.fabric.strategy.precision.state_dict(),  # of 16-mixed, how losses are scaled
            "broken": self._share_broken(),
        }
        if self.fabric.is_global_zero:
            write_atomically(self.run.last, lambda path: torch.save(state, path))
        self.fabric.barrier()  # an error of the first one is to be known to all before they go on

    def _resume(self) -> None:
        path = self.run.last
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._module.load_state_dict(state["model"])
            settings = [{**group, "params": None} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, own in zip(self.optimizer.param_groups, settings, strict=True):
                group.update({**own, "params": group["params"]})  # those of the recipe, not of what was saved
            self.method.load_state_dict(state["method"])
            self.step, self.best, self.at_freezing = state["step"], state["best"], state["at_freezing"]
            self.seconds, self.epoch_seconds, self.epoch_waited = state["seconds"]
            self.last_val_accuracy = state["last_val_accuracy"]
            if state["precision"]:  # empty of a run that goes on by force and had no 16-mixed
                self.fabric.strategy.precision.load_state_dict(state["precision"])
            self.data.broken.update(state["broken"])
            if self.fabric.is_global_zero:  # it is the sum over the processes, as many as there were
                self.meter.sums.copy_(state["meter"])
        except (OSError, MemoryError) as error:
            raise BnewError(f"{path} cannot be read ({error}): make it readable, then start again") from error
        except Exception as error:  # torch raises many kinds for a file that is cut short
            what = (str(error).splitlines() or [repr(error)])[0]
            raise BnewError(
                f"{path} is cut short, or not a checkpoint of this run ({what}): "
                "delete it to start the run from its beginning"
            ) from error
        if self.fabric.is_global_zero:
            self.run.rewind(self.step // len(self.batches))
        logger.info("going on from step %d of %d", self.step, self.total_steps)

    # ------------------------------------------------------------------ what a person sees

    def _events(self, epoch: int) -> AbstractContextManager[SummaryWriter | None]:
        """TensorBoard's file, from ``epoch`` on, of the first process; the others have none."""
        if not self.fabric.is_global_zero:
            return nullcontext()
        return SummaryWriter(str(self.run.path), purge_step=epoch)

    def _display(self) -> AbstractContextManager[Show]:
        """What a person sees of the run; of several processes the first one's."""
        quiet = self.machine.quiet or not self.fabric.is_global_zero
        return display(self.run.path.name, self.recipe.epochs, self.total_steps, self.step, quiet)


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Adam, or SGD with Nesterov's momentum, as the recipe says; fused. A group's "rate" is times lr."""
    options: dict[str, Any] = {"lr": recipe.lr, "fused": True}
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, _ConvNd)}
    binary = {id(p) for p in binary_parameters(model)}
    # The same groups whatever the recipe's numbers, so that a run can go on with others by force.
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for p in model.parameters():
        groups.setdefault((id(p) in binary, id(p) in convolutions), []).append(p)
    params = [
        {
            "params": members,
            "rate": recipe.binary_lr if is_binary else 1.0,
            "weight_decay": recipe.weight_decay if is_convolution or recipe.decayed == "all" else 0.0,
        }
        for (is_binary, is_convolution), members in groups.items()
    ]
    if recipe.optimizer == "sgd":
        options |= {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
        return torch.optim.SGD(params, **options)
    return torch.optim.Adam(params, **options)
