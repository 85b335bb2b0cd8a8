"""The command line: every command from end to end, exit codes, and one sentence for every mistake."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from helpers import Cli, at_step, fill_with_nan, send
from PIL import Image

from bnew import __version__
from bnew.cli import COMMANDS
from bnew.cli.arguments import names
from bnew.convert.summary import summary
from bnew.experiments.published import EXPERIMENTS
from bnew.models import create_model, list_models
from bnew.results.run import Run
from bnew.text import percent

TRAIN = "train --data digits --model birealnet8 --batch-size 256 --epochs 1 --device cpu --quiet --out"


@pytest.fixture
def bnew(cli: Cli) -> Cli:
    """Exit code, output and errors of ``bnew`` with the words of ``line`` and then ``more``."""

    def run(line: str, *more: object) -> tuple[int, str, str]:
        return cli(*line.split(), *more)

    return run


@pytest.fixture
def sentence(bnew: Cli) -> Callable[..., str]:
    """The one sentence, without a traceback, that ``bnew`` ends with in exit code 2."""

    def run(line: str, *more: object) -> str:
        code, _, err = bnew(line, *more)
        assert code == 2
        (said,) = err.splitlines()
        assert said.startswith("bnew: error: ")
        return said

    return run


@pytest.mark.parametrize(
    "words", ["", "--help", "--version", "models", *(f"{name} --help" for name in COMMANDS)]
)
def test_loads_no_torch(words: str) -> None:
    code = f"from bnew.cli import main; main({words.split()})" if words else "import bnew"
    script = f"import sys\ntry:\n {code}\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(bnew: Cli, command: str) -> None:
    code, out, _ = bnew(f"{command} --help")
    assert code == 0
    assert f"bnew {command}" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(bnew: Cli, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside its default; and positionals have names that say what they are."""
    monkeypatch.setenv("COLUMNS", "400")
    out = bnew(f"{command} --help")[1]
    assert "--help" in out
    for line in out.splitlines():
        assert not re.search(r"(^|\s\s)\((default|required)", line.strip("│| ")), line
    (usage,) = (line for line in out.splitlines() if line.startswith("usage: "))
    assert not re.search(r"(?<!--out)(?<!\|) PATH", usage), usage


@pytest.mark.parametrize("width", [60, 80, 200])
def test_help_fits_the_terminal(bnew: Cli, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ("", *COMMANDS):
        lines = bnew(f"{command} --help")[1].splitlines()
        assert [line for line in lines if len(line) > width and not line.startswith("usage: ")] == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("width", [80, 120])
def test_help_fills_its_lines(bnew: Cli, monkeypatch: pytest.MonkeyPatch, width: int, command: str) -> None:
    """No line of a text ends where the first word of the next one still fits."""
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [row.strip("│") for row in bnew(f"{command} --help")[1].partition("usage: ")[2].splitlines()[1:]]
    starts = [len(row) - len(row.lstrip()) for row in rows]
    for row, following, start, below in zip(rows, rows[1:], starts, starts[1:], strict=False):
        if start == below > 5:
            word, *_ = following.split()
            assert len(row.rstrip()) + 1 + len(word) > width - 4, row


def test_help_says_what_an_epochs_row_shows(bnew: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for command in ("train", "reproduce"):
        out = bnew(f"{command} --help")[1]
        (line,) = (line for line in out.splitlines() if line.startswith("An epoch's row: "))
        assert all(f"{column} " in line for column in ("distance", "at ±1", "flips"))


def test_help_lists_the_commands(bnew: Cli) -> None:
    assert bnew("") == bnew("-h") == bnew("--help") == bnew("help") == bnew("help help")
    assert bnew("help eval") == bnew("eval --help")
    out = bnew("--help")[1]
    assert all(f"\n  {command} " in out for command in COMMANDS)
    assert "\n  eval        How good a run or a packed file is: accuracy, classes, mistakes.\n" in out


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("reproduce", ["experiments", "phase2", "on_request"]),
        ("train", ["methods", "models", "datasets"]),
        ("summary", ["models"]),
    ],
)
def test_help_lists_the_names(bnew: Cli, command: str, kinds: list[str]) -> None:
    out = " ".join(bnew(f"{command} --help")[1].replace("│", " ").split())
    for kind in kinds:
        assert ", ".join(names()[kind]) in out


def test_experiments_of_one_kind_have_the_methods_that_help_lists() -> None:
    for name, experiment in EXPERIMENTS.items():
        assert tuple(experiment.phase2) == names()["imagenet_phase2" if name == "imagenet" else "phase2"]
        assert tuple(experiment.on_request) == (() if name == "imagenet" else names()["on_request"])


