"""Safetensors files, against bytes written by hand and against the library of that name."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from melllm_jax.convert import safetensors_files
from melllm_jax.errors import Mistake
from tests.support import phi_files
from tests.support.phi_files import NUMBERS, packed, save
from tests.support.runs import small_disk

# Two rows of bfloat16 by their bits: 1, -2, 3.140625; the smallest there is, infinity, -0.
BITS = [[0x3F80, 0xC000, 0x4049], [0x0001, 0x7F80, 0x8000]]
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def entry(start, stop, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def test_a_file_is_read_as_its_bytes_say(tmp_path):
    file = tmp_path / "model.safetensors"
    head = {
        "__metadata__": {"format": "pt"},
        "late": entry(12, 20),  # the header's order is not the file's
        "low": entry(0, 12, "BF16", (2, 3)),
    }
    file.write_bytes(packed(head, struct.pack("<6H", *sum(BITS, [])) + struct.pack("<2f", 0.5, -7)))
    found = safetensors_files.list_tensors(tmp_path)
    assert list(found) == ["late", "low"]
    assert (found["low"].shape, found["low"].kind, found["low"].bytes) == ((2, 3), "BF16", 12)
    low = found["low"].rows()
    assert low.dtype == ml_dtypes.bfloat16
    assert low.view(np.uint16).tolist() == BITS
    assert low[0].astype(np.float32).tolist() == [1.0, -2.0, 3.140625]
    np.testing.assert_array_equal(found["late"].rows(), np.float32([0.5, -7]), strict=True)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("start", "stop"), [(0, 7), (0, 1), (2, 5), (6, 7), (3, 3)])
def test_a_block_of_rows_is_read_alone(tmp_path, number, start, stop):
    values = np.random.default_rng(0).standard_normal((7, 3, 2)).astype(NUMBERS[number])
    save(tmp_path / "model.safetensors", {"before": values[:2], "x": values, "after": values})
    found = safetensors_files.list_tensors(tmp_path)["x"].rows(start, stop)
    assert found.flags.writeable  # memory of its own, not the file's
    np.testing.assert_array_equal(found, values[start:stop], strict=True)


def random_tensors(number):
    rng = np.random.default_rng(1)
    shapes = {"a": (5, 4), "b": (3,), "c": (2, 2, 3), "d": (6, 1)}
    return {n: rng.standard_normal(shape).astype(NUMBERS[number]) for n, shape in shapes.items()}


@pytest.mark.parametrize("number", NUMBERS)
def test_what_the_library_writes_is_read_bit_by_bit(tmp_path, number):
    library = pytest.importorskip("safetensors.numpy")
    values = random_tensors(number)
    library.save_file(values, tmp_path / "model.safetensors", {"format": "pt"})
    found = safetensors_files.list_tensors(tmp_path)
    assert found.keys() == values.keys()
    for name, x in values.items():
        np.testing.assert_array_equal(found[name].rows(), x, strict=True)


def written(folder, values, largest=10**9, step=2, **more):
    """A folder filled by our writer, the last tensor first and blocks of rows from the end."""
    folder.mkdir()
    sizes = {name: (x.dtype, x.shape) for name, x in values.items()}
    with safetensors_files.SafetensorsWriter(folder, sizes, largest=largest, **more) as writer:
        for name, x in reversed(values.items()):
            for start in reversed(range(0, len(x), step)):
                writer.write(name, start, x[start : start + step])
    return folder


@pytest.mark.parametrize("number", NUMBERS)
def test_the_library_reads_what_is_written_in_any_order(tmp_path, number):
    library = pytest.importorskip("safetensors")
    values = random_tensors(number)
    folder = written(tmp_path / "out", values)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    content = (folder / "model.safetensors").read_bytes()
    found = dict(library.deserialize(content))
    assert found.keys() == values.keys()
    for name, x in values.items():
        assert (found[name]["dtype"], found[name]["shape"]) == (NAMES[number], list(x.shape))
        assert bytes(found[name]["data"]) == x.tobytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0  # so that numbers are aligned in memory
    assert json.loads(content[8 : 8 + length])["__metadata__"] == {"format": "pt"}


@pytest.mark.parametrize(
    ("largest", "groups"),
    [
        (164, ["abcd"]),  # 80, 12, 48 and 24 bytes
        (163, ["abc", "d"]),
        (92, ["ab", "cd"]),
        (91, ["a", "bcd"]),
        (60, ["a", "bc", "d"]),  # a is larger than a file may be and has one alone
        (59, ["a", "b", "c", "d"]),
    ],
)
def test_a_large_model_is_parted_into_files_with_an_index(tmp_path, largest, groups):
    values = random_tensors("float32")
    folder = written(tmp_path / "out", values, largest)
    count = len(groups)
    files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    files = files if count > 1 else ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    assert index.exists() == (count > 1)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == files
    for file, group in zip(files, groups, strict=True):
        assert list(safetensors_files.read_header(folder / file)) == list(group)
    if count > 1:
        places = {name: file for file, group in zip(files, groups, strict=True) for name in group}
        tree = {"metadata": {"total_size": 164}, "weight_map": places}
        assert json.loads(index.read_text()) == tree
    found = safetensors_files.list_tensors(folder)
    for name, x in values.items():
        np.testing.assert_array_equal(found[name].rows(), x, strict=True)


def test_files_of_another_name_have_an_index_of_that_name(tmp_path):
    folder = written(tmp_path / "out", random_tensors("float32"), 60, single="adapter.safetensors")
    names = [f"adapter-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(path.name for path in folder.iterdir()) == [
        *names,
        "adapter.safetensors.index.json",
    ]


@pytest.mark.parametrize(
    "rows", [np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float16), np.zeros(4, np.float32)]
)
def test_rows_of_another_kind_are_a_fault_of_ours(tmp_path, rows):
    sizes = {"x": (np.dtype(np.float32), (5, 4))}
    with (
        safetensors_files.SafetensorsWriter(tmp_path, sizes) as writer,
        pytest.raises(ValueError, match="x is float32"),
    ):
        writer.write("x", 0, rows)


def test_a_writer_reserves_its_bytes_at_once(tmp_path):
    size = (np.dtype(np.float32), (64, 1024))  # 256 KiB
    with small_disk(tmp_path / "disk", 128) as disk:
        with pytest.raises(OSError, match="No space left"):
            safetensors_files.SafetensorsWriter(disk, {"x": size})
        (disk / "model.safetensors").unlink()
        with safetensors_files.SafetensorsWriter(disk, {"x": (size[0], (16, 1024))}) as writer:
            assert (disk / "model.safetensors").stat().st_blocks * 512 >= 64 << 10
            writer.write("x", 15, np.ones((1, 1024), np.float32))
        assert safetensors_files.list_tensors(disk)["x"].rows()[:, 0].tolist() == [0.0] * 15 + [1.0]


def test_files_with_an_index_are_one_checkpoint(tmp_path):
    named = phi_files.make(tmp_path, "text in files", "bfloat16")
    found = safetensors_files.list_tensors(tmp_path)
    assert found.keys() == named.keys()
    assert len({x.file for x in found.values()}) == 3
    for name, x in named.items():
        np.testing.assert_array_equal(found[name].rows(), x, strict=True)


def test_a_type_that_we_lack_is_refused_once_it_is_asked_for(tmp_path):
    save(tmp_path / "model.safetensors", {"ids": np.arange(3), "x": np.ones(2, np.float32)})
    found = safetensors_files.list_tensors(tmp_path)
    assert (found["ids"].shape, found["ids"].bytes) == ((3,), 24)
    assert found["x"].rows().tolist() == [1.0, 1.0]
    for ask in (lambda: found["ids"].dtype, found["ids"].rows):
        with pytest.raises(Mistake) as caught:
            ask()
        file = tmp_path / "model.safetensors"
        assert str(caught.value) == f"{file}: ids is I64: must be F32, F16, BF16"


ROOM = bytes(8)
BAD = {
    "empty": (b"", "is cut short or no safetensors: 0 bytes"),
    "cut in the length": (struct.pack("<Q", 60)[:5], "is cut short or no safetensors: 5 bytes"),
    "cut in the header": (packed({"x": entry(0, 8)}, b"")[:30], "is cut short or no safetensors"),
    "a header too long": (
        struct.pack("<Q", 1 << 60) + bytes(64),
        "is cut short or no safetensors: 72 bytes",
    ),
    "cut in the numbers": (packed({"x": entry(0, 8)}, bytes(7)), "x ends at "),
    "no JSON": (packed(b"{x", ROOM), "its header is no safetensors header: JSONDecodeError"),
    "no UTF-8": (
        packed(b'{"\xff": 1}', ROOM),
        "its header is no safetensors header: JSONDecodeError",
    ),
    "a list": (packed([1], ROOM), "its header is no safetensors header"),
    "null": (packed(b"null", ROOM), "its header is no safetensors header"),
    "no object": (packed({"x": 3}, ROOM), "its header is no safetensors header"),
    "no dtype": (
        packed({"x": {"shape": [2], "data_offsets": [0, 8]}}, ROOM),
        "its header is no safetensors header: KeyError('dtype')",
    ),
    "no shape": (
        packed({"x": {"dtype": "F32", "data_offsets": [0, 8]}}, ROOM),
        "its header is no safetensors header: KeyError('shape')",
    ),
    "words for offsets": (packed({"x": entry("0", "8")}, ROOM), "is no safetensors header"),
    "one offset": (
        packed({"x": entry(0, 8) | {"data_offsets": [0]}}, ROOM),
        "its header is no safetensors header",
    ),
    "words for a shape": (packed({"x": entry(0, 8, shape="2")}, ROOM), "is no safetensors header"),
    "an unknown type": (packed({"x": entry(0, 8, "F4")}, ROOM), "x is of the unknown type F4"),
    "too few bytes": (packed({"x": entry(0, 4)}, ROOM), "x does not fill the bytes"),
    "too many bytes": (packed({"x": entry(0, 8, shape=[1])}, ROOM), "x does not fill the bytes"),
    "before the start": (packed({"x": entry(-8, 0)}, ROOM), "x does not fill the bytes"),
    "beyond the end": (packed({"x": entry(0, 8), "y": entry(8, 16)}, ROOM), "is cut short: "),
    "overlapping": (
        packed({"x": entry(0, 8), "y": entry(4, 12)}, bytes(12)),
        "y",
    ),
    "the same twice": (packed({"x": entry(0, 8), "y": entry(0, 8)}, ROOM), "y"),
    "a hole": (packed({"x": entry(0, 8), "y": entry(12, 20)}, bytes(20)), "y"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_not_whole_is_refused_in_one_line(tmp_path, case):
    content, says = BAD[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(Mistake) as caught:
        safetensors_files.list_tensors(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'model.safetensors'}: ")
    assert says in message
    assert len(message.splitlines()) == 1


def test_a_file_cut_while_it_is_read_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    save(file, {"x": np.ones((4, 4), np.float32)})
    found = safetensors_files.list_tensors(tmp_path)["x"]
    with file.open("rb+") as opened:
        opened.truncate(file.stat().st_size - 1)
    np.testing.assert_array_equal(found.rows(0, 3), np.ones((3, 4), np.float32))
    with pytest.raises(Mistake, match=f"{file}: ends inside x"):
        found.rows(3)


def indexed(folder, change=lambda tree: None):
    """Two files of one tensor each and their index, changed."""
    save(folder / "one.safetensors", {"x": np.ones(2, np.float32)})
    save(folder / "two.safetensors", {"y": np.ones(2, np.float32)})
    tree = {"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}
    tree = change(tree) or tree
    index = folder / "model.safetensors.index.json"
    index.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t["weight_map"].update(y="three.safetensors"), "three.safetensors, which is"),
        (lambda t: t["weight_map"].update(y="one.safetensors"), "puts y in one.safetensors, wh"),
        (lambda t: t["weight_map"].update(z="two.safetensors"), "puts z in two.safetensors, wh"),
        (
            lambda t: t["weight_map"].update(x="two.safetensors", y="one.safetensors"),
            "puts x in two.safetensors, which does not have it",
        ),
        (lambda t: "{", "is no index of safetensors: JSONDecodeError"),
        (lambda t: "[]", "is no index of safetensors"),
        (lambda t: {"metadata": {}}, "is no index of safetensors: KeyError('weight_map')"),
        (lambda t: {"weight_map": ["one.safetensors"]}, "is no index of safetensors"),
        (lambda t: {"weight_map": None}, "is no index of safetensors"),
        (lambda t: {"weight_map": {"x": 1}}, "is no index of safetensors"),
    ],
    ids=[
        "missing file",
        "all in one file",
        "no such tensor",
        "files exchanged",
        "no JSON",
        "a list",
        "no map",
        "a list for a map",
        "null for a map",
        "a number for a file",
    ],
)
def test_an_index_that_is_not_true_is_refused_in_one_line(tmp_path, change, says):
    folder = indexed(tmp_path, change)
    with pytest.raises(Mistake) as caught:
        safetensors_files.list_tensors(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'model.safetensors.index.json'}: ")
    assert says in message
    assert len(message.splitlines()) == 1


def test_a_tensor_in_two_files_is_refused(tmp_path):
    folder = indexed(tmp_path)
    values = {"x": np.zeros(2, np.float32), "y": np.ones(2, np.float32)}
    save(folder / "two.safetensors", values)
    with pytest.raises(Mistake, match=r"x: is in one.safetensors and in two.safetensors"):
        safetensors_files.list_tensors(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_torch_files_are_refused_with_the_line_that_converts_them(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(Mistake) as caught:
        safetensors_files.list_tensors(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"HF_DIR={tmp_path}: holds torch files, which are programs: ")
    command = message.split("convert them with ")[1]
    assert command.startswith('python -c "') and command.endswith('"')
    program = command.removeprefix('python -c "').removesuffix('"')
    compile(program, "the line", "exec")
    assert f"from_pretrained('{tmp_path}', dtype='auto')" in program
    assert f"save_pretrained('{tmp_path}-safetensors')" in program


def test_a_folder_without_tensors_and_no_folder_are_refused(tmp_path):
    with pytest.raises(Mistake) as caught:
        safetensors_files.list_tensors(tmp_path)
    says = "holds neither model.safetensors nor model.safetensors.index.json"
    assert str(caught.value) == f"HF_DIR={tmp_path}: {says}"
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(Mistake) as caught:
            safetensors_files.list_tensors(path)
        assert str(caught.value) == f"HF_DIR={path}: is no folder"
