#!/usr/bin/env python3
"""Runs `mutandis bench run` over a list of settings, keeps every result, and draws the frontier.

    python bench/quality.py --mutandis target/release/mutandis --out bench/runs/quality.json

Each line of the plan is one run; a run whose result is in the file already is not made again, so an
interrupted plan goes on where it was. The drawing (`.svg` beside the file) has edit success to the
right and locality upwards; the number at a point is its change of perplexity in percent.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"

# Method, mode, records, settings beside the recipe. Single edits, a batch, and a sequence, as the
# targets are set; perplexity where edits are many.
PLAN = [
    ("rome", "single", 200, []),
    ("r-rome", "single", 200, []),
    ("memit", "single", 200, []),
    ("alphaedit", "single", 200, []),
    ("memit", "batch:200", 200, []),
    ("alphaedit", "batch:200", 200, []),
    ("alphaedit", "sequential", 200, []),
    ("rome", "sequential", 200, []),
]


def main():
    arguments = parse()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    plan = [json.loads(line) for line in arguments.plan.read_text().splitlines() if line] if arguments.plan else PLAN
    for method, mode, limit, settings in plan:
        key = {"method": method, "mode": mode, "limit": limit, "settings": settings, "data": arguments.data.name}
        key["model"] = arguments.model.name
        if any(result["key"] == key for result in results):
            continue
        result = run(arguments, method, mode, limit, settings)
        print(line_of(key, result), file=sys.stderr, flush=True)
        results.append({"key": key, "result": result})
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    arguments.out.with_suffix(".svg").write_text(drawing(results))
    return 0


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutandis", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=HERE.parents[1] / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--data", type=Path, default=SHARED / "data/knowedit/wiki_counterfact_train_cf.json")
    parser.add_argument("--text", type=Path, help="a text whose perplexity is measured")
    parser.add_argument("--recipe", type=Path, help="in place of the shipped recipe")
    parser.add_argument("--plan", type=Path, help="JSON lines of [method, mode, records, [settings]], in place of the issue's plan")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def run(arguments, method, mode, limit, settings):
    command = [arguments.mutandis.resolve(), "bench", "run", "--json", "--quiet", "--data", arguments.data, "--model", arguments.model]
    command += ["--method", method, "--mode", mode, "--limit", str(limit)]
    if arguments.recipe:
        command += ["--recipe", arguments.recipe]
    if arguments.text and mode != "single":
        command += ["--text", arguments.text]
    for setting in settings:
        command += ["--set", setting]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    # Where the data lay on this machine is of no use elsewhere.
    return {**result, "data": arguments.data.name}


def line_of(key, result):
    percent = lambda x: "–" if x is None else f"{100 * x:.1f}"
    scores = ", ".join(f"{name} {percent(result[name])}" for name in ("edit", "portability", "locality"))
    change = rise(result)
    text = "" if change is None else f", perplexity {change:+.1f} %"
    what = " ".join([key["method"], key["mode"], *key["settings"]])
    return f"{what}: {scores}{text}, {result['seconds_per_edit']:.2f} s an edit"


def rise(result):
    """Change of perplexity in percent."""
    if not result.get("perplexity"):
        return None
    before, after = result["perplexity"]
    return 100 * (after / before - 1)


COLOURS = ["#1b6ca8", "#d1495b", "#2e933c", "#8a4fff", "#b26e00", "#00798c", "#555555"]


def drawing(results):
    """Edit success against locality, one colour a method, one shape a mode."""
    size, left, low = 560, 60, 60
    at = lambda x, y: (left + x * (size - left - 20), size - low - y * (size - low - 30))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size + 190} {size}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{size + 190}" height="{size}" fill="white"/>')
    for i in range(6):
        for a, b in ((at(i / 5, 0), at(i / 5, 1)), (at(0, i / 5), at(1, i / 5))):
            parts.append(f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" stroke="#e3e3e3"/>')
        x, y = at(i / 5, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{20 * i}</text>')
        x, y = at(0, i / 5)
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{20 * i}</text>')
    x, y = at(0.5, 0)
    parts.append(f'<text x="{x:.1f}" y="{y + 42:.1f}" text-anchor="middle">edit success, %</text>')
    x, y = at(0, 0.5)
    parts.append(f'<text transform="translate({x - 42:.1f} {y:.1f}) rotate(-90)" text-anchor="middle">locality, %</text>')
    methods = list(dict.fromkeys(result["key"]["method"] for result in results))
    modes = list(dict.fromkeys(result["key"]["mode"] for result in results))
    for result in results:
        key, scores = result["key"], result["result"]
        if scores["edit"] is None or scores["locality"] is None:
            continue
        x, y = at(scores["edit"], scores["locality"])
        colour = COLOURS[methods.index(key["method"]) % len(COLOURS)]
        parts.append(shape(modes.index(key["mode"]), x, y, colour))
        change = rise(scores)
        if change is not None:
            parts.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{change:+.0f}</text>')
    for i, method in enumerate(methods):
        parts.append(f'<circle cx="{size + 10}" cy="{40 + 20 * i}" r="5" fill="{COLOURS[i % len(COLOURS)]}"/>')
        parts.append(f'<text x="{size + 22}" y="{44 + 20 * i}">{method}</text>')
    for i, mode in enumerate(modes):
        y = 60 + 20 * (len(methods) + i)
        parts.append(shape(i, size + 10, y, "#222222"))
        parts.append(f'<text x="{size + 22}" y="{y + 4}">{mode}</text>')
    return "\n".join([*parts, "</svg>", ""])


def shape(kind, x, y, colour):
    """A circle, a square, a diamond, in turn."""
    if kind % 3 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}" fill-opacity="0.8"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if kind % 3 == 2 else ""
    return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{colour}" fill-opacity="0.8"{turn}/>'


if __name__ == "__main__":
    sys.exit(main())
