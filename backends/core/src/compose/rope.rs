//! Rotary embedding from a table of cosines and sines of this call's positions.

use super::begin;
use crate::call::{Binary, Copy, Rope};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::rope::RopeStyle;
use portolan_ops::{DType, Result, TensorSpec, Unsupported};

/// In f32: angles as position times frequency (a table of a few numbers, uploaded), their cosine and sine,
/// four products, a difference and a sum; the rest of each head is copied.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn rope(l: &Launch<'_>, op: &Rope, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (spec, x, out) = (op.spec(), op.require("x")?, op.require("out")?);
    let (rotary, head_dim) = (spec.rotary_dim(), spec.head_dim());
    let (tokens, pairs) = (x.dims()[0], rotary / 2);
    // In place, the elements that are not rotated are there already.
    let in_place = x.buffer().same(out.buffer()) && x.spec() == out.spec();
    if rotary < head_dim && !in_place {
        let rest = |t: &Tensor| t.narrow(2, rotary, head_dim - rotary);
        p.run(Copy::new(&rest(&x)?, &mut rest(&out)?)?)?;
    }
    if pairs == 0 {
        return Ok(());
    }
    let bytes: Vec<u8> = spec.inv_freq().iter().flat_map(|f| f.to_le_bytes()).collect();
    let frequencies = p.launch().constant(&TensorSpec::of(DType::F32, &[pairs])?, &bytes)?;
    let positions = p.f32(&op.require("positions")?)?.reshape(&[tokens, 1])?;
    let angles = p.binary(BinaryKind::Mul, &positions, &frequencies)?;
    let table = |kind, factor: f32| {
        let table = p.unary(kind, &angles)?;
        if factor != 1.0 {
            p.scalar_in_place(BinaryKind::Mul, &table, f64::from(factor))?;
        }
        table.reshape(&[tokens, 1, pairs])
    };
    let mscale = spec.mscale();
    let cos = table(UnaryKind::Cos, mscale)?;
    let sin = table(UnaryKind::Sin, if spec.is_inverse() { -mscale } else { mscale })?;
    let halves = |t: &Tensor| -> Result<[Tensor; 2]> {
        let rotated = t.narrow(2, 0, rotary)?;
        match spec.style() {
            RopeStyle::Interleaved => {
                let split = rotated.reshape(&[tokens, x.dims()[1], pairs, 2])?;
                Ok([split.select(3, 0)?, split.select(3, 1)?])
            }
            RopeStyle::SplitHalf => Ok([rotated.narrow(2, 0, pairs)?, rotated.narrow(2, pairs, pairs)?]),
        }
    };
    let product = |a: &Tensor, b: &Tensor| p.binary(BinaryKind::Mul, a, b);
    let [a, b] = halves(&p.f32(&x)?)?;
    // All products first: `out` may be `x`.
    let (a_cos, a_sin, b_cos, b_sin) =
        (product(&a, &cos)?, product(&a, &sin)?, product(&b, &cos)?, product(&b, &sin)?);
    let [out_a, out_b] = halves(&out)?;
    p.result(&out_a, |out| p.run(Binary::new(BinaryKind::Sub, &a_cos, &b_sin, out)?))?;
    p.result(&out_b, |out| p.run(Binary::new(BinaryKind::Add, &b_cos, &a_sin, out)?))
}
