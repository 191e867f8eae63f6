"""``read_tensors`` and PyTorch files: content decides, and nothing in them is executed."""

from __future__ import annotations

import copy
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lycoris_algos.errors import FileFormatError
from lycoris_algos.io import read_tensors, read_torch_file


class Dangerous:
    """Unpickling an object of this class creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.marker), "w")


def saved(content: object, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".pth", ".safetensors", ".txt"])
def test_content_decides_for_torch_files(legacy: bool, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(saved({"a": torch.arange(3.0)}, legacy))
    tensors, metadata = read_tensors(path)
    assert tensors["a"].tolist() == [0, 1, 2]
    assert metadata == {}


@pytest.mark.parametrize("suffix", [".safetensors", ".sft", ".ckpt", ".bin"])
def test_content_decides_for_safetensors(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    save_file({"a": torch.arange(3.0)}, path, {"k": "v"})
    tensors, metadata = read_tensors(path)
    assert tensors["a"].tolist() == [0, 1, 2]
    assert metadata == {"k": "v"}


def test_a_header_length_that_looks_like_a_pickle(tmp_path: Path) -> None:
    # 0x0280: the length's bytes are those that open a pickle of protocol 2.
    path = tmp_path / "x.safetensors"
    for padding in range(560, 640):
        save_file({"a": torch.ones(1)}, path, {"k": "v" * padding})
        if path.read_bytes()[:8] == b"\x80\x02" + bytes(6):
            break
    else:
        pytest.fail("no such header was made")
    assert read_tensors(path)[0]["a"].tolist() == [1]


def test_state_dict_is_unwrapped_and_nests_are_flattened(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    shared = torch.arange(6.0)
    torch.save(
        {
            "state_dict": OrderedDict(
                weight=torch.nn.Parameter(torch.ones(2, 2)),
                view=torch.arange(6.0).reshape(2, 3).t(),
                slice=shared[1:3],
                whole=shared,
                twin=shared,
                string_to_param={"*": torch.ones(1), 7: {"deep": torch.ones(1)}},
                ignored=[1, 2],
            ),
            "optimizer": {"not": torch.ones(1)},
            "name": "sks",
            "epoch": 3,
            "lr": 0.5,
            "nothing": None,
        },
        path,
    )
    tensors, metadata = read_torch_file(path)
    assert list(tensors) == [
        "weight",
        "view",
        "slice",
        "whole",
        "twin",
        "string_to_param.*",
        "string_to_param.7.deep",
    ]
    assert metadata == {"name": "sks", "epoch": "3", "lr": "0.5"}
    assert tensors["view"].tolist() == [[0, 3], [1, 4], [2, 5]]
    for tensor in tensors.values():
        assert type(tensor) is torch.Tensor
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
    tensors["whole"].zero_()
    assert tensors["twin"].tolist() == [0, 1, 2, 3, 4, 5]
    assert tensors["slice"].tolist() == [1, 2]
    assert tensors["slice"].untyped_storage().nbytes() == 8


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_is_refused_and_not_run(legacy: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "evil.ckpt"
    path.write_bytes(saved({"a": torch.ones(1), "b": Dangerous(marker)}, legacy))
    with pytest.raises(FileFormatError, match=r"'evil\.ckpt': it holds Python objects \(_?io\.open\)"):
        read_tensors(path)
    assert not marker.exists()
    # The trap is real: an ordinary unpickler springs it.
    pickle.loads(pickle.dumps(Dangerous(marker))).close()
    assert marker.exists()


def test_a_module_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(FileFormatError, match=r"torch\.nn\.modules\.linear\.Linear.*convert it to"):
        read_tensors(path)


def cyclic() -> dict[str, object]:
    table: dict[str, object] = {"a": torch.ones(1)}
    table["self"] = table
    return table


def nested(depth: int) -> dict[str, object]:
    table: dict[str, object] = {"a": torch.ones(1)}
    for _ in range(depth):
        table = {"t": table}
    return table


def doubled(depth: int) -> dict[str, object]:
    table: dict[str, object] = {"a": torch.ones(1)}
    for _ in range(depth):
        table = {"x": table, "y": table}
    return table


REFUSED = {
    "one tensor": (lambda: torch.ones(2), "no table of named tensors"),
    "list": (lambda: [torch.ones(2)], "no table of named tensors"),
    "no tensors": (lambda: {"a": 1}, "holds no tensors"),
    "cyclic": (cyclic, "no end"),
    "deep": (lambda: nested(60), "no end"),
    "doubled": (lambda: doubled(25), "no end"),
    "two of a name": (lambda: {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, r"called 'a\.b'"),
    "the format's own name": (lambda: {"a": torch.ones(1), "__metadata__": torch.ones(1)}, "no name for a"),
    "no name": (lambda: {(1, 2): torch.ones(1)}, "no name but a tuple"),
    "repeated": (lambda: {"a": torch.ones(1).expand(10**12)}, "repeat their data"),
    "many views": (
        lambda: (lambda big: {str(i): big[i:] for i in range(400)})(torch.zeros(60_000)),
        "repeat their data",
    ),
    "meta": (lambda: {"a": torch.empty(10**12, device="meta")}, "sparse, quantized or empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_contents_are_refused(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    path = tmp_path / "x.pt"
    torch.save(make(), path)
    with pytest.raises(FileFormatError, match=message):
        read_tensors(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(2, 2).to_sparse()}, path)
    with pytest.raises(FileFormatError, match="'a' is sparse"):
        read_tensors(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_truncated_torch_files_are_refused(legacy: bool, part: float, tmp_path: Path) -> None:
    content = saved({"a": torch.arange(1000.0)}, legacy)
    path = tmp_path / "x.pt"
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(FileFormatError, match="damaged or was cut off"):
        read_tensors(path)


def test_archives_that_pytorch_did_not_write_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lora.safetensors", b"{}")
    with pytest.raises(FileFormatError, match="zip archive, not a PyTorch file: unpack"):
        read_tensors(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(FileFormatError, match="compressed"):
        read_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000)
        for number in range(100):  # a hundred names for the same bytes
            twin = copy.copy(archive.filelist[0])
            twin.filename = f"archive/data/{number}"
            archive.filelist.append(twin)
    with pytest.raises(FileFormatError, match="more than the whole file"):
        read_tensors(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".txt"])
def test_a_web_page_is_named_whatever_its_suffix(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"<!doctype html><html>")
    with pytest.raises(FileFormatError, match=rf"^file 'x{suffix}': this is a web page"):
        read_tensors(path)


def test_the_suffix_chooses_the_explanation(tmp_path: Path) -> None:
    for suffix, word in ((".safetensors", "safetensors"), (".ckpt", "PyTorch")):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(b"\xf0\x9f" * 100)
        with pytest.raises(FileFormatError, match=f"not a {word} file"):
            read_tensors(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"'no\.pt': there is no such file"):
        read_tensors(tmp_path / "no.pt")
    with pytest.raises(FileFormatError, match="a folder, not a file"):
        read_tensors(tmp_path)
    with pytest.raises(FileFormatError, match="not a possible file name"):
        read_tensors(tmp_path / "a\0b.pt")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pt")
        with pytest.raises(FileFormatError, match="a device or a pipe"):
            read_tensors(tmp_path / "pipe.pt")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"x")

    def refuse(*args: object, **kwargs: object) -> io.FileIO:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # access rights would not stop the root user
    with pytest.raises(FileFormatError, match="no permission"):
        read_tensors(path)


VALID_TORCH = {legacy: saved({"a": torch.arange(4.0), "n": 1}, legacy) for legacy in (False, True)}


@given(data=st.data(), legacy=st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_a_mutated_torch_file_is_read_or_refused(tmp_path: Path, data: st.DataObject, legacy: bool) -> None:
    content = bytearray(VALID_TORCH[legacy])
    # The pickle and the archive's lists are where it hurts; the rest is the tensor's own bytes.
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=3)):
        content[place] = value
    path = tmp_path / "x.pt"
    path.write_bytes(content[: data.draw(places | st.just(len(content)))])
    try:
        tensors, _ = read_tensors(path)
    except FileFormatError:
        return
    assert all(tensor.numel() < 10**6 for tensor in tensors.values())
