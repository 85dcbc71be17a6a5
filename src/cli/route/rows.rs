//! `atombank route --data` and `--prompts`: which rows of a file pick which atoms.

use anyhow::Result;
use atombank::bank::{AtomBank, BlockUsage, LoadedBank, RoutedBy, RowRouting, Usage, lines_of, route_sequences};
use atombank::checkpoint::hub::Need;
use atombank::error::{Finding, counted};
use atombank::model::{LanguageModel, Residence, Sequence};
use atombank::train::TrainingRow;
use serde_json::json;

use super::{RouteArgs, show, with_option};
use crate::cli::Common;
use crate::cli::input::{Found, Input, with_inputs};
use crate::cli::output::print_notes;

/// The number of rows in a pass.
const PASS: usize = 16;

/// The number of rows that are listed for an atom; all are in the JSON.
const LISTED: usize = 8;

pub(super) fn run(args: &RouteArgs, common: &Common) -> Result<()> {
    let texts = texts(args)?;
    let inputs = [Input::new(&args.base, Need::Model), Input::new(&args.bank, Need::Adapter)];
    let route = |found: &[Found]| routed(args, &texts, found);
    let (rows, note) = with_inputs(&inputs, common, route)?.made;
    print_notes(&note.into_iter().collect::<Vec<_>>(), common);
    let usage = Usage::of(&rows);
    if args.json {
        let json = json!({ "rows": rows, "blocks": usage.blocks, "instructions": usage.instructions,
            "unused": usage.unused });
        println!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(());
    }
    println!("{}, {}", counted(rows.len(), "row"), counted(usage.instructions.len(), "instruction"));
    for (block, of_block) in usage.blocks.iter().enumerate() {
        print_block(block, of_block, &usage);
    }
    if !usage.unused.is_empty() {
        println!("used by no row in any block: {}", atoms(&usage.unused));
    }
    Ok(())
}

/// Instructions and prompts of the rows.
fn texts(args: &RouteArgs) -> Result<Vec<(String, String)>> {
    if let Some(data) = &args.data {
        let rows = TrainingRow::read_all(data)?;
        return Ok(rows.into_iter().map(|row| (row.instruction, row.prompt)).collect());
    }
    let instruction = args.instruction.clone().unwrap_or_default();
    let prompts = args.prompts.as_deref().map(lines_of).transpose()?.unwrap_or_default();
    Ok(prompts.into_iter().map(|prompt| (instruction.clone(), prompt)).collect())
}

/// The routings of the rows, and a note on rows that are longer than the model's context.
fn routed(args: &RouteArgs, texts: &[(String, String)], found: &[Found]) -> Result<(Vec<RowRouting>, Option<String>)> {
    let (base, bank) = (&found[0].path, AtomBank::open(&found[1].path)?);
    let LanguageModel { decoder, encoder } = LanguageModel::open(base, Residence::Mapped, args.device.open()?)?;
    bank.check_base(decoder.config())?;
    let loaded = LoadedBank::frozen(&bank, args.device.open()?)?;
    let template = &bank.config.prompt_template;
    let mut sequences: Vec<Sequence> = Vec::with_capacity(texts.len());
    for (number, (instruction, prompt)) in texts.iter().enumerate() {
        let sequence = loaded.encoder().routed(&encoder, template, instruction, prompt)?;
        if args.routing.by() == RoutedBy::Prior && sequence.instruction.is_empty() {
            let finding = Finding::new(&bank.path, super::PRIOR).expected("an instruction");
            let error = finding.found(format_args!("none in row {}", number + 1)).mismatch();
            return Err(if args.prompts.is_some() { with_option(error) } else { error }.into());
        }
        sequences.push(sequence);
    }
    let mut rows = Vec::with_capacity(texts.len());
    for (part, texts) in sequences.chunks(PASS).zip(texts.chunks(PASS)) {
        let (routings, _) = route_sequences(&decoder, &loaded, part, args.routing.by())?;
        for (alphas, (instruction, prompt)) in routings.into_iter().zip(texts) {
            let (instruction, prompt) = (instruction.clone(), prompt.clone());
            rows.push(RowRouting { row: rows.len() + 1, instruction, prompt, alphas });
        }
    }
    let longest = sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or_default();
    Ok((rows, decoder.length_note(longest)))
}

/// Prints what the rows do in one block: by instruction the mean weights, by atom the rows that give it the largest one.
fn print_block(block: usize, of_block: &BlockUsage, usage: &Usage) {
    let most = (of_block.mean.len() as f64).ln();
    println!("block {block}: entropy of a row {:.2} of {most:.2} nats on average", of_block.entropy);
    let name = |instruction: &str| match instruction {
        "" => "(no instruction)".to_owned(),
        text => text.escape_debug().to_string(),
    };
    let names: Vec<String> = usage.instructions.iter().map(|of| name(&of.instruction)).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).min(40);
    for (name, of) in names.iter().zip(&usage.instructions) {
        let rows = if of.rows == 1 { "row " } else { "rows" };
        println!("  {name:<width$}  {:>5} {rows}  {}", of.rows, show(&of.alphas[block]));
    }
    for (atom, rows) in of_block.picked_by.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let listed: Vec<String> = rows.iter().take(LISTED).map(ToString::to_string).collect();
        let more = if rows.len() > LISTED { ", ..." } else { "" };
        println!("  #{atom} comes first in {}: {}{more}", counted(rows.len(), "row"), listed.join(", "));
    }
    if !of_block.unused.is_empty() {
        println!("  used by no row: {}", atoms(&of_block.unused));
    }
}

fn atoms(numbers: &[usize]) -> String {
    numbers.iter().map(|number| format!("#{number}")).collect::<Vec<_>>().join(" ")
}
