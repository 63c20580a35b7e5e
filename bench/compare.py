#!/usr/bin/env python3
"""Measures mutandis against PyTorch and transformers on this machine, run by run in turn.

    python bench/compare.py --peer target/release/mutandis-bench-peer --mutandis target/release/mutandis

Without `--python` it installs transformers and torch into `bench/.venv` first. `--validate` only holds
the PyTorch side against the reference values. README.md describes the cases and the protocol.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    arguments = parse()
    enter_environment(arguments)
    # From here on torch is there; it reads the number of threads when it is imported.
    import torch

    import smollm2
    import validate

    torch.set_num_threads(arguments.threads)
    model, tokenizer = smollm2.load(arguments.model)
    checks = check_torch(model, tokenizer, arguments, validate)
    if arguments.validate:
        return 0
    rows = []
    if arguments.peer:
        rows += against_peer(model, tokenizer, arguments)
    if arguments.mutandis:
        import process

        rows += [limit_row(*measured) for measured in process.rows(arguments.mutandis.resolve(), arguments.model.resolve())]
    print(table(rows))
    path = save(rows, checks, arguments)
    print(f"written to {path}", file=sys.stderr)
    return 0 if all(row["pass"] for row in rows) else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="a Python that has torch and transformers (default: make bench/.venv)")
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared", help="reference data")
    parser.add_argument("--model", type=Path, default=HERE.parents[1] / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--peer", type=Path, help="the binary mutandis-bench-peer")
    parser.add_argument("--mutandis", type=Path, help="the binary mutandis")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs per case, after one that is not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", default="", help="run only the cases whose name contains this")
    parser.add_argument("--validate", action="store_true", help="only check the PyTorch side")
    arguments = parser.parse_args()
    if not (arguments.validate or arguments.peer or arguments.mutandis):
        parser.error("nothing to measure: give --peer, --mutandis or --validate")
    return arguments


def enter_environment(arguments):
    """Binds to `threads` processors and continues in a Python that has torch, installing it if need be."""
    if os.environ.get("MUTANDIS_BENCH_READY"):
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    python = arguments.python
    if python is None:
        python = HERE / ".venv/bin/python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", HERE / ".venv"], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"], check=True)
    environment = {**os.environ, "MUTANDIS_BENCH_READY": "1", "OMP_NUM_THREADS": str(arguments.threads)}
    os.execve(python, [str(python), *sys.argv], environment)


def check_torch(model, tokenizer, arguments, validate):
    """The PyTorch side against the reference values."""
    shared = arguments.shared
    moments = validate.read_moments(shared / "golden/moments.safetensors", 5)
    checks = {"logits": validate.logits(model, shared), "texts": validate.tokens(tokenizer, shared)}
    if arguments.validate:
        checks.update(validate.edit(model, tokenizer, shared, moments))
    print(f"PyTorch against the reference: {checks}", file=sys.stderr)
    return checks


def against_peer(model, tokenizer, arguments):
    """All cases that the peer runs, one after the other; a row each."""
    import cases
    from peer import Peer

    peer, rows = Peer(arguments.peer, arguments.model, arguments.threads), []
    both = (model, tokenizer, peer, arguments.shared)
    with tempfile.TemporaryDirectory() as scratch:
        made = [
            cases.forward(*both, scratch, 16, 32, 1.5),
            cases.forward(*both, scratch, 4, 256, 1.3),
            cases.value_step(*both),
            cases.decode(*both, 1, 2.8),
            cases.decode(*both, 16, 2.9),
            cases.rome_edit(*both, "same", 8.0),
            cases.rome_edit(*both, "default", 20.0),
        ]
        for case in made:
            if arguments.cases in case.name:
                rows.append(ratio_row(case, max(arguments.pairs, case.pairs or 0)))
    peer.close()
    return rows


def ratio_row(case, pairs):
    """Runs a case in turn, PyTorch then ours, after one pair that is not counted."""
    results = []
    for turn in range(pairs + 1):
        measured = {}
        for side, run in (("torch", case.torch), ("ours", case.ours)):
            seconds, measured[side] = run()
            if turn:
                case.seconds[side].append(seconds)
            # Threads that still spin after their work would slow the other side.
            time.sleep(0.2)
        if turn:
            results.append((measured["torch"], measured["ours"]))
    ratios = [a / b for a, b in zip(case.seconds["torch"], case.seconds["ours"])]
    found, good = case.agree(results)
    median = statistics.median(ratios)
    print(f"{case.name}: {median:.2f}× ({found})", file=sys.stderr)
    return {"name": case.name, "unit": "×", "value": median, "spread": [min(ratios), max(ratios)], "limit": case.at_least,
            "seconds": case.seconds, "agree": found, "pass": good and median >= case.at_least}


def limit_row(name, values, limit, unit, agree):
    """A row whose largest value must not exceed a limit."""
    return {"name": name, "unit": unit, "value": statistics.median(values), "spread": [min(values), max(values)],
            "limit": limit, "agree": agree, "pass": max(values) <= limit}


def table(rows):
    """One table in Markdown."""
    lines = ["| | transformers | mutandis | median | spread | asked | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        ratio, unit = row["unit"] == "×", row["unit"] if row["unit"] == "×" else " " + row["unit"]
        sides = [f"{statistics.median(row['seconds'][side]):.3f} s" for side in ("torch", "ours")] if ratio else ["", ""]
        low, high = row["spread"]
        lines.append(f"| {row['name']} | {sides[0]} | {sides[1]} | {row['value']:.2f}{unit} | {low:.2f}–{high:.2f} | "
                     f"{'≥' if ratio else '≤'} {row['limit']}{unit} | {'pass' if row['pass'] else 'FAIL'} |")
    return "\n".join(lines)


def save(rows, checks, arguments):
    """Writes `bench/runs/<date>-<machine>.json`."""
    import torch
    import transformers

    processor = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    now = datetime.datetime.now(datetime.timezone.utc)
    run = {"date": now.isoformat(timespec="seconds"), "processor": processor, "threads": arguments.threads, "commit": commit,
           "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
           "load_average": os.getloadavg(), "reference": checks, "rows": rows}
    machine = "-".join(processor.lower().split()[:4])
    machine = "".join(c for c in machine if c.isalnum() or c == "-")
    path = HERE / "runs" / f"{now:%Y-%m-%d}-{machine}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
