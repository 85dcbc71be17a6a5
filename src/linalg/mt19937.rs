//! Random numbers as torch draws them on the CPU.
//!
//! torch.manual_seed seeds a 32-bit Mersenne twister with the lower half of the seed. Every float32 number in [0, 1)
//! uses the lower 24 bits of one word. torch.bernoulli of a tensor of probabilities draws one such number per element,
//! in the tensor's logical order, for both float32 and bfloat16, and independently of size and vector width.
//! (`Tensor.bernoulli_(p)` with a number draws differently, through MKL.)
//!
//! Reference: pytorch `aten/src/ATen/core/MT19937RNGEngine.h`, `TransformationHelper.h`
//! (`uniform_real`), `native/cpu/DistributionTemplates.h` (`bernoulli_kernel`); measured on torch 2.15.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

const N: usize = 624;
const M: usize = 397;

/// Converts a word of the state to a word of output.
fn temper(mut y: u32) -> u32 {
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c_5680;
    y ^= (y << 15) & 0xefc6_0000;
    y ^ (y >> 18)
}

/// Converts a word to a number in [0, 1).
fn unit(word: u32) -> f32 {
    (word & 0xff_ffff) as f32 / (1 << 24) as f32
}

/// The generator of `torch.manual_seed`.
#[derive(Clone)]
pub struct Mt19937 {
    state: [u32; N],
    next: usize,
}

impl Mt19937 {
    /// The generator after `torch.manual_seed(seed)`.
    pub fn new(seed: u64) -> Self {
        let mut state = [0; N];
        state[0] = seed as u32;
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    /// The next word.
    pub fn word(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        self.next += 1;
        temper(self.state[self.next - 1])
    }

    /// The next number in [0, 1): one element of `torch.rand` of a float32 tensor.
    pub fn uniform(&mut self) -> f32 {
        unit(self.word())
    }

    /// Fills `out` with the next numbers of [`Mt19937::uniform`].
    pub fn fill(&mut self, mut out: &mut [f32]) {
        while !out.is_empty() {
            if self.next == N {
                self.twist();
            }
            let words = &self.state[self.next..];
            let (now, later) = out.split_at_mut(out.len().min(words.len()));
            now.iter_mut().zip(words).for_each(|(out, word)| *out = unit(temper(*word)));
            self.next += now.len();
            out = later;
        }
    }

    /// Skips `words` words.
    pub fn skip(&mut self, mut words: u64) {
        while words > (N - self.next) as u64 {
            words -= (N - self.next) as u64;
            self.twist();
        }
        self.next += words as usize;
    }

    /// The first `count` numbers of `torch.randperm(total)`, of which there are that many.
    ///
    /// Reference: pytorch `aten/src/ATen/native/TensorFactories.cpp` (`randperm_cpu`).
    pub(crate) fn permutation(&mut self, total: u64, count: usize) -> Vec<u64> {
        // Only places that were exchanged aren't their own number.
        let mut moved: HashMap<u64, u64> = HashMap::new();
        let draw = |generator: &mut Self| match total < u64::from(u32::MAX) / 20 {
            true => u64::from(generator.word()),
            false => u64::from(generator.word()) << 32 | u64::from(generator.word()),
        };
        let mut first = Vec::with_capacity(count);
        for place in 0..count as u64 {
            // The last one has nothing to be exchanged with, and torch draws no number for it.
            let other = if place + 1 < total { place + draw(self) % (total - place) } else { place };
            let here = moved.remove(&place).unwrap_or(place);
            let chosen = if other == place { here } else { moved.insert(other, here).unwrap_or(other) };
            first.push(chosen);
        }
        first
    }

    fn twist(&mut self) {
        let mix = |high: u32, low: u32| {
            let y = (high & 0x8000_0000) | (low & 0x7fff_ffff);
            (y >> 1) ^ if low & 1 == 1 { 0x9908_b0df } else { 0 }
        };
        let s = &mut self.state;
        for i in 0..N - M {
            s[i] = s[i + M] ^ mix(s[i], s[i + 1]);
        }
        for i in N - M..N - 1 {
            s[i] = s[i + M - N] ^ mix(s[i], s[i + 1]);
        }
        s[N - 1] = s[M - 1] ^ mix(s[N - 1], s[0]);
        self.next = 0;
    }
}

/// A sequence of draws that can be entered anywhere. States along the sequence are kept, so that any rows of a tensor
/// can be masked without those before them.
pub struct Stream {
    seed: u64,
    total: u64,
    states: OnceLock<Vec<Mt19937>>,
}

/// The smallest number of words between two kept states: skipping as many takes a few milliseconds.
const SPACING: u64 = 1 << 20;

/// The largest number of kept states, of 2.5 KB each.
const STATES: u64 = 8192;

impl Stream {
    /// The first `total` draws after `torch.manual_seed(seed)`.
    pub fn new(seed: u64, total: u64) -> Self {
        Self { seed, total, states: OnceLock::new() }
    }

