"""What a person sees of a run: rows that fit the terminal, and a bar that moves."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bnew.training.loop_state import LoopState
from bnew.training.progress import COLUMNS, display

ROW = {
    "train_loss": 1.5,
    "train_accuracy": 0.25,
    "val_accuracy": 0.5,
    "distance": 0.125,
    "share_at_one": 0.75,
    "flips": 123_456,
    "data_wait": 0.01,
}
HIGHEST = {"train_loss": 99.0, "train_accuracy": 1.0, "val_accuracy": 1.0, "distance": 1.0,
           "share_at_one": 1.0, "flips": 99_999_999, "data_wait": 1.0}  # fmt: skip


def test_an_epoch_is_one_line_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    state = LoopState(step=100, seconds=1.0)
    with display(200, 10_000, state, 64, quiet=False) as show:
        for epoch, accuracy in enumerate((0.5, 0.4, 0.6), 2):
            state.step, state.seconds = state.step + 50, state.seconds + 2.0
            show.step(epoch, state.step)
            show.epoch(epoch, state, ROW | {"val_accuracy": accuracy})
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["epoch", "loss", "train", "val", "distance", "at", "±1", "flips", "images/s",
                               "waited"]  # fmt: skip
    assert [line.split() for line in lines] == [
        [
            epoch,
            "1.5000",
            "25.00",
            "%",
            *accuracy,
            "0.1250",
            "75.0",
            "%",
            "123456",
            "1,600",
            "1",
            "%",
        ]  # 50 · 64 / 2 s
        for epoch, accuracy in (
            ("3/200", ("50.00", "%*")),
            ("4/200", ("40.00", "%")),
            ("5/200", ("60.00", "%*")),
        )
    ]
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", heading + "".join(lines))


def test_a_network_without_binary_weights_has_no_columns_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    with display(200, 10_000, LoopState(step=100, seconds=1.0), 64, quiet=False, binary=False) as show:
        show.epoch(0, LoopState(step=150, seconds=3.0), ROW)
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["epoch", "loss", "train", "val", "images/s", "waited"]
    assert line.split() == ["1/200", "1.5000", "25.00", "%", "50.00", "%*", "1,600", "1", "%"]
    assert len(line) == len(heading)


def test_the_best_before_a_run_was_stopped_counts(capsys: pytest.CaptureFixture[str]) -> None:
    state = LoopState(step=100, best={"epoch": 1, "loss": 0.5, "accuracy": 0.55})
    with display(200, 10_000, state, 64, quiet=False) as show:
        show.epoch(2, state, ROW)
    assert "*" not in capsys.readouterr().out


def test_quiet_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    state = LoopState()
    with display(200, 10_000, state, 64, quiet=True) as show:
        show.step(0, 50)
        show.epoch(0, state, ROW)
    assert capsys.readouterr().out == ""


def in_a_terminal(script: str, width: int, **environment: str) -> str:
    """What ``script`` writes in a pseudo-terminal of ``width`` columns."""
    master, terminal = pty.openpty()
    names = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM", "COLUMNS")}
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**names, "TERM": "xterm-256color", "COLUMNS": str(width), "LINES": "24", **environment},
        cwd=Path(__file__).parent,
    )
    os.close(terminal)
    written = b""
    try:
        while chunk := os.read(master, 1 << 16):
            written += chunk
    except OSError:  # Linux reports the end of a pseudo-terminal as an error
        pass
    os.close(master)
    assert child.wait() == 0, written.decode()
    return written.decode()


RUN = """
import time
from test_progress import HIGHEST
from bnew.training.loop_state import LoopState
from bnew.training.progress import display

state = LoopState()
with display({epochs}, {steps}, state, 64, quiet=False) as show:
    for epoch in range({epochs}):
        for _ in range({steps} // {epochs}):
            time.sleep({sleep})
            state.step, state.seconds = state.step + 1, state.seconds + {sleep}
            show.step(epoch, state.step)
        show.epoch(epoch, state, HIGHEST)
        if epoch == {stop_after}:
            break
"""


def run(width: int, epochs: int = 2, stop_after: int = -1, sleep: float = 0.01, **environment: str) -> str:
    script = RUN.format(epochs=epochs, steps=10 * epochs, stop_after=stop_after, sleep=sleep)
    return in_a_terminal(script, width, **environment)


def lines_of(written: str) -> list[str]:
    """The lines without sequences of control characters, and without what a bar overwrote."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    return [part for line in text.split("\n") for part in line.split("\r") if part.strip()]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_line_is_longer_than_the_terminal(width: int, environment: dict[str, Any]) -> None:
    lines = lines_of(run(width, **environment))
    assert max(map(len, lines)) <= width
    bars = [line for line in lines if line.startswith("epoch ")]
    if "TERM" in environment:
        assert bars == []
    else:
        assert "100 %" in bars[-1]
        assert all("100 %" not in bar for bar in bars if bar.startswith("epoch 1/"))
    if width >= 80 and bars:
        assert "images/s" in bars[-1]
        assert "best 100.00 % in 1" in bars[-1]
    rows = [line.replace(" %", "%").split() for line in lines if re.match(r" +[12]/2 ", line)]
    assert [row[0] for row in rows] == ["1/2", "2/2"]
    assert width < 80 or len(rows[0]) == len(COLUMNS)


def test_colours_are_left_out_on_request() -> None:
    assert "\x1b[3" in run(80)
    assert "\x1b[3" not in run(80, NO_COLOR="1")


def test_a_run_that_is_stopped_early_ends_at_its_end() -> None:
    bars = [line for line in lines_of(run(80, epochs=10, stop_after=3)) if line.startswith("epoch ")]
    assert bars[-1].startswith("epoch 4/10")
    assert "100 %" in bars[-1]
    assert "best 100.00 % in 1" in bars[-1]


def test_the_bar_moves_at_least_twice_a_second() -> None:
    """For two seconds, with ten steps per second; rich draws ten times per second."""
    shares = re.findall(r"(\d+) %", " ".join(line for line in lines_of(run(80, sleep=0.1)) if "left" in line))
    assert len(set(shares)) >= 4


def test_columns_fit_80_characters() -> None:
    assert sum(width + 1 for _, width, _ in COLUMNS) <= 80
