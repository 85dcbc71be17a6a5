//! A router made from texts: it selects atom i for the descriptions of LoRA i.
//!
//! It uses ridge regression from embeddings to atoms, `S = Y^T (E E^T + lambda)^-1 E`. A small lambda can separate
//! nearly identical descriptions, a large one follows the cosine. The largest lambda that separates the descriptions
//! well is used.

use crate::linalg::{Matrix, svd};

/// Values of lambda, relative to the mean squared norm of an embedding, largest first.
const RIDGES: [f64; 9] = [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8];
/// By how much a text's own atom should lead over any other, as a share of its score.
const MARGIN: f64 = 0.5;
/// The smallest such share with which a router is useful: below it, the result would depend on f32 rounding.
const LEAST_MARGIN: f64 = 0.05;
/// The smallest weight that a text's own atom gets in its routing.
const SHARE: f64 = 0.9999;

/// Projection, descriptors and keys of a bank that routes by instruction alone.
#[derive(Debug, Clone, PartialEq)]
pub struct InstructionRouter {
    /// P and W_e, `[d_p, d_e]`: an orthonormal basis of the texts' embeddings.
    pub projection: Matrix,
    /// u, `[atoms, d_p]`.
    pub descriptors: Matrix,
    /// tau_pi: with it, every text gives nearly all weight to its own atom.
    pub prior_temperature: f64,
}

/// Indices of two texts for different atoms that the embeddings can't separate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooClose(pub usize, pub usize);

impl InstructionRouter {
    /// Makes the router for `embeddings`, `[texts, d_e]`. Each text selects its entry of `atoms`. There are `count`
    /// atoms, and each has at least one text.
    ///
    /// # Errors
    /// The closest texts of different atoms, where no router separates them.
    pub fn new(embeddings: &Matrix, atoms: &[usize], count: usize) -> Result<Self, TooClose> {
        let basis = svd(embeddings.clone());
        let mean = basis.norm_sqr() / embeddings.nrows() as f64;
        let solve = |ridge: f64| {
            let mut weights = basis.u.clone();
            for (mut column, s) in weights.column_iter_mut().zip(&basis.s) {
                column.scale_mut(s / (s * s + ridge * mean));
            }
            let mut descriptors = Matrix::zeros(count, basis.rank());
            for (text, atom) in atoms.iter().enumerate() {
                let mut row = descriptors.row_mut(*atom);
                row += weights.row(text);
            }
            // Scores by text and atom.
            let scores = embeddings * basis.vt.transpose() * descriptors.transpose();
            (descriptors, Margins::of(&scores, atoms))
        };
        let mut best = solve(RIDGES[0]);
        for ridge in &RIDGES[1..] {
            if best.1.relative >= MARGIN {
                break;
            }
            let next = solve(*ridge);
            if next.1.relative > best.1.relative {
                best = next;
            }
        }
        let (descriptors, margins) = best;
        if margins.relative < LEAST_MARGIN {
            return Err(closest(embeddings, atoms));
        }
        // All other atoms together get the weight (1 - SHARE) if each is behind by this many nats.
        let nats = (SHARE / (1.0 - SHARE) * (count.max(2) - 1) as f64).ln();
        let prior_temperature = margins.absolute / (nats * (basis.rank() as f64).sqrt());
        Ok(Self { projection: basis.vt, descriptors, prior_temperature })
    }

    /// The keys k, `[atoms, d_k]`. With W_e = P, the logits of a query are those of the prior.
    pub fn keys(&self) -> Matrix {
        &self.descriptors / self.prior_temperature
    }

    /// The prior pi(e) for each row of `embeddings`: `[texts, atoms]`.
    pub fn prior(&self, embeddings: &Matrix) -> Matrix {
        let scale = (self.projection.nrows() as f64).sqrt() * self.prior_temperature;
        let mut scores = embeddings * self.projection.transpose() * self.descriptors.transpose() / scale;
        for mut row in scores.row_iter_mut() {
            let largest = row.max();
            row.apply(|score| *score = (*score - largest).exp());
            let sum = row.sum();
            row.unscale_mut(sum);
        }
        scores
    }
}