    fn spacing(&self) -> u64 {
        self.total.div_ceil(STATES).max(SPACING)
    }

    /// The generator after `position` draws.
    pub fn at(&self, position: u64) -> Mt19937 {
        let spacing = self.spacing();
        // In order, on this thread. Another thread that waits here waits for one that is working, so this can't
        // deadlock.
        let states = self.states.get_or_init(|| {
            let mut generator = Mt19937::new(self.seed);
            let mut states = vec![generator.clone()];
            for _ in 0..self.total / spacing {
                generator.skip(spacing);
                states.push(generator.clone());
            }
            states
        });
        let index = (position / spacing).min(states.len() as u64 - 1);
        let mut generator = states[index as usize].clone();
        generator.skip(position - index * spacing);
        generator
    }
}

impl fmt::Debug for Mt19937 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a Mersenne twister")
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} draws after seed {}", self.total, self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_are_those_of_torch() {
        // torch.randperm(1000, generator=torch.Generator().manual_seed(777))[:5], and the whole one of 5.
        assert_eq!(Mt19937::new(777).permutation(1000, 5), [735, 819, 201, 799, 435]);
        let mut whole = Mt19937::new(3).permutation(5, 5);
        assert_eq!(whole, PERMUTATION);
        whole.sort_unstable();
        assert_eq!(whole, [0, 1, 2, 3, 4]);
    }

    /// torch.randperm(5, generator=torch.Generator().manual_seed(3))
    const PERMUTATION: [u64; 5] = [1, 0, 3, 4, 2];

    #[test]
    fn words_are_those_of_the_mersenne_twister() {
        // torch.manual_seed(7) and torch.manual_seed(5489); numpy's RandomState gives the same words.
        let mut generator = Mt19937::new(7);
        assert_eq!([(); 4].map(|()| generator.word()), [327741615, 976413892, 3349725721, 1369975286]);
        let mut generator = Mt19937::new(5489);
        generator.skip(9999);
        assert_eq!(generator.word(), 4123659995, "the ten thousandth, as the C++ standard has it");
        assert_eq!(Mt19937::new((1 << 40) + 7).word(), 327741615, "the upper half of a seed is not used");
    }

    #[test]
    fn skipping_is_drawing() {
        let mut drawn = Mt19937::new(3);
        let stream = Stream::new(3, 3 * SPACING);
        for position in 0..2000u64 {
            let mut skipped = Mt19937::new(3);
            skipped.skip(position);
            let word = drawn.word();
            assert_eq!(skipped.word(), word, "{position}");
            assert_eq!(stream.at(position).word(), word, "{position}");
        }
        let (mut single, mut filled) = (Mt19937::new(3), Mt19937::new(3));
        for count in [1, 622, 2, 2000, 623] {
            let mut numbers = vec![0.0; count];
            filled.fill(&mut numbers);
            assert!(numbers.iter().all(|number| *number == single.uniform()));
        }
        let mut far = Mt19937::new(3);
        far.skip(2 * SPACING + 5);
        assert_eq!(stream.at(2 * SPACING + 5).word(), far.word());
    }
}
