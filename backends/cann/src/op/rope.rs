//! Rotary positions: the angles of the positions in f32, their cosines and sines, and the vendor's rotation.
//!
//! Frequencies come from the contract; each element of a head has the frequency of its pair. The rotation is in f32:
//! cosines rounded to 16 bits would be rounded twice. The stream keeps cosines and sines for the layers that follow.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::AclTensor;
use crate::product::Product;
use crate::queue::Turn;
use portolan_core::sync::lock;
use portolan_core::{Call, Tensor};
use portolan_ops::rope::{RopeSpec, RopeStyle};
use portolan_ops::{DType, Result, TensorSpec, Unsupported};

/// Longest row the vendor's kernel takes.
const LONGEST: usize = 1024;
/// Bytes behind a tensor that vector units may read, and what tensors' addresses are multiples of.
const TAIL: usize = 32;
const ALIGNMENT: usize = 64;

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
        let table = Table::of(run, spec, &op.require("positions")?)?;
        let (x, out) = (x.narrow(2, 0, turned)?, out.narrow(2, 0, turned)?);
        let from = run.typed(&x, DType::F32)?;
        let direct = out.dtype() == DType::F32 && !in_place;
        let to = if direct { out.clone() } else { run.scratch(DType::F32, out.dims())? };
        let mode = match spec.style() {
            RopeStyle::SplitHalf => 0i64,
            RopeStyle::Interleaved => 1,
        };
        let [a, b] = [run.tensor(&from)?, run.tensor(&to)?];
        let (cos, sin) = (&table.cos, &table.sin);
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
struct Table<'a> {
    cos: AclTensor<'a>,
    sin: AclTensor<'a>,
    /// Where they are, unless the stream keeps them.
    _scratch: Option<Tensor>,
}

impl<'a> Table<'a> {
    /// The one that the stream has kept of these positions, or a new one.
    fn of(run: &'a Run<'_, '_>, spec: &RopeSpec, positions: &Tensor) -> Result<Self> {
        let half = TensorSpec::of(DType::F32, &[positions.dims()[0], 1, spec.rotary_dim()])?;
        // The kernel may read past the first half's end.
        let apart = (half.span_bytes() + TAIL).next_multiple_of(ALIGNMENT);
        let at = |address: usize, scratch| -> Result<Self> {
            let (cos, sin) = (run.memory(&half, address)?, run.memory(&half, address + apart)?);
            Ok(Self { cos, sin, _scratch: scratch })
        };
        let bytes = 2 * apart;
        // What a graph records is replayed with other positions in the same place.
        let kept = run.target().filter(|(stream, _)| !stream.is_recorded());
        let (Some((stream, on)), Some(turn)) = (kept, Turn::of(spec, positions)) else {
            let scratch = run.scratch(DType::U8, &[bytes])?;
            let table = at(scratch.buffer().address(), Some(scratch))?;
            table.compute(run, spec, positions)?;
            return Ok(table);
        };
        let mut angles = lock(&stream.angles);
        if let Some(address) = angles.find(&turn) {
            return at(address, None);
        }
        let (place, address) = angles.room(on, bytes)?;
        let table = at(address, None)?;
        table.compute(run, spec, positions)?;
        angles.fill(place, turn);
        Ok(table)
    }

    /// Enqueues what fills the table.
    fn compute(&self, run: &Run<'_, '_>, spec: &RopeSpec, positions: &Tensor) -> Result<()> {
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
        let angles = run.scratch(DType::F32, &[tokens, 1, width])?;
        // Positions become f32 in the product, as the contract rounds them.
        run.mul(&positions.reshape(&[tokens, 1, 1])?, &table, &angles)?;
        let (angle, cos, sin) = (run.tensor(&angles)?, &self.cos, &self.sin);
        aclnn!(run, aclnnCosGetWorkspaceSize, aclnnCos, angle, cos)?;
        aclnn!(run, aclnnSinGetWorkspaceSize, aclnnSin, angle, sin)?;
        let factor = f64::from(spec.mscale());
        if factor == 1.0 {
            return Ok(());
        }
        for x in [cos, sin] {
            let factor = run.scalar(DType::F32, factor)?;
            aclnn!(run, aclnnMulsGetWorkspaceSize, aclnnMuls, x, factor, x)?;
        }
        Ok(())
    }
}
