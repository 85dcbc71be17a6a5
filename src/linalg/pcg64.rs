//! Random numbers as numpy draws them: `numpy.random.default_rng`.
//!
//! Reference: numpy `numpy/random/bit_generator.pyx` (`SeedSequence`), `src/pcg64/pcg64.h`, `src/distributions/distributions.c`
//! (`random_interval`, `random_bounded_uint64`) and `_generator.pyx` (`choice`, `shuffle`).

use std::collections::HashSet;

/// The multiplier of the 128-bit linear congruential generator.
const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

/// numpy's PCG64, a permuted congruential generator.
#[derive(Debug, Clone)]
pub(crate) struct Pcg64 {
    state: u128,
    increment: u128,
    /// The upper half of the last number, if only its lower half was used.
    half: Option<u32>,
}

impl Pcg64 {
    /// The generator of `numpy.random.default_rng(seed)`.
    pub(crate) fn new(seed: u64) -> Self {
        let words = seed_words(seed);
        let wide = |at: usize| u128::from(words[at]) << 64 | u128::from(words[at + 1]);
        let increment = wide(2) << 1 | 1;
        let mut generator = Self { state: 0, increment, half: None };
        generator.step();
        generator.state = generator.state.wrapping_add(wide(0));
        generator.step();
        generator
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.step();
        ((self.state >> 64) as u64 ^ self.state as u64).rotate_right((self.state >> 122) as u32)
    }

    fn next_half(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        let next = self.next();
        self.half = Some((next >> 32) as u32);
        next as u32
    }

    /// A whole number from 0 to `most`, by rejecting numbers of as many bits.
    fn masked_up_to(&mut self, most: u64) -> u64 {
        let mask = u64::MAX.checked_shr(most.leading_zeros()).unwrap_or(0);
        let wide = u32::try_from(most).is_err();
        if most == 0 {
            return 0;
        }
        loop {
            let number = mask & if wide { self.next() } else { u64::from(self.next_half()) };
            if number <= most {
                return number;
            }
        }
    }

    /// A whole number from 0 to `most`, by Lemire's method.
    fn up_to(&mut self, most: u64) -> u64 {
        if most == 0 {
            return 0;
        }
        if let Ok(most) = u32::try_from(most) {
            let Some(count) = most.checked_add(1) else { return u64::from(self.next_half()) };
            let mut product = u64::from(self.next_half()) * u64::from(count);
            if (product as u32) < count {
                let least = (u32::MAX - most) % count;
                while (product as u32) < least {
                    product = u64::from(self.next_half()) * u64::from(count);
                }
            }
            return product >> 32;
        }
        let Some(count) = most.checked_add(1) else { return self.next() };
        let mut product = u128::from(self.next()) * u128::from(count);
        if (product as u64) < count {
            let least = (u64::MAX - most) % count;
            while (product as u64) < least {
                product = u128::from(self.next()) * u128::from(count);
            }
        }
        (product >> 64) as u64
    }

    /// Shuffles `values`, as `Generator.shuffle` does.
    pub(crate) fn shuffle(&mut self, values: &mut [usize]) {
        for place in (1..values.len()).rev() {
            let other = self.masked_up_to(place as u64) as usize;
            values.swap(place, other);
        }
    }

    /// Shuffles places from the last to `first`, as `Generator.choice` does.
    fn shuffle_from(&mut self, first: usize, values: &mut [usize]) {
        for place in (first..values.len()).rev() {
            let other = self.up_to(place as u64) as usize;
            values.swap(place, other);
        }
    }

    /// `count` of the whole numbers below `total`, none twice, as `Generator.choice` draws them.
    pub(crate) fn choice(&mut self, total: usize, count: usize) -> Vec<usize> {
        if total > 10_000 && count > total / 50 {
            let mut all: Vec<usize> = (0..total).collect();
            self.shuffle_from((total - count).max(1), &mut all);
            return all.split_off(total - count);
        }
        // Floyd's algorithm.
        let mut drawn = HashSet::with_capacity(count);
        let mut chosen = Vec::with_capacity(count);
        for most in total - count..total {
            let number = self.up_to(most as u64) as usize;
            let number = if drawn.insert(number) { number } else { most };
            drawn.insert(number);
            chosen.push(number);
        }
        self.shuffle_from(1, &mut chosen);
        chosen
    }
}

/// The first four numbers of 64 bits of `SeedSequence(seed).generate_state(8)`.
fn seed_words(seed: u64) -> [u64; 4] {
    let mut hash = 0x43b0_d7e5u32;
    let mut hashed = |value: u32| {
        let value = value ^ hash;
        hash = hash.wrapping_mul(0x931e_8875);
        let value = value.wrapping_mul(hash);
        value ^ value >> 16
    };
    let mix = |x: u32, y: u32| {
        let value = 0xca01_f9ddu32.wrapping_mul(x).wrapping_sub(0x4973_f715u32.wrapping_mul(y));
        value ^ value >> 16
    };
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(&mut hashed);
    for from in 0..4 {
        for to in 0..4 {
            if from != to {
                pool[to] = mix(pool[to], hashed(pool[from]));
            }
        }
    }
    let mut hash = 0x8b51_f9ddu32;
    let words: [u32; 8] = std::array::from_fn(|i| {
        let value = pool[i % 4] ^ hash;
        hash = hash.wrapping_mul(0x58f3_8ded);
        let value = value.wrapping_mul(hash);
        value ^ value >> 16
    });
    std::array::from_fn(|i| u64::from(words[2 * i]) | u64::from(words[2 * i + 1]) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_numpy() {
        // numpy.random.default_rng(42): integers(0, 2**64, dtype=uint64), twice.
        let mut generator = Pcg64::new(42);
        assert_eq!([generator.next(), generator.next()], NUMBERS);
        // default_rng(42): choice(10, 4, replace=False), then shuffle(arange(8)).
        let mut generator = Pcg64::new(42);
        assert_eq!(generator.choice(10, 4), CHOICE);
        let mut values: Vec<usize> = (0..8).collect();
        generator.shuffle(&mut values);
        assert_eq!(values, SHUFFLED);
        // default_rng(7).choice(20000, 500, replace=False)[:4]
        assert_eq!(Pcg64::new(7).choice(20_000, 500)[..4], TAIL);
    }

    const NUMBERS: [u64; 2] = [14_276_969_152_011_380_360, 8_095_878_257_575_067_585];
    const CHOICE: [usize; 4] = [4, 0, 5, 6];
    const SHUFFLED: [usize; 8] = [0, 2, 7, 1, 4, 5, 3, 6];
    const TAIL: [usize; 4] = [7_349, 10_231, 16_198, 13_269];
}
