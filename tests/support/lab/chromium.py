"""Find Chromium or Chrome for the browser tests, and install it where that is safe to do unasked.

    python3 -m lab.chromium [--install]

Installs only as root on a Debian-like system, which means a container or a CI machine; anybody else is told
what to do. Standard library only, because it runs beside `lab.install`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLACES = {
    "darwin": (
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "~/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    ),
    "win32": (
        r"${PROGRAMFILES}\Google\Chrome\Application\chrome.exe",
        r"${PROGRAMFILES(X86)}\Google\Chrome\Application\chrome.exe",
        r"${LOCALAPPDATA}\Google\Chrome\Application\chrome.exe",
        r"${LOCALAPPDATA}\Chromium\Application\chrome.exe",
    ),
}
ADVICE = (
    "The browser tests need Chromium or Chrome. Install one (Debian: apt-get install chromium, Ubuntu: snap "
    "install chromium, macOS: brew install --cask chromium) or name it in the environment variable CHROMIUM."
)


def find() -> Path | None:
    """The browser: CHROMIUM of the environment, else a usual name on the PATH, else a usual place."""
    named = os.environ.get("CHROMIUM")
    if named:
        found = shutil.which(named)
        return Path(found) if found else None
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return Path(found)
    for place in PLACES.get(sys.platform, ()):
        path = Path(os.path.expandvars(place)).expanduser()
        if path.is_file():
            return path
    return None


def may_install() -> bool:
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return is_root and shutil.which("apt-get") is not None and not os.environ.get("CHROMIUM")


def install() -> bool:
    """Install Debian's package; True when a browser is there afterwards."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            ["apt-get", "-q", *step],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            print("\n".join((done.stdout + done.stderr).splitlines()[-15:]), file=sys.stderr)
            return False
    return find() is not None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lab.chromium", description="Find Chromium.")
    parser.add_argument("--install", action="store_true", help="install it if there is none")
    wanted = parser.parse_args(arguments).install
    browser = find()
    if browser is None and wanted and may_install():
        print("installing Chromium for the browser tests ...", flush=True)
        install()
        browser = find()
    print(browser or ADVICE, file=sys.stdout if browser else sys.stderr)
    return 0 if browser or wanted else 1


if __name__ == "__main__":
    sys.exit(main())
