"""A server whose words are those of other versions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Self

from aiohttp import ClientSession, ClientTimeout, web
from yarl import URL

from aiolibkv.testing.servers import ConsulServer

Change = Callable[[web.Request, int, bytes], tuple[int, bytes]]
"""Makes another answer (status and body) of an answer to a request."""


class Rewriting:
    """Passes requests on to a server, and changes its answers.

    Args:
        server: where they are passed on to.
        change: what is made of the answers.
        refuse: answers requests that are not passed on; None for those that are.
        hold: tells of requests that are never answered.
        finish: has the last word on an answer, such as how it is encoded.
        path: before that of the server's API.

    Attributes:
        held: how many requests were not answered.
    """

    def __init__(
        self,
        server: ConsulServer,
        change: Change = lambda _, status, body: (status, body),
        *,
        refuse: Callable[[web.Request], tuple[int, str] | None] = lambda _: None,
        hold: Callable[[web.Request], bool] = lambda _: False,
        finish: Callable[[web.Response], object] = lambda _: None,
        path: str = "",
    ) -> None:
        self.held = 0
        self._hold = hold
        self._finish = finish
        self._path = path
        self._server = server
        self._change = change
        self._refuse = refuse

    async def __aenter__(self) -> Self:
        self._client = ClientSession(skip_auto_headers=("Accept-Encoding",), timeout=ClientTimeout(None))
        application = web.Application(client_max_size=2**22)
        application.router.add_route("*", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.endpoint = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self._hold(request):
            self.held += 1
            await asyncio.get_running_loop().create_future()
        if (refusal := self._refuse(request)) is not None:
            return web.Response(status=refusal[0], text=refusal[1])
        url = URL(f"http://{self._server.endpoint}{request.raw_path.removeprefix(self._path)}", encoded=True)
        headers = {name: value for name, value in request.headers.items() if name == "X-Consul-Token"}
        async with self._client.request(request.method, url, data=body, headers=headers) as answer:
            headers = {name: value for name, value in answer.headers.items() if name.startswith("X-")}
            status, changed = self._change(request, answer.status, await answer.read())
        response = web.Response(status=status, body=changed, headers=headers)
        self._finish(response)
        return response


def forwarded(_: web.Request, status: int, body: bytes) -> tuple[int, bytes]:
    """Say it as a follower or client agent does that asked the leader."""
    return (status, body) if status in {200, 404, 409} else (status, b"rpc error making call: " + body)


def explained(_: web.Request, status: int, body: bytes) -> tuple[int, bytes]:
    """Deny as 1.12 and later do."""
    if status not in {403, 409}:
        return status, body
    accessor = "token with AccessorID '8b7a4d2e-0000-0000-0000-000000000000'"
    details = f": {accessor} lacks permission 'key:read' on \"other/key\"".encode()
    quoted = details.replace(b'"', b'\\"') if status == 409 else details
    return status, re.sub(rb"Permission denied", lambda found: found[0] + quoted, body)
