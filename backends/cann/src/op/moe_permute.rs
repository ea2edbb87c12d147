//! Rows of tokens to their experts, one behind the other: the vendor's routing, with one more expert for padding, whose
//! rows it leaves out.

use super::Native;
use super::grouped_gemm::{at_or_behind, places as arranged};
use super::scatter::contiguous;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::NONE;
use crate::product::Product;
use crate::version::{MoeInitRouting, any};
use portolan_core::Call;
use portolan_ops::moe::MoePermuteSpec;
use portolan_ops::{DType, Result, Unsupported};

impl Native for MoePermuteSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        if self.offsets().is_none() || self.capacity().is_some() || soc.product == Product::P310 {
            return Err(Unsupported::NotImplemented);
        }
        if self.num_experts() == 0 || self.top_k() == 0 || self.tokens() == 0 || self.x().dims()[1] == 0 {
            return Err(Unsupported::Shape("tokens, experts and columns"));
        }
        soc.compute_all([self.x()])?;
        soc.has_version(any::<MoeInitRouting>)
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, x, ids) = (op.spec(), op.require("x")?, op.require("expert_ids")?);
        let (out, row_map, offsets) = (op.require("out")?, op.require("row_map")?, op.require("offsets")?);
        let (experts, pairs) = (spec.num_experts(), ids.numel());
        // Padding goes to an expert behind the last.
        let (chosen, padding) = (run.scratch(DType::I32, ids.dims())?, run.scratch(DType::Bool, ids.dims())?);
        run.copy(&ids, &chosen)?;
        run.below(&ids, 0.0, &padding)?;
        let (into, mask) = (run.tensor(&chosen)?, run.tensor(&padding)?);
        let last = run.scalar(DType::I32, experts as f64)?;
        aclnn!(
            run,
            aclnnInplaceMaskedFillScalarGetWorkspaceSize,
            aclnnInplaceMaskedFillScalar,
            into,
            mask,
            last
        )?;
        let dense = out.spec().is_contiguous();
        let rows = if dense { out.clone() } else { run.scratch(out.dtype(), out.dims())? };
        // Rows behind the last expert's are not written.
        run.zero(&rows)?;
        let places = run.scratch(DType::I32, &[pairs])?;
        let x = contiguous(run, &x)?;
        let (from, to) = (run.tensor(&x)?, run.tensor(&rows)?);
        let places_out = run.tensor(&places)?;
        let (all_rows, no_capacity, with_padding) = (pairs as i64, 0i64, experts as i64 + 1);
        let dropless = 0i64;
        macro_rules! route {
            ($plan:ident, $enqueue:ident, [$($before:expr),*], [$($after:expr)?], $ends:ident) => {{
                let range = run.ints(&[0, experts as i64])?;
                let (running_sums, counted, not_quantized, by_source) = (0i64, true, -1i64, 0i64);
                aclnn!(
                    run,
                    $plan,
                    $enqueue,
                    from,
                    into,
                    NONE,
                    NONE,
                    $($before,)*
                    no_capacity,
                    with_padding,
                    dropless,
                    running_sums,
                    counted,
                    not_quantized,
                    range,
                    by_source,
                    to,
                    places_out,
                    run.tensor(&$ends)?,
                    NONE,
                    $($after,)?
                )
            }};
        }
        let version = run.newest(any::<MoeInitRouting>)?;
        let ends = match version {
            // Running sums of every expert, padding's too.
            MoeInitRouting::V2 => run.scratch(DType::I32, &[experts + 1])?,
            _ => run.scratch(DType::I64, &[experts])?,
        };
        match version {
            // No number of rows on the device, and no weights that go with them.
            MoeInitRouting::V4 => route!(
                aclnnMoeInitRoutingV4GetWorkspaceSize,
                aclnnMoeInitRoutingV4,
                [NONE, NONE],
                [NONE],
                ends
            ),
            MoeInitRouting::V3 => {
                route!(aclnnMoeInitRoutingV3GetWorkspaceSize, aclnnMoeInitRoutingV3, [all_rows], [], ends)
            }
            MoeInitRouting::V2 => {
                let (running_sums, uncounted) = (1i64, false);
                aclnn!(
                    run,
                    aclnnMoeInitRoutingV2GetWorkspaceSize,
                    aclnnMoeInitRoutingV2,
                    from,
                    into,
                    all_rows,
                    no_capacity,
                    with_padding,
                    dropless,
                    running_sums,
                    uncounted,
                    to,
                    places_out,
                    run.tensor(&ends)?,
                    NONE
                )?;
                // Padding's rows came last. They go, and so do their places.
                let beyond = run.scratch(DType::Bool, &[pairs])?;
                at_or_behind(run, &arranged(run, pairs)?, &ends.narrow(0, experts - 1, 1)?, &beyond)?;
                run.zero_where(&beyond.reshape(&[pairs, 1])?, &rows)?;
                let (nowhere, of_pairs) = (run.scalar(DType::I32, -1.0)?, padding.reshape(&[pairs])?);
                aclnn!(
                    run,
                    aclnnInplaceMaskedFillScalarGetWorkspaceSize,
                    aclnnInplaceMaskedFillScalar,
                    places_out,
                    run.tensor(&of_pairs)?,
                    nowhere
                )
            }
        }?;
        if !dense {
            run.copy(&rows, &out)?;
        }
        run.copy(&places.reshape(row_map.dims())?, &row_map)?;
        run.zero(&offsets.narrow(0, 0, 1)?)?;
        run.store(&ends.narrow(0, 0, experts)?, &offsets.narrow(0, 1, experts)?)
    }
}
