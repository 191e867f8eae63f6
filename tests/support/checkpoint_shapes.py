"""Names and shapes of checkpoints as they are published, with few channels: {key: shape}, no numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Shapes = dict[str, tuple[int, ...]]
Parameters = Iterator[tuple[str, tuple[int, ...]]]

UNET = "model.diffusion_model."


def _linear(path: str, outputs: int, inputs: int, *, bias: bool = True) -> Parameters:
    yield f"{path}.weight", (outputs, inputs)
    if bias:
        yield f"{path}.bias", (outputs,)


def _conv(path: str, outputs: int, inputs: int, size: int = 3) -> Parameters:
    yield f"{path}.weight", (outputs, inputs, size, size)
    yield f"{path}.bias", (outputs,)


def _norm(path: str, size: int) -> Parameters:
    yield f"{path}.weight", (size,)
    yield f"{path}.bias", (size,)


def _resnet(path: str, outputs: int, inputs: int, embedding: int) -> Parameters:
    yield from _norm(f"{path}.in_layers.0", inputs)
    yield from _conv(f"{path}.in_layers.2", outputs, inputs)
    yield from _linear(f"{path}.emb_layers.1", outputs, embedding)
    yield from _norm(f"{path}.out_layers.0", outputs)
    yield from _conv(f"{path}.out_layers.3", outputs, outputs)
    if outputs != inputs:
        yield from _conv(f"{path}.skip_connection", outputs, inputs, 1)


def _attention(path: str, size: int, depth: int) -> Parameters:
    yield from _norm(f"{path}.norm", size)
    yield from _conv(f"{path}.proj_in", size, size, 1)
    for number in range(depth):
        block = f"{path}.transformer_blocks.{number}"
        for attention, inputs in (("attn1", size), ("attn2", 12)):
            yield from _linear(f"{block}.{attention}.to_q", size, size, bias=False)
            yield from _linear(f"{block}.{attention}.to_k", size, inputs, bias=False)
            yield from _linear(f"{block}.{attention}.to_v", size, inputs, bias=False)
            yield from _linear(f"{block}.{attention}.to_out.0", size, size)
        yield from _linear(f"{block}.ff.net.0.proj", 8 * size, size)
        yield from _linear(f"{block}.ff.net.2", size, 4 * size)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _norm(f"{block}.{norm}", size)
    yield from _conv(f"{path}.proj_out", size, size, 1)


def _unet(multipliers: Sequence[int], depths: Sequence[int], *, label: bool) -> Parameters:
    """Two residual blocks in each level, with so many transformer blocks; ``label`` is SDXL's embedding."""
    size, embedding = 8, 32
    yield from _linear(f"{UNET}time_embed.0", embedding, size)
    yield from _linear(f"{UNET}time_embed.2", embedding, embedding)
    if label:
        yield from _linear(f"{UNET}label_emb.0.0", embedding, 20)
        yield from _linear(f"{UNET}label_emb.0.2", embedding, embedding)
    yield from _conv(f"{UNET}input_blocks.0.0", size, 4)
    block, now, skips = 1, size, [size]
    for level, (multiplier, depth) in enumerate(zip(multipliers, depths, strict=True)):
        for _ in range(2):
            yield from _resnet(f"{UNET}input_blocks.{block}.0", multiplier * size, now, embedding)
            now = multiplier * size
            if depth:
                yield from _attention(f"{UNET}input_blocks.{block}.1", now, depth)
            skips.append(now)
            block += 1
        if level < len(multipliers) - 1:
            yield from _conv(f"{UNET}input_blocks.{block}.0.op", now, now)
            skips.append(now)
            block += 1
    yield from _resnet(f"{UNET}middle_block.0", now, now, embedding)
    yield from _attention(f"{UNET}middle_block.1", now, max(depths[-1], 1))
    yield from _resnet(f"{UNET}middle_block.2", now, now, embedding)
    block = 0
    for level, (multiplier, depth) in reversed(list(enumerate(zip(multipliers, depths, strict=True)))):
        for number in range(3):
            yield from _resnet(
                f"{UNET}output_blocks.{block}.0", multiplier * size, now + skips.pop(), embedding
            )
            now = multiplier * size
            module = 1
            if depth:
                yield from _attention(f"{UNET}output_blocks.{block}.1", now, depth)
                module = 2
            if number == 2 and level:
                yield from _conv(f"{UNET}output_blocks.{block}.{module}.conv", now, now)
            block += 1
    yield from _norm(f"{UNET}out.0", size)
    yield from _conv(f"{UNET}out.2", 4, size)


