//! A sum of many values with the bits that torch computes.

/// Values that are added side by side: those of one AVX2 register.
const LANES: usize = 8;
/// Registers that are added side by side.
const REGISTERS: usize = 4;
/// Sums of sums, so that small values aren't lost in a large sum.
const LEVELS: usize = 4;

type Register = [f32; LANES];

/// The sum of all values as `torch.sum` has it on one thread (ATen `SumKernel.cpp`, `cascade_sum`). With more threads,
/// torch cuts tensors of more than 32768 values into parts, and its last bits depend on the machine.
pub(crate) fn torch_sum(values: &[f32]) -> f32 {
    if values.len() < LANES {
        return few(values);
    }
    let (rows, rest) = values.as_chunks::<{ LANES * REGISTERS }>();
    // A level takes over a sum of this many rows of the level below.
    let bits = ((rows.len().max(2) - 1).ilog2() as usize + 1) / LEVELS;
    let step = 1 << bits.max(4);
    let mut levels = [[[0f32; LANES]; REGISTERS]; LEVELS];
    for (number, row) in rows.iter().enumerate() {
        for (sum, register) in levels[0].iter_mut().zip(row.as_chunks::<LANES>().0) {
            add(sum, register);
        }
        let mut done = number + 1;
        for level in 1..LEVELS {
            if done % step != 0 {
                break;
            }
            done /= step;
            let below = std::mem::take(&mut levels[level - 1]);
            levels[level].iter_mut().zip(&below).for_each(|(sum, register)| add(sum, register));
        }
    }
    let [mut sums, others @ ..] = levels;
    for other in &others {
        sums.iter_mut().zip(other).for_each(|(sum, register)| add(sum, register));
    }
    let (registers, rest) = rest.as_chunks::<LANES>();
    let [mut sum, others @ ..] = sums;
    registers.iter().chain(&others).for_each(|register| add(&mut sum, register));
    let last = rest.iter().fold(0.0, |sum, value| sum + value);
    sum.iter().fold(last, |sum, value| sum + value)
}

/// The sum of fewer values than a register has: four sums side by side, the rest added to the first.
fn few(values: &[f32]) -> f32 {
    let (rows, rest) = values.as_chunks::<REGISTERS>();
    let mut sums = rows.first().copied().unwrap_or_default();
    rest.iter().for_each(|value| sums[0] += value);
    let [first, others @ ..] = sums;
    others.iter().fold(first, |sum, value| sum + value)
}

fn add(sum: &mut Register, values: &Register) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_have_the_bits_of_torch() {
        for (count, bits) in TORCH {
            let values: Vec<f32> = (1..=count).map(|i| 1.0 / (i as f32).sqrt()).collect();
            assert_eq!(torch_sum(&values).to_bits(), bits, "{count}");
        }
    }

    /// Counts, and the sums of `1 / sqrt(i)` in float32 by torch 2.15.0 with one thread.
    const TORCH: [(u32, u32); 8] = [
        (7, 0x40809281),
        (100, 0x4194b781),
        (4096, 0x42fd184c),
        (20000, 0x438cb165),
        (32768, 0x43b44a61),
        (100001, 0x441dbffe),
        (1000000, 0x44f9d148),
        (3333333, 0x45642061),
    ];
}
