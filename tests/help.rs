//! Tests that `--help` of every command lists each option under the right heading.

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeMap;

use program::done;

/// Each command's own options, without `--help`.
const OWN: [(&str, &[&str]); 20] = [
    ("demo", &["--output", "--overwrite", "--set", "--device", "--json"]),
    (
        "train",
        &[
            "--set",
            "--preview",
            "--resume",
            "--dry-run",
            "--init",
            "--from-axolotl",
            "--max-memory",
            "--device",
            "--json",
        ],
    ),
    (
        "bake",
        &[
            "--instruction",
            "--prompt",
            "--routing",
            "--alphas",
            "--all",
            "--key",
            "--strip-prefix",
            "--expand-shared",
            "--into",
            "--into-key",
            "--no-verify",
            "--device",
            "--json",
        ],
    ),
    (
        "bank build",
        &["--output", "--rank", "--describe", "--encoder", "--top-k", "--device", "--overwrite", "--dry-run", "--json"],
    ),
    (
        "bank decompose",
        &[
            "--output",
            "--spatial-atoms",
            "--temporal-atoms",
            "--energy",
            "--shared",
            "--targets",
            "--exclude",
            "--type",
            "--key",
            "--overwrite",
            "--dry-run",
            "--json",
        ],
    ),
    (
        "bank swap",
        &[
            "--output",
            "--dilate-time",
            "--dilate-space",
            "--resize-time",
            "--resize-space",
            "--atoms-from",
            "--overwrite",
            "--dry-run",
            "--json",
        ],
    ),
    (
        "merge",
        &[
            "--config",
            "--key",
            "--strip-prefix",
            "--expand-shared",
            "--into",
            "--into-key",
            "--keep-base",
            "--base-quant",
            "--double-quant",
            "--as",
            "--tokenizer",
            "--tokenizer-source",
            "--pad-to-multiple-of",
            "--json",
        ],
    ),
    ("merge moe", &["--seed", "--allow-all-same", "--device", "--json"]),
    (
        "merge search",
        &[
            "--data",
            "--text",
            "--kl",
            "--ctx",
            "--chunks",
            "--trials",
            "--search",
            "--range",
            "--as",
            "--output",
            "--write",
            "--overwrite",
            "--device",
            "--json",
        ],
    ),
    (
        "extract",
        &[
            "--key-a",
            "--key-b",
            "--strip-prefix",
            "--rank",
            "--energy",
            "--sv-epsilon",
            "--include-regex",
            "--exclude-regex",
            "--save-module",
            "--embed-lora",
            "--skip-undecomposable",
            "--seed",
            "--json",
        ],
    ),
    (
        "tokensurgeon",
        &[
            "--method",
            "--k",
            "--cosine-similarity",
            "--weight-scheme",
            "--subword-method",
            "--byte-match",
            "--prefix-match",
            "--magikarp",
            "--seed",
            "--json",
        ],
    ),
    ("families", &["--json"]),
    ("route", &["--instruction", "--prompt", "--data", "--prompts", "--routing", "--device", "--json"]),
    (
        "generate",
        &[
            "--adapter",
            "--show-routing",
            "--instruction",
            "--prompt",
            "--template",
            "--max-tokens",
            "--ignore-eos",
            "--save-logits",
            "--device",
            "--json",
        ],
    ),
    (
        "imatrix",
        &[
            "--output",
            "--ctx",
            "--chunks",
            "--process-output",
            "--output-format",
            "--device",
            "--overwrite",
            "--dry-run",
            "--json",
        ],
    ),
    (
        "convert",
        &[
            "--key",
            "--names-from",
            "--dense-kernels",
            "--strip-prefix",
            "--expand-shared",
            "--into",
            "--into-key",
            "--base",
            "--metadata",
            "--model-name",
            "--override-key",
            "--vocab-only",
            "--no-nextn",
            "--mtp",
            "--mmproj",
            "--with-mmproj",
            "--target-model-dir",
            "--sentence-transformers-dense-modules",
            "--fuse-qkv",
            "--fuse-gate-up-exps",
            "--generic",
            "--as",
            "--json",
        ],
    ),
    (
        "experiment",
        &[
            "--output",
            "--overwrite",
            "--seeds",
            "--tuning-seeds",
            "--hurry",
            "--table",
            "--without",
            "--chosen",
            "--json",
        ],
    ),
    ("quantize", &["--override-key", "--json"]),
    ("inspect", &["--key", "--strip-prefix", "--as", "--tensors", "--json"]),
    ("compare", &["--key-a", "--key-b", "--strip-prefix", "--tensors", "--json"]),
];

