"""Names of tensors: renamed, doubled, lost, a stranger's, and in other dialects."""

from __future__ import annotations

from strangers import NAMES

from .._draft import Draft
from .._subjects import LAYERS
from ._keys import SUFFIXES, halves
from ._registry import mutation, pick

_HOSTILE = (
    *NAMES.values(),
    "",
    ".",
    "..",
    "a\ud800b",
    "\0",
    "__metadata__",
    "." * 3000,
    "a." * 1500,
    "é" * 400,
)
_PREFIXES = (
    "lora_unet_",
    "diffusion_model.",
    "base_model.model.",
    "unet.",
    "module.",
    "_orig_mod.",
    "model.diffusion_model.",
    "lora:",
    "plugin:",
    "bundle_emb.",
    "text_encoder.",
    "lycoris_" * 20,
    ".",
    "lora_unet",
)
_JOINTS = (".", "", "..", "___.", ".processor.", "_", ":")


def _rename(draft: Draft, where: int, new: str) -> None:
    if draft.tensors:
        place = where % len(draft.tensors)
        draft.tensors[place] = (new, draft.tensors[place][1])


def _name(draft: Draft, where: int) -> str:
    return pick(draft.tensors, where)[0] if draft.tensors else ""


@mutation
def hostile_name(draft: Draft, where: int, which: int) -> None:
    """A stranger's text as a tensor's name, or as its layer."""
    text = pick(_HOSTILE, which)
    _, suffix = halves(_name(draft, where))
    _rename(draft, where, text if which // len(_HOSTILE) % 2 else f"{text}.{suffix}")


@mutation
def hostile_layer(draft: Draft, where: int, which: int) -> None:
    """A stranger's text as the name of a layer, or at the end of it, in all its tensors."""
    old, _ = halves(_name(draft, where))
    text = pick(_HOSTILE, which)
    new = text if which // len(_HOSTILE) % 2 else old + text
    draft.tensors[:] = [
        (new + name[len(old) :] if old and name.startswith(f"{old}.") else name, value)
        for name, value in draft.tensors
    ]


@mutation
def another_suffix(draft: Draft, where: int, which: int) -> None:
    """A tensor called as another of the same or of another algorithm."""
    layer, _ = halves(_name(draft, where))
    _rename(draft, where, f"{layer}.{pick(SUFFIXES, which)}")


@mutation
def another_layer(draft: Draft, where: int, which: int) -> None:
    """A tensor that is moved to another layer, of the file or of none."""
    _, suffix = halves(_name(draft, where))
    names = (*LAYERS, *(halves(name)[0] for name, _ in draft.tensors))
    _rename(draft, where, f"{pick(names, which)}.{suffix}")


@mutation
def letters(draft: Draft, where: int, which: int) -> None:
    """A letter of a name: gone, doubled, or another one."""
    name = _name(draft, where)
    if name:
        place = which % len(name)
        letter = pick(("", name[place] * 2, ".", "_", "0", "\u202e", "\ud83d", "K"), which // 3)
        _rename(draft, where, name[:place] + letter + name[place + 1 :])


@mutation
def joint(draft: Draft, where: int, which: int) -> None:
    """Something else than a dot between a layer and its tensor."""
    _rename(draft, where, pick(_JOINTS, which).join(halves(_name(draft, where))))


@mutation
def prefix(draft: Draft, where: int, which: int) -> None:
    """One more prefix before all names, or one name."""
    new = pick(_PREFIXES, which)
    if which // len(_PREFIXES) % 2:
        draft.tensors[:] = [(new + name, value) for name, value in draft.tensors]
    else:
        _rename(draft, where, new + _name(draft, where))


@mutation
def dialect(draft: Draft, where: int, which: int) -> None:
    """A layer that is called as in another dialect, its tensors as they were."""
    old, _ = halves(_name(draft, where))
    new = pick(LAYERS, which)
    draft.tensors[:] = [
        (new + name[len(old) :] if old and name.startswith(f"{old}.") else name, value)
        for name, value in draft.tensors
    ]


@mutation
def doubled(draft: Draft, where: int, which: int) -> None:
    """A tensor under two names: two suffixes, two layers, or one name twice."""
    if not draft.tensors:
        return
    name, value = pick(draft.tensors, where)
    layer, suffix = halves(name)
    names = (name, f"{layer}.{pick(SUFFIXES, which // 3)}", f"{pick(LAYERS, which // 3)}.{suffix}")
    draft.tensors.insert(which % (len(draft.tensors) + 1), (pick(names, which), value))


@mutation
def doubled_layer(draft: Draft, where: int, which: int) -> None:
    """A whole layer again, in another dialect."""
    old, _ = halves(_name(draft, where))
    new = pick(LAYERS, which)
    again = [(new + name[len(old) :], value) for name, value in draft.tensors if name.startswith(f"{old}.")]
    draft.tensors.extend(again)


@mutation
def lost(draft: Draft, where: int, which: int) -> None:
    """One tensor less, or all but one."""
    if draft.tensors:
        place = where % len(draft.tensors)
        draft.tensors[:] = (
            draft.tensors[place : place + 1]
            if which % 8 == 0
            else draft.tensors[:place] + draft.tensors[place + 1 :]
        )


@mutation
def swapped(draft: Draft, where: int, which: int) -> None:
    """Two tensors that have each other's name."""
    if len(draft.tensors) > 1:
        one, other = where % len(draft.tensors), which % len(draft.tensors)
        (first, a), (second, b) = draft.tensors[one], draft.tensors[other]
        draft.tensors[one], draft.tensors[other] = (first, b), (second, a)
