//! The operations with AVX2, FMA and F16C, which all processors with AVX2 have.

use std::arch::x86_64::{__m128i, __m256, __m256i, _mm256_cvtph_ps};

use pulp::bytemuck::cast;

use super::lanes::{Lanes, sum_of_8};

pulp::simd_type!({
    /// A processor with AVX2, FMA and F16C.
    pub(super) struct Avx2 {
        ssse3: f!("ssse3"),
        avx: f!("avx"),
        f16c: f!("f16c"),
        fma: f!("fma"),
        avx2: f!("avx2"),
    }
});

/// Both vectors of eight.
type Floats = [__m256; 2];
type Words = [__m256i; 2];

impl Avx2 {
    #[inline(always)]
    fn floats(self, words: Words) -> Floats {
        [self.avx._mm256_cvtepi32_ps(words[0]), self.avx._mm256_cvtepi32_ps(words[1])]
    }

    #[inline(always)]
    fn unsigned_words(self, bytes: &[u8; 16]) -> Words {
        let [low, high]: [u64; 2] = cast(*bytes);
        [self.avx2._mm256_cvtepu8_epi32(cast([low, 0])), self.avx2._mm256_cvtepu8_epi32(cast([high, 0]))]
    }

    #[inline(always)]
    fn masked(self, words: Words, mask: i32) -> Floats {
        let mask = self.avx._mm256_set1_epi32(mask);
        self.floats([self.avx2._mm256_and_si256(words[0], mask), self.avx2._mm256_and_si256(words[1], mask)])
    }

    #[inline(always)]
    fn shifted(self, words: __m256i, by: i32) -> __m256i {
        let count = cast([u64::from(by.unsigned_abs()), 0]);
        if by < 0 { self.avx2._mm256_srl_epi32(words, count) } else { self.avx2._mm256_sll_epi32(words, count) }
    }

    /// Lanes by number.
    #[inline(always)]
    fn lanes_of(self, values: __m256, numbers: [i32; 8]) -> __m256 {
        self.avx2._mm256_permutevar8x32_ps(values, cast(numbers))
    }

    /// `value` in the lanes whose bits, from `first` on, are set.
    #[inline(always)]
    fn chosen(self, bits: u16, first: i32, value: f32) -> __m256 {
        let places = [0, 1, 2, 3, 4, 5, 6, 7];
        let places = self.avx2._mm256_sllv_epi32(self.avx._mm256_set1_epi32(1 << first), cast::<[i32; 8], _>(places));
        let all = self.avx._mm256_set1_epi32(i32::from(bits));
        let set = self.avx2._mm256_cmpeq_epi32(self.avx2._mm256_and_si256(all, places), places);
        self.avx._mm256_and_ps(cast(set), self.avx._mm256_set1_ps(value))
    }
}

impl Lanes for Avx2 {
    type Floats = Floats;
    type Words = Words;

    #[inline(always)]
    fn run<F: pulp::NullaryFnOnce>(self, routine: F) -> F::Output {
        self.vectorize(routine)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        [self.avx._mm256_set1_ps(value); 2]
    }

    #[inline(always)]
    fn halves(self, low: Floats, high: Floats) -> Floats {
        [low[0], high[1]]
    }

