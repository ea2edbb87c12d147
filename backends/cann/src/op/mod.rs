//! The Ascend form of each operator: a plan (whether the device has a kernel) and a launch, in the file of its name.
//! The same plan answers `support()`, so the answer cannot drift from what runs.

mod add_rms_norm;
mod attention;
mod binary;
mod cast;
mod compare;
mod copy;
mod dequantize;
mod dynamic_quantize;
mod embedding;
pub(crate) mod expert_ffn;
mod fill;
mod gather;
mod geglu;
mod gemm;
mod grouped_gemm;
mod hadamard;
mod kv_cache_write;
mod layer_norm;
mod linear;
mod log_softmax;
mod merge_attention;
mod mla_decode;
mod moe_gate;
mod moe_permute;
mod moe_unpermute;
mod paged_attention;
pub(crate) mod prepack;
mod random;
mod reduce;
mod rms_norm;
mod rope;
mod sample;
mod scan;
pub(crate) mod scatter;
mod select;
mod softmax;
mod sort;
mod sparse_attention;
mod steps;
mod swiglu;
mod top_k;
mod unary;

use crate::aclnn::{NEWER, Plan, Run, Soc};
use portolan_core::{Call, Dispatch, Launch, Op};
use portolan_ops::{OpError, Result, Unsupported};

/// An operator that the device may have kernels for.
pub(crate) trait Native: Dispatch {
    /// Whether it has, for this call: decides for `support()` and for the launch.
    fn plan(&self, soc: &Soc<'_>) -> Plan;

    /// Whether the launch stands in for a kernel that there is none of, for a reason of the plan's; booked as a
    /// composition.
    fn stands_in(&self, why: &Unsupported) -> bool {
        let _ = why;
        false
    }

    /// Enqueues the kernels.
    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()>;
}

/// Operators that are left to core's compositions.
macro_rules! composed {
    ($($spec:ty),* $(,)?) => {$(
        impl Native for $spec {
            fn plan(&self, _soc: &Soc<'_>) -> Plan {
                Err(Unsupported::NotImplemented)
            }

            fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
                Err(run.launch().unsupported(op.op_name(), Unsupported::NotImplemented, HINT))
            }
        }
    )*};
}

composed! {
    portolan_ops::quant::QuantizeSpec,
    portolan_ops::attention::IndexLogitsSpec,
    portolan_ops::ssm::CausalConv1dSpec,
    portolan_ops::ssm::SelectiveScanSpec,
    portolan_ops::ssm::SsdScanSpec,
    portolan_ops::ssm::GatedDeltaRuleSpec,
}

const HINT: &str = "cast to a type that the device has, or run it on cpu:0";

/// Launches an operator of the kernel core.
pub(crate) fn kernel<C: Native>(run: &Run<'_, '_>, op: &Call<C>) -> Result<()> {
    match op.spec().plan(&run.soc()) {
        Ok(()) => C::launch(run, op),
        Err(why) if op.spec().stands_in(&why) => {
            run.launch().composed(op, why)?;
            C::launch(run, op)
        }
        Err(why) => Err(run.launch().unsupported(op.op_name(), why, HINT)),
    }
}

/// Launches a fused operator, or its composition.
pub(crate) fn fused<C: Native>(
    run: &Run<'_, '_>,
    op: &Call<C>,
    compose: fn(&Launch<'_>, &Call<C>, Unsupported) -> Result<()>,
) -> Result<()> {
    match op.spec().plan(&run.soc()) {
        Ok(()) => C::launch(run, op),
        // What the composition lacks is of no use to whoever could install what the kernel lacks.
        Err(why @ Unsupported::Symbol(_)) => {
            compose(run.launch(), op, why.clone()).map_err(|error| match error {
                OpError::Unsupported { .. } => run.launch().unsupported(op.op_name(), why, NEWER),
                other => other,
            })
        }
        Err(why) => compose(run.launch(), op, why),
    }
}

impl Run<'_, '_> {
    /// The error for a form of an operator that this library did not know when it was written.
    fn unknown(&self, op: &dyn Op, form: &str) -> OpError {
        let why = Unsupported::NotImplemented;
        let error = self.launch().unsupported(op.op_name(), why, HINT);
        match error {
            OpError::Unsupported { op, device, reason, .. } => {
                let hint = format!("{form} is not known here").into();
                OpError::Unsupported { op, device, reason, hint }
            }
            other => other,
        }
    }
}
