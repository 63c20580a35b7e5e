//! Merging neighbouring symbols, best pair first: the loop that both kinds of BPE share.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The id of a symbol that is no piece of the vocabulary.
pub(super) const NO_ID: u32 = u32::MAX;

const NONE: usize = usize::MAX;

/// A stretch of the text: at first one byte or one character, later a piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// Where it starts, in bytes.
    pub(super) start: usize,
    /// Where it ends, in bytes.
    pub(super) end: usize,
    /// Its id, or [`NO_ID`].
    pub(super) id: u32,
    prev: usize,
    next: usize,
}

/// What a pair would become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    /// Lower goes first.
    pub(super) rank: u32,
    /// The merged piece.
    pub(super) id: u32,
}

/// A pair in the queue. Ordered by rank, then by position: the leftmost of equals goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: usize,
    right: usize,
    bytes: usize,
    id: u32,
}

/// Symbols and queue; kept between words so that nothing is allocated per word.
#[derive(Debug, Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Forgets the last word.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Appends a symbol that starts where the last one ended.
    pub(super) fn push(&mut self, start: usize, end: usize, id: u32) {
        let at = self.symbols.len();
        if let Some(last) = self.symbols.last_mut() {
            last.next = at;
        }
        let prev = at.checked_sub(1).unwrap_or(NONE);
        self.symbols.push(Symbol { start, end, id, prev, next: NONE });
    }

    /// Merges until no pair is left that `pair` knows. O(n log n) calls for n symbols.
    pub(super) fn run(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<Pair>) {
        for right in 1..self.symbols.len() {
            self.offer(right - 1, right, &pair);
        }
        while let Some(Reverse(best)) = self.queue.pop() {
            let (left, right) = (self.symbols[best.left], self.symbols[best.right]);
            // A symbol that was merged away, or has grown since, makes the candidate stale.
            let stale = left.next != best.right || right.end.wrapping_sub(left.start) != best.bytes;
            if stale {
                continue;
            }
            let next = right.next;
            self.symbols[best.left] = Symbol { end: right.end, id: best.id, next, ..left };
            // Emptied, so that no candidate that names it fits any more.
            self.symbols[best.right].next = NONE;
            self.symbols[best.right].prev = NONE;
            if next != NONE {
                self.symbols[next].prev = best.left;
                self.offer(best.left, next, &pair);
            }
            if left.prev != NONE {
                self.offer(left.prev, best.left, &pair);
            }
        }
    }

    /// What is left, from left to right.
    pub(super) fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        let mut at = if self.symbols.is_empty() { NONE } else { 0 };
        std::iter::from_fn(move || {
            let symbol = self.symbols.get(at)?;
            at = symbol.next;
            Some(symbol)
        })
    }

    fn offer(&mut self, left: usize, right: usize, pair: &impl Fn(&Symbol, &Symbol) -> Option<Pair>) {
        let (a, b) = (&self.symbols[left], &self.symbols[right]);
        if let Some(Pair { rank, id }) = pair(a, b) {
            let bytes = b.end - a.start;
            self.queue.push(Reverse(Candidate { rank, left, right, bytes, id }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Merges `text` by a list of (piece, rank), O(n²) and as simple as it can be.
    fn naive(text: &str, ranks: &[(&str, u32)]) -> Vec<String> {
        let mut parts: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let best = (1..parts.len())
                .filter_map(|i| {
                    let joined = parts[i - 1].clone() + &parts[i];
                    ranks.iter().find(|r| r.0 == joined).map(|r| (r.1, i))
                })
                .min();
            let Some((_, i)) = best else { return parts };
            let right = parts.remove(i);
            parts[i - 1].push_str(&right);
        }
    }

    #[test]
    fn agrees_with_the_naive_loop() {
        let ranks = [("ab", 3), ("ba", 1), ("bab", 2), ("aa", 1), ("aaa", 0), ("abab", 4), ("bb", 5)];
        let mut state = 7_u32;
        for length in 0..60 {
            for _ in 0..20 {
                let text: String = (0..length)
                    .map(|_| {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        if state >> 31 == 0 { 'a' } else { 'b' }
                    })
                    .collect();
                let mut merger = Merger::default();
                for i in 0..text.len() {
                    merger.push(i, i + 1, NO_ID);
                }
                merger.run(|a, b| {
                    let joined = &text[a.start..b.end];
                    ranks.iter().find(|r| r.0 == joined).map(|r| Pair { rank: r.1, id: 0 })
                });
                let found: Vec<String> = merger.symbols().map(|s| text[s.start..s.end].to_owned()).collect();
                assert_eq!(found, naive(&text, &ranks), "{text}");
            }
        }
    }
}
