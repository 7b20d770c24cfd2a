# SPDX-License-Identifier: Apache-2.0
"""What the reports of `pose-refiner evaluate` have in common: progress, targets, JSON, tables."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pose_refiner_ros.files.atomic import write_atomically

Progress = Callable[[str, int, int], None]  # block, done, total
Tick = Callable[[], None]
# Name, where the figure is, target, whether more is better, what the paper reports.
Target = tuple[str, str, float, bool, float | None]
# Head of a column, key of its figure, how it is written.
Columns = Sequence[tuple[str, str, str]]
_NUMBERS = re.compile(r"\[[-\d.,e\s]+\]")  # lists of nothing else: on one line


def silent(block: str, done: int, total: int) -> None:
    """No progress."""


class EvaluationError(ValueError):
    """Something that cannot be evaluated, with the reason and what to do."""


class Counts:
    """How much of everything: a dataclass of numbers, each at least 1."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise EvaluationError(f"{name} is {value}; at least 1 is needed")


def counted(progress: Progress, name: str, total: int) -> Tick:
    """What a block calls after each of its `total` parts."""
    done = 0
    progress(name, 0, total)

    def tick() -> None:
        nonlocal done
        done += 1
        progress(name, done, total)

    return tick


def each(progress: Progress, name: str, items: Iterable) -> Iterator:
    """The items, one after the other, each of which is a part of a block."""
    items = list(items)
    tick = counted(progress, name, len(items))
    for item in items:
        yield item
        tick()


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def machine(device: str) -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "device": device,
    }


def targets(report: dict[str, Any], aims: Iterable[Target]) -> list[dict[str, Any]]:
    """What was aimed at, what the paper reports, what was measured, and whether that is enough;
    without those whose block has not run."""
    measured = ((*aim, _figure(report, aim[1])) for aim in aims)
    return [
        {
            "name": name,
            "from": place,
            "ours": ours,
            "target": target,
            "at_least": more,
            "paper": paper,
            "met": bool(ours >= target if more else ours <= target),
        }
        for name, place, target, more, paper, ours in measured
        if ours is not None
    ]


def _figure(report: dict[str, Any], place: str) -> float | None:
    """The figure at keys (or, in lists, indices) separated by dots."""
    found: Any = report
    for key in place.split("."):
        if isinstance(found, list):
            found = found[int(key)] if found else None
        else:
            found = None if found is None else found.get(key)
    return found


def write_json(path: Path, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    text = _NUMBERS.sub(lambda found: " ".join(found[0].split()), text)
    write_atomically(path, (text + "\n").encode())


def write_pages(out: Path, name: str, text: str, plots: dict[str, bytes]) -> None:
    """NAME.md, and its plots by their file names."""
    for file, content in plots.items():
        write_atomically(out / file, content)
    write_atomically(out / f"{name}.md", text.encode())


def table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown of a header and rows, the first column to the left."""
    header, *rows = lines
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])


def heads(columns: Columns) -> list[str]:
    return [head for head, _, _ in columns]


def cells(figures: dict[str, Any], columns: Columns) -> list[str]:
    """A row of a table; a figure that is not there, or None, is a dash."""
    return [number(figures.get(key), form) for _, key, form in columns]


def lines_of(labels: Sequence[str], columns: Columns, rows: Iterable[tuple]) -> list[list[str]]:
    """A header, and rows of as many labels, with the figures behind them as a dict."""
    lines = [[*labels, *heads(columns)]]
    lines += [[*names, *cells(figures, columns)] for *names, figures in rows]
    return lines


def number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def origin(report: dict[str, Any], command: str) -> str:
    """What wrote a report, when, and where."""
    machine = report["machine"]
    return (
        f"Written by `pose-refiner evaluate {command}` {report['version']} on "
        f"{report['date'][:10]}: {machine['cores']} cores ({machine['processor']}), device "
        f"{machine.get('gpu', machine['device'])}, {report['minutes']:.0f} minutes, seed "
        f"{report['seed']}."
    )


def target_table(report: dict[str, Any]) -> str:
    lines = [["figure", "paper", "target", "ours", ""]]
    for entry in report["targets"]:
        sign, ours = "≥" if entry["at_least"] else "≤", entry["ours"]
        lines.append(
            [
                entry["name"],
                number(entry["paper"], "{:g}"),
                f"{sign} {entry['target']:g}",
                f"{ours:.0f}" if ours >= 20 else f"{ours:.3g}",
                "met" if entry["met"] else "**missed**",
            ]
        )
    return table(lines)
