"""Start the real ComfyUI server with this pack in its `custom_nodes`, and stop it again.

    with ComfyServer(base) as server:
        run_workflow(server.url, prompt)

The server listens on the loopback interface only, computes on the CPU, and keeps everything it writes below
one base directory. The lab's models are made known through a file of extra model paths and not by a link,
so that a test can put files of its own into `BASE/models` without touching the lab's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from lab import paths
from lab.client import ServerUnreachableError, get_json

PACK_FOLDER = "comfyui-lycoris"
"""The pack's folder in custom_nodes: a name that is no Python identifier, as clones have."""

MODEL_FOLDERS = (
    "checkpoints",
    "diffusion_models",
    "loras",
    "lycoris",
    "text_encoders",
    "vae",
    "vae_approx",
)

SETTINGS: Mapping[str, Any] = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "9.9.9",
    "Comfy.Minimap.Visible": False,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Locale": "en",
}
"""Keeps first-visit dialogs off the page."""

IMPORT_FAILED = "(IMPORT FAILED)"
"""ComfyUI's mark on a pack that it could not import. Core's own optional nodes are reported otherwise."""


class ServerError(RuntimeError):
    """The server did not start, or died; the message ends with the last lines of its log."""


@dataclass
class ComfyServer:
    """One server process; a context manager. `url` is valid inside the `with` block."""

    base: Path
    pack: Path | None = paths.REPO
    port: int = 0
    """0: any free one."""
    arguments: Sequence[str] = ()
    """Further options for main.py."""
    front_end_root: Path | None = None
    """Another web page than the one installed."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Over `SETTINGS` and over what the base directory has from an earlier run."""
    start_timeout: float = 120.0

    url: str = field(default="", init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def log(self) -> Path:
        return self.base / "server.log"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def models(self) -> Path:
        """The server's own models folder, searched before the lab's."""
        return self.base / "models"

    def __enter__(self) -> ComfyServer:
        self.base = self.base.resolve()
        self._lay_out()
        port = self.port or _free_port()
        self.url = f"http://127.0.0.1:{port}"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(port),
                cwd=self.base,
                env=paths.host_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process: politely first, by force after ten seconds."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def write_settings(self, **settings: Any) -> None:
        """Change the user's settings; the page reads them whenever it is opened."""
        path = self.base / "user" / "default" / "comfy.settings.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            present = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            present = {}
        path.write_text(json.dumps({**SETTINGS, **present, **settings}, indent=1), "utf-8")

    def log_tail(self, lines: int = 40) -> str:
        try:
            text = self.log.read_text("utf-8", "replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    def _lay_out(self) -> None:
        """The folders ComfyUI expects, the pack, the extra model paths and the settings."""
        for folder in ("custom_nodes", "input", "output", "temp", "user"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for folder in MODEL_FOLDERS:
            (self.models / folder).mkdir(parents=True, exist_ok=True)
        if self.pack is not None:
            link_pack(self.pack, self.base / "custom_nodes" / PACK_FOLDER)
        lines = [f"base_path: {json.dumps(str(paths.MODELS))}"]
        lines += [f"{folder}: {folder}" for folder in MODEL_FOLDERS]
        self._extra_paths.write_text("lab:\n" + "".join(f"  {line}\n" for line in lines), "utf-8")
        self.write_settings(**self.settings)

    @property
    def _extra_paths(self) -> Path:
        return self.base / "extra_model_paths.yaml"

    def _command(self, port: int) -> list[str]:
        command = [
            *(sys.executable, str(paths.require_comfyui() / "main.py")),
            *("--cpu", "--listen", "127.0.0.1", "--port", str(port)),
            *("--base-directory", str(self.base)),
            *("--output-directory", str(self.output)),
            *("--temp-directory", str(self.base)),  # ComfyUI adds "temp" itself
            *("--user-directory", str(self.base / "user")),
            *("--database-url", "sqlite:///:memory:"),
            *("--extra-model-paths-config", str(self._extra_paths)),
            *("--disable-auto-launch", "--disable-api-nodes"),
        ]
        if self.front_end_root is not None:
            command += ["--front-end-root", str(self.front_end_root)]
        return [*command, *self.arguments]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while True:
            if not self.is_running():
                raise ServerError(f"ComfyUI ended while starting:\n{self.log_tail()}")
            with contextlib.suppress(ServerUnreachableError):
                get_json(self.url, "/system_stats", timeout=5)
                break
            if time.monotonic() > deadline:
                raise ServerError(
                    f"ComfyUI did not answer within {self.start_timeout:.0f} s:\n{self.log_tail()}"
                )
            time.sleep(0.1)
        if not self.is_running():  # then it was another program on this port that answered
            raise ServerError(f"ComfyUI ended while starting:\n{self.log_tail()}")
        log = self.log.read_text("utf-8", "replace")
        if IMPORT_FAILED in log:
            raise ServerError(f"ComfyUI could not import the pack:\n{self.log_tail(80)}")


def link_pack(source: Path, target: Path) -> None:
    """Put the pack where ComfyUI looks for it: a link, or a copy where links are not allowed (Windows)."""
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        skip = shutil.ignore_patterns(".host", ".git", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(source, target, ignore=skip)


def stop_cleanly_on_sigterm() -> None:
    """Make a polite kill of this program unwind it, so that its server is stopped too."""

    def unwind(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if os.name != "nt":
        signal.signal(signal.SIGTERM, unwind)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
