"""SmolLM2 for PyTorch from its GGUF: weights dequantised to f32, tokenizer from the file's vocabulary."""

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def load(path):
    """`(model, tokenizer)`; the model is f32, in evaluation mode, with frozen weights."""
    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    assert field("general.architecture") == "llama"
    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data), hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"), num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"), tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")})
    state = {}
    for tensor in reader.tensors:
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        array = array.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            array = halves(array, heads if ".attn_q." in tensor.name else kv_heads)
        state[hugging_face_name(tensor.name)] = torch.tensor(array)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").float().eval()
    missing, surplus = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not surplus, (missing, surplus)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.requires_grad_(False)
    # Every run decodes a fixed number of tokens.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model, tokenizer(reader)


def halves(rows, heads):
    """Rows of each head from GGUF's neighbours to the halves that transformers rotates."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def hugging_face_name(name):
    """`blk.3.ffn_up.weight` -> `model.layers.3.mlp.up_proj.weight`."""
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in whole:
        return whole[name]
    _, layer, kind, part = name.split(".")
    return f"model.layers.{layer}.{NAMES[kind]}.{part}"


def tokenizer(reader):
    """Byte-level BPE with single digits and no BOS, from the vocabulary and merges."""
    strings = lambda key: reader.fields[key].contents()
    tokens = strings("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in strings("tokenizer.ggml.merges")]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    return made