/// The smallest lead of a text's own atom over the next one: in scores, and relative to its own score.
struct Margins {
    absolute: f64,
    relative: f64,
}

impl Margins {
    fn of(scores: &Matrix, atoms: &[usize]) -> Self {
        let mut margins = Self { absolute: f64::INFINITY, relative: f64::INFINITY };
        for (row, own) in scores.row_iter().zip(atoms) {
            let others = row.iter().enumerate().filter(|(atom, _)| atom != own);
            let other = others.map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
            margins.absolute = margins.absolute.min(row[*own] - other);
            margins.relative = margins.relative.min((row[*own] - other) / row[*own].abs().max(f64::MIN_POSITIVE));
        }
        margins
    }
}

/// The two texts of different atoms whose embeddings have the largest cosine.
fn closest(embeddings: &Matrix, atoms: &[usize]) -> TooClose {
    let mut closest = (f64::NEG_INFINITY, TooClose(0, 0));
    for j in 0..atoms.len() {
        for i in (0..j).filter(|i| atoms[*i] != atoms[j]) {
            let cosine = embeddings.row(i).dot(&embeddings.row(j));
            if cosine > closest.0 {
                closest = (cosine, TooClose(i, j));
            }
        }
    }
    closest.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::Random;

    /// Unit vectors with a common part, like means of a model's embeddings.
    fn texts(count: usize, dim: usize, common: f64, seed: u64) -> Matrix {
        let mut random = Random::new(seed);
        let mut texts = Matrix::from_fn(count, dim, |_, column| {
            f64::from(random.normal()) + if column == 0 { common * (dim as f64).sqrt() } else { 0.0 }
        });
        texts.row_iter_mut().for_each(|mut row| {
            let norm = row.norm();
            row.unscale_mut(norm);
        });
        texts
    }

    #[test]
    fn every_text_picks_its_own_atom() {
        for (count, dim, common) in [(2, 8, 0.0), (8, 128, 3.0), (8, 128, 30.0), (20, 16, 1.0)] {
            let texts = texts(count, dim, common, 5);
            let atoms: Vec<usize> = (0..count).collect();
            let router = InstructionRouter::new(&texts, &atoms, count).unwrap();
            let prior = router.prior(&texts);
            for text in 0..count {
                assert!(prior[(text, text)] > 0.99, "{count} x {dim}, {common}: {}", prior[(text, text)]);
            }
            let p = &router.projection;
            let gram = p * p.transpose();
            assert!((gram - Matrix::identity(p.nrows(), p.nrows())).norm() < 1e-12);
        }
    }

    #[test]
    fn several_texts_of_an_atom_all_pick_it_and_so_does_what_lies_near() {
        let texts = texts(6, 64, 2.0, 1);
        let atoms = [0, 0, 1, 1, 2, 2];
        let router = InstructionRouter::new(&texts, &atoms, 3).unwrap();
        let between = Matrix::from_fn(3, 64, |i, j| (texts[(2 * i, j)] + texts[(2 * i + 1, j)]) / 2.0);
        for (prior, atoms) in [(router.prior(&texts), &atoms[..]), (router.prior(&between), &[0, 1, 2])] {
            for (text, atom) in atoms.iter().enumerate() {
                assert!(prior[(text, *atom)] > 0.99, "{prior}");
            }
        }
    }

    #[test]
    fn texts_of_one_embedding_are_named() {
        let mut texts = texts(4, 16, 1.0, 2);
        let copy = texts.row(1).into_owned();
        texts.set_row(3, &copy);
        assert_eq!(InstructionRouter::new(&texts, &[0, 1, 2, 3], 4), Err(TooClose(1, 3)));
        // Two close texts of the same atom are fine.
        assert!(InstructionRouter::new(&texts, &[0, 1, 2, 1], 3).is_ok());
    }
}
