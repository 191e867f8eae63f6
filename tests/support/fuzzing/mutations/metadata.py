"""What a file says about itself: metadata, and PEFT's configuration in them or beside the file."""

from __future__ import annotations

import json
from typing import Any

from strangers import NAMES

from .._draft import Draft
from ._registry import mutation, pick

_KEYS = (
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    "ss_tag_frequency",
    "ss_dataset_dirs",
    "ss_base_model_version",
    "ss_output_name",
    "modelspec.title",
    "modelspec.trigger_phrase",
    "modelspec.architecture",
    "modelspec.author",
    "lora_adapter_metadata",
    "adapter_config",
    "lycoris_config",
    "lycoris_algos.corrected",
    "lycoris_algos.recipe",
    "sshs_model_hash",
    "format",
)
_BROKEN = (
    "{",
    "[]",
    "null",
    "1e400",
    '{"a":',
    '"',
    "{}" * 9,
    "[" * 5000,
    '{"algo":' * 2000,
    "NaN",
    "\0",
    "nan",
    "-5",
)
_TEXTS = (*NAMES.values(), *_BROKEN, "a\ud800b", "\udfff", "x" * 300_000, " " * 100_000, "1" * 5000, "")
_NO_TEXTS: tuple[Any, ...] = (None, 5, 1.5, True, [], {"a": "b"}, ["x"], 10**400, {"a": {"b": [1]}})
#: JSON values as they are spelled; Python reads some of them as infinity or as whole numbers without end.
_VALUES = (
    *("1e400", "-1e400", "NaN", "Infinity", f"1{'0' * 400}", "1e300", "-1e301", "1e-320", "0", "-4", "2.5"),
    *("true", "false", "null", "[]", "{}", '"8"', '"pissa"', '"pissa_niter_4"', '"mini"', '"bat"', '"loftq"'),
    *(
        '"LORA"',
        '"OFT"',
        '"LOHA"',
        '"x\\ud800"',
        "[1, 2]",
        '{"a": 1}',
        '{"(": 4}',
        '{".*": 1e400}',
        '{"": 3}',
    ),
    *('{".*": true}', '{".*": "4"}', '{"(a|aa)+$": 2}', '{".*": -1}', '{"\\ud800": 2}', '{".*": 1e300}'),
    *('"0.17.0"', '"1."', '"99999999999999.1"', '"0.19"', "9007199254740993", "1e38", "3"),
)
_SETTINGS = (
    *("peft_type", "r", "lora_alpha", "alpha", "use_rslora", "alpha_pattern", "rank_pattern", "peft_version"),
    *("init_lora_weights", "init_weights", "apply_GS", "coft", "eps", "oft_block_size", "block_share"),
    *(
        "num_cayley_neumann_terms",
        "use_cayley_neumann",
        "use_dora",
        "unet.r",
        "unet.lora_alpha",
        "boft_block_size",
    ),
)
_ARGS = (
    "algo",
    "block_size",
    "rs_lora",
    "conv_dim",
    "conv_alpha",
    "factor",
    "constraint",
    "rescaled",
    "dora_wd",
)


@mutation
def metadata_text(draft: Draft, where: int, which: int) -> None:
    """One of the texts."""
    draft.metadata[pick(_KEYS, where)] = pick(_TEXTS, which)


@mutation
def metadata_key(draft: Draft, where: int, which: int) -> None:
    """One of the keys."""
    draft.metadata[pick((*_TEXTS, "__metadata__"), which)] = pick(("x", "", "\n"), where)


@mutation
def metadata_type(draft: Draft, where: int, which: int) -> None:
    """Something that is no text."""
    draft.metadata[pick(_KEYS, where)] = pick(_NO_TEXTS, which)


@mutation
def metadata_whole(draft: Draft, where: int, which: int) -> None:
    """All of it: nothing, of another type, or very many."""
    if which % 3 == 0:
        draft.metadata = {}
    elif which % 3 == 1 and not draft.torch_file:
        value = pick(_NO_TEXTS, which // 3)
        draft.header.append(lambda entries: entries.insert(0, ("__metadata__", value)))
    else:
        draft.metadata.update({f"key {number}": "x" * (where % 50) for number in range(2000)})


@mutation
def network_args(draft: Draft, where: int, which: int) -> None:
    """One of the trainer's options."""
    key = pick(("ss_network_args", "lycoris_config"), where)
    _set(draft, key, pick(_ARGS, which), pick(_VALUES, which // len(_ARGS)))
    if where % 3 == 0:
        algo = pick(
            ("dylora", "tlora", "loha", "lokr", "boft", "diag-oft", "glora", "ia3", "full"), where // 3
        )
        _set(draft, key, "algo", json.dumps(algo))


@mutation
def configuration(draft: Draft, where: int, which: int) -> None:
    """One of PEFT's settings, where the file keeps them."""
    name = pick(_SETTINGS, which)
    value = pick(_VALUES, which // len(_SETTINGS))
    if draft.beside is not None:
        draft.beside = _with(draft.beside, name, value)
        return
    keys = [key for key in ("lora_adapter_metadata", "adapter_config") if key in draft.metadata]
    _set(draft, pick(keys or ["lora_adapter_metadata"], where), name, value)


@mutation
def beside(draft: Draft, where: int, which: int) -> None:
    """The file beside the file: any text, or in need of one."""
    draft.beside = pick((*_TEXTS, *_VALUES), which)


def _set(draft: Draft, key: str, name: str, value: str) -> None:
    text = draft.metadata.get(key, "{}")
    draft.metadata[key] = _with(text if isinstance(text, str) else "{}", name, value)


def _with(text: str, name: str, value: str) -> str:
    """The JSON table ``text`` with ``value``, spelled as it is, under ``name``."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = {}
    if not isinstance(table, dict):
        table = {}
    mark = "@@value@@"
    return json.dumps({**table, name: mark}).replace(f'"{mark}"', value)
