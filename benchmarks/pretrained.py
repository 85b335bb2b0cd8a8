"""A finished run becomes one of the networks that bnew comes with: its packed file, its weights and its card.

python benchmarks/pretrained.py runs/demo digits --command "make demo"
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import tyro

from bnew.deploy.evaluation import evaluate
from bnew.deploy.inference import bench, load_engine
from bnew.deploy.pack_run import pack_run
from bnew.files import sha256_of, write_atomically
from bnew.models.trained import FOLDER, Card
from bnew.results.groups import best_run
from bnew.results.run import Run
from bnew.training.machine import Machine
from bnew.training.provenance import cpu_name

ENGINE = Path(__file__).parent.parent / "engine" / "src" / "bnew_engine" / "networks"


@dataclass(frozen=True)
class Options:
    """Make a trained network of a run."""

    run: tyro.conf.Positional[Path]
    """The run's folder, or a folder above runs, for the best on validation images."""
    name: tyro.conf.Positional[str]
    """What it is called."""
    command: Annotated[str, tyro.conf.arg()]
    """What trained it."""
    data_dir: Path | None = None
    """Folder of its images; by default, the run's own."""


def lineage(run: Run) -> list[Run]:
    """The run, then those it started from and learned from, and so on."""
    links = [link for link in (run.recipe.init, run.recipe.teacher) if link]
    before = [each for link in links if (run.path / link).is_dir() for each in lineage(Run(run.path / link))]
    return [run, *before]


def main(options: Options) -> None:
    run = best_run(options.run)
    packed = ENGINE / f"{options.name}.bnew"
    weights = FOLDER / f"{options.name}.safetensors"
    for path in (packed, weights):
        path.parent.mkdir(exist_ok=True)
    data_dir = options.data_dir or run.data_dir
    pack_run(run, packed, Machine(data_dir=None if data_dir is None else str(data_dir), device="cpu"))
    write_atomically(weights, lambda beside: shutil.copyfile(run.best, beside))
    found = evaluate(packed, run.recipe.data, data_dir=data_dir)
    timings = bench(packed, 1, 1, seconds=5)
    preparation = run.preparation
    assert preparation is not None
    card = Card(
        name=options.name,
        model=run.recipe.model,
        options={
            "num_classes": len(preparation.classes),
            "in_channels": len(preparation.mean),
            **run.recipe.model_options,
        },
        data=run.recipe.data,
        test_images=found.images,
        test_right=found.hits,
        recipes=tuple(each.recipe.to_dict() for each in lineage(run)),
        packed_bytes=packed.stat().st_size,
        milliseconds=1000 * timings.rows[0].seconds,
        cpu=cpu_name(),
        isa=load_engine(packed).isa,
        sha256=str(sha256_of(weights)),
        commit=str(run.environment.get("commit")),
        date=date.today().isoformat(),
        command=options.command,
    )
    values: dict[str, Any] = {f.name: getattr(card, f.name) for f in dataclasses.fields(card)}
    write_atomically(
        FOLDER / f"{options.name}.json",
        lambda beside: beside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n"),
    )
    print(card)


if __name__ == "__main__":
    main(tyro.cli(Options))
