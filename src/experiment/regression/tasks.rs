//! Noisy non-linear regression: what is learned, and the data.
//!
//! Friedman's functions are those of Friedman, "Multivariate adaptive regression splines" (1991), with factors of their
//! terms that are 1 where the net is pretrained, and from 0.1 to 10 where it is adapted. Regimes have the same sines, each
//! with factors of its own: what they have in common can be learned of all rows, of its own each regime has few.

use std::f32::consts::{PI, TAU};

use crate::linalg::Random;

/// The number of regimes of tasks with regimes.
const REGIMES: usize = 16;

/// The rows of one regime that are trained on.
const ROWS_OF_REGIME: usize = 32;

/// The rows that are trained on in tasks without regimes.
const ROWS: usize = 256;

/// The rows of a test.
const TEST_ROWS: usize = 2048;

/// The noise of targets, in standard deviations of the function.
const NOISE: f32 = 0.3;

/// What is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Sines,
    Friedman1,
    Friedman2,
    Friedman3,
    Piecewise,
    /// Each row's regime is named by its instruction; the net doesn't see it.
    RegimesNamed,
    /// The same, and the net sees the instruction, too.
    RegimesSeen,
    /// The inputs decide the regime, and there is no instruction.
    RegimesOfInput,
}

impl Task {
    pub(super) const ALL: [Task; 8] = [
        Task::Sines,
        Task::Friedman1,
        Task::Friedman2,
        Task::Friedman3,
        Task::Piecewise,
        Task::RegimesNamed,
        Task::RegimesSeen,
        Task::RegimesOfInput,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Task::Sines => "sums of sines",
            Task::Friedman1 => "Friedman 1",
            Task::Friedman2 => "Friedman 2",
            Task::Friedman3 => "Friedman 3",
            Task::Piecewise => "piecewise",
            Task::RegimesNamed => "16 regimes, named",
            Task::RegimesSeen => "16 regimes, named and seen",
            Task::RegimesOfInput => "16 regimes, by the input",
        }
    }

    /// The number of regimes; 1 without them.
    pub(super) fn regimes(self) -> usize {
        match self {
            Task::RegimesNamed | Task::RegimesSeen | Task::RegimesOfInput => REGIMES,
            _ => 1,
        }
    }

    /// Whether rows have an instruction that names their regime.
    pub(super) fn has_instructions(self) -> bool {
        matches!(self, Task::RegimesNamed | Task::RegimesSeen)
    }

    /// The number of inputs of the function.
    pub(super) fn inputs(self) -> usize {
        match self {
            Task::Friedman1 => 10,
            Task::Friedman2 | Task::Friedman3 => 4,
            _ => 6,
        }
    }
}

/// A sum of sines of the inputs.
struct Sines(Vec<(Vec<f32>, f32, f32)>);

impl Sines {
    fn new(inputs: usize, random: &mut Random) -> Self {
        let sine = |random: &mut Random| {
            let direction = (0..inputs).map(|_| 1.5 * random.normal()).collect();
            (direction, TAU * random.uniform(), 0.5 + random.uniform())
        };
        Self((0..4).map(|_| sine(random)).collect())
    }

    fn at(&self, x: &[f32]) -> f32 {
        self.each(x).sum()
    }

    /// The value of each sine.
    fn each<'a>(&'a self, x: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
        self.0.iter().map(move |(direction, phase, size)| {
            size * (direction.iter().zip(x).map(|(w, x)| w * x).sum::<f32>() + phase).sin()
        })
    }
}

/// A piecewise linear function of each of some inputs.
struct Piecewise(Vec<[f32; 6]>);

impl Piecewise {
    fn new(inputs: usize, random: &mut Random) -> Self {
        Self((0..inputs).map(|_| std::array::from_fn(|_| 2.0 * random.normal())).collect())
    }

    fn at(&self, x: &[f32]) -> f32 {
        let of_input = |(levels, x): (&[f32; 6], &f32)| {
            // Levels at -1, -0.6, .. 1; a jump in the middle.
            let place = ((x + 1.0) * 2.5).clamp(0.0, 4.999);
            let (left, part) = (place as usize, place.fract());
            let jump = if *x > 0.0 { levels[0] } else { 0.0 };
            levels[left] * (1.0 - part) + levels[left + 1] * part + jump
        };
        self.0.iter().zip(x).map(of_input).sum()
    }
}

/// The function of a task, by regime.
enum Function {
    Sines(Sines),
    /// The number of the function, and its factors.
    Friedman(u8, [f32; 4]),
    Piecewise(Piecewise),
    /// Sines, and their factors in each regime; the net is pretrained on their sum.
    Regimes(Sines, Vec<Vec<f32>>),
}

