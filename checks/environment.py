"""What the checks share: an environment of their own with the other programs, and a table of what was found."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# From PyPI; llama-cpp-python is built from its source and needs a C++ compiler.
PINS = [
    "torch==2.9.1",
    "transformers==5.5.4",
    "peft==0.21.2",
    "llama-cpp-python==0.3.36",
    "gguf==0.19.0",
    "safetensors==0.8.0",
    "sentencepiece==0.2.3",
    "accelerate==1.15.0",
]


class Row(NamedTuple):
    """A line of the table; `passes` is None where nothing was asked for."""

    check: str
    edit: str
    what: str
    found: str
    wanted: str = ""
    passes: bool | None = None


def enter(work: Path) -> None:
    """Starts the script anew in the environment in WORK/venv, which is made where it is not there, or has other pins."""
    venv = work.absolute() / "venv"
    if Path(sys.prefix).resolve() == venv.resolve():
        return
    # Written last: what was broken off is made anew.
    mark = venv / "pins.txt"
    if not mark.exists() or mark.read_text().split() != PINS:
        print(f"making {venv} with {' '.join(PINS)}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run([venv / "bin/python", "-m", "pip", "install", "--quiet", *PINS], check=True)
        mark.write_text("\n".join(PINS) + "\n")
    python = str(venv / "bin/python")
    os.execv(python, [python, *sys.argv])


def table(rows: list[Row]) -> int:
    """Prints the table; 1 where something is not as it should be."""
    said = {None: "", True: "pass", False: "FAIL"}
    lines = [("check", "edit", "what", "found", "wanted", "")]
    lines += [(*row[:5], said[row.passes]) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    lines.insert(1, tuple("-" * width for width in widths))
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |")
    return int(any(row.passes is False for row in rows))
