"""Tiny models with random weights, made from the real classes and saved as their users do."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}


def shake(module: nn.Module) -> nn.Module:
    """Randomise what is zero at first, so that every weight matters."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return module.eval()


def zero_temporal(lifted: nn.Module) -> None:
    """Set every temporal kernel to zero: the network is then the one that was lifted."""
    for name, parameter in lifted.named_parameters():
        if "temporal." in name:
            nn.init.zeros_(parameter)


def save(pipeline: Any, folder: Path) -> Path:
    """Save a pipeline with safetensors, without the libraries' bars."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def unet2d(**options: Any) -> diffusers.UNet2DModel:
    """A tiny `UNet2DModel`."""
    return shake(diffusers.UNet2DModel(**{**TINY, **options}))


def ddpm_folder(folder: Path, scheduler: Any = None, **options: Any) -> Path:
    """A `DDPMPipeline`, unconditional unless `num_class_embeds` is given."""
    scheduler = scheduler or diffusers.DDPMScheduler(num_train_timesteps=100)
    return save(diffusers.DDPMPipeline(unet2d(**options), scheduler), folder)


def autoencoder(channels: int = 4, **options: Any) -> diffusers.AutoencoderKL:
    """A tiny autoencoder that halves the size once."""
    made = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
        **options,
    )
    return made.eval()


def text_parts(width: int = 8, length: int = 6) -> tuple[Any, Any]:
    """A CLIP tokenizer that knows letters only, and a tiny CLIP text model."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    return tokenizer, transformers.CLIPTextModel(config).eval()


def text_unet(width: int = 8) -> diffusers.UNet2DConditionModel:
    """A tiny text-conditional U-Net on 4 latent channels."""
    made = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=width,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return shake(made)


def stable_diffusion_folder(folder: Path, **vae: Any) -> Path:
    """A `StableDiffusionPipeline` whose autoencoder has a shift as well as a scale."""
    tokenizer, encoder = text_parts()
    pipeline = diffusers.StableDiffusionPipeline(
        vae=autoencoder(**{"scaling_factor": 0.2, "shift_factor": 0.1, **vae}),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=text_unet(),
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            num_train_timesteps=100,
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    return save(pipeline, folder)


def dit_folder(folder: Path) -> Path:
    """A `DiTPipeline` with 5 classes and learned variances."""
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_num_groups=4,
    )
    pipeline = diffusers.DiTPipeline(
        shake(network), autoencoder(scaling_factor=0.2), diffusers.DDIMScheduler(clip_sample=False)
    )
    return save(pipeline, folder)


def ldm_folder(folder: Path) -> Path:
    """An unconditional latent pipeline with a quantised autoencoder."""
    vqvae = diffusers.VQModel(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=3,
        num_vq_embeddings=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    scheduler = diffusers.DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear")
    return save(diffusers.LDMPipeline(vqvae, unet2d(), scheduler), folder)


def seeded(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Normal numbers that depend on the seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
