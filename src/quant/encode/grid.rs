//! Grids for encoders: which points have a pattern, and which patterns are near a point without one.
//!
//! A point is a list of levels, one for each value (0, 1, 2 or 0 to 7). Its key packs them, with the first level in the
//! lowest bits. Level `l` stands for the number `2 l + 1`. A place is the index of a pattern in the format's grid.
//!
//! Reference: ggml `ggml-quants.c`, `iq2xs_init_impl`, `iq3xs_init_impl`,
//! `iq2_find_best_neighbour`, `iq3_find_best_neighbour`, `iq1_find_best_neighbour2`.

use std::array::from_fn;
use std::sync::LazyLock;

use super::super::grids;

/// Number of patterns that are compared at a time.
const WIDE: usize = 8;

/// A grid over points of `W` values. `ROWS` is the number of levels, rounded up to a power of two.
pub(super) struct Grid<const W: usize, const ROWS: usize> {
    /// All points, by key.
    cells: Vec<Cell<W>>,
    /// Keys of the patterns, by place.
    patterns: Vec<u16>,
    /// Lists of neighbours, to which cells refer.
    neighbours: Vec<u16>,
    /// Shorter lists, with those neighbours that suffice for all but rare targets: see [`undominated`].
    few: Vec<Bundle>,
}

/// Facts about one point.
#[derive(Clone, Copy)]
struct Cell<const W: usize> {
    /// The place of the point's pattern, or the start of its neighbours if it has none.
    at: u32,
    /// The start of its bundles in `few`.
    few_at: u32,
    /// The number of neighbours, which are sorted nearest first; 0 for a point with a pattern.
    len: u16,
    /// The number of its bundles in `few`.
    few_len: u16,
    /// The numbers for which its levels stand.
    numbers: [u8; W],
}

/// Keys of patterns that are compared together. The last key is repeated to fill a bundle.
type Bundle = [u16; WIDE];

/// The values that a pattern, multiplied by a scale, should approximate.
#[derive(Clone, Copy)]
pub(super) struct Target<'a, const W: usize, N> {
    pub(super) values: &'a [f32; W],
    /// Weights of the squared differences, none negative.
    pub(super) weights: &'a [f32; W],
    pub(super) scale: f32,
    /// Maps a number of the grid to the number that it encodes.
    pub(super) number: N,
}

impl<const W: usize, N: Fn(f32) -> f32 + Copy> Target<'_, W, N> {
    #[inline(always)]
    fn difference(&self, i: usize, number: f32) -> f32 {
        self.scale * (self.number)(number) - self.values[i]
    }
}

/// The grid of IQ1_S and IQ1_M.
pub(super) static IQ1: LazyLock<Grid<8, 4>> = LazyLock::new(|| Grid::new(&grids::IQ1, 3));
/// The grid of IQ2_XXS.
pub(super) static IQ2_XXS: LazyLock<Grid<8, 4>> = LazyLock::new(|| Grid::new(&grids::IQ2_XXS, 2));
/// The grid of IQ2_XS.
pub(super) static IQ2_XS: LazyLock<Grid<8, 4>> = LazyLock::new(|| Grid::new(&grids::IQ2_XS, 2));
/// The grid of IQ2_S.
pub(super) static IQ2_S: LazyLock<Grid<8, 4>> = LazyLock::new(|| Grid::new(&grids::IQ2_S, 1));
/// The grid of IQ3_XXS.
pub(super) static IQ3_XXS: LazyLock<Grid<4, 8>> = LazyLock::new(|| Grid::new(&grids::IQ3_XXS, 2));
/// The grid of IQ3_S.
pub(super) static IQ3_S: LazyLock<Grid<4, 8>> = LazyLock::new(|| Grid::new(&grids::IQ3_S, 3));

