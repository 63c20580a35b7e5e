"""ROME in PyTorch the way EasyEdit runs it: every step is a full forward over all prompts and positions.

Written from `reference/methods.md` §2.1 and §2.2. Only the time-consuming shape is kept on purpose:
right-padded batch, logits at every position, gradient back to δ at the MLP's output.
"""

from dataclasses import dataclass

import torch

LAYER, LEARNING_RATE, STEPS, DECAY, CLAMP, KL, STOP = 5, 0.5, 25, 1e-3, 4.0, 0.0625, 0.05


@dataclass
class Request:
    """One edit as token ids. `rows` are the contexts with the prompt and all target tokens but the
    last, then the KL prompt; `lookups` is where δ is added in each. `keys` are the contexts with the
    prompt alone, their first the bare prompt; the lookups are the same."""

    rows: list
    lookups: list
    keys: list
    target: list
    layer: int = LAYER

    def json(self):
        """The request as the peer reads it."""
        return {"rows": self.rows, "lookups": self.lookups, "keys": self.keys, "target": self.target, "layer": self.layer}


def request(tokenizer, prompt, subject, target, contexts):
    """Tokenises an edit; `contexts` hold one `{}` each, `prompt` contains `subject`."""
    target_ids = tokenizer.encode(target if target.startswith(" ") else " " + target).ids
    rows, lookups, keys = [], [], []
    for context in contexts:
        text = context.replace("{}", prompt)
        encoding = tokenizer.encode(text)
        keys.append(encoding.ids)
        rows.append(encoding.ids + target_ids[:-1])
        lookups.append(last_token(encoding, text.rindex(subject) + len(subject) - 1))
    encoding = tokenizer.encode(f"{subject} is a")
    rows.append(encoding.ids)
    lookups.append(last_token(encoding, len(subject) - 1))
    return Request(rows, lookups, keys, target_ids)


def last_token(encoding, character):
    """Index of the token that holds the character."""
    return next(i for i, (start, end) in enumerate(encoding.offsets) if start <= character < end)


def pad(rows):
    """`(ids, mask)`, padded on the right."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids, mask


class Search:
    """The v* search of one request: `loss(δ)` is one forward, `run()` the whole search."""

    def __init__(self, model, request):
        self.model, self.request = model, request
        self.ids, self.mask = pad(request.rows)
        count, n = len(request.rows) - 1, len(request.target)
        self.targets = torch.full_like(self.ids, -100)
        for row in range(count):
            end = len(request.rows[row])
            self.targets[row, end - n : end] = torch.tensor(request.target)
        self.origin, self.kl_origin = None, None

    def loss(self, delta):
        """`(total, NLL, KL, decay)` with δ added at every row's lookup position.

        The first call defines h_init and the distribution that KL is measured from: call it with δ = 0."""
        request, count = self.request, len(self.request.rows) - 1
        where = (torch.arange(count + 1), torch.tensor(request.lookups))

        def add(_module, _inputs, out):
            if self.origin is None:
                self.origin = out[0, request.lookups[0]].detach().clone()
            out = out.clone()
            out[where] += delta
            return out

        hook = self.model.model.layers[request.layer].mlp.register_forward_hook(add)
        logits = self.model(input_ids=self.ids, attention_mask=self.mask, use_cache=False).logits
        hook.remove()
        now = logits[count, request.lookups[count]].log_softmax(-1)
        if self.kl_origin is None:
            self.kl_origin = now.detach().clone()
        logp = logits.log_softmax(2)
        picked = logp.gather(2, self.targets.clamp(min=0).unsqueeze(2)).squeeze(2)
        wanted = self.targets != -100
        nll = (-(picked * wanted).sum(1) / len(request.target))[:count].mean()
        kl = KL * (now.exp() * (now - self.kl_origin)).sum()
        decay = DECAY * delta.norm() / self.origin.norm() ** 2
        return nll + kl + decay, nll, kl, decay

    def run(self, trace=None):
        """v* = h_init + δ; calls `trace(losses, δ)` at every step, with δ as it was evaluated."""
        delta = torch.zeros(self.model.config.hidden_size, requires_grad=True)
        optimiser = torch.optim.Adam([delta], lr=LEARNING_RATE)
        for step in range(STEPS):
            optimiser.zero_grad()
            total, *parts = self.loss(delta)
            if trace:
                trace([total.item(), *(part.item() for part in parts)], delta.detach().clone())
            if total.item() < STOP or step == STEPS - 1:
                break
            total.backward()
            optimiser.step()
            limit = CLAMP * self.origin.norm()
            if delta.norm() > limit:
                with torch.no_grad():
                    delta.mul_(limit / delta.norm())
        return self.origin + delta.detach()


def keys_at(model, rows, lookups, layer):
    """The MLP's keys and outputs at one position of each row, by a full forward."""
    ids, mask = pad(rows)
    where, kept = (torch.arange(len(rows)), torch.tensor(lookups)), {}

    def keep(_module, inputs, out):
        kept.update(keys=inputs[0][where], outputs=out[where])

    hook = model.model.layers[layer].mlp.down_proj.register_forward_hook(keep)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    hook.remove()
    return kept["keys"], kept["outputs"]


def direction(key, inverse):
    """u: C⁻¹k of length 1."""
    u = key if inverse is None else (inverse @ key.double()).float()
    return u / u.norm()


def edit(model, request, inverse=None, trace=None):
    """`(u, right)`: the update of the down projection is `right uᵀ`. `inverse`: C⁻¹ in f64; `None`: C = I."""
    keys, _ = keys_at(model, request.keys, request.lookups[:-1], request.layer)
    key = keys.mean(0)
    u = direction(key, inverse)
    value = Search(model, request).run(trace)
    bare_key, bare_output = keys_at(model, request.keys[:1], request.lookups[:1], request.layer)
    return u, (value - bare_output[0]) / (bare_key[0] @ u)
