//! Rotary positions: the angles of the positions in f32, their cosines and sines, and the vendor's rotation.
//!
//! Frequencies come from the contract; each element of a head has the frequency of its pair. The rotation is in f32:
//! cosines rounded to 16 bits would be rounded twice.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::product::Product;
use portolan_core::{Call, Tensor};
use portolan_ops::rope::{RopeSpec, RopeStyle};
use portolan_ops::{DType, Result, Unsupported};

/// Longest row the vendor's kernel takes.
const LONGEST: usize = 1024;

impl Native for RopeSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.compute_all([self.x()])?;
        if self.rotary_dim() > LONGEST {
            return Err(Unsupported::Shape("rows of at most 1024 elements"));
        }
        if self.style() == RopeStyle::Interleaved && soc.product == Product::P310 {
            return Err(Unsupported::NotImplemented);
        }
        soc.has("aclnnRotaryPositionEmbeddingGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, x, out) = (op.spec(), op.require("x")?, op.require("out")?);
        let (turned, d) = (spec.rotary_dim(), spec.head_dim());
        let in_place = x.buffer().same(out.buffer()) && x.spec() == out.spec();
        if turned < d && !in_place {
            run.copy(&x.narrow(2, turned, d - turned)?, &out.narrow(2, turned, d - turned)?)?;
        }
        if turned == 0 {
            return Ok(());
        }
        let (cos, sin) = angles(run, spec, &op.require("positions")?)?;
        let (x, out) = (x.narrow(2, 0, turned)?, out.narrow(2, 0, turned)?);
        let from = run.typed(&x, DType::F32)?;
        let direct = out.dtype() == DType::F32 && !in_place;
        let to = if direct { out.clone() } else { run.scratch(DType::F32, out.dims())? };
        let mode = match spec.style() {
            RopeStyle::SplitHalf => 0i64,
            RopeStyle::Interleaved => 1,
        };
        let [a, b] = [run.tensor(&from)?, run.tensor(&to)?];
        let [cos, sin] = [run.tensor(&cos)?, run.tensor(&sin)?];
        aclnn!(
            run,
            aclnnRotaryPositionEmbeddingGetWorkspaceSize,
            aclnnRotaryPositionEmbedding,
            a,
            cos,
            sin,
            mode,
            b
        )?;
        if direct { Ok(()) } else { run.store(&to, &out) }
    }
}

/// Cosine and sine of every token's angles, `[tokens, 1, rotary_dim]`, times the scaling's factor.
fn angles(run: &Run<'_, '_>, spec: &RopeSpec, positions: &Tensor) -> Result<(Tensor, Tensor)> {
    let (tokens, width) = (positions.dims()[0], spec.rotary_dim());
    let mut frequencies = vec![0f32; width];
    for (i, frequency) in spec.inv_freq().into_iter().enumerate() {
        let (a, b) = spec.pair(i);
        // The inverse turns by the negated angles.
        let frequency = if spec.is_inverse() { -frequency } else { frequency };
        (frequencies[a], frequencies[b]) = (frequency, frequency);
    }
    let bytes: Vec<u8> = frequencies.into_iter().flat_map(f32::to_le_bytes).collect();
    let table = run.scratch(DType::F32, &[width])?;
    run.upload(&bytes, &table)?;
    let [angles, cos, sin] = [(); 3].map(|()| run.scratch(DType::F32, &[tokens, 1, width]));
    let (angles, cos, sin) = (angles?, cos?, sin?);
    // Positions become f32 in the product, as the contract rounds them.
    run.mul(&positions.reshape(&[tokens, 1, 1])?, &table, &angles)?;
    let angle = run.tensor(&angles)?;
    aclnn!(run, aclnnCosGetWorkspaceSize, aclnnCos, angle, run.tensor(&cos)?)?;
    aclnn!(run, aclnnSinGetWorkspaceSize, aclnnSin, angle, run.tensor(&sin)?)?;
    let factor = f64::from(spec.mscale());
    if factor != 1.0 {
        run.muls(&cos, factor, &cos)?;
        run.muls(&sin, factor, &sin)?;
    }
    Ok((cos, sin))
}
