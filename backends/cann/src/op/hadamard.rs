//! Hadamard transforms, which the vendor has no kernel of: one product with the matrix. Its entries are exact in 16 bits,
//! and where the root of the block is a power of two they hold the factor too.

use super::Native;
use super::gemm::{Epilogue, multiply, plan_product};
use super::scatter::contiguous;
use crate::aclnn::{Plan, Run, Soc};
use portolan_core::Call;
use portolan_ops::kernel::Activation;
use portolan_ops::quant::HadamardSpec;
use portolan_ops::{DType, Result, Unsupported};

/// Largest matrix: with more, most of the product would be work for nothing.
const LARGEST: usize = 256;

impl Native for HadamardSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        if self.block() > LARGEST {
            return Err(Unsupported::Shape("blocks of at most 256 elements"));
        }
        plan_product(soc, [self.x()])?;
        soc.has("aclnnMatmulGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (x, out, block) = (op.require("x")?, op.require("out")?, op.spec().block());
        let (dims, dtype) = ([x.numel() / block, block], x.dtype());
        let root = (block as f64).sqrt();
        let exact = root.fract() == 0.0;
        let entry = if exact { 1.0 / root } else { 1.0 };
        let matrix = run.scratch(dtype, &[block, block])?;
        let sign = |at: usize| match ((at / block) & (at % block)).count_ones() % 2 {
            0 => entry,
            _ => -entry,
        };
        let bytes: Vec<u8> = (0..block * block).flat_map(|at| bytes_of(dtype, sign(at))).collect();
        run.upload(&bytes, &matrix)?;
        let rows = contiguous(run, &x)?.reshape(&dims)?;
        let alpha = if exact { 1.0 } else { 1.0 / root };
        let epilogue = Epilogue { alpha, added: None, bias: None, activation: Activation::Identity };
        // A product does not read what it writes.
        match out.reshape(&dims) {
            Ok(direct) if !out.buffer().same(x.buffer()) => multiply(run, &rows, &matrix, &epilogue, &direct),
            _ => {
                let result = run.scratch(dtype, &dims)?;
                multiply(run, &rows, &matrix, &epilogue, &result)?;
                run.copy(&result.reshape(out.dims())?, &out)
            }
        }
    }
}

/// A power of two, or its negative, in a type of floats.
fn bytes_of(dtype: DType, x: f64) -> Vec<u8> {
    let narrow = (x as f32).to_bits();
    match dtype {
        DType::BF16 => ((narrow >> 16) as u16).to_le_bytes().to_vec(),
        // Exponents differ by 112; neither has a fraction.
        DType::F16 => {
            let exponent = ((narrow >> 23) & 0xff).saturating_sub(112);
            (((narrow >> 16) & 0x8000 | (exponent << 10)) as u16).to_le_bytes().to_vec()
        }
        _ => narrow.to_le_bytes().to_vec(),
    }
}
