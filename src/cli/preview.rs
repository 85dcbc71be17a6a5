//! `atombank train --preview`: rows as tokens, with those that carry loss marked.

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::error::counted;
use atombank::train::{PreviewRow, TrainConfig, preview};

use super::Common;
use super::input::{Input, with_inputs};
use super::train::with_base;

/// The width of a line of tokens, in characters.
const WIDTH: usize = 100;

/// Prints the first `count` rows of a run.
pub(crate) fn run(config: &TrainConfig, count: usize, json: bool, common: &Common) -> Result<()> {
    let input = [Input::new(&config.base, Need::Model)];
    let preview = with_inputs(&input, common, |found| Ok(preview(&with_base(config, found), count)?))?.made;
    if json {
        println!("{}", serde_json::to_string_pretty(&preview)?);
        return Ok(());
    }
    for row in &preview.rows {
        print_row(row);
    }
    let all = counted(preview.total, "row");
    println!("{} of {all}; tokens that carry loss are marked with >", preview.rows.len());
    if !common.quiet {
        preview.notes.iter().for_each(|note| eprintln!("note: {note}"));
    }
    Ok(())
}

fn print_row(row: &PreviewRow) {
    let with_loss = row.mask.iter().filter(|marked| **marked == 1).count();
    let (tokens, carry) = (counted(row.ids.len(), "token"), if with_loss == 1 { "carries" } else { "carry" });
    let route = if row.routed == 1 { "routes" } else { "route" };
    println!("{}: {tokens}, {with_loss} {carry} loss, the first {} {route}", row.row, row.routed);
    let mut start = 0;
    // A run of tokens with or without loss is on lines of its own.
    for run in row.mask.chunk_by(|a, b| a == b) {
        let mark = if run[0] == 1 { "  > " } else { "    " };
        let mut line = String::new();
        for token in &row.tokens[start..start + run.len()] {
            let token = token.escape_debug().to_string();
            if !line.is_empty() && line.chars().count() + token.chars().count() >= WIDTH {
                println!("{mark}{line}");
                line.clear();
            }
            line += &token;
            line.push('|');
        }
        println!("{mark}{line}");
        start += run.len();
    }
}
