//! Tensor names and packings of every family in both containers, as data.
//!
//! A new family is one table per container here, one reading in `config` and `gguf_config`.

use crate::architecture::{Architecture, Family, Role};

/// Which rows of a stored tensor are a weight's, and in what order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// All, as they lie.
    All,
    /// The n-th of three equal blocks: `[q; k; v]`.
    Third(usize),
    /// The n-th of three equal parts of each head: `[q₀ k₀ v₀ q₁ k₁ v₁ …]`.
    ThirdOfHead(usize),
    /// All, with the two halves of each head's rotated part interleaved, as llama.cpp's converter
    /// leaves them for its rotation of neighbouring pairs.
    Neighbours,
}

/// Where a role's weight lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spec {
    pub(super) role: Role,
    /// Name without prefix, layer and `.weight` or `.bias`.
    pub(super) name: &'static str,
    pub(super) rows: Rows,
    /// Stored as `[in, out]` (GPT-2's `Conv1D`).
    pub(super) transposed: bool,
}

/// The naming convention of one family in one container.
#[derive(Debug)]
pub(super) struct Naming {
    /// What may stand before every name but the head's; the one under which the embedding is
    /// found holds for the whole checkpoint.
    pub(super) prefixes: &'static [&'static str],
    /// What stands between prefix and layer index.
    pub(super) layer: &'static str,
    /// The head's full names, the usual one first.
    pub(super) heads: &'static [&'static str],
    /// Added to every norm's scale: Gemma stores `w`, and scales by `1 + w`.
    pub(super) norm_offset: f32,
    pub(super) specs: &'static [Spec],
}

/// The container of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// One `.gguf` file, or the pieces of a split one.
    Gguf,
    /// `.safetensors`, single or sharded, with `config.json`.
    Safetensors,
}

/// What GGUF metadata calls the families.
pub(super) const GGUF_ARCHITECTURES: [(&str, Family); 7] = [
    ("llama", Family::Llama),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("gemma3", Family::Gemma3),
    ("gpt2", Family::Gpt2),
    ("gptj", Family::Gptj),
    ("gptneox", Family::GptNeox),
];

impl Naming {
    /// The full name of the module that holds a role's weight: its tensors are this name with
    /// `.weight` or `.bias` behind. `layer` is ignored for roles outside layers.
    pub(super) fn module(&self, prefix: &str, head: &str, spec: &Spec, layer: usize) -> String {
        match spec.role {
            Role::Head => head.to_owned(),
            role if role.in_layer() => format!("{prefix}{}{layer}.{}", self.layer, spec.name),
            _ => format!("{prefix}{}", spec.name),
        }
    }
}

/// The convention of a family in a container.
pub(super) fn naming(family: Family, container: Container) -> &'static Naming {
    match (container, family) {
        (Container::Safetensors, Family::Llama | Family::Qwen2) => &LLAMA,
        (Container::Safetensors, Family::Qwen3) => &QWEN3,
        (Container::Safetensors, Family::Gemma3) => &GEMMA3,
        (Container::Safetensors, Family::Gpt2) => &GPT2,
        (Container::Safetensors, Family::Gptj) => &GPTJ,
        (Container::Safetensors, Family::GptNeox) => &GPT_NEOX,
        (Container::Gguf, Family::Llama) => &GGUF_LLAMA,
        (Container::Gguf, Family::Qwen2) => &GGUF_QWEN2,
        (Container::Gguf, Family::Qwen3) => &GGUF_QWEN3,
        (Container::Gguf, Family::Gemma3) => &GGUF_GEMMA3,
        (Container::Gguf, Family::Gpt2) => &GGUF_GPT2,
        (Container::Gguf, Family::Gptj) => &GGUF_GPTJ,
        (Container::Gguf, Family::GptNeox) => &GGUF_GPT_NEOX,
    }
}

/// Whether a tensor that no role uses is known to be harmless: buffers that old versions saved,
/// the other half of a multimodal checkpoint, tables that are read elsewhere.
pub(super) fn is_ignorable(name: &str) -> bool {
    const ENDINGS: [&str; 7] = [
        ".attn.bias",
        ".attn.masked_bias",
        ".attention.bias",
        ".attention.masked_bias",
        "rotary_emb.inv_freq",
        ".attn_rot_embd.weight",
        "rope_freqs.weight",
    ];
    const BEGINNINGS: [&str; 4] =
        ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];
    ENDINGS.iter().any(|e| name.ends_with(e)) || BEGINNINGS.iter().any(|b| name.starts_with(b))
}

