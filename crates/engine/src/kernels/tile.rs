//! The micro-kernel of all products: some rows times [`LANES`] columns or a few times that, in sums
//! of [`Arithmetic::CHAIN`] steps that stay in registers. One sum that does not halves the speed, and
//! anything else that goes through the stack takes its part: look at the disassembly after a change.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _MM_HINT_T1, _mm_prefetch, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_set1_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps,
    _mm512_storeu_ps,
};

#[cfg(target_arch = "x86_64")]
use super::Fused;
use super::pack::LANES;
use super::{Apart, Arithmetic, Isa, Set};

/// Bytes that memory is fetched in.
const CACHE_LINE: usize = 64;

/// Steps per turn of the innermost loop.
const UNROLL: usize = 4;

/// Panels multiplied at once: as many as the registers have room for.
pub(super) fn panels_per_unit(isa: Isa) -> usize {
    if isa.0 == Set::Avx512 { 3 } else { 1 }
}

/// Rows multiplied at once.
pub(super) const fn rows_per_tile(set: Set) -> usize {
    match set {
        Set::Avx512 => 8,
        Set::Avx2 => 6,
        Set::Portable => 2,
    }
}

/// Adds `x [m, steps] · panels [steps, P·LANES]` to `sums [m, P·LANES]`; `P` is at most
/// [`panels_per_unit`]. Rows of `x` are `stride` apart, steps of a panel `pitch`; meanwhile what lies
/// `ahead` is fetched.
pub(super) fn block(
    isa: Isa,
    x: &[f32],
    stride: usize,
    m: usize,
    panels: &[&[f32]],
    pitch: usize,
    steps: usize,
    ahead: &[u8],
    sums: &mut [f32],
) {
    assert!((1..=panels_per_unit(isa)).contains(&panels.len()));
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
        fn avx512(
            x: &[f32],
            stride: usize,
            m: usize,
            panels: &[&[f32]],
            pitch: usize,
            steps: usize,
            ahead: &[u8],
            sums: &mut [f32],
        ) {
            match *panels {
                [a] => block_body::<Wide, { rows_per_tile(Set::Avx512) }, 1>(
                    x,
                    stride,
                    m,
                    &[a],
                    pitch,
                    steps,
                    ahead,
                    sums,
                ),
                [a, b] => block_body::<Wide, { rows_per_tile(Set::Avx512) }, 2>(
                    x,
                    stride,
                    m,
                    &[a, b],
                    pitch,
                    steps,
                    ahead,
                    sums,
                ),
                [a, b, c, ..] => block_body::<Wide, { rows_per_tile(Set::Avx512) }, 3>(
                    x,
                    stride,
                    m,
                    &[a, b, c],
                    pitch,
                    steps,
                    ahead,
                    sums,
                ),
                [] => {}
            }
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(
            x: &[f32],
            stride: usize,
            m: usize,
            panels: &[&[f32]],
            pitch: usize,
            steps: usize,
            ahead: &[u8],
            sums: &mut [f32],
        ) {
            block_body::<Pair, { rows_per_tile(Set::Avx2) }, 1>(
                x,
                stride,
                m,
                &[panels[0]],
                pitch,
                steps,
                ahead,
                sums,
            );
        }
        match isa.0 {
            // SAFETY: the processor has the instructions (see [`Isa`]).
            Set::Avx512 => return unsafe { avx512(x, stride, m, panels, pitch, steps, ahead, sums) },
            // SAFETY: as above.
            Set::Avx2 => return unsafe { avx2(x, stride, m, panels, pitch, steps, ahead, sums) },
            Set::Portable => {}
        }
    }
    block_body::<Apart, { rows_per_tile(Set::Portable) }, 1>(
        x,
        stride,
        m,
        &[panels[0]],
        pitch,
        steps,
        ahead,
        sums,
    );
}

/// The registers that a tile is made of: sums of [`LANES`] neighbouring columns.
trait Steps {
    /// As [`Arithmetic::CHAIN`].
    const CHAIN: usize;

