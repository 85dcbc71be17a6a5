//! A fresh bank's start, and a bank that grows.

use std::fs;
use std::path::{Path, PathBuf};

use atombank::bank::{AtomBank, InstructionEncoder, Request, RoutedBy, route};
use atombank::model::{LanguageModel, Residence, Sequence};
use atombank::train::{TrainConfig, TrainingRow};
use candle_core::Device;
use serde_json::Value;

use crate::common::fixtures;
use crate::program::{INPUT, atombank, done, refused, text};

/// A folder with rows of five of the demo's instructions, and of the sixth.
struct Rows {
    dir: tempfile::TempDir,
    old: Vec<String>,
    new: String,
}

impl Rows {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rows = TrainingRow::read_all(&fixtures().join("demo/train.jsonl")).unwrap();
        let mut texts: Vec<String> = Vec::new();
        for row in &rows {
            if !texts.contains(&row.instruction) {
                texts.push(row.instruction.clone());
            }
        }
        let new = texts.pop().unwrap();
        let write = |name: &str, keeps: &dyn Fn(&TrainingRow) -> bool| {
            let lines = rows.iter().filter(|row| keeps(row)).take(60).map(|row| serde_json::to_string(row).unwrap());
            fs::write(dir.path().join(name), lines.map(|line| line + "\n").collect::<String>()).unwrap();
        };
        write("old.jsonl", &|row| row.instruction != new);
        write("new.jsonl", &|row| row.instruction == new);
        write("mixed.jsonl", &|_| true);
        Self { dir, old: texts, new }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The arguments of a short training of `output` on the rows of a file.
    fn train(&self, output: &str, data: &str, more: &[&str]) -> Vec<String> {
        let config = fixtures().join("demo/bank.toml");
        let mut args = vec!["train".to_owned(), text(&config).to_owned(), "--quiet".to_owned()];
        let path = |key: &str, path: &Path| format!("{key}='{}'", path.display());
        let sets = [
            path("base", &fixtures().join("demo/base")),
            path("output", &self.at(output)),
            path("data.train", &self.at(data)),
            path("data.eval", &self.at(data)),
        ];
        let short = ["training.steps=4", "training.batch_size=8", "training.eval_every=0", "training.warmup_steps=0"];
        for set in sets.iter().map(String::as_str).chain(short).chain(more.iter().copied()) {
            args.extend(["--set".to_owned(), set.to_owned()]);
        }
        args
    }

    /// Grows the bank in `from`; other settings of the training file are those of the bank.
    fn grow(&self, from: &str, output: &str, data: &str, more: &[&str]) -> Vec<String> {
        let from = format!("from='{}'", self.at(from).display());
        self.train(output, data, &[&["kind=grow", &from], more].concat())
    }
}

