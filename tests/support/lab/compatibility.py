"""Print docs/compatibility.md: which trainers' files reach which models, counted and not claimed.

    python -m lab.compatibility > docs/compatibility.md

Run by hand when names change, with the newest ComfyUI (COMFYUI_PATH). It holds the files of `families`
against ComfyUI's own model classes, with the pack loaded as ComfyUI loads it; tests/host/test_families.py
checks the same counts.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

from lab.pack import load_pack
from lab.prime import prime_comfy

HEAD = """\
# Compatibility

Which trainers' files reach which models, counted: every file holds one adapter for each layer that its
trainer trains. Printed by `python -m lab.compatibility` (in `tests/support`); not written by hand.
"""

TABLES_HEAD = """
## Files and models

Each row is a file as the trainer writes it, with one adapter for every linear layer and convolution that it
trains, held against ComfyUI's own model class. *reached* counts the layers that came to the parameter, or the
rows of a parameter, that they were trained on. The models are real: small ones where it says tiny, full width
without values for the others. Those at the end need a ComfyUI that is newer than 0.3.75.
"""

DIALECTS_HEAD = """
## Dialects

What a layer's name may begin with. Any of them may carry any algorithm, and any spelling of its tensors.
"""

TAIL = """
## Spellings of a tensor

`lora_up`/`lora_down`, `lora_B`/`lora_A` (with or without `.weight`, with the name of PEFT's adapter,
`.default` or any other, behind it), `.lora.up`, `_lora.up` on attention processors,
`.lora_linear_layer.up`, HCP's `.___.layer.W_up`; DoRA's `dora_scale`, `lora_magnitude_vector` and
`magnitude`; everything of LyCORIS' as LyCORIS spells it, also behind HCP's `.___.`. Alpha is the tensor
`alpha`, or PEFT's configuration in the metadata or beside the file, or else the rank; PEFT's
`lora_B.bias` is scaled as its weight is. Whole weights and biases beside adapters (PEFT's
`modules_to_save` and `bias`, diffusers' norms) take the place of the model's. lightx2v's `diff_m` is the
change of Wan's `modulation`.

Files in diffusers' and PEFT's names are written as both read them: no alpha, a LoRA's bias as `lora_B.bias`,
ranks that differ in the metadata. What is no adapter to them (embeddings, tensors that nothing here reads)
is left out of a file that is converted for them, and named, since diffusers would refuse all of the file.
Both know a replaced weight only from the model that they train; it is kept as `set_weight`, which ComfyUI
reads.

Under a prefix that nobody knows (`net.`, `pipe.dit.`, `_orig_mod.` …) a layer is looked for by the
longest end of its name that the model knows.

## Fused and split layers

- A file's `to_q`, `to_k`, `to_v` (and `proj_mlp`) go to their rows of the weight that a model keeps for all
  of them. Every algorithm is exact there.
- A file's one layer for several (`qkv`, `to_qkv`, `in_proj`, `kv` …) goes to the weights that a model keeps
  for each, without forming the change first. BOFT, DoRA on the input axis and an OFT whose blocks cross from
  one piece into the next need rows that a patch never sees; they are refused by name. Merge LyCORIS reads
  all pieces and takes those as well, and so does Combine LyCORIS. A T-LoRA is worked out from all pieces
  everywhere.
- Biases are cut the same way.
- Written in another spelling, a LoRA is cut or joined the same way: joined, its rank is the sum of the ranks,
  or that of one where all share a factor. So are LoHa (cut only), DoRA on outputs and whole changes; others
  are refused by name.
- A file may change one weight twice: under two names, or by a fused layer beside its parts. The same
  change is made once; a layer that was never trained gives way to one that was; of different changes the
  one of more of the weight is used, or else the first. Every report names what was not used. The layers
  of a file that Combine LyCORIS made of several are a sum, and all of them are used.

## Text encoders

Which encoder `lora_te1_`, `lora_te2_` or `text_encoder_2.` means depends on who counted: kohya calls Flux' T5
`lora_te3_`, LyCORIS and OneTrainer call it `lora_te2_`. The path of a layer and its shape decide; the number
only breaks ties. Norms, embeddings, projections and biases are reached like everything else.

## Versions of ComfyUI

All tests that run ComfyUI's own code (`tests/host`) pass on 0.3.75 and on 0.33, which differ in this:

- The weights of Flux', Chroma's and HunyuanVideo's norms are called `scale` in one and `weight` in the other.
  Both are one name here, whichever the file, the model or its file has.
- ComfyUI's loaders leave some parameters out: those of modules that have others inside (Wan's `modulation`)
  and, with the dynamic VRAM of newer versions, those of modules that do not cast their weights (norms of
  SD 3.5, T5, Llama …). They are patched right after each load; should a loader leave out others, the log
  names them.