    type Lanes: Copy;

    fn zero() -> Self::Lanes;

    /// `a · weights + sums`.
    ///
    /// # Safety
    /// `weights` has [`LANES`] elements; the processor has the instructions.
    unsafe fn step(a: f32, weights: *const f32, sums: Self::Lanes) -> Self::Lanes;

    /// Adds to sums in memory.
    ///
    /// # Safety
    /// `out` has [`LANES`] elements; the processor has the instructions.
    unsafe fn add_to(out: *mut f32, sums: Self::Lanes);
}

/// Plain arrays, for any processor.
impl Steps for Apart {
    const CHAIN: usize = <Self as Arithmetic>::CHAIN;

    type Lanes = [f32; LANES];

    #[inline(always)]
    fn zero() -> Self::Lanes {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn step(a: f32, weights: *const f32, mut sums: Self::Lanes) -> Self::Lanes {
        // SAFETY: the caller's promise.
        let weights = unsafe { &*weights.cast::<[f32; LANES]>() };
        for j in 0..LANES {
            sums[j] = Self::fma(a, weights[j], sums[j]);
        }
        sums
    }

    #[inline(always)]
    unsafe fn add_to(out: *mut f32, sums: Self::Lanes) {
        // SAFETY: the caller's promise.
        let out = unsafe { &mut *out.cast::<[f32; LANES]>() };
        for j in 0..LANES {
            out[j] += sums[j];
        }
    }
}

/// One 512-bit register. With arrays the compiler vectorises large tiles along the rows of the
/// left side instead, with gathers and sums in memory.
#[cfg(target_arch = "x86_64")]
struct Wide;

#[cfg(target_arch = "x86_64")]
impl Steps for Wide {
    const CHAIN: usize = Fused::CHAIN;

    type Lanes = __m512;

    #[inline(always)]
    fn zero() -> __m512 {
        // SAFETY: all bits zero are sixteen zeros.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn step(a: f32, weights: *const f32, sums: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(a), _mm512_loadu_ps(weights), sums) }
    }

    #[inline(always)]
    unsafe fn add_to(out: *mut f32, sums: __m512) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sums)) }
    }
}

/// Two 256-bit registers. With arrays the compiler keeps one sum of a full tile in memory.
#[cfg(target_arch = "x86_64")]
struct Pair;

#[cfg(target_arch = "x86_64")]
impl Steps for Pair {
    const CHAIN: usize = Fused::CHAIN;

    type Lanes = [__m256; 2];

    #[inline(always)]
    fn zero() -> [__m256; 2] {
        // SAFETY: all bits zero are sixteen zeros.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn step(a: f32, weights: *const f32, sums: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let a = _mm256_set1_ps(a);
            [
                _mm256_fmadd_ps(a, _mm256_loadu_ps(weights), sums[0]),
                _mm256_fmadd_ps(a, _mm256_loadu_ps(weights.add(8)), sums[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn add_to(out: *mut f32, sums: [__m256; 2]) {
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), sums[0]));
            _mm256_storeu_ps(out.add(8), _mm256_add_ps(_mm256_loadu_ps(out.add(8)), sums[1]));
        }
    }
}

