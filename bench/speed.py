#!/usr/bin/env python3
"""Measures many edits in one run: seconds, operations against the floor, share of the machine's peak.

    python bench/speed.py --peer target/release/mutandis-bench-peer --mutandis target/release/mutandis

The facts are the first of CounterFact's train file whose subject is in the prompt. Each method runs
with its published contexts and steps, and with the recipe that ships for the model. The model is
loaded and its statistics are computed before the clock starts. README.md describes the columns.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from peer import Peer

HERE = Path(__file__).resolve().parent

# Operations of a fact with the published contexts and steps, on this model and these facts, if
# nothing is computed twice (reference methods.md, section 4b, row 1).
FLOOR = {"rome": 0.98e12, "memit": 0.27e12}
# Seconds a fact, at most.
ASKED = {("rome", "published"): 8.0, ("memit", "published"): 2.5, ("rome", "recipe"): 2.0, ("memit", "recipe"): 1.2}


def main():
    arguments = parse()
    peer = Peer(arguments.peer.resolve(), arguments.model, arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for method in arguments.methods.split(","):
            for settings in ("published", "recipe"):
                row = measure(peer, arguments, cache, method, settings)
                print(line_of(row), flush=True)
                rows.append(row)
    peer.close()
    if arguments.out:
        note = {"date": datetime.date.today().isoformat(), "threads": arguments.threads, "model": arguments.model.name}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({**note, "rows": rows}, indent=1) + "\n")
    return 0


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="the binary mutandis-bench-peer")
    parser.add_argument("--mutandis", type=Path, required=True, help="the binary mutandis")
    parser.add_argument("--model", type=Path, default=HERE.parents[1] / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data/counterfact/counterfact-train.json")
    parser.add_argument("--facts", type=int, default=200)
    parser.add_argument("--methods", default="rome,memit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keep the rows as JSON")
    return parser.parse_args()


def published(mutandis, method):
    """All settings of a method as published, so that no recipe has a say; the layer is the recipe's."""
    shown = subprocess.run([mutandis, "methods", "show", method, "--json"], check=True, stdout=subprocess.PIPE).stdout
    settings = json.loads(shown)["settings"]
    return {name: value for name, value in settings.items() if name not in ("layer", "layers")}


def measure(peer, arguments, cache, method, which):
    settings = published(arguments.mutandis.resolve(), method) if which == "published" else {"search": {}}
    edits = {"method": method, "settings": settings, "cache": cache}
    edits |= {"data": str(arguments.data.resolve()), "count": arguments.facts}
    # The peak before and after, as the machine is shared.
    peaks = [peer.ask(case="peak", times=20)["operations_per_second"]]
    reply = peer.ask(case="edits", edits=edits)
    peaks.append(peer.ask(case="peak", times=20)["operations_per_second"])
    n, seconds, stages = reply["facts"], reply["seconds"], reply["stages"]
    searching, writing = stages.get("searching values", 0.0), stages.get("writing facts", 0.0) + stages.get("writing layers", 0.0)
    floor = FLOOR.get(method) if which == "published" else None
    return {
        "method": method, "settings": which, "facts": n, "seconds": seconds / n, "asked": ASKED.get((method, which)),
        "steps": reply["steps"] / n, "operations": reply["operations"] / n, "floor": floor,
        "rate": reply["operations"] / seconds, "peaks": peaks, "writing": writing / seconds, "beside": 1 - (searching + writing) / seconds,
        **{score: reply[score] for score in ("edit", "rephrase", "locality")},
    }


def line_of(row):
    asked = f" (asked {row['asked']})" if row["asked"] else ""
    floor = f" of {row['floor'] / 1e12:.2f}" if row["floor"] else ""
    share = row["rate"] / (sum(row["peaks"]) / len(row["peaks"]))
    return (
        f"{row['method']} {row['settings']}: {row['seconds']:.2f} s a fact{asked}, {row['steps']:.1f} steps, "
        f"{row['operations'] / 1e12:.2f}{floor} TFLOP, {row['rate'] / 1e9:.0f} GFLOP/s = {100 * share:.0f} % of the peak, "
        f"{100 * row['writing']:.1f} % solving and writing, {100 * row['beside']:.1f} % neither that nor searching; "
        f"edit {100 * row['edit']:.1f}, rephrase {100 * row['rephrase']:.1f}, locality {100 * row['locality']:.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
