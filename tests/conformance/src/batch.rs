//! Rows alone and among others: under `BatchInvariant` the bits of a row are a matter of that row.
//!
//! An operator over rows is run on all of them at once and on parts; every part must give the bits it has in the
//! whole. Which operators have rows is said here, because a contract does not say which dimension is the batch.

use crate::Promise;
use portolan_core::call::{
    AddRmsNorm, Attention, Copy, ExpertFfn, Gemm, Linear, MoeGate, MoeUnpermute, Reduce, RmsNorm, Scan,
    Softmax, Swiglu,
};
use portolan_core::{Experts, Lens, OpKind, Stream, Tensor, Weight};
use portolan_ops::kernel::{ReduceKind, ScanKind};
use portolan_ops::moe::GateScore;
use portolan_ops::{DType, Fill, OpError, Result, Shape, TensorSpec};

const ROWS: usize = 37;
/// Long enough for every kernel to split a sum.
const K: usize = 1031;
const N: usize = 33;
/// `(first row, rows)`: single rows, odd runs, halves that a kernel might block by.
const PARTS: [(usize, usize); 9] =
    [(0, 1), (5, 1), (17, 1), (36, 1), (0, 2), (3, 4), (8, 16), (1, 36), (32, 5)];

/// Runs an operator on some rows: `(stream, first row, rows)`.
type OnRows = Box<dyn Fn(&Stream, usize, usize) -> Result<Tensor>>;

fn random(stream: &Stream, dims: &[usize], seed: u64) -> Result<Tensor> {
    let spec = TensorSpec::of(DType::F32, dims)?;
    let values: Vec<f32> = Fill::Unit.draw(&spec, seed).into_iter().map(|v| v as f32).collect();
    stream.upload(&values, spec.shape())
}

/// Two entries below `limit` for every row, `[ROWS, 2]`; some are padding.
fn routing(stream: &Stream, limit: usize) -> Result<Tensor> {
    let entry = |i: usize| if i % 11 == 5 { -1 } else { (i * 7 % limit) as i32 };
    let entries: Vec<i32> = (0..2 * ROWS).map(entry).collect();
    stream.upload(&entries, &Shape::new(&[ROWS, 2])?)
}

