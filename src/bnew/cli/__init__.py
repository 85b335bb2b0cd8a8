"""The command line: parse, then one call."""

from __future__ import annotations

import inspect
import io
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import partial
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes

from bnew import __version__
from bnew.cli.arguments import constructors, names
from bnew.cli.config import config_of, read_config, with_recipe
from bnew.cli.fitting import fit
from bnew.cli.helping import add_groups, with_help
from bnew.cli.output import unread
from bnew.cli.packed import bench, export, import_, info, pack, predict, verify
from bnew.cli.runs import evaluate, models, report, reproduce, summary, train
from bnew.errors import (
    BnewError,
    Interrupted,
    NumericalError,
    ProcessLost,
    first_line,
    is_out_of_memory,
    lookup,
)
from bnew.process import is_first_process
from bnew.text import printable

logger = logging.getLogger("bnew")


COMMANDS: dict[str, Callable[..., int]] = {
    "fit": fit,
    "reproduce": reproduce,
    "train": train,
    "eval": evaluate,
    "summary": summary,
    "models": models,
    "report": report,
    "pack": pack,
    "info": info,
    "verify": verify,
    "predict": predict,
    "bench": bench,
    "export": export,
    "import": import_,
}


# What tyro says → what is said.
PLAIN: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^Error parsing ([^:]+): (?=is '|are ')", r"\1 "),
    (r"^Error parsing ([^:]+): ", r"\1: "),
    (
        r"^[Ii]nvalid choice '?(.*?)'? for argument '(.*?)'\. Expected one of \((.*)\)",
        lambda found: f"{found[2]} is '{found[1]}', but must be one of " + found[3].replace("'", ""),
    ),
    (r"(?<=: |; )([A-Z|]+(?:\.\w+)?) (?=the |one )", r"\1, "),
    (r"^[Mm]issing value for argument '(.*?)'\..*", r"\1 needs a value"),
)


def _help() -> str:
    firsts = {name: (command.__doc__ or "").partition("\n")[0] for name, command in COMMANDS.items()}
    lines = [
        "usage: bnew COMMAND ...",
        "",
        "Train binarized neural networks the easy way.",
        "",
        *(_filled(f"  {name:<10}  {first}", indent=14) for name, first in firsts.items()),
        "",
        _filled("bnew help COMMAND lists its options; bnew --version says which version this is."),
    ]
    return "\n".join(lines)


def _filled(text: str, indent: int = 0) -> str:
    """``text`` in lines that fit the terminal, all but the first with an indent."""
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, subsequent_indent=" " * indent, break_on_hyphens=False)


def _described(docstring: str) -> str:
    """A command's help text without its arguments, in lines that fit, as tyro does not make them."""
    text = inspect.cleandoc(docstring).partition("\n\nArgs:\n")[0]
    return "\n\n".join(map(_filled, text.split("\n\n")))


def _run(words: Sequence[str]) -> int:
    if words and words[0] == "help":
        words = [*(word for word in words[1:2] if word != "help"), "--help"]
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"bnew {__version__}")
        return 0
    command = lookup("command", words[0], COMMANDS)
    return _parse(command, words)()


def _parse(command: Callable[..., int], words: Sequence[str]) -> Callable[[], int]:
    """``command`` with its arguments bound, as parsed from ``words``.

    Raises:
        BnewError: they do not fit; the message is tyro's, as one sentence.
        SystemExit: the help was asked for and has been printed.
    """

    # With the names of methods, models and so on in the place of their placeholders.
    docstring = (command.__doc__ or "").format(**{kind: ", ".join(known) for kind, known in names().items()})

    def parsed(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return partial(command, *args, **kwargs)

    signature = with_help(command, docstring)
    if command is train and (config := config_of(words)) is not None:
        signature = with_recipe(signature, read_config(config))
    parsed.__signature__ = signature  # type: ignore[attr-defined]
    parsed.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    if not {"-h", "--help"}.isdisjoint(words):
        print(f"{_described(docstring)}\n")
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                parsed,
                prog=f"bnew {words[0]}",
                description="",
                args=words[1:],
                registry=add_groups(constructors()),
                config=(OmitArgPrefixes,),
            )
    except SystemExit as ended:
        if not ended.code:
            raise
        raise BnewError(f"{_out_of_box(said.getvalue())} (see bnew {words[0]} --help)") from None


def _out_of_box(text: str) -> str:
    """The error in a box of tyro as one line, with the options that tyro suggests.

    Lines of ─ divide the box, or lines of - where the terminal has no ─; then there is one below the title
    too.
    """
    lines = [line.strip("│| ") for line in text.splitlines() if line[:1] not in "╭╰"]
    parts = re.split(r" ?(?:─{3,}|-{5,}) ?", " ".join(lines).strip())
    wrong, *others = parts if text.lstrip().startswith("╭") else parts[1:] or parts
    near = " ".join(each for each in others if each.startswith("Perhaps you meant"))
    meant = " or ".join(dict.fromkeys(re.findall(r"--[\w-]+", near)))
    wrong = re.sub(r"\.? \(required\)", ";", wrong).strip(" ;.") or " ".join(text.split())
    wrong = _in_plain_words(wrong)
    hint = f"; did you mean {meant}?" if meant else ""
    return f"{wrong[0].lower()}{wrong[1:]}{hint}"


def _in_plain_words(wrong: str) -> str:
    """A message of tyro without what only programmers know."""
    for pattern, plain in PLAIN:
        wrong = re.sub(pattern, plain, wrong)
    return wrong


def _run_together(words: Sequence[str]) -> int:
    """:func:`_run`; if several processes end in the same way, they wait for each other.

    An error that all of them have is printed once.
    """
    alike = True
    try:
        code = _run(words)
    except ProcessLost as lost:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it for the same reason
        print(printable(f"bnew: {lost}"), file=sys.stderr)
        code, alike = 1, False
    except (Interrupted, NumericalError) as ended:
        code = 130 if isinstance(ended, Interrupted) else 2
        if is_first_process():
            print(printable(f"bnew: {'' if code == 130 else 'error: '}{ended}"), file=sys.stderr)
    except BnewError as error:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        from bnew.training.distributed import say_once

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when another process exits
        code, alike = 2, False
        if not say_once(printable(f"bnew: error: {error}")):
            return code  # without disconnecting, which waits for the others: they may wait for this process
    if "torch" in sys.modules:  # a command that did not need torch should not load it now
        from bnew.training.distributed import disconnect, leave_together

        if alike:
            leave_together()
        else:
            disconnect()
    return code


def _in_one_line(record: logging.LogRecord) -> bool:
    """Escape invisible characters in a message, for example in names of files."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 some runs failed, 2 bad input, 130 stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # prints the class "été" on an ASCII terminal
    handler = logging.StreamHandler()
    handler.addFilter(_in_one_line)
    logging.basicConfig(format="bnew: %(message)s", handlers=[handler])
    # Only the first process reports progress; other libraries, and the other processes, only warnings.
    logger.setLevel(logging.INFO if is_first_process() else logging.WARNING)
    words = sys.argv[1:] if args is None else args
    try:
        code = _run_together(words)
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`
        code = unread()
    except BnewError as error:
        print(f"bnew: error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        if is_first_process():
            resumes = set(words[:1]) & {"fit", "train", "reproduce"}
            how = ": start the same command again to continue" if resumes else ""
            print(f"bnew: stopped{how}", file=sys.stderr)
        code = 130
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"bnew: error: there is not enough memory ({first_line(error)})", file=sys.stderr)
        code = 2
    sys.exit(code)
