"""Cors: which web pages may call this server from a browser (https://fetch.spec.whatwg.org/#http-cors-protocol).

In: the allowed origins; none named means all. Out: a middleware that answers preflights, and a hook that marks answers.
"""

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "authorization, content-type",
    "Access-Control-Max-Age": "600",
}


class Cors:
    def __init__(self, origins: tuple[str, ...]) -> None:
        self._origins = () if "*" in origins else origins

    @property
    def preflight(self) -> Middleware:
        @web.middleware
        async def answer_preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                return web.Response(headers=_PREFLIGHT)
            return await handler(request)

        return answer_preflight

    async def allow(self, request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get("Origin")
        if self._origins:
            response.headers["Vary"] = "Origin"  # or a cache gives one page the answer that another may have
        if origin is not None and (not self._origins or origin in self._origins):
            response.headers["Access-Control-Allow-Origin"] = origin if self._origins else "*"
            response.headers["Access-Control-Expose-Headers"] = "*"