impl<const W: usize, const ROWS: usize> Grid<W, ROWS> {
    /// Bits of one level in a key.
    pub(super) const BITS: u32 = ROWS.ilog2();
    /// The highest level.
    pub(super) const TOP: usize = if ROWS == 4 { 2 } else { ROWS - 1 };

    /// The levels of a key.
    #[inline(always)]
    pub(super) fn levels(key: u16) -> [usize; W] {
        from_fn(|i| usize::from(key) >> (Self::BITS as usize * i) & (ROWS - 1))
    }

    /// The key of levels.
    #[inline(always)]
    pub(super) fn key(levels: [u8; W]) -> u16 {
        levels.iter().rev().fold(0, |key, level| key << Self::BITS | u16::from(*level))
    }

    /// The grid of `patterns`. The neighbours of a point are the patterns at its `distances` smallest distances.
    fn new<const LEN: usize>(patterns: &[[i8; W]; LEN], distances: usize) -> Self {
        let mut values = patterns.as_flattened().to_vec();
        values.sort_unstable();
        values.dedup();
        let patterns = patterns.map(|pattern| pattern.map(|value| values.partition_point(|v| *v < value) as u8));

        let keys = 0..1 << (Self::BITS as usize * W);
        let mut cells: Vec<_> = keys
            .map(|key| {
                let numbers = Self::levels(key as u16).map(|level| 2 * level as u8 + 1);
                Cell { at: u32::MAX, few_at: 0, len: 0, few_len: 0, numbers }
            })
            .collect();
        for (place, pattern) in patterns.iter().enumerate() {
            cells[usize::from(Self::key(*pattern))].at = place as u32;
        }
        let (mut neighbours, mut few) = (Vec::new(), Vec::new());
        for cell in cells.iter_mut().filter(|cell| cell.at == u32::MAX) {
            let point = cell.numbers.map(|number| number / 2);
            if point.iter().any(|level| usize::from(*level) > Self::TOP) {
                continue;
            }
            (cell.at, cell.few_at) = (neighbours.len() as u32, few.len() as u32);
            let all = near(&patterns, point, distances);
            few.extend(undominated(&all, point).chunks(WIDE).map(Self::bundle));
            neighbours.extend(all.into_iter().map(Self::key));
            (cell.len, cell.few_len) =
                ((neighbours.len() as u32 - cell.at) as u16, (few.len() as u32 - cell.few_at) as u16);
        }
        Self { cells, patterns: patterns.map(Self::key).to_vec(), neighbours, few }
    }

    /// A bundle of these patterns, of which there is at least one.
    fn bundle(patterns: &[[u8; W]]) -> Bundle {
        let pattern = |lane: usize| patterns[lane.min(patterns.len() - 1)];
        from_fn(|lane| Self::key(pattern(lane)))
    }

    /// The key of the pattern at `place`.
    pub(super) fn key_at(&self, place: u16) -> u16 {
        self.patterns[usize::from(place)]
    }

    /// The place of the pattern at `key`, which must have one.
    #[inline(always)]
    pub(super) fn place(&self, key: u16) -> u16 {
        self.cells[usize::from(key)].at as u16
    }

    /// Whether there is a pattern at `key`.
    #[inline(always)]
    pub(super) fn has(&self, key: u16) -> bool {
        self.cells[usize::from(key)].len == 0
    }

