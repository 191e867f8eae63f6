"""Talk to a ComfyUI server as a program does: post a workflow, follow it, read what came out."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

Status = Literal["success", "error", "interrupted", "refused"]
Progress = Callable[[str, int, int], None]
"""Called with a node id, the step and the number of steps."""

ENDS: Mapping[str, Status] = {
    "execution_success": "success",
    "execution_error": "error",
    "execution_interrupted": "interrupted",
}

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy from the environment has no business between this program and its own machine."""


class ServerUnreachableError(ConnectionError):
    """Nobody answered at that address."""


@dataclass(frozen=True)
class RunResult:
    """What became of one workflow."""

    status: Status
    seconds: float
    prompt_id: str = ""
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list, repr=False)
    """Every message of the server while it ran: (type, data)."""
    history: dict[str, Any] = field(default_factory=dict, repr=False)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Node id -> what that node showed."""
    error: dict[str, Any] = field(default_factory=dict)
    """Of a failed run: node_id, node_type, exception_message and more; of a refused one: type, message."""
    node_errors: dict[str, Any] = field(default_factory=dict)
    """Of a refused workflow: node id -> what is wrong with its inputs."""

    def images(self) -> list[dict[str, str]]:
        """The pictures that were saved, in the order of the nodes."""
        nodes = sorted(self.outputs, key=lambda node: [int(part) for part in node.split(":")])
        shown = [image for node in nodes for image in self.outputs[node].get("images", [])]
        return [image for image in shown if image.get("type") == "output"]

    def text(self, node_id: str | None = None) -> str:
        """The text that one node showed, or that all did."""
        of = self.outputs.values() if node_id is None else [self.outputs.get(node_id, {})]
        return "\n".join(str(line) for output in of for line in output.get("text", []))


def run_workflow(
    url: str,
    prompt: Mapping[str, Any],
    *,
    on_progress: Progress | None = None,
    timeout: float = 300.0,
) -> RunResult:
    """Run one workflow to its end; a failure of the workflow is a result, not an exception.

    Raises TimeoutError, and ConnectionError when the server goes away.
    """
    follow = _run(url, prompt, on_progress)
    try:
        return asyncio.run(_limited(follow, timeout))
    except asyncio.TimeoutError:
        raise TimeoutError(f"the workflow did not end within {timeout:.0f} s") from None
    except aiohttp.ClientError as error:
        raise ServerUnreachableError(f"{url}: {error}") from error


def fetch_image(url: str, image: Mapping[str, str]) -> bytes:
    """The file behind one entry of `RunResult.images`."""
    return _get(url, f"/view?{urllib.parse.urlencode(image)}", timeout=60)


def get_json(url: str, path: str, *, timeout: float = 60.0) -> Any:
    """What the server answers at that path. Raises ServerUnreachableError."""
    return json.loads(_get(url, path, timeout))


def _get(url: str, path: str, timeout: float) -> bytes:
    try:
        with _DIRECT.open(url + path, timeout=timeout) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        with error:
            reason = f"{url}{path}: HTTP {error.code}"
        raise ServerUnreachableError(reason) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise ServerUnreachableError(f"{url}{path}: {error}") from None


async def _limited(run: Any, timeout: float) -> RunResult:
    result: RunResult = await asyncio.wait_for(run, timeout)
    return result


async def _run(url: str, prompt: Mapping[str, Any], on_progress: Progress | None) -> RunResult:
    client = uuid.uuid4().hex
    start = time.monotonic()
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws?clientId={client}", max_msg_size=0) as socket,
    ):
        request = {"prompt": prompt, "client_id": client}
        async with session.post(f"{url}/prompt", json=request) as answer:
            body = await answer.json()
        if answer.status != 200:
            error = body.get("error", {})
            return RunResult(
                "refused",
                time.monotonic() - start,
                error=error if isinstance(error, dict) else {"message": str(error)},
                node_errors=body.get("node_errors") or {},
            )
        prompt_id: str = body["prompt_id"]
        events: list[tuple[str, dict[str, Any]]] = []
        end = await _follow(socket, prompt_id, events, on_progress)
        seconds = time.monotonic() - start
        history = await _history(session, url, prompt_id)
    status = ENDS[end]
    return RunResult(
        status,
        seconds,
        prompt_id,
        events,
        history,
        history.get("outputs", {}),
        {} if status == "success" else events[-1][1],
    )


async def _follow(
    socket: aiohttp.ClientWebSocketResponse,
    prompt_id: str,
    events: list[tuple[str, dict[str, Any]]],
    on_progress: Progress | None,
) -> str:
    """Collect the server's messages up to the one that ends this prompt; returns that one's type."""
    while True:
        message = await socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:  # a preview picture
            continue
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise ServerUnreachableError("the server closed the connection in the middle of a run")
        event = json.loads(message.data)
        kind, data = event["type"], event.get("data") or {}
        events.append((kind, data))
        if kind == "progress" and on_progress is not None:
            on_progress(str(data.get("node")), int(data["value"]), int(data["max"]))
        if kind in ENDS and data.get("prompt_id") == prompt_id:
            return str(kind)


async def _history(session: aiohttp.ClientSession, url: str, prompt_id: str) -> dict[str, Any]:
    """The record of a finished run. The server announces the end a moment before it stores this."""
    while True:
        async with session.get(f"{url}/history/{prompt_id}") as answer:
            history: dict[str, Any] = (await answer.json()).get(prompt_id) or {}
        if history:
            return history
        await asyncio.sleep(0.02)