impl Function {
    /// The function that the net is pretrained on, where `is_source`, or the one that it is adapted to.
    fn new(task: Task, is_source: bool, common: &mut Random, own: &mut Random) -> Self {
        let inputs = task.inputs();
        let mut factors = || match is_source {
            true => [1.0; 4],
            false => std::array::from_fn(|_| 10f32.powf(2.0 * own.uniform() - 1.0)),
        };
        match task {
            Task::Sines => Function::Sines(Sines::new(inputs, own)),
            Task::Friedman1 => Function::Friedman(1, factors()),
            Task::Friedman2 => Function::Friedman(2, factors()),
            Task::Friedman3 => Function::Friedman(3, factors()),
            Task::Piecewise => Function::Piecewise(Piecewise::new(inputs, own)),
            Task::RegimesNamed | Task::RegimesSeen | Task::RegimesOfInput => {
                let shared = Sines::new(inputs, common);
                let count = if is_source { 0 } else { task.regimes() };
                let factors = (0..count).map(|_| shared.0.iter().map(|_| own.normal()).collect()).collect();
                Function::Regimes(shared, factors)
            }
        }
    }

    fn at(&self, x: &[f32], regime: usize) -> f32 {
        // Inputs lie between -1 and 1, Friedman's between 0 and 1 or in ranges of their own.
        let unit = |i: usize| (x[i] + 1.0) / 2.0;
        match self {
            Function::Sines(sines) => sines.at(x),
            Function::Piecewise(pieces) => pieces.at(x),
            Function::Regimes(sines, factors) => match factors.get(regime) {
                Some(factors) => sines.each(x).zip(factors).map(|(sine, factor)| sine * factor).sum(),
                None => sines.at(x),
            },
            Function::Friedman(1, c) => {
                10.0 * c[0] * (PI * unit(0) * unit(1)).sin()
                    + 20.0 * c[1] * (unit(2) - 0.5).powi(2)
                    + 10.0 * c[2] * unit(3)
                    + 5.0 * c[3] * unit(4)
            }
            Function::Friedman(number, c) => {
                let (x1, x2) = (c[0] * 100.0 * unit(0), PI * (40.0 + 520.0 * unit(1)));
                let (x3, x4) = (unit(2), 1.0 + 10.0 * unit(3));
                let reactance = c[1] * x2 * x3 - c[2] / (x2 * x4);
                match number {
                    2 => x1.hypot(reactance),
                    _ => c[3] * (reactance / x1.max(1e-3)).atan(),
                }
            }
        }
    }
}

/// Rows of inputs and targets.
pub(super) struct Rows {
    /// `[n, inputs]`
    pub(super) x: Vec<f32>,
    /// `[n]`, with a mean of 0 and a variance of 1 before the noise.
    pub(super) y: Vec<f32>,
    /// `[n]`
    pub(super) regime: Vec<usize>,
}

/// The data of one seed.
pub(super) struct Data {
    /// What the net is pretrained on: many rows without noise.
    pub(super) source: Rows,
    pub(super) train: Rows,
    /// Without noise: the error doesn't count what nobody can know.
    pub(super) test: Rows,
    /// The centred embedding of each regime's instruction, `[regimes, width]`; none without instructions. Before the
    /// centre was taken off, they had a common part, as embeddings of instructions in a language model have.
    pub(super) instructions: Vec<Vec<f32>>,
}

/// The numbers of rows for pretraining.
const SOURCE_ROWS: usize = 4096;

