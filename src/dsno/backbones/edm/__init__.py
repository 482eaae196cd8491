"""The networks of EDM: `SongUNet` (DDPM++ and NCSN++) and `DhariwalUNet` (ADM).

Their parameters and buffers have the names and shapes of the published checkpoints of Karras et
al., arXiv 2206.00364 (Table 7 and appendix F.2), so that those load strictly. The architectures:
DDPM++ and NCSN++ from Song et al., arXiv 2011.13456; ADM from Dhariwal & Nichol, arXiv 2105.05233.

Three things differ from the published code. Class labels are indices, not one-hot rows; the index
`label_dim` is the null class, whose label vector is zero. Labels are never dropped here, whatever
`label_dropout` says, since training chooses the null class by itself. Augmentation labels are
always zero, as in sampling; their weights are kept so that checkpoints load.

Shapes: images (B, C, H, W), embeddings (B, E), labels int64 (B,).
"""

from dsno.backbones.edm.interface import (
    call_edm,
    edm_levels,
    edm_middle,
    edm_readout,
    edm_sites,
)
from dsno.backbones.edm.networks import DhariwalUNet, SongUNet

__all__ = [
    "DhariwalUNet",
    "SongUNet",
    "call_edm",
    "edm_levels",
    "edm_middle",
    "edm_readout",
    "edm_sites",
]
