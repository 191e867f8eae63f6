"""A merged checkpoint in a running ComfyUI: found in its list, loaded, and the same picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab import workflows
from lab.client import RunResult, get_json
from lab.images import identical, max_difference
from lab.server import ComfyServer
from lab.workflows import Prompt

if TYPE_CHECKING:
    from lab.images import Pixels


def node_id(prompt: Prompt, class_type: str) -> str:
    return next(key for key, node in prompt.items() if node["class_type"] == class_type)


@pytest.mark.parametrize("save_dtype", ["fp32", "as base"])
def test_a_merged_checkpoint_gives_the_picture_of_live_application(
    save_dtype: str,
    run: Callable[[Prompt], RunResult],
    picture: Callable[[Prompt], Pixels],
    server: ComfyServer,
) -> None:
    name = f"e2e_{save_dtype.replace(' ', '_')}"
    prompt = workflows.with_inputs(
        workflows.load("MergeLyCORIS"), "MergeLyCORIS", save_dtype=save_dtype, filename_prefix=name
    )
    live = picture(prompt)
    result = run(prompt)
    report = result.text(node_id(prompt, "MergeLyCORIS"))
    listed = get_json(server.url, "/object_info/CheckpointLoaderSimple")
    choices = listed["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]

    merged = next(choice for choice in choices if Path(choice).stem == name)
    plain = workflows.plain(prompt)
    baked = picture(workflows.with_inputs(plain, "CheckpointLoaderSimple", ckpt_name=merged))

    assert "120 of 120 layers" in report
    assert not identical(live, picture(plain))
    if save_dtype == "fp32":
        assert identical(live, baked)
    else:  # every weight is rounded to fp16 once
        assert max_difference(live, baked) <= 3
