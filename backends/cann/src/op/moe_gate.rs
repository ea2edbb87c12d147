//! The experts of every token: the vendor's gate for softmax without groups, and the one for groups and biases where the
//! weights are renormalised, as that one always does.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::{NONE, code};
use crate::product::Product;
use crate::version::{MoeGatingTopK, MoeGatingTopKSoftmax, any};
use portolan_core::{Call, Tensor};
use portolan_ops::moe::{GateScore, GroupScore, MoeGateSpec};
use portolan_ops::{DType, OpError, Result, Unsupported};

/// `normType` of logistic scores.
const SIGMOID: i64 = 1;
/// Most experts that the vendor's gates choose.
const MOST: usize = 1024;

impl Native for MoeGateSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        if self.hash().is_some() {
            return Err(Unsupported::NotImplemented);
        }
        let (k, experts) = (self.top_k(), self.num_experts());
        if k == 0 || k > MOST || experts > MOST {
            return Err(Unsupported::Shape("1 to 1024 of at most 1024 experts"));
        }
        soc.compute_all([self.logits()])?;
        match self.score() {
            GateScore::Softmax if self.bias().is_none() && self.groups().is_none() => {
                // Shares of all experts keep a sum that the contract and the vendor take differently for rows of −∞.
                match self.renormalize() {
                    true => soc.has_version(any::<MoeGatingTopKSoftmax>),
                    false => Err(Unsupported::Precision),
                }
            }
            // Without a bias the contract's order is that of logits, also of those whose scores are equal.
            GateScore::Sigmoid if self.bias().is_some() && self.renormalize() => {
                let pairs = self.groups().is_some_and(|(count, _, score)| {
                    score == GroupScore::TopTwo && experts / count.max(1) < 2
                });
                match pairs || soc.product == Product::P310 {
                    true => Err(Unsupported::NotImplemented),
                    false => soc.has_version(any::<MoeGatingTopK>),
                }
            }
            _ => Err(Unsupported::NotImplemented),
        }
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, logits) = (op.spec(), op.require("logits")?);
        let (weights, ids) = (op.require("weights")?, op.require("expert_ids")?);
        let [x, y, experts] = [run.tensor(&logits)?, run.tensor(&weights)?, run.tensor(&ids)?];
        let (k, scale) = (spec.top_k() as i64, f64::from(spec.scale()));
        if spec.score() == GateScore::Softmax {
            match run.newest(any::<MoeGatingTopKSoftmax>)? {
                MoeGatingTopKSoftmax::V2 => {
                    let (renormalized, all) = (1i64, false);
                    aclnn!(
                        run,
                        aclnnMoeGatingTopKSoftmaxV2GetWorkspaceSize,
                        aclnnMoeGatingTopKSoftmaxV2,
                        x,
                        NONE,
                        k,
                        renormalized,
                        all,
                        y,
                        experts,
                        NONE
                    )?;
                }
                MoeGatingTopKSoftmax::V1 => {
                    let rows = run.scratch(DType::I32, ids.dims())?;
                    aclnn!(
                        run,
                        aclnnMoeGatingTopKSoftmaxGetWorkspaceSize,
                        aclnnMoeGatingTopKSoftmax,
                        x,
                        NONE,
                        k,
                        y,
                        experts,
                        run.tensor(&rows)?
                    )?;
                    renormalize(run, &weights)?;
                }
            }
            return if scale == 1.0 { Ok(()) } else { run.muls(&weights, scale, &weights) };
        }
        let bias = op.require("bias")?;
        let (groups, kept, score) = spec.groups().unwrap_or((1, 1, GroupScore::Max));
        let by_two = i64::from(score == GroupScore::TopTwo);
        // Without these scores are written that nobody reads.
        let (scores, wants_scores) = (run.scratch(DType::F32, logits.dims())?, false);
        let (bias, scores) = (run.tensor(&bias)?, run.tensor(&scores)?);
        let (renormalized, epsilon) = (1i64, 0f64);
        macro_rules! gate {
            ($plan:ident, $enqueue:ident, [$($table:expr),*]) => {
                aclnn!(
                    run,
                    $plan,
                    $enqueue,
                    x,
                    bias,
                    $($table,)*
                    k,
                    kept as i64,
                    groups as i64,
                    by_two,
                    renormalized,
                    SIGMOID,
                    wants_scores,
                    scale,
                    epsilon,
                    y,
                    experts,
                    scores
                )
            };
        }
        match run.newest(any::<MoeGatingTopK>)? {
            // No tokens' numbers, and no experts by them.
            MoeGatingTopK::V2 => {
                gate!(aclnnMoeGatingTopKV2GetWorkspaceSize, aclnnMoeGatingTopKV2, [NONE, NONE])
            }
            MoeGatingTopK::V1 => gate!(aclnnMoeGatingTopKGetWorkspaceSize, aclnnMoeGatingTopK, []),
        }
    }
}

/// Divides rows of weights by their sums.
fn renormalize(run: &Run<'_, '_>, weights: &Tensor) -> Result<()> {
    let sums = run.scratch(DType::F32, &[weights.dims()[0], 1])?;
    let (row, keep) = (run.ints(&[1])?, true);
    let number = code(DType::F32).ok_or_else(|| OpError::internal("moe_gate", "a type without a number"))?;
    let [y, by] = [run.tensor(weights)?, run.tensor(&sums)?];
    aclnn!(run, aclnnReduceSumGetWorkspaceSize, aclnnReduceSum, y, row, keep, number, by)?;
    aclnn!(run, aclnnDivGetWorkspaceSize, aclnnDiv, y, by, y)
}
