//! Prints a bank of filter atoms: its layers, and its atoms as small grids.

use atombank::filter::{AtomSetReport, FilterAtomReport, FilterReport};

use super::row;

/// The most sets of atoms that are drawn.
const SETS: usize = 12;
/// The most atoms of a set that are drawn.
const ATOMS: usize = 16;
/// The widest and highest atom that is drawn.
const TAPS: usize = 16;
/// The width of a line, in characters.
const LINE: usize = 100;

pub(super) fn print(report: &FilterReport) {
    row("kind", "bank of filter atoms");
    row(
        "stands for",
        match report.mode {
            "replace" => "whole kernels: atoms times coefficients".to_owned(),
            _ => format!("other atoms for the base's coefficients, times {}", report.scale),
        },
    );
    if !report.base.is_empty() {
        row("base", &report.base);
    }
    row("layers", report.layers.len());
    row("atoms", if report.shared { "shared by layers of a kernel size" } else { "of each layer" });
    row("values", report.values);
    let width = report.layers.iter().map(|layer| layer.module.chars().count()).max().unwrap_or(0).max(6);
    println!("\n{:<width$} {:>8} {:>3} {:>3}  {:<14} {:>10}", "module", "kernel", "n", "m", "channels", "norm of A");
    for layer in &report.layers {
        let channels = layer.channels.map(|channels| format!("{channels:?}")).unwrap_or_default();
        let norm = layer.norm.map(|norm| format!("{norm:.4}")).unwrap_or_default();
        let line = format!(
            "{:<width$} {:>8} {:>3} {:>3}  {channels:<14} {norm:>10}",
            layer.module, layer.kernel, layer.temporal_atoms, layer.spatial_atoms
        );
        println!("{}", line.trim_end());
    }
    report.sets.iter().take(SETS).for_each(print_set);
    if report.sets.len() > SETS {
        println!("\n{} more sets of atoms (--json has them)", report.sets.len() - SETS);
    }
}

fn print_set(set: &AtomSetReport) {
    let of = if set.layers > 1 { format!("{}, {} layers", set.of, set.layers) } else { set.of.clone() };
    let [height, width] = set.grid;
    for (what, atoms, grid, likeness) in [
        (
            "temporal",
            &set.temporal,
            [1, set.temporal.first().map_or(1, |atom| atom.taps.len())],
            &set.temporal_likeness,
        ),
        ("spatial", &set.spatial, [height, width], &set.spatial_likeness),
    ] {
        if atoms.is_empty() {
            continue;
        }
        println!(
            "\n{of}: {what} atoms, {}",
            if grid == [1, 1] {
                "1 tap".to_owned()
            } else if grid[0] == 1 {
                format!("{} taps", grid[1])
            } else {
                format!("{} x {} taps", grid[0], grid[1])
            }
        );
        print_lines(atoms, likeness);
        match grid.iter().all(|taps| *taps <= TAPS) {
            true => print_grids(&atoms[..atoms.len().min(ATOMS)], grid),
            false => println!("too large to be drawn (--json has the taps)"),
        }
    }
}

/// Prints norms, shares and cosines, a line for each atom.
fn print_lines(atoms: &[FilterAtomReport], likeness: &[Vec<f64>]) {
    let (share, change) = (atoms[0].share.is_some(), atoms[0].change.is_some());
    let heads = [("", true), ("    share", share), ("   change", change)];
    let heads: String = heads.iter().filter(|(_, shown)| *shown).map(|(head, _)| *head).collect();
    println!("atom    norm{heads}   cosine with each atom");
    for (i, (atom, cosines)) in atoms.iter().zip(likeness).enumerate() {
        let percent = |value: Option<f64>| value.map(|value| format!(" {:>6.2} %", 100.0 * value)).unwrap_or_default();
        let cosines: Vec<String> = cosines.iter().take(ATOMS).map(|cosine| format!("{cosine:>5.2}")).collect();
        let numbers = [percent(atom.share), percent(atom.change)].concat();
        println!("{:<4} {:>7.3}{numbers}   {}", format!("#{i}"), atom.norm, cosines.join(" "));
    }
}

/// Draws atoms side by side. A tap is a number from -9 to 9: ninths of the atom's largest tap.
fn print_grids(atoms: &[FilterAtomReport], [height, width]: [usize; 2]) {
    let cell = (3 * width).max(4);
    let per_line = (LINE / (cell + 2)).max(1);
    for (chunk, atoms) in atoms.chunks(per_line).enumerate() {
        let first = chunk * per_line;
        let heads: Vec<String> = (first..first + atoms.len()).map(|i| format!("{:<cell$}", format!("#{i}"))).collect();
        println!("{}", heads.join("  ").trim_end());
        for line in 0..height {
            let part = |atom: &FilterAtomReport| -> String {
                let largest =
                    atom.taps.iter().fold(0.0f64, |largest, tap| largest.max(tap.abs())).max(f64::MIN_POSITIVE);
                let taps = &atom.taps[line * width..][..width];
                let drawn: String =
                    taps.iter().map(|tap| format!("{:>3}", (9.0 * tap / largest).round() as i32)).collect();
                format!("{drawn:<cell$}")
            };
            println!("{}", atoms.iter().map(part).collect::<Vec<_>>().join("  ").trim_end());
        }
    }
}
