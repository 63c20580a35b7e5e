"""The cases that both sides run in turn: each gives a PyTorch run, our run, and a check that they agree."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import rome
import validate


@dataclass
class Case:
    """`torch()` and `ours()` return `(seconds, result)`; `agree(pairs)` takes all pairs of results and
    returns what it found and whether that is good enough. `at_least` is the ratio asked for."""

    name: str
    at_least: float
    torch: callable
    ours: callable
    agree: callable
    pairs: int | None = None
    seconds: dict = field(default_factory=lambda: {"torch": [], "ours": []})


def timed(run):
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def text_rows(tokenizer, shared, rows, length):
    """`rows` runs of `length` tokens from running text."""
    text = (shared / "data/wikitext-2/wiki.test.tokens.txt").read_text()[:400_000]
    ids = tokenizer.encode(text).ids
    stride = len(ids) // rows
    assert stride >= length
    return [ids[i * stride : i * stride + length] for i in range(rows)]


def forward(model, tokenizer, peer, shared, scratch, rows, length, at_least):
    """All logits of a batch. The warm-up writes ours to a file, compared number by number."""
    ids = text_rows(tokenizer, shared, rows, length)
    batch, dump, found = torch.tensor(ids), Path(scratch) / "logits.f32", {}

    def run_torch():
        with torch.no_grad():
            seconds, out = timed(lambda: model(batch, use_cache=False).logits)
        if not found:
            found["logits"] = out.numpy()
        return seconds, out.double().sum().item()

    def run_ours():
        extra = {} if "far" in found else {"dump": str(dump)}
        reply = peer.ask(case="forward", ids=ids, **extra)
        if extra:
            ours = np.fromfile(dump, "<f4").reshape(found["logits"].shape)
            found["far"] = float(np.abs(ours - found["logits"]).max())
            found["logits"] = True
            dump.unlink()
        return reply["seconds"], reply["checksum"]

    def agree(pairs):
        sums = max(abs(a - b) / abs(a) for a, b in pairs)
        # Two f32 implementations, each up to 1e-4 from f64.
        return {"logits_max_abs": found["far"], "checksum_relative": sums}, found["far"] < 2e-4 and sums < 1e-4

    return Case(f"forward {rows}×{length}", at_least, run_torch, run_ours, agree)


def value_step(model, tokenizer, peer, shared):
    """One step of the v* search: 21 prompts and the KL prompt, forward and backward to δ at layer 5."""
    contexts = json.loads((shared / "golden/contexts.json").read_text())["rome"]
    fact = json.loads((shared / "golden/edit.r0.json").read_text())["info"]["request"]
    made = rome.request(tokenizer, fact["prompt"], fact["subject"], fact["target_new"], contexts)
    search = rome.Search(model, made)
    with torch.no_grad():
        search.loss(torch.zeros(model.config.hidden_size))
    delta = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(5))
    # Half of h_init long, so that NLL, KL and decay all have a gradient.
    delta = (0.5 * search.origin.norm() / delta.norm() * delta).requires_grad_(True)
    setup = {"request": made.json(), "delta": delta.tolist()}

    def run_torch():
        def step():
            delta.grad = None
            losses = search.loss(delta)
            losses[0].backward()
            return [part.item() for part in losses], delta.grad.clone()

        return timed(step)

    def run_ours():
        reply = peer.ask(case="vstep", **setup)
        # What is prepared once per search is shared among its 25 steps.
        seconds = reply["seconds"] + reply["prepare_seconds"] / rome.STEPS
        return seconds, (reply["losses"], torch.tensor(reply["gradient"]))

    def agree(pairs):
        loss = max(abs(x - y) for a, b in pairs for x, y in zip(a[0], b[0]))
        slope = max(((a[1] - b[1]).norm() / a[1].norm()).item() for a, b in pairs)
        return {"losses_max_abs": loss, "gradient_relative": slope}, loss < 1e-4 and slope < 1e-3

    return Case("v* step, 21 prompts + KL", 5.0, run_torch, run_ours, agree)


def decode(model, tokenizer, peer, shared, rows, at_least, tokens=100):
    """Greedy decoding of a fixed number of tokens with a K/V cache."""
    ids = text_rows(tokenizer, shared, rows, 12)
    batch = torch.tensor(ids)

    def run_torch():
        with torch.no_grad():
            seconds, out = timed(lambda: model.generate(
                batch, attention_mask=torch.ones_like(batch), do_sample=False, max_new_tokens=tokens, use_cache=True))
        return seconds, out[:, batch.shape[1] :].tolist()

    def run_ours():
        reply = peer.ask(case="decode", ids=ids, tokens=tokens)
        return reply["seconds"], reply["ids"]

    def agree(pairs):
        theirs, ours = pairs[0]
        stable = all(pair == pairs[0] for pair in pairs)
        gaps = [tie(model, ids[row], theirs[row], ours[row]) for row in range(rows)]
        equal = sum(gap is None for gap in gaps)
        # A row may part only where PyTorch itself sees the two candidates closer than f32 resolves.
        worst = max((gap for gap in gaps if gap is not None), default=0.0)
        return {"rows_equal": f"{equal}/{rows}", "gap_where_parting": worst, "stable": stable}, stable and worst < 2e-4

    return Case(f"decode {tokens}, batch {rows}", at_least, run_torch, run_ours, agree)


def tie(model, prompt, theirs, ours):
    """`None` if equal; else how far apart PyTorch's logits of the two tokens are at the first difference."""
    if len(ours) != len(theirs):
        return float("inf")
    for i, (a, b) in enumerate(zip(theirs, ours)):
        if a != b:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + theirs[:i]])).logits[0, -1]
            return (logits[a] - logits[b]).abs().item()
    return None


