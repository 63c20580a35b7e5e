"""Whole processes of the command: time from start to end, and peak memory.

Linux lets a child inherit its parent's peak memory at `exec`, so `rows` measures from a small process
of its own, not from the one that holds PyTorch.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "The capital of France is"
RUNS = 5


def rows(binary, model):
    """Rows `(name, values, limit, unit, agree)`: `ask`, the first edit with an empty cache, later edits."""
    command = [sys.executable, __file__, str(binary), str(model)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def commands(binary, model):
    """The two command lines that are measured."""
    ask = [str(binary), "ask", PROMPT, "--model", str(model), "--json"]
    edit = [str(binary), "edit", PROMPT, "--subject", "France", "--to", "Rome", "--model", str(model), "--json"]
    return ask, edit


def measure(command, cache, directory):
    """`(seconds, peak bytes, JSON output)` of one run; caches go to `cache`."""
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, cwd=directory, env={**os.environ, "XDG_CACHE_HOME": str(cache)})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode in (0, 1), f"{command[:2]} ended with code {process.returncode}"
        out.seek(0)
        return seconds, usage.ru_maxrss * 1024, json.loads(out.read())


def run(binary, model):
    """What `rows` returns, measured here."""
    ask, edit = commands(binary, model)
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory) / "cache"
        cache.mkdir()
        asked = [measure(ask, cache, directory) for _ in range(RUNS + 1)][1:]
        first = measure(edit, cache, directory)
        later = [measure(edit, cache, directory) for _ in range(RUNS)]
    answer = {"text": asked[0][2]["text"]}
    after = {"after": later[0][2]["facts"][0]["after"]}
    gigabytes = lambda runs: [run[1] / 1e9 for run in runs]
    seconds = lambda runs: [run[0] for run in runs]
    return [
        ("ask, start to answer", seconds(asked), 1.5, "s", answer),
        ("ask, peak memory", gigabytes(asked), 0.8, "GB", {}),
        ("edit, peak memory", gigabytes([first, *later]), 1.3, "GB", {}),
        ("first edit, moments included", seconds([first]), 60.0, "s", {"after": first[2]["facts"][0]["after"]}),
        ("later edits", seconds(later), 6.0, "s", after),
    ]


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:])))
