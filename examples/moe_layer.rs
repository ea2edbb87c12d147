//! A layer of a mixture of experts, written against the contract: once operator by operator, once as the fused operator,
//! and both held against plain loops.
//!
//! `cargo run --release --example moe_layer` runs on `cpu:0`; another name as the argument picks another device.

use portolan::{
    DType, Experts, OpError, Shape, Stream, StreamOptions, Tensor, TensorSpec, Weight, call, ops,
};
use portolan_ops::moe::GateScore;

const TOKENS: usize = 6;
const HIDDEN: usize = 8;
const FFN: usize = 5;
const EXPERTS: usize = 4;
const TOP_K: usize = 2;

/// A layer's weights on a device.
struct MoeLayer {
    /// `[EXPERTS, HIDDEN]`: scores a token for every expert.
    router: Weight,
    /// `[EXPERTS, 2·FFN, HIDDEN]`: of each expert the gate's rows, then the others.
    gate_up: Experts,
    /// `[EXPERTS, HIDDEN, FFN]`.
    down: Experts,
}

impl MoeLayer {
    /// Which experts a token goes to, and how much each counts: `[TOKENS, TOP_K]` both.
    fn route(&self, stream: &Stream, x: &Tensor) -> Result<(Tensor, Tensor), OpError> {
        let logits = ops::linear(stream, x, &self.router)?;
        ops::moe_gate(stream, GateScore::Softmax, &logits, TOP_K)
    }

    /// The layer in one operator, which a device may run as one kernel. Where it has none, the operator is composed from
    /// others on its own.
    fn fused(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, OpError> {
        let (weights, experts) = self.route(stream, x)?;
        ops::expert_ffn(stream, x, &experts, &weights, &self.gate_up, &self.down)
    }

    /// The layer operator by operator: every expert's tokens side by side, one product for all experts, and back.
    fn by_parts(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, OpError> {
        let (weights, experts) = self.route(stream, x)?;
        let rows = TOKENS * TOP_K;
        let empty = |dtype, dims: &[usize]| stream.empty(&TensorSpec::of(dtype, dims)?);
        let mut sorted = empty(DType::F32, &[rows, HIDDEN])?;
        let mut row_map = empty(DType::I32, &[TOKENS, TOP_K])?;
        // How many rows an expert has is known to the device alone: nothing waits for it.
        let mut offsets = empty(DType::I32, &[EXPERTS + 1])?;
        stream.run(call::MoePermute::contiguous(x, &experts, &mut sorted, &mut row_map, &mut offsets)?)?;
        let mut gate_up = empty(DType::F32, &[rows, 2 * FFN])?;
        stream.run(call::GroupedGemm::contiguous(&sorted, &self.gate_up, &offsets, &mut gate_up)?)?;
        let gated = ops::swiglu(stream, &gate_up)?;
        let mut made = empty(DType::F32, &[rows, HIDDEN])?;
        stream.run(call::GroupedGemm::contiguous(&gated, &self.down, &offsets, &mut made)?)?;
        let mut out = empty(DType::F32, &[TOKENS, HIDDEN])?;
        stream.run(call::MoeUnpermute::new(&made, &row_map, &mut out)?.weights(&weights)?)?;
        Ok(out)
    }
}

fn main() -> Result<(), OpError> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "cpu:0".into());
    let device = portolan::open(&name)?;
    let stream = device.stream(StreamOptions::default())?;

    let [x, router, gate_up, down] = [
        numbers(TOKENS * HIDDEN, 1),
        numbers(EXPERTS * HIDDEN, 2),
        numbers(EXPERTS * 2 * FFN * HIDDEN, 3),
        numbers(EXPERTS * HIDDEN * FFN, 4),
    ];
    let upload = |values: &[f32], dims: &[usize]| stream.upload(values, &Shape::new(dims)?);
    let layer = MoeLayer {
        router: Weight::from(upload(&router, &[EXPERTS, HIDDEN])?),
        gate_up: Experts::dense(upload(&gate_up, &[EXPERTS, 2 * FFN, HIDDEN])?)?,
        down: Experts::dense(upload(&down, &[EXPERTS, HIDDEN, FFN])?)?,
    };
    let tokens = upload(&x, &[TOKENS, HIDDEN])?;

    let want = plain(&x, &router, &gate_up, &down);
    for (how, out) in
        [("fused", layer.fused(&stream, &tokens)?), ("by parts", layer.by_parts(&stream, &tokens)?)]
    {
        let got = stream.download::<f32>(&out)?.wait()?;
        let error =
            portolan_ops::max_abs_difference(&got.iter().map(|&y| f64::from(y)).collect::<Vec<_>>(), &want).0;
        println!("{how:9} token 0: {:.4?}, largest error {error:.1e}", &got[..4]);
        // Sums of eight products of numbers below 1 err by a few units of the last place.
        if got.len() != want.len() || error.is_nan() || error > 1e-6 {
            return Err(OpError::internal(
                "moe_layer",
                format!("{how} differs from plain loops by {error:e}"),
            ));
        }
    }
    Ok(())
}

/// The layer in plain loops and f64.
fn plain(x: &[f32], router: &[f32], gate_up: &[f32], down: &[f32]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum::<f64>();
    let mut all = Vec::new();
    for token in x.chunks(HIDDEN) {
        let token: Vec<f64> = token.iter().map(|&x| f64::from(x)).collect();
        let mut scores: Vec<(usize, f64)> =
            router.chunks(HIDDEN).map(|row| dot(&token, row).exp()).enumerate().collect();
        scores.sort_by(|a, b| b.1.total_cmp(&a.1));
        scores.truncate(TOP_K);
        let sum: f64 = scores.iter().map(|(_, score)| score).sum();
        let mut out = vec![0.0; HIDDEN];
        for (expert, score) in scores {
            let rows: Vec<f64> = gate_up[expert * 2 * FFN * HIDDEN..][..2 * FFN * HIDDEN]
                .chunks(HIDDEN)
                .map(|row| dot(&token, row))
                .collect();
            let (gate, up) = rows.split_at(FFN);
            let gated: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let down = down[expert * HIDDEN * FFN..][..HIDDEN * FFN].chunks(FFN);
            out.iter_mut().zip(down).for_each(|(out, row)| *out += score / sum * dot(&gated, row));
        }
        all.extend(out);
    }
    all
}

/// Numbers of −1 to 1 from a formula, so that every run prints the same.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let bits = |i: usize| portolan_ops::philox_block(seed, i as u64 / 4)[i % 4];
    (0..count).map(|i| 2.0 * portolan_ops::unit_from_bits(bits(i)) - 1.0).collect()
}
