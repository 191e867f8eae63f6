"""How many blocks of each group the models have, and how many weights of each kind.

Parameters that are no ``.weight`` count as well, biases do not.
"""

from __future__ import annotations

#: Title of a subject: ({group: blocks}, {kind: weights}).
COUNTS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "SD 1.5 (tiny)": (
        {"input": 4, "middle": 1, "output": 4, "embed": 1, "final": 1},
        {
            "attn.q": 4,
            "attn.k": 4,
            "attn.v": 4,
            "attn.out": 4,
            "cross.q": 4,
            "cross.k": 4,
            "cross.v": 4,
            "cross.out": 4,
            "ff": 8,
            "conv": 23,
            "norm": 33,
            "embed": 10,
            "proj": 9,
        },
    ),
    "SDXL": (
        {"input": 9, "middle": 1, "output": 9, "embed": 1, "final": 1},
        {
            "attn.q": 70,
            "attn.k": 70,
            "attn.v": 70,
            "attn.out": 70,
            "cross.q": 70,
            "cross.k": 70,
            "cross.v": 70,
            "cross.out": 70,
            "ff": 140,
            "conv": 50,
            "norm": 256,
            "embed": 21,
            "proj": 23,
        },
    ),
    "SD 3 (tiny)": (
        {"joint": 2, "embed": 1, "final": 1},
        {"attn.qkv": 4, "attn.out": 3, "ff": 6, "mod": 5, "embed": 7, "proj": 1},
    ),
    "SD 3.5": (
        {"joint": 24, "embed": 1, "final": 1},
        {"attn.qkv": 50, "attn.out": 49, "ff": 94, "norm": 100, "mod": 49, "embed": 7, "proj": 1},
    ),
    "HunyuanDiT": (
        {"blocks": 4, "embed": 1, "final": 1},
        {
            "attn.qkv": 4,
            "attn.out": 4,
            "cross.q": 4,
            "cross.qkv": 4,
            "cross.out": 4,
            "ff": 8,
            "norm": 29,
            "mod": 5,
            "embed": 13,
            "proj": 2,
        },
    ),
    "Flux": (
        {"double": 19, "single": 38, "embed": 1, "final": 1},
        {
            "attn.qkv": 38,
            "attn.out": 38,
            "fused": 76,
            "ff": 76,
            "norm": 152,
            "mod": 77,
            "embed": 8,
            "proj": 1,
        },
    ),
    "Chroma": (
        {"double": 2, "single": 2, "embed": 1, "final": 1},
        {"attn.qkv": 4, "attn.out": 4, "fused": 4, "ff": 8, "norm": 17, "embed": 14, "proj": 1},
    ),
    "Flux 2": (
        {"double": 2, "single": 2, "embed": 1, "final": 1},
        {"attn.qkv": 4, "attn.out": 4, "fused": 4, "ff": 8, "norm": 12, "mod": 4, "embed": 6, "proj": 1},
    ),
    "HunyuanVideo (tiny)": (
        {"double": 1, "single": 1, "refiner": 2, "embed": 1, "final": 1},
        {"attn.qkv": 4, "attn.out": 4, "fused": 2, "ff": 8, "norm": 10, "mod": 6, "embed": 12, "proj": 1},
    ),
    "Wan 2.1 (tiny)": (
        {"blocks": 2, "embed": 1, "final": 1},
        {
            "attn.q": 2,
            "attn.k": 2,
            "attn.v": 2,
            "attn.out": 2,
            "cross.q": 2,
            "cross.k": 2,
            "cross.v": 2,
            "cross.out": 2,
            "ff": 4,
            "norm": 10,
            "mod": 4,
            "embed": 5,
            "proj": 1,
        },
    ),
    "Wan 2.1 image to video": (
        {"blocks": 2, "embed": 1, "final": 1},
        {
            "attn.q": 2,
            "attn.k": 2,
            "attn.v": 2,
            "attn.out": 2,
            "cross.q": 2,
            "cross.k": 4,
            "cross.v": 4,
            "cross.out": 2,
            "ff": 4,
            "norm": 12,
            "mod": 4,
            "embed": 9,
            "proj": 1,
        },
    ),
    "Z-Image": (
        {"layers": 30, "noise_refiner": 2, "context_refiner": 2, "embed": 1, "final": 1},
        {"attn.qkv": 34, "attn.out": 34, "ff": 102, "norm": 204, "mod": 33, "embed": 5, "proj": 1},
    ),
    "Lumina 2": (
        {"layers": 26, "noise_refiner": 2, "context_refiner": 2, "embed": 1, "final": 1},
        {"attn.qkv": 30, "attn.out": 30, "ff": 90, "norm": 180, "mod": 29, "embed": 5, "proj": 1},
    ),
    "Qwen-Image": (
        {"blocks": 60, "embed": 1, "final": 1},
        {
            "attn.q": 120,
            "attn.k": 120,
            "attn.v": 120,
            "attn.out": 120,
            "ff": 240,
            "norm": 241,
            "mod": 121,
            "embed": 4,
            "proj": 1,
        },
    ),
    "HiDream": (
        {"double": 1, "single": 1, "embed": 1, "final": 1},
        {
            "attn.q": 3,
            "attn.k": 3,
            "attn.v": 3,
            "attn.out": 3,
            "ff": 35,
            "norm": 6,
            "mod": 3,
            "embed": 8,
            "proj": 1,
        },
    ),
    "CLIP of SD 1.5 (real)": ({"te": 13}, {"text": 101}),
    "CLIP of SDXL": ({"te": 13, "te2": 33}, {"text": 362}),
    "CLIP of SD 3": ({"te": 13, "te2": 33, "te3": 25}, {"text": 582}),
    "CLIP of Flux": ({"te": 13, "te2": 25}, {"text": 321}),
    "CLIP of HunyuanVideo": ({"te": 13, "te2": 33}, {"text": 392}),
    "CLIP of Qwen-Image": ({"te": 29, "te_vision": 33}, {"text": 483}),
    "CLIP of Lumina 2": ({"te": 27}, {"text": 289}),
    "Krea 2 (tiny)": (
        {"blocks": 2, "refiner": 2, "layerwise": 2, "embed": 1, "final": 1},
        {
            "attn.q": 6,
            "attn.k": 6,
            "attn.v": 6,
            "attn.out": 12,
            "ff": 18,
            "norm": 25,
            "mod": 4,
            "embed": 7,
            "proj": 1,
        },
    ),
    "LTX-2 (tiny)": (
        {"blocks": 2, "video_connector": 1, "audio_connector": 1, "embed": 1, "final": 1},
        {
            "attn.q": 6,
            "attn.k": 6,
            "attn.v": 6,
            "attn.out": 6,
            "cross.q": 8,
            "cross.k": 8,
            "cross.v": 8,
            "cross.out": 8,
            "ff": 12,
            "norm": 28,
            "mod": 16,
            "embed": 20,
            "proj": 2,
        },
    ),
    "ACE-Step 1.5 (tiny)": (
        {"layers": 2, "lyric": 1, "timbre": 1, "pooler": 1, "detokenizer": 2, "embed": 1, "final": 1},
        {
            "attn.q": 7,
            "attn.k": 7,
            "attn.v": 7,
            "attn.out": 7,
            "cross.q": 2,
            "cross.k": 2,
            "cross.v": 2,
            "cross.out": 2,
            "ff": 21,
            "norm": 39,
            "mod": 5,
            "embed": 18,
            "proj": 2,
        },
    ),
    "Kandinsky 5 (tiny)": (
        {"visual": 2, "txt": 1, "embed": 1, "final": 1},
        {
            "attn.q": 3,
            "attn.k": 3,
            "attn.v": 3,
            "attn.out": 3,
            "cross.q": 2,
            "cross.k": 2,
            "cross.v": 2,
            "cross.out": 2,
            "ff": 6,
            "norm": 12,
            "mod": 4,
            "embed": 5,
            "proj": 1,
        },
    ),
    "Ernie Image (tiny)": (
        {"layers": 2, "embed": 1, "final": 1},
        {
            "attn.q": 2,
            "attn.k": 2,
            "attn.v": 2,
            "attn.out": 2,
            "ff": 6,
            "norm": 8,
            "mod": 2,
            "embed": 4,
            "proj": 1,
        },
    ),
    "Anima (tiny)": (
        {"blocks": 2, "adapter": 6, "embed": 1, "final": 1},
        {
            "attn.q": 8,
            "attn.k": 8,
            "attn.v": 8,
            "attn.out": 8,
            "cross.q": 8,
            "cross.k": 8,
            "cross.v": 8,
            "cross.out": 8,
            "ff": 16,
            "norm": 52,
            "mod": 14,
            "embed": 5,
            "proj": 1,
        },
    ),
}

