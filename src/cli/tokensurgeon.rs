//! `atombank tokensurgeon`: gives a model another model's vocabulary.

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::jobs::{self, TokensurgeonSettings};
use clap::Args;

use super::input::{Found, Input, Made, with_inputs_to};
use super::output::{OutputArgs, report_written};
use super::{Common, progress};

/// Arguments of `tokensurgeon`.
#[derive(Args)]
#[command(
    after_help = "Tokens that both models have keep MODEL's rows of embeddings and output head; rows of the others \
    are made of rows that both have, or of those of their parts. The methods are mergekit's of the same names."
)]
pub(crate) struct TokensurgeonArgs {
    /// The model that gets another vocabulary: a Hugging Face folder, or a name on the hub: hf:org/name[@revision]
    model: String,
    /// The model whose vocabulary and tokenizer it gets
    donor: String,
    /// How rows of tokens that only DONOR has are made: omp, mp_rope, common_interpolation, subword, mean, zero, randn or
    /// john_hewitt
    #[arg(long, value_name = "NAME", default_value = "omp")]
    method: String,
    /// omp, mp_rope, common_interpolation: how many rows of shared tokens a row is made of [default: 64]
    #[arg(long, value_name = "N")]
    k: Option<usize>,
    /// common_interpolation: compare rows by their angle
    #[arg(long)]
    cosine_similarity: bool,
    /// common_interpolation: the weights of rows: distance_proportional, barycentric or least_squares [default:
    /// distance_proportional]
    #[arg(long, value_name = "NAME")]
    weight_scheme: Option<String>,
    /// subword: what a row is made of those of the token's parts: mean, sum, weighted_mean or first_last [default: mean]
    #[arg(long, value_name = "NAME")]
    subword_method: Option<String>,
    /// Where a byte has the row of its character: yes, no, embed or lm_head. As in mergekit 0.1.5, embed stands for the
    /// output head and lm_head for the embeddings [default: no]
    #[arg(long, value_name = "WHERE")]
    byte_match: Option<String>,
    /// Where a token has the row of the longest token with which it begins: yes, no, embed or lm_head, as above [default:
    /// no]
    #[arg(long, value_name = "WHERE")]
    prefix_match: Option<String>,
    /// Leave out tokens that were hardly trained: their rows are short, or like those of unused tokens
    #[arg(long)]
    magikarp: bool,
    /// randn, john_hewitt: the seed of random numbers [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print JSON: what was written or, with --dry-run, what would be written
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &TokensurgeonArgs, common: &Common) -> Result<()> {
    let output = args.output.settings();
    output.check()?;
    let values = !args.output.dry_run;
    let inputs = [&args.model, &args.donor].map(|input| Input::new(input, Need::Model).values(values));
    let transplant = |found: &[Found]| {
        let settings = TokensurgeonSettings {
            model: found[0].path.clone(),
            donor: found[1].path.clone(),
            output: output.clone(),
            method: args.method.clone(),
            k: args.k,
            cosine_similarity: args.cosine_similarity,
            weight_scheme: args.weight_scheme.clone(),
            subword_method: args.subword_method.clone(),
            byte_match: args.byte_match.clone(),
            prefix_match: args.prefix_match.clone(),
            magikarp: args.magikarp,
            seed: args.seed,
        };
        let (bar, watch) = progress::steps(common.quiet);
        let made = jobs::tokensurgeon(&settings, &watch);
        bar.finish_and_clear();
        args.output.checked(made?)
    };
    let Made { mut made, outlines } = with_inputs_to(&output.destination, &inputs, common, transplant)?;
    outlines.put_real_paths(&mut made.notes);
    let written = args.output.write(&made, args.json, common)?;
    report_written(written.as_ref(), args.json, common)
}
