"""From a trained run to a packed file at work: info, verify, predict, bench and the ONNX graph."""

from __future__ import annotations

import builtins
import dataclasses
import html
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import MACHINE, RECIPE, TEACHER, resealed
from packed_reference import Reference
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

import bnew
from bnew import BnewError, create_model, summary
from bnew.data.images import read_image
from bnew.data.in_memory import MemoryDataset
from bnew.deploy import verify as verifying
from bnew.deploy.batches import run_engine
from bnew.deploy.inference import bench, predict
from bnew.deploy.onnx import export_onnx
from bnew.deploy.pack_run import pack_run
from bnew.deploy.verify import Verification, most_disagreements, verify
from bnew.packing.file import PackedFile
from bnew.results.packed import packed_of
from bnew.results.run import Run
from bnew.training.evaluation import load_run
from bnew.training.loop import train
from bnew.training.provenance import cpu_name


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One epoch of digits; all layers are binary, the first and the last too."""
    recipe = RECIPE.replace(model_options={"binary_ends": True, "binary_shortcut": True}, method="ste")
    return train(recipe, tmp_path_factory.mktemp("runs") / "run", MACHINE)


@pytest.fixture(scope="session")
def packed(run: Run) -> Path:
    path = run.path.parent / "model.bnew"
    pack_run(run, path, MACHINE)
    return path


def changed(path: Path, tmp_path: Path, tensor: str, change: Callable[[Any], Any]) -> Path:
    """A copy of the file in which one tensor is another."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:start])[tensor]
    begin, end = (start + offset for offset in entry["data_offsets"])
    array = np.frombuffer(bytes(data[begin:end]), {"U32": "<u4", "F32": "<f4"}[entry["dtype"]])
    data[begin:end] = change(array.copy()).tobytes()
    copy = tmp_path / "changed.bnew"
    copy.write_bytes(resealed(bytes(data)))
    return copy


# -------------------------------------------------------------------------------------------------- info


def test_info_is_what_the_file_is(run: Run, packed: Path) -> None:
    model, data = load_run(run, MACHINE)
    found = PackedFile.read(packed)
    total = summary(model, data.image_size).total
    assert found.tensor_bytes == total.packed_bytes == sum(row.bytes for row in found.nodes)
    assert sum(row.binary_weights for row in found.nodes) == total.binary_parameters
    assert sum(row.real_numbers for row in found.nodes) == total.real_parameters
    assert found.file_bytes == packed.stat().st_size
    assert found.graph["input"]["mean"] == list(data.mean)
    assert tuple(found.graph["classes"]) == data.classes


def test_info_knows_the_shapes(tmp_path: Path) -> None:
    """Those of the oracle, which computes them."""
    path = tmp_path / "model.bnew"
    parts = [torch.nn.Conv2d(3, 4, 3, 2), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(16, 5)]
    bnew.pack(torch.nn.Sequential(*parts), torch.zeros(1, 3, 9, 11), path)
    reference = Reference(path)
    reference(np.zeros((1, 3, 9, 11), np.float32))
    outputs = [node["output"] for node in reference.file.graph["nodes"]]
    shapes = [row.shape for row in PackedFile.read(path).nodes]
    assert shapes == [reference.values[output].shape[1:] for output in outputs]


def test_the_output_may_be_the_input(tmp_path: Path) -> None:
    graph = {"input": {"name": "x", "shape": [3, 4, 5]}, "nodes": [], "output": "x"}
    header = json.dumps({"__metadata__": {"format": "bnew", "version": "1", "graph": json.dumps(graph)}})
    path = tmp_path / "model.bnew"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    assert PackedFile.read(path).output_shape == (3, 4, 5)


def test_info_command(cli: Any, packed: Path) -> None:
    code, out, _ = cli("info", packed)
    assert code == 0
    assert "scale scale shift add" in out
    assert f"{packed.stat().st_size:,} bytes" in out
    assert "binary share" in out


