"""Every layer of files as trainers write them reaches the parameter that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace

import families
import pytest
from families import SUBJECTS, File, Subject

every_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=[subject.title for subject in SUBJECTS])


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    families.forget()


@pytest.fixture
def own(pack: ModuleType, host: Callable[[str], ModuleType]) -> SimpleNamespace:
    """The modules of the pack that place files, in the copy that ComfyUI runs."""
    import sys

    library = sys.modules[f"{pack.__name__}.lycoris_algos"]
    return SimpleNamespace(library=library, keymap=host("keymap"), matching=host("matching"))


@every_subject
def test_every_layer_reaches_its_parameter(subject: Subject, own: SimpleNamespace) -> None:
    if not subject.has():
        pytest.skip("this ComfyUI does not have it")
    files: list[File] = list(subject.files(families.shapes_of(subject)))
    assert len({file.trainer for file in files}) == len(files) >= 3
    for file in files:
        found = families.outcome(subject, file, own)
        assert found.held > 10, file.trainer
        assert found.wrong == (), f"{file.trainer}: {found.reached} of {found.held}"
        assert found.reached == found.held
