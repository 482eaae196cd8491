"""A pipeline's samples in the types that diffusers' pipelines give them.

Source of the conventions: `VaeImageProcessor.postprocess` of diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from dsno.support.images import to_pil

OUTPUT_TYPES = ("pil", "np", "numpy", "pt", "latent", "raw")


@dataclass
class DSNOPipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        images: as the output type says, see `convert`; of a model whose
            samples are not images, the samples themselves, (batch, *shape).
        trajectory: (batch, times, *shape), if asked for.
        times: (times,), float64, of the trajectory; falling, 1 is noise and 0 data.
        class_labels: (batch,), of a conditional model.
        latents: (batch, *shape), what a latent model's images were decoded from.
        nfe: network evaluations per sample: the operator's, and the teacher's if there were more
            steps (two a step under guidance).
    """

    images: list[Image.Image] | np.ndarray | Tensor
    trajectory: Tensor | None = None
    times: Tensor | None = None
    class_labels: Tensor | None = None
    latents: Tensor | None = None
    nfe: int = 1


def convert(samples: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    """Decoded samples (batch, C, H, W) in about [-1, 1] as the output type has them.

    | type          | what it is                                                |
    |---------------|-----------------------------------------------------------|
    | `pil`         | a list of 8-bit images                                    |
    | `np`, `numpy` | float32 (batch, H, W, C) in [0, 1]                        |
    | `pt`          | (batch, C, H, W) in [0, 1]                                |
    | `raw`         | (batch, C, H, W) as it is: about [-1, 1]                  |

    Samples that are not images come as they are, whatever the type.
    """
    if output_type == "raw" or samples.ndim != 4:
        return samples
    if output_type == "pil":
        return to_pil(samples)
    scaled = (samples / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return scaled
    array: np.ndarray = scaled.permute(0, 2, 3, 1).float().cpu().numpy()
    return array
