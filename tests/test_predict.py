"""predict: what the network's numbers are, and which files it reads."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import bnew
from bnew import BnewError
from bnew.cli import main
from bnew.data.images import read_image
from bnew.deploy.inference import Prediction, load_engine, predict, predictions
from bnew.deploy.limits import REVISION
from bnew.packing.vocabulary import OPERATORS

EngineError = pytest.importorskip("bnew_engine").EngineError
_images = pytest.importorskip("bnew_engine._images")


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(x)
        return y


def ends_with(*parts: nn.Module, outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, outputs), *parts).eval()


def maps(*parts: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 1), *parts).eval()


POOL = nn.AdaptiveAvgPool2d(1)
# name → network, kind, and what the shares are of the network's own output
NETWORKS: dict[str, tuple[nn.Module, str, Any]] = {
    "numbers": (ends_with(), "softmax", lambda y: y.softmax(1)),
    "one number": (ends_with(outputs=1), "logistic", torch.sigmoid),
    "one number far from 0": (
        ends_with(Function(lambda x: x * 1e4), outputs=1), "logistic", torch.sigmoid,
    ),
    "softmax": (ends_with(nn.Softmax(1)), "softmax", lambda y: y),
    "sigmoid": (ends_with(nn.Sigmoid()), "sigmoid", lambda y: y),
    "one sigmoid": (ends_with(nn.Sigmoid(), outputs=1), "sigmoid", lambda y: y),
    "hard sigmoid": (ends_with(nn.Hardsigmoid()), "sigmoid", lambda y: y),
    "sigmoid within limits": (
        ends_with(Function(lambda x: x.sigmoid().clamp(1e-6, 1 - 1e-6))), "sigmoid", lambda y: y,
    ),
    "sigmoid above a limit": (
        ends_with(Function(lambda x: x.sigmoid().clamp_min(1e-7))), "sigmoid", lambda y: y,
    ),
    "softmax below a limit": (
        ends_with(Function(lambda x: x.softmax(1).clamp_max(0.9))), "softmax", lambda y: y,
    ),
    "relu of softmax": (ends_with(nn.Softmax(1), nn.ReLU()), "softmax", lambda y: y),
    "leaky relu of sigmoid": (ends_with(nn.Sigmoid(), nn.LeakyReLU()), "sigmoid", lambda y: y),
    "numbers from 0 to 1": (ends_with(nn.Hardtanh(0, 1)), "sigmoid", lambda y: y),
    "relu6": (ends_with(nn.ReLU6()), "softmax", lambda y: y.softmax(1)),
    "gated": (ends_with(Function(lambda x: x * (2 * x).sigmoid())), "softmax", lambda y: y.softmax(1)),
    "silu": (ends_with(nn.SiLU()), "softmax", lambda y: y.softmax(1)),
    "sigmoid in the middle": (ends_with(nn.Sigmoid(), nn.Linear(3, 3)), "softmax", lambda y: y.softmax(1)),
    "sigmoid, flat": (maps(POOL, nn.Sigmoid(), nn.Flatten()), "sigmoid", lambda y: y),
    "softmax, flat": (maps(POOL, nn.Softmax(1), nn.Flatten()), "softmax", lambda y: y),
    "mean of softmaxes": (maps(nn.Softmax(1), POOL, nn.Flatten()), "softmax", lambda y: y),
    "most of sigmoids": (maps(nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten()), "sigmoid", lambda y: y),
    "sigmoids side by side": (
        ends_with(Function(lambda x: torch.cat([x.sigmoid(), (2 * x).sigmoid()], 1))), "sigmoid", lambda y: y,
    ),
    "four dimensions": (maps(POOL), "softmax", lambda y: y.softmax(1)),
}  # fmt: skip


@pytest.fixture
def red(tmp_path: Path) -> Path:
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def packed(model: nn.Module, path: Path, **options: Any) -> Path:
    bnew.pack(model, torch.zeros(1, 3, 2, 2), path, mean=(0.5,) * 3, std=(0.5,) * 3, **options)
    return path


@pytest.mark.parametrize("what", NETWORKS)
def test_shares_are_what_the_network_means(what: str, red: Path, tmp_path: Path) -> None:
    model, kind, of = NETWORKS[what]
    (found,) = predict(packed(model, tmp_path / "m.bnew"), [red], top=9)
    x = torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    expected = of(model(x).detach()).flatten().numpy()
    shares = dict(found.classes)
    assert found.kind == kind
    result = [shares[f"class {i}"] for i in range(len(expected))]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
    assert ("independent" in str(found)) == (kind != "softmax")


def test_one_output_is_the_probability_of_its_class(red: Path, tmp_path: Path) -> None:
    layer = nn.Linear(12, 1)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, -1.0)
    model = nn.Sequential(nn.Flatten(), layer)
    (found,) = predict(packed(model, tmp_path / "m.bnew", classes=["cat"]), [red])
    said = "cat 26.9 % (an independent probability: the logistic function of the one output)"  # 1 / (1 + e)
    assert str(found) == f"{red}: {said}"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            maps(),
            r"is an image of 3×2×2 numbers, and no classes: call the model that bnew_engine.load returns",
        ),
        (maps(nn.Softmax(1)), "is an image of 3×2×2"),
        (ends_with(nn.Softmax(1), Function(lambda x: 100 * x)), "probabilities that were scaled, shifted"),
        (ends_with(nn.Sigmoid(), Function(lambda x: 1 - x)), "probabilities that were scaled, shifted"),
        (ends_with(nn.Softmax(1), nn.GELU()), "probabilities that were scaled, shifted"),
        (maps(nn.Softmax(1), nn.Flatten()), "probabilities that were .* joined"),
        (
            ends_with(Function(lambda x: torch.cat([x.softmax(1), (2 * x).softmax(1)], 1))),
            "probabilities that were .* joined",
        ),
        *(
            (ends_with(Function(function)), "probabilities that were scaled, shifted, added, multiplied or")
            for function in (
                lambda x: (x.softmax(1) + (2 * x).softmax(1)) / 2,
                lambda x: x.sigmoid() * (1 - x).sigmoid(),
                lambda x: x.sigmoid() * (2 * x).softmax(1) + (1 - x.sigmoid()) * x.softmax(1),
                lambda x: torch.cat([x.sigmoid(), 1 - x.sigmoid()], 1),
                lambda x: torch.cat([x, x.sigmoid()], 1),
            )
        ),
    ],
)
def test_other_outputs_are_refused(model: nn.Module, message: str, red: Path, tmp_path: Path) -> None:
    file = packed(model, tmp_path / "m.bnew")
    with pytest.raises(BnewError, match=message) as caught:
        list(predict(file, [red]))
    assert "\n" not in str(caught.value)


def test_the_file_is_read_once(red: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What replaces it after it was loaded says nothing of the network that runs."""
    file = packed(ends_with(nn.Sigmoid()), tmp_path / "m.bnew")
    (expected,) = predict(file, [red])

    def replaced(path: Path, *options: Any) -> object:
        model = load_engine(path, *options)
        packed(ends_with(nn.Softmax(1)), file)
        return model

    monkeypatch.setattr("bnew.deploy.inference.load_engine", replaced)
    assert list(predict(file, [red])) == [expected]