_QKV = ("attn.q", "attn.k", "attn.v")
_QKV_MLP = (*_QKV, "ff")
#: The parts into which fused weights of a subject fall.
ROWS: dict[str, set[tuple[str, ...]]] = {
    **{title: {_QKV} for title in ("SD 3 (tiny)", "SD 3.5", "Z-Image", "Lumina 2")},
    **{title: {_QKV, _QKV_MLP} for title in ("Flux", "Chroma", "Flux 2", "HunyuanVideo (tiny)")},
    "HunyuanDiT": {_QKV, ("cross.k", "cross.v")},
}

#: (subject, trainer) of files whose names do not tell. The tiny UNet has fewer blocks in a level than any
#: real one; trainers number the text encoders of Flux and HunyuanVideo in their own order.
UNTOLD = {
    *(
        ("SD 1.5 (tiny)", trainer)
        for trainer in (
            "kohya, diffusers' names",
            "LyCORIS wrapper, SimpleTuner",
            "diffusers",
            "diffusers before PEFT",
            "diffusers, attention processors",
            "diffusers, processors, bare",
            "PEFT",
            "PEFT's old script",
            "HCP-Diffusion .safetensors",
            "HCP-Diffusion .ckpt",
        )
    ),
    ("CLIP of SD 1.5 (real)", "as lora:…"),
    ("CLIP of SD 1.5 (real)", "as lycoris_…"),
    ("CLIP of Flux", "kohya"),
    ("CLIP of Flux", "ComfyUI, OneTrainer's style for it"),
    ("CLIP of Flux", "as t5.…"),
    *(
        ("CLIP of HunyuanVideo", trainer)
        for trainer in (
            "kohya",
            "LyCORIS in kohya, OneTrainer",
            "diffusers",
            "ComfyUI, OneTrainer's style for it",
        )
    ),
}