fn run(args: &[String]) -> String {
    done(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn fails(args: &[String]) -> String {
    refused(INPUT, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn bits(alphas: &[f32]) -> Vec<u32> {
    alphas.iter().map(|alpha| alpha.to_bits()).collect()
}

#[test]
fn a_bank_with_its_encoder_in_its_folder_grows() {
    let rows = Rows::new();
    let encoder = fixtures().join("sentence/encoder");
    let own = rows.at("bank").join("encoder");
    fs::create_dir_all(&own).unwrap();
    for file in fs::read_dir(&encoder).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), own.join(file.file_name())).unwrap();
    }
    run(&rows.train("bank", "old.jsonl", &["adapter.instruction_encoder='encoder'", "training.steps=2"]));
    run(&rows.grow("bank", "grown", "new.jsonl", &["training.steps=2"]));
    let grown = rows.at("grown");
    assert_eq!(fs::read_dir(grown.join("encoder")).unwrap().count(), fs::read_dir(&encoder).unwrap().count());
    // A resumed run, and the grown bank by itself, find it too.
    let resumed = rows.grow("bank", "grown", "new.jsonl", &["training.steps=2"]);
    run(&[resumed, vec!["--resume".to_owned()]].concat());
    fs::remove_dir_all(rows.at("bank")).unwrap();
    let base = fixtures().join("demo/base");
    done(&["route", text(&base), text(&grown), "--instruction", &rows.new, "--routing", "prior"]);
}

#[test]
fn a_bank_begins_with_orthogonal_atoms_and_takes_off_the_mean_of_its_instructions() {
    let rows = Rows::new();
    run(&rows.train("bank", "old.jsonl", &["training.steps=1", "training.learning_rate=0"]));
    let bank = AtomBank::open(&rows.at("bank")).unwrap();
    assert_eq!(bank.instructions, rows.old);
    let r = bank.config.r;
    for atom in bank.atoms().values.chunks_exact(r * r) {
        for (i, a) in atom.chunks_exact(r).enumerate() {
            for (j, b) in atom.chunks_exact(r).enumerate() {
                let dot: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                assert!((dot - f32::from(i == j)).abs() < 1e-5, "{i} {j}: {dot}");
            }
        }
    }
    let model = LanguageModel::open(&fixtures().join("demo/base"), Residence::Memory, &Device::Cpu).unwrap();
    let mut mean = vec![0f64; bank.config.instruction_dim];
    for text in &rows.old {
        let instruction = model.encoder.encode(text, false).unwrap();
        let sequence = Sequence { instruction, ..Sequence::default() };
        let e = InstructionEncoder::BaseEmbeddings.embed(model.decoder.weights(), &[sequence]).unwrap();
        let e = e.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        mean.iter_mut().zip(e).for_each(|(mean, e)| *mean += f64::from(e) / rows.old.len() as f64);
    }
    let center = &bank.tensors["atom_bank.instruction_center"].values;
    assert!(center.iter().zip(&mean).all(|(center, mean)| (f64::from(*center) - mean).abs() < 1e-6));

    // One instruction has nothing to be told from.
    run(&rows.train("one", "new.jsonl", &["training.steps=1"]));
    let one = AtomBank::open(&rows.at("one")).unwrap();
    assert!(!one.tensors.contains_key("atom_bank.instruction_center"));
    assert_eq!(one.instructions, std::slice::from_ref(&rows.new));
}

#[test]
fn a_grown_bank_does_what_it_did_bit_for_bit() {
    let rows = Rows::new();
    run(&rows.train("bank", "old.jsonl", &[]));
    let args = rows.grow("bank", "grown", "new.jsonl", &["training.checkpoint_every=2"]);
    let said: Value = serde_json::from_str(&run(&[args.as_slice(), &["--json".to_owned()]].concat())).unwrap();
    // 8 factors A get a row of 128, B one column each (4 x 128 and 4 x 64), and the atom has 9 x 9 values.
    assert_eq!(said["parameters"], 8 * 128 + 4 * (128 + 64) + 81);
    let (old, new) = (AtomBank::open(&rows.at("bank")).unwrap(), AtomBank::open(&rows.at("grown")).unwrap());
    let before = new.before_growth().unwrap();
    assert_eq!((&before.config, &before.tensors), (&old.config, &old.tensors));
    assert_eq!(new.instructions, [rows.old.as_slice(), std::slice::from_ref(&rows.new)].concat());
    assert_ne!(new.atoms().values[8 * 81..], vec![0.0; 81], "the new atom is trained");

    let model = LanguageModel::open(&fixtures().join("demo/base"), Residence::Memory, &Device::Cpu).unwrap();
    let routed = |bank: &AtomBank, instruction: &str| {
        let prompts = ["garden".to_owned(), "window".to_owned(), String::new()].to_vec();
        let request = Request { instruction: instruction.to_owned(), prompts };
        route(&model.decoder, bank, &model.encoder, &request, RoutedBy::Model).unwrap()
    };
    for instruction in rows.old.iter().map(String::as_str).chain([""]) {
        let (old, new) = (routed(&old, instruction), routed(&new, instruction));
        for (old, new) in old.by_prompt.iter().flatten().zip(new.by_prompt.iter().flatten()) {
            assert_eq!((bits(old), 0.0), (bits(&new[..8]), new[8]), "{instruction}");
        }
    }
    for alphas in routed(&new, &rows.new).by_prompt.iter().flatten() {
        assert_eq!(alphas[8], 1.0);
    }

    // Its growth continues from a checkpoint, to the same bits, and not for another bank of the same name.
    fs::remove_dir_all(rows.at("grown/checkpoint-000004")).unwrap();
    let weights = fs::read(rows.at("grown/adapter_model.safetensors")).unwrap();
    let resumed = [args.as_slice(), &["--resume".to_owned()]].concat();
    run(&resumed);
    assert_eq!(fs::read(rows.at("grown/adapter_model.safetensors")).unwrap(), weights);
    let mut other = old.clone();
    let atoms = other.tensors.get_mut("atom_bank.atoms").unwrap();
    atoms.values = atoms.values.iter().map(|value| value * 2.0).collect();
    other.save_over(&rows.at("bank")).unwrap();
    let line = fails(&resumed);
    assert!(line.contains("the bank that grows: expected") && line.contains("found another one under"), "{line}");

    // A GGUF holds the whole bank, too.
    let gguf = rows.at("grown.gguf");
    done(&["convert", text(&rows.at("grown")), "-o", text(&gguf)]);
    let opened = AtomBank::open(&gguf).unwrap();
    assert_eq!((&opened.config, &opened.tensors), (&new.config, &new.tensors));
    assert_eq!(opened.instructions, new.instructions);
}

#[test]
fn growth_is_refused_in_one_line_where_it_would_break_something() {
    let rows = Rows::new();
    run(&rows.train("bank", "old.jsonl", &["training.steps=1"]));
    let line = fails(&rows.grow("bank", "out", "mixed.jsonl", &[]));
    assert!(line.contains("data.train: expected rows of one instruction, which the bank doesn't have yet"), "{line}");
    fs::write(rows.at("known.jsonl"), fs::read_to_string(rows.at("old.jsonl")).unwrap().lines().next().unwrap())
        .unwrap();
    let line = fails(&rows.grow("bank", "out", "known.jsonl", &[]));
    assert!(line.contains(&format!("found {:?}, which it has", rows.old[0])), "{line}");
    fs::write(rows.at("none.jsonl"), "{\"prompt\": \"a\", \"completion\": \"b\"}\n").unwrap();
    let line = fails(&rows.grow("bank", "out", "none.jsonl", &[]));
    assert!(line.contains("found no instruction in row 1"), "{line}");
    let line = fails(&rows.grow("bank", "out", "new.jsonl", &["adapter.block_size=1"]));
    assert!(line.contains("adapter.block_size: expected 2, as in the bank that grows, found 1"), "{line}");
    assert!(!rows.at("out").exists());

    // A bank of an earlier version doesn't keep its instructions: a file gives them.
    let bank = AtomBank { instructions: Vec::new(), ..AtomBank::open(&rows.at("bank")).unwrap() };
    bank.save(&rows.at("earlier"), false).unwrap();
    let line = fails(&rows.grow("earlier", "out", "new.jsonl", &[]));
    assert!(line.contains("instructions: expected the texts of the instructions that it was trained with"), "{line}");
    fs::write(rows.at("texts"), rows.old.join("\n")).unwrap();
    let given = format!("instructions='{}'", rows.at("texts").display());
    let out = atombank(
        &rows
            .grow("earlier", "out", "new.jsonl", &["training.steps=1", &given])
            .iter()
            .map(String::as_str)
            .filter(|argument| *argument != "--quiet")
            .collect::<Vec<_>>(),
    );
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        out.status.success() && said.contains("the bank's earlier instructions are as they were: on 5 texts"),
        "{said}"
    );
    assert_eq!(AtomBank::open(&rows.at("out")).unwrap().instructions.len(), 6);
}