def test_the_input_itself_is_numbers(tmp_path: Path) -> None:
    file = packed(nn.Sequential(POOL, nn.Identity()), tmp_path / "m.bnew")
    assert load_engine(file).output_kind == "softmax"


# ------------------------------------------------------------------------------------------------- files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return packed(ends_with(), tmp_path / "m.bnew")


def test_a_folder_stands_for_its_images(file: Path, red: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    names = ["b.png", "a/z.JPG", "a/b/c.png", "c/d.bmp"]
    for name in [*names, ".hidden.png", ".cache/e.png"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / "like.png").mkdir()
    found = [prediction.path for prediction in predict(file, [red, folder])]
    assert found == [red, *sorted(folder / name for name in names)]


@pytest.mark.parametrize("mode", _images.MODES)
@pytest.mark.parametrize("size", [(37, 23), (9, 40), (16, 12)])
def test_the_engine_reads_the_same_pixels(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    """It does not share the reader of training, which needs bnew: they must not differ."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    suffix = {"LA": "png", "P": "gif", "PA": "tiff", "RGBA": "webp", "RGBX": "tiff"}.get(mode, "jpg")
    path = tmp_path / f"x.{'png' if mode == '1' else suffix}"
    image = Image.fromarray(pixels)
    (image.convert("L").convert("LA") if mode == "LA" else image.convert("P").convert("PA") if mode == "PA"
     else image.convert(mode)).save(path)  # fmt: skip
    for channels, name in ((1, "L"), (3, "RGB")):
        for resize in ((12, 16), (15, 20)):
            found = _images.read_image(path, (channels, 12, 16), resize)
            np.testing.assert_array_equal(found, read_image(path, name, (12, 16), resize))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_engine_turns_images_alike(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    for suffix in ("png", "jpg", "webp", "tiff"):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(pixels).save(path, exif=exif)
        found = _images.read_image(path, (3, 5, 5), (5, 5))
        np.testing.assert_array_equal(found, read_image(path, "RGB", (5, 5)))


def test_what_only_bnew_reads_is_refused_by_the_engine(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.full((2, 2), 65535, np.uint16)).save(path)
    assert list(predict(file, path))
    with pytest.raises(EngineError, match="save it with 8 bits a channel"):
        load_engine(file).predict(path)


def test_the_engine_predicts_the_same(file: Path, red: Path) -> None:
    (found,) = bnew.predict(str(file), str(red), top=2)
    classes, probabilities = load_engine(file).predict(red, top=2)
    assert found.classes == tuple(zip(classes[0], probabilities[0], strict=True))


def test_an_empty_folder_is_named(file: Path, tmp_path: Path) -> None:
    (tmp_path / "none" / "deeper").mkdir(parents=True)
    with pytest.raises(BnewError, match=r"the folder '.*none' has no images: name image files, or a folder"):
        list(predict(file, [tmp_path / "none"]))


def run(file: Path, *images: Path, **environment: str) -> list[str]:
    """The lines that the command prints, in bytes that are not UTF-8 where a name is not."""
    script = "import sys; from bnew.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", script, "predict", str(file), *map(str, images)]
    done = subprocess.run(command, capture_output=True, env=os.environ | environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().splitlines()


def test_names_that_cannot_be_written(red: Path, tmp_path: Path) -> None:
    """A name of other bytes than UTF-8's; one with controls; a class that stdout cannot spell."""
    file = packed(ends_with(outputs=1), tmp_path / "m.bnew", classes=["été"])
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (b"a\xff.png", b"b\x1b[31m\n.png", "c\u202e.png".encode()):
        Image.new("RGB", (2, 2)).save(os.fsdecode(os.path.join(os.fsencode(folder), name)))
    lines = run(file, folder, PYTHONIOENCODING="utf-8:strict")
    names = [r"a\udcff.png", r"b\x1b[31m\n.png", r"c\u202e.png"]
    assert [line.partition(": ")[0] for line in lines] == [f"{folder}/{name}" for name in names]
    assert all("été" in line for line in lines)
    assert all(r"\xe9t\xe9" in line for line in run(file, red, PYTHONIOENCODING="ascii:strict"))


def test_a_prediction_is_one_line() -> None:
    classes = (("a\x1b[2J\nb", 0.5), ("\u202e<script>|", 0.25))
    text = str(Prediction(Path("x\n.png"), classes))
    assert text == r"x\n.png: a\x1b[2J\nb 50.0 %, \u202e<script>| 25.0 %"


def test_an_image_that_is_broken_does_not_hold_up_the_others(
    red: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes(red.read_bytes())
    (folder / "b.png").write_bytes(red.read_bytes()[:30])
    path = packed(ends_with(), tmp_path / "m.bnew")
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(path), str(folder)])
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert [line.split(":")[0] for line in out.splitlines()] == [str(folder / n) for n in ("a.png", "c.png")]
    assert err.count("b.png") == err.count("\n") == 1
    with pytest.raises(BnewError, match=r"b\.png"):
        list(predict(path, [folder]))


# ------------------------------------------------------------------------------------------------- batches


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven images, and one of them broken."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(7):
        name = folder / ("more" if number > 4 else "") / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (3, 2, 3), np.uint8)).save(name)
    broken = folder / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    return folder


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_a_batch_changes_nothing(file: Path, pictures: Path, batch: int) -> None:
    expected: list[BnewError] = []
    alone = predict(file, pictures, broken=expected)
    errors: list[BnewError] = []
    assert predict(file, pictures, batch=batch, threads=2, broken=errors) == alone
    assert [each.path.name for each in alone] == ["0.png", "1.png", "3.png", "4.png", "5.png", "6.png"]
    assert [str(error) for error in errors] == [str(error) for error in expected]
    assert "2.png" in str(errors[0])


