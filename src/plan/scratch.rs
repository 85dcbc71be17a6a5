//! Buffers of values that a thread keeps for the next rows. The system gives fresh memory page by page, each of them
//! zeroed, which takes longer than most arithmetic on it.

use super::number::Number;

/// The most buffers that a thread keeps.
const MOST: usize = 8;

/// The largest buffer that is kept, in elements: that of the largest range of rows.
const LARGEST: usize = 1 << 20;

/// A buffer of `len` values, whatever they are.
pub(super) fn take<T: Number>(len: usize) -> Vec<T> {
    match T::kept().with_borrow_mut(Vec::pop) {
        Some(mut values) if values.capacity() >= len => {
            values.resize(len, T::default());
            values
        }
        // A buffer that is too small would be copied as it grows.
        _ => vec![T::default(); len],
    }
}

/// Keeps a buffer for later.
pub(super) fn give_back<T: Number>(values: Vec<T>) {
    if values.capacity() <= LARGEST {
        T::kept().with_borrow_mut(|kept| {
            if kept.len() < MOST {
                kept.push(values);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_have_the_length_that_is_asked_for() {
        give_back(vec![1.0f32; 8]);
        for len in [3, 8, 9, 0, 1] {
            let values = take::<f32>(len);
            assert_eq!(values.len(), len);
            give_back(values);
        }
        give_back(vec![1.0f32; LARGEST + 1]);
        f32::kept().with_borrow(|kept| assert!(kept.iter().all(|values| values.capacity() <= LARGEST)));
    }
}