/// The forms of an operator that have rows, by name.
fn forms(kind: OpKind, stream: &Stream) -> Result<Vec<(&'static str, OnRows)>> {
    let x = random(stream, &[ROWS, K], 1)?;
    /// A form that reads rows of `x` and writes rows of `columns` numbers.
    fn rowwise(
        x: &Tensor,
        columns: usize,
        op: impl Fn(&Stream, &Tensor, &mut Tensor) -> Result<()> + 'static,
    ) -> OnRows {
        let x = x.clone();
        Box::new(move |stream, first, count| {
            let mut out = stream.empty(&TensorSpec::of(DType::F32, &[count, columns])?)?;
            op(stream, &x.narrow(0, first, count)?, &mut out)?;
            Ok(out)
        })
    }
    Ok(match kind {
        OpKind::Gemm => {
            let (nt, nn) = (random(stream, &[N, K], 2)?, random(stream, &[K, N], 3)?);
            vec![
                ("gemm_nt", rowwise(&x, N, move |s, x, out| s.run(Gemm::nt(x, &nt, out)?))),
                ("gemm_nn", rowwise(&x, N, move |s, x, out| s.run(Gemm::nn(x, &nn, out)?))),
            ]
        }
        OpKind::Linear => {
            let weight = Weight::Dense(random(stream, &[N, K], 2)?);
            vec![("linear", rowwise(&x, N, move |s, x, out| s.run(Linear::new(x, &weight, out)?)))]
        }
        OpKind::Reduce => {
            let sum = |s: &Stream, x: &Tensor, out: &mut Tensor| {
                s.run(Reduce::new(ReduceKind::Sum, x, &[1], true, out)?)
            };
            vec![("sum", rowwise(&x, 1, sum))]
        }
        OpKind::Scan => {
            let sum =
                |s: &Stream, x: &Tensor, out: &mut Tensor| s.run(Scan::cumulative(ScanKind::Sum, x, 1, out)?);
            vec![("cumulative_sum", rowwise(&x, K, sum))]
        }
        OpKind::Softmax => vec![("softmax", rowwise(&x, K, |s, x, out| s.run(Softmax::new(x, out)?)))],
        OpKind::RmsNorm => vec![("rms_norm", rowwise(&x, K, |s, x, out| s.run(RmsNorm::new(x, out, 1e-5)?)))],
        OpKind::AddRmsNorm => {
            let norm = |s: &Stream, x: &Tensor, out: &mut Tensor| {
                let mut residual = s.empty(&x.spec().to_contiguous())?;
                s.run(Copy::new(x, &mut residual)?)?;
                s.run(AddRmsNorm::new(x, &mut residual, out, 1e-5)?)
            };
            vec![("add_rms_norm", rowwise(&x, K, norm))]
        }
        OpKind::Swiglu => vec![("swiglu", rowwise(&x, K, |s, x, out| s.run(Swiglu::new(x, x, out)?)))],
        OpKind::MoeGate => {
            let gate = |s: &Stream, x: &Tensor, out: &mut Tensor| {
                let mut ids = s.empty(&out.spec().with_dtype(DType::I32))?;
                s.run(MoeGate::new(GateScore::Softmax, x, out, &mut ids)?.renormalize()?)
            };
            vec![("weights", rowwise(&x, 8, gate))]
        }
        OpKind::MoeUnpermute => {
            let map = routing(stream, ROWS)?;
            let sums: OnRows = Box::new(move |s, first, count| {
                let mut out = s.empty(&TensorSpec::of(DType::F32, &[count, K])?)?;
                s.run(MoeUnpermute::new(&x, &map.narrow(0, first, count)?, &mut out)?)?;
                Ok(out)
            });
            vec![("sums", sums)]
        }
        OpKind::ExpertFfn => {
            // Experts have other numbers of rows among other tokens.
            let (ids, weights) = (routing(stream, 3)?, random(stream, &[ROWS, 2], 2)?);
            let gate_up = Experts::dense(random(stream, &[3, 2 * N, K], 3)?)?;
            let down = Experts::dense(random(stream, &[3, K, N], 4)?)?;
            let network: OnRows = Box::new(move |s, first, count| {
                let part = |t: &Tensor| t.narrow(0, first, count);
                let mut out = s.empty(&TensorSpec::of(DType::F32, &[count, K])?)?;
                s.run(ExpertFfn::new(
                    &part(&x)?,
                    &part(&ids)?,
                    &part(&weights)?,
                    &gate_up,
                    &down,
                    &mut out,
                )?)?;
                Ok(out)
            });
            vec![("network", network)]
        }
        OpKind::Attention => {
            // One token of each sequence, which are the rows; lengths differ.
            const KEYS: usize = 70;
            let q = random(stream, &[ROWS, 2, 16], 4)?;
            let (k, v) = (random(stream, &[ROWS, KEYS, 2, 16], 5)?, random(stream, &[ROWS, KEYS, 2, 16], 6)?);
            let attend: OnRows = Box::new(move |s, first, count| {
                let part = |t: &Tensor| t.narrow(0, first, count);
                let lens: Vec<u32> = (first..first + count).map(|row| 1 + (row as u32 * 13) % 70).collect();
                let ones = Lens::upload(s, &vec![1; count], 1)?;
                let lens = Lens::upload(s, &lens, KEYS as u32)?;
                let mut out = s.empty(&TensorSpec::of(DType::F32, &[count, 2, 16])?)?;
                s.run(Attention::new(&part(&q)?, &part(&k)?, &part(&v)?, &ones, &lens, &mut out)?)?;
                Ok(out)
            });
            vec![("decode", attend)]
        }
        _ => Vec::new(),
    })
}

/// Whether a form held, was refused, or which promise it broke and how.
pub(crate) type Held = core::result::Result<bool, (Promise, String)>;

/// The names of the operator's forms; any stream that keeps data will do.
pub(crate) fn names(kind: OpKind, stream: &Stream) -> Result<Vec<&'static str>> {
    Ok(forms(kind, stream)?.into_iter().map(|(name, _)| name).collect())
}

/// For each form of the operator whether it held, what did not, or that the device refuses it.
pub(crate) fn batch(kind: OpKind, stream: &Stream) -> Result<Vec<(&'static str, Held)>> {
    let forms = forms(kind, stream)?;
    Ok(forms.into_iter().map(|(name, run)| (name, hold(stream, &run))).collect())
}

fn hold(stream: &Stream, run: &OnRows) -> Held {
    let refused = |error: OpError| (Promise::Errors, error.to_string());
    let bits = |first, count| -> Result<Vec<u32>> {
        let out = run(stream, first, count)?;
        stream.synchronize()?;
        let flat = out.reshape(&[out.numel()])?;
        Ok(stream.download::<f32>(&flat)?.wait()?.into_iter().map(f32::to_bits).collect())
    };
    let whole = match bits(0, ROWS) {
        Err(OpError::Unsupported { .. }) => return Ok(false),
        whole => whole.map_err(refused)?,
    };
    let columns = whole.len() / ROWS;
    for (first, count) in PARTS {
        let part = bits(first, count).map_err(refused)?;
        let want = &whole[first * columns..(first + count) * columns];
        if let Some(at) = part.iter().zip(want).position(|(got, want)| got != want) {
            let what = format!(
                "row {} has other bits among {count} rows than among {ROWS}, in column {}: {:e} and {:e}",
                first + at / columns,
                at % columns,
                f32::from_bits(part[at]),
                f32::from_bits(want[at]),
            );
            return Err((Promise::Batch, what));
        }
    }
    Ok(true)
}