def test_what_was_read_before_a_broken_image_is_predicted(file: Path, pictures: Path) -> None:
    found = predictions(file, pictures, batch=8)
    assert [next(found).path.name for _ in range(2)] == ["0.png", "1.png"]
    with pytest.raises(BnewError, match=r"2\.png"):
        next(found)


def test_predictions_come_batch_by_batch(file: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def read(path: Path, *options: Any) -> Any:
        seen.append(path.name)
        return read_image(path, *options)

    monkeypatch.setattr("bnew.deploy.inference.read_image", read)
    found = predictions(file, pictures, batch=2, broken=[])
    assert next(found).path.name == "0.png"
    assert sorted(seen) == ["0.png", "1.png"]
    assert len(list(found)) == 5


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("pictures/*.png", "0134"),
        ("pictures/[01].png", "01"),
        ("pictures/**/*.png", "013456"),
        ("pictures/**", "013456"),
        ("pict*/more/?.png", "56"),
    ],
)
def test_a_pattern_stands_for_what_fits(
    file: Path, pictures: Path, pattern: str, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    found = predict(file, pattern, broken=[])
    assert [each.path.stem for each in found] == list(names)


def test_a_file_may_be_named_like_a_pattern(file: Path, red: Path, tmp_path: Path) -> None:
    odd = tmp_path / "[0].png"
    odd.write_bytes(red.read_bytes())
    assert [each.path for each in predict(file, odd)] == [odd]
    with pytest.raises(BnewError, match=r"there is no image '\?\.gif', and no file that fits this pattern"):
        predict(file, "?.gif")


def test_json_and_csv(file: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = predict(file, pictures, top=2, broken=[])

    def printed(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(file), str(pictures), "--top", "2", "--batch", "4", *words])
        out, err = capsys.readouterr()
        assert ended.value.code == 2
        assert err.count("2.png") == err.count("\n") == 1
        return out

    assert printed().splitlines() == list(map(str, expected))
    for line, prediction in zip(printed("--json").splitlines(), expected, strict=True):
        found = json.loads(line)
        assert (found["file"], found["kind"]) == (str(prediction.path), "softmax")
        assert [(each["class"], each["probability"]) for each in found["classes"]] == list(prediction.classes)
    rows = list(csv.DictReader(io.StringIO(printed("--csv"))))
    for row, prediction in zip(rows, expected, strict=True):
        assert row["file"] == str(prediction.path)
        for rank in (1, 2):
            name, share = prediction.classes[rank - 1]
            assert (row[f"class_{rank}"], float(row[f"probability_{rank}"])) == (name, share)


def test_a_reader_that_has_enough_is_no_error(file: Path, red: Path) -> None:
    """As in ``bnew predict … | head``."""
    command = f'"{sys.executable}" -m bnew predict "{file}" {" ".join([str(red)] * 40)} | head -n 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_another_input_size_behind_pools(tmp_path: Path) -> None:
    """What the numbers are does not depend on rules for sizes in the file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3), POOL, nn.Flatten()).eval()
    bnew.pack(model, torch.zeros(1, 3, 16, 16), tmp_path / "m.bnew", any_size=True)
    x = torch.randn(1, 3, 20, 25)
    found = load_engine(tmp_path / "m.bnew", input_size=(20, 25)).predict(x.numpy(), 3)
    expected = model(x).softmax(1)[0].sort(descending=True).values.detach().numpy()
    np.testing.assert_allclose(found.probabilities[0], expected, rtol=1e-4)


def test_another_input_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of any size classifies and is timed at the size that is asked for; another file refuses it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), POOL, nn.Flatten()).eval()
    known: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3, "classes": ["a", "b", "c"]}
    for name, any_size in (("any", True), ("one", False)):
        bnew.pack(model, torch.zeros(1, 3, 8, 8), tmp_path / f"{name}.bnew", any_size=any_size, **known)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (found,) = predict(tmp_path / "any.bnew", tmp_path / "x.png", top=3, input_size=(12, 20))
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    shares = model(x).softmax(1)[0]
    assert {name: pytest.approx(share, rel=1e-4) for name, share in found.classes} == {
        name: share.item() for name, share in zip("abc", shares, strict=True)
    }
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(tmp_path / "one.bnew"), str(tmp_path / "x.png"), "--input-size", "12", "20"])
    assert "it runs for images of 8 x 8 only" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["bench", str(tmp_path / "any.bnew"), "--input-size", "12", "20", "--batch", "1"])
    with pytest.raises(SystemExit, match="0"):
        main(["info", str(tmp_path / "any.bnew")])
    assert "3×8×8, or another size, or images of bytes" in capsys.readouterr().out


def test_an_older_build_of_the_engine_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the same version, but not all that packed files need now."""
    import bnew_engine

    monkeypatch.setattr(bnew_engine, "revision", 0, raising=False)
    with pytest.raises(BnewError, match=r"older build .*: pip install --force-reinstall") as said:
        load_engine(file)
    assert "\n" not in str(said.value)
    monkeypatch.delattr(bnew_engine, "revision")  # an engine of before there were revisions
    with pytest.raises(BnewError, match="revision 0"):
        load_engine(file)


def test_the_engine_is_of_the_revision_that_is_needed() -> None:
    """And an operator more or less raises it."""
    import bnew_engine

    assert bnew_engine.revision == REVISION
    assert (len(OPERATORS), REVISION) == (23, 1)