/// Asks for memory that will be read soon: the first tile of a panel would wait for every line of it.
#[inline(always)]
fn fetch(memory: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in memory.chunks(CACHE_LINE) {
        // SAFETY: a hint, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = memory;
}

/// Tiles of `M` rows; a short one at the end shares its rows with the one before it, as a tile of
/// a single row would spend its time waiting for its own sums.
#[inline(always)]
fn block_body<A: Steps, const M: usize, const P: usize>(
    x: &[f32],
    stride: usize,
    m: usize,
    panels: &[&[f32]; P],
    pitch: usize,
    steps: usize,
    ahead: &[u8],
    sums: &mut [f32],
) {
    let mut from = 0;
    while from < m {
        let left = m - from;
        let to = from + if left > M && left < 2 * M { left.div_ceil(2) } else { left.min(M) };
        fetch(&ahead[from * ahead.len() / m..to * ahead.len() / m]);
        let (x, sums) = (&x[from * stride..], &mut sums[from * P * LANES..to * P * LANES]);
        match to - from {
            rows if rows == M => tile::<A, M, P>(x, stride, panels, pitch, steps, sums),
            1 => tile::<A, 1, P>(x, stride, panels, pitch, steps, sums),
            2 => tile::<A, 2, P>(x, stride, panels, pitch, steps, sums),
            3 => tile::<A, 3, P>(x, stride, panels, pitch, steps, sums),
            4 => tile::<A, 4, P>(x, stride, panels, pitch, steps, sums),
            5 => tile::<A, 5, P>(x, stride, panels, pitch, steps, sums),
            6 => tile::<A, 6, P>(x, stride, panels, pitch, steps, sums),
            _ => tile::<A, 7, P>(x, stride, panels, pitch, steps, sums),
        }
        from = to;
    }
}

#[inline(always)]
fn tile<A: Steps, const M: usize, const P: usize>(
    x: &[f32],
    stride: usize,
    panels: &[&[f32]; P],
    pitch: usize,
    steps: usize,
    sums: &mut [f32],
) {
    assert!(sums.len() >= M * P * LANES);
    assert!(steps > 0 && panels.iter().all(|panel| panel.len() >= (steps - 1) * pitch + LANES));
    let mut rows: [&[f32]; M] = [&[]; M];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &x[i * stride..i * stride + steps];
    }
    for from in (0..steps).step_by(A::CHAIN) {
        let to = (from + A::CHAIN).min(steps);
        let mut acc = [[A::zero(); P]; M];
        let (mut k, mut at) = (from, from * pitch);
        // Counting and branching at every step would cost a fifth of the speed.
        while k + UNROLL <= to {
            for _ in 0..UNROLL {
                // SAFETY: `k < to`, and `to` is at most `steps`; `at` is `k · pitch`.
                unsafe { step::<A, M, P>(&rows, panels, k, at, &mut acc) };
                (k, at) = (opaque(k.wrapping_add(1)), at.wrapping_add(pitch));
            }
        }
        while k < to {
            // SAFETY: as above.
            unsafe { step::<A, M, P>(&rows, panels, k, at, &mut acc) };
            (k, at) = (k + 1, at + pitch);
        }
        // Not known to be the sums of the last turn: else the compiler would keep both these and
        // the running ones, more than there are registers, and move them about at every turn.
        let sums = std::hint::black_box(sums.as_mut_ptr());
        for (i, acc) in acc.into_iter().enumerate() {
            for (p, acc) in acc.into_iter().enumerate() {
                // SAFETY: `sums` has `M · P · LANES` elements.
                unsafe { A::add_to(sums.add((i * P + p) * LANES), acc) };
            }
        }
    }
}

/// The number itself, of which the compiler knows no more than that. Where it sees that the next steps
/// read neighbouring elements it reads those of all steps at once, more than there are registers: a
/// fifth of the speed goes into moving them and the sums about.
#[inline(always)]
fn opaque(number: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        let mut number = number;
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags));
        }
        number
    }
    #[cfg(not(target_arch = "x86_64"))]
    number
}

/// Adds one step of all products: element `k` of every row times the lanes `at` that place of every
/// panel.
///
/// # Safety
/// `k` is less than the length of every row, and every panel has `at + LANES` elements (the checks
/// would cost a third of the speed).
#[inline(always)]
unsafe fn step<A: Steps, const M: usize, const P: usize>(
    rows: &[&[f32]; M],
    panels: &[&[f32]; P],
    k: usize,
    at: usize,
    acc: &mut [[A::Lanes; P]; M],
) {
    for i in 0..M {
        // SAFETY: the caller's promise.
        let a = unsafe { *rows[i].get_unchecked(k) };
        for p in 0..P {
            // SAFETY: as above.
            acc[i][p] = unsafe { A::step(a, panels[p].as_ptr().add(at), acc[i][p]) };
        }
    }
}
