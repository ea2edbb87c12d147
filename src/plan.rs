//! What a forward pass of a model would cost on an ideal device, and the memory it would take: the model itself, run
//! on the meta backend, which computes nothing. A configuration is enough; no weight is read.

use crate::Error;
use crate::load::WeightSource;
use crate::models;
use crate::nn::{Batch, Layout, Precision};
use portolan_core::{CommConfig, Communicator, Device, Lens, OpKind, Registry, Stream, StreamOptions};
use portolan_meta::{Count, MetaBackend, MetaOptions};
use portolan_ops::{Cost, DType, Determinism, OpError, TensorSpec};
use std::time::Duration;

/// Which pass to plan.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// Tokens of each sequence that run in this pass.
    pub tokens: usize,
    /// Tokens of each sequence that are in the cache before.
    pub cached: usize,
    /// Sequences.
    pub batch: usize,
    /// Ranks that share the model, of which one is planned.
    pub ranks: u32,
    /// How products treat activations, and the width of the cache.
    pub precision: Precision,
    /// How fused operators are counted.
    pub count: Count,
}

impl Default for PlanOptions {
    /// One token of one sequence on one rank, exact, every operator as one kernel.
    fn default() -> Self {
        Self { tokens: 1, cached: 0, batch: 1, ranks: 1, precision: Precision::Exact, count: Count::Fused }
    }
}

/// What one kind of operator costs in all its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanRow {
    /// The operator.
    pub kind: OpKind,
    /// Calls.
    pub calls: u64,
    /// Their cost.
    pub cost: Cost,
}

/// What a pass costs.
///
/// Bytes are those of an ideal kernel: each operand read or written once, weights too, whatever stays in a
/// processor's caches. Tokens are taken to be routed evenly to experts. Of several ranks it is the first one, which has no
/// less to do than any other; the bytes it sends are those of the algorithms that send least.
#[derive(Clone, Debug)]
pub struct Plan {
    /// By operator, in the order of [`OpKind`].
    pub operators: Vec<PlanRow>,
    /// The sum.
    pub total: Cost,
    /// Bytes of the weights on the device; of several ranks, with what finds experts.
    pub weight_bytes: usize,
    /// Bytes of what is kept of tokens, with room for this pass: keys and values, or a recurrence's state.
    pub kv_bytes: usize,
    /// The most bytes alive at one time: weights, cache, activations, scratch.
    pub peak_bytes: usize,
}

/// Plans a forward pass that asks for the logits of each sequence's last token.
///
/// ```
/// use portolan::models::embedded;
/// use portolan::plan::{PlanOptions, plan};
///
/// let prefill = plan(&embedded()?, &PlanOptions { tokens: 512, ..PlanOptions::default() })?;
/// let decode = plan(&embedded()?, &PlanOptions { cached: 512, ..PlanOptions::default() })?;
/// assert_eq!(prefill.weight_bytes, decode.weight_bytes);
/// // A token alone reads the weights for itself.
/// let intensity = |cost: portolan::Cost| cost.flops as f64 / cost.bytes_read as f64;
/// assert!(intensity(prefill.total) > 10.0 * intensity(decode.total));
/// # Ok::<(), portolan::Error>(())
/// ```
///
/// # Errors
/// Those of the model's configuration; `Prompt` for more tokens than the model was made for, or none; `Shape` and
/// `OutOfMemory` for extents that no device has room for.
pub fn plan(source: &dyn WeightSource, options: &PlanOptions) -> Result<Plan, Error> {
    let meta = MetaBackend::new(MetaOptions { count: options.count, ..MetaOptions::default() });
    let device = Registry::new().with(meta).open("meta:0")?;
    let alive = || device.memory().map(|memory| memory.live_bytes);

    let loading = device.stream(StreamOptions::default())?;
    let layout = layout(&device, &loading, options.ranks)?;
    let joined = alive()?;
    let model = models::load_rank(&loading, source, options.precision, &layout, &mut |_, _| {})?;
    let weight_bytes = alive()? - joined;

    let (len, max) = (options.tokens.saturating_add(options.cached), model.info().max_context);
    if options.tokens == 0 || len > max {
        return Err(Error::Prompt { tokens: if options.tokens == 0 { 0 } else { len }, max });
    }
    let mut cache = model.cache(&loading, options.batch, len)?;
    let kv_bytes = alive()? - joined - weight_bytes;

    let stream = device.stream(StreamOptions::default())?;
    model.forward(&stream, &batch(&stream, options, len)?, &mut cache)?;
    let report = stream.report();
    let (rows, total) = match options.count {
        Count::Fused => (report.operators.iter().map(|row| row.fused).collect::<Vec<_>>(), report.fused),
        Count::Composed => (report.operators.iter().map(|row| row.composed).collect(), report.composed),
    };
    let operators = report.operators.iter().zip(rows);
    Ok(Plan {
        operators: operators.map(|(row, cost)| PlanRow { kind: row.kind, calls: row.calls, cost }).collect(),
        total,
        weight_bytes,
        kv_bytes,
        peak_bytes: device.memory()?.peak_live_bytes,
    })
}

/// The share of the first of so many ranks.
fn layout(device: &Device, stream: &Stream, ranks: u32) -> Result<Layout, Error> {
    if ranks == 1 {
        return Ok(Layout::default());
    }
    let id = device.backend().new_id()?;
    // Nobody is waited for where nothing is sent.
    let (timeout, determinism) = (Duration::ZERO, Determinism::Fast);
    let config = CommConfig { id, rank: 0, world_size: ranks, timeout, determinism };
    Ok(Layout::of_rank(&Communicator::join(stream, &config)?))
}

/// The operands of a pass in which all sequences are alike. Only lengths are known to the host: what they are decides
/// what is visible to attention, while tokens cost the same whichever they are.
fn batch(stream: &Stream, options: &PlanOptions, len: usize) -> Result<Batch, Error> {
    let numbers = |n: usize| stream.empty(&TensorSpec::of(DType::I32, &[n])?);
    let lens = |each: usize| -> Result<Lens, OpError> {
        let each =
            u32::try_from(each).map_err(|_| OpError::shape("plan", format!("{each} tokens a sequence")))?;
        Lens::new(numbers(options.batch)?, each, Some(vec![each; options.batch].into()))
    };
    let tokens = options.tokens.saturating_mul(options.batch);
    Ok(Batch {
        ids: numbers(tokens)?,
        positions: numbers(tokens)?,
        q_lens: lens(options.tokens)?,
        kv_lens: lens(len)?,
        logit_rows: Some(numbers(options.batch)?),
    })
}
