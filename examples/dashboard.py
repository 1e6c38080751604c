"""A page that shows a store live, with its leader, and changes values by compare-and-swap.

Start it: python examples/dashboard.py sqlite:///service.db 8090
Then open http://127.0.0.1:8090/ in a browser. It listens on this machine only, and has no password.
"""

import asyncio
import json
import secrets
import sys
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler

from aiolibkv import (
    AsyncStore,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    Snapshot,
    StoreError,
    open_store,
)

LEADER = "leader"
HOST = "127.0.0.1"
URL = web.AppKey("URL", str)
STORE = web.AppKey("STORE", AsyncStore)

routes = web.RouteTableDef()


@web.middleware
async def protect(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a foreign page in the same browser could send; answer for a store that cannot."""
    if request.url.host not in (HOST, "localhost"):
        raise web.HTTPForbidden(text="this page is for this machine only")
    if request.method != "GET" and request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="application/json is expected")
    try:
        return await handler(request)
    except StoreError as error:
        raise web.HTTPServiceUnavailable(text=str(error)) from error


@routes.get("/")
async def page(_: web.Request) -> web.Response:
    nonce = secrets.token_urlsafe()
    policy = f"default-src 'none'; connect-src 'self'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
    return web.Response(
        text=PAGE.replace("NONCE", nonce),
        content_type="text/html",
        headers={"Content-Security-Policy": policy, "X-Frame-Options": "DENY"},
    )


@routes.get("/events")
async def events(request: web.Request) -> web.StreamResponse:
    """Send each state of the store, and whether it is stale, as server-sent events."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    async with request.app[STORE].watch_tree("") as watch:
        snapshot: Snapshot | None = None
        told = ""
        while True:
            try:
                async with asyncio.timeout(1):
                    snapshot = await anext(watch)
            except TimeoutError:
                pass
            state: dict[str, object] = {"stale": watch.is_stale, "leader": None, "pairs": []}
            if snapshot is not None:
                leader = snapshot.get(LEADER)
                state["leader"] = None if leader is None else text(leader)
                state["pairs"] = [described(pair) for pair in snapshot]
            now = json.dumps(state)
            # A comment finds out whether the browser is still there.
            await response.write(b": \n\n" if now == told else f"data: {now}\n\n".encode())
            told = now


@routes.put("/pairs")
async def change(request: web.Request) -> web.Response:
    """Write, create or delete a pair, if it is still what the page has shown."""
    store = request.app[STORE]
    try:
        order = await request.json()
        key, value, index = str(order["key"]), order["value"], order["index"]
        previous = None if index is None else await store.get(key)
        if previous is not None and previous.last_index != index:
            raise KeyModifiedError("it was changed", key=key)
        if value is not None:
            await store.atomic_put(key, str(value).encode(), previous)
        elif previous is not None:
            await store.atomic_delete(key, previous)
    except (KeyExistsError, KeyModifiedError, KeyNotFoundError) as error:
        raise web.HTTPConflict(text=f"not written, somebody was faster: {error}") from error
    except (LookupError, TypeError, ValueError) as error:
        raise web.HTTPBadRequest(text=f"not written: {error}") from error
    return web.Response(status=204)


def text(pair: KVPair) -> str | None:
    """Return the value as text; None when it is none."""
    try:
        return pair.value.decode()
    except UnicodeDecodeError:
        return None


def described(pair: KVPair) -> dict[str, object]:
    return {"key": pair.key, "value": text(pair), "size": len(pair.value), "index": pair.last_index}


async def stored(app: web.Application) -> AsyncIterator[None]:
    async with open_store(app[URL]) as app[STORE]:
        yield


# What comes from the store gets into the page by textContent and value alone, never as HTML.
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Store</title>
<style nonce="NONCE">
body { font: 1rem/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 60rem; padding: 0 1rem }
form { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; border-top: 1px solid #ccc; padding: .4rem 0 }
label { flex: 1 1 14rem; overflow-wrap: anywhere }
input { flex: 2 1 14rem; min-width: 0; font: inherit }
button { font: inherit }
#new label { flex: none }
#told { min-height: 1.5em; color: #a00 }
</style>
<h1>Store</h1>
<p>Leader: <strong id="leader">none</strong> <span id="stale" role="status">connecting</span></p>
<p id="told" role="alert"></p>
<main id="pairs"></main>
<h2>New key</h2>
<form id="new">
<label for="key">Key</label><input id="key" required>
<label for="value">Value</label><input id="value">
<button>Create</button>
</form>
<script nonce="NONCE">
const at = id => document.getElementById(id), rows = new Map()
async function send(key, value, index) {
  const answer = await fetch("/pairs", {method: "PUT", headers: {"Content-Type": "application/json"},
    body: JSON.stringify({key, value, index})}).catch(error => ({ok: false, text: async () => String(error)}))
  at("told").textContent = answer.ok ? "" : await answer.text()
  return answer.ok
}
function button(text, key, action) {
  const made = document.createElement("button")
  made.textContent = text
  made.ariaLabel = text + " " + key
  made.type = action ? "button" : "submit"
  if (action) made.onclick = action
  return made
}
function row(key) {
  const form = document.createElement("form"), label = document.createElement("label")
  const input = document.createElement("input"), made = {form, input, index: null, shown: ""}
  input.id = "pair " + key
  label.htmlFor = input.id
  label.textContent = key
  form.append(label, input, button("Save", key), button("Reload", key, () => { show(made, made.now) }),
    button("Delete", key, () => send(key, null, made.index)))
  form.onsubmit = async event => {
    event.preventDefault()
    if (input.disabled) return
    const value = input.value
    if (!await send(key, value, made.index)) return
    made.shown = value
    refresh(made)
  }
  return made
}
function show(made, pair) {
  made.index = pair.index
  made.input.value = made.shown = pair.value ?? ""
  made.input.disabled = pair.value === null
  made.input.placeholder = pair.value === null ? pair.size + " bytes that are no text" : ""
}
// What is being edited keeps the index it began with, so that saving it tells a conflict.
function refresh(made) {
  const isEdited = made.index !== null && made.input.value !== made.shown
  if (made.now.index !== made.index && !isEdited) show(made, made.now)
}
new EventSource("/events").onmessage = event => {
  const state = JSON.parse(event.data), keys = new Set(state.pairs.map(pair => pair.key))
  at("leader").textContent = state.leader ?? "none"
  at("stale").textContent = state.stale ? "cut off: this may be old" : ""
  for (const [key, made] of rows) if (!keys.has(key)) { made.form.remove(); rows.delete(key) }
  state.pairs.forEach((pair, place) => {
    if (!rows.has(pair.key)) {
      rows.set(pair.key, row(pair.key))
      at("pairs").insertBefore(rows.get(pair.key).form, at("pairs").children[place] ?? null)
    }
    const made = rows.get(pair.key)
    made.now = pair
    refresh(made)
  })
}
at("new").onsubmit = async event => {
  event.preventDefault()
  if (await send(at("key").value, at("value").value, null)) event.target.reset()
}
</script>
</html>
"""


def make_app(url: str) -> web.Application:
    app = web.Application(middlewares=[protect])
    app[URL] = url
    app.cleanup_ctx.append(stored)
    app.add_routes(routes)
    return app


if __name__ == "__main__":
    store_url = sys.argv[1] if len(sys.argv) > 1 else "sqlite:///service.db"
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8090
    web.run_app(make_app(store_url), host=HOST, port=port, shutdown_timeout=0.5)