def test_the_package_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bnew", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"bnew {__version__}\n", "")


def test_version(bnew: Cli) -> None:
    assert bnew("--version") == (0, f"bnew {__version__}\n", "")


def test_from_training_to_report(bnew: Cli, tmp_path: Path) -> None:
    run, options = tmp_path / "run", ("--method", "bnew", "--method-options", "strength=3", "scale=True")
    code, out, _ = bnew(TRAIN, run, *options)
    test = Run(run).summary["test_accuracy"]
    assert (code, out) == (0, f"{run}: test accuracy {percent(test)} (epoch 1)\n")
    assert Run(run).recipe.method_options == {"strength": 3, "scale": True}

    code, out, _ = bnew("eval --device cpu", run)
    assert code == 0
    assert f"top-1 {100 * test:.2f} %" in " ".join(out.split())
    code, out, _ = bnew("eval --device cpu", tmp_path)  # the best run below
    assert code == 0
    assert f"top-1 {100 * test:.2f} %" in " ".join(out.split())
    code, out, _ = bnew("eval --device cpu --split val", run)
    assert f"top-1 {100 * Run(run).summary['val_accuracy']:.2f} %" in " ".join(out.split())

    code, out, _ = bnew("report", run, "--out", tmp_path)
    assert code == 0
    assert f"{100 * test:.2f}" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").is_file()


def test_eval_finds_the_data(bnew: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "mine" / "train" / name).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (8, 8), (i, 12 * i, len(name))).save(tmp_path / f"mine/train/{name}/{i}.png")
    monkeypatch.chdir(tmp_path)
    assert bnew(TRAIN, "run", "--data", "folder", "--data-dir", "mine")[0] == 0
    monkeypatch.chdir(tmp_path / "run")
    code, out, _ = bnew("eval --device cpu .")
    assert code == 0
    assert f"top-1 {100 * Run('.').summary['test_accuracy']:.2f} %" in " ".join(out.split())
    code, _, err = bnew("eval --device cpu . --data-dir elsewhere")
    assert code == 2
    assert "elsewhere' does not exist" in err
    Path("environment.json").unlink()
    assert "data' does not exist" in bnew("eval --device cpu .")[2]


def test_models_and_summary(bnew: Cli) -> None:
    code, out, _ = bnew("models")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if "×" in line][:-1] == list_models()
    facts = "reactnet18 3×224×224 4.26M 1.68G 138M 65.5 % ImageNet, arXiv:2003.03488"
    assert facts in " ".join(out.split())
    code, out, _ = bnew("summary birealnet20 --in-channels 1")
    assert code == 0
    assert str(summary(create_model("birealnet20", in_channels=1), (1, 32, 32))) in out
    assert "267,264" in out
    assert "…" not in out