#[test]
fn sizes_of_a_bank_follow_its_instructions_unless_they_are_given() {
    let config = |changes: &[&str]| {
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "base = 'b'\noutput = 'o'\n[data]\ntrain = 't'\n").unwrap();
        TrainConfig::open(file.path(), &changes).unwrap()
    };
    for (changes, instructions, expected) in [
        (&[][..], 0, [8, 8, 8, 8]),
        (&[], 6, [8, 8, 8, 8]),
        (&[], 24, [24, 24, 8, 8]),
        (&["adapter.r=4"], 24, [16, 16, 8, 8]),
        (&["adapter.num_atoms=4", "adapter.key_dim=2"], 24, [4, 4, 2, 8]),
        (&["adapter.top_k=12"], 6, [12, 12, 8, 8]),
        (&["adapter.top_k=4", "adapter.descriptor_dim=3"], 100_000, [64, 4, 8, 3]),
    ] {
        let a = config(changes).sized(instructions).adapter;
        let found = [a.num_atoms, a.top_k, a.key_dim, a.descriptor_dim].map(Option::unwrap);
        assert_eq!(found, expected, "{changes:?} {instructions}");
    }
}

#[test]
fn a_run_whose_sizes_follow_the_data_resumes_with_them() {
    let rows = Rows::new();
    let demo = fixtures().join("demo/base");
    let config = format!(
        "base = {:?}\noutput = {:?}\n[data]\ntrain = {:?}\n[training]\nbatch_size = 4\nschedule = 'constant'\nsteps = 1\n",
        text(&demo),
        text(&rows.at("run")),
        text(&rows.at("old.jsonl"))
    );
    fs::write(rows.at("run.toml"), config).unwrap();
    let file = rows.at("run.toml");
    let train = ["train", text(&file), "--quiet"];
    done(&train);
    let bank = AtomBank::open(&rows.at("run")).unwrap();
    assert_eq!((bank.config.num_atoms, bank.config.top_k, bank.config.key_dim), (8, 8, 8));
    let more = ["--resume", "--set", "training.steps=2"];
    let line = refused(INPUT, &[&train[..], &more, &["--set", "adapter.num_atoms=9"]].concat());
    assert!(line.contains("adapter.num_atoms: expected 8, as the run began with, found 9"), "{line}");
    done(&[&train[..], &more].concat());
}
