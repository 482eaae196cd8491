"""Run a notebook and store what it shows: texts and PNG pictures, no warnings.

    python tools/run_notebook.py examples/quickstart.ipynb

It is run in a temporary folder, in this environment (nbclient and ipykernel: `make install`).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def clean(notebook: nbformat.NotebookNode) -> None:
    """Leave out what depends on the machine, and pictures in a second format."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("image/jpeg", None)
    notebook.metadata["language_info"] = {"name": "python"}  # without its version


def main() -> None:
    """Run it and write it back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    given = parser.parse_args()
    notebook = nbformat.read(given.notebook, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=None, record_timing=False, resources=resources).execute()
    clean(notebook)
    nbformat.write(notebook, given.notebook)


if __name__ == "__main__":
    main()
