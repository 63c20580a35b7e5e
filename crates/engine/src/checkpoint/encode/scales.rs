//! The search for a block's scales: several to begin with, each fitted by least squares to the codes
//! that it leads to, and the one with the least squared error is kept.

use half::f16;

use super::nearest;
use crate::checkpoint::Dtype;

/// Scales tried on either side of the plain one, and how far apart, in codes.
const TRIES: i32 = 9;
const TRY_STEP: f32 = 0.1;

/// Rounds of rounding to codes and fitting the scale to them.
const ROUNDS: usize = 2;

/// Numbers that share a scale.
pub(super) fn group_len(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Q2_K | Dtype::Q3_K | Dtype::Q6_K => 16,
        _ => 32,
    }
}

/// Writes the scales of a block of zeros; its codes stay as they are.
pub(super) fn choose(dtype: Dtype, x: &[f32], block: &mut [u8]) {
    match dtype {
        // The offset is -8 or -16 scales: codes from -8 or -16.
        Dtype::Q4_0 => put_half(block, 0, symmetric(x, [-8, 7], rounded)),
        Dtype::Q5_0 => put_half(block, 0, symmetric(x, [-16, 15], rounded)),
        Dtype::Q8_0 => put_half(block, 0, symmetric(x, dtype.code_range(), rounded)),
        Dtype::Q4_1 | Dtype::Q5_1 => {
            let (scale, offset) = affine(x, dtype.code_range(), false, rounded);
            put_half(block, 0, scale);
            put_half(block, 2, offset);
        }
        Dtype::Q4_K | Dtype::Q5_K => {
            let found = Pairs::find(dtype, x, 63);
            put_half(block, 0, found.scale);
            put_half(block, 2, found.min);
            let (s, m) = (&found.scales, &found.mins);
            for g in 0..4 {
                block[4 + g] = s[g] | (s[g + 4] >> 4) << 6;
                block[8 + g] = m[g] | (m[g + 4] >> 4) << 6;
                block[12 + g] = (s[g + 4] & 15) | (m[g + 4] & 15) << 4;
            }
        }
        Dtype::Q2_K => {
            let found = Pairs::find(dtype, x, 15);
            put_half(block, 80, found.scale);
            put_half(block, 82, found.min);
            for g in 0..16 {
                block[g] = found.scales[g] | found.mins[g] << 4;
            }
        }
        Dtype::Q3_K => {
            let (scale, scales) = signed(dtype, x, [-32, 31]);
            put_half(block, 108, scale);
            for g in 0..16 {
                let s = (scales[g] + 32) as u8; // 0 to 63
                block[96 + g % 8] |= (s & 15) << (4 * (g / 8));
                block[104 + g % 4] |= (s >> 4) << (2 * (g / 4));
            }
        }
        Dtype::Q6_K => {
            let (scale, scales) = signed(dtype, x, [-128, 127]);
            put_half(block, 208, scale);
            for g in 0..16 {
                block[192 + g] = scales[g] as i8 as u8; // -128 to 127
            }
        }
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => unreachable!("plain formats have no scales"),
    }
}