def test_info_shows_names_as_they_are(cli: Any, packed: Path, tmp_path: Path) -> None:
    """Brackets in a name are no markup of the terminal's."""
    data = packed.read_bytes()
    path = tmp_path / "model.bnew"
    path.write_bytes(resealed(data.replace(b'\\"name\\":\\"stem.0\\"', b'\\"name\\":\\"[/one]\\"')))
    code, out, _ = cli("info", path)
    assert code == 0
    assert "[/one]" in out


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is no packed file"),
    "picture": (
        lambda data: b"\x89PNG\r\n\x1a\n" * 100,
        "is no packed file: it is cut short, or something else",
    ),
    "cut": (lambda data: data[:-1], "is damaged, or was cut short"),
    "cut in the header": (lambda data: data[:100], "is no packed file: it is cut short"),
    "longer": (lambda data: data + b"\0", "is damaged"),
    "version": (lambda data: data.replace(b'"version":"1"', b'"version":"2"'), "is of version 2 and this is"),
    "format": (lambda data: data.replace(b'"format":"bnew"', b'"format":"gguf"'), "its format is 'gguf'"),
    "metadata": (
        lambda data: data.replace(b"__metadata__", b"__notadata__"),
        "its header is not that of one",
    ),
    "dtype": (lambda data: data.replace(b'"U32"', b'"X32"'), "is damaged"),
    "graph": (lambda data: data.replace(b'\\"op\\"', b'\\"po\\"'), "is damaged"),
    "output": (lambda data: b'\\"output\\":\\"w'.join(data.rsplit(b'\\"output\\":\\"v', 1)), "is damaged"),
    "name": (lambda data: data.replace(b'\\"stem.0\\"', b"5555555555"), "is damaged"),
    "classes": (lambda data: data.replace(b'[\\"0\\"', b"[55555"), "is damaged"),
    "deep": (lambda data: (200_000).to_bytes(8, "little") + b"[" * 200_000, "its header is not that of one"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files(what: str, packed: Path, tmp_path: Path) -> None:
    spoil, message = BROKEN[what]
    path = tmp_path / "broken.bnew"
    path.write_bytes(spoil(packed.read_bytes()))
    with pytest.raises(BnewError, match=message):
        PackedFile.read(path)
    with pytest.raises(BnewError, match=r"cannot read .*: No such file"):
        PackedFile.read(tmp_path / "nothing.bnew")


def test_a_flipped_bit_is_found(packed: Path, tmp_path: Path) -> None:
    """In the tensors or in the graph, by both readers; a file without a checksum is read as before."""
    data = packed.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    engine: Any = importlib.import_module("bnew_engine") if importlib.util.find_spec("bnew_engine") else None
    path = tmp_path / "flipped.bnew"
    for at in (
        *range(start, len(data), 997),
        len(data) - 1,
        data.index(b'\\"shape\\"') + 14,
        data.index(b"mean"),
    ):
        for bit in (0, 4):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(BnewError, match=r"damaged|is no packed file") as caught:
                PackedFile.read(path)
            assert at < start or "do not have the checksum" in str(caught.value)
            if engine is not None:
                with pytest.raises(engine.EngineError):
                    engine.load(path)
    older = re.sub(rb'"crc32":"\w{8}",', b" " * 19, data, count=1)
    path.write_bytes(older)
    assert PackedFile.read(path).nodes == PackedFile.read(packed).nodes
    path.write_bytes(data.replace(b'"crc32"', b'"crc33"'))
    with pytest.raises(BnewError, match="is damaged, its header has 'crc33'"):
        PackedFile.read(path)
    path.write_bytes(re.sub(rb'"crc32":"\w{8}"', rb'"crc32":"\\ud800  "', data, count=1))
    with pytest.raises(BnewError, match="do not have the checksum"):
        PackedFile.read(path)


def test_info_loads_no_torch(packed: Path) -> None:
    script = f"import sys; from bnew.packing.file import PackedFile; PackedFile.read({str(packed)!r}).nodes; "
    assert subprocess.run([sys.executable, "-c", script + "sys.exit('torch' in sys.modules)"]).returncode == 0


# ------------------------------------------------------------------------------------------------- engine


@pytest.fixture(scope="session")
def engine() -> Any:
    return pytest.importorskip("bnew_engine")


def check(file: Path, run: Run, **changes: Any) -> Verification:
    model, data = load_run(run, MACHINE)
    return verify(file, model, dataclasses.replace(data, **changes))


def test_verify_takes_a_run_a_model_and_batches(engine: Any, run: Run, packed: Path) -> None:
    model, data = load_run(run, MACHINE)
    expected = verify(packed, model, data)
    assert (expected.problems, expected.ok, bool(expected)) == ((), True, True)
    wrong = dataclasses.replace(expected, problems=("a layer is another",))
    assert (wrong.ok, bool(wrong)) == (False, False)
    assert bnew.verify(packed, run) == bnew.verify(str(packed), str(run.path)) == expected
    batches = list(data.batches("test", train=False))
    for of in (model, run):
        assert bnew.verify(packed, of, batches) == expected
    first = bnew.verify(packed, model, batches[:1], sample=3)
    assert (first.images, first.sample) == (len(batches[0][1]), 3)
    assert "the file is the network" in str(expected)
    assert "the file is the network" in repr(expected)
    assert expected._repr_html_().startswith("<pre")


def test_verify_needs_images_and_the_model_itself(engine: Any, run: Run, packed: Path) -> None:
    model, y = bnew.load(run), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(BnewError, match="verify needs images: give data"):
        verify(packed, model)
    with pytest.raises(BnewError, match="data has no batch"):
        verify(packed, model, [])
    for batch, what in ((torch.zeros(2, 1, 8, 8), "a Tensor"), ([torch.zeros(2, 1, 8, 8)], "a list of 1")):
        with pytest.raises(BnewError, match=f"a batch of data is {what}, but must be a pair of tensors"):
            verify(packed, model, [batch])  # type: ignore[list-item]
    with pytest.raises(BnewError, match=r"takes images of \(1, 8, 8\), but those of data are \(3, 8, 8\)"):
        verify(packed, model, [(torch.zeros(2, 3, 8, 8), y)])
    other = create_model("birealnet8", num_classes=3, in_channels=1).eval()
    with pytest.raises(BnewError, match=r"returns \(10,\) numbers for an image and the model \(3,\)"):
        verify(packed, other, [(torch.zeros(2, 1, 8, 8), y)])
    with pytest.raises(BnewError, match=r"in training mode.*: call model\.eval\(\)"):
        verify(packed, model.train(), [(torch.zeros(2, 1, 8, 8), y)])


def test_load_is_the_best_network_in_eval_mode(run: Run, tmp_path: Path) -> None:
    model, data = load_run(run, MACHINE)
    images, _ = next(iter(data.batches("test", train=False)))
    with torch.no_grad():
        expected = model(images)
        for of in (run, run.path, str(run.path), run.path.parent):  # the last is above it
            loaded = bnew.load(of)
            assert not any(module.training for module in loaded.modules())
            assert torch.equal(loaded(images), expected)
    assert all(set(w.flatten().tolist()) == {-1, 1} for w in bnew.binary_parameters(loaded))
    with pytest.raises(BnewError, match="there is no such folder"):
        bnew.load(tmp_path / "none")


def test_what_is_printed_is_short(run: Run, packed: Path, tmp_path: Path) -> None:
    found = PackedFile.read(packed)
    nodes, size = len(found.nodes), packed.stat().st_size
    total = summary(bnew.load(run), (1, 8, 8)).total
    assert repr(found) == str(found) == (
        f"<PackedFile '{packed}': 1×8×8 → 10, {nodes} nodes, {total.binary_parameters:,} binary weights, "
        f"{total.real_parameters:,} real numbers, {size:,} bytes>"
    )  # fmt: skip
    accuracy = f"{100 * run.summary['test_accuracy']:.2f} %"
    assert repr(run) == f"<Run '{run.path}': birealnet8 on digits, ste, test accuracy {accuracy}>"
    assert repr(Run(tmp_path)) == f"<Run '{tmp_path}': no run>"
    (tmp_path / "recipe.json").write_text("{")
    assert repr(Run(tmp_path)) == f"<Run '{tmp_path}': a damaged run>"
    (tmp_path / "recipe.json").write_text((run.path / "recipe.json").read_text())
    assert repr(Run(tmp_path)) == f"<Run '{tmp_path}': birealnet8 on digits, ste, epoch 0 of 1>"
    data = load_run(run, MACHINE)[1]
    assert repr(data) == (
        "<MemoryDataset digits: 1×8×8, 10 classes (0, 1, 2 and 7 more), "
        "images: 1,295 train, 143 val, 359 test>"
    )
    for shown in (found, run, data, summary(bnew.load(run), 8, in_chans=1)):
        assert shown._repr_html_().removesuffix("</pre>").endswith(html.escape(str(shown))), type(shown)


def test_verify(engine: Any, cli: Any, run: Run, packed: Path) -> None:
    code, out, _ = cli("verify", packed, run.path)
    assert code == 0
    assert "the file is the network" in out
    found = check(packed, run)
    assert found.problems == ()
    assert {layer.name for layer in found.layers} >= {"stem.0", "blocks.2.shortcut.1", "classifier.0"}
    assert found.images == 359
    right = round(run.summary["test_accuracy"] * 359)
    assert found.hits == (right, right)
    assert found.results[0].median_difference < 1e-5
    assert 0 < found.unflipped <= found.sample == 16


def test_verify_half(engine: Any, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "half.bnew"
    exact, half = pack_run(run, path, MACHINE), pack_run(run, path, MACHINE, half=True)
    assert half.half > exact.half
    assert half.tensor_bytes == exact.tensor_bytes - 2 * sum(row.real_numbers for row in exact.nodes)
    assert check(path, run).problems == ()


WRONG: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a bit": ("blocks.3.conv.weight", lambda words: words ^ (np.arange(words.size) == 5), "other integers"),
    "a shift": ("blocks.1.conv.input_sign.shift", lambda b: b + 0.1, "where rounding cannot be the reason"),
    "the end": ("classifier.1.scale", lambda s: s * 1.01, "logits: an image without a flipped sign differs"),
    "classes": ("classifier.1.scale", lambda s: -s, "images get another class, more than 1 %"),
}


@pytest.mark.parametrize("what", WRONG)
def test_verify_finds_what_is_wrong(
    what: str, engine: Any, cli: Any, run: Run, packed: Path, tmp_path: Path
) -> None:
    tensor, change, message = WRONG[what]
    file = changed(packed, tmp_path, tensor, change)
    assert any(message in problem for problem in check(file, run).problems)
    code, out, _ = cli("verify", file, run.path)
    assert code == 1
    assert "wrong: " in out


def test_verify_takes_no_nan_for_rounding(
    engine: Any, run: Run, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the logits that are compared strictly, those of the sample of 16 images."""
    compute = run_engine
    monkeypatch.setattr(
        verifying, "run_engine", lambda e, x: compute(e, x) * (torch.nan if len(x) == 16 else 1)
    )
    assert any(
        "differs by nan of the root mean square, more than rounding" in problem
        for problem in check(packed, run).problems
    )


def test_as_many_images_may_get_another_class_as_chance_explains() -> None:
    for images, most in ((1, 1), (200, 6), (10_000, 130)):
        assert most <= most_disagreements(0.01, images) < most + 1


def test_verify_names_the_wrong_run(engine: Any, run: Run, packed: Path, tmp_path: Path) -> None:
    other = create_model("birealnet8", in_channels=1).eval()
    _, data = load_run(run, MACHINE)
    with pytest.raises(BnewError, match="only one of the file and the network has a binary layer"):
        verify(packed, other, data)
    with pytest.raises(BnewError, match="pack the run again"):
        check(packed, run, mean=(0.4,))
    with pytest.raises(BnewError, match="give the run that it was packed from"):
        check(packed, run, classes=("a", "b"))


def test_real_network(engine: Any, tmp_path: Path) -> None:
    """A teacher has no binary layers, and is packed and verified all the same."""
    run = train(TEACHER, tmp_path / "teacher", MACHINE)
    pack_run(run, tmp_path / "model.bnew", MACHINE)
    found = check(tmp_path / "model.bnew", run)
    assert found.problems == ()
    assert found.layers == ()


def test_predict(engine: Any, cli: Any, run: Run, packed: Path, tmp_path: Path) -> None:
    model, data = load_run(run, MACHINE)
    assert isinstance(data, MemoryDataset)
    images = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(images, data.test.images, strict=False):
        Image.fromarray(image[0].numpy()).save(path)
    x = (data.test.images[:3].float() / 255 - data.mean[0]) / data.std[0]
    shares = model(x).softmax(1)
    for prediction, expected in zip(predict(packed, images, top=3), shares, strict=True):
        names, values = zip(*prediction.classes, strict=True)
        assert list(names) == [data.classes[i] for i in expected.argsort(descending=True)[:3]]
        np.testing.assert_allclose(values, expected.sort(descending=True).values[:3].detach(), rtol=1e-3)
    code, out, _ = cli("predict", packed, *images)
    assert code == 0
    assert [line.count("%") for line in out.splitlines()] == [5, 5, 5]


@pytest.mark.parametrize("size", [(37, 64), (64, 37), (16, 99), (401, 17), (16, 16), (5, 3)])
def test_images_are_scaled_and_cropped_as_by_torchvision(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    expected = transforms.center_crop(transforms.resize(Image.open(path), [16]), [16, 16])
    np.testing.assert_array_equal(read_image(path, "RGB", (16, 16)), np.asarray(expected))
    assert read_image(path, "L", (8, 20)).shape == (8, 20, 1)
    np.testing.assert_array_equal(read_image(path, "RGB"), pixels)


def test_a_thin_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "thin.png"
    Image.new("L", (1, 60000)).save(path)
    with pytest.raises(BnewError, match=r"thin\.png' \(it is too thin to be scaled to 224×224"):
        read_image(path, "RGB", (224, 224))


def test_bench(
    engine: Any, cli: Any, packed: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = bench(packed, threads=2, batch=3, seconds=0.001).rows
    assert [(row.threads, row.batch) for row in rows] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert all(row.seconds > 0 for row in rows)
    monkeypatch.setattr(
        "bnew.deploy.inference.bench", lambda *args, **_: bench(packed, 1, 2, args[3], seconds=0)
    )
    code, out, _ = cli("bench", packed)
    assert code == 0
    assert "images a second" in out
    assert engine.isa() in out
    monkeypatch.setattr("bnew.training.run_data.load_data", None)  # a network is all it takes
    file = tmp_path / "model.bnew"
    size = pack_run(run, file, MACHINE).file_bytes
    assert packed_of(run)["bytes"] == size == file.stat().st_size
    assert "seconds_per_image" not in packed_of(run)
    code, out, _ = cli("bench", file, "--run", run.path)
    assert code == 0
    assert "PyTorch" in out
    assert packed_of(run)["seconds_per_image"] > 0
    assert packed_of(run)["cpu"] == cpu_name()


def test_limits_on_the_command_line(engine: Any, cli: Any, packed: Path, run: Run, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.new("RGB", (32, 32)).save(image)
    for words in (("predict", packed, image), ("bench", packed), ("verify", packed, run.path)):
        for option in ("--max-macs", "--max-bytes"):
            code, _, err = cli(*words, option, 1)
            assert code == 2
            assert f"give a larger {option} if you trust it" in err
    code, *_ = cli("predict", packed, image, "--max-macs", 10**12, "--max-bytes", 10**9)
    assert code == 0


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no image": (("predict", "FILE"), "no image was named"),
    "no class": (("predict", "FILE", "nothing.png", "--top", "0"), "top is 0"),
    "missing image": (("predict", "FILE", "nothing.png"), "there is no image 'nothing.png'"),
    "no file": (("bench", "nothing.bnew"), "nothing.bnew"),
    "threads": (("bench", "FILE", "--threads", "-1"), "threads is -1"),
    "no run": (("pack", "nothing", "model.bnew"), "nothing has no recipe.json: there is no such folder"),
    "no run to verify": (("verify", "FILE", "nothing"), "there is no such folder"),
    "run and file swapped": (("pack", "FILE", "nothing"), "that is a file"),
    "pack to a folder": (("pack", "RUN", "."), "could not write .: that is a folder, so name a file in it"),
    "export to a folder": (("export", "RUN", "/tmp"), "could not write /tmp: that is a folder"),
    "predict by a run": (("predict", "RUN", "x.png"), "is a folder, not a packed file: `bnew pack RUN FILE`"),
    "no run to export": (("export", "nothing", "model.onnx"), "there is no such folder"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_end_with_one_sentence(what: str, engine: Any, cli: Any, packed: Path, run: Run) -> None:
    words, message = MISTAKES[what]
    given = {"FILE": str(packed), "RUN": str(run.path)}
    code, _, err = cli(*(given.get(word, word) for word in words))
    assert code == 2
    assert err.startswith("bnew: error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if these were not installed."""
    load = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in modules:
            raise ImportError(f"No module named '{name}'")
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)


def test_missing_engine(cli: Any, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "bnew_engine")
    code, _, err = cli("bench", packed)
    assert code == 2
    assert "not installed (No module named 'bnew_engine'): pip install ./engine" in err


def test_pack_command(cli: Any, run: Run, packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.bnew"
    code, out, _ = cli("pack", run.path, path)
    assert code == 0
    assert path.read_bytes() == packed.read_bytes()
    assert f"{path.stat().st_size:,} bytes" in out
    cli("pack", run.path, path, "--half")
    assert PackedFile.read(path).half


def test_pack_returns_what_info_reads(packed: Path, tmp_path: Path) -> None:
    found = bnew.pack(
        create_model("birealnet8").requires_grad_(False).apply(binarized),
        torch.zeros(1, 3, 8, 8),
        tmp_path / "m",
    )
    assert isinstance(found, PackedFile)
    assert found.nodes == PackedFile.read(tmp_path / "m").nodes


def binarized(module: torch.nn.Module) -> None:
    if isinstance(module, bnew.BinaryConv2d):
        module.weight.copy_(bnew.layers.hard_sign(module.weight))


# --------------------------------------------------------------------------------------------------- ONNX


def test_export(cli: Any, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    code, out, err = cli("export", run.path, path)
    assert code == 0
    assert "gives 100.00 % of 359 test images PyTorch's class" in out
    assert "neither small nor fast" in out
    assert not err
    assert list(tmp_path.iterdir()) == [path]
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {"images": np.zeros((5, 1, 8, 8), np.float32)})
    assert logits.shape == (5, 10)


def test_export_of_something_else(
    cli: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    logits = np.random.default_rng(0).standard_normal((359, 10), np.float32)
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *args: [logits])
    code, _, err = cli("export", run.path, tmp_path / "model.onnx")
    assert code == 2
    assert "the ONNX graph is not the network" in err
    assert list(tmp_path.iterdir()) == []


def test_softmax_is_not_taken_twice(engine: Any, tmp_path: Path) -> None:
    """Where the network ends with a softmax, its results are the shares."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.Softmax(1)).eval()
    bnew.pack(model, torch.zeros(1, 3, 2, 2), tmp_path / "m.bnew", mean=(0.5,) * 3, std=(0.5,) * 3)
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "red.png")
    (found,) = predict(tmp_path / "m.bnew", [tmp_path / "red.png"])
    red = torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    expected = model(red).detach()[0].sort(descending=True).values
    np.testing.assert_allclose([share for _, share in found.classes], expected, rtol=1e-5)


def test_export_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = create_model("birealnet8").eval(), torch.zeros(2, 3, 8, 8)
    with monkeypatch.context() as patched:
        without(patched, "onnxscript")
        with pytest.raises(BnewError, match=r"exporting needs onnx and onnxscript .*bnew\[onnx\]"):
            export_onnx(model, x, tmp_path / "model.onnx")
    pytest.importorskip("onnxscript")
    with pytest.raises(BnewError, match="could not write"):
        export_onnx(model, x, tmp_path / "no folder" / "model.onnx")
    with monkeypatch.context() as patched:
        without(patched, "onnxruntime")
        assert export_onnx(model, x, tmp_path / "model.onnx") is None
    monkeypatch.setattr(torch.nn.Module, "forward", None)
    with pytest.raises(BnewError, match="cannot be exported"):
        export_onnx(torch.nn.Module().eval(), x, tmp_path / "model.onnx")