def clip(root: str, width: int, layers: int = 2) -> Shapes:
    """A CLIP as the transformers library stores it."""
    text = f"{root}text_model."
    shapes: Shapes = {
        f"{text}embeddings.token_embedding.weight": (40, width),
        f"{text}embeddings.position_embedding.weight": (7, width),
        **dict(_norm(f"{text}final_layer_norm", width)),
    }
    for number in range(layers):
        layer = f"{text}encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", width, width)
        shapes |= _linear(f"{layer}.mlp.fc1", 4 * width, width)
        shapes |= _linear(f"{layer}.mlp.fc2", width, 4 * width)
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= _norm(f"{layer}.{norm}", width)
    return shapes


def openclip(root: str, width: int, layers: int = 2) -> Shapes:
    """A CLIP as OpenCLIP stores it: q, k and v in one weight, the projection transposed."""
    shapes: Shapes = {
        f"{root}positional_embedding": (7, width),
        f"{root}text_projection": (width, width),
        f"{root}token_embedding.weight": (40, width),
        **dict(_norm(f"{root}ln_final", width)),
    }
    for number in range(layers):
        block = f"{root}transformer.resblocks.{number}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
        }
        shapes |= _linear(f"{block}.attn.out_proj", width, width)
        shapes |= _linear(f"{block}.mlp.c_fc", 4 * width, width)
        shapes |= _linear(f"{block}.mlp.c_proj", width, 4 * width)
        for norm in ("ln_1", "ln_2"):
            shapes |= _norm(f"{block}.{norm}", width)
    return shapes


def t5(root: str, width: int = 8) -> Shapes:
    """A T5."""
    shapes: Shapes = {f"{root}shared.weight": (40, width), f"{root}encoder.final_layer_norm.weight": (width,)}
    for number in range(2):
        block = f"{root}encoder.block.{number}.layer"
        for name in "qkvo":
            shapes[f"{block}.0.SelfAttention.{name}.weight"] = (width, width)
        shapes[f"{block}.0.layer_norm.weight"] = (width,)
        for name, shape in (("wi_0", (16, width)), ("wi_1", (16, width)), ("wo", (width, 16))):
            shapes[f"{block}.1.DenseReluDense.{name}.weight"] = shape
        shapes[f"{block}.1.layer_norm.weight"] = (width,)
    return shapes


def sd15() -> Shapes:
    """Stable Diffusion 1.5."""
    return {
        **dict(_unet((1, 2, 4, 4), (1, 1, 1, 0), label=False)),
        **clip("cond_stage_model.transformer.", 768),
    }


def sdxl() -> Shapes:
    """SDXL, with its two CLIPs."""
    return {
        **dict(_unet((1, 2, 4), (0, 2, 3), label=True)),
        **clip("conditioner.embedders.0.transformer.", 768),
        **openclip("conditioner.embedders.1.model.", 1280),
    }


def flux(prefix: str = "", size: int = 12, blocks: int = 2) -> Shapes:
    """Flux' diffusion model."""
    shapes: Shapes = {}
    for name, inputs in (("img_in", 16), ("txt_in", 20)):
        shapes |= _linear(f"{prefix}{name}", size, inputs)
    for name in ("time_in", "vector_in", "guidance_in"):
        shapes |= _linear(f"{prefix}{name}.in_layer", size, 8)
        shapes |= _linear(f"{prefix}{name}.out_layer", size, size)
    for number in range(blocks):
        double, single = f"{prefix}double_blocks.{number}", f"{prefix}single_blocks.{number}"
        for stream in ("img", "txt"):
            shapes |= _linear(f"{double}.{stream}_mod.lin", 6 * size, size)
            shapes |= _linear(f"{double}.{stream}_attn.qkv", 3 * size, size)
            shapes |= _linear(f"{double}.{stream}_attn.proj", size, size)
            shapes |= _linear(f"{double}.{stream}_mlp.0", 4 * size, size)
            shapes |= _linear(f"{double}.{stream}_mlp.2", size, 4 * size)
            for norm in ("query_norm", "key_norm"):
                shapes[f"{double}.{stream}_attn.norm.{norm}.scale"] = (4,)
        shapes |= _linear(f"{single}.linear1", 7 * size, size)
        shapes |= _linear(f"{single}.linear2", size, 5 * size)
        shapes |= _linear(f"{single}.modulation.lin", 3 * size, size)
        for norm in ("query_norm", "key_norm"):
            shapes[f"{single}.norm.{norm}.scale"] = (4,)
    shapes |= _linear(f"{prefix}final_layer.linear", 16, size)
    shapes |= _linear(f"{prefix}final_layer.adaLN_modulation.1", 2 * size, size)
    return shapes


def flux_checkpoint() -> Shapes:
    """Flux with its text encoders, as ComfyUI saves it."""
    return {
        **flux(UNET),
        **clip("text_encoders.clip_l.transformer.", 768),
        **t5("text_encoders.t5xxl.transformer."),
    }