def rome_edit(model, tokenizer, peer, shared, recipe, at_least, facts=5):
    """Whole edits, one fact a pair, EasyEdit's way against ours, with p(target) and neighbours moved."""
    contexts = json.loads((shared / "golden/contexts.json").read_text())["rome"]
    path = shared / "golden/moments.safetensors"
    # As EasyEdit caches it: inverted once, outside the time.
    inverse = validate.read_moments(path, rome.LAYER).double().inverse()
    records = json.loads((shared / "data/counterfact/counterfact_fullfields_merged.json").read_text())
    turn = {"torch": 0, "ours": 0}

    def fact(side):
        record = records[turn[side] % facts]
        turn[side] += 1
        rewrite = record["requested_rewrite"]
        prompt = rewrite["prompt"].format(rewrite["subject"])
        made = rome.request(tokenizer, prompt, rewrite["subject"], rewrite["target_new"]["str"], contexts)
        probes = [tokenizer.encode(text).ids for text in record["neighborhood_prompts"]]
        return made, probes, {"prompt": prompt, "subject": rewrite["subject"], "target": rewrite["target_new"]["str"]}

    def run_torch():
        made, probes, _ = fact("torch")
        before = [argmax(model, ids) for ids in probes]
        steps = []
        seconds, (u, right) = timed(lambda: rome.edit(model, made, inverse, trace=lambda *at: steps.append(at)))
        weight = model.model.layers[made.layer].mlp.down_proj.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight += torch.outer(right, u)
        result = {"p_target": probability(model, made), "before": before, "after": [argmax(model, ids) for ids in probes],
                  "steps": len(steps)}
        with torch.no_grad():
            weight.copy_(kept)
        return seconds, result

    def run_ours():
        made, probes, words = fact("ours")
        reply = peer.ask(case="rome", recipe=recipe, request=made.json(), probes=probes, moments=str(path), **words)
        return reply["seconds"], reply

    def agree(pairs):
        moved = lambda before, after: sum(a != b for a, b in zip(before, after))
        mean = lambda values: sum(values) / len(values)
        found = {
            "p_target": [mean([a["p_target"] for a, _ in pairs]), mean([b["p_target"] for _, b in pairs])],
            "neighbours_moved": [sum(moved(a["before"], a["after"]) for a, _ in pairs),
                                 sum(moved(a["before"], b["after"]) for a, b in pairs)],
            "steps": [[a["steps"] for a, _ in pairs], [b["steps"] for _, b in pairs]],
        }
        p, n = found["p_target"], found["neighbours_moved"]
        if recipe == "default":
            return found, p[1] >= p[0] and n[1] <= n[0]
        # Adam divides by tiny second moments: the same search may end a step apart.
        same = abs(p[0] - p[1]) < 0.01 and all(abs(a - b) <= 1 for a, b in zip(*found["steps"]))
        return found, same and n[1] <= n[0]

    return Case(f"rome edit, {recipe} recipe", at_least, run_torch, run_ours, agree, pairs=facts)


def argmax(model, ids):
    """The likeliest next token."""
    with torch.no_grad():
        return int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())


def probability(model, request):
    """Product of the target tokens' probabilities after the bare prompt."""
    prompt, target = request.keys[0], request.target
    with torch.no_grad():
        logp = model(torch.tensor([prompt + target[:-1]]), use_cache=False).logits[0].log_softmax(-1)
    return sum(logp[len(prompt) - 1 + i, token] for i, token in enumerate(target)).exp().item()
