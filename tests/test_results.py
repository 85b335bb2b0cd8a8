"""A run's folder: nothing is lost when writing fails, and rows and seeds come out as they went in."""

from __future__ import annotations

import errno
import math
import os
import signal
import statistics
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PROCESSES
from safetensors.torch import save_file

from bnew.errors import BnewError
from bnew.files import write_atomically, write_json
from bnew.recipe import Recipe
from bnew.results.groups import Group, best_run, find_runs, group_by_recipe
from bnew.results.run import Run


def make_run(path: Path, recipe: Recipe | None = None, **summary: Any) -> Run:
    path.mkdir(parents=True)
    run = Run(path)
    run.begin(recipe or Recipe(), {"torch": "2.9"})
    if summary:
        write_json(path / "summary.json", summary)
    return run


# Writing


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("file write failed")]
)
def test_failed_write_keeps_the_old_content(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "last.pt"
    path.write_text("old and whole")

    def write(p: Path) -> None:
        p.write_text("new and ha")
        raise error

    with pytest.raises(BnewError, match=r"could not write .*last\.pt: .* is kept"):
        write_atomically(path, write)
    assert path.read_text() == "old and whole"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_text("old and whole")

    def write(p: Path) -> None:
        p.write_text("new and ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert path.read_text() == "old and whole"
    assert list(tmp_path.iterdir()) == [path]


def test_write_replaces_at_once(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_text("old")
    seen = []

    def write(p: Path) -> None:
        p.write_text("new")
        seen.append(path.read_text())

    write_atomically(path, write)
    assert seen == ["old"]
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


LINKS = pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])


def no_links(source: Path, target: Path) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@LINKS
def test_what_a_write_replaces_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path, keep = tmp_path / "last.pt", tmp_path / "previous.pt"
    for number in range(4):
        write_atomically(path, lambda p, number=number: p.write_text(f"{number}"), keep=keep)  # type: ignore[misc]
        assert path.read_text() == f"{number}"
        assert not number or keep.read_text() == f"{number - 1}"
    assert sorted(tmp_path.iterdir()) == [path, keep]


def test_there_is_a_file_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, keep = tmp_path / "last.pt", tmp_path / "previous.pt"
    path.write_text("old")
    rename, seen = os.replace, []

    def watched(source: Path, target: Path) -> None:
        seen.append(path.read_text())
        rename(source, target)
        seen.append(path.read_text())

    monkeypatch.setattr(os, "replace", watched)
    write_atomically(path, lambda p: p.write_text("new"), keep=keep)
    assert seen == ["old", "old", "old", "new"]


@LINKS
def test_a_rename_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    path, keep = tmp_path / "last.pt", tmp_path / "previous.pt"
    path.write_text("old")
    keep.write_text("older")
    rename = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target) == path and Path(source) != keep:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        if not links:
            patch.setattr(os, "link", no_links)
        with pytest.raises(BnewError, match=r"could not write .*last\.pt: .* is kept"):
            write_atomically(path, lambda p: p.write_text("new"), keep=keep)
    assert path.read_text() == "old"
    assert not [each for each in tmp_path.iterdir() if each not in (path, keep)]
    write_atomically(path, lambda p: p.write_text("new"), keep=keep)  # `keep` was the same file perhaps
    assert (path.read_text(), keep.read_text()) == ("new", "old")
    assert sorted(tmp_path.iterdir()) == [path, keep]


def test_write_into_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="could not write"):
        write_json(tmp_path / "gone" / "summary.json", {})


# The lock


def hold(path: Path, held: Event, enough: Event) -> None:
    with Run(path).locked():
        held.set()
        enough.wait(60)


def test_lock(tmp_path: Path) -> None:
    held, enough = PROCESSES.Event(), PROCESSES.Event()
    other = PROCESSES.Process(target=hold, args=(tmp_path, held, enough))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(BnewError, match="another process is training"), Run(tmp_path).locked():
            pass
    finally:
        enough.set()
        other.join(60)
    with Run(tmp_path).locked():  # free again
        pass


def test_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Run(tmp_path).locked():
        raise ZeroDivisionError
    with Run(tmp_path).locked():
        pass


def killed_while_writing(path: Path) -> None:
    def write(p: Path) -> None:
        p.write_text("new and ha")
        os.kill(os.getpid(), signal.SIGKILL)

    write_atomically(path, write)


def test_the_lock_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    run = Run(tmp_path)
    kept = [tmp_path / name for name in (
        ".last.pt.1a", ".last.pt", "last.pt.12", ".mine.12", ".report.md.12", "last.pt", ".lock"
    )]  # fmt: skip
    for path in kept:
        path.write_text("to be kept")
    for path in (
        run.last,
        run.previous,
        run.best,
        run.previous_best,
        tmp_path / "metrics.csv",
        tmp_path / "summary.json",
    ):
        killed = PROCESSES.Process(target=killed_while_writing, args=(path,))
        killed.start()
        killed.join()
        assert (tmp_path / f".{path.name}.{killed.pid}").is_file()
    with run.locked():
        assert sorted(tmp_path.iterdir()) == sorted(kept)


# Recipe and summary