    #[inline(always)]
    fn load(self, values: &[f32; 16]) -> Floats {
        cast(*values)
    }

    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        [self.avx._mm256_add_ps(a[0], b[0]), self.avx._mm256_add_ps(a[1], b[1])]
    }

    #[inline(always)]
    fn sum(self, values: Floats) -> f32 {
        sum_of_8(cast(self.avx._mm256_add_ps(values[0], values[1])))
    }

    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        [self.avx._mm256_mul_ps(a[0], b[0]), self.avx._mm256_mul_ps(a[1], b[1])]
    }

    #[inline(always)]
    fn mul_add(self, a: Floats, b: Floats, c: Floats) -> Floats {
        [self.fma._mm256_fmadd_ps(a[0], b[0], c[0]), self.fma._mm256_fmadd_ps(a[1], b[1], c[1])]
    }

    #[inline(always)]
    fn add_where(self, bits: u16, value: f32, to: Floats) -> Floats {
        self.add(to, [self.chosen(bits, 0, value), self.chosen(bits, 8, value)])
    }

    #[inline(always)]
    fn two_of(self, values: Floats, pair: usize) -> Floats {
        let (values, first) = (values[pair / 4], (2 * pair % 8) as i32);
        [self.lanes_of(values, [first; 8]), self.lanes_of(values, [first + 1; 8])]
    }

    #[inline(always)]
    fn four_of(self, values: Floats, quarter: usize) -> Floats {
        let (values, first) = (values[quarter / 2], (4 * quarter % 8) as i32);
        let [low, high] = [[[first; 4], [first + 1; 4]], [[first + 2; 4], [first + 3; 4]]];
        [self.lanes_of(values, cast(low)), self.lanes_of(values, cast(high))]
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    fn half(self, bytes: &[u8; 2]) -> Floats {
        let [bits, _]: [__m128i; 2] = cast(self.avx._mm256_set1_epi16(i16::from_le_bytes(*bytes)));
        // SAFETY: the type proves that the processor has the instruction.
        [unsafe { _mm256_cvtph_ps(bits) }; 2]
    }

    #[inline(always)]
    fn singles(self, bytes: &[u8; 64]) -> Floats {
        cast(*bytes)
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    fn halfs(self, bytes: &[u8; 32]) -> Floats {
        let [low, high]: [__m128i; 2] = cast(*bytes);
        // SAFETY: the type proves that the processor has the instruction.
        unsafe { [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)] }
    }

    #[inline(always)]
    fn brains(self, bytes: &[u8; 32]) -> Floats {
        let [low, high]: [__m128i; 2] = cast(*bytes);
        let words = [self.avx2._mm256_cvtepu16_epi32(low), self.avx2._mm256_cvtepu16_epi32(high)];
        cast([self.avx2._mm256_slli_epi32::<16>(words[0]), self.avx2._mm256_slli_epi32::<16>(words[1])])
    }

    #[inline(always)]
    fn unsigned(self, bytes: &[u8; 16]) -> Floats {
        self.floats(self.unsigned_words(bytes))
    }

    #[inline(always)]
    fn signed(self, bytes: &[u8; 16]) -> Floats {
        let [low, high]: [u64; 2] = cast(*bytes);
        self.floats([self.avx2._mm256_cvtepi8_epi32(cast([low, 0])), self.avx2._mm256_cvtepi8_epi32(cast([high, 0]))])
    }

    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 16]) -> [Floats; 2] {
        let words = self.unsigned_words(bytes);
        let high = [self.avx2._mm256_srli_epi32::<4>(words[0]), self.avx2._mm256_srli_epi32::<4>(words[1])];
        [self.masked(words, 15), self.floats(high)]
    }

    #[inline(always)]
    fn looked_up(self, bytes: &[u8; 16], values: &[i8; 16]) -> [Floats; 2] {
        let (both, counts) = (cast([*bytes; 2]), cast([[0i32; 4], [4; 4]]));
        let nibbles =
            self.avx2._mm256_and_si256(self.avx2._mm256_srlv_epi32(both, counts), self.avx._mm256_set1_epi8(15));
        let [low, high]: [[u8; 16]; 2] = cast(self.avx2._mm256_shuffle_epi8(cast([*values; 2]), nibbles));
        [self.signed(&low), self.signed(&high)]
    }

    #[inline(always)]
    fn words(self, bytes: &[u8; 64]) -> Words {
        cast(*bytes)
    }

    #[inline(always)]
    fn twice(self, bytes: &[u8; 32]) -> Words {
        cast([*bytes; 2])
    }

    #[inline(always)]
    fn quarters_twice(self, bytes: &[u8; 32]) -> Words {
        let [low, high]: [[u8; 16]; 2] = cast(*bytes);
        cast([low, low, high, high])
    }

    #[inline(always)]
    fn or(self, a: Words, b: Words) -> Words {
        [self.avx2._mm256_or_si256(a[0], b[0]), self.avx2._mm256_or_si256(a[1], b[1])]
    }

    #[inline(always)]
    fn and(self, a: Words, low: u8, high: u8) -> Words {
        let masks: Words = [self.avx._mm256_set1_epi8(low as i8), self.avx._mm256_set1_epi8(high as i8)];
        [self.avx2._mm256_and_si256(a[0], masks[0]), self.avx2._mm256_and_si256(a[1], masks[1])]
    }

    #[inline(always)]
    fn shift(self, a: Words, low: i32, high: i32) -> Words {
        [self.shifted(a[0], low), self.shifted(a[1], high)]
    }

    #[inline(always)]
    fn shift_quarters(self, a: Words, even: i32, odd: i32) -> Words {
        let left = cast([[even.max(0); 4], [odd.max(0); 4]]);
        let right = cast([[(-even).max(0); 4], [(-odd).max(0); 4]]);
        let a = [self.avx2._mm256_sllv_epi32(a[0], left), self.avx2._mm256_sllv_epi32(a[1], left)];
        [self.avx2._mm256_srlv_epi32(a[0], right), self.avx2._mm256_srlv_epi32(a[1], right)]
    }

    #[inline(always)]
    fn values_of(self, a: Words, values: &[u8; 16]) -> Words {
        let values = cast([*values; 2]);
        [self.avx2._mm256_shuffle_epi8(values, a[0]), self.avx2._mm256_shuffle_epi8(values, a[1])]
    }

    #[inline(always)]
    fn bytes(self, a: Words) -> [Floats; 4] {
        let last = [self.avx2._mm256_srli_epi32::<24>(a[0]), self.avx2._mm256_srli_epi32::<24>(a[1])];
        [self.masked(a, 0xff), self.masked(a, 0xff00), self.masked(a, 0xff_0000), self.floats(last)]
    }
}
