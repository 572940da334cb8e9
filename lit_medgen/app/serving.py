"""The server of the page: on 127.0.0.1 alone, without a request to anybody else, its files gone at the end.

What gradio would do by itself and does not here: count starts and errors at its makers, load fonts, keep a history of
runs, open a tunnel. The browser is told to load nothing from elsewhere, and a site whose name leads here is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_medgen.app.environment import HOST
from lit_medgen.errors import InputError

OWN = "'self'"
POLICY = "; ".join(
    (
        f"default-src {OWN}",
        f"script-src {OWN} 'unsafe-inline' 'unsafe-eval'",  # as gradio's own pages need
        f"style-src {OWN} 'unsafe-inline'",
        f"img-src {OWN} data: blob:",
        f"font-src {OWN} data:",
        f"worker-src {OWN} blob:",
        f"base-uri {OWN}",
        f"form-action {OWN}",
        "frame-ancestors 'none'",
    )
)
"""What the browser may load: nothing that is not of this server."""
OTHERS = re.compile(rb"https?://(?!127\.0\.0\.1[:/])[^\"'\\\s<>)]*")
"""Addresses of others: gradio's page has some of its makers' pictures and of example files."""
FONTS = ["system-ui", "sans-serif"]


class Alone:
    """Middleware that takes addresses of others out of the page, and has the browser load nothing from elsewhere.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers as the app does, but for headers and the page itself."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()

        async def passed(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name, value) for name, value in message["headers"] if name != b"content-security-policy"]
                start.update(message, headers=[*own, (b"content-security-policy", POLICY.encode())])
                if not _is_page(start):
                    await send(start)
            elif not _is_page(start):
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    await _send_page(start, OTHERS.sub(b"", bytes(body)), send)

        await self.app(scope, receive, passed)


def _is_page(start: Message) -> bool:
    return dict(start["headers"]).get(b"content-type", b"").startswith(b"text/html")


async def _send_page(start: Message, body: bytes, send: Send) -> None:
    headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
    await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def served(blocks: gr.Blocks, port: int | None) -> Iterator[str]:
    """The address of the page while it is served; InputError if the port is taken. None: the first free one from 7860.

    Environment variables of gradio change nothing of this.
    """
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    own: dict[str, Any] = {"share": False, "ssr_mode": False, "mcp_server": False, "enable_monitoring": False}
    own |= {"run_history": False, "footer_links": [], "inbrowser": False, "pwa": False, "theme": theme}
    try:
        _, address, _ = blocks.launch(
            server_name=HOST,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            app_kwargs={
                "middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]), Middleware(Alone)]
            },
            **own,
        )
    except OSError as error:
        what = (
            f"--port {port} is taken, or not yours to open; give another one"
            if port
            else "no free port from 7860 on; give --port N"
        )
        raise InputError(f"app: {what}.") from error
    try:
        yield address
    finally:
        blocks.close(verbose=False)
