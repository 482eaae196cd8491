"""The page in a browser: what is clicked is answered, and nothing outside is asked for.

Needs Gradio and Playwright (the extras `app` and `dev`) and the system's Chromium.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dsno.app.gate import is_loopback
from dsno.app.listening import listen, url
from dsno.app.request import Limits, Request
from dsno.app.served import ServedModel
from dsno.cli import main
from dsno.pipeline import DSNOPipeline

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'dsno[app]'")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")
LIMITS = Limits(images=8, steps=6, queue=1)


@dataclass
class Server:
    """A page that is served, and the hosts that were looked up since."""

    url: str
    port: int
    hosts: list[str] = field(default_factory=list)

    def post(self, path: str, body: Any, **headers: str) -> int:
        """The status of a request of our own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(
            "POST", path, json.dumps(body), {"Content-Type": "application/json", **headers}
        )
        status = connection.getresponse().status
        connection.close()
        return status


@pytest.fixture(scope="module")
def server(served: ServedModel) -> Iterator[Server]:
    from dsno.app.server import server_of

    look_up = socket.getaddrinfo
    with listen("127.0.0.1", 0) as listener, pytest.MonkeyPatch.context() as patch:
        found = Server(url(listener), listener.getsockname()[1])

        def recorded(host: Any, *more: Any, **options: Any) -> Any:
            found.hosts.append(str(host))
            return look_up(host, *more, **options)

        patch.setattr(socket, "getaddrinfo", recorded)
        running = server_of(served, LIMITS, local=True)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 60
        while not running.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield found
        running.should_exit = running.force_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browsed(server: Server) -> Iterator[Any]:
    """The page in Chromium, with `asked`, the URLs it asked for, and `complaints`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        page.set_default_timeout(60_000)
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda line: page.complaints.append((line.type, line.text)))
        page.on("pageerror", lambda error: page.complaints.append(("error", str(error))))
        page.goto(server.url, wait_until="networkidle")
        yield page
        browser.close()


def open_tab(page: Any, name: str) -> None:
    """Click a tab, and wait until its fields hold what is written into them.

    When a tab is first opened, Gradio shows its fields and sets their first values a frame later;
    what is written in between is lost.
    """
    page.get_by_role("tab", name=name).click()
    page.evaluate(
        """async () => {
            for (let frame = 0; frame < 10; frame++) await new Promise(requestAnimationFrame);
        }"""
    )


def fill(page: Any, name: str, value: str) -> None:
    page.locator(f"#{name} input").fill(value)


def size(page: Any, name: str) -> tuple[int, int]:
    """Pixels of the picture that a figure shows."""
    image = page.locator(f"#{name} img:not([hidden])")
    image.wait_for()
    found = image.evaluate(
        "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    )
    return found[0], found[1]


def test_one_click_draws_the_student_and_beside_it_the_teacher(browsed: Any) -> None:
    fill(browsed, "count", "4")
    fill(browsed, "steps", "3")
    browsed.get_by_role("button", name="Draw", exact=True).click()
    teacher = browsed.locator("#teacher figcaption")
    teacher.wait_for()
    student = browsed.locator("#student figcaption").inner_text()
    assert re.match(r"1 network evaluation each, [\d.]+ m?s for 4 images", student)
    assert re.match(r"6 network evaluations each, [\d.]+ m?s for 4 images", teacher.inner_text())
    assert browsed.locator("#teacher h2").inner_text() == "Teacher, DPM-Solver++(2M), 3 steps"
    assert size(browsed, "student") == size(browsed, "teacher") == (660, 660)
    assert browsed.locator("#student img").bounding_box()["width"] > 250


def test_a_picture_is_saved_as_png(browsed: Any, tmp_path: Path) -> None:
    fill(browsed, "count", "4")
    browsed.get_by_role("button", name="Draw", exact=True).click()
    link = browsed.locator("#student a")
    link.wait_for()
    with browsed.expect_download() as waiting:
        link.click()
    assert waiting.value.suggested_filename == "tiny _model_-0.png"
    waiting.value.save_as(tmp_path / "a.png")
    with Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())) as image:
        assert (image.format, image.size) == ("PNG", (660, 660))


@pytest.mark.parametrize(
    ("count", "says"),
    [
        ("9", "The number of images must be a whole number from 1 to 8, not 9."),
        ("", "The number of images is missing; give a whole number from 1 to 8."),
    ],
)
def test_wrong_input_is_answered_on_the_page(browsed: Any, count: str, says: str) -> None:
    fill(browsed, "count", count)
    open_tab(browsed, "Samples")
    browsed.get_by_role("button", name="Draw", exact=True).click()
    browsed.get_by_role("alert").get_by_text(says, exact=True).wait_for()
    fill(browsed, "count", "1")
    browsed.get_by_role("button", name="Draw", exact=True).click()
    browsed.get_by_role("alert").wait_for(state="detached")


def test_too_many_images_for_the_device_are_said(
    browsed: Any, served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(request: Request) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(served, "draw", full)
    fill(browsed, "count", "4")
    browsed.get_by_role("button", name="Draw", exact=True).click()
    browsed.get_by_role("alert").get_by_text("has too little memory for so many images").wait_for()


def test_the_slider_goes_along_the_trajectory(browsed: Any) -> None:
    fill(browsed, "count", "4")
    open_tab(browsed, "Trajectory")
    browsed.get_by_role("button", name="Draw trajectory").click()
    film = browsed.locator("#film")
    film.get_by_text("3 states of 4 images from 1 network evaluation").wait_for()
    seen = []
    for state, time_ in (("2", "t = 0"), ("1", "t = 0.25"), ("0", "t = 1")):
        film.get_by_role("slider").fill(state)
        assert film.locator("output").inner_text() == time_
        shown = film.locator("img:visible")
        assert shown.count() == 1
        seen.append(shown.get_attribute("src"))
        assert film.locator("a").get_attribute("href") == seen[-1]
    assert len(set(seen)) == 3


def test_noises_of_two_seeds_are_interpolated(browsed: Any) -> None:
    open_tab(browsed, "Interpolation")
    fill(browsed, "points", "4")
    fill(browsed, "rows", "2")
    fill(browsed, "other_seed", "7")
    browsed.get_by_role("button", name="Interpolate").click()
    browsed.get_by_text("From seed 0 to seed 7").wait_for()
    assert size(browsed, "between") == (670, 330)  # 4 x 2 images of 8 x 20 pixels, gaps of 10
    fill(browsed, "rows", "3")
    browsed.get_by_role("button", name="Interpolate").click()
    browsed.get_by_role("alert").get_by_text("3 rows of 4 images are 12, but").wait_for()


def test_neither_the_page_nor_the_server_asks_anybody_else(browsed: Any, server: Server) -> None:
    browsed.get_by_role("tab", name="Samples").wait_for()
    others = [u for u in browsed.asked if not u.startswith((server.url + "/", "data:", "blob:"))]
    assert browsed.asked
    assert others == []
    assert [host for host in server.hosts if not is_loopback(host)] == []
    assert [c for c in browsed.complaints if c[0] == "error"] == []


# ----------------------------------------------------------------------- without a browser


def test_the_server_takes_no_files_and_answers_to_no_other_name(server: Server) -> None:
    assert server.post("/gradio_api/upload", {}) == 404
    assert server.post("/gradio_api/queue/join", {}, Host="attacker.example") == 403


def test_one_request_is_worked_on_and_as_many_wait_as_allowed(
    server: Server, served: ServedModel
) -> None:
    def ask() -> int:
        body = {"data": [0, 1, "0", 2.0, "ddim", 1], "fn_index": 0, "session_hash": "waiting"}
        return server.post("/gradio_api/queue/join", body)

    with served._busy:  # the network is at work for somebody
        accepted, deadline = 0, time.monotonic() + 20
        while accepted < 2 and time.monotonic() < deadline:  # until the first is worked on
            accepted += ask() == 200
            time.sleep(0.02)
        assert [ask() for _ in range(3)] == [503] * 3


def test_a_page_without_a_teacher_says_so_and_asks_for_no_solver(served: ServedModel) -> None:
    from dsno.app.page import build

    def of(model: ServedModel) -> tuple[str, set[str]]:
        components = build(model, LIMITS).get_config_file()["components"]
        return json.dumps(components), {part["props"].get("elem_id") for part in components}

    text, fields = of(ServedModel(DSNOPipeline(served.pipeline.model), "alone"))
    assert "This model was saved without its teacher." in text
    assert {"seed", "count", "label", "guidance", "draw"} <= fields
    assert not {"solver", "steps", "prompt"} & fields
    text, fields = of(served)
    assert "without its teacher" not in text
    assert {"solver", "steps"} <= fields


def test_the_command_serves_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("dsno.app.server.serve", lambda *given: seen.append(given))
    options = ["--port", "0", "--max-images", "9", "--max-steps", "5", "--max-queue", "2"]
    assert main(["serve", str(folder), *options]) == 0
    ((model, limits, listener),) = seen
    out, err = capsys.readouterr()
    assert re.fullmatch(r"Serving tiny at http://127\.0\.0\.1:\d+\n", out)
    assert "no password" not in err
    assert model.offer.has_teacher
    assert limits == Limits(9, 5, 2)
    assert listener.fileno() == -1  # closed
    assert main(["serve", str(folder), "--port", "0", "--host", "0.0.0.0", "--quiet"]) == 0
    assert "there is no password" in capsys.readouterr().err
