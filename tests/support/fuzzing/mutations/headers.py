"""What a safetensors header says, its spelling, and bytes of any file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._draft import Draft, Entries
from ._registry import mutation, pick

_HUGE = (2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30)
_ODD: tuple[Any, ...] = (None, True, "4", 1.5, -1, [], {}, [4], "F32", float("nan"), *_HUGE)
_NAMES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E8M0",
    "F4",
    "C64",
    "f32",
    "",
    "\u0660",
)


def _on_entry(draft: Draft, where: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Has ``change`` done to the entry of one tensor in the header."""

    def damage(entries: Entries) -> None:
        tables = [value for name, value in entries if name != "__metadata__" and isinstance(value, dict)]
        if tables:
            change(pick(tables, where))

    draft.header.append(damage)


@mutation
def header_offsets(draft: Draft, where: int, which: int) -> None:
    """One of a tensor's two positions, or both."""

    def change(entry: dict[str, Any]) -> None:
        places = entry.get("data_offsets")
        if not isinstance(places, list) or len(places) != 2:
            return
        end = which // 7 % 2
        small = (1, -1, 4, -4, 2, -8)
        if which % 3 == 0 and isinstance(places[end], int):
            places[end] += pick(small, which)
        elif which % 3 == 1:
            places[end] = pick(_ODD, which)
        else:
            entry["data_offsets"] = pick((places[::-1], [], places * 2, places[:1], None, [0, 0]), which)

    _on_entry(draft, where, change)


@mutation
def header_dtype(draft: Draft, where: int, which: int) -> None:
    """A tensor's number type, its bytes being as they were."""
    value = pick((*_NAMES, *_ODD), which)
    _on_entry(draft, where, lambda entry: entry.update(dtype=value))


@mutation
def header_shape(draft: Draft, where: int, which: int) -> None:
    """A tensor's shape, its bytes being as they were."""

    def change(entry: dict[str, Any]) -> None:
        shape = entry.get("shape")
        if not isinstance(shape, list):
            return
        place = which % (len(shape) + 1)
        changed = [*shape[:place], pick(_ODD, which // 3), *shape[place + which % 2 :]]
        whole: tuple[Any, ...] = (
            shape[::-1],
            [*shape, 1],
            [1] * 70,
            [],
            [0, *_HUGE[:3]],
            None,
            [-1],
            shape * 3,
        )
        entry["shape"] = changed if which % 3 else pick(whole, which // 3)

    _on_entry(draft, where, change)


@mutation
def header_entry(draft: Draft, where: int, which: int) -> None:
    """A tensor's entry as a whole: gone, of another type, without one of its parts, or with more."""

    def damage(entries: Entries) -> None:
        if not entries:
            return
        place = where % len(entries)
        name, entry = entries[place]
        if which % 4 == 0:
            del entries[place]
        elif which % 4 == 1 or not isinstance(entry, dict):
            entries[place] = (name, pick(_ODD, which // 4))
        elif which % 4 == 2:
            entry.pop(pick(("dtype", "shape", "data_offsets"), which // 4), None)
        else:
            entry["more"] = pick(_ODD, which // 4)

    draft.header.append(damage)


@mutation
def header_twice(draft: Draft, where: int, which: int) -> None:
    """A name that the header has twice, with the same place or an empty one."""

    def damage(entries: Entries) -> None:
        if entries:
            name, entry = pick(entries, where)
            empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
            entries.insert(which % (len(entries) + 1), (name, entry if which % 2 else empty))

    draft.header.append(damage)


@mutation
def header_order(draft: Draft, where: int, which: int) -> None:
    """Entries in another order, which is legal; with the data of two tensors swapped, it is not always."""

    def damage(entries: Entries) -> None:
        entries.sort(key=lambda entry: (hash_of(entry[0]) * (where + 1)) % 97)
        tables = [value for name, value in entries if name != "__metadata__" and isinstance(value, dict)]
        if which % 2 and len(tables) > 1:
            first, second = tables[0], tables[1]
            first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]

    draft.header.append(damage)


def hash_of(text: str) -> int:
    """The same each time, unlike ``hash``."""
    return sum(map(ord, text))


# ---- bytes ------------------------------------------------------------------------------------------------


@mutation
def header_length(draft: Draft, where: int, which: int) -> None:
    """The first eight bytes."""

    def damage(raw: bytearray) -> None:
        length = int.from_bytes(raw[:8], "little")
        small = (0, 1, 2, length - 1, length + 1, length + 8, len(raw), len(raw) - 8, 2**27, 2**40, 2**64 - 1)
        raw[:8] = (pick(small, which) % 2**64).to_bytes(8, "little")

    draft.bytes.append(damage)


@mutation
def cut(draft: Draft, where: int, which: int) -> None:
    """The file ends early: anywhere, or near its beginning or end."""

    def damage(raw: bytearray) -> None:
        place = (where * 10_007 + which, which % 40, len(raw) - 1 - which % 40)[where % 3]
        del raw[place % (len(raw) + 1) :]

    draft.bytes.append(damage)


@mutation
def longer(draft: Draft, where: int, which: int) -> None:
    """Bytes before, within or after the others."""

    def damage(raw: bytearray) -> None:
        place = (0, 8, len(raw), where * 10_007 % (len(raw) + 1))[where % 4]
        raw[place:place] = pick((b"\0", b" ", b"{", b'"', b"\xff" * 8, b"[" * 3000, b"\0" * 4096), which)

    draft.bytes.append(damage)


@mutation
def another_byte(draft: Draft, where: int, which: int) -> None:
    """One byte: in the first thousand, where the header is, or anywhere."""

    def damage(raw: bytearray) -> None:
        if raw:
            end = min(len(raw), 1000) if where % 3 else len(raw)
            usual = (0x22, 0x5C, 0x7B, 0x7D, 0x2C, 0x30, 0x2D, 0x00, 0xFF, 0x80)
            raw[where * 10_007 % end] = pick(usual, which // 2) if which % 2 else which % 256

    draft.bytes.append(damage)
