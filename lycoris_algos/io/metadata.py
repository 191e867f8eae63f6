"""What trainers write into a file about itself, in words for a person.

Metadata is a table of texts, some of them JSON, filled by a dozen programs and edited by hand.
Nothing here can fail: what cannot be understood is left out, every answer is short and on one line,
and tables below say which keys are looked at, in which order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..text import plain_line, single_line

_MAX_JSON = 16_000_000
_MAX_PHRASE = 10_000
_MAX_WORDS = 12
_MAX_WORD = 100
_MAX_FACT = 200
_MAX_ARGS = 100
_CONCEPT = re.compile(r"\d+_(.*\S)")

# Beginnings of ss_base_model_version, longest first where one is the beginning of another.
_KOHYA_BASES = (
    ("sd_v1", "Stable Diffusion 1.x"),
    ("sd_v2_v", "Stable Diffusion 2.x (v-prediction)"),
    ("sd_v2", "Stable Diffusion 2.x"),
    ("sdxl_", "Stable Diffusion XL"),
    ("sd3", "Stable Diffusion 3"),
    ("flux1", "FLUX.1"),
    ("chroma", "Chroma"),
    ("lumina2", "Lumina Image 2.0"),
    ("hunyuan-image-2.1", "HunyuanImage 2.1"),
)

# Beginnings of modelspec.architecture.
_ARCHITECTURES = (
    ("stable-diffusion-v1", "Stable Diffusion 1.x"),
    ("stable-diffusion-v2-768-v", "Stable Diffusion 2.x (v-prediction)"),
    ("stable-diffusion-v2", "Stable Diffusion 2.x"),
    ("stable-diffusion-xl", "Stable Diffusion XL"),
    ("stable-diffusion-3", "Stable Diffusion 3"),
    ("flux-1-dev", "FLUX.1 dev"),
    ("flux-1-schnell", "FLUX.1 schnell"),
    ("flux-1", "FLUX.1"),
    ("chroma", "Chroma"),
    ("lumina-2", "Lumina Image 2.0"),
    ("hunyuan-image-2.1", "HunyuanImage 2.1"),
    ("anima-preview", "Anima"),
)

# What a report tells, with the keys that may say it; the first that says something counts.
_FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Title", ("modelspec.title", "ss_output_name")),
    ("Author", ("modelspec.author",)),
    ("Description", ("modelspec.description",)),
    ("Usage", ("modelspec.usage_hint",)),
    ("Trained on model", ("ss_sd_model_name",)),
    ("Network module", ("ss_network_module",)),
    ("Rank", ("ss_network_dim",)),
    ("Alpha", ("ss_network_alpha",)),
    ("Training images", ("ss_num_train_images",)),
    ("Resolution", ("modelspec.resolution", "ss_resolution")),
    ("Epochs", ("ss_epoch", "ss_num_epochs")),
    ("Steps", ("ss_steps", "ss_max_train_steps")),
    ("Learning rate", ("ss_learning_rate",)),
    ("Optimizer", ("ss_optimizer",)),
    ("Clip skip", ("ss_clip_skip",)),
    ("Seed", ("ss_seed",)),
    ("Date", ("modelspec.date",)),
    ("License", ("modelspec.license",)),
    ("Merged from", ("modelspec.merged_from",)),
    ("Prediction type", ("modelspec.prediction_type",)),
    ("Hash", ("sshs_model_hash",)),
    ("Hash (legacy)", ("sshs_legacy_hash",)),
    ("Hash (sha256)", ("modelspec.hash_sha256",)),
    ("Base model hash", ("ss_new_sd_model_hash", "ss_sd_model_hash")),
)
_NOTHING = frozenset({"", "none", "null", "{}", "[]"})


def network_args(metadata: Mapping[str, str]) -> dict[str, str]:
    """The training options in ``ss_network_args``, all as texts; empty if there are none.

    Texts are left as they are, everything else is spelled as JSON ('true', '8', '[1, 2]').
    """
    table = _json_table(metadata, "ss_network_args")
    pairs = list(table.items())[:_MAX_ARGS]
    return {key: _spelled(value) for key, value in pairs if value is not None}


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words that call up what was trained, the most useful first; at most 12.

    The first source that answers counts: the author's own trigger phrase; the tags that stand at
    half as many images, at least, as the most frequent one; the concepts in the names of the
    training folders ("10_sks dog").
    """
    for source in (_phrase_words, _frequent_tags, _folder_concepts):
        words: dict[str, None] = {}
        for word in source(metadata):
            line = plain_line(word, _MAX_WORD + 1)
            # A word that is too long is left out: a piece of it would call up nothing.
            if 0 < len(line) <= _MAX_WORD:
                words[line] = None
            if len(words) == _MAX_WORDS:
                break
        if words:
            return tuple(words)
    return ()


