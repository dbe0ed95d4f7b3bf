"""`python -m local.receiver [port]`: a webhook receiver to try Waybill with; prints each event as it arrives."""

from __future__ import annotations

import json
import sys

from aiohttp import web

DEFAULT_PORT = 9099


async def _receive(request: web.Request) -> web.Response:
    event = json.loads(await request.read())
    sys.stdout.write(f"{event['time']}  {event['type']:<28} {event['subject']}  {json.dumps(event['data'])}\n")
    sys.stdout.flush()
    return web.Response(status=204)


def main(arguments: list[str]) -> None:
    """Listen on loopback until Ctrl-C; answer every event with 204. It checks no signature: see the README."""
    app = web.Application()
    app.router.add_post("/{path:.*}", _receive)
    port = int(arguments[0]) if arguments else DEFAULT_PORT
    sys.stdout.write(f"Listening on http://127.0.0.1:{port}/ ; Ctrl-C ends it.\n")
    sys.stdout.flush()
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main(sys.argv[1:])
