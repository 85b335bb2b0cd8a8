"""A run's folder: the files that are written while it trains and read afterwards.

recipe.json        the recipe
environment.json   versions, machine, commit, folder of the data sets
data.json          how its images are prepared, and their fingerprint
metrics.csv        one row per epoch
layers.csv         one row per epoch and binary layer
histogram.csv      one row per epoch: the number of weights in each of 40 equal bins of [-1, 1]
events.*           the same for TensorBoard
last.pt            the checkpoint to resume from, with a checksum; previous.pt is the one before it
best.safetensors   the weights of the best epoch, at the values that were validated
previous_best.safetensors  those of the best epoch before it, to which previous.pt may belong
summary.json       the result; written when the run is done
packed.json        what was packed from it, see :mod:`bnew.results.packed`
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bnew.data.fingerprint import Fingerprint, differences, retouched, short
from bnew.data.preparation import Preparation
from bnew.display import Line
from bnew.errors import BnewError
from bnew.files import sha256_of, write_json
from bnew.process import is_first_process
from bnew.recipe import Recipe
from bnew.registry import dataset_row
from bnew.results.tables import TABLES, Tables
from bnew.text import percent, printable

logger = logging.getLogger("bnew")

# Temporary files that a killed write_atomically leaves, for files that only the holder of the lock writes.
LEFTOVER = re.compile(
    rf"\.((last|previous)\.pt|(previous_)?best\.safetensors|({'|'.join(TABLES)})\.csv|(recipe|environment|data|summary)\.json)\.\d+"
)


class Run(Line, Tables):
    """The folder of one run; files are read and written only when they are used."""

    def __repr__(self) -> str:
        """One line: folder, recipe, and how far it is."""
        try:
            recipe, done = self.recipe, self.done
            state = f"test accuracy {percent(self.summary['test_accuracy'])}" if done else self.progress()
            if done and self.epochs < recipe.epochs:
                state += f", stopped after {self.progress()}"
        except (BnewError, LookupError, TypeError, ValueError, OSError):
            what = "a damaged run" if self.begun else "no run"
        else:
            what = f"{recipe.model} on {recipe.data}, {recipe.method or 'no method'}, {state}"
        return printable(f"<Run '{self.path}': {what}>")

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / "last.pt"

    @property
    def previous(self) -> Path:
        """The checkpoint before :attr:`last`."""
        return self.path / "previous.pt"

    @property
    def newest(self) -> Path | None:
        """The checkpoint to resume from: :attr:`last`, or :attr:`previous` if there is no last one."""
        return next((path for path in (self.last, self.previous) if path.exists()), None)

    @property
    def best(self) -> Path:
        """The weights of the best epoch."""
        return self.path / "best.safetensors"

    @property
    def previous_best(self) -> Path:
        """The weights of the best epoch before it, to which a checkpoint may still belong."""
        return self.path / "previous_best.safetensors"

    def best_of(self, sha256: str) -> Path | None:
        """The file with this checksum: :attr:`best`, :attr:`previous_best`, or None."""
        return next((path for path in (self.best, self.previous_best) if sha256_of(path) == sha256), None)

    def take_best(self, sha256: str) -> None:
        """Make the weights with this checksum, which :meth:`best_of` found, :attr:`best`."""
        if self.best_of(sha256) == self.previous_best:
            os.replace(self.previous_best, self.best)

    @property
    def done(self) -> bool:
        """Whether the run has finished and been tested."""
        return (self.path / "summary.json").is_file()

    @cached_property
    def recipe(self) -> Recipe:
        """The run's recipe.

        Raises:
            BnewError: there is no run here.
        """
        return Recipe.from_dict(self._read("recipe.json"))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The result: accuracies as shares, losses in nats, seconds, steps.

        Raises:
            BnewError: the run is not done.
        """
        return self._read("summary.json")

    @property
    def epochs(self) -> int:
        """How many epochs a finished run has trained: fewer than planned if a callback stopped it."""
        return int(self.summary.get("stopped_after", self.summary.get("epochs", self.recipe.epochs)))

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and machine of the run's last start."""
        return self._read("environment.json")

    @property
    def data_dir(self) -> str | None:
        """The folder of data sets at the run's last start, if it is recorded."""
        return self._recorded().get("data_dir")

    @property
    def preparation(self) -> Preparation | None:
        """How its images are prepared; None if an earlier version of bnew began the run.

        Raises:
            BnewError: data.json is damaged.
        """
        found = self._data.get("preparation")
        try:
            return None if found is None else Preparation.from_dict(found)
        except BnewError as error:
            raise self._damaged(error) from None

    @property
    def fingerprint(self) -> Fingerprint | None:
        """Which images it is trained on; None if an earlier version of bnew began the run.

        Raises:
            BnewError: data.json is damaged.
        """
        found = self._data.get("fingerprint")
        if found is None:
            return None
        if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
            raise self._damaged(f"the fingerprint is {found!r:.200}")
        return found

    @property
    def hold_out(self) -> dict[str, Any] | None:
        """See :func:`bnew.training.run_data.hold_out_of`; None if an earlier version of bnew began the run.

        Raises:
            BnewError: data.json is damaged.
        """
        found = self._data.get("hold_out")
        if found is not None and not isinstance(found, dict):
            raise self._damaged(f"hold_out is {found!r:.200}")
        return found

    @property
    def data_id(self) -> str:
        """Identifies its images among runs: their hash or, if that is unknown, their folder."""
        if self.fingerprint is not None:
            return short(self.fingerprint)
        return (self.data_dir or "") if dataset_row(self.recipe.data).own_images else ""

    @property
    def _data(self) -> dict[str, Any]:
        return self._read("data.json") if (self.path / "data.json").is_file() else {}

    def _damaged(self, why: object) -> BnewError:
        return BnewError(
            f"{self.path / 'data.json'} is damaged ({why}): put its backup there, or delete it and use the "
            "run only on the images that it was trained on"
        )

    def progress(self) -> str:
        """The last finished epoch, such as "epoch 3 of 12"."""
        ended = [int(row["epoch"]) + 1 for row in self.rows() if (row.get("epoch") or "").isdigit()]
        return f"epoch {max(ended, default=0)} of {self.recipe.epochs}"

    def _recorded(self) -> dict[str, Any]:
        """:attr:`environment`, or an empty one, for example if the run was killed at its beginning."""
        return self.environment if (self.path / "environment.json").is_file() else {}

    def _read(self, name: str) -> dict[str, Any]:
        try:
            data = json.loads((self.path / name).read_text())
        except (FileNotFoundError, NotADirectoryError):
            why = "this is not the folder of a run"
            if name == "summary.json":
                why = f"the run is not done ({self.progress()})" if self.begun else "the run is not done"
            if not self.path.is_dir():
                why = (
                    "that is a file, not a run's folder" if self.path.exists() else "there is no such folder"
                )
            raise BnewError(f"{self.path} has no {name}: {why}") from None
        except ValueError as error:
            raise BnewError(
                f"{self.path / name} is not JSON ({error}): delete it and start the run again"
            ) from None
        if not isinstance(data, dict):
            raise BnewError(f"{self.path / name} does not hold an object: delete it and start the run again")
        return data

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for this process; removes the temporary files of a killed one.

        If no run begins in the folder, it is left as it was found, or removed if it was made here.

        Raises:
            BnewError: another process holds the lock.
        """
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
            if not (self.path / ".lock").exists():  # the last holder has just removed it
                raise Timeout(lock.lock_file)
            for path in self.path.iterdir():
                if LEFTOVER.fullmatch(path.name):
                    path.unlink()
        except Timeout:
            raise BnewError(
                f"another process is training {self.path}: wait for it, or choose another folder"
            ) from None
        except OSError as error:
            raise BnewError(f"could not write in {self.path}: {error}; choose another folder") from None
        try:
            yield
        finally:
            with suppress(OSError):  # rmdir keeps a folder that is not empty
                if os.listdir(self.path) == [".lock"]:
                    (self.path / ".lock").unlink()
                    for path in made:
                        path.rmdir()
            lock.release()

    def begin(
        self,
        recipe: Recipe,
        environment: Mapping[str, Any],
        preparation: Preparation | None = None,
        fingerprint: Fingerprint | None = None,
        hold_out: Mapping[str, Any] | None = None,
    ) -> None:
        """Record data, environment and changes; last the recipe, by which a run has begun."""
        changes = self.changes(recipe, environment.get("conditions"))
        if fingerprint is not None:
            changes += [f"data: {difference}" for difference in self.data_changes(fingerprint)]
        forced = [*self._recorded().get("forced", []), *changes]
        if preparation is not None:
            prepared = preparation.to_dict()
            data = {"preparation": prepared, "fingerprint": fingerprint, "hold_out": hold_out}
            write_json(self.path / "data.json", data)
        write_json(
            self.path / "environment.json", {**environment, "forced": forced} if forced else environment
        )
        write_json(self.path / "recipe.json", recipe.to_dict())

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run, done or not."""
        return (self.path / "recipe.json").is_file()

    def check(self, recipe: Recipe, conditions: Mapping[str, Any] | None = None, force: bool = False) -> None:
        """Check that this folder is new, or holds a run with the same recipe and, unless done, conditions.

        Args:
            recipe: of the new run.
            conditions: of the new run, see :func:`bnew.training.provenance.conditions`; None: any.
            force: only warn, unless the run is done.

        Raises:
            BnewError: recipe or conditions differ; the message says what differs.
        """
        what = "with another recipe" if self.changes(recipe) else "under other conditions"
        self._refuse(what, self.changes(recipe, conditions), force)

    def check_data(self, fingerprint: Fingerprint, data_dir: Path, force: bool = False) -> None:
        """Check that the run in this folder, if there is one, was trained on these images.

        Args:
            fingerprint: of the images now.
            data_dir: their folder.
            force: only warn, unless the run is done.

        Raises:
            BnewError: it was trained on others; the message says what differs.
        """
        differing = self.data_changes(fingerprint)
        if differing and self.data_dir not in (None, str(data_dir.resolve())):
            differing.append(f"they were in '{self.data_dir}' and are in '{data_dir.resolve()}'")
        self._refuse("on other images", differing, force)
        parts = retouched(self.fingerprint, fingerprint) if self.begun and self.fingerprint else []
        if parts and not differing and is_first_process():
            logger.warning(
                "the files of %s have other times than when %s began; as names, sizes and a sample of "
                "contents are the same, they count as the same images", " and ".join(parts), self.path
            )  # fmt: skip

    def data_changes(self, fingerprint: Fingerprint) -> list[str]:
        """How the run's images differ from those of ``fingerprint``; empty if its own are unknown."""
        return differences(self.fingerprint, fingerprint) if self.begun and self.fingerprint else []

    def _refuse(self, what: str, differing: Sequence[str], force: bool) -> None:
        """Report how the run in this folder differs from the new one: by an error, or by a warning."""
        if not differing:
            return
        if force and not self.done:
            if is_first_process():
                logger.warning("%s is resumed although %s", self.path, ", ".join(differing))
            return
        hint = "" if self.done else ", or resume it with --force"
        raise BnewError(
            f"{self.path} holds a run {what} ({', '.join(differing)}): choose another folder{hint}"
        )

    def changes(self, recipe: Recipe, conditions: Mapping[str, Any] | None = None) -> list[str]:
        """How the run in this folder differs from ``recipe`` and, unless it is done, from ``conditions``."""
        if not self.begun:
            return []
        pairs = [(self.recipe.meaning(), recipe.meaning())]
        if conditions is not None and not self.done and (recorded := self._recorded()):
            pairs.append((recorded.get("conditions", {}), dict(conditions)))
        return [
            f"{key} is {here.get(key)!r} there and {wanted[key]!r} here"
            for here, wanted in pairs
            for key in wanted
            if json.dumps(here.get(key), sort_keys=True) != json.dumps(wanted[key], sort_keys=True)
        ]