def base_model(metadata: Mapping[str, str]) -> str | None:
    """The kind of model that the file was trained for, in words; None if it does not say."""
    version = _text(metadata, "ss_base_model_version")
    # "stable-diffusion-xl-v1-base/lora": what stands behind the slash is the kind of file.
    architecture = _text(metadata, "modelspec.architecture").split("/")[0]
    return (
        _by_beginning(version, _KOHYA_BASES)
        or _by_beginning(architecture, _ARCHITECTURES)
        or version
        or architecture
        or None
    )


def title(metadata: Mapping[str, str]) -> str | None:
    """The name that the author or trainer gave; None if there is none."""
    return _text(metadata, "modelspec.title") or _text(metadata, "ss_output_name") or None


def facts(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """(label, value) pairs for a report: who made the file, from what, and how.

    What ``base_model`` and ``trigger_words`` tell is not repeated.
    """
    texts = [(label, _first_text(metadata, keys)) for label, keys in _FACTS]
    algorithm = network_args(metadata).get("algo", "")
    texts.insert(1, ("Algorithm", single_line(algorithm, _MAX_FACT)))
    return [(label, value) for label, value in texts if value]


def _phrase_words(metadata: Mapping[str, str]) -> list[str]:
    key = "modelspec.trigger_phrase"
    if not _text(metadata, key):
        return []
    words = metadata[key][:_MAX_PHRASE].split(",")
    return words if len(metadata[key]) <= _MAX_PHRASE else words[:-1]


def _frequent_tags(metadata: Mapping[str, str]) -> list[str]:
    counts: dict[str, int] = {}
    for folder in _json_table(metadata, "ss_tag_frequency").values():
        if not isinstance(folder, dict):
            continue
        for tag, count in folder.items():
            if isinstance(count, int) and not isinstance(count, bool) and count > 0:
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    counts.pop("", None)
    most = max(counts.values(), default=0)
    often = [tag for tag, count in counts.items() if 2 * count >= most]
    # Whole sentences as captions occur once each: then no tag tells more than another.
    if most == 1 and len(often) > _MAX_WORDS:
        return []
    return sorted(often, key=lambda tag: -counts[tag])


def _folder_concepts(metadata: Mapping[str, str]) -> Iterator[str]:
    for folder in _json_table(metadata, "ss_dataset_dirs"):
        match = _CONCEPT.fullmatch(folder.strip())
        if match:
            yield match[1]


def _spelled(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):  # nested as deeply as it could just be read
        return ""


def _json_table(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """The JSON object under ``key``; empty if it is missing, damaged, huge, or something else."""
    text = metadata.get(key, "")
    if not isinstance(text, str) or len(text) > _MAX_JSON:
        return {}
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _text(metadata: Mapping[str, str], key: str) -> str:
    value = metadata.get(key, "")
    line = single_line(value, _MAX_FACT) if isinstance(value, str) else ""
    return "" if line.lower() in _NOTHING else line


def _first_text(metadata: Mapping[str, str], keys: tuple[str, ...]) -> str:
    return next((text for key in keys if (text := _text(metadata, key))), "")


def _by_beginning(value: str, table: tuple[tuple[str, str], ...]) -> str | None:
    return next((words for start, words in table if value.lower().startswith(start)), None)
