"""Damaged, foreign and hostile files: each is refused with one sentence that says what is wrong, or runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pytest
from bnew_engine import EngineError, load
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import Network, file_bytes, header_and_body, quarters, sealed, signs

NOT_ONE = "it is not a packed model, or is cut short: pack the run again"


def test_thousands_of_damaged_files(tmp_path: Path) -> None:
    """Truncations, every field mutated, random bytes: in a process of its own, where a crash is seen."""
    done = subprocess.run(
        [sys.executable, mutations.__file__, tmp_path, "1"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    counts = {line["kind"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert "ran" not in counts["truncations"]
    assert counts["truncations"]["refused"] > 400
    assert counts["field_mutations"]["refused"] > 3000
    assert counts["byte_mutations"]["refused"] > 1000


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 2**16), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=3
    )
)
@example([(8, b"[" * 4, 0)])
def test_bytes_put_anywhere(tmp_path: Path, edits: list[tuple[int, bytes, int]]) -> None:
    data = mutations.victim().bytes()
    for at, new, taken in edits:
        at %= len(data)
        data = data[:at] + new + data[at + taken :]
    (tmp_path / "m.bnew").write_bytes(data)
    mutations.attempt(tmp_path / "m.bnew", np.zeros((1, 3, 8, 7), np.float32))


def refused(path: Path) -> str:
    """What load() says of a file, after its name."""
    with pytest.raises(EngineError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def simple() -> Network:
    """Bits, a binary convolution, and a real one with all its steps."""
    random = np.random.default_rng(0)
    network = Network((4, 5, 6))
    then = [{"scale": network.tensor(quarters(random, 8))}, {"clamp": [0, None]}]
    x = network.conv(
        network.bits("input"), signs(random, 8, 4, 3, 3), binary=True, padding=[1] * 4, then=then
    )
    network.conv(x, quarters(random, 2, 8, 1, 1), name="last")
    return network


# -------------------------------------------------------------------------------------- container


def test_what_is_no_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == "could not be opened: No such file or directory"
    assert refused(tmp_path) == "is not a file"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "is not a file"
    (tmp_path / "empty").touch()
    assert refused(tmp_path / "empty") == NOT_ONE
    (tmp_path / "zip").write_bytes(b"PK\3\4" + bytes(1000))
    assert refused(tmp_path / "zip") == NOT_ONE
    with pytest.raises(EngineError, match="is no path: it has a zero in it"):
        load(tmp_path / "m\0.bnew")
    with pytest.raises(EngineError, match="is no path: it has half of a character in it"):
        load("\ud800.bnew")


@pytest.mark.parametrize("wrong", [None, 3, 2.5, ["m.bnew"], {"m.bnew"}, object])
def test_what_is_no_path(wrong: Any) -> None:
    with pytest.raises(EngineError, match=r"but must be a str or an os.PathLike, or the content of a packed"):
        load(wrong)


def test_names_of_files_need_not_be_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.bnew"))
    with pytest.raises(EngineError) as caught:
        load(path)
    assert str(caught.value) == f"{tmp_path}/\\xff\\xfe.bnew: could not be opened: No such file or directory"
    path.write_bytes(simple().bytes())
    assert load(path).input_shape == load(str(path)).input_shape == (4, 5, 6)


def test_the_content_of_a_file(tmp_path: Path) -> None:
    content = simple().bytes()
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 6)).astype(np.float32)
    expected = load(simple().write(tmp_path / "m.bnew"))(x)
    for kind in (bytes, bytearray, memoryview):
        np.testing.assert_array_equal(load(kind(content))(x), expected)
    # The name of a file, a part of one, nothing.
    for wrong in (os.fsencode(tmp_path / "m.bnew"), b"m.bnew", content[:100], b""):
        with pytest.raises(EngineError) as caught:
            load(wrong)
        assert str(caught.value) == (
            f"the {len(wrong)} bytes given are not the content of a packed file, or it is cut short: give "
            "all of it, or the file's name as a str or an os.PathLike"
        )
    with pytest.raises(EngineError, match=r"^it goes on behind its last tensor, or ends before"):
        load(content + bytes(4))


# --------------------------------------------------------------------------------------- checksums


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """In tensors, graph, header and length alike; a file without a checksum loads as before."""
    content = sealed(*header_and_body(simple().graph, simple().tensors))
    load(content)
    load(simple().bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for at in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            with pytest.raises(EngineError) as caught:
                load(damaged)
            assert str(caught.value).isprintable()
            if at >= start:
                assert str(caught.value) == (
                    "its bytes do not have the checksum that its header says: it is damaged: copy it again, "
                    "or pack the run again"
                )
    (tmp_path / "m.bnew").write_bytes(damaged)
    assert "checksum" in refused(tmp_path / "m.bnew")


@pytest.mark.parametrize("digits", ["", "0" * 7, "0" * 9, "ABCDEF01", "x" * 8, 3, None])
def test_checksums_that_are_none(digits: Any) -> None:
    header, body = header_and_body(simple().graph, simple().tensors)
    header["__metadata__"]["crc32"] = digits
    with pytest.raises(EngineError, match="the checksum in its header is not"):
        load(file_bytes(header, body))


def with_header(path: Path, **changes: Any) -> Path:
    """The simple file with fields of its header replaced; None takes one out."""
    header, body = header_and_body(simple().graph, simple().tensors)
    for name, value in changes.items():
        header[name] = value
        if value is None:
            del header[name]
    path.write_bytes(file_bytes(header, body))
    return path


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, f"its header has no '__metadata__': {NOT_ONE}"),
        ({"version": "1"}, f"its header has no 'format' ({NOT_ONE})"),
        ({"format": "pt"}, "its format is not 'bnew': it is not a packed model"),
        (
            {"format": "bnew", "version": "2"},
            "it is of version '2', and this engine reads version 1: get a newer engine",
        ),
        ({"format": "bnew", "version": 1}, "'version' in its header is not a string"),
        ({"format": "bnew", "version": "1"}, f"its header has no 'graph' ({NOT_ONE})"),
        (
            {"format": "bnew", "version": "1", "graph": "{}", "more": "1"},
            "its header has 'more' in '__metadata__', which is not known",
        ),
        (
            {"format": "bnew", "version": "1", "graph": "{"},
            "its JSON has no name where one must be at character 1",
        ),
        ({"format": "bnew", "version": "1", "graph": "[]"}, "its graph is not an object"),
    ],
)
def test_metadata(tmp_path: Path, metadata: Any, message: str) -> None:
    assert refused(with_header(tmp_path / "m.bnew", __metadata__=metadata)) == message


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F64"}, "tensor 't0' has dtype 'F64': only U32, F32 and F16 are known"),
        ({"dtype": 3}, "tensor 't0', dtype is not a string"),
        ({"shape": [9]}, f"tensor 't0' has another size than its shape says: {NOT_ONE}"),
        ({"shape": [0]}, "tensor 't0', a size must be a whole number from 1 to 1099511627776"),
        ({"shape": [2**40, 2**40]}, "tensor 't0' is larger than its file"),
        ({"shape": [2**31] * 9}, "tensor 't0' is larger than its file"),
        ({"data_offsets": [0, 28]}, f"tensor 't0' has another size than its shape says: {NOT_ONE}"),
        ({"data_offsets": [4, 36]}, f"its tensors leave gaps or overlap: {NOT_ONE}"),
        ({"data_offsets": [32, 0]}, "tensor 't0', data_offsets must be a whole number from 32 to 160"),
        ({"data_offsets": [0, 2**63]}, "tensor 't0', data_offsets must be a whole number from 0 to 160"),
        ({"data_offsets": [0]}, "tensor 't0' must have two data_offsets"),
        ({"more": 1}, "tensor 't0' must have dtype, shape and data_offsets, and nothing else"),
    ],
)
def test_tensors(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    right = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
    assert refused(with_header(tmp_path / "m.bnew", t0=right | entry)) == message


def test_where_tensors_end(tmp_path: Path) -> None:
    header, body = header_and_body(simple().graph, simple().tensors)
    path = tmp_path / "m.bnew"
    for more in (b"\0", bytes(8)):
        path.write_bytes(file_bytes(header, body + more))
        assert refused(path) == f"it goes on behind its last tensor, or ends before: {NOT_ONE}"
    path.write_bytes(file_bytes(header, body[:-1]))
    assert "must be a whole number from" in refused(path)
    for length in (len(file_bytes(header, body)) - 7, 2**63, 2**64 - 1):
        path.write_bytes(length.to_bytes(8, "little") + file_bytes(header, body)[8:])
        assert refused(path) == NOT_ONE
    text = b" " * (17 << 20)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert refused(path) == NOT_ONE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "an unknown value at character 0"),
        (b"{", "no name where one must be at character 1"),
        (b'{"a": 1', "an object without an end at character 7"),
        (b'{"a": [1, 2', "an array without an end at character 11"),
        (b'{"a" 1}', "a name without a value at character 5"),
        (b'{"a": "b', "a string without an end at character 8"),
        (b'{"a": 1, "a": 2}', "the name 'a' twice in an object at character 12"),
        (b'{"a": 01}', "an object without an end at character 7"),
        (b'{"a": 1.}', "a number without digits after its point at character 8"),
        (b'{"a": 1e}', "a number without an exponent after its e at character 8"),
        (b'{"a": 1e999}', "a number that is too large at character 11"),
        (b'{"a": -}', "an unknown value at character 7"),
        (b'{"a": NaN}', "an unknown value at character 6"),
        (b'{"a": Infinity}', "an unknown value at character 6"),
        (b'{"a": nul}', "an unknown word at character 6"),
        (b'{"a": "\\x"}', "an unknown escape at character 9"),
        (b'{"a": "\\u12g4"}', "a broken escape at character 9"),
        (b'{"a": "\\ud800"}', "half a surrogate pair at character 13"),
        (b'{"a": "\\udc00"}', "half a surrogate pair at character 13"),
        (b'{"a": "\\ud800\\u0041"}', "half a surrogate pair at character 19"),
        (b'{"a": "\n"}', "a control character in a string at character 8"),
        (b"[" * 40 + b"]" * 40, "too deep a nesting at character 33"),
        (b"{} {}", "more after its end at character 3"),
        *(
            (b'{"a": "' + wrong + b'"}', f"a string that is not UTF-8 at character {8 + len(wrong)}")
            for wrong in (
                b"\x80",
                b"\xc3",
                b"\xc0\x80",
                b"\xe0\x80\x80",
                b"\xed\xa0\x80",
                b"\xf4\x90\x80\x80",
                b"\xff",
            )
        ),
    ],
)
def test_json(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "m.bnew"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert refused(path) == f"its JSON has {message}"


def test_names_of_every_alphabet(tmp_path: Path) -> None:
    network = simple()
    node = network.graph["nodes"][-1]
    node["name"] = node["output"] = network.graph["output"] = 'é\u3042𝄞"\\\n\0'
    network.graph["nodes"].append(
        {"op": "adaptive_avg_pool", "name": "é", "input": node["name"], "size": [1, 1], "output": "é"}
    )
    network.graph |= {"output": "é", "classes": ["日本", "\U0010ffff"]}
    header, body = header_and_body(network.graph, network.tensors)
    for text in (json.dumps(header), json.dumps(header, ensure_ascii=False)):
        data = text.encode()
        (tmp_path / "m.bnew").write_bytes(len(data).to_bytes(8, "little") + data + body)
        model = load(tmp_path / "m.bnew")
        assert model.classes == ("日本", "\U0010ffff")
        assert node["name"] in model.values(np.zeros((1, 4, 5, 6), np.float32))


# ------------------------------------------------------------------------------------------ graph


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ((), {"more": 1}, "its graph has 'more', which is not known"),
        ((), {"output": "n9"}, "its graph, 'output' names 'n9', which no node before gives"),
        ((), {"output": "n0.bits"}, "its graph, 'output' is bits, and must be real"),
        ((), {"classes": ["a"]}, "its graph has 1 classes, but its output is (2, 5, 6)"),
        ((), {"nodes": []}, "its graph, 'output' names 'last', which no node before gives"),
        (("input",), {"shape": [4, 5]}, "its graph's input, 'shape' must have 3 numbers"),
        (("input",), {"shape": [2**20] * 3}, "its graph's input: (1048576, 1048576, 1048576) is too large"),
        (
            ("input",),
            {"shape": [2**21, 1, 1]},
            "its graph's input, 'shape' must be a whole number from 1 to 1048576",
        ),
        (("input",), {"resize": [1, 1]}, "its graph's input has a 'resize' that is smaller than its 'shape'"),
        (("input",), {"resize": [9]}, "its graph's input, 'resize' must have 2 numbers"),
        (("input",), {"size": [4, 5]}, "its graph's input, 'size' does not fit (4, 5, 6)"),
        (("input",), {"size": []}, "its graph's input, 'size' must have 1 to 3 numbers"),
        (("input",), {"size": [4, 5, 6, 1]}, "its graph's input, 'size' must have 1 to 3 numbers"),
        (
            ("input",),
            {"size": [4, 5, 6], "any_size": True},
            "its graph's input, 'size' does not fit (4, 5, 6)",
        ),
        (("input",), {"mean": [0] * 4}, "its graph's input has only one of 'mean' and 'std'"),
        (
            ("input",),
            {"mean": [0] * 4, "std": [1, 0, 1, 1]},
            "its graph's input has an 'std' that is not above 0",
        ),
        (
            ("input",),
            {"mean": [0] * 4, "std": [1e-40] * 4},
            "its graph's input has a 'mean' and an 'std' that make too large numbers of bytes",
        ),
        (("nodes", 0), {"op": "lstm"}, "node 0 ('n0') has op 'lstm', which is not known"),
        (("nodes", 0), {"input": "n0"}, "node 0 ('n0'), 'input' names 'n0', which no node before gives"),
        (("nodes", 0), {"input": "last"}, "node 0 ('n0'), 'input' names 'last', which no node before gives"),
        (("nodes", 1), {"input": "last"}, "node 1 ('n1'), 'input' names 'last', which no node before gives"),
        (("nodes", 1), {"input": "input"}, "node 1 ('n1') takes bits, and 'input' is real"),
        (("nodes", 2), {"input": "n0.bits"}, "node 2 ('last') takes a real value, and 'n0.bits' is bits"),
        (("nodes", 1), {"output": "input"}, "node 1 ('n1') gives 'input', a name that is taken"),
        (("nodes", 1), {"output": ""}, "node 1 ('n1') gives a value without a name"),
        (("nodes", 0), {"sign": None}, "node 0 ('n0'), 'sign' is not an object"),
        (("nodes", 0, "sign"), {"scale": "t9"}, "it has no tensor 't9'"),
        (("nodes", 1), {"weight": "t9"}, "it has no tensor 't9'"),
        (("nodes", 1), {"weight": "t2"}, "node 1 ('n1'), 'weight' has another shape than the node says"),
        (("nodes", 1), {"channels": [4, 9]}, "node 1 ('n1'), 'weight' has another shape than the node says"),
        (("nodes", 1), {"channels": [5, 8]}, "node 1 ('n1') takes 5 channels, but its input has 4"),
        (("nodes", 1), {"groups": 3}, "node 1 ('n1') has channels that its groups do not divide"),
        (("nodes", 1), {"kernel": [9, 9]}, "node 1 ('n1') has a kernel larger than its padded input"),
        (
            ("nodes", 1),
            {"kernel": [4097, 1]},
            "node 1 ('n1'), 'kernel' must be a whole number from 1 to 4096",
        ),
        (
            ("nodes", 1),
            {"padding": [4096] * 4, "kernel": [4096] * 2},
            "node 1 ('n1') has too large a kernel for exact counts",
        ),
        (
            ("nodes", 1),
            {"channels": [4, 2**20], "padding": [4096] * 4, "kernel": [4096] * 2},
            "node 1 ('n1') has too large a kernel",
        ),
        (("nodes", 1), {"stride": [0, 1]}, "node 1 ('n1'), 'stride' must be a whole number from 1 to 4096"),
        (
            ("nodes", 1),
            {"then": [{"scale": "t0", "shift": "t0"}]},
            "node 1 ('n1'), a step of 'then' must have one name",
        ),
        (("nodes", 1), {"then": [{"scale": "t2"}]}, "node 1 ('n1'), step 'scale' must have 8 numbers, or 1"),
        (("nodes", 1), {"then": [{"sinh": {}}]}, "node 1 ('n1') has a step 'sinh', which is not known"),
        (
            ("nodes", 1),
            {"then": [{"add": "input"}, {"add": "n1"}]},
            "node 1 ('n1'), step 'add' names 'n1', which no node before gives",
        ),
        (
            ("nodes", 2),
            {"then": [{"add": "input"}]},
            "node 2 ('last'), step 'add': 'input' is (4, 5, 6), which does not fit (2, 5, 6)",
        ),
        (
            ("nodes", 1),
            {"then": [{"add": "n0.bits"}]},
            "node 1 ('n1'), step 'add': 'n0.bits' is bits, which does not fit (8, 5, 6)",
        ),
        (("nodes", 1), {"then": [{"clamp": [0]}]}, "node 1 ('n1'), step 'clamp' must have two bounds"),
        (("nodes", 1), {"more": 1}, "node 1 ('n1') has 'more', which is not known"),
    ],
)
def test_graphs(tmp_path: Path, place: tuple[Any, ...], change: dict[str, Any], message: str) -> None:
    network = simple()
    target = network.graph
    for key in place:
        target = target[key]
    target |= change
    assert refused(network.write(tmp_path / "m.bnew")) == message


def test_nodes_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "m.bnew"
    pool: dict[str, Any] = {"kernel": [3, 3], "stride": [2, 2], "padding": [1] * 4, "dilation": [1, 1]}
    for op, fields, message in [
        ("max_pool", pool | {"size": [4, 3]}, "node 3 ('n3') has a window without a place in the image"),
        (
            "max_pool",
            pool | {"size": [3, 3], "padding": [3, 0, 0, 0]},
            "node 3 ('n3') has a window without a place in the image",
        ),
        # The first and the last window have places, those between do not.
        (
            "max_pool",
            pool
            | {
                "kernel": [2, 2],
                "stride": [1, 1],
                "dilation": [8, 1],
                "padding": [8, 0, 0, 0],
                "size": [9, 3],
            },
            "node 3 ('n3') has a window without a place in the image",
        ),
        (
            "avg_pool",
            {key: pool[key] for key in ("kernel", "stride", "padding")} | {"size": [1, 1]},
            "node 3 ('n3') has no 'count_padding'",
        ),
        (
            "adaptive_avg_pool",
            {"size": [0, 1]},
            "node 3 ('n3'), 'size' must be a whole number from 1 to 1048576",
        ),
        ("layer_norm", {}, "node 3 ('n3') has no 'eps'"),
        ("layer_norm", {"eps": 0}, "node 3 ('n3'), 'eps' must be above 0"),
        ("layer_norm", {"eps": 1e-300}, "node 3 ('n3'), 'eps' must be above 0"),
        ("rms_norm", {"eps": 0}, "node 3 ('n3'), 'eps' must be above 0"),
        ("l2_norm", {"eps": -1}, "node 3 ('n3'), 'eps' must be above 0"),
        (
            "group_norm",
            {"eps": 1, "groups": 0},
            "node 3 ('n3'), 'groups' must be a whole number from 1 to 1048576",
        ),
        (
            "group_norm",
            {"eps": 1, "groups": 1024},
            "node 3 ('n3'), 'groups' must divide the number of channels, 2",
        ),
        ("resize_nearest", {"size": [2, 2]}, "node 3 ('n3') has no 'scale'"),
        (
            "resize_nearest",
            {"size": [2, 2], "scale": [1, -0.5]},
            "node 3 ('n3'), 'scale' must be above 0",
        ),
        (
            "resize_nearest",
            {"size": [2, 2], "scale": [1]},
            "node 3 ('n3'), 'scale' must have 2 numbers",
        ),
        (
            "identity",
            {"then": [{"gelu": {"approximate": "tanh"}}]},
            "node 3 ('n3'), step 'gelu' takes nothing",
        ),
        ("identity", {"real": False}, "node 3 ('n3') has neither 'output' nor 'sign'"),
        ("softmax", {"kernel": [1, 1]}, "node 3 ('n3') has 'kernel', which is not known"),
    ]:
        network = simple()
        network.node(op, "last", **fields)
        assert refused(network.write(path)) == message
    network = simple()
    network.node("concat", ["input", network.node("adaptive_avg_pool", "last", size=[1, 1])])
    assert refused(network.write(path)) == "node 4 ('n4') joins values of different sizes"
    network = simple()
    network.node("concat", [])
    assert refused(network.write(path)) == "node 3 ('n3'), 'inputs' is empty"
    network = simple()
    network.tensors["t1"][0, -1] |= 1 << 31
    assert refused(network.write(path)) == "node 1 ('n1'), 'weight' has bits set behind its end"
    network = simple()
    network.tensors["t0"] = np.zeros(8, np.uint32)
    assert refused(network.write(path)) == "node 1 ('n1'), step 'scale' must be real, not U32"
    network = simple()
    network.tensors["t1"] = np.zeros(network.tensors["t1"].shape, np.float32)
    assert refused(network.write(path)) == "node 1 ('n1'), 'weight' must be U32, the words of binary weights"


# ------------------------------------------------------------------------------------- messages


HOSTILE = "\x1b[2J\r\n\x07\x7f\x9b\u061c\u200f\u2028\u202e\u2066é𝄞" + "x" * 10_000


@pytest.mark.parametrize(
    "place", ["node", "value", "op", "step", "field", "tensor", "dtype", "version", "key"]
)
def test_names_in_messages_are_printable(place: str, tmp_path: Path) -> None:
    network = simple()
    last = network.graph["nodes"][-1]
    header, body = header_and_body(network.graph, network.tensors)
    changes = {
        "node": {"name": HOSTILE, "op": "x"},
        "value": {"input": HOSTILE},
        "op": {"op": HOSTILE},
        "step": {"then": [{HOSTILE: 1}]},
        "field": {HOSTILE: 1},
        "tensor": {"weight": HOSTILE},
    }
    last |= changes.get(place, {})
    header["__metadata__"]["graph"] = json.dumps(network.graph)
    if place == "dtype":
        header["t0"]["dtype"] = HOSTILE
    if place == "version":
        header["__metadata__"]["version"] = HOSTILE
    if place == "key":
        header["__metadata__"][HOSTILE] = "1"
    path = tmp_path / "m\x1b.bnew"
    path.write_bytes(file_bytes(header, body))
    with pytest.raises(EngineError) as caught:
        load(path)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(f"{tmp_path}/m\\x1b.bnew: ")
    shown = "\\x1b[2J\\x0d\\x0a\\x07\\x7f\\u009b\\u061c\\u200f\\u2028\\u202e\\u2066é𝄞xxx"
    assert shown in text
    assert len(text) < 500


def test_names_that_come_twice_are_printable(tmp_path: Path) -> None:
    text = b'{"a\xe2\x80\xae": 1, "a\xe2\x80\xae": 2}'
    path = tmp_path / "m.bnew"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert "the name 'a\\u202e' twice" in refused(path)
