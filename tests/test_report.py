"""The report: numbers by hand, pictures that parse, pages that stand on their own."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bnew.data.preparation import Preparation
from bnew.display import as_text
from bnew.errors import BnewError
from bnew.files import write_json
from bnew.recipe import Recipe
from bnew.results.groups import best_run, find_runs, group_by_recipe
from bnew.results.packed import record_packed, record_time
from bnew.results.pictures import Picture, _curve, _spread, epochs_before, pictures
from bnew.results.report import compared, table, write_report
from bnew.results.run import Run

EPOCHS = 3


PREPARATION = Preparation(classes=("a", "b"), size=(3, 8, 8), mean=(0.5,) * 3, std=(0.2,) * 3)


def make_run(
    path: Path,
    summary: dict[str, Any] | None = None,
    images: str | None = None,
    data_dir: str = "/pictures",
    environment: dict[str, Any] | None = None,
    **recipe: Any,
) -> Run:
    """A finished run of three epochs whose weights move to ±1; ``images`` tells data apart."""
    run = Run(path)
    path.mkdir(parents=True)
    fingerprint = images and {"train": {"contents": images}}
    environment = {"data_dir": data_dir, **(environment or {})}
    run.begin(
        Recipe(**{"data": "digits", "method": "bnew", "epochs": EPOCHS, **recipe}),
        environment,
        PREPARATION if fingerprint else None,
        fingerprint or None,
    )
    for epoch in range(EPOCHS):
        run.append(
            "metrics",
            {"epoch": epoch, "val_accuracy": 0.5 + epoch / 10, "distance": 0.1**epoch, "seconds": 1},
        )
        run.append("histogram", {"epoch": epoch, "bin0": epoch, "bin1": 4 - 2 * epoch, "bin2": epoch})
    write_json(
        run.path / "summary.json",
        {"val_accuracy": 0.7, "test_accuracy": 0.6, "train_seconds": 90, **(summary or {})},
    )
    return run


def cells(markdown: str, first: str) -> list[str]:
    """The cells of the one row of the table that starts with ``first``."""
    (line,) = [line for line in markdown.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_mean_and_deviation_by_hand(tmp_path: Path) -> None:
    for seed, test in enumerate((0.80, 0.82, 0.87)):
        make_run(
            tmp_path / f"plain/bnew/seed{seed}",
            {"test_accuracy": test, "distance_before_freezing": 0.002, "freezing_cost": 0.01 * (seed - 2)},
            seed=seed,
            init=f"../../clip/seed{seed}",
        )
    # mean 83; deviations −3, −1, 4: sqrt(26 / 2) = 3.61
    assert cells(table(find_runs([tmp_path])), "BNEW") == [
        "BNEW", "plain", "digits", "birealnet20", "83.00 ± 3.61", "70.00 ± 0.00", "3", "3", "0.002",
        "−1.00 ± 1.00", "1 min 30 s",
    ]  # fmt: skip


def test_single_run_anywhere_has_no_deviation(tmp_path: Path) -> None:
    make_run(tmp_path / "my-run", method="ste")
    row = cells(table(find_runs([tmp_path / "my-run"])), "STE (my-run)")
    assert row == [
        "STE (my-run)",
        "–",
        "digits",
        "birealnet20",
        "60.00",
        "70.00",
        "3",
        "1",
        "–",
        "–",
        "1 min 30 s",
    ]


def test_runs_that_were_stopped_say_after_how_many_epochs(tmp_path: Path) -> None:
    for seed, epochs in enumerate((2, 1, 2)):
        run = make_run(tmp_path / f"bnew/seed{seed}", {"epochs": epochs}, seed=seed)
        assert (run.epochs, run.recipe.epochs) == (epochs, 3)
    assert cells(table(find_runs([tmp_path])), "BNEW")[6] == "1–2 of 3"
    assert cells(table(find_runs([tmp_path / "bnew/seed0"])), "BNEW")[6] == "2 of 3"
    # As an earlier version wrote it.
    make_run(tmp_path / "old", {"epochs": 3, "stopped_after": 1})
    assert cells(table(find_runs([tmp_path / "old"])), "BNEW (old)")[6] == "1 of 3"


def test_what_differs_beyond_the_seed_is_another_row(tmp_path: Path) -> None:
    for variant in ("plain", "no-scale"):
        for seed in (0, 1):
            make_run(tmp_path / variant / "bnew" / f"seed{seed}", seed=seed)
    make_run(tmp_path / "teacher/wideresnet22/seed0", model="wideresnet22", method=None)
    make_run(tmp_path / "longer", epochs=4)
    groups = group_by_recipe(find_runs([tmp_path]))
    assert {(g.name, g.variant, len(g.runs)) for g in groups} == {
        ("bnew", "plain", 2), ("bnew", "no-scale", 2), ("wideresnet22", "teacher", 1), ("longer", "", 1),
    }  # fmt: skip


def test_runs_of_other_images_are_another_row(tmp_path: Path) -> None:
    """Two folders that share a recipe have no mean in common; seeds on one of them have."""
    for folder, test in (("ants", 0.9), ("bees", 0.5)):
        for seed in (0, 1):
            make_run(
                tmp_path / folder / "bnew" / f"seed{seed}", {"test_accuracy": test},
                images=folder, data_dir=f"/home/me/{folder}", data="folder", seed=seed,
            )  # fmt: skip
    text = table(find_runs([tmp_path]))
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()[2:]]
    assert [(row[2], row[7], row[4]) for row in rows] == [
        ("folder (ants)", "2", "90.00 ± 0.00"),
        ("folder (bees)", "2", "50.00 ± 0.00"),
    ]
    markdown, _ = write_report([tmp_path], tmp_path / "out")
    assert "## folder (ants) · birealnet20" in markdown.read_text()  # and no picture that has both


def test_the_data_are_named_as_shortly_as_tells_them_apart(tmp_path: Path) -> None:
    def named(*runs: Run) -> list[str]:
        return [group.data for group in group_by_recipe(runs)]

    digits = make_run(tmp_path / "a", images="1")
    assert named(digits) == ["digits"]
    others = make_run(tmp_path / "b", images="2", data_dir="/others")
    assert named(digits, others) == ["digits (pictures)", "digits (others)"]
    own = make_run(tmp_path / "c", images="1", data="folder")
    assert named(digits, own) == ["digits", "folder (pictures)"]
    grown = make_run(tmp_path / "d", images="2", data="folder")
    assert named(own, grown) == [f"folder (pictures {run.data_id})" for run in (own, grown)]
    assert own.data_id != grown.data_id
    # Of an earlier version, with no fingerprint: their folders tell them apart, if anything does.
    first, second = (
        make_run(tmp_path / name, data="folder", data_dir=f"/{name}/pictures") for name in ("e", "f")
    )
    assert named(first, second) == ["folder (pictures e/pictures)", "folder (pictures f/pictures)"]
    assert (
        named(make_run(tmp_path / "g"), make_run(tmp_path / "h" / "g", data_dir="/others")) == ["digits"] * 2
    )


def test_a_seed_counts_once(tmp_path: Path) -> None:
    for copy in ("a", "b"):
        make_run(tmp_path / copy / "plain/bnew/seed0")
    assert [len(g.runs) for g in group_by_recipe(find_runs([tmp_path]))] == [1, 1]


def test_values_that_are_missing_or_nan_are_not_counted(tmp_path: Path) -> None:
    values = (0.1, math.nan, None)
    for seed, value in enumerate(values):
        make_run(
            tmp_path / f"plain/bnew/seed{seed}", {"freezing_cost": value, "train_seconds": None}, seed=seed
        )
    row = cells(table(find_runs([tmp_path])), "BNEW")
    assert row[9:] == ["10.00 (1 of 3)", "–"]


def test_references_stand_with_their_data_set_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bnew")
    assert "published" not in table([run])
    text = table(
        [run, make_run(tmp_path / "c100", data="cifar100"), make_run(tmp_path / "i", data="imagenet")]
    )
    assert "*55.08*" in text
    assert "*70.5*" not in text  # imagenet is any folder of images
    assert "*70.5*" in table([make_run(tmp_path / "whole", {"classes": 1000}, data="imagenet")])
    assert "IR-Net" not in text


def test_names_are_escaped(tmp_path: Path) -> None:
    make_run(tmp_path / "a|b <script>$x^$&_c")
    markdown, page = (path.read_text() for path in write_report([tmp_path], tmp_path / "out"))
    assert r"BNEW (a\|b \<script\>$x^$\&\_c)" in markdown
    assert "<script" not in page
    assert "a|b &lt;script&gt;$x^$&amp;_c" in page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on three methods and an unfinished run."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("clip", "bnew", "ste"):
        for seed in (0, 1):
            make_run(root / "plain" / method / f"seed{seed}", method=method, seed=seed, data="cifar10")
    (root / "plain/bnew/seed2").mkdir()
    unfinished = Run(root / "plain/bnew/seed2")
    unfinished.begin(Recipe(seed=2, epochs=12), {})
    unfinished.append("metrics", *({"epoch": epoch} for epoch in range(3)))
    assert write_report([root], root / "report") == [root / "report/report.md", root / "report/report.html"]
    return root / "report"


def test_pictures_are_svg_with_every_method(report: Path) -> None:
    markdown = (report / "report.md").read_text()
    names = re.findall(r"!\[\w+\]\((.*?)\)", markdown)
    assert names == ["report-1-accuracy.svg", "report-1-distance.svg", "report-1-weights.svg"]
    for name in names:
        root = ET.parse(report / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"BNEW", "STE", "phase 1 (clip)"} <= texts
        assert not any("$" in (text or "") for text in texts)


def test_page_stands_on_its_own(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert page.count("<svg") == 3
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", page) == []
    assert not re.search(r"url\((?!#)|@import|<script|<link|<!DOCTYPE svg", page)
    assert "prefers-color-scheme: dark" in page
    assert "AdaBin" in page


def test_unfinished_runs_are_named(report: Path) -> None:
    for name in ("report.md", "report.html"):
        assert "left out (1): plain/bnew/seed2 (epoch 3 of 12)" in (report / name).read_text()


def test_unfinished_runs_are_said(report: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_report([report.parent], tmp_path)
    unfinished = report.parent / "plain/bnew/seed2"
    assert caplog.messages == [f"{unfinished} is unfinished (epoch 3 of 12) and left out of the report"]
    with pytest.raises(BnewError, match=r"no finished run below .*; .*seed2 is unfinished, epoch 3 of 12"):
        write_report([unfinished], tmp_path)


def test_the_same_runs_give_the_same_report(report: Path, tmp_path: Path) -> None:
    write_report([report.parent / "plain"], tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (report / path.name).read_bytes()


def test_broken_tables_are_survived(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bnew")
    with open(run.path / "metrics.csv", "a") as file:
        file.write("3,nan,0.001,1\nx,0.5,0.5,1\n4,0.9")
    with open(run.path / "histogram.csv", "a") as file:
        file.write("3,nan,1,1\n4,1")
    bare = make_run(tmp_path / "bare")
    for name in ("metrics", "histogram"):
        (bare.path / f"{name}.csv").unlink()
    groups = group_by_recipe([run])
    assert [p.kind for p in pictures(groups)] == ["accuracy", "distance", "weights"]
    assert pictures(group_by_recipe([bare])) == []
    write_report([tmp_path], tmp_path / "out")


def test_real_networks_have_accuracy_alone(tmp_path: Path) -> None:
    groups = group_by_recipe([make_run(tmp_path / "teacher", method=None)])
    assert [p.kind for p in pictures(groups)] == ["accuracy"]


# The best


def test_the_best_of_a_column_are_bold(tmp_path: Path) -> None:
    """Ties too; of networks with real weights, none."""
    for method, test, val in (
        ("clip", 0.99, 0.99), ("bnew", 0.90004, 0.8), ("ste", 0.89996, 0.7), ("bop", 0.8, 0.6)
    ):  # fmt: skip
        make_run(tmp_path / method / "seed0", {"test_accuracy": test, "val_accuracy": val}, method=method)
    make_run(tmp_path / "teacher", {"test_accuracy": 1.0}, method=None)
    text = table(find_runs([tmp_path]))
    shown = {row.split(" | ")[0].strip("| "): row.split(" | ")[4:6] for row in text.splitlines()[2:]}
    assert shown == {
        "real network (teacher)": ["100.00", "70.00"], "phase 1 (clip)": ["99.00", "99.00"],
        "BNEW": ["**90.00**", "**80.00**"], "STE": ["**90.00**", "70.00"], "Bop": ["80.00", "60.00"],
    }  # fmt: skip
    _, page = write_report([tmp_path], tmp_path / "out")
    assert page.read_text().count("<b>90.00</b>") == 2


def test_one_network_alone_is_not_bold(tmp_path: Path) -> None:
    for method in ("clip", "bnew"):
        make_run(tmp_path / method / "seed0", method=method)
    assert "**" not in table(find_runs([tmp_path]))


def test_the_best_network_is_named(tmp_path: Path) -> None:
    """It is that of `bnew pack`: by validation alone, and by its loss where accuracies are the same."""
    for name, val, loss, test in (
        ("a", 0.9, 0.3, 0.99), ("b", 0.95, 0.2, 0.97), ("c", 0.95, 0.1, 0.96), ("d", 0.95, 0.4, 0.98)
    ):  # fmt: skip
        run = make_run(tmp_path / name, {"val_accuracy": val, "test_accuracy": test, "best_epoch": 1})
        (run.path / "metrics.csv").unlink()
        run.append("metrics", *({"epoch": i, "val_loss": loss + (i != 1)} for i in range(3)))
    make_run(tmp_path / "phase1", {"val_accuracy": 1.0}, method="clip")
    assert best_run(tmp_path).path.name == "c"
    _, page = write_report([tmp_path], tmp_path / "out")
    assert "Best network: BNEW (c), <b>96.00 %</b> test accuracy" in page.read_text()
    assert "95.00 % validation accuracy, by which it was chosen" in page.read_text()
    (tmp_path / "c/metrics.csv").unlink()
    assert best_run(tmp_path).path.name == "b"


# How they were made


def test_the_page_says_how_they_were_made(tmp_path: Path) -> None:
    made = {"started": "2026-01-02T03:04:05+0000", "command": "bnew train --data <digits>", "commit": "abc",
            "cpu": "A CPU", "cores": 2, "bnew": "0.1", "torch": "2.9", "device": "cpu"}  # fmt: skip
    make_run(tmp_path / "a", environment=made)
    make_run(tmp_path / "b", environment={**made, "started": "2026-01-05", "commit": "abd"})
    make_run(tmp_path / "c")  # of an earlier version
    _, path = write_report([tmp_path], tmp_path / "out")
    page = path.read_text()
    for name, *values in (
        ("Date", "2026-01-02 to 2026-01-05"), ("Command", "bnew train --data &lt;digits&gt;"),
        ("Commit", "abc", "abd"), ("CPU", "A CPU, 2 cores"), ("Versions", "bnew 0.1, PyTorch 2.9"),
    ):  # fmt: skip
        assert f"<dt>{name}</dt><dd>{''.join(f'<div>{value}</div>' for value in values)}</dd>" in page
    assert "<dt>Device</dt>" not in page
    assert "Packed file" not in page


def test_size_and_time_of_the_packed_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bnew", {"best_sha256": "1"})
    file = tmp_path / "model.bnew"
    file.write_bytes(b"packed")

    def page() -> str:
        return write_report([run.path], tmp_path / "out")[1].read_text()

    record_packed(run, file, 40_200)
    assert "Packed file: 40,200 bytes</p>" in page()
    record_time(run, file, 1.234e-5, "A CPU")
    assert "Packed file: 40,200 bytes; 0.0123 ms an image on one thread of A CPU</p>" in page()
    (tmp_path / "other.bnew").write_bytes(b"of another run")
    record_time(run, tmp_path / "other.bnew", 1.0, "A CPU")
    assert "0.0123 ms" in page()
    write_json(run.path / "summary.json", {**run.summary, "best_sha256": "2"})  # trained anew
    assert "Packed file" not in page()
    (run.path / "packed.json").write_text("{")
    assert "Packed file" not in page()


# Time


def texts(picture: Picture) -> list[str]:
    found = ET.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}text")
    return [element.text or "" for element in found]


def test_phase_2_stands_behind_phase_1_in_time(tmp_path: Path) -> None:
    first = make_run(tmp_path / "clip/seed0", method="clip")
    second = make_run(tmp_path / "bnew/seed0", init="../../clip/seed0")
    third = make_run(tmp_path / "bnew-finetuned/seed0", init="../../bnew/seed0")
    alone = make_run(tmp_path / "other/seed0", init="../../nowhere")
    assert [epochs_before(run) for run in (first, second, third, alone)] == [0, 3, 6, 0]
    (one, two, three) = (_curve(group, "val_accuracy") for group in group_by_recipe([first, second, third]))
    assert (one.epochs, two.epochs, three.epochs) == ([1, 2, 3], [4, 5, 6], [7, 8, 9])
    together = pictures(group_by_recipe([first, second]))
    assert "epoch, from the start of phase 1" in texts(together[0])
    assert "epoch" in texts(pictures(group_by_recipe([first, alone]))[0])


def test_labels_stand_once(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{m}/seed0", method=m) for m in ("clip", "bnew", "ste", "bop", "bmd")]
    accuracy, distance, weights = pictures(group_by_recipe(runs))
    for picture, names in ((accuracy, ["epoch", "validation accuracy, %"]),
                           (distance, ["epoch", "mean distance to ±1"]),
                           (weights, ["epoch", "weight"])):  # fmt: skip
        for name in (*names, "BNEW", "STE", "Bop", "BMD", "phase 1 (clip)"):
            assert texts(picture).count(name) == 1, name
    assert texts(weights).count("−1") == 2  # below each of the two columns


# In a terminal


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_table_fits_a_terminal(tmp_path: Path, width: int) -> None:
    for method in ("clip", "bnew", "ste"):
        for seed in (0, 1):
            done = {
                "distance_before_freezing": 0.0123,
                "freezing_cost": -0.01,
                "test_accuracy": 0.9 + seed / 20,
            }
            make_run(tmp_path / f"distilled/{method}/seed{seed}", done, method=method, seed=seed,
                     data="cifar100")  # fmt: skip
    make_run(tmp_path / "a-run-with-a-rather-long-name-of-its-own", data="cifar100")
    text = as_text(compared([tmp_path]), width)
    assert max(map(len, text.splitlines())) <= width
    assert "92.50 ± 3.54" in text
    assert text.startswith("cifar100 · birealnet20")
    assert "|" not in text


def test_the_page_is_for_paper_and_phones_too(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert "@media print" in page
    assert "@page" in page
    # On a phone a row is a block, whose cells have the titles of their columns.
    assert 'data-title="Test accuracy, %"' in page
    assert "content: attr(data-title)" in page


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(BnewError, match="no finished run"):
        write_report([tmp_path], tmp_path / "out")
    with pytest.raises(BnewError, match="there is no folder"):
        write_report([tmp_path / "none"], tmp_path / "out")
    make_run(tmp_path / "bnew")
    (tmp_path / "file").touch()
    with pytest.raises(BnewError, match="could not make the folder"):
        write_report([tmp_path], tmp_path / "file" / "out")
    (tmp_path / "bnew/summary.json").write_text('{"val_acc')
    with pytest.raises(BnewError, match="not JSON"):
        write_report([tmp_path], tmp_path / "out")


@pytest.mark.parametrize("heights", [[0.5], [0.5, 0.5, 0.5], [0.99, 1.0, 0.0], [0.0, 0.01, 0.9]])
def test_labels_keep_apart(heights: list[float]) -> None:
    spread = sorted(_spread(heights, gap=0.1))
    assert all(b - a > 0.0999 for a, b in itertools.pairwise(spread))
    assert spread[0] >= -1e-9
    assert spread[-1] <= 1 + 1e-9


def test_needs_no_torch() -> None:
    heavy = "'torch' in sys.modules or 'matplotlib.pyplot' in sys.modules"
    code = f"import sys, bnew.results.report; sys.exit({heavy})"
    subprocess.run([sys.executable, "-c", code], check=True)