/// The shape of a role's weight: rows, and columns where it is a matrix.
pub(super) fn shape(a: &Architecture, role: Role) -> (usize, Option<usize>) {
    match role {
        Role::Embedding | Role::Head => (a.vocabulary, Some(a.width)),
        Role::Positions => (a.context, Some(a.width)),
        Role::Query => (a.query_width(), Some(a.width)),
        Role::Key | Role::Value => (a.kv_width(), Some(a.width)),
        Role::AttentionOut => (a.width, Some(a.query_width())),
        Role::MlpGate | Role::MlpUp => (a.mlp_width, Some(a.width)),
        Role::MlpOut => (a.width, Some(a.mlp_width)),
        Role::QueryNorm | Role::KeyNorm => (a.head_width, None),
        Role::AttentionNorm
        | Role::AttentionPostNorm
        | Role::MlpNorm
        | Role::MlpPostNorm
        | Role::FinalNorm => (a.width, None),
    }
}

const fn all(role: Role, name: &'static str) -> Spec {
    Spec { role, name, rows: Rows::All, transposed: false }
}

const fn rows(role: Role, name: &'static str, rows: Rows) -> Spec {
    Spec { role, name, rows, transposed: false }
}

const fn conv1d(role: Role, name: &'static str, rows: Rows) -> Spec {
    Spec { role, name, rows, transposed: true }
}

// Hugging Face: Llama, Mistral, Qwen 2.
static LLAMA: Naming = Naming {
    prefixes: &["model.", ""],
    layer: "layers.",
    heads: &["lm_head"],
    norm_offset: 0.0,
    specs: &[
        all(Role::Embedding, "embed_tokens"),
        all(Role::AttentionNorm, "input_layernorm"),
        all(Role::Query, "self_attn.q_proj"),
        all(Role::Key, "self_attn.k_proj"),
        all(Role::Value, "self_attn.v_proj"),
        all(Role::AttentionOut, "self_attn.o_proj"),
        all(Role::MlpNorm, "post_attention_layernorm"),
        all(Role::MlpGate, "mlp.gate_proj"),
        all(Role::MlpUp, "mlp.up_proj"),
        all(Role::MlpOut, "mlp.down_proj"),
        all(Role::FinalNorm, "norm"),
        all(Role::Head, ""),
    ],
};

static QWEN3: Naming = Naming {
    prefixes: &["model.", ""],
    layer: "layers.",
    heads: &["lm_head"],
    norm_offset: 0.0,
    specs: &[
        all(Role::Embedding, "embed_tokens"),
        all(Role::AttentionNorm, "input_layernorm"),
        all(Role::Query, "self_attn.q_proj"),
        all(Role::Key, "self_attn.k_proj"),
        all(Role::Value, "self_attn.v_proj"),
        all(Role::QueryNorm, "self_attn.q_norm"),
        all(Role::KeyNorm, "self_attn.k_norm"),
        all(Role::AttentionOut, "self_attn.o_proj"),
        all(Role::MlpNorm, "post_attention_layernorm"),
        all(Role::MlpGate, "mlp.gate_proj"),
        all(Role::MlpUp, "mlp.up_proj"),
        all(Role::MlpOut, "mlp.down_proj"),
        all(Role::FinalNorm, "norm"),
        all(Role::Head, ""),
    ],
};

static GEMMA3: Naming = Naming {
    prefixes: &["model.", "", "language_model.model.", "model.language_model."],
    layer: "layers.",
    heads: &["lm_head", "language_model.lm_head"],
    norm_offset: 1.0,
    specs: &[
        all(Role::Embedding, "embed_tokens"),
        all(Role::AttentionNorm, "input_layernorm"),
        all(Role::Query, "self_attn.q_proj"),
        all(Role::Key, "self_attn.k_proj"),
        all(Role::Value, "self_attn.v_proj"),
        all(Role::QueryNorm, "self_attn.q_norm"),
        all(Role::KeyNorm, "self_attn.k_norm"),
        all(Role::AttentionOut, "self_attn.o_proj"),
        all(Role::AttentionPostNorm, "post_attention_layernorm"),
        all(Role::MlpNorm, "pre_feedforward_layernorm"),
        all(Role::MlpGate, "mlp.gate_proj"),
        all(Role::MlpUp, "mlp.up_proj"),
        all(Role::MlpOut, "mlp.down_proj"),
        all(Role::MlpPostNorm, "post_feedforward_layernorm"),
        all(Role::FinalNorm, "norm"),
        all(Role::Head, ""),
    ],
};

