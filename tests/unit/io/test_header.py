"""Every way in which a header can be wrong has its own message, and none is believed."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from lycoris_algos.errors import FileFormatError
from lycoris_algos.io import parse_header, read_header


def packed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: object, start: object, end: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def one(value: object, data: bytes = b"\0" * 8) -> bytes:
    return packed({"a": value}, data)


def parse(content: bytes) -> object:
    return parse_header(io.BytesIO(content), len(content))


GOOD = entry([2], 0, 8)
HOSTILE = {
    "empty": (b"", r"empty \(0 bytes\)"),
    "short": (b"abc", r"only 3 bytes long"),
    "eight zeros": (b"\0" * 8, r"not a safetensors file"),
    "zeros": (b"\0" * 4096, r"zeros only, as an unfinished download"),
    "noise": (bytes(range(128, 256)) * 8, r"not a safetensors file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"Git LFS pointer"),
    "html": (b"<!DOCTYPE html><html><body>Please log in</body></html>", r"this is a web page"),
    "html after blanks": (b"\n  <html>" + b" " * 99, r"this is a web page"),
    "json answer": (b'{"error":"Unauthorized, log in first"}', r"text file \(it begins '\{”err"),
    "index": (b'{"metadata": {}, "weight_map": {"a": "model-1-of-2.safetensors"}}', r"several files"),
    "zip": (b"PK\x03\x04" + b"\0" * 60, r"PyTorch file \(pickle\) or a zip"),
    "pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", r"PyTorch file \(pickle\)"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 60, r"GGUF"),
    "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, r"picture"),
    "length beyond": (struct.pack("<Q", 5000) + b'{"a":', r"inside its header, .* cut off"),
    "length absurd": (struct.pack("<Q", 10**15) + b'{"a":', r"claims to be 1000\.0 TB"),
    "length 2**64-1": (b"\xff" * 8 + b'{"a":', r"claims to be"),
    "not utf-8": (packed(b'{"\xff\xfe":1}'), r"not UTF-8"),
    "not json": (packed(b'{"a": oops}'), r"not JSON"),
    "nan": (packed(b'{"a": NaN}'), r"not JSON"),
    "zero bytes behind": (packed(b"{}\0\0\0\0\0\0"), r"not JSON"),
    "number of many digits": (packed(b'{"a": ' + b"9" * 5000 + b"}"), r"not JSON"),
    "list": (packed(b"  []    "), r"not a JSON object"),
    "deep": (packed(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), r"nested too deeply"),
    "duplicate name": (
        packed(b'{"a":%s,"a":%s}' % ((json.dumps(GOOD).encode(),) * 2)),
        r"'a' twice",
    ),
    "duplicate field": (packed(b'{"a":{"dtype":"F32","dtype":"F16"}}'), r"'dtype' twice"),
    "duplicate metadata": (packed(b'{"__metadata__":{"k":"1","k":"2"}}'), r"'k' twice"),
    "half surrogate": (packed(b'{"\\ud800": 1}'), r"broken character in the name ''"),
    "half surrogate value": (
        packed({"__metadata__": {"k": "\ud800"}}),
        r"broken character in what is under 'k'",
    ),
    "metadata list": (packed({"__metadata__": []}), r"metadata is not a table"),
    "metadata number": (packed({"__metadata__": {"k": 1}}), r"metadata value 'k' is not a text"),
    "entry is a number": (one(1), r"entry for tensor 'a' lacks"),
    "entry lacks shape": (one({"dtype": "F32", "data_offsets": [0, 8]}), r"'a' lacks"),
    "dtype unknown": (one(entry([2], 0, 8, "F33")), r"tensor 'a': unknown dtype 'F33'"),
    "dtype 4 bit": (one(entry([16], 0, 8, "F4")), r"packed 4-bit numbers"),
    "dtype list": (one(entry([2], 0, 8, ["F32"])), r"dtype of tensor 'a' is not a text"),
    "shape text": (one(entry("2", 0, 8)), r"shape of tensor 'a' is not a list"),
    "shape negative": (one(entry([-2], 0, 8)), r"shape of tensor 'a' is not a list"),
    "shape two negatives": (one(entry([-2, -1], 0, 8)), r"shape of tensor 'a' is not a list"),
    "shape float": (one(entry([2.0], 0, 8)), r"shape of tensor 'a' is not a list"),
    "shape bool": (one(entry([True, 2], 0, 8)), r"shape of tensor 'a' is not a list"),
    "shape huge": (one(entry([2**40, 2**40], 0, 8)), r"impossibly large"),
    "shape wraps to 8": (one(entry([2**62, 4, 2], 0, 8)), r"impossibly large"),
    "shape empty but huge": (one(entry([0, 2**62, 2**62], 0, 0), b""), r"impossibly large"),
    "shape of 1000 dims": (one(entry([1] * 1000, 0, 4)), r"1,000 dimensions"),
    "offsets missing": (one({**GOOD, "data_offsets": [0]}), r"not two positions"),
    "offsets negative": (one(entry([2], -8, 0)), r"not two positions"),
    "offsets bool": (one(entry([2], False, 8)), r"not two positions"),
    "offsets huge": (one(entry([2], 2**70, 2**70 + 8)), r"not two positions"),
    "offsets reversed": (one(entry([2], 8, 0)), r"reversed \(8 to 0\)"),
    "too small for shape": (one(entry([2], 0, 4)), r"needs 8 bytes, but its place .* has 4"),
    "dtype x shape": (one(entry([2], 0, 8, "F16")), r"needs 4 bytes, but its place .* has 8"),
    "overlap": (
        packed({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
        r"'b' overlaps",
    ),
    "same place": (packed({"a": GOOD, "b": GOOD}, b"\0" * 8), r"'b' overlaps"),
    "hole": (
        packed({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12),
        r"hole of 4 bytes before tensor 'b'",
    ),
    "hole at the start": (one(entry([1], 4, 8)), r"hole of 4 bytes before tensor 'a'"),
    "truncated": (
        one(entry([2_000_000], 0, 8_000_000), b"\0" * 5_000_000),
        r"promises 8\.0 MB but has 5\.0 MB: the download was cut off",
    ),
    "one byte short": (
        one(entry([2_000_000], 0, 8_000_000), b"\0" * 7_999_999),
        r"promises 8,000,\d\d\d bytes but has 8,000,\d\d\d bytes",
    ),
    "trailing": (one(GOOD, b"\0" * 11), r"3 bytes follow after the last tensor"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused_with_its_reason(case: str) -> None:
    content, message = HOSTILE[case]
    with pytest.raises(FileFormatError, match=message):
        parse(content)


def test_messages_stay_short_and_on_one_line() -> None:
    name = "evil\n\x1b[31m\u202e" + "x" * 100_000
    with pytest.raises(FileFormatError) as caught:
        parse(packed({name: 1}))
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_read_header_names_the_file_once(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"abc")
    with pytest.raises(FileFormatError) as caught:
        read_header(path)
    assert str(caught.value).startswith("file 'broken.safetensors': ")
    assert str(caught.value).count("broken.safetensors") == 1


def test_header_of_an_official_file() -> None:
    content = save({"b": torch.ones(2, 3), "a": torch.ones(5, dtype=torch.float16)}, {"k": "v"})
    header = parse_header(io.BytesIO(content), len(content))
    (length,) = struct.unpack("<Q", content[:8])
    assert header.metadata == {"k": "v"}
    assert header.data_start == 8 + length
    assert header.file_size == len(content)
    b, a = header.tensors.values()
    assert (b.name, b.dtype, b.shape, b.nbytes) == ("b", torch.float32, (2, 3), 24)
    assert (a.name, a.dtype, a.shape, a.nbytes) == ("a", torch.float16, (5,), 10)
    assert (b.start, b.end, a.start, a.end) == (
        header.data_start,
        header.data_start + 24,
        header.data_start + 24,
        len(content),
    )


def test_tensors_are_in_file_order_not_in_header_order() -> None:
    content = packed({"late": entry([1], 4, 8), "early": entry([1], 0, 4)}, b"\0" * 8)
    assert list(parse_header(io.BytesIO(content), len(content)).tensors) == ["early", "late"]


def test_what_the_official_library_allows_is_allowed() -> None:
    for content in (
        packed({}),
        packed({"__metadata__": None}),
        packed(b"  {}   "),
        one({**GOOD, "extra": 1}),
    ):
        parse(content)


def test_an_empty_tensor_may_stand_between_others() -> None:
    content = packed({"a": entry([1], 0, 4), "none": entry([0, 7], 4, 4), "b": entry([1], 4, 8)}, b"\0" * 8)
    assert list(parse_header(io.BytesIO(content), len(content)).tensors) == ["a", "none", "b"]


# A small file with all the parts that a mutation can hit.
VALID = save(
    {
        "w.lora_up.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "w.alpha": torch.tensor(4.0),
        "e": torch.zeros(0, 2, dtype=torch.int8),
    },
    {"ss_network_dim": "4"},
)


@given(
    changes=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4),
    length=st.integers(0, len(VALID)) | st.just(len(VALID)),
)
def test_a_mutated_file_is_sound_or_refused(changes: list[tuple[int, int]], length: int) -> None:
    content = bytearray(VALID)
    for place, value in changes:
        content[place] = value
    content = content[:length]
    try:
        header = parse_header(io.BytesIO(bytes(content)), len(content))
    except FileFormatError:
        return
    # Accepted: then its claims fit the bytes that are there, whatever the mutation was.
    position = header.data_start
    for info in header.tensors.values():
        assert info.start == position
        assert info.nbytes == torch.Size(info.shape).numel() * info.dtype.itemsize
        position = info.end
    assert position == len(content)


@given(content=st.binary(max_size=200), framed=st.booleans())
def test_noise_is_refused_or_an_empty_file(content: bytes, framed: bool) -> None:
    whole = packed(content) if framed else content
    try:
        header = parse_header(io.BytesIO(whole), len(whole))
    except FileFormatError:
        return
    assert not header.tensors