    /// The pattern near `key` with the smallest weighted sum of squared differences from `target`; the first of equal
    /// ones. `None` where no sum is finite: there ggml stops the program, or reads out of bounds.
    #[inline(always)]
    pub(super) fn nearest<N: Fn(f32) -> f32 + Copy>(&self, key: u16, target: Target<W, N>) -> Option<u16> {
        let cell = &self.cells[usize::from(key)];
        // Whether the point's own levels are the nearest to the target: then differences grow with the distance from
        // them.
        let mut point_is_nearest = true;
        for (i, number) in cell.numbers.iter().enumerate() {
            let [below, here, above] =
                [-2.0, 0.0, 2.0].map(|step| target.difference(i, f32::from(*number) + step).abs());
            // A comparison with NaN is false, so NaN leads to the full search.
            point_is_nearest &= (here <= below) | (*number == 1);
            point_is_nearest &= (here <= above) | (usize::from(*number) == 2 * Self::TOP + 1);
        }
        if !point_is_nearest {
            return self.nearest_of_all(cell, target);
        }
        let few = &self.few[cell.few_at as usize..][..usize::from(cell.few_len)];
        // Distances aren't negative, so their bits have the same order, with NaN above all.
        let mut least = [f32::MAX.to_bits().cast_signed(); WIDE];
        let mut found = [i32::MAX; WIDE];
        for (b, bundle) in few.iter().enumerate() {
            // Summed in the order of the values, as in ggml, which determines the last bit.
            let mut distances = [0.0; WIDE];
            for i in 0..W {
                for lane in 0..WIDE {
                    let level = i32::from(bundle[lane]) >> (Self::BITS as usize * i) & (ROWS as i32 - 1);
                    let difference = target.difference(i, (2 * level + 1) as f32);
                    distances[lane] += target.weights[i] * difference * difference;
                }
            }
            for lane in 0..WIDE {
                let distance = f32::abs(distances[lane]).to_bits().cast_signed();
                // A mask of ones or zeros, because a branch here would often be mispredicted.
                let less = -i32::from(distance < least[lane]);
                least[lane] = distance & less | least[lane] & !less;
                found[lane] = (WIDE * b + lane) as i32 & less | found[lane] & !less;
            }
        }
        // Of equal distances, the first pattern wins.
        let first = (0..WIDE).map(|lane| (i64::from(least[lane]) << 32) | i64::from(found[lane])).min();
        let at = first? as u32 as usize;
        few.get(at / WIDE).map(|bundle| bundle[at % WIDE])
    }

    /// Like [`Self::nearest`], but compares all neighbours.
    #[cold]
    #[inline(never)]
    fn nearest_of_all<N: Fn(f32) -> f32 + Copy>(&self, cell: &Cell<W>, target: Target<W, N>) -> Option<u16> {
        let mut least = f32::MAX;
        let mut found = None;
        for key in &self.neighbours[cell.at as usize..][..usize::from(cell.len)] {
            let mut distance = 0.0;
            for (i, level) in Self::levels(*key).into_iter().enumerate() {
                let difference = target.difference(i, (2 * level + 1) as f32);
                distance += target.weights[i] * difference * difference;
            }
            if distance < least {
                least = distance;
                found = Some(*key);
            }
        }
        found
    }
}

/// The patterns at the `distances` smallest distances from `point`, sorted by distance, then by place.
fn near<const W: usize>(patterns: &[[u8; W]], point: [u8; W], distances: usize) -> Vec<[u8; W]> {
    let distance = |pattern: &[u8; W]| (0..W).map(|i| u32::from(pattern[i].abs_diff(point[i])).pow(2)).sum::<u32>();
    let all: Vec<u32> = patterns.iter().map(distance).collect();
    let mut order = Vec::new();
    let mut past = None;
    for _ in 0..distances {
        let Some(next) = all.iter().filter(|d| past.is_none_or(|past| **d > past)).min() else { break };
        order.extend(all.iter().zip(patterns).filter(|(d, _)| *d == next).map(|(_, pattern)| *pattern));
        past = Some(*next);
    }
    order
}

