"""Exported edits in other programs: do they say what ours says, and is the rest as it was?

    python checks/export.py gguf --mutandis ./mutandis --model MODEL.gguf --shared ../shared --work FOLDER
    python checks/export.py safetensors --mutandis ./mutandis --model FOLDER --shared ../shared --work FOLDER

`gguf` asks llama.cpp, `safetensors` transformers, in the environment that `environment.py` makes in
FOLDER. Facts are the first of CounterFact, unrelated prompts the first of known_1000. `memit` edits all
facts at once, the other methods each alone. What was made in FOLDER is taken again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import environment
from environment import Row

METHODS = ["r-rome", "rome", "memit", "ft-m"]
TOKENS = 8  # of an answer
UNCHANGED = 45  # of 50 unrelated prompts


class Ours:
    """The command, on one model."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.program, self.model = args.mutandis, args.model

    def json(self, *arguments: object) -> dict:
        command = [self.program, *map(str, arguments), "--model", self.model, "--json", "--quiet"]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}\n{ran.stderr}")
        return json.loads(ran.stdout)

    def patch(self, method: str, facts: list[dict], path: Path) -> Path | None:
        """An edit of facts; None where the model already answers so, or the method gives up."""
        if not path.exists():
            listed = path.with_suffix(".jsonl")
            listed.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
            try:
                self.json("edit", "--facts", listed, "--method", method, "--out", path, "--keep", "The capital of Spain is")
            except RuntimeError as error:
                print(error)
                return None
        return path

    def export(self, patch: Path, form: str, out: Path, *rest: str) -> dict:
        return self.json("patch", "export", patch, "--to", form, "--out", out, "--force", *rest)


class LlamaCpp:
    """A GGUF file in llama.cpp."""

    def __init__(self, path: Path) -> None:
        from llama_cpp import Llama

        self.model = Llama(str(path), n_ctx=256, n_threads=2, verbose=False)

    def says(self, prompt: str) -> str:
        self.model.reset()
        return self.model.create_completion(prompt, max_tokens=TOKENS, temperature=0)["choices"][0]["text"]


class Transformers:
    """A folder in transformers, in f32."""

    def __init__(self, path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def says(self, prompt: str) -> str:
        ids = self.tokenizer(prompt, return_tensors="pt")
        with self.torch.no_grad():
            out = self.model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
        return self.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def facts_of(shared: Path, count: int) -> list[dict]:
    records = json.loads((shared / "data/counterfact/counterfact-edit.json").read_text())
    usable = [r for r in records if r["subject"] in r["prompt"]]
    return [{key: r[key] for key in ("prompt", "subject", "target_new")} for r in usable[:count]]


def unrelated(shared: Path, facts: list[dict], count: int) -> list[str]:
    subjects = {fact["subject"] for fact in facts}
    records = json.loads((shared / "data/known_1000/known_1000.json").read_text())
    return [r["prompt"] for r in records if r["subject"] not in subjects][:count]


def gguf(args: argparse.Namespace) -> list[Row]:
    ours = Ours(args)
    facts = facts_of(args.shared, args.facts)
    prompts = unrelated(args.shared, facts, 50)
    plain = LlamaCpp(args.model)
    # An edit of what is answered already is refused, and in a batch with it all others.
    facts = [fact for fact in facts if not plain.says(fact["prompt"]).strip().startswith(fact["target_new"])]
    before = [plain.says(prompt) for prompt in prompts]
    print(f"{args.model.name}")
    rows = []
    for method in args.methods:
        batches = [facts] if method == "memit" else [[fact] for fact in facts]
        patched = own = kept = said = asked = extra = 0
        unchanged, words = [], []
        for i, batch in enumerate(batches):
            patch = ours.patch(method, batch, args.work / f"{args.model.stem}-{method}-{i}.patch.safetensors")
            if patch is None:
                continue
            out = args.work / f"{args.model.stem}-{method}.gguf"
            report = ours.export(patch, "gguf", out)
            patched += report["facts"]["patched"]
            own += report["tried"][0]["kept"]
            kept += report["tried"][-1]["kept"]
            extra += report["extra_bytes"]
            if method == "memit" or i < args.peers:
                peer = LlamaCpp(out)
                asked += report["facts"]["patched"]
                said += sum(peer.says(fact["prompt"]).strip().startswith(fact["target_new"]) for fact in batch)
                now = [peer.says(prompt) for prompt in prompts]
                unchanged.append(sum(text == was for text, was in zip(now, before)))
                words.append(sum(text.split()[:1] == was.split()[:1] for text, was in zip(now, before)))
                del peer
            out.unlink()
        print(
            f"  {method:6} of {patched} facts {own} stay in the file's own format, {kept} as exported, "
            f"{extra / len(batches):,.0f} bytes more in the mean; llama.cpp says {said} of {asked}, and to "
            f"{len(prompts)} unrelated prompts the first word that it said before: {words}, all {TOKENS} tokens: {unchanged}",
            flush=True,
        )
        most = len(prompts)
        rows += [
            Row("gguf", method, "facts kept in the file's own format", f"{own} of {patched}"),
            Row("gguf", method, "facts kept as exported", f"{kept} of {patched}", "all", 0 < patched == kept),
            Row("gguf", method, "bytes more, in the mean", f"{extra / len(batches):,.0f}"),
            Row("gguf", method, "facts said by llama.cpp", f"{said} of {asked}", "all", 0 < asked == said),
            Row(
                "gguf", method, f"first words of {most} unrelated prompts as before", " ".join(map(str, words)),
                f"{UNCHANGED}", bool(words) and min(words) >= UNCHANGED,
            ),
            Row("gguf", method, f"all {TOKENS} tokens of these as before", " ".join(map(str, unchanged))),
        ]
    return rows


def safetensors(args: argparse.Namespace) -> list[Row]:
    ours = Ours(args)
    facts = facts_of(args.shared, 50)
    prompts = unrelated(args.shared, facts, 49)
    rows = []
    for method in args.methods:
        patch = ours.patch(method, facts[:1], args.work / f"{args.model.name}-{method}.patch.safetensors")
        if patch is None:
            rows.append(Row("safetensors", method, "could not be edited", "", "", False))
            continue
        for dtype in ("own", "f32"):
            out = args.work / "edited"
            report = ours.export(patch, "safetensors", out, "--dtype", dtype)
            peer, same = Transformers(out), 0
            for prompt in [facts[0]["prompt"], *prompts]:
                mine = Ours(argparse.Namespace(mutandis=args.mutandis, model=out))
                text = mine.json("ask", prompt, "--max-tokens", TOKENS)["text"]
                same += text == peer.says(prompt)
            tensor = report["tensors"][0]
            lost = "not measured" if tensor["lost"] is None else f"{tensor['lost']:.4f}"
            print(f"  {method:6} {dtype:4} {tensor['from']} → {tensor['to']}: {same} of 50 answers the same; lost {lost}", flush=True)
            what = f"greedy answers as ours, stored as {tensor['to']}"
            rows.append(Row("safetensors", method, what, f"{same} of 50", "50", same == 50))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=["gguf", "safetensors"])
    parser.add_argument("--mutandis", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--facts", type=int, default=50)
    parser.add_argument("--peers", type=int, default=5, help="single edits that are loaded in llama.cpp, of each method")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    args = parser.parse_args()
    environment.enter(args.work)
    args.work.mkdir(parents=True, exist_ok=True)
    return environment.table({"gguf": gguf, "safetensors": safetensors}[args.form](args))


if __name__ == "__main__":
    sys.exit(main())
