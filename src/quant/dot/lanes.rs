//! Sixteen numbers at a time: the operations of the products, for any instruction set.
//!
//! Plain loops over arrays of sixteen would be enough for a compiler that always made vectors of them. It makes pairs
//! and fours of many instead, which is three times slower.

/// The operations of one instruction set. Values of its type prove that the processor has it.
pub(super) trait Lanes: Copy {
    /// Sixteen f32.
    type Floats: Copy;
    /// Sixteen u32, or 64 bytes, in two halves of 32 bytes.
    type Words: Copy;

    /// Runs what has to be compiled for the instruction set.
    fn run<F: pulp::NullaryFnOnce>(self, routine: F) -> F::Output;

    fn splat(self, value: f32) -> Self::Floats;
    /// The low half of `low`, and the high half of `high`.
    fn halves(self, low: Self::Floats, high: Self::Floats) -> Self::Floats;
    fn load(self, values: &[f32; 16]) -> Self::Floats;
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The sum of all lanes.
    fn sum(self, values: Self::Floats) -> f32;
    /// `a * b + c`, rounded once where the instruction set can.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Adds `value` in the lanes whose bits are set.
    fn add_where(self, bits: u16, value: f32, to: Self::Floats) -> Self::Floats;
    /// Lanes `2 * pair` and `2 * pair + 1`, eight times each.
    fn two_of(self, values: Self::Floats, pair: usize) -> Self::Floats;
    /// Four lanes from `4 * quarter` on, four times each.
    fn four_of(self, values: Self::Floats, quarter: usize) -> Self::Floats;

    /// An f16, in all lanes.
    fn half(self, bytes: &[u8; 2]) -> Self::Floats;
    fn singles(self, bytes: &[u8; 64]) -> Self::Floats;
    fn halfs(self, bytes: &[u8; 32]) -> Self::Floats;
    fn brains(self, bytes: &[u8; 32]) -> Self::Floats;
    fn unsigned(self, bytes: &[u8; 16]) -> Self::Floats;
    fn signed(self, bytes: &[u8; 16]) -> Self::Floats;
    /// The low nibbles of all bytes, and the high ones.
    fn nibbles(self, bytes: &[u8; 16]) -> [Self::Floats; 2];
    /// The values for which the low nibbles of all bytes stand, and for which the high ones do.
    fn looked_up(self, bytes: &[u8; 16], values: &[i8; 16]) -> [Self::Floats; 2];

    fn words(self, bytes: &[u8; 64]) -> Self::Words;
    /// The same bytes in both halves.
    fn twice(self, bytes: &[u8; 32]) -> Self::Words;
    /// Each half of the bytes twice.
    fn quarters_twice(self, bytes: &[u8; 32]) -> Self::Words;
    fn or(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// All bytes of the low half with the mask `low`, those of the high half with `high`.
    fn and(self, a: Self::Words, low: u8, high: u8) -> Self::Words;
    /// Shifts all words of each half to the left, or to the right where the number is negative. Bits that cross from a
    /// byte to another are undefined, so they have to be masked.
    fn shift(self, a: Self::Words, low: i32, high: i32) -> Self::Words;
    /// As [`Lanes::shift`], for quarters of 16 bytes: the first and the third by `even`, the others by `odd`.
    fn shift_quarters(self, a: Self::Words, even: i32, odd: i32) -> Self::Words;
    /// `values[byte]` for all bytes, which are below 16.
    fn values_of(self, a: Self::Words, values: &[u8; 16]) -> Self::Words;
    /// The first, second, third and fourth bytes of all words, times 1, 2^8, 2^16 and 1. A mask takes a byte out of a
    /// word if it may keep its place; the activations are divided by the same numbers.
    fn bytes(self, a: Self::Words) -> [Self::Floats; 4];
}

/// What [`Lanes::bytes`] multiplies the bytes of a word by.
pub(super) const PLACES: [f32; 4] = [1.0, 256.0, 65536.0, 1.0];

/// The sum of eight values, in pairs of halves.
#[inline(always)]
pub(super) fn sum_of_8(v: [f32; 8]) -> f32 {
    let [a, b, c, d] = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
    (a + c) + (b + d)
}