def test_other_runs_are_named_from_here(bnew: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bnew(TRAIN, "first", "--method", "clip")[0] == 0
    assert bnew(TRAIN, "deep/second", "--method", "ste", "--init", "first", "--teacher", "first")[0] == 0
    recipe = Run("deep/second").recipe
    assert recipe.init == recipe.teacher == "../../first"


def test_reproduce(bnew: Cli, tmp_path: Path) -> None:
    line = (
        "reproduce digits --methods bnew ste --seeds 0 --epochs-scale 0.07 0.15 "
        "--device cpu --quiet --workers 2 --out"
    )
    spoilt = tmp_path / "plain/ste/seed0/last.pt"
    spoilt.parent.mkdir(parents=True)
    spoilt.touch()
    code, out, err = bnew(line, tmp_path)
    assert code == 1
    assert "BNEW" in out
    assert f"plain/ste/seed0 did not finish: {spoilt} is cut short" in err
    assert "same command again to run only what is missing" in err
    assert "Traceback" not in err
    spoilt.unlink()
    code, out, _ = bnew(line, tmp_path)
    assert code == 0
    assert "STE" in out
    assert out.splitlines()[-2:] == [str(tmp_path / name) for name in ("report.md", "report.html")]
    assert "|" not in out
    assert max(map(len, out.splitlines()[:-2])) <= 140
    assert Run(tmp_path / "plain/bnew/seed0").recipe.epochs == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_130_and_says_how_to_go_on(bnew: Cli, tmp_path: Path, number: int) -> None:
    with at_step(2, send(number)):
        code, out, err = bnew(TRAIN, tmp_path)
    assert (code, out) == (130, "")
    assert f"saved in {tmp_path}: start the same command again" in err
    assert "Traceback" not in err
    assert bnew(TRAIN, tmp_path)[0] == 0


def test_reproduce_where_nothing_succeeds(bnew: Cli, tmp_path: Path) -> None:
    """A failure with nothing left to wait for but what depends on it: reported, not waited for."""
    spoilt = tmp_path / "plain/clip/seed0/last.pt"
    spoilt.parent.mkdir(parents=True)
    spoilt.touch()
    signal.alarm(120)  # ends the tests, should it hang
    code, _, err = bnew("reproduce digits --methods ste --seeds 0 --device cpu --quiet --out", tmp_path)
    signal.alarm(0)
    assert code == 1
    assert f"plain/clip/seed0 did not finish: {spoilt} is cut short" in err
    assert "plain/ste/seed0 did not finish: plain/clip/seed0 did not finish" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_training(
    bnew: Cli, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr("bnew.experiments.launch.run", lambda *_: signal.raise_signal(number))
    code, _, err = bnew("reproduce cifar10")
    assert (code, err) == (130, "bnew: stopped: start the same command again to continue\n")
    monkeypatch.setattr("bnew.results.report.write_report", lambda *_: signal.raise_signal(number))
    code, _, err = bnew("report runs")
    assert (code, err) == (130, "bnew: stopped\n")


# Mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--data digts", "unknown data set 'digts': did you mean 'digits'?"),
        ("--model birealnet9", "unknown model 'birealnet9': did you mean 'birealnet8'?"),
        ("--model nets.Net", "package.module:factory, quicknet, "),
        ("--data nets.digits", "mnist, package.module:factory, photos, svhn"),
        ("--method bnw", "unknown method 'bnw': did you mean 'bnew'?"),
        ("--method ste --method-options gama=1", "unknown option of method ste 'gama': "),
        ("--method bop --method-options gama=1", "did you mean 'gamma'?"),
        ("--model-options scal=False", "unknown option of model birealnet8 'scal': did you mean 'scale'?"),
        ("--schedule liner", "unknown schedule 'liner': did you mean 'linear'?"),
        ("--epochs 0", "epochs is 0, but must be"),
        ("--lr -1", "lr is -1.0, but must be"),
        ("--freeze 2", "freeze is 2.0, but must be a number between 0 and 1"),
        ("--batch-size 0", "batch_size is 0"),
        ("--seed 1099511627776", "seed is 1099511627776"),
        ("--schedule step --milestones nan 0.5", "milestones are"),
        ("--method-options strength=3", "options of a method (strength), but no method"),
        ("--method ste --method-options scale=5", "scale is 5, but must be True or False"),
        ("--method bnew --method-options strength=-1", "strength is -1, but must be a number above 0"),
        ("--method bnew --model wideresnet22", "no binary layers"),
        ("--device cuda:77", "cuda:77"),
        ("--device tpv", "tpv"),
        ("--precision 17", "precision 17 cannot be used"),
        ("--data folder --data-dir /nowhere", "'/nowhere' does not exist"),
    ],
)
def test_mistakes_in_a_recipe(sentence: Callable[..., str], tmp_path: Path, options: str, said: str) -> None:
    assert said in sentence(TRAIN, tmp_path, *options.split())
    assert list(tmp_path.iterdir()) == []


def test_nan(sentence: Callable[..., str], tmp_path: Path) -> None:
    with at_step(1, fill_with_nan):
        assert "the loss became NaN" in sentence(TRAIN, tmp_path)


def test_out_of_memory(sentence: Callable[..., str], tmp_path: Path) -> None:
    with at_step(1, lambda _: torch.empty(10**15)):
        said = sentence(TRAIN, tmp_path, "--accumulate", 3)
    assert "not enough memory for batches of 256 images, each share of it in 3 parts (" in said
    assert said.endswith("give --accumulate 6 to compute a batch in more parts, or a smaller --batch-size")


