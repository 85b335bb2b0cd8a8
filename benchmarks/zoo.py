"""How many networks of others go all the way to the engine: written to docs/results/zoo.md.

nice -n 5 python benchmarks/zoo.py --work runs/zoo

Each network has random weights and a process of its own, with limits of time and memory. It is packed as
floats, then binarized, trained for two steps, packed and run again. A line of JSON in --work says how far it
came, so the same command resumes where it was stopped. Needs bnew's extra `bench`, and timm.
"""

from __future__ import annotations

import copy
import fnmatch
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

import bnew
from bnew.deploy.limits import Limits
from bnew.training.machine import Machine, make_fabric
from bnew.training.provenance import environment
from comparing import in_turns, table
from zoo_networks import NETWORKS, build, key, networks, pictures

# The most that a float network may differ from PyTorch, as a share of its largest number.
STRICT = 1e-3
LIMITS = Limits(max_macs=10**11, max_bytes=4 * 10**9)


@dataclass(frozen=True)
class Options:
    """Pack and run networks that are not bnew's."""

    only: str = "*"
    """Names of networks, as a pattern."""
    seconds: int = 120
    """The most processor time for one network; other work may run meanwhile."""
    gigabytes: int = 12
    """The most memory for one network."""
    onnx: bool = True
    """Whether ONNX Runtime is timed too."""
    work: Path = Path("runs/zoo")
    """Where a line per network is kept."""
    out: Path = Path("docs/results/zoo.md")
    """The report."""
    one: str = ""
    """The network of this process; it prints what it finds."""


# ------------------------------------------------------------------------------------- one network


def tensors(results: Any) -> list[np.ndarray[Any, Any]]:
    """All tensors of a network's results, or of the engine's."""
    if isinstance(results, Mapping):
        results = list(results.values())
    if isinstance(results, list | tuple):
        return [array for each in results for array in tensors(each)]
    return [np.asarray(results.detach() if isinstance(results, Tensor) else results, np.float64)]


def difference(found: Any, expected: Any) -> float:
    """The largest difference, as a share of the largest number of each result."""
    pairs = zip(tensors(found), tensors(expected), strict=True)
    return max(float(np.abs(a.reshape(b.shape) - b).max() / np.abs(b).max()) for a, b in pairs)


def packed(model: nn.Module, images: Tensor, path: Path) -> tuple[Any, dict[str, float]]:
    """The packed network, and how far it is from PyTorch; PyTorch in float32 from float64."""
    import bnew_engine

    bnew.pack(model, images, path)
    engine = bnew_engine.load(path, max_macs=LIMITS.max_macs, max_bytes=LIMITS.max_bytes)
    with torch.no_grad():
        single = model(images.clone())
        double = copy.deepcopy(model).double()(images.double())
    found = engine(images.numpy())
    return engine, {
        "difference": difference(found, single),
        "from float64": difference(found, double),
        "PyTorch from float64": difference(single, double),
    }


def milliseconds(run: Any) -> float:
    """The median of a few calls."""
    return 1e3 * statistics.median(in_turns({"it": run}, 3, 0.1)["it"])


def trained(model: nn.Module, images: Tensor) -> nn.Module:
    """Binarized, trained for two steps by BNEW, and frozen."""
    model = bnew.binarize(model)
    method = bnew.methods.BNEW(bnew.binary_parameters(model), 2)
    optimizer = torch.optim.Adam(method.param_groups(model, lr=1e-3))
    method.attach(optimizer)
    model.train()
    for _ in range(2):
        results = model(images)
        results = list(results.values()) if isinstance(results, Mapping) else [results]
        results = [each for x in results for each in (x if isinstance(x, list | tuple) else [x])]
        torch.stack([each.float().square().mean() for each in results]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    method.freeze(warn=False)
    bnew.recalibrate(model, [images])
    return model.eval()


def judged(model: nn.Module, images: Tensor, path: Path, numbers: Mapping[str, float]) -> str:
    """Why the packed binary network is not the network; "" if it is, up to signs that rounding turns."""
    near = max(STRICT, 10 * numbers["PyTorch from float64"])
    if min(numbers["difference"], numbers["from float64"]) <= near:
        return ""
    with torch.no_grad():
        results = model(images[:1])
    if not isinstance(results, Tensor) or results.dim() != 2:
        return "it differs from PyTorch"
    labels = torch.zeros(len(images), dtype=torch.long)
    check = bnew.verify(path, model, [(images, labels)], limits=LIMITS)
    return "; ".join(check.problems)


def examine(group: str, name: str, side: int, onnx: bool) -> Iterator[dict[str, Any]]:
    """What is found about a network, part by part."""
    yield {"at": "build"}
    model = build(group, name)
    images = pictures(side)
    if any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) for m in model.modules()):
        bnew.recalibrate(model, [images])
    with tempfile.TemporaryDirectory() as folder:
        yield {"at": "pack float", "side": side}
        path = Path(folder) / "float.bnew"
        engine, numbers = packed(model, images[:2], path)
        yield {"float": numbers, "at": "time float"}
        one = images[:1].numpy()
        yield {"float ms": milliseconds(lambda: engine(one))}
        yield {"at": "binarize"}
        binary = trained(copy.deepcopy(model), images)
        total = bnew.summary(binary, (3, side, side)).total
        yield {"share": total.binary_macs / (total.binary_macs + total.real_macs), "at": "pack binary"}
        path = Path(folder) / "binary.bnew"
        engine, numbers = packed(binary, images[:2], path)
        yield {"binary": numbers, "at": "verify"}
        yield {"binary ms": milliseconds(lambda: engine(one)), "wrong": judged(binary, images, path, numbers)}
        yield {"at": "done"}
        if onnx:
            yield {"onnx ms": with_onnx(model, images[:1], Path(folder))}


