"""Import once what every process of the package imports, for the processes forked from this one.

The package itself is forgotten again, as it reads its environment (is this rank 0?) when imported.
Nothing is computed here, so that a fork is like a fresh interpreter.
"""

from __future__ import annotations

import gc
import sys

import sklearn.datasets
import torch._dynamo  # which the first optimiser imports
import torch.utils.tensorboard
from diffusers import UNet2DModel  # which is imported on demand, with much else

import dsno.cli
import dsno.pipeline
import dsno.runs.run
import dsno.training.engine

__all__ = ["UNet2DModel", "dsno", "sklearn", "torch"]

for name in [name for name in sys.modules if name.partition(".")[0] == "dsno"]:
    del sys.modules[name]
gc.collect()
gc.freeze()  # or a fork's first collection would copy every page