static GPT2: Naming = Naming {
    prefixes: &["transformer.", ""],
    layer: "h.",
    heads: &["lm_head"],
    norm_offset: 0.0,
    specs: &[
        all(Role::Embedding, "wte"),
        all(Role::Positions, "wpe"),
        all(Role::AttentionNorm, "ln_1"),
        conv1d(Role::Query, "attn.c_attn", Rows::Third(0)),
        conv1d(Role::Key, "attn.c_attn", Rows::Third(1)),
        conv1d(Role::Value, "attn.c_attn", Rows::Third(2)),
        conv1d(Role::AttentionOut, "attn.c_proj", Rows::All),
        all(Role::MlpNorm, "ln_2"),
        conv1d(Role::MlpUp, "mlp.c_fc", Rows::All),
        conv1d(Role::MlpOut, "mlp.c_proj", Rows::All),
        all(Role::FinalNorm, "ln_f"),
        all(Role::Head, ""),
    ],
};

static GPTJ: Naming = Naming {
    prefixes: &["transformer.", ""],
    layer: "h.",
    heads: &["lm_head"],
    norm_offset: 0.0,
    specs: &[
        all(Role::Embedding, "wte"),
        all(Role::AttentionNorm, "ln_1"),
        all(Role::Query, "attn.q_proj"),
        all(Role::Key, "attn.k_proj"),
        all(Role::Value, "attn.v_proj"),
        all(Role::AttentionOut, "attn.out_proj"),
        all(Role::MlpUp, "mlp.fc_in"),
        all(Role::MlpOut, "mlp.fc_out"),
        all(Role::FinalNorm, "ln_f"),
        all(Role::Head, ""),
    ],
};

static GPT_NEOX: Naming = Naming {
    prefixes: &["gpt_neox.", ""],
    layer: "layers.",
    heads: &["embed_out", "lm_head"],
    norm_offset: 0.0,
    specs: &[
        all(Role::Embedding, "embed_in"),
        all(Role::AttentionNorm, "input_layernorm"),
        rows(Role::Query, "attention.query_key_value", Rows::ThirdOfHead(0)),
        rows(Role::Key, "attention.query_key_value", Rows::ThirdOfHead(1)),
        rows(Role::Value, "attention.query_key_value", Rows::ThirdOfHead(2)),
        all(Role::AttentionOut, "attention.dense"),
        all(Role::MlpNorm, "post_attention_layernorm"),
        all(Role::MlpUp, "mlp.dense_h_to_4h"),
        all(Role::MlpOut, "mlp.dense_4h_to_h"),
        all(Role::FinalNorm, "final_layer_norm"),
        all(Role::Head, ""),
    ],
};

static GGUF_LLAMA: Naming = Naming {
    prefixes: &[""],
    layer: "blk.",
    heads: &["output"],
    norm_offset: 0.0,
    specs: &[
        all(Role::Embedding, "token_embd"),
        all(Role::AttentionNorm, "attn_norm"),
        rows(Role::Query, "attn_q", Rows::Neighbours),
        rows(Role::Key, "attn_k", Rows::Neighbours),
        all(Role::Value, "attn_v"),
        all(Role::AttentionOut, "attn_output"),
        all(Role::MlpNorm, "ffn_norm"),
        all(Role::MlpGate, "ffn_gate"),
        all(Role::MlpUp, "ffn_up"),
        all(Role::MlpOut, "ffn_down"),
        all(Role::FinalNorm, "output_norm"),
        all(Role::Head, ""),
    ],
};

static GGUF_QWEN2: Naming = Naming {
    prefixes: &[""],
    layer: "blk.",
    heads: &["output"],
    norm_offset: 0.0,
    specs: &[
        all(Role::Embedding, "token_embd"),
        all(Role::AttentionNorm, "attn_norm"),
        all(Role::Query, "attn_q"),
        all(Role::Key, "attn_k"),
        all(Role::Value, "attn_v"),
        all(Role::AttentionOut, "attn_output"),
        all(Role::MlpNorm, "ffn_norm"),
        all(Role::MlpGate, "ffn_gate"),
        all(Role::MlpUp, "ffn_up"),
        all(Role::MlpOut, "ffn_down"),
        all(Role::FinalNorm, "output_norm"),
        all(Role::Head, ""),
    ],
};

