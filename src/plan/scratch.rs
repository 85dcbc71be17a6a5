//! Buffers of values that a thread keeps for the next rows. The system gives fresh memory page by page, each of them
//! zeroed, which takes longer than most arithmetic on it.

use std::cell::RefCell;

thread_local! {
    static KEPT: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// The most buffers that a thread keeps.
const MOST: usize = 8;

/// The largest buffer that is kept, in elements: that of the largest range of rows.
const LARGEST: usize = 1 << 20;

/// A buffer of `len` values, whatever they are.
pub(super) fn take(len: usize) -> Vec<f32> {
    match KEPT.with_borrow_mut(Vec::pop) {
        Some(mut values) if values.capacity() >= len => {
            values.resize(len, 0.0);
            values
        }
        // A buffer that is too small would be copied as it grows.
        _ => vec![0.0; len],
    }
}

/// Keeps a buffer for later.
pub(super) fn give_back(values: Vec<f32>) {
    if values.capacity() <= LARGEST {
        KEPT.with_borrow_mut(|kept| {
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
        give_back(vec![1.0; 8]);
        for len in [3, 8, 9, 0, 1] {
            let values = take(len);
            assert_eq!(values.len(), len);
            give_back(values);
        }
        give_back(vec![1.0; LARGEST + 1]);
        KEPT.with_borrow(|kept| assert!(kept.iter().all(|values| values.capacity() <= LARGEST)));
    }
}