def test_begin_again(tmp_path: Path) -> None:
    recipe = Recipe(method="bnew", method_options={"strength": 3.5}, milestones=(0.3,))
    run = make_run(tmp_path / "run", recipe)
    assert Run(run.path).recipe == recipe
    Run(run.path).begin(recipe, {"torch": "2.10"})
    assert Run(run.path).environment == {"torch": "2.10"}
    with pytest.raises(BnewError, match=r"another recipe \(lr is 0\.01 there and 0\.1 here\)"):
        Run(run.path).check(recipe.replace(lr=0.1))
    assert Run(run.path).recipe == recipe


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="not the folder of a run"):
        _ = Run(tmp_path).recipe
    with pytest.raises(BnewError, match="the run is not done"):
        _ = make_run(tmp_path / "begun").summary


@pytest.mark.parametrize("content", ["{", "[]"])
def test_spoilt_summary(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(BnewError, match="delete it and start the run again"):
        _ = Run(tmp_path).summary


# Tables


def row(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "loss": epoch / 8, "flips": 100 - epoch}


def as_read(*epochs: int) -> list[dict[str, str]]:
    return [{key: str(value) for key, value in row(epoch).items()} for epoch in epochs]


def test_rewind_drops_later_rows(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for epoch in range(4):
        run.append("metrics", row(epoch))
        run.append("layers", row(epoch), row(epoch))
    run.rewind(2)
    assert run.rows() == as_read(0, 1)
    assert run.rows("layers") == as_read(0, 0, 1, 1)
    assert run.rows("histogram") == []
    run.append("metrics", row(2))
    assert run.rows() == as_read(0, 1, 2)


def test_rewind_drops_a_row_cut_anywhere(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append("metrics", *map(row, range(12)))
    whole = (tmp_path / "metrics.csv").read_bytes()
    last_row = whole.index(b"11,")
    for cut in range(last_row, len(whole)):
        (tmp_path / "metrics.csv").write_bytes(whole[:cut])
        run.rewind(11)
        assert run.rows() == as_read(*range(11)), whole[last_row:cut]


def test_rewind_to_the_start_lets_the_columns_change(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append("metrics", {"epoch": 0, "old": 1})
    run.rewind(0)
    run.append("metrics", row(0))
    assert run.rows() == as_read(0)


# Many runs


def test_mean_and_standard_deviation(tmp_path: Path) -> None:
    accuracies = [0.81, 0.84, 0.78]
    runs = tuple(make_run(tmp_path / str(i), accuracy=a) for i, a in enumerate(accuracies))
    without = [make_run(tmp_path / str(value), accuracy=value) for value in (None, math.nan)]
    group = Group("three", "", (*runs, *without))
    assert group.values("accuracy") == accuracies
    assert group.mean("accuracy") == pytest.approx(0.81)
    assert group.std("accuracy") == pytest.approx(statistics.stdev(accuracies)) == pytest.approx(0.03)
    assert Group("one", "", runs[:1]).std("accuracy") is None


def test_group_by_recipe(tmp_path: Path) -> None:
    """Of one group are the runs that differ in their seed, and in the runs that they start from."""
    method = tmp_path / "plain" / "bnew"
    recipe = Recipe(method="bnew", init="../clip/seed0")
    for seed in range(3):
        make_run(method / f"seed{seed}", recipe.replace(seed=seed, init=f"../clip/seed{seed}"), done=True)
    make_run(method / "seed3", recipe.replace(seed=3, init=None), done=True)  # from random weights
    make_run(method / "seed4", recipe.replace(seed=4))  # not done
    make_run(tmp_path / "mine" / "seed0", recipe, done=True)
    make_run(tmp_path / "other", recipe, done=True)
    groups = group_by_recipe(find_runs([tmp_path]))
    assert [(g.name, g.variant, [run.recipe.seed for run in g.runs]) for g in groups] == [
        ("mine", "", [0]),
        ("other", "", [0]),
        ("bnew", "plain", [0, 1, 2]),
        ("bnew", "plain", [3]),
    ]


def test_a_seed_counts_once_in_a_group(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(i) / "mine" / "seed0") for i in range(2)]
    assert [group.runs for group in group_by_recipe(runs)] == [(runs[0],), (runs[1],)]


def test_find_runs(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="no folder"):
        find_runs([tmp_path / "gone"])
    with pytest.raises(BnewError, match="no finished run"):
        find_runs([tmp_path])
    run = make_run(tmp_path / "a" / "b", accuracy=1.0)
    assert [r.path for r in find_runs([tmp_path, tmp_path / "a"])] == [run.path]


def test_best_run_is_the_best_binary_one(tmp_path: Path) -> None:
    for name, method, accuracy in (
        ("a", "bnew", 0.7),
        ("b", "ste", 0.8),
        ("c", "clip", 0.9),
        ("d", None, 1.0),
    ):
        make_run(tmp_path / name, Recipe(method=method), val_accuracy=accuracy)
    make_run(tmp_path / "unfinished", Recipe(method="ste"))
    assert best_run(tmp_path).path == tmp_path / "b"
    assert best_run(tmp_path / "a").path == tmp_path / "a"
    with pytest.raises(BnewError, match=r"no finished run below .* has binary weights"):
        best_run(make_run(tmp_path / "only" / "teacher", Recipe(method=None), val_accuracy=1.0).path.parent)


def test_files_follow_the_umask(tmp_path: Path) -> None:
    """Also those that safetensors writes, which has a mode of its own."""
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", partial(save_file, {"x": torch.zeros(1)}))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
