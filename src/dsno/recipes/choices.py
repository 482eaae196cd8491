"""The names a setting may have, each list once.

The tables that implement them are typed by, or made from, these. Nothing is imported here but
`typing`, so that every room can.
"""

from __future__ import annotations

from typing import Literal

Arithmetic = Literal["exact", "tf32", "bf16"]
Compilation = Literal[False, True, "reduce-overhead"]
DataSource = Literal["digits", "emoji", "folder", "huggingface", "npz"]
Decay = Literal["constant", "cosine", "milestones"]
FeatureName = Literal["pixels", "thumbnail", "classifier", "imagenet", "inception", "torchscript"]
Lift = Literal["all", "core", "middle", "readout"]
Loss = Literal["l1", "l2", "pseudo_huber", "lpips_vgg"]
OperatorOutput = Literal["denoised", "state"]
Precision = Literal["no", "bf16", "fp16"]
PredictionType = Literal["epsilon", "v_prediction", "sample", "edm", "flow", "sample_and_epsilon"]
Resampling = Literal["conv", "resnet"]
SliceWeight = Literal["sqrt_snr", "flat"]
Solver = Literal["ddim", "heun", "dpm++2m", "unipc"]
SpacingName = Literal["uniform", "quadratic", "karras"]
StorageType = Literal["float16", "float32"]
Tracker = Literal[
    "aim",
    "clearml",
    "comet_ml",
    "dvclive",
    "mlflow",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
]
