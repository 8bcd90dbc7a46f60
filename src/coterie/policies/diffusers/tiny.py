"""Diffusers pipelines of a few thousand random weights, one of each architecture: to try everything without a download.

They know no pictures. What they draw can be rewarded all the same, and every part is diffusers' own. Where the VAE is
an AutoencoderKL its decoder is written out, so that the first three channels of a latent are the colours of a picture.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

WORDS = 32
"""Width of text embeddings."""
LENGTH = 77
"""Tokens that CLIP reads."""
SIZE = {"height": 16, "width": 16, "frames": 5, "max_sequence_length": 32}
"""What it draws, unless the recipe says otherwise."""
CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation + string.ascii_uppercase


class TinySpec(BaseModel):
    """A tiny pipeline from random weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = "sd3"
    """sd3 | flux | sana | wan | sd"""
    layers: int = Field(2, ge=1)
    width: int = Field(32, ge=16, multiple_of=16)


def build(spec: TinySpec, seed: int) -> Any:
    """The pipeline of a spec. Raises KeyError for an architecture that is not there."""
    make = BUILDERS[spec.architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = make(spec)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        _wake(pipe.unet if hasattr(pipe, "unet") else pipe.transformer)
    return pipe


def _wake(model: torch.nn.Module) -> None:
    """Layers that start at zero get weights, so that what the model says depends on all it reads."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1 and not p.any():
                p.normal_(0.0, 0.5 * p.shape[1] ** -0.5)


def _sd3(spec: TinySpec) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=spec.layers, attention_head_dim=16,
        num_attention_heads=spec.width // 16, joint_attention_dim=WORDS, caption_projection_dim=spec.width,
        pooled_projection_dim=2 * WORDS, pos_embed_max_size=16,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), _vae(shift=0.0), _clip(projected=True), _clip_words(),
        _clip(projected=True), _clip_words(), _t5(), _t5_words(),
    )  # fmt: skip


def _flux(spec: TinySpec) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=spec.layers, num_single_layers=spec.layers, attention_head_dim=16,
        num_attention_heads=spec.width // 16, joint_attention_dim=WORDS, pooled_projection_dim=WORDS,
        guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return FluxPipeline(scheduler, _vae(shift=0.0), _clip(), _clip_words(), _t5(), _t5_words(), transformer)


def _sana(spec: TinySpec) -> Any:
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=spec.layers, attention_head_dim=16,
        num_attention_heads=spec.width // 16, num_cross_attention_heads=spec.width // 16, cross_attention_head_dim=16,
        cross_attention_dim=spec.width, caption_channels=WORDS, sample_size=8, patch_size=1,
    )  # fmt: skip
    sides: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        sides |= {
            f"{side}_block_types": "ResBlock", f"{side}_block_out_channels": (8, 8),
            f"{side}_layers_per_block": (1, 1), f"{side}_qkv_multiscales": ((), ()),
        }  # fmt: skip
    vae = AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, upsample_block_type="interpolate",
        downsample_block_type="Conv", decoder_norm_types="rms_norm", decoder_act_fns="silu", **sides,
    )  # fmt: skip
    words = _gemma_words()
    text = Gemma2Model(
        Gemma2Config(
            vocab_size=len(words), hidden_size=WORDS, intermediate_size=WORDS, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        )
    )  # fmt: skip
    return SanaPipeline(words, text, vae, transformer, FlowMatchEulerDiscreteScheduler(shift=3.0))


def _wan(spec: TinySpec) -> Any:
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=spec.width // 16, attention_head_dim=16, in_channels=16,
        out_channels=16, text_dim=WORDS, freq_dim=32, ffn_dim=2 * spec.width, num_layers=spec.layers,
        rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    words = _t5_words()
    text = UMT5EncoderModel(
        UMT5Config(vocab_size=len(words), d_model=WORDS, d_kv=8, d_ff=WORDS, num_layers=1, num_heads=2)
    )
    return WanPipeline(words, text, vae, FlowMatchEulerDiscreteScheduler(shift=3.0), transformer)


def _sd(spec: TinySpec) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(spec.width, spec.width),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WORDS, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        _vae(), _clip(), _clip_words(), unet, scheduler, None, None, requires_safety_checker=False
    )


BUILDERS: dict[str, Callable[[TinySpec], Any]] = {
    "sd3": _sd3,
    "flux": _flux,
    "sana": _sana,
    "wan": _wan,
    "sd": _sd,
}


def _vae(shift: float | None = None) -> Any:
    """Halves a side, four numbers a place; the decoder shows three of them as they are, but for their scale."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8), layers_per_block=1, latent_channels=4,
        norm_num_groups=4, sample_size=16, scaling_factor=1.0, shift_factor=shift, use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    )  # fmt: skip
    decoder = vae.decoder
    with torch.no_grad():
        for name, p in decoder.named_parameters():  # nothing is added to what passes by
            if "conv2" in name or "to_out" in name:
                p.zero_()
        same = [module.conv for module in decoder.modules() if type(module).__name__ == "Upsample2D"]
        for layer in (vae.post_quant_conv, *same):
            if layer is not None:
                _set(layer, torch.eye(layer.weight.shape[0]))
        into = torch.zeros(8, 4)
        into[[0, 2, 4], [0, 1, 2]], into[[1, 3, 5], [0, 1, 2]] = 1.0, -1.0  # silu(x) - silu(-x) is x
        _set(decoder.conv_in, into)
        _set(decoder.conv_out, 0.7 * into[:, :3].T)
    return vae


def _set(layer: torch.nn.Conv2d, matrix: torch.Tensor) -> None:
    """A convolution that multiplies each place by the matrix."""
    layer.weight.zero_()
    layer.weight[:, :, layer.weight.shape[2] // 2, layer.weight.shape[3] // 2] = matrix
    if layer.bias is not None:
        layer.bias.zero_()


def _clip(projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    words = _clip_words()
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=WORDS // 2 if projected else WORDS, intermediate_size=WORDS,
        projection_dim=WORDS, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=LENGTH,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(_t5_words()), d_model=WORDS, d_kv=8, d_ff=WORDS, num_layers=1, num_heads=2)
    )


def _clip_words() -> Any:
    """One token a character."""
    from transformers import CLIPTokenizer

    names = ["<|startoftext|>", "<|endoftext|>", *CHARACTERS, *(c + "</w>" for c in CHARACTERS)]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=LENGTH)


def _t5_words() -> Any:
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in CHARACTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def _gemma_words() -> Any:
    from transformers import GemmaTokenizer

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *CHARACTERS]
    return GemmaTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=4096)
