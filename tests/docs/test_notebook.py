"""The notebook runs, and shows on GitHub what it made."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.launched.processes import Child

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
FEW = "TEACHER_STEPS, TRAJECTORIES, STUDENT_STEPS = 2, 8, 2"

nbformat = pytest.importorskip("nbformat", reason="notebooks need nbclient (make install)")
nbclient = pytest.importorskip("nbclient", reason="notebooks need nbclient (make install)")
pytest.importorskip("ipykernel", reason="notebooks need ipykernel (make install)")


class Process:
    """A child as Jupyter sees it: what `subprocess.Popen` has."""

    stdin = stdout = stderr = None

    def __init__(self, child: Child) -> None:
        self.child, self.pid = child, child.pid

    def poll(self) -> int | None:
        """None while it is at work."""
        return None if self.child.is_alive() else 0

    def wait(self) -> int:
        """Its exit code."""
        return self.child.end(60)

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        self.child.send_signal(number)


def pictures(notebook: Any) -> list[Image.Image]:
    """What its cells show, in order."""
    found = [
        o.data["image/png"] for c in notebook.cells for o in c.get("outputs", []) if "data" in o
    ]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in found]


def test_it_runs_from_the_teacher_to_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (numbers,) = [cell for cell in notebook.cells if cell.source.startswith("TEACHER_STEPS")]
    numbers.source = FEW
    log = tmp_path / "kernel.log"

    async def launch(self: Any, _: list[str], **__: Any) -> Any:
        self.process = Process(
            Child("tests.launched.kernel:serve", [self.parent.connection_file], log)
        )
        self.pid = self.process.pid
        return self.connection_info

    monkeypatch.setattr("jupyter_client.provisioning.LocalProvisioner.launch_kernel", launch)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    shown = [picture.size for picture in pictures(notebook)]
    # A digit is 48 pixels, and 2 are between two: 10 columns of 4, 4 and 6 rows.
    assert shown == [(498, 198), (498, 198), (498, 298)]
    (text,) = [o.text for c in notebook.cells for o in c.get("outputs", []) if "text" in o]
    assert text.count("from the solution, per pixel\n") == 5


def test_what_is_stored_was_made_by_all_cells_and_is_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {o.output_type for o in outputs} == {"execute_result", "stream"}
    assert {o.name for o in outputs if o.output_type == "stream"} == {"stdout"}
    assert len(pictures(notebook)) == 3
    assert NOTEBOOK.stat().st_size < 60_000
