"""Import once what every process of the package imports, for the processes forked from this one.

Nothing is computed here and nothing of the package reads its environment when imported (is this
rank 0?), so that a fork is like a fresh interpreter.
"""

from __future__ import annotations

import gc

import sklearn.datasets
import torch._dynamo  # which the first optimiser imports
import torch.utils.tensorboard
from diffusers import UNet2DModel  # which is imported on demand, with much else

import dsno.cli
import dsno.pipeline
import dsno.runs.run
import dsno.training.engine

__all__ = ["UNet2DModel", "dsno", "sklearn", "torch"]

gc.collect()
gc.freeze()  # or a fork's first collection would copy every page
