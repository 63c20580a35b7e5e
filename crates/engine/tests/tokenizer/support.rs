//! Where test data lies, and a reader of GGUF metadata for tests only.

use std::collections::HashMap;
use std::path::PathBuf;

use mutandis_engine::tokenizer::{GgufVocabulary, Tokenizer};

/// A file below the folder that `variable` names, or below `name` beside the repository.
pub(crate) fn data(variable: &str, name: &str, file: &str) -> Option<PathBuf> {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../..").join(name);
    let path = std::env::var_os(variable).map_or_else(default, PathBuf::from).join(file);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent (set {variable})", path.display());
    None
}

/// The vocabulary of a real model, or `None` where the model is absent.
pub(crate) fn vocabulary(file: &str) -> Option<GgufVocabulary> {
    let path = data("MUTANDIS_TEST_MODELS", "models", file)?;
    let mut head = Vec::new();
    let file = std::fs::File::open(path).unwrap();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, 64 << 20), &mut head).unwrap();
    let mut reader = Reader { bytes: &head, at: 16 };
    let count = reader.u64();
    let mut meta: HashMap<String, Value> = (0..count)
        .map(|_| {
            let key = reader.string();
            let code = reader.u32();
            (key, reader.value(code))
        })
        .collect();
    let mut take = |key: &str| meta.remove(&format!("tokenizer.{key}"));
    Some(GgufVocabulary {
        model: take("ggml.model").unwrap().text(),
        pre: take("ggml.pre").map(Value::text),
        tokens: take("ggml.tokens").unwrap().list(Value::text),
        scores: take("ggml.scores").map(|v| v.list(|v| f32::from_bits(v.number() as u32))),
        token_types: take("ggml.token_type").map(|v| v.list(|v| v.number() as i32)),
        merges: take("ggml.merges").map(|v| v.list(Value::text)),
        bos: take("ggml.bos_token_id").map(Value::id),
        eos: take("ggml.eos_token_id").map(Value::id),
        unk: take("ggml.unknown_token_id").map(Value::id),
        pad: take("ggml.padding_token_id").map(Value::id),
        add_bos: take("ggml.add_bos_token").map(|v| v.number() != 0),
        add_eos: take("ggml.add_eos_token").map(|v| v.number() != 0),
        add_space_prefix: take("ggml.add_space_prefix").map(|v| v.number() != 0),
        chat_template: take("chat_template").map(Value::text),
        ..GgufVocabulary::default()
    })
}

pub(crate) const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
pub(crate) const GEMMA3: &str = "gemma-3-270m-q4_k_m.gguf";

pub(crate) fn smollm2() -> Option<Tokenizer> {
    Some(Tokenizer::from_gguf(vocabulary(SMOLLM2)?).unwrap())
}

pub(crate) fn gemma3() -> Option<Tokenizer> {
    Some(Tokenizer::from_gguf(vocabulary(GEMMA3)?).unwrap())
}

enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
}

impl Value {
    fn text(self) -> String {
        if let Self::Text(text) = self { text } else { panic!("no text") }
    }

    fn number(self) -> u64 {
        if let Self::Number(number) = self { number } else { panic!("no number") }
    }

    fn id(self) -> u32 {
        u32::try_from(self.number()).unwrap()
    }

    fn list<T>(self, each: impl Fn(Value) -> T) -> Vec<T> {
        if let Self::List(list) = self { list.into_iter().map(each).collect() } else { panic!("no list") }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn number(&mut self, width: usize) -> u64 {
        let mut word = [0; 8];
        word[..width].copy_from_slice(&self.bytes[self.at..self.at + width]);
        self.at += width;
        u64::from_le_bytes(word)
    }

    fn u32(&mut self) -> u32 {
        self.number(4) as u32
    }

    fn u64(&mut self) -> u64 {
        self.number(8)
    }

    fn string(&mut self) -> String {
        let length = self.u64() as usize;
        let text = self.bytes[self.at..self.at + length].to_vec();
        self.at += length;
        String::from_utf8(text).unwrap()
    }

    fn value(&mut self, code: u32) -> Value {
        match code {
            0 | 1 | 7 => Value::Number(self.number(1)),
            2 | 3 => Value::Number(self.number(2)),
            4..=6 => Value::Number(self.number(4)),
            10..=12 => Value::Number(self.number(8)),
            8 => Value::Text(self.string()),
            9 => {
                let (code, count) = (self.u32(), self.u64());
                Value::List((0..count).map(|_| self.value(code)).collect())
            }
            _ => panic!("type {code}"),
        }
    }
}