/// Those of `all` that can be the best pattern for some target, provided that no level is nearer to the target than
/// that of `point`.
///
/// If a pattern has the same level as another one wherever it differs from the point, it is at most as far away: term
/// by term, and so also after each rounding. It also comes first of the two in `all`.
fn undominated<const W: usize>(all: &[[u8; W]], point: [u8; W]) -> Vec<[u8; W]> {
    let dominates = |a: &[u8; W], b: &[u8; W]| a != b && (0..W).all(|i| a[i] == b[i] || a[i] == point[i]);
    all.iter().filter(|b| !all.iter().any(|a| dominates(a, b))).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns_are_at_their_keys<const W: usize, const ROWS: usize>(grid: &Grid<W, ROWS>, len: u16) {
        assert_eq!(grid.patterns.len(), usize::from(len));
        for place in 0..len {
            let key = grid.key_at(place);
            assert!(grid.has(key));
            assert_eq!(grid.place(key), place);
            assert_eq!(Grid::<W, ROWS>::key(Grid::<W, ROWS>::levels(key).map(|level| level as u8)), key);
        }
    }

    #[test]
    fn keys_and_places_belong_together() {
        patterns_are_at_their_keys(&IQ1, 2048);
        patterns_are_at_their_keys(&IQ2_XXS, 256);
        patterns_are_at_their_keys(&IQ2_XS, 512);
        patterns_are_at_their_keys(&IQ2_S, 1024);
        patterns_are_at_their_keys(&IQ3_XXS, 256);
        patterns_are_at_their_keys(&IQ3_S, 512);
    }

    #[test]
    fn near_is_by_distance_then_by_place() {
        let patterns = [[2, 2], [0, 1], [5, 5], [1, 0], [0, 2], [9, 9]];
        assert_eq!(near(&patterns, [0, 0], 1), [[0, 1], [1, 0]]);
        assert_eq!(near(&patterns, [0, 0], 3), [[0, 1], [1, 0], [0, 2], [2, 2]]);
        assert_eq!(near(&patterns, [0, 0], 9).len(), 6);
    }

    #[test]
    fn one_that_another_beats_in_every_value_is_left_out() {
        let all = [[0, 1], [1, 1], [1, 0], [2, 0]];
        assert_eq!(undominated(&all, [0, 0]), [[0, 1], [1, 0], [2, 0]]);
        assert_eq!(undominated(&all, [1, 1]), [[1, 1]]);
    }

    fn few_are_as_good_as_all<const W: usize, const ROWS: usize>(grid: &Grid<W, ROWS>) {
        let mut state = 7_u32;
        let mut next = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        let mut seen = 0;
        while seen < 2000 {
            // Half-integers and zero weights give equal distances.
            let values: [f32; W] = from_fn(|_| next(4 * Grid::<W, ROWS>::TOP as u32 + 8) as f32 * 0.5);
            let weights: [f32; W] = from_fn(|_| next(4) as f32);
            let nearest =
                values.map(|v| ((v - 1.0) * 0.5).round_ties_even().clamp(0.0, Grid::<W, ROWS>::TOP as f32) as u8);
            let key = Grid::<W, ROWS>::key(nearest);
            if !grid.has(key) {
                let target = Target { values: &values, weights: &weights, scale: 1.0, number: |n| n };
                let all = grid.nearest_of_all(&grid.cells[usize::from(key)], target);
                assert!(all.is_some());
                assert_eq!(grid.nearest(key, target), all, "{values:?} {weights:?}");
                seen += 1;
            }
        }
    }

    #[test]
    fn looking_at_few_finds_the_same() {
        few_are_as_good_as_all(&IQ1);
        few_are_as_good_as_all(&IQ2_XXS);
        few_are_as_good_as_all(&IQ2_XS);
        few_are_as_good_as_all(&IQ2_S);
        few_are_as_good_as_all(&IQ3_XXS);
        few_are_as_good_as_all(&IQ3_S);
    }

    #[test]
    fn nothing_is_near_where_distances_are_infinite() {
        let key = (0..6000).find(|key| !IQ2_XS.has(*key));
        let target = Target { values: &[1e30; 8], weights: &[1.0; 8], scale: 1.0, number: |n| n };
        assert_eq!(key.map(|key| IQ2_XS.nearest(key, target)), Some(None));
    }
}
