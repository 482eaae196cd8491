"""Sample an exported model with onnxruntime, without PyTorch and without this package.

    dsno export runs/digits --to onnx --out model.onnx
    pip install numpy onnxruntime pillow
    python examples/sample_onnx.py model.onnx --num 64 --out samples.png

The same few lines are all there is to it in any language that onnxruntime has: unit normal noise
in, samples in about [-1, 1] out, in one evaluation.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

MODES = {1: "L", 3: "RGB"}


def load(path: Path) -> tuple[onnxruntime.InferenceSession, dict]:
    """The graph, and what its file says of it."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["dsno"])


def sample(
    session: onnxruntime.InferenceSession,
    about: dict,
    count: int,
    seed: int = 0,
    label: int | None = None,
    guidance_scale: float | None = None,
) -> np.ndarray:
    """Samples (count, *shape); a class and a guidance scale only for models that have them."""
    random = np.random.default_rng(seed)
    shape = (count, *about["sample_shape"])
    inputs = {"noise": random.standard_normal(shape, dtype=np.float32)}
    names = {one.name for one in session.get_inputs()}
    if "class_labels" in names:
        shares = np.array(about["class_frequencies"])
        labels = random.choice(len(shares), count, p=shares / shares.sum())
        inputs["class_labels"] = labels if label is None else np.full(count, label)
        inputs["class_labels"] = inputs["class_labels"].astype(np.int64)
    if "guidance_scale" in names:
        middle = sum(about["guidance_scale"]) / 2
        scale = middle if guidance_scale is None else guidance_scale
        inputs["guidance_scale"] = np.full(count, scale, np.float32)
    return session.run([about["output"]], inputs)[0]


def picture(samples: np.ndarray, columns: int = 8) -> Image.Image:
    """Images (n, C, H, W) in [-1, 1] as one grid, at least 32 pixels a side each."""
    count, channels, height, width = samples.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    cells = np.full((rows * columns, channels, height, width), -1, np.float32)
    cells[:count] = samples
    grid = cells.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * height, columns * width, channels)
    levels = np.clip((grid + 1) * 127.5, 0, 255).round().astype(np.uint8)
    image = Image.fromarray(levels[..., 0] if channels == 1 else levels, MODES[channels])
    scale = max(1, 32 // max(height, width))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--num", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help=".png or .npy")
    asked = parser.parse_args()
    session, about = load(asked.model)
    if about["output"] != "sample":
        parser.error("this graph gives whole trajectories; export it without --trajectory")
    samples = sample(session, about, asked.num, asked.seed, asked.label, asked.guidance_scale)
    if asked.out.suffix == ".npy":
        np.save(asked.out, samples)
    else:
        picture(samples).save(asked.out)


if __name__ == "__main__":
    main()
