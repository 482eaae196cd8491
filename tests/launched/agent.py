"""What `torchrun` does, in a process of its own that has imported the libraries already."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from dsno.cli import main


def run(options: Sequence[str], words: Sequence[str]) -> None:
    """Start ranks that run `dsno`, under PyTorch's own agent.

    Args:
        options: of `torchrun`.
        words: after `dsno`.
    """
    config, _, _ = config_from_args(parse_args([*options, "--start-method", "fork", "dsno"]))
    elastic_launch(config, _rank)(list(words))


def _rank(words: list[str]) -> None:
    sys.exit(main(words))
