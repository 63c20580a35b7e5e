"""All checks, one after another, in an environment of their own, as one table.

    python checks/run.py --mutandis target/release/mutandis --gguf MODEL.gguf --folder MODEL_FOLDER \\
        --shared ../shared --work FOLDER

Whatever is left out of `--gguf` and `--folder` is not checked. Ends with code 1 where something is not
as it should be, or could not be found out.
"""

import argparse
import sys
import traceback
from pathlib import Path

import environment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutandis", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, help="a model for llama.cpp, and for adapters")
    parser.add_argument("--folder", type=Path, help="a model for transformers")
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--facts", type=int, default=50)
    parser.add_argument("--peers", type=int, default=5)
    args = parser.parse_args()
    environment.enter(args.work)
    import export
    import lora

    checks = [
        ("export gguf", args.gguf, export.gguf, export.METHODS),
        ("export safetensors", args.folder, export.safetensors, export.METHODS),
        ("lora", args.gguf, lora.compare, list(lora.EDITS)),
    ]
    rows = []
    for name, model, check, methods in checks:
        if model is None:
            continue
        work = args.work / name.replace(" ", "-")
        work.mkdir(parents=True, exist_ok=True)
        given = argparse.Namespace(**vars(args))
        given.model, given.work, given.methods = model, work, methods
        try:
            rows += check(given)
        except Exception as error:
            traceback.print_exc()
            why = (str(error).splitlines() or [type(error).__name__])[0]
            rows.append(environment.Row(name, "", "ended with an error", why[:60], "", False))
    return environment.table(rows)


if __name__ == "__main__":
    sys.exit(main())
