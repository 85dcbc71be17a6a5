//! The discrete Fourier transform of any length, in f64.

use std::f64::consts::TAU;

/// A complex number: its real and its imaginary part.
pub(crate) type Complex = [f64; 2];

fn times([a, b]: Complex, [c, d]: Complex) -> Complex {
    [a * c - b * d, a * d + b * c]
}

/// The reverse transform of one length, without a factor: `x[j] = sum over k of X[k] e^(2 pi i j k / n)`.
#[derive(Debug)]
pub(crate) struct Fourier {
    /// `e^(2 pi i k / n)` for every `k`.
    roots: Vec<Complex>,
}

impl Fourier {
    /// The transform of `n` values.
    pub(crate) fn new(n: usize) -> Self {
        let root = |k: usize| {
            let (sin, cos) = (TAU * k as f64 / n as f64).sin_cos();
            [cos, sin]
        };
        Self { roots: (0..n).map(root).collect() }
    }

    /// The number of values.
    pub(crate) fn len(&self) -> usize {
        self.roots.len()
    }

    /// `e^(2 pi i k / n)`
    pub(crate) fn root(&self, k: usize) -> Complex {
        self.roots[k % self.roots.len()]
    }

    /// Transforms `values`, of which there are `n`, into `out`. The time is `n` times the sum of the prime factors of `n`.
    pub(crate) fn reverse(&self, values: &[Complex], out: &mut [Complex]) {
        let most = largest_factor(self.roots.len());
        self.part(values, 1, out, &mut vec![[0.0; 2]; most]);
    }

    /// Transforms every `stride`th of `values`, as many as `out` has: first each of their `p` classes by index modulo the
    /// smallest prime factor `p`, then across them.
    fn part(&self, values: &[Complex], stride: usize, out: &mut [Complex], turned: &mut [Complex]) {
        let n = out.len();
        let p = smallest_factor(n);
        if n == 1 {
            out[0] = values[0];
            return;
        }
        let m = n / p;
        for (class, out) in out.chunks_exact_mut(m).enumerate() {
            self.part(&values[class * stride..], stride * p, out, turned);
        }
        let step = self.roots.len() / n;
        for k in 0..m {
            for class in 0..p {
                turned[class] = times(out[class * m + k], self.roots[class * k * step]);
            }
            for j in 0..p {
                let term = |class: usize| times(turned[class], self.roots[class * j % p * m * step]);
                let add = |[a, b]: Complex, [c, d]: Complex| [a + c, b + d];
                out[j * m + k] = (0..p).map(term).fold([0.0; 2], add);
            }
        }
    }
}

fn smallest_factor(n: usize) -> usize {
    (2..).take_while(|p| p * p <= n).find(|p| n.is_multiple_of(*p)).unwrap_or(n)
}

fn largest_factor(mut n: usize) -> usize {
    let mut largest = 1;
    while n > 1 {
        largest = smallest_factor(n);
        n /= largest;
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transforms_of_any_length_are_the_sums_that_define_them() {
        for n in [1, 2, 3, 4, 12, 30, 43, 64, 77, 172] {
            let values: Vec<Complex> = (0..n).map(|k| [(k * k % 7) as f64 - 3.0, (k % 5) as f64]).collect();
            let (transform, mut out) = (Fourier::new(n), vec![[0.0; 2]; n]);
            transform.reverse(&values, &mut out);
            for (j, found) in out.iter().enumerate() {
                let terms = values.iter().enumerate().map(|(k, value)| times(*value, transform.root(j * k)));
                let expected = terms.fold([0.0; 2], |[a, b], [c, d]| [a + c, b + d]);
                assert!((0..2).all(|i| (found[i] - expected[i]).abs() < 1e-9), "{n}, {j}: {found:?} for {expected:?}");
            }
        }
    }
}
