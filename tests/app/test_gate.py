"""What of the server can be reached, and by whom."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dsno.app.gate import guarded, is_loopback, refusal

HERE = {"host": "127.0.0.1:7860", "content-length": "100"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("HEAD", "/"),
        ("GET", "/config"),
        ("GET", "/assets/index-1.js"),
        ("GET", "/gradio_api/queue/data"),
        ("GET", "/gradio_api/heartbeat/abc12"),
        ("POST", "/gradio_api/queue/join"),
    ],
)
def test_the_page_and_its_queue_are_served(method: str, path: str) -> None:
    assert refusal(method, path, HERE, local=True) == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=https://example.com/"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/call/draw"),
        ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/info"),
        ("GET", "/monitoring"),
        ("POST", "/"),
        ("DELETE", "/"),
        ("GET", "/gradio_api/queue/data/../../upload"),
    ],
)
def test_nothing_else_is(method: str, path: str) -> None:
    assert refusal(method, path, HERE, local=True) == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7860", 0),
        ("127.0.0.1", 0),
        ("[::1]:7860", 0),
        ("attacker.example:7860", 403),
        ("", 403),
    ],
)
def test_another_name_for_this_machine_is_refused_unless_others_may_ask(
    host: str, status: int
) -> None:
    assert refusal("GET", "/", {"host": host}, local=True) == status
    assert refusal("GET", "/", {"host": host}, local=False) == 0


@pytest.mark.parametrize(("length", "status"), [("65536", 0), ("65537", 413), ("", 411)])
def test_a_request_is_short_and_says_so(length: str, status: int) -> None:
    headers = {**HERE, "content-length": length}
    assert refusal("POST", "/gradio_api/queue/join", headers, local=True) == status


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("192.168.0.7", False),
        ("localhost.example.com", False),
    ],
)
def test_loopback_is_known(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def answer(path: str) -> list[dict[str, Any]]:
    """What the gate sends in front of an application that sends an empty page."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [(b"host", b"localhost")],
    }
    asyncio.run(guarded(application, local=True)(scope, None, send))  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/gradio_api/upload", 404)])
def test_the_browser_is_told_to_ask_no_other_server(path: str, status: int) -> None:
    start, body = answer(path)
    assert start["status"] == status
    policy = dict(start["headers"])[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert "http" not in policy
    assert body["type"] == "http.response.body"
