//! Sign election: for each element one sign is elected, and only updates with that sign count there.

/// Adds `updates` up, one after the other.
#[inline(always)]
pub(super) fn add_up<V: AsRef<[f32]>>(updates: &[V], sums: &mut [f32]) {
    sums.fill(0.0);
    for update in updates {
        sums.iter_mut().zip(update.as_ref()).for_each(|(sum, value)| *sum += value);
    }
}

/// Sums the values of `updates` that have the sign of `elected`, element by element, each times its factor, and
/// the weights of the values that were summed. An elected value of 0 counts as positive.
#[inline(always)]
pub(super) fn add_up_elected<V: AsRef<[f32]>>(
    updates: &[V],
    factors: &[f32],
    weights: &[f32],
    elected: &[f32],
    sums: &mut [f32],
    sums_of_weights: &mut [f32],
) {
    sums.fill(0.0);
    sums_of_weights.fill(0.0);
    for ((update, factor), weight) in updates.iter().zip(factors).zip(weights) {
        let places = sums.iter_mut().zip(&mut *sums_of_weights).zip(update.as_ref()).zip(elected);
        // No branches: signs are close to random, so a processor would predict them badly.
        for (((sum, sum_of_weights), value), elected) in places {
            let majority = if *elected >= 0.0 { 1.0 } else { -1.0 };
            // Both have the same sign; 0 has no sign.
            let counts = value * majority > 0.0;
            *sum += if counts { value * factor } else { 0.0 };
            *sum_of_weights += if counts { *weight } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_the_elected_sign_is_added_up_with_its_weight() {
        let updates = [[1.0, -4.0, 0.0, -1.0], [2.0, 3.0, -2.0, 1.0]];
        let (mut elected, mut sums, mut weights) = ([9.0; 4], [9.0; 4], [9.0; 4]);
        add_up(&updates, &mut elected);
        assert_eq!(elected, [3.0, -1.0, -2.0, 0.0]);
        add_up_elected(&updates, &[2.0, 10.0], &[0.5, 0.25], &elected, &mut sums, &mut weights);
        assert_eq!((sums, weights), ([22.0, -8.0, -20.0, 10.0], [0.75, 0.5, 0.25, 0.25]));
    }
}
