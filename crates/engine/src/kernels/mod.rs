//! The arithmetic: each forward function beside its backward one.
//!
//! All kernels work on plain `f32` slices, rows outermost. Most are written once in plain Rust and
//! compiled three times, for AVX-512, AVX2 with FMA, and without either; the innermost loops of
//! products (`tile`, `codes`) have code of their own for each. [`Isa`] says which copy runs. The order
//! of additions within a row depends neither on the number of threads nor on the other rows of the
//! batch.

pub mod activation;
pub mod attention;
mod codes;
pub mod gemm;
pub mod loss;
pub mod norm;
pub mod pack;
pub mod rotary;
mod tile;

/// An instruction set that the kernels are compiled for and this processor has. Nobody can make one of
/// another: kernels run what they are given.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(Set);

/// Instruction sets that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Set {
    /// 512-bit vectors with FMA.
    Avx512,
    /// 256-bit vectors with FMA.
    Avx2,
    /// Whatever the compilation target has; multiplies and adds apart.
    Portable,
}

impl Isa {
    /// The one that every processor has.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// All that this processor has, fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        [Set::Avx512, Set::Avx2, Set::Portable].into_iter().filter(|set| set.is_available()).map(Self)
    }

    /// The fastest that this processor has.
    pub fn detect() -> Self {
        Self::available().next().unwrap_or(Self::PORTABLE)
    }

    /// `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Avx512 => "avx512",
            Set::Avx2 => "avx2",
            Set::Portable => "portable",
        }
    }
}

impl std::fmt::Debug for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Set {
    /// Whether this processor has it.
    fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            match self {
                Self::Avx512 => {
                    Self::Avx2.is_available()
                        && std::arch::is_x86_feature_detected!("avx512f")
                        && std::arch::is_x86_feature_detected!("avx512vl")
                        && std::arch::is_x86_feature_detected!("avx512bw")
                        && std::arch::is_x86_feature_detected!("avx512dq")
                }
                Self::Avx2 => {
                    std::arch::is_x86_feature_detected!("avx2")
                        && std::arch::is_x86_feature_detected!("fma")
                        && std::arch::is_x86_feature_detected!("f16c")
                }
                Self::Portable => true,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }
}

/// Multiply-add as an instruction set does it: fused where there is an instruction for it (the
/// library call that replaces it elsewhere is a hundred times slower).
pub(crate) trait Arithmetic {
    /// Steps that a product sums in one chain of roundings. Short chains are what makes the logits
    /// as close to f64 as they are; 64 costs a twentieth of the speed. A divisor of
    /// [`gemm::DEPTH_BLOCK`].
    const CHAIN: usize;

    /// `a · b + c`.
    fn fma(a: f32, b: f32, c: f32) -> f32;
}

/// One rounding.
pub(crate) struct Fused;
/// Two roundings.
pub(crate) struct Apart;

impl Arithmetic for Fused {
    const CHAIN: usize = 64;

    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Arithmetic for Apart {
    // Twice the roundings, half the steps.
    const CHAIN: usize = 32;

    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// Compiles one generic body per instruction set and makes the function that chooses.
///
/// `fn name<A>(isa, args…) -> R { body }`: the body may use `A::fma`.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::kernels::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { $body::<$crate::kernels::Fused>($($arg),*) }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { $body::<$crate::kernels::Fused>($($arg),*) }
                match isa.0 {
                    // SAFETY: an `Isa` is of a set that this processor has.
                    $crate::kernels::Set::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernels::Set::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernels::Set::Portable => {}
                }
            }
            let _ = isa;
            $body::<$crate::kernels::Apart>($($arg),*)
        }
    };
}
pub(crate) use per_isa;

/// A pointer that several tasks write through, each to places of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T, usize);

// SAFETY: the pointer is only dereferenced through `slice`, whose callers promise disjointness.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Shares a slice for the length of a parallel loop.
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// `len` elements from `start`.
    ///
    /// # Safety
    /// No other task may hold an overlapping range at the same time, and the shared slice must
    /// outlive the returned one.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.1, "range {start}+{len} beyond {}", self.1);
        // SAFETY: in bounds by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Splits rows among the pool's threads where there is enough work to be worth it.
///
/// `work` is a rough count of floating-point operations per row; below some ten thousand in all,
/// waking another thread costs more than it saves.
pub(crate) fn for_rows(rows: usize, work: usize, body: impl Fn(std::ops::Range<usize>) + Sync) {
    use rayon::prelude::*;
    let threads = rayon::current_num_threads();
    if threads == 1 || rows < 2 || rows * work < 20_000 {
        body(0..rows);
        return;
    }
    let chunk = rows.div_ceil(threads * 2).max(1);
    (0..rows.div_ceil(chunk)).into_par_iter().for_each(|c| body(c * chunk..((c + 1) * chunk).min(rows)));
}
