"""Holds the PyTorch side against the reference values before anything is timed."""

import json

import torch
from safetensors.torch import load_file

import rome


def tokens(tokenizer, shared):
    """Token ids of the reference texts; the number of texts."""
    texts = [json.loads(line) for line in (shared / "golden/tokens.jsonl").read_text().splitlines()]
    wrong = [text["text"] for text in texts if tokenizer.encode(text["text"]).ids != text["smollm2"]]
    assert not wrong, f"{len(wrong)} texts of {len(texts)} differ, the first: {wrong[0]!r}"
    return len(texts)


def logits(model, shared):
    """Largest difference from the golden logits; at most 1e-4."""
    golden = load_file(shared / "golden/smollm2.logits.safetensors")
    worst, i = 0.0, 0
    while f"ids.{i}" in golden:
        with torch.no_grad():
            found = model(golden[f"ids.{i}"][None]).logits[0]
        full = golden.get(f"full_logits.{i}")
        far = found - full if full is not None else found[-1] - golden[f"last_logits.{i}"]
        worst, i = max(worst, far.abs().max().item()), i + 1
    assert worst < 1e-4, f"logits differ from the golden ones by {worst}"
    return worst


def edit(model, tokenizer, shared, moments):
    """One golden edit: losses of every step, δ after the first, u, right; with C = I and with C."""
    info = json.loads((shared / "golden/edit.r0.json").read_text())
    golden = load_file(shared / "golden/edit.r0.safetensors")
    fact, expected = info["info"]["request"], info["info"]["rome"]["losses"]
    made = rome.request(tokenizer, fact["prompt"], fact["subject"], fact["target_new"], info["rome_templates"])
    losses, deltas = [], []
    u, right = rome.edit(model, made, trace=lambda parts, delta: (losses.append(parts), deltas.append(delta)))
    # The golden losses are printed with three digits.
    first = max(abs(a - b) for a, b in zip(losses[0], expected[0]))
    assert first < 6e-4, f"losses at step 0: {losses[0]}, expected {expected[0]}"
    assert len(losses) == len(expected), f"{len(losses)} steps, expected {len(expected)}"
    last = max(abs(a[0] - b[0]) for a, b in zip(losses, expected))
    assert last < 5e-3, f"losses stray by {last}"
    relative = lambda a, b: ((a - b).norm() / b.norm()).item()
    far = {"δ after step 1": relative(deltas[1], golden["rome.delta_steps"][0]), "u": relative(u, golden["rome.u"])}
    keys, _ = rome.keys_at(model, made.keys, made.lookups[:-1], made.layer)
    far["keys"] = relative(keys, golden["rome.keys_per_template"])
    far["right"] = relative(right, golden["rome.right"])
    far["u with C"] = relative(rome.direction(keys.mean(0), moments.double().inverse()), golden["rome_mom2.u"])
    limits = {"δ after step 1": 1e-3, "u": 1e-4, "keys": 1e-4, "right": 2e-2, "u with C": 1e-3}
    for what, value in far.items():
        assert value < limits[what], f"{what} is off by {value}"
    return {"loss at step 0": first, "loss at any step": last, **far}


def read_moments(path, layer):
    """C of one layer, from its upper triangle row by row."""
    upper = load_file(path)[f"upper.{layer}"]
    n = int((8 * len(upper) + 1) ** 0.5 - 1) // 2
    full = torch.zeros(n, n)
    rows, columns = torch.triu_indices(n, n)
    full[rows, columns] = upper
    full[columns, rows] = upper
    return full
