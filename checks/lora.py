#!/usr/bin/env python3
"""Adapters that `mutandis patch export --to lora` writes, loaded by `peft` and by llama.cpp.

    python checks/lora.py --mutandis target/release/mutandis --model SmolLM2-135M-Instruct.Q4_1.gguf --work /tmp/lora

The other programs are in the environment that `environment.py` makes in the folder of `--work`. The
base is the GGUF, once through transformers as a folder of f32 and once dequantised as a GGUF of f32, so
that nothing but the adapter is compared. For each patch (`rome`: one weight of rank 1; `memit`: several
layers; `ft-m`: a dense change, cut to low rank; `lora`: query and value of all layers) it prints

- peft: largest distance of a logit between base + adapter in `peft`, and the base with the patch's
  own numbers added to its weights, over all positions of ten prompts;
- llama.cpp: the same between `--lora adapter.gguf` and a GGUF that has the changes merged in;
- ours: largest distance of our log-probabilities (the likeliest 20 of `ask --json`) from `peft`'s.

Where a change was cut, peft and llama.cpp are compared with the cut change, and what the cut moves is
told beside. Ends with code 1 where a distance is over the limit.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import environment
from environment import Row


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutandis", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--methods", nargs="*")
    return parser.parse_args()


if __name__ == "__main__":
    # What is imported next is there.
    environment.enter(arguments().work)

import gguf
import numpy as np
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, utils

LIMIT = 1e-3
FACTS = [
    ("The capital of France is", "France", "Rome"),
    ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "English"),
    ("The Eiffel Tower is located in the city of", "The Eiffel Tower", "Seattle"),
    ("LeBron James plays the sport of", "LeBron James", "football"),
]
EDITS = {"rome": 1, "memit": 4, "ft-m": 1, "lora": 4}
PROMPTS = [prompt for prompt, _, _ in FACTS] + [
    "The capital of Spain is",
    "Water boils at a temperature of",
    "Once upon a time, there was a",
    "def fibonacci(n):",
    "The largest planet of the solar system is",
    "Romeo and Juliet was written by",
]
# Our names of weights, as transformers' Llama and as GGUF have them.
ROLES = {
    "query": ("self_attn.q_proj", "attn_q"), "key": ("self_attn.k_proj", "attn_k"),
    "value": ("self_attn.v_proj", "attn_v"), "attention-out": ("self_attn.o_proj", "attn_output"),
    "mlp-gate": ("mlp.gate_proj", "ffn_gate"), "mlp-up": ("mlp.up_proj", "ffn_up"),
    "mlp-out": ("mlp.down_proj", "ffn_down"),
}


def main():
    args = arguments()
    args.methods = args.methods or list(EDITS)
    args.work.mkdir(parents=True, exist_ok=True)
    return environment.table(compare(args))


def compare(args):
    """The rows of all methods."""
    utils.logging.disable_progress_bar()
    folder = as_folder(args)
    # Our tokens: transformers' reading of a GGUF's vocabulary splits words otherwise.
    ids = [torch.tensor([run(args, "tokens", prompt)["ids"]]) for prompt in PROMPTS]
    plain = as_f32_gguf(args.model, args.work / "base-f32.gguf", {})
    return [row for method in args.methods for row in check(args, method, folder, plain, ids)]


def check(args, method, folder, plain, ids):
    """Makes, exports and compares the patch of one method; its rows."""
    patch = args.work / f"{method}.patch.safetensors"
    if not patch.exists():
        edit(args, method, patch)
    reports = {form: export(args, patch, args.work / f"{method}-{form}{ending}") for form, ending in (("peft", ""), ("gguf", ".gguf"))}
    report = reports["peft"]
    lost = max(m["lost"] for m in report["modules"])
    # What the adapter holds, as a patch: the patch itself but where it was cut.
    held = args.work / f"{method}-held.patch.safetensors"
    run(args, "patch", "from-lora", report["adapter"], "--out", held, "--force")
    deltas = read(patch if lost < 1e-6 else held)

    peft = logits(PeftModel.from_pretrained(load(folder), report["adapter"]), ids)
    merged = load(folder)
    state = merged.state_dict()
    for (layer, role), delta in deltas.items():
        state[f"model.layers.{layer}.{ROLES[role][0]}.weight"] += torch.from_numpy(delta)
    by_weights = logits(merged, ids)
    moved = distance(by_weights, logits(load(folder), ids))
    in_peft = distance(peft, by_weights)

    merged_gguf = as_f32_gguf(args.model, args.work / f"{method}-merged.gguf", deltas)
    in_llama = distance(llama(merged_gguf, ids), llama(plain, ids, reports["gguf"]["adapter"]))
    merged_gguf.unlink()

    ours = max(ask_apart(args, held, prompt, rows[-1]) for prompt, rows in zip(PROMPTS, peft))
    cut = f", cut: {100 * lost:.2f} % of the norm lost" if lost > 1e-6 else ""
    print(f"{method}: {len(report['modules'])} modules, rank {report['rank']}{cut}; the edit moves logits by up to "
          f"{moved:.2f}; peft {in_peft:.1e}, llama.cpp {in_llama:.1e}, ours {ours:.1e}", flush=True)
    distances = {"peft, adapter and merged": in_peft, "llama.cpp, adapter and merged": in_llama, "ours and peft": ours}
    return [Row("lora", method, what, f"{far:.1e}", f"{LIMIT:.0e}", far <= LIMIT) for what, far in distances.items()]


def run(args, *command):
    line = [str(args.mutandis), *map(str, command), "--model", str(args.model), "--json", "--quiet"]
    done = subprocess.run(line, text=True, capture_output=True)
    if done.returncode > 1:
        sys.exit(f"{' '.join(line)}: {done.stderr}")
    return json.loads(done.stdout)


def edit(args, method, patch):
    facts = args.work / "facts.jsonl"
    lines = [json.dumps({"prompt": p, "subject": s, "target_new": t}) for p, s, t in FACTS[: EDITS[method]]]
    facts.write_text("\n".join(lines) + "\n")
    run(args, "edit", "--facts", facts, "--method", method, "--out", patch)


def export(args, patch, out):
    return run(args, "patch", "export", patch, "--to", "lora", "--out", out, "--force")


def ask_apart(args, patch, prompt, row):
    top = run(args, "ask", prompt, "--patch", patch, "--max-tokens", "1")["top"]
    logprobs = torch.log_softmax(row.double(), -1)
    return max(abs(candidate["logprob"] - logprobs[candidate["id"]].item()) for candidate in top)


def read(patch):
    """(layer, role) -> ΔW [out, in] of a patch file."""
    deltas = {}
    with safe_open(patch, "np") as file:
        parts = {name: file.get_tensor(name) for name in file.keys() if name[0].isdigit()}
    for name, part in parts.items():
        stem, kind = name.rsplit(".", 1)
        _, layer, role = stem.split(".")
        if kind == "delta":
            deltas[int(layer), role] = part
        elif kind == "left":
            deltas[int(layer), role] = (part.astype(np.float64) @ parts[f"{stem}.right"].T.astype(np.float64)).astype(np.float32)
    return deltas


def as_folder(args):
    """The base in f32 as transformers reads the GGUF, saved once."""
    folder = args.work / "hf"
    if not (folder / "config.json").exists():
        model = AutoModelForCausalLM.from_pretrained(args.model.parent, gguf_file=args.model.name, dtype=torch.float32)
        model.save_pretrained(folder)
    return folder


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits(model, ids):
    with torch.no_grad():
        return [model(i).logits[0] for i in ids]


def as_f32_gguf(source, path, deltas):
    """The GGUF with every tensor in f32 and changes added, q and k in llama.cpp's order of rows."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, inner)
    heads = {"query": reader.fields[f"{architecture}.attention.head_count"].contents(),
             "key": reader.fields[f"{architecture}.attention.head_count_kv"].contents()}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for (layer, role), delta in deltas.items():
            if tensor.name == f"blk.{layer}.{ROLES[role][1]}.weight":
                if role in heads:
                    out, inn = delta.shape
                    delta = delta.reshape(heads[role], 2, out // heads[role] // 2, inn).swapaxes(1, 2).reshape(out, inn)
                values = values + delta
        writer.add_tensor(tensor.name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama(path, ids, adapter=None):
    """Logits of all positions by llama.cpp, everything in f32."""
    from llama_cpp import GGML_TYPE_F32, Llama

    lora = {"lora_path": str(adapter)} if adapter else {}
    settings = dict(n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
    model = Llama(str(path), type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32, flash_attn=False, **settings, **lora)
    found = []
    for i in ids:
        model.reset()
        model.eval(i[0].tolist())
        found.append(torch.from_numpy(np.array(model.scores[: i.shape[1]])))
    return found


def distance(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b))


if __name__ == "__main__":
    sys.exit(main())
