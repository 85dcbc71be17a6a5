//! `atombank convert`: converts models, tensors, adapters and banks between all forms.

use std::path::{Path, PathBuf, absolute};

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::convert::{Content, Fuse};
use atombank::error::Finding;
use atombank::jobs::{self, ConvertSettings};
use clap::Args;
use serde_json::{Map, Value};

use super::Common;
use super::alone::AloneArgs;
use super::input::{Found, Input, Made, parse_content, with_inputs_to};
use super::output::{OutputArgs, planned, print_written};

/// Arguments of `convert`.
#[derive(Args)]
pub(crate) struct ConvertArgs {
    /// A model or adapter folder, a .gguf, .safetensors, .bin, .pt, .pth or .ckpt file, or a name on
    /// the Hugging Face hub: hf:org/name[@revision]
    input: String,
    /// The part of a PyTorch file to convert, such as state_dict
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// What names the tensors under --key get, where those are a list of averages: those under another key, of another
    /// file, or under a key of it, FILE:KEY
    #[arg(long, value_name = "KEY|FILE[:KEY]", requires = "key")]
    names_from: Option<String>,
    /// Write dense kernels in place of the coefficients and atoms of convnet_finetune, DCFNet-Pytorch and CL_Atom_Swapping
    #[arg(long)]
    dense_kernels: bool,
    #[command(flatten)]
    alone: AloneArgs,
    /// The base model, for a LoRA: names and shapes of the weights that it changes. A folder, of which config.json is
    /// enough, or a GGUF
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// JSON with general.* keys for the GGUF, which take precedence over the model card
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// The model's name in the GGUF
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Give a key of the GGUF another value: KEY=VALUE or KEY=TYPE:VALUE; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    override_key: Vec<String>,
    /// Write a GGUF with only the vocabulary
    #[arg(long)]
    vocab_only: bool,
    /// Leave out the layers for multi-token prediction
    #[arg(long, alias = "no-mtp", conflicts_with_all = ["mtp", "mmproj"])]
    no_nextn: bool,
    /// Write only the layers for multi-token prediction, with the embeddings and the head that they share with the model
    #[arg(long, conflicts_with = "mmproj")]
    mtp: bool,
    /// Write the projector of a multimodal model, which turns images or sound into embeddings, and not its text model
    #[arg(long, conflicts_with = "vocab_only")]
    mmproj: bool,
    /// Write the projector of a multimodal model, too, to this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mmproj", "mtp", "vocab_only", "generic"])]
    with_mmproj: Option<PathBuf>,
    /// For a model that makes drafts for another: that model's folder, whose vocabulary is taken; it needs no weights
    #[arg(long, value_name = "FOLDER")]
    target_model_dir: Option<PathBuf>,
    /// Convert the dense layers that sentence-transformers puts behind the model, too
    #[arg(long)]
    sentence_transformers_dense_modules: bool,
    /// Join the queries, keys and values of each layer: attn_qkv in place of attn_q, attn_k and attn_v
    #[arg(long)]
    fuse_qkv: bool,
    /// Join the gates and the projections up of each layer's experts: ffn_gate_up_exps
    #[arg(long)]
    fuse_gate_up_exps: bool,
    /// Write a GGUF that keeps names and files as they are: for classes without a family and tensors without a config.
    /// It can be converted back to the same folder; llama.cpp can't run it
    #[arg(long)]
    generic: bool,
    /// Without effect: for commands that were written for convert_hf_to_gguf.py, where it is about memory
    #[arg(long, hide = true)]
    no_lazy: bool,
    /// How to read a folder that has both a model and adapter_config.json: model or adapter [default: model]
    #[arg(long = "as", value_name = "CONTENT", value_parser = parse_content)]
    content: Option<Content>,
    /// Print JSON: what was written, or, with --dry-run, what would be
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &ConvertArgs, common: &Common) -> Result<()> {
    let output = args.alone.applied_to(args.output.settings());
    output.check()?;
    if let Some(path) = &args.with_mmproj {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| absolute(path).unwrap_or_default());
        if real(path) == real(&args.output.output) || path.extension().is_none_or(|ending| ending != "gguf") {
            let finding = Finding::new("", "with_mmproj").expected("a name of its own that ends in .gguf");
            return Err(finding.found(format_args!("{:?}", path.display().to_string())).setting().into());
        }
        args.output.settings().beside(path).check()?;
    }
    let need = if args.vocab_only { Need::Vocabulary } else { Need::Everything };
    let values = !args.output.dry_run && !args.vocab_only;
    let mut inputs = vec![Input::new(&args.input, need).values(values)];
    // A LoRA takes names and shapes from its base.
    inputs.extend(args.base.as_deref().map(|base| Input::new(base, Need::Model).values(false)));
    // A model that makes drafts takes the vocabulary of the model they are for.
    inputs.extend(args.target_model_dir.as_deref().map(|target| Input::new(target, Need::Vocabulary).values(false)));
    let convert = |found: &[Found]| {
        let mut others = found[1..].iter().map(|other| other.path.clone());
        let settings = ConvertSettings {
            input: found[0].path.clone(),
            output: output.clone(),
            key: args.key.clone(),
            strip_prefix: args.alone.strip_prefix.clone(),
            names_from: args.names_from.clone(),
            dense_kernels: args.dense_kernels,
            base: args.base.as_ref().and_then(|_| others.next()),
            target_model_dir: args.target_model_dir.as_ref().and_then(|_| others.next()),
            sentence_transformers_dense_modules: args.sentence_transformers_dense_modules,
            metadata: args.metadata.clone(),
            model_name: args.model_name.clone(),
            model_id: found[0].id.clone(),
            override_key: args.override_key.clone(),
            vocab_only: args.vocab_only,
            no_nextn: args.no_nextn,
            mtp: args.mtp,
            mmproj: args.mmproj,
            fuse: Fuse { qkv: args.fuse_qkv, gate_up_experts: args.fuse_gate_up_exps },
            r#as: args.content,
            generic: args.generic,
        };
        let mut made = vec![(settings.output.destination.clone(), args.output.checked(jobs::convert(&settings)?)?)];
        if let Some(path) = &args.with_mmproj {
            let settings = settings.of_projector(path);
            made.push((settings.output.destination.clone(), jobs::convert(&settings)?));
        }
        Ok(made)
    };
    let Made { mut made, outlines } = with_inputs_to(&args.output.settings().destination, &inputs, common, convert)?;
    made.iter_mut().for_each(|(_, output)| outlines.put_real_paths(&mut output.notes));
    // With --json, the projector is a part of the model's description.
    let mut printed = Map::new();
    for (number, (to, output)) in made.iter().enumerate() {
        let written = args.output.write_to(to, output, args.json, common)?;
        print_written(written.as_ref(), args.json, common);
        let described = match written {
            Some(written) => serde_json::to_value(written)?,
            None => Value::Object(planned(output, &to.path)?),
        };
        match (number, described) {
            (0, Value::Object(described)) => printed = described,
            (_, described) => drop(printed.insert("mmproj".to_owned(), described)),
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&printed)?);
    }
    Ok(())
}
