"""The page behind its gate, on an address that is already taken."""

from __future__ import annotations

import contextlib
import logging
import socket

import gradio as gr
import uvicorn
from fastapi import FastAPI

from dsno.app.gate import guarded, is_loopback
from dsno.app.page import STYLE, build, theme
from dsno.app.request import Limits
from dsno.app.served import ServedModel

GRACE = 2
"""Seconds that open connections are given at the end: browsers keep one each."""


def server_of(model: ServedModel, limits: Limits, *, local: bool) -> uvicorn.Server:
    """A server of the model's page; `run(sockets=[...])` serves until it is stopped.

    Args:
        model: what is served.
        limits: of a request and of the queue.
        local: whether only this machine's own names are answered to.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)
    inside = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build(model, limits),
        path="/",
        footer_links=[],
        run_history=False,
        root_path="",
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        head=f"<style>{STYLE.read_text(encoding='utf-8')}</style>",
    )
    return uvicorn.Server(
        uvicorn.Config(
            guarded(inside, local=local),
            log_level="warning",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
    )


def serve(model: ServedModel, limits: Limits, listener: socket.socket) -> None:
    """Serve the page until the user interrupts it."""
    host = listener.getsockname()[0]
    server = server_of(model, limits, local=is_loopback(host))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
