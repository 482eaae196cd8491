"""Text to image in one evaluation: distil a latent pipeline of diffusers on your own prompts.

    python examples/text_to_image.py hf-internal-testing/tiny-stable-diffusion-torch \
        --prompts prompts.txt --out runs/text

The first argument is the folder or Hub id of a text-conditional latent pipeline (Stable Diffusion
and its kin); prompts.txt has one prompt a line. Needs `pip install 'dsno[text]'`. The sizes only
try the chain in minutes: a pipeline worth distilling wants a GPU, tens of thousands of prompts,
`--count` of a few trajectories for each, and as many steps as fit; the student does not learn what
the prompts do not show. `dsno run distill ... --dry-run` says what a choice takes.

Guidance is distilled in: the teacher makes two evaluations a step for it, the student one in all.
"""

import argparse
import sys
from pathlib import Path

from dsno import DSNOPipeline
from dsno.cli import main as dsno


def recipe(given: argparse.Namespace) -> list[str]:
    """What is changed in the recipe `distill`."""
    return [
        f"teacher.source={given.pipeline}",
        f"collect.prompts={given.prompts}",
        f"collect.guidance_scale={given.guidance}",
        f"collect.count={given.count}",
        f"train.steps={given.steps}",
        "train.batch_size=8",
    ]


def main() -> None:
    """Distil, then draw the first prompts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", help="folder or Hub id")
    parser.add_argument("--prompts", type=Path, required=True, help="a text file, one a line")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--count", type=int, default=256, help="trajectories")
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    given = parser.parse_args()
    for stage in ("teacher", "collect", "train"):
        if code := dsno([stage, "distill", *recipe(given), "--out", str(given.out)]):
            sys.exit(code)
    pipeline = DSNOPipeline.from_pretrained(given.out / "student")
    lines = given.prompts.read_text(encoding="utf-8").splitlines()
    prompts = [line for line in lines if line.strip()][:4]
    for number, image in enumerate(pipeline(prompt=prompts).images):
        image.save(given.out / f"{number}.png")
    print(f"Wrote {len(prompts)} pictures of one evaluation each to {given.out}")


if __name__ == "__main__":
    main()