static GGUF_QWEN3: Naming = Naming {
    prefixes: &[""],
    layer: "blk.",
    heads: &["output"],
    norm_offset: 0.0,
    specs: &[
        all(Role::Embedding, "token_embd"),
        all(Role::AttentionNorm, "attn_norm"),
        all(Role::Query, "attn_q"),
        all(Role::Key, "attn_k"),
        all(Role::Value, "attn_v"),
        all(Role::QueryNorm, "attn_q_norm"),
        all(Role::KeyNorm, "attn_k_norm"),
        all(Role::AttentionOut, "attn_output"),
        all(Role::MlpNorm, "ffn_norm"),
        all(Role::MlpGate, "ffn_gate"),
        all(Role::MlpUp, "ffn_up"),
        all(Role::MlpOut, "ffn_down"),
        all(Role::FinalNorm, "output_norm"),
        all(Role::Head, ""),
    ],
};

// The converter has added the 1 of Gemma's norms.
static GGUF_GEMMA3: Naming = Naming {
    prefixes: &[""],
    layer: "blk.",
    heads: &["output"],
    norm_offset: 0.0,
    specs: &[
        all(Role::Embedding, "token_embd"),
        all(Role::AttentionNorm, "attn_norm"),
        all(Role::Query, "attn_q"),
        all(Role::Key, "attn_k"),
        all(Role::Value, "attn_v"),
        all(Role::QueryNorm, "attn_q_norm"),
        all(Role::KeyNorm, "attn_k_norm"),
        all(Role::AttentionOut, "attn_output"),
        all(Role::AttentionPostNorm, "post_attention_norm"),
        all(Role::MlpNorm, "ffn_norm"),
        all(Role::MlpGate, "ffn_gate"),
        all(Role::MlpUp, "ffn_up"),
        all(Role::MlpOut, "ffn_down"),
        all(Role::MlpPostNorm, "post_ffw_norm"),
        all(Role::FinalNorm, "output_norm"),
        all(Role::Head, ""),
    ],
};

// The converter has transposed GPT-2's matrices.
static GGUF_GPT2: Naming = Naming {
    prefixes: &[""],
    layer: "blk.",
    heads: &["output"],
    norm_offset: 0.0,
    specs: &[
        all(Role::Embedding, "token_embd"),
        all(Role::Positions, "position_embd"),
        all(Role::AttentionNorm, "attn_norm"),
        rows(Role::Query, "attn_qkv", Rows::Third(0)),
        rows(Role::Key, "attn_qkv", Rows::Third(1)),
        rows(Role::Value, "attn_qkv", Rows::Third(2)),
        all(Role::AttentionOut, "attn_output"),
        all(Role::MlpNorm, "ffn_norm"),
        all(Role::MlpUp, "ffn_up"),
        all(Role::MlpOut, "ffn_down"),
        all(Role::FinalNorm, "output_norm"),
        all(Role::Head, ""),
    ],
};

static GGUF_GPTJ: Naming = Naming {
    prefixes: &[""],
    layer: "blk.",
    heads: &["output"],
    norm_offset: 0.0,
    specs: &[
        all(Role::Embedding, "token_embd"),
        all(Role::AttentionNorm, "attn_norm"),
        all(Role::Query, "attn_q"),
        all(Role::Key, "attn_k"),
        all(Role::Value, "attn_v"),
        all(Role::AttentionOut, "attn_output"),
        all(Role::MlpUp, "ffn_up"),
        all(Role::MlpOut, "ffn_down"),
        all(Role::FinalNorm, "output_norm"),
        all(Role::Head, ""),
    ],
};

// The converter has sorted the heads' parts into [q; k; v].
static GGUF_GPT_NEOX: Naming = Naming {
    prefixes: &[""],
    layer: "blk.",
    heads: &["output"],
    norm_offset: 0.0,
    specs: &[
        all(Role::Embedding, "token_embd"),
        all(Role::AttentionNorm, "attn_norm"),
        rows(Role::Query, "attn_qkv", Rows::Third(0)),
        rows(Role::Key, "attn_qkv", Rows::Third(1)),
        rows(Role::Value, "attn_qkv", Rows::Third(2)),
        all(Role::AttentionOut, "attn_output"),
        all(Role::MlpNorm, "ffn_norm"),
        all(Role::MlpUp, "ffn_up"),
        all(Role::MlpOut, "ffn_down"),
        all(Role::FinalNorm, "output_norm"),
        all(Role::Head, ""),
    ],
};