fn put_half(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// As a half stores it.
fn rounded(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// Squared error with the nearest codes.
fn error(x: &[f32], scale: f32, offset: f32, range: [i8; 2]) -> f32 {
    x.iter()
        .map(|&x| {
            let y = scale * f32::from(nearest(x, scale, offset, range)) + offset;
            (x - y) * (x - y)
        })
        .sum()
}

/// The best of several with their errors. A block that no format can hold has no error to compare;
/// the first stands for it.
#[derive(Debug, Clone, Copy)]
struct Best<T> {
    error: f32,
    value: T,
}

impl<T> Best<T> {
    fn offer(&mut self, error: f32, value: T) {
        if error < self.error {
            *self = Self { error, value };
        }
    }
}

/// A scale for numbers around zero. `store` rounds it as it will be stored.
fn symmetric(x: &[f32], range: [i8; 2], store: impl Fn(f32) -> f32) -> f32 {
    let peak = x.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    if peak == 0.0 {
        return 0.0;
    }
    let plain = store(peak / f32::from(range[0]));
    let mut best = Best { error: error(x, plain, 0.0, range), value: plain };
    for end in range {
        for step in -TRIES..=TRIES {
            let mut scale = peak / (f32::from(end) + TRY_STEP * step as f32);
            for _ in 0..ROUNDS {
                let (mut xq, mut qq) = (0.0, 0.0);
                for &x in x {
                    let q = f32::from(nearest(x, scale, 0.0, range));
                    xq += x * q;
                    qq += q * q;
                }
                if qq > 0.0 {
                    scale = xq / qq;
                }
            }
            let scale = store(scale);
            best.offer(error(x, scale, 0.0, range), scale);
        }
    }
    best.value
}

/// A scale and an offset, which is 0 or below where `below`.
fn affine(x: &[f32], range: [i8; 2], below: bool, store: impl Fn(f32) -> f32) -> (f32, f32) {
    let limit = if below { 0.0 } else { f32::INFINITY };
    let low = x.iter().copied().fold(limit, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if high <= low {
        return (0.0, store(low));
    }
    let span = f32::from(range[1]);
    let plain = (store((high - low) / span), store(low));
    let mut best = Best { error: error(x, plain.0, plain.1, range), value: plain };
    for step in -TRIES..=TRIES {
        let mut scale = (high - low) / (span + TRY_STEP * step as f32);
        let mut offset = low;
        for _ in 0..ROUNDS {
            (scale, offset) = fitted(x, scale, offset, range, below);
        }
        let (scale, offset) = (store(scale), store(offset));
        best.offer(error(x, scale, offset, range), (scale, offset));
    }
    best.value
}

/// Scale and offset by least squares for the codes that the given ones lead to.
fn fitted(x: &[f32], scale: f32, offset: f32, range: [i8; 2], below: bool) -> (f32, f32) {
    let n = x.len() as f64;
    let (mut q1, mut q2, mut x1, mut xq) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for &x in x {
        let q = f64::from(nearest(x, scale, offset, range));
        let x = f64::from(x);
        q1 += q;
        q2 += q * q;
        x1 += x;
        xq += x * q;
    }
    let determinant = n * q2 - q1 * q1;
    if determinant <= 0.0 {
        return (scale, offset);
    }
    let (s, o) = ((n * xq - q1 * x1) / determinant, (q2 * x1 - q1 * xq) / determinant);
    if below && o > 0.0 {
        return ((xq / q2) as f32, 0.0);
    }
    (s as f32, o as f32)
}

/// The scales of a block of groups `scale · a · code - min · b`, with small integers `a` and `b`.
struct Pairs {
    scale: f32,
    min: f32,
    scales: [u8; 16],
    mins: [u8; 16],
}

impl Pairs {
    /// `most` is the largest integer that a group's scale can be.
    fn find(dtype: Dtype, x: &[f32], most: u8) -> Self {
        let (group, range) = (group_len(dtype), dtype.code_range());
        let mut exact = [(0.0f32, 0.0f32); 16];
        for (x, pair) in x.chunks_exact(group).zip(&mut exact) {
            *pair = affine(x, range, true, |x| x);
        }
        let largest = |of: fn(&(f32, f32)) -> f32| exact.iter().map(of).fold(0.0f32, f32::max);
        let mut found = Self {
            scale: rounded(largest(|p| p.0) / f32::from(most)),
            min: rounded(largest(|p| -p.1) / f32::from(most)),
            scales: [0; 16],
            mins: [0; 16],
        };
        let mut least = f32::INFINITY;
        for _ in 0..ROUNDS {
            let mut trial = Self { scale: found.scale, min: found.min, scales: [0; 16], mins: [0; 16] };
            let mut total = 0.0;
            for (g, x) in x.chunks_exact(group).enumerate() {
                let around = |value: f32, unit: f32| {
                    let middle =
                        if unit > 0.0 { (value / unit).round().clamp(0.0, f32::from(most)) } else { 0.0 };
                    let middle = middle as u8; // 0 to `most`
                    middle.saturating_sub(1)..=(middle + 1).min(most)
                };
                let mut best = Best { error: f32::INFINITY, value: (0, 0) };
                for a in around(exact[g].0, trial.scale) {
                    for b in around(-exact[g].1, trial.min) {
                        let (scale, offset) = (trial.scale * f32::from(a), -(trial.min * f32::from(b)));
                        best.offer(error(x, scale, offset, range), (a, b));
                    }
                }
                (trial.scales[g], trial.mins[g]) = best.value;
                total += best.error;
            }
            if total >= least {
                break;
            }
            least = total;
            let (scale, min) = trial.refitted(x, group, range);
            found = Self { scale: trial.scale, min: trial.min, ..trial };
            // What the fit is worth shows in the next round, with integers chosen for it.
            let better = found.error_with(x, group, range, scale, min);
            if better < least {
                (found.scale, found.min, least) = (scale, min, better);
            }
        }
        found
    }

    fn error_with(&self, x: &[f32], group: usize, range: [i8; 2], scale: f32, min: f32) -> f32 {
        x.chunks_exact(group)
            .enumerate()
            .map(|(g, x)| {
                error(x, scale * f32::from(self.scales[g]), -(min * f32::from(self.mins[g])), range)
            })
            .sum()
    }

    /// Both halves by least squares, for the integers and codes that there are.
    fn refitted(&self, x: &[f32], group: usize, range: [i8; 2]) -> (f32, f32) {
        // x ≈ scale · p - min · r, with p = a · code, r = b.
        let (mut pp, mut pr, mut rr, mut xp, mut xr) = (0.0f64, 0.0, 0.0, 0.0, 0.0);
        for (g, x) in x.chunks_exact(group).enumerate() {
            let (a, b) = (f32::from(self.scales[g]), f32::from(self.mins[g]));
            for &x in x {
                let code = nearest(x, self.scale * a, -(self.min * b), range);
                let (p, r, x) = (f64::from(a) * f64::from(code), f64::from(b), f64::from(x));
                pp += p * p;
                pr += p * r;
                rr += r * r;
                xp += x * p;
                xr += x * r;
            }
        }
        let determinant = pp * rr - pr * pr;
        if determinant > 0.0 {
            let (scale, min) = ((rr * xp - pr * xr) / determinant, (pr * xp - pp * xr) / determinant);
            if scale > 0.0 && min >= 0.0 {
                return (rounded(scale as f32), rounded(min as f32));
            }
        }
        if pp > 0.0 && rr == 0.0 { (rounded((xp / pp) as f32), self.min) } else { (self.scale, self.min) }
    }
}

/// The scale of a block of groups `scale · a · code`, and the integers `a` within `limits`.
fn signed(dtype: Dtype, x: &[f32], limits: [i32; 2]) -> (f32, [i32; 16]) {
    let (group, range) = (group_len(dtype), dtype.code_range());
    let mut exact = [0.0f32; 16];
    for (x, scale) in x.chunks_exact(group).zip(&mut exact) {
        *scale = symmetric(x, range, |x| x);
    }
    let peak = exact.iter().fold(0.0f32, |m, &s| if s.abs() > m.abs() { s } else { m });
    let mut scale = rounded(peak / limits[0] as f32);
    let mut found = Best { error: f32::INFINITY, value: (scale, [0; 16]) };
    if scale == 0.0 {
        return found.value;
    }
    for _ in 0..ROUNDS {
        let mut integers = [0; 16];
        let (mut total, mut xp, mut pp) = (0.0, 0.0f64, 0.0f64);
        for (g, x) in x.chunks_exact(group).enumerate() {
            let middle = (exact[g] / scale).round().clamp(limits[0] as f32, limits[1] as f32) as i32;
            let mut best = Best { error: f32::INFINITY, value: middle };
            for a in (middle - 1).max(limits[0])..=(middle + 1).min(limits[1]) {
                best.offer(error(x, scale * a as f32, 0.0, range), a);
            }
            let a = best.value;
            integers[g] = a;
            total += best.error;
            for &x in x {
                let p = f64::from(a) * f64::from(nearest(x, scale * a as f32, 0.0, range));
                xp += f64::from(x) * p;
                pp += p * p;
            }
        }
        found.offer(total, (scale, integers));
        if pp > 0.0 {
            scale = rounded((xp / pp) as f32);
        }
        let refitted =
            x.chunks_exact(group).zip(&integers).map(|(x, &a)| error(x, scale * a as f32, 0.0, range)).sum();
        found.offer(refitted, (scale, integers));
    }
    found.value
}
