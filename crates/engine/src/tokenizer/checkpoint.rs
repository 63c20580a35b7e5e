//! The tokenizer that comes with a checkpoint.

use super::{GgufVocabulary, Tokenizer};
use crate::checkpoint::Checkpoint;
use crate::error::Result;

impl Tokenizer {
    /// The tokenizer of a checkpoint: the GGUF's own vocabulary, or the `tokenizer.json` beside
    /// the weights, which are not read. `Ok(None)` where there is none: ids can still be given.
    ///
    /// # Errors
    /// As [`Self::from_gguf`] and [`Self::from_dir`]; [`crate::Error::Tokenizer`] where it belongs
    /// to another model.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let tokenizer = Self::unchecked(checkpoint)?;
        if let Some(tokenizer) = &tokenizer {
            tokenizer.validate(checkpoint.architecture().vocabulary)?;
        }
        Ok(tokenizer)
    }

    fn unchecked(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let Some(gguf) = checkpoint.gguf() else {
            let path = checkpoint.path();
            let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
            let is_there = folder.join("tokenizer.json").exists();
            return is_there.then(|| Self::from_dir(folder)).transpose();
        };
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let Some(model) = gguf.str(&key("model"))? else { return Ok(None) };
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let vocabulary = GgufVocabulary {
            model: model.to_owned(),
            pre: owned(gguf.str(&key("pre"))?),
            tokens: gguf.strings(&key("tokens"))?.unwrap_or_default().to_vec(),
            scores: gguf.f32s(&key("scores"))?.map(|x| x.into_owned()),
            token_types: gguf.i32s(&key("token_type"))?.map(|x| x.into_owned()),
            merges: gguf.strings(&key("merges"))?.map(<[String]>::to_vec),
            bos: gguf.u32(&key("bos_token_id"))?,
            eos: gguf.u32(&key("eos_token_id"))?,
            eot: gguf.u32(&key("eot_token_id"))?,
            eom: gguf.u32(&key("eom_token_id"))?,
            unk: gguf.u32(&key("unknown_token_id"))?,
            pad: gguf.u32(&key("padding_token_id"))?,
            add_bos: gguf.bool(&key("add_bos_token"))?,
            add_eos: gguf.bool(&key("add_eos_token"))?,
            add_space_prefix: gguf.bool(&key("add_space_prefix"))?,
            chat_template: owned(gguf.str("tokenizer.chat_template")?),
        };
        Self::from_gguf(vocabulary).map(Some)
    }
}
