"""What of the server a browser may reach: the page and its queue, from the right host.

Gradio's server can do more than this page needs: take files, pass requests on to other servers,
keep a history, edit itself. All of that is answered with 404, so no error of it can matter here.
The browser is told to ask no other server for anything, too, and to show the page in no frame.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

LARGEST_BODY = 64 * 1024
"""Bytes of a request; the longest prompt in four-byte characters has 4,000."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
"""Content-Security-Policy. Gradio's page makes functions of strings, and styles of them."""
HEADERS = (
    (b"content-security-policy", POLICY.encode("ascii")),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_API = "/gradio_api"
_READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static|svelte)/.+"
    rf"|{_API}/(app_id|startup-events|theme\.css|queue/data|heartbeat/\w+)/?"
)
_WRITE = re.compile(rf"{_API}/(queue/join|reset|cancel)/?")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
"""An ASGI application."""


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, which no other can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refusal(method: str, path: str, headers: MutableMapping[str, str], *, local: bool) -> int:
    """The status a request is refused with; 0 if it is not.

    Args:
        method: of HTTP.
        path: without the query.
        headers: by their names in lower case.
        local: whether only this machine's own names are served. Another name that leads here was
            made to by somebody else's page (DNS rebinding).
    """
    host = re.sub(r":\d+$", "", headers.get("host", ""))
    if local and not is_loopback(host):
        return 403
    if method in ("GET", "HEAD"):
        return 0 if _READ.fullmatch(path) else 404
    if method != "POST" or not _WRITE.fullmatch(path):
        return 404
    length = headers.get("content-length", "")
    if not length.isdecimal():
        return 411
    return 0 if int(length) <= LARGEST_BODY else 413


def guarded(application: Application, *, local: bool) -> Application:
    """The application behind this gate; arguments as `refusal`."""

    async def serve(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await application(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket; the page has none
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        status = refusal(scope["method"], scope["path"], headers, local=local)
        if status:
            text = [(b"content-type", b"text/plain"), *HEADERS]
            await send({"type": "http.response.start", "status": status, "headers": text})
            await send({"type": "http.response.body", "body": b"Not served here.\n"})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        await application(scope, receive, with_headers)

    return serve
