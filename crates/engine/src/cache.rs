//! Keys and values that a pass can start from.

use std::sync::Arc;

use crate::architecture::Architecture;
use crate::kernels::attention::Segment;

/// Keys and values of one growing sequence, all layers: what decoding appends to.
#[derive(Debug, Clone)]
pub struct Cache {
    /// Width of a token's keys.
    pub(crate) width: usize,
    pub(crate) layers: Vec<Segment>,
}

impl Cache {
    /// An empty cache.
    pub fn new(architecture: &Architecture) -> Self {
        let width = architecture.kv_width();
        Self { width, layers: vec![Segment::new(width); architecture.layers] }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.layers.last().map_or(0, Segment::len)
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        for layer in &mut self.layers {
            layer.truncate(len);
        }
    }

    /// The first `len` tokens (all, where fewer are held) as a prefix that many sequences can
    /// share. Layers below `from` are left out: a pass that starts above them never reads them.
    pub fn past(&self, len: usize, from: usize) -> Past {
        let len = len.min(self.len());
        let layers = self
            .layers
            .iter()
            .enumerate()
            .map(|(l, s)| if l < from { Segment::new(self.width) } else { s.prefix(len.min(s.len())) })
            .collect();
        Past { len, width: self.width, layers: Arc::new(layers) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(Segment::bytes).sum()
    }
}

/// Frozen keys and values of the tokens before a sequence; cheap to clone and to share.
#[derive(Debug, Clone)]
pub struct Past {
    pub(crate) len: usize,
    pub(crate) width: usize,
    pub(crate) layers: Arc<Vec<Segment>>,
}

impl Past {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