/// Options about the output, of every command that writes a checkpoint.
const OUTPUT: [&str; 12] = [
    "--output",
    "--to",
    "--type",
    "--shard-size",
    "--split-max-size",
    "--split-max-tensors",
    "--bigendian",
    "--pre",
    "--max-memory",
    "--overwrite",
    "--sync",
    "--dry-run",
];

const QUANTIZATION: [&str; 11] = [
    "--imatrix",
    "--include-weights",
    "--exclude-weights",
    "--tensor-type",
    "--tensor-type-file",
    "--output-tensor-type",
    "--token-embedding-type",
    "--pure",
    "--leave-output-tensor",
    "--allow-requantize",
    "--prune-layers",
];

const COMBINING: [&str; 23] = [
    "--method",
    "--density",
    "--weights",
    "--seed",
    "--rank",
    "--lambda",
    "--epsilon",
    "--gamma",
    "--normalize",
    "--rescale",
    "--t",
    "--select-topk",
    "--max-iter",
    "--tol",
    "--filter-wise",
    "--nuslerp-updates",
    "--nuslerp-flatten",
    "--nuslerp-row-wise",
    "--multislerp-updates",
    "--r",
    "--alpha",
    "--scale",
    "--majority-sign",
];

/// Commands that write a checkpoint with a plan.
const WRITERS: [&str; 7] = ["bake", "merge", "merge moe", "extract", "tokensurgeon", "convert", "quantize"];

/// The options that `--help` lists under each heading.
fn listed(command: &str) -> BTreeMap<String, Vec<String>> {
    let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut heading = String::new();
    for line in done(&args).lines() {
        let words = line.trim_start();
        match line.strip_suffix(':').filter(|_| !line.starts_with(' ')) {
            Some(text) => text.clone_into(&mut heading),
            // Descriptions, and lists of values in them, are indented further.
            None if words.starts_with('-') && (2..=6).contains(&(line.len() - words.len())) => {
                let option = words.split([' ', ',', '=']).find(|word| word.starts_with("--")).unwrap();
                found.entry(heading.clone()).or_default().push(option.to_owned());
            }
            None => {}
        }
    }
    found
}

#[test]
fn options_stand_below_headings_that_fit() {
    for (command, own) in OWN {
        let mut expected = BTreeMap::from([
            ("Options", own.to_vec()),
            ("Common options", vec!["--quiet", "--threads", "--kernel", "--family", "--refresh"]),
        ]);
        expected.get_mut("Options").unwrap().push("--help");
        if WRITERS.contains(&command) {
            expected.insert("Output", OUTPUT.to_vec());
            expected.insert("Quantization", QUANTIZATION.to_vec());
        }
        if ["merge", "merge search"].contains(&command) {
            expected.insert("Combining", COMBINING.to_vec());
        }
        let found = listed(command);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{command}");
        for (heading, options) in expected {
            let mut found = found[heading].clone();
            let mut options = options.to_vec();
            found.sort();
            options.sort_unstable();
            assert_eq!(found, options, "{command}: {heading}");
        }
    }
}

#[test]
fn every_command_is_listed_here() {
    let help = done(&["--help"]);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let mut commands: Vec<&str> = listed.filter(|line| !line.starts_with("   ")).map(|line| line.trim()).collect();
    commands = commands.iter().map(|line| line.split(' ').next().unwrap()).filter(|name| *name != "help").collect();
    let mut known: Vec<&str> = OWN.iter().map(|(command, _)| command.split(' ').next().unwrap()).collect();
    commands.sort_unstable();
    known.sort_unstable();
    known.dedup();
    assert_eq!(commands, known);
}

#[test]
fn what_the_readme_says_of_options_is_so() {
    let has = |command: &str, option: &str| listed(command).values().flatten().any(|found| found == option);
    for (command, _) in OWN {
        assert!(has(command, "--json"), "{command}");
        // `generate` and `train` always write new files.
        let writes = !["train", "route", "generate", "inspect", "compare", "families"].contains(&command);
        assert_eq!(has(command, "--overwrite"), writes, "{command}");
        // Demos, experiments and searches write what they computed, and nothing that could be planned.
        let planned = writes && !["demo", "experiment", "merge search"].contains(&command);
        assert_eq!(has(command, "--dry-run"), planned || command == "train", "{command}");
    }
}