impl Data {
    pub(super) fn new(task: Task, seed: u64, width: usize) -> Self {
        let [mut common, mut own, mut rows] = [0, 1, 2].map(|stream| Random::new(seed * 3 + stream));
        let source = Function::new(task, true, &mut common, &mut rows);
        let target = Function::new(task, false, &mut Random::new(seed * 3), &mut own);
        let shared: Vec<f32> = (0..width).map(|_| common.normal()).collect();
        let count = if task.has_instructions() { task.regimes() } else { 0 };
        let instructions = (0..count).map(|_| {
            let mixed: Vec<f32> = shared.iter().map(|shared| shared + common.normal()).collect();
            let length = mixed.iter().map(|v| v * v).sum::<f32>().sqrt();
            mixed.iter().map(|v| v / length).collect()
        });
        let instructions = centred(instructions.collect());
        let centres: Vec<Vec<f32>> =
            (0..task.regimes()).map(|_| (0..task.inputs()).map(|_| common.normal()).collect()).collect();
        let mut made = |function: &Function, count: usize| {
            let (mut x, mut y, mut regime) = (Vec::new(), Vec::new(), Vec::new());
            for row in 0..count {
                let inputs: Vec<f32> = (0..task.inputs()).map(|_| 2.0 * rows.uniform() - 1.0).collect();
                let of_row = match task {
                    Task::RegimesOfInput => nearest(&centres, &inputs),
                    _ => row % task.regimes(),
                };
                y.push(function.at(&inputs, of_row));
                regime.push(of_row);
                x.extend(inputs);
            }
            Rows { x, y, regime }
        };
        let count = if task.regimes() > 1 { task.regimes() * ROWS_OF_REGIME } else { ROWS };
        let [mut source, mut train, mut test] =
            [made(&source, SOURCE_ROWS), made(&target, count), made(&target, TEST_ROWS)];
        let (mean, deviation) = moments(&source.y);
        standardize(&mut source.y, mean, deviation);
        let (mean, deviation) = moments(&test.y);
        standardize(&mut train.y, mean, deviation);
        standardize(&mut test.y, mean, deviation);
        train.y.iter_mut().for_each(|y| *y += NOISE * rows.normal());
        Self { source, train, test, instructions }
    }
}

/// Unit vectors without their mean, as unit vectors again: what a bank does to instruction embeddings. All methods get
/// them so.
fn centred(all: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let width = all.first().map_or(0, Vec::len);
    let mean: Vec<f32> = (0..width).map(|i| all.iter().map(|e| e[i]).sum::<f32>() / all.len() as f32).collect();
    let of_one = |e: &Vec<f32>| {
        let moved: Vec<f32> = e.iter().zip(&mean).map(|(e, mean)| e - mean).collect();
        let length = moved.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        moved.iter().map(|v| v / length).collect()
    };
    all.iter().map(of_one).collect()
}

/// The centre whose direction is closest to that of `x`.
fn nearest(centres: &[Vec<f32>], x: &[f32]) -> usize {
    let score = |centre: &Vec<f32>| centre.iter().zip(x).map(|(c, x)| c * x).sum::<f32>();
    (0..centres.len()).max_by(|a, b| score(&centres[*a]).total_cmp(&score(&centres[*b]))).unwrap_or_default()
}

fn moments(y: &[f32]) -> (f32, f32) {
    let mean = y.iter().sum::<f32>() / y.len() as f32;
    let variance = y.iter().map(|y| (y - mean).powi(2)).sum::<f32>() / y.len() as f32;
    (mean, variance.sqrt().max(1e-6))
}

fn standardize(y: &mut [f32], mean: f32, deviation: f32) {
    y.iter_mut().for_each(|y| *y = (*y - mean) / deviation);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_follows_from_its_seed_and_targets_are_standardized() {
        for task in Task::ALL {
            let (data, again) = (Data::new(task, 3, 16), Data::new(task, 3, 16));
            assert_eq!(data.train.y, again.train.y, "{task:?}");
            assert_ne!(data.train.y, Data::new(task, 4, 16).train.y, "{task:?}");
            let (mean, deviation) = moments(&data.test.y);
            assert!(mean.abs() < 1e-3 && (deviation - 1.0).abs() < 1e-3, "{task:?}: {mean} {deviation}");
            assert!(data.train.y.iter().chain(&data.source.y).all(|y| y.is_finite()), "{task:?}");
            assert_eq!(data.train.x.len(), data.train.y.len() * task.inputs());
            let used = (0..task.regimes()).filter(|regime| data.test.regime.contains(regime)).count();
            assert!(used * 4 >= task.regimes() * 3, "{task:?}: {used} regimes");
        }
    }

    #[test]
    fn regimes_have_the_same_sines_with_other_factors() {
        let data = Data::new(Task::RegimesNamed, 1, 16);
        for instruction in &data.instructions {
            let length: f32 = instruction.iter().map(|v| v * v).sum();
            assert!((length - 1.0).abs() < 1e-5);
        }
        assert!(Data::new(Task::RegimesOfInput, 1, 16).instructions.is_empty());
        let [mut common, mut own] = [1, 2].map(Random::new);
        let function = Function::new(Task::RegimesNamed, false, &mut common, &mut own);
        let Function::Regimes(sines, factors) = &function else { panic!("another function") };
        assert_eq!((factors.len(), factors[0].len()), (REGIMES, sines.0.len()));
        let x = [0.1; 6];
        let each: Vec<f32> = sines.each(&x).collect();
        assert_eq!(function.at(&x, 3), each.iter().zip(&factors[3]).map(|(sine, factor)| sine * factor).sum::<f32>());
    }
}
