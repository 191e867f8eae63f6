"""Texts about a bake: what is planned, and what was done."""

from __future__ import annotations

import torch

from ...inspection import algorithm_lines, doubled_lines, unmatched_lines
from ...text import as_report, capped, human_size, listed, quoted, single_line
from .matching import FilePlan
from .plan import BakePlan
from .run import BakeResult


def plan_report(plan: BakePlan) -> str:
    """What a bake will change, and what it will not, with reasons."""
    changed, copied = len(plan.changed), sum(item.copied for item in plan.tensors)
    converted = len(plan.tensors) - changed - copied
    lines = [line for file in plan.files for line in _file_lines(file)]
    lines.append(f"{changed} tensors of {quoted(plan.base)} are changed, {copied} are copied as they are")
    if converted:
        lines.append(f"{converted} more are only stored as {_name(plan.dtype)}")
    if plan.dropped:
        lines.append(f"{len(plan.dropped)} scales of fp8 weights are not needed any more")
    rescaled = sum(bool(item.changes) and item.keeps_scale for item in plan.tensors)
    if rescaled:
        lines.append(f"{rescaled} changed fp8 weights get a new scale")
    return as_report(lines)


def bake_report(result: BakeResult) -> str:
    """What was written, and how it was checked."""
    plan, proof = result.plan, result.proof
    stored = "stored as the base" if plan.dtype is None else f"stored as {_name(plan.dtype)}"
    lines = [
        f"{single_line(result.path.name)}: {human_size(result.size)}, {stored}, in {result.seconds:.1f} s",
        plan_report(plan),
        _proof_line(result),
    ]
    if result.unheld:
        lines += [
            f"{len(result.unheld)} tensors were written with numbers that their number type cannot hold. "
            "They are infinite now, no number at all, or cut to the largest there is:",
            *capped([f"  {problem}" for problem in result.unheld]),
        ]
    if result.left_out:
        lines.append(f"left out, since they hold the old weights: {listed(result.left_out)}")
    if proof.copied:
        lines.append(f"checked: {proof.copied} of the copied tensors are the same byte for byte")
    if result.redone:
        where = listed(result.redone, 3)
        lines.append(f"{len(result.redone)} tensors did not fit the GPU's memory, the CPU made them: {where}")
    return as_report(lines)


def _proof_line(result: BakeResult) -> str:
    proof = result.proof
    if not proof.changed:
        return "checked: nothing was changed (every strength is 0)"
    return (
        f"checked: {proof.changed} changed tensors read back and compared with the live weights: the largest "
        f"difference is {proof.difference:.3g}, {proof.steps:.2g} of the last digit that is stored "
        f"({single_line(proof.layer)})"
    )


def _file_lines(file: FilePlan) -> list[str]:
    adapters = file.entry.adapters
    lines = [
        f"{file.entry}: {len(file.placed)} of {len(adapters)} layers",
        *(f"  {line}" for line in file.doubts),
        *(f"  {line}" for line in algorithm_lines(adapters.values())),
        *(f"  {line}" for line in file.left_out),
        *(f"  {line}" for line in doubled_lines(file.doubled)),
    ]
    if file.unmatched:
        lines += ["  not used:", *(f"  {line}" for line in unmatched_lines(file.unmatched))]
    return lines


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
