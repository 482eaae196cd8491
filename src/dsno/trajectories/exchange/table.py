"""The layouts of an export."""

from __future__ import annotations

from dsno.trajectories.exchange.huggingface import HuggingFace
from dsno.trajectories.exchange.layout import Layout
from dsno.trajectories.exchange.npz import Npz
from dsno.trajectories.exchange.ode_lmdb import OdeLmdb
from dsno.trajectories.exchange.webdataset import WebDataset

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (WebDataset(), Npz(), HuggingFace(), OdeLmdb())
}