- Quantised models take every algorithm in Apply LyCORIS, and Combine LyCORIS reads their weights. Merge
  LyCORIS writes into plain and scaled fp8; files that are packed (NVFP4 and others) are refused by that name.

## What is not mapped

- Buffers of a model (SD 3's `pos_embed`), which ComfyUI does not patch; Merge LyCORIS changes them.
- `norm2` and `norm3` of HunyuanDiT, which have each other's names in diffusers: they mean the model's own.
- `base` tables of HCP-Diffusion (whole weights; `from-hcp` makes changes of them), and its moving averages
  (`lora_ema`).
- PEFT's `lora_embedding_A`/`lora_embedding_B`, GLoRA and VeRA; its (IA)³ of convolutions (the file does not
  tell which side is scaled); its OFT of kernels larger than 1×1 (no change of the weight); PiSSA, OLoRA,
  CorDA, LoftQ and LoRA-GA that were not converted (they change the base too). All are refused with the
  reason.
"""


def host_modules() -> SimpleNamespace:
    """The modules of the pack that place files, as `families.outcome` wants them."""
    prime_comfy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ComfyUI's own imports warn
        import comfy.sd  # noqa: F401

        import nodes  # noqa: F401 - ComfyUI's, which is there before any pack is

        name = load_pack().__name__
    return SimpleNamespace(
        library=sys.modules[f"{name}.lycoris_algos"],
        formats=sys.modules[f"{name}.lycoris_algos.formats"],
        keymap=sys.modules[f"{name}.nodes.host.keymap"],
        matching=sys.modules[f"{name}.nodes.host.matching"],
    )


@dataclass(frozen=True)
class Row:
    """One file held against one model: who writes it, the key of its first layer, and the counts."""

    trainer: str
    first: str
    held: int
    reached: int


def tables(host: SimpleNamespace) -> Iterator[tuple[str, list[Row]]]:
    """(title of a model, a row for each file that trainers write for it)."""
    import families

    for subject in families.SUBJECTS:
        if not subject.has():
            continue
        rows = []
        for file in subject.files(families.shapes_of(subject)):
            found = families.outcome(subject, file, host)
            first = file.spell(next(iter(file.layers)), "down")
            rows.append(Row(file.trainer, first, found.held, found.reached))
        yield subject.title, rows
    families.forget()


def summary(title: str, rows: list[Row]) -> str:
    """One line for one model."""
    held, reached = sum(row.held for row in rows), sum(row.reached for row in rows)
    share = "all" if held == reached else f"{reached} of"
    return f"| {title} | {len(rows)} | {share} {held} |"


def document(host: SimpleNamespace) -> Iterator[str]:
    """The lines of the document."""
    every = list(tables(host))
    yield HEAD
    yield "| model | kinds of files | layers reached |"
    yield "| --- | ---: | ---: |"
    yield from (summary(title, rows) for title, rows in every)
    yield TABLES_HEAD
    for title, rows in every:
        yield f"### {title}\n"
        yield "| file of | its first layer | layers | reached |"
        yield "| --- | --- | ---: | ---: |"
        yield from (f"| {row.trainer} | `{row.first}` | {row.held} | {row.reached} |" for row in rows)
        yield ""
    yield DIALECTS_HEAD.lstrip("\n")
    yield "| dialect | model | text encoders |"
    yield "| --- | --- | --- |"
    for dialect in host.formats.DIALECTS:
        yield f"| {dialect.title} | {_code(dialect.model_prefixes)} | {_code(dialect.text_prefixes)} |"
    yield TAIL.rstrip("\n")


def _code(prefixes: Iterable[str]) -> str:
    return " ".join(f"`{prefix}`" for prefix in prefixes)


def main() -> int:
    logging.disable(logging.WARNING)
    import torch

    host = host_modules()
    with torch.inference_mode():
        for line in document(host):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