def test_out_of_memory_elsewhere(
    sentence: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnew.results.report.write_report", lambda *_: torch.empty(10**15))
    assert "there is not enough memory (" in sentence("report", tmp_path)


def test_a_refused_run_leaves_nothing(
    sentence: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sentence("train --data digts --device cpu --quiet")
    assert list(tmp_path.iterdir()) == []


def test_packing_phase_1(bnew: Cli, sentence: Callable[..., str], tmp_path: Path) -> None:
    for name, options in {"clip": ["--method", "clip"], "none": []}.items():
        assert bnew(TRAIN, tmp_path / name, *options)[0] == 0
    said = sentence("pack", tmp_path / "clip", tmp_path / "model.bnew")
    assert "clip is a run of phase 1 (--method clip), whose weights are real: pack one of phase 2" in said
    assert f"bnew train --method bnew --init {tmp_path / 'clip'}" in said
    assert "none is a run of no method, whose" in sentence("pack", tmp_path / "none", tmp_path / "model.bnew")
    assert not (tmp_path / "model.bnew").exists()


def test_a_data_set_that_cannot_be_downloaded(
    sentence: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fail)
    said = sentence(TRAIN, tmp_path / "run", "--data", "cifar10", "--data-dir", tmp_path / "data")
    assert "put cifar-10-python.tar.gz there" in said


def test_a_spoilt_checkpoint(sentence: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "last.pt").touch()
    assert "last.pt is cut short" in sentence(TRAIN, tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("reproduce cifar1", "unknown experiment 'cifar1': did you mean 'cifar10"),
        ("reproduce cifar10 --methods bnw", "did you mean 'bnew'?"),
        ("reproduce cifar10 --workers 0", "workers"),
        ("reproduce cifar10 --model birealnet21", "unknown model 'birealnet21': did you mean 'birealnet20'"),
        ("reproduce cifar10 --devices 2 --workers 2", "several devices train one run together"),
        ("reproduce cifar10 --devices 2 --launcher ray", "several devices train one run together"),
        ("reproduce imagenet", "/data' does not exist: put the images there"),
        ("reproduce imagenet --epochs-scale 0.001", "128 epochs of real times 0.001 leave none: give"),
        ("reproduce imagenet --steps step4", "unknown step of imagenet 'step4': did you mean 'step2'"),
        ("reproduce imagenet --method bop", "unknown method of phase 2 'bop'"),
        ("reproduce imagenet --steps finetune", "starts from distilled/bnew/seed0, which is not done in"),
        ("reproduce imagenet --max-broken -1", "max_broken is -1: give 0 or more"),
        ("help trian", "unknown command 'trian': did you mean 'train'?"),
        ("trian", "unknown command 'trian': did you mean 'train'?"),
        ("summary birealnet9", "did you mean 'birealnet8'?"),
        ("eval /nowhere", "/nowhere"),
        ("report /nowhere", "there is no folder /nowhere"),
    ],
)
def test_other_mistakes(
    sentence: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in sentence(line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "train --epoch 1",
            "unrecognized options: --epoch, 1; did you mean --epochs? (see bnew train --help)",
        ),
        ("train --epochs many", "--epochs is 'many', but must be a whole number (see bnew train --help)"),
        ("train --epochs 1.5", "--epochs is '1.5', but must be a whole number"),
        ("train --lr fast", "--lr is 'fast', but must be a number"),
        ("train --lr", "--lr needs a value"),
        ("train --freeze abc", "--freeze is 'abc', but must be a number, or None"),
        ("train --compile maybe", "--compile is 'maybe', but must be True or False, or None"),
        ("train --milestones 0.1 b", "--milestones is '0.1 b', but must be one or more numbers"),
        ("predict file a --input-size 4", "--input-size is '4', but must be 2 whole numbers, or None"),
        ("reproduce cifar10 --seeds a", "--seeds is 'a', but must be one or more whole numbers, or None"),
        ("export a b --format cc", "--format is 'cc', but must be one of onnx, c"),
        ("export a b --format c --data-dir x", "--data-dir is for --format onnx"),
        ("eval run --epochs 3", "unrecognized options: --epochs, 3"),
        ("eval run --save-every 3", "unrecognized options: --save-every, 3"),
        ("train --method-options strength", "'strength' is not NAME=VALUE"),
        ("eval /nowhere --split tset", "'tset'"),
        ("pack run", "missing from bnew pack: FILE, the file to write, such as model.bnew (see bnew pack"),
        ("predict", "missing from bnew predict: FILE, the packed file"),
    ],
)
def test_words_that_are_no_options(sentence: Callable[..., str], line: str, said: str) -> None:
    assert said in sentence(line)


@pytest.mark.parametrize("words", ["--help", "train --help", "models"])
def test_nobody_reads_on(words: str) -> None:
    """As with `| head`: no traceback, and the exit code of SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        result = subprocess.run(
            [sys.executable, "-m", "bnew", *words.split()], stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (result.returncode, result.stderr) == (141, b"")
