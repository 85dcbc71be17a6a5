//! The operations with AVX-512.

use std::arch::x86_64::{__m256, __m512, __m512i};

use pulp::bytemuck::cast;

use super::lanes::{Lanes, sum_of_8};

pulp::simd_type!({
    /// A processor with the parts of AVX-512 that all its generations have.
    pub(super) struct Avx512 {
        avx: f!("avx"),
        fma: f!("fma"),
        avx2: f!("avx2"),
        avx512f: f!("avx512f"),
        avx512bw: f!("avx512bw"),
        avx512vl: f!("avx512vl"),
    }
});

impl Avx512 {
    #[inline(always)]
    fn floats(self, words: __m512i) -> __m512 {
        self.avx512f._mm512_cvtepi32_ps(words)
    }

    #[inline(always)]
    fn masked(self, words: __m512i, mask: i32) -> __m512 {
        self.floats(self.avx512f._mm512_and_si512(words, self.avx512f._mm512_set1_epi32(mask)))
    }

    /// Takes lanes by the low four bits of numbers.
    #[inline(always)]
    fn lanes_of(self, values: __m512, numbers: __m512i) -> __m512 {
        self.avx512f._mm512_permutexvar_ps(numbers, values)
    }
}

impl Lanes for Avx512 {
    type Floats = __m512;
    type Words = __m512i;

    #[inline(always)]
    fn run<F: pulp::NullaryFnOnce>(self, routine: F) -> F::Output {
        self.vectorize(routine)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        self.avx512f._mm512_set1_ps(value)
    }

    #[inline(always)]
    fn halves(self, low: __m512, high: __m512) -> __m512 {
        self.avx512f._mm512_mask_blend_ps(0xff00, low, high)
    }

    #[inline(always)]
    fn load(self, values: &[f32; 16]) -> __m512 {
        cast(*values)
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_add_ps(a, b)
    }

    #[inline(always)]
    fn sum(self, values: __m512) -> f32 {
        let halves: [__m256; 2] = cast(values);
        sum_of_8(cast(self.avx._mm256_add_ps(halves[0], halves[1])))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        self.avx512f._mm512_mul_ps(a, b)
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        self.avx512f._mm512_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    fn add_where(self, bits: u16, value: f32, to: __m512) -> __m512 {
        self.avx512f._mm512_mask_add_ps(to, bits, to, self.splat(value))
    }

    #[inline(always)]
    fn two_of(self, values: __m512, pair: usize) -> __m512 {
        let first = 2 * pair as i32;
        self.lanes_of(values, cast([[first; 8], [first + 1; 8]]))
    }

    #[inline(always)]
    fn four_of(self, values: __m512, quarter: usize) -> __m512 {
        let first = 4 * quarter as i32;
        self.lanes_of(values, cast([[first; 4], [first + 1; 4], [first + 2; 4], [first + 3; 4]]))
    }

    #[inline(always)]
    fn half(self, bytes: &[u8; 2]) -> __m512 {
        self.avx512f._mm512_cvtph_ps(self.avx._mm256_set1_epi16(i16::from_le_bytes(*bytes)))
    }

    #[inline(always)]
    fn singles(self, bytes: &[u8; 64]) -> __m512 {
        cast(*bytes)
    }

    #[inline(always)]
    fn halfs(self, bytes: &[u8; 32]) -> __m512 {
        self.avx512f._mm512_cvtph_ps(cast(*bytes))
    }

    #[inline(always)]
    fn brains(self, bytes: &[u8; 32]) -> __m512 {
        let words = self.avx512f._mm512_cvtepu16_epi32(cast(*bytes));
        cast(self.avx512f._mm512_slli_epi32::<16>(words))
    }

    #[inline(always)]
    fn unsigned(self, bytes: &[u8; 16]) -> __m512 {
        self.floats(self.avx512f._mm512_cvtepu8_epi32(cast(*bytes)))
    }

    #[inline(always)]
    fn signed(self, bytes: &[u8; 16]) -> __m512 {
        self.floats(self.avx512f._mm512_cvtepi8_epi32(cast(*bytes)))
    }

    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 16]) -> [__m512; 2] {
        let words = self.avx512f._mm512_cvtepu8_epi32(cast(*bytes));
        let low = self.avx512f._mm512_and_si512(words, self.avx512f._mm512_set1_epi32(15));
        [self.floats(low), self.floats(self.avx512f._mm512_srli_epi32::<4>(words))]
    }

    #[inline(always)]
    fn looked_up(self, bytes: &[u8; 16], values: &[i8; 16]) -> [__m512; 2] {
        let values = self.signed(&cast(*values));
        let words = self.avx512f._mm512_cvtepu8_epi32(cast(*bytes));
        [self.lanes_of(values, words), self.lanes_of(values, self.avx512f._mm512_srli_epi32::<4>(words))]
    }

    #[inline(always)]
    fn words(self, bytes: &[u8; 64]) -> __m512i {
        cast(*bytes)
    }

    #[inline(always)]
    fn twice(self, bytes: &[u8; 32]) -> __m512i {
        self.avx512f._mm512_broadcast_i64x4(cast(*bytes))
    }

    #[inline(always)]
    fn quarters_twice(self, bytes: &[u8; 32]) -> __m512i {
        self.avx512f._mm512_permutexvar_epi64(cast([0u64, 1, 0, 1, 2, 3, 2, 3]), self.twice(bytes))
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        self.avx512f._mm512_or_si512(a, b)
    }

    #[inline(always)]
    fn and(self, a: __m512i, low: u8, high: u8) -> __m512i {
        self.avx512f._mm512_and_si512(a, cast([[low; 32], [high; 32]]))
    }

    #[inline(always)]
    fn shift(self, a: __m512i, low: i32, high: i32) -> __m512i {
        self.avx512f._mm512_rolv_epi32(a, cast([[low & 31; 8], [high & 31; 8]]))
    }

    #[inline(always)]
    fn shift_quarters(self, a: __m512i, even: i32, odd: i32) -> __m512i {
        let (even, odd) = ([even & 31; 4], [odd & 31; 4]);
        self.avx512f._mm512_rolv_epi32(a, cast([even, odd, even, odd]))
    }

    #[inline(always)]
    fn values_of(self, a: __m512i, values: &[u8; 16]) -> __m512i {
        self.avx512bw._mm512_shuffle_epi8(cast([*values; 4]), a)
    }

    #[inline(always)]
    fn bytes(self, a: __m512i) -> [__m512; 4] {
        let last = self.floats(self.avx512f._mm512_srli_epi32::<24>(a));
        [self.masked(a, 0xff), self.masked(a, 0xff00), self.masked(a, 0xff_0000), last]
    }
}