def with_onnx(model: nn.Module, image: Tensor, folder: Path) -> float:
    """Milliseconds of the float network in ONNX Runtime; raises what its export raises."""
    from engine import with_onnxruntime

    path = folder / "float.onnx"
    torch.onnx.export(model, (image,), path, dynamo=True, external_data=False, verbose=False)
    return milliseconds(with_onnxruntime(path, image))


def alone(options: Options) -> None:
    """Examine one network and print each part as a line of JSON."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (options.seconds,) * 2)
    resource.setrlimit(resource.RLIMIT_AS, (options.gigabytes * 10**9,) * 2)
    (network,) = (each for each in networks() if key(*each[:2]) == options.one)
    out, at = os.dup(1), ""
    os.dup2(2, 1)  # what exporters print is not for the caller
    try:
        for found in examine(*network, options.onnx):
            at = found.get("at", at)
            os.write(out, (json.dumps(found) + "\n").encode())
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if at != "done":
            os.write(out, (json.dumps({"failed": reason}) + "\n").encode())


# ------------------------------------------------------------------------------------- all of them


def examined(options: Options, name: str) -> dict[str, Any]:
    """What a process of its own found about a network."""
    limits = ["--gigabytes", str(options.gigabytes), "--seconds", str(options.seconds)]
    command = [sys.executable, __file__, "--one", name, *limits]
    command += [] if options.onnx else ["--no-onnx"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.DEVNULL, env=environ, check=False)
        output.seek(0)
        found: dict[str, Any] = {"name": name}
        for line in output.read().splitlines():
            found |= json.loads(line)
    if found.get("at") != "done" and "failed" not in found:
        late = -done.returncode in (signal.SIGXCPU, signal.SIGKILL)
        found["failed"] = (
            f"more than {options.seconds} s" if late else f"the process died ({done.returncode})"
        )
    return found | {"seconds": round(time.perf_counter() - begun)}


def reason(found: Mapping[str, Any]) -> str:
    """Why a network does not go all the way; "" if it does."""
    if found.get("failed"):
        return f"{found['at']}: {found['failed']}"
    if found["float"]["difference"] > max(STRICT, 10 * found["float"]["PyTorch from float64"]):
        return "pack float: it differs from PyTorch"
    return f"pack binary: {found['wrong']}" if found["wrong"] else ""


def section(group: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A group's table."""

    def number(found: Mapping[str, Any], *path: str, form: str = ".2f") -> str:
        value: Any = found
        for each in path:
            value = value.get(each, {})
        return "" if value == {} else format(value, form)

    header = ("", "side", "float differs", "binary MACs", "binary ms", "float ms", "ONNX Runtime ms", "fails")
    lines = [
        (
            found["name"].removeprefix("timm/"),
            str(found.get("side", "")),
            number(found, "float", "difference", form=".0e"),
            number(found, "share", form=".0%"),
            *(number(found, what) for what in ("binary ms", "float ms", "onnx ms")),
            reason(found).replace("|", "\\|"),
        )
        for found in rows
    ]
    good = sum(not reason(found) for found in rows)
    listed = sum(each == group for each, _, _ in networks())
    return f"## {group}: {good} of {len(rows)} examined, of {listed} listed\n\n{table(header, lines)}\n\n"


def report(options: Options, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The page."""
    machine = environment(make_fabric(Machine(device="cpu")))
    sections = []
    for group in NETWORKS:
        of = [rows[key(g, name)] for g, name, _ in networks() if g == group and key(g, name) in rows]
        sections += [section(group, of)] if of else []
    return f"""# Networks of others, from PyTorch to the engine

Written by `python benchmarks/zoo.py`, for those networks of `zoo_networks.py` that were examined.

{machine["cpu"]}, {machine["cores"]} cores, {machine["cpu_capability"]}; torch {machine["torch"]}; commit \
{machine["commit"]}.

Random weights; {options.seconds} s of processor time and {options.gigabytes} GB for each. A network goes all
the way if it is packed and run as floats, and also after `bnew.binarize` and two steps of BNEW. *Float
differs*: the largest difference to PyTorch, as a share of the largest number of the result; at most
{STRICT:g}. The binary network may differ by signs that rounding turns: then `bnew.verify` judges it. *Binary
MACs*: their share among the multiply-accumulates. Milliseconds: one image, one thread, of the binary and of
the float network. Other work may have run meanwhile, more in some minutes than in others: they show orders of
magnitude, and are no comparison. `bnew_engine.load` was given `max_macs={LIMITS.max_macs:.0e}` and
`max_bytes={LIMITS.max_bytes:.0e}`.

{"".join(sections)}"""


def main(options: Options) -> None:
    if options.one:
        alone(options)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "results.jsonl"
    rows = {}
    if kept.exists():
        rows = {(found := json.loads(line))["name"]: found for line in kept.read_text().splitlines()}
    names = [key(group, name) for group, name, _ in networks()]
    for name in fnmatch.filter(names, options.only):
        if name not in rows:
            rows[name] = examined(options, name)
            with kept.open("a") as file:
                file.write(json.dumps(rows[name]) + "\n")
            print(name, rows[name]["seconds"], "s", reason(rows[name]) or "all the way", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(report(options, rows))


if __name__ == "__main__":
    main(tyro.cli(Options))
