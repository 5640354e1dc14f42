"""HTTP server of the viewer: read-only, on loopback by default."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
from collections.abc import Callable
from importlib import import_module

import anyio
import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import URL
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from stainssl.errors import SlideError, StainsslError
from stainssl.slides.readers import READERS
from stainssl.view.files import page_files
from stainssl.view.viewer_data import CACHEABLE, READ_ERRORS, ViewerData

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
COOKIE = "stainssl"
KEPT = {"Cache-Control": "private, max-age=3600"}
FRESH = {"Cache-Control": "no-store"}


def _guard(token: str | None) -> type[BaseHTTPMiddleware]:
    """Middleware that adds the security headers and refuses other sites and missing tokens."""

    class Guard(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, go_on: RequestResponseEndpoint) -> Response:
            response = self._refused(request) or await go_on(request)
            response.headers.update(HEADERS)
            return response

        def _refused(self, request: Request) -> Response | None:
            # Browsers send these headers; a link that a user follows has the mode `navigate`.
            from_elsewhere = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
            if from_elsewhere and request.headers.get("sec-fetch-mode") != "navigate":
                return PlainTextResponse("Request from another site.", 403)
            if token is None:
                return None
            if hmac.compare_digest(request.query_params.get("token", ""), token):
                response = RedirectResponse(URL("/"), 303)
                response.set_cookie(COOKIE, token, httponly=True, samesite="lax")
                return response
            if hmac.compare_digest(request.cookies.get(COOKIE, ""), token):
                return None
            return PlainTextResponse("Open the address printed by `stainssl view`.", 401)

    return Guard


def application(viewer: ViewerData, token: str | None = None, hosts: list[str] | None = None):  # type: ignore[no-untyped-def]
    """Create the ASGI application of the viewer.

    Args:
        viewer: data and pictures to serve.
        token: required for access; None requires none.
        hosts: accepted host names, against DNS rebinding; None accepts any.

    Raises:
        StainsslError: OpenSeadragon is not installed.
    """
    files = page_files()
    readers = anyio.CapacityLimiter(max(2, os.cpu_count() or 2))

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in files:
            return PlainTextResponse("Page not found.", 404)
        path, media_type = files[name]
        body = await anyio.to_thread.run_sync(path.read_bytes)
        return Response(body, media_type=media_type, headers={"Cache-Control": "no-cache"})

    async def data(request: Request) -> Response:
        def made() -> str:
            return json.dumps(viewer.data(*_segments(request)), separators=(",", ":"))

        return await _answered(made, "application/json", FRESH)

    async def picture(request: Request) -> Response:
        segments = _segments(request)
        headers = KEPT if segments[0] in CACHEABLE else FRESH

        def made() -> bytes:
            return viewer.picture(*segments)

        # One read per core at a time. Tables are not limited and need not wait for pictures.
        async with readers:
            if await request.is_disconnected():
                return Response(status_code=499)
            return await _answered(made, "image/jpeg", headers)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/data/{segments:path}", data),
            Route("/pictures/{segments:path}.jpg", picture),
            Route("/{name}", page),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts or ["*"], www_redirect=False),
            Middleware(_guard(token)),
            Middleware(GZipMiddleware, minimum_size=2048, compresslevel=4),
        ],
    )


def _segments(request: Request) -> list[str]:
    return str(request.path_params["segments"]).removesuffix(".json").split("/")


async def _answered(
    make: Callable[[], str | bytes], media_type: str, headers: dict[str, str]
) -> Response:
    try:
        body = await anyio.to_thread.run_sync(make)
    except KeyError:
        return PlainTextResponse("Not found in the cohorts of the config.", 404)
    except READ_ERRORS as error:
        return PlainTextResponse(str(error), 422 if isinstance(error, SlideError) else 503)
    return Response(body, media_type=media_type, headers=headers)


def bound(host: str, port: int) -> socket.socket:
    """Open a listening TCP socket; port 0 takes any free port.

    Raises:
        StainsslError: the port is in use or not permitted, or the host is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Otherwise a response body waits some 40 ms for the acknowledgement of its headers.
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        found.bind((host, port))
        found.listen()  # connections made before the server has started are queued
    except OSError as error:
        found.close()
        raise StainsslError(
            f"Port {port} of {host} cannot be used ({error.strerror or error}): choose one with "
            "--port, or --port 0 for any free port."
        ) from error
    return found


def serve(
    viewer: ViewerData, host: str, port: int, with_token: bool, report: Callable[[str], object]
) -> None:
    """Serve the viewer until interrupted.

    Args:
        viewer: data and pictures to serve; closed at the end.
        host: address to listen on; a token is required unless it is loopback.
        port: 0 takes any free port.
        with_token: require a token on loopback too.
        report: called with the address, which contains the token, once it can be opened.

    Raises:
        StainsslError: the port cannot be used, or OpenSeadragon is not installed.
    """
    page_files()
    import_module(READERS["tiff"])  # so that the first slide does not wait for it
    is_local = host in LOOPBACK
    token = secrets.token_urlsafe(24) if with_token or not is_local else None
    sock = bound(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}/"
    app = application(viewer, token, list(LOOPBACK) if is_local else None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    report(address + (f"?token={token}" if token else ""))
    try:
        server.run(sockets=[sock])
    finally:
        viewer.close()
