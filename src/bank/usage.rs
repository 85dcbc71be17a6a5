//! How the rows of a file use a bank's atoms.

use serde::Serialize;

/// The smallest weight that counts as use of an atom, half a percent: smaller ones aren't shown either.
pub const LEAST_SHOWN: f32 = 0.005;

/// The routing of one row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowRouting {
    /// The row's number, from 1.
    pub row: usize,
    /// Its instruction; empty if it has none.
    pub instruction: String,
    /// Its prompt.
    pub prompt: String,
    /// The weights of the atoms by block, each `[K]`.
    pub alphas: Vec<Vec<f32>>,
}

/// The use of atoms by all rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Usage {
    /// By block of layers.
    pub blocks: Vec<BlockUsage>,
    /// By instruction, in the order of the rows.
    pub instructions: Vec<InstructionUsage>,
    /// Atoms that no row gives [`LEAST_SHOWN`] of the weight in any block.
    pub unused: Vec<usize>,
}

/// The use of atoms in one block.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlockUsage {
    /// The mean weights over the rows, `[K]`.
    pub mean: Vec<f32>,
    /// The mean over the rows of the entropy of their weights, in nats: from 0, where each row has one atom, to ln K.
    pub entropy: f64,
    /// By atom, the numbers of the rows that give it the largest weight.
    pub picked_by: Vec<Vec<usize>>,
    /// Atoms that no row gives [`LEAST_SHOWN`] of the weight.
    pub unused: Vec<usize>,
}

/// The mean routing of the rows with one instruction.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstructionUsage {
    /// The instruction; empty for rows without one.
    pub instruction: String,
    /// The number of its rows.
    pub rows: usize,
    /// The mean weights of the atoms by block, each `[K]`.
    pub alphas: Vec<Vec<f32>>,
}

impl Usage {
    /// The use of atoms by `rows`, which have the same numbers of blocks and atoms.
    pub fn of(rows: &[RowRouting]) -> Self {
        let count = rows.first().map_or(0, |row| row.alphas.len());
        let blocks: Vec<BlockUsage> = (0..count).map(|block| BlockUsage::of(rows, block)).collect();
        let mut names: Vec<&str> = Vec::new();
        for row in rows {
            if !names.contains(&row.instruction.as_str()) {
                names.push(&row.instruction);
            }
        }
        let of_instruction = |name: &str| {
            let own: Vec<&RowRouting> = rows.iter().filter(|row| row.instruction == name).collect();
            let alphas = (0..count).map(|block| mean(&own, block)).collect();
            InstructionUsage { instruction: name.to_owned(), rows: own.len(), alphas }
        };
        let in_all = |atom: &usize| blocks.iter().all(|block| block.unused.contains(atom));
        let unused = blocks.first().map(|block| block.unused.iter().copied().filter(in_all).collect());
        Self {
            instructions: names.into_iter().map(of_instruction).collect(),
            unused: unused.unwrap_or_default(),
            blocks,
        }
    }
}

impl BlockUsage {
    fn of(rows: &[RowRouting], block: usize) -> Self {
        let all: Vec<&RowRouting> = rows.iter().collect();
        let mean = mean(&all, block);
        let mut usage =
            Self { entropy: 0.0, picked_by: vec![Vec::new(); mean.len()], unused: (0..mean.len()).collect(), mean };
        for row in rows {
            let alphas = &row.alphas[block];
            let of_atom = |alpha: f64| if alpha > 0.0 { -alpha * alpha.ln() } else { 0.0 };
            let entropy: f64 = alphas.iter().map(|alpha| of_atom(f64::from(*alpha))).sum();
            usage.entropy += entropy / rows.len() as f64;
            // Of equal weights the lower index wins.
            let first = (0..alphas.len()).rev().max_by(|a, b| alphas[*a].total_cmp(&alphas[*b]));
            if let Some(first) = first {
                usage.picked_by[first].push(row.row);
            }
            usage.unused.retain(|atom| alphas[*atom] < LEAST_SHOWN);
        }
        usage
    }
}

/// The mean weights of the atoms over rows.
fn mean(rows: &[&RowRouting], block: usize) -> Vec<f32> {
    let mut sums: Vec<f64> = Vec::new();
    for row in rows {
        sums.resize(row.alphas[block].len(), 0.0);
        sums.iter_mut().zip(&row.alphas[block]).for_each(|(sum, alpha)| *sum += f64::from(*alpha));
    }
    sums.iter().map(|sum| (sum / rows.len() as f64) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_counts_picks_and_names_atoms_that_nobody_uses() {
        let row = |row, instruction: &str, alphas: [[f32; 3]; 2]| RowRouting {
            row,
            instruction: instruction.into(),
            prompt: String::new(),
            alphas: alphas.map(|alphas| alphas.to_vec()).to_vec(),
        };
        let usage = Usage::of(&[
            row(1, "a", [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]),
            row(2, "b", [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
            row(3, "a", [[0.8, 0.2, 0.0], [0.5, 0.5, 0.0]]),
        ]);
        assert_eq!(usage.blocks[0].picked_by, [vec![1, 3], vec![2], vec![]]);
        assert_eq!(usage.blocks[1].picked_by, [vec![1, 3], vec![], vec![2]]);
        assert_eq!((&*usage.blocks[0].unused, &*usage.blocks[1].unused, &*usage.unused), (&[2][..], &[][..], &[][..]));
        assert!((usage.blocks[1].entropy - 2.0 / 3.0 * 2f64.ln()).abs() < 1e-6);
        assert_eq!(usage.blocks[0].mean, [0.6, 0.4, 0.0]);
        assert_eq!((usage.instructions[0].rows, &*usage.instructions[0].alphas[0]), (2, &[0.9, 0.1, 0.0][..]));
    }
}
