"""`make demo`: show, in a minute and without a graphics card, that the pack works in the real ComfyUI.

Runs one workflow over HTTP with a LoKr and a LoHa file at three strengths and once without the pack, then
says how far each picture is from the plain one. Strength 0 must give the plain picture to the last bit and
every other strength must change it; otherwise the exit code is 1. Pictures, a contact sheet and the table
land in LAB/demo.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import adapters, models, paths, workflows
from lab.client import RunResult, fetch_image, run_workflow
from lab.images import contact_sheet, identical, mean_difference, pixels
from lab.server import ComfyServer, ServerError, stop_cleanly_on_sigterm

if TYPE_CHECKING:
    from lab.images import Pixels

NODE = "LyCORISLoader"
FILES = ("tiny_lokr.safetensors", "tiny_loha.safetensors")
STRENGTHS = (0.0, 0.5, 1.0)


class DemoError(Exception):
    """The demo could not be shown; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Shot:
    """One picture and what it took."""

    title: str
    strength: float | None
    picture: Pixels
    seconds: float
    report: str

    def problem(self, plain: Pixels) -> str:
        """What is wrong with this picture compared with the plain one; empty when nothing is."""
        same = identical(self.picture, plain)
        if self.strength == 0 and not same:
            return "strength 0 does NOT give the plain model's picture"
        if self.strength and same:
            return "the picture is the plain model's: the adapter had NO effect"
        return ""


class Ticker:
    """One line of the terminal for one run, rewritten at every step where that is possible."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._live = sys.stdout.isatty()
        self._show("starting")

    def step(self, node: str, value: int, total: int) -> None:
        self._show(f"step {value}/{total}")

    def done(self, message: str) -> None:
        self._show(message)
        print(flush=True)

    def _show(self, message: str) -> None:
        line = f"  {self._title:<34} {message}"
        if self._live:
            print(f"\r{line:<78}", end="", flush=True)
        elif "/" not in message and message != "starting":
            print(line, end="", flush=True)


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="lab.demo", description="Show the pack at work.").parse_args(arguments)
    stop_cleanly_on_sigterm()
    try:
        return _demo()
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130
    except (DemoError, ServerError, RuntimeError, OSError) as error:
        print(f"\nThe demo failed. {error}", file=sys.stderr)
        return 1


def _demo() -> int:
    models.ensure(models.FOR_DEMO)
    adapters.ensure()
    start = time.monotonic()
    print("Starting ComfyUI on the CPU ...", flush=True)
    with ComfyServer(paths.BASE) as server:
        print(f"ComfyUI is up at {server.url} ({time.monotonic() - start:.0f} s)\n", flush=True)
        workflow = workflows.load(NODE)
        plain = _shoot(server, workflows.plain(workflow), "plain model", None)
        rows = [
            [
                _shoot(
                    server,
                    workflows.with_inputs(
                        workflow,
                        NODE,
                        lycoris_name=file,
                        strength_model=strength,
                        strength_clip=strength,
                    ),
                    file,
                    strength,
                )
                for strength in STRENGTHS
            ]
            for file in FILES
        ]
    problems = _write_up(plain, rows)
    print("\nEverything as it should be." if not problems else "\n" + "\n".join(problems))
    return 1 if problems else 0


def _shoot(server: ComfyServer, prompt: workflows.Prompt, title: str, strength: float | None) -> Shot:
    ticker = Ticker(title if strength is None else f"{title} at {strength:g}")
    result = run_workflow(server.url, prompt, on_progress=ticker.step)
    ticker.done(f"{result.status} in {result.seconds:.1f} s")
    if result.status != "success":
        raise DemoError(f"{_reason(result)}\nThe server's log is {server.log}.")
    images = result.images()
    if not images:
        raise DemoError("The workflow ran but saved no picture.")
    report = "\n".join(result.text(node) for node in workflows.ours(prompt))
    picture = pixels(fetch_image(server.url, images[0]))
    return Shot(title, strength, picture, result.seconds, report or result.text())


def _reason(result: RunResult) -> str:
    if result.status == "refused":
        return f"ComfyUI refused the workflow: {result.error.get('message')} {result.node_errors or ''}"
    where = f"{result.error.get('node_type')} (node {result.error.get('node_id')})"
    return f"{where}: {result.error.get('exception_message', result.status)}"


def _write_up(plain: Shot, rows: list[list[Shot]]) -> list[str]:
    """Print and save the table, the reports and the pictures; returns what is wrong."""
    shots = [shot for row in rows for shot in row]
    problems = [
        f"{shot.title} at {shot.strength:g}: {problem}"
        for shot in shots
        if (problem := shot.problem(plain.picture))
    ]
    table = [f"{'file':<28}{'strength':>9}{'mean |pixel difference|':>26}{'seconds':>9}"]
    table.append(f"{plain.title:<28}{'':>9}{'':>26}{plain.seconds:>9.1f}")
    for shot in shots:
        difference = f"{mean_difference(shot.picture, plain.picture):.2f}"
        if shot.strength == 0 and identical(shot.picture, plain.picture):
            difference = "0 (identical bit for bit)"
        table.append(f"{shot.title:<28}{shot.strength:>9g}{difference:>26}{shot.seconds:>9.1f}")
    reports = [f"--- {row[-1].title} at {row[-1].strength:g} ---\n{row[-1].report}" for row in rows]
    text = "\n".join(["", *table, "", "What the node says:", "", "\n\n".join(reports)])
    print(text, flush=True)

    paths.DEMO.mkdir(parents=True, exist_ok=True)
    _save(plain, "plain")
    for shot in shots:
        _save(shot, f"{shot.title.partition('.')[0]}_{shot.strength:g}")
    sheet = contact_sheet(
        [[("plain", plain.picture)] + [(_caption(shot), shot.picture) for shot in row] for row in rows]
    )
    sheet.save(paths.DEMO / "contact_sheet.png")
    verdict = "\n".join(problems) or "Everything as it should be."
    (paths.DEMO / "report.txt").write_text(f"{text.lstrip()}\n\n{verdict}\n", "utf-8")
    print(f"\nPictures, contact_sheet.png and report.txt are in {paths.DEMO}")
    return problems


def _caption(shot: Shot) -> str:
    return f"{shot.title.partition('.')[0]} {shot.strength:g}"


def _save(shot: Shot, name: str) -> None:
    from PIL import Image

    Image.fromarray(shot.picture).save(paths.DEMO / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main())
