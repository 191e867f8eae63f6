"""Every parameter of every model family has its block and its kind, by the model's names and by files'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import families
import pytest
from families import SUBJECTS, Shapes, Subject
from families.blocks import COUNTS, ROWS, UNTOLD

from lycoris_algos.models import KINDS, Role, families_of, parts_of, role_of, text_role
from lycoris_algos.network.roles import named_roles

pytestmark = pytest.mark.usefixtures("host")
every_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=[subject.title for subject in SUBJECTS])


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    families.forget()


def shapes_of(subject: Subject) -> Shapes:
    if not subject.has():
        pytest.skip("this ComfyUI does not have it")
    return families.shapes_of(subject)


def roles_of(subject: Subject, shapes: Shapes) -> Mapping[str, Role]:
    """{weight: its role} by the model's own paths."""
    # ComfyUI 0.3.75 has a last norm in Lumina 2 and Z-Image that newer ones do not.
    weights = [key for key in shapes if not key.endswith(".bias") and key != "norm_final.weight"]
    if not subject.text:
        return {key: role_of(key) for key in weights}
    encoders = list(dict.fromkeys(key.split(".")[0] for key in weights))
    split = {key: key.split(".", 1) for key in weights}
    return {key: text_role(path, 1 + encoders.index(name)) for key, (name, path) in split.items()}


@every_subject
def test_every_weight_has_its_block_and_its_kind(subject: Subject) -> None:
    roles = roles_of(subject, shapes_of(subject)).values()
    blocks = Counter(group for group, _ in {(role.group, role.index) for role in roles})
    kinds = Counter(role.kind for role in roles)
    assert "other" not in blocks
    assert "other" not in kinds
    assert set(kinds) <= set(KINDS)
    assert (dict(blocks), dict(kinds)) == COUNTS[subject.title]


@every_subject
def test_blocks_are_numbered_from_zero_without_a_gap(subject: Subject) -> None:
    numbers: dict[str, set[int]] = {}
    for role in roles_of(subject, shapes_of(subject)).values():
        if role.index is not None:
            numbers.setdefault(role.group, set()).add(role.index)
    assert all(found == set(range(len(found))) for found in numbers.values())


@every_subject
def test_names_of_files_tell_the_same(subject: Subject) -> None:
    shapes = shapes_of(subject)
    own = roles_of(subject, shapes)
    for file in subject.files(shapes):
        if (subject.title, file.trainer) in UNTOLD:
            continue
        metadata = {"modelspec.architecture": subject.title.lower().replace(" ", "")}
        named = named_roles(file.layers, metadata)
        for name, layer in file.layers.items():
            role = own[families.key_of(layer, shapes)]
            assert named[name].block == role.block, f"{file.trainer}: {name}"
            if layer.rows is None:
                assert named[name].kind == role.kind, f"{file.trainer}: {name}"
            else:
                assert named[name].kind.startswith(("attn", "cross", "ff")), f"{file.trainer}: {name}"


@every_subject
def test_fused_weights_fall_into_their_parts(subject: Subject) -> None:
    shapes = shapes_of(subject)
    known = families_of(shapes)
    parted: set[tuple[str, ...]] = set()
    for key, role in () if subject.text else roles_of(subject, shapes).items():
        parts = parts_of(key, shapes[key], known[0])
        if not parts:
            assert not role.kind.endswith(".qkv"), key
            continue
        assert role.kind.endswith(".qkv") or role.kind == "fused"
        assert [start for _, (start, _) in parts] == [
            sum(count for _, (_, count) in parts[:n]) for n in range(len(parts))
        ]
        assert sum(count for _, (_, count) in parts) == shapes[key][0]
        parted.add(tuple(kind for kind, _ in parts))
    assert parted == ROWS.get(subject.title, set())
