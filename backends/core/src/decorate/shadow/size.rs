//! How far apart two devices may be in a call that sums products, for numbers of the size that it sums.
//!
//! A contract's tolerance is for the numbers of its cases. What a model multiplies is of another size: the weights far
//! smaller, a few inputs far larger. Sums of k roundings err by about `u·√k·s`, where s is the size of partial sums (Higham
//! and Mary 2019): that of the result, or `√k·r·w` where terms cancel, for rows of root mean square r and weights up to w.
//! So the size of a product is `m = max(r·w, s/√k)`, and the contracts' `2·(k + 8)·u` for products of size 1 becomes
//! `2·(k + 8)·u·m`: neither a large number among many small ones nor a small weight makes the comparison coarse. What linear
//! allows besides for a weight that is rounded to 16 bits, `√k·u·r·w` with u of those bits, is in the same proportion.
//!
//! Other functions than the plain ones keep no proportions, and the smallest numbers of f16 are not small against its
//! results: for those there is only the contract's tolerance.

use super::{Copied, Shadow, Twin, largest};
use crate::experts::Experts;
use crate::sync::lock;
use crate::tensor::Tensor;
use crate::weight::Weight;
use portolan_ops::activation::SwigluSpec;
use portolan_ops::attention::AttentionSpec;
use portolan_ops::kernel::{Activation, GemmForm, GemmSpec};
use portolan_ops::moe::expert_ffn::{DOWN, GATE_UP};
use portolan_ops::moe::{ExpertFfnSpec, ExpertNames, GroupedGemmSpec};
use portolan_ops::quant::{ActQuant, LinearSpec, WeightSpec};
use portolan_ops::{Contract, DType, HostTensor, Result, Shape, TensorSpec, Tolerance};
use std::any::Any;

/// What weights and steps of linear and its kin are in their cases, and so in their tolerances.
const WEIGHT_OF_CASES: f64 = 3.0;
/// Of an activation's slope in the contracts.
const SLOPE: f64 = 1.13;
/// No number is so small that its rounding is nothing.
const LEAST: f64 = f32::MIN_POSITIVE as f64;

/// `2·(k + 8)·u·m`, as the contracts have it.
fn sum_of(k: f64, size: f64) -> f64 {
    2.0 * (k + 8.0) * DType::F32.unit_roundoff() * SLOPE * size
}

/// The root mean square of a row.
fn mean(row: &[f64]) -> f64 {
    (row.iter().map(|x| x * x).sum::<f64>() / row.len().max(1) as f64).sqrt()
}

/// The largest finite number of some.
fn most(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.filter(|number| number.is_finite()).fold(0.0, f64::max)
}

/// The largest root mean square of any row of so many.
fn largest_mean(values: &[f64], k: usize) -> f64 {
    most(values.chunks(k.max(1)).map(mean))
}

impl Shadow {
    /// What one device may be off by in the result `operand`, beside what is relative to it; `None` for calls of which only
    /// the contract's own tolerance is known.
    pub(super) fn error_of_size<C: Contract>(
        &self,
        spec: &C,
        twin: &Twin,
        (operand, tolerance): (&str, Tolerance),
        want: &[f64],
    ) -> Result<Option<f64>> {
        let any: &dyn Any = spec;
        if let Some(linear) = any.downcast_ref::<LinearSpec>() {
            return self.error_of_linear(linear, twin, tolerance, want);
        }
        if let Some(gemm) = any.downcast_ref::<GemmSpec>() {
            return self.error_of_gemm(gemm, twin, tolerance, want);
        }
        if let Some(grouped) = any.downcast_ref::<GroupedGemmSpec>() {
            return self.error_of_grouped(grouped, twin, tolerance, want);
        }
        if let Some(experts) = any.downcast_ref::<ExpertFfnSpec>() {
            return self.error_of_experts(experts, twin);
        }
        match any.downcast_ref::<AttentionSpec>() {
            Some(attention) => self.error_of_attention(attention, twin, operand),
            None => Ok(None),
        }
    }

    /// An operand's numbers before the call; none where there is no such operand.
    fn numbers(&self, twin: &Twin, name: &str) -> Result<Vec<f64>> {
        match twin.pairs.iter().find(|pair| pair.name == name) {
            Some(pair) => Ok(HostTensor::from_bytes(&pair.spec, self.before(pair)?)?.to_f64()),
            None => Ok(Vec::new()),
        }
    }

    fn twin_of(twin: &Twin, name: &str) -> Result<Option<Tensor>> {
        twin.pairs.iter().find(|pair| pair.name == name).map(|pair| pair.twin()).transpose()
    }

    /// The numbers of a tensor that was made on the second device.
    fn made(&self, tensor: &Tensor) -> Result<Vec<f64>> {
        let bytes = self.second_bytes(tensor.buffer(), tensor.spec().span_bytes())?;
        Ok(HostTensor::from_bytes(tensor.spec(), bytes)?.to_f64())
    }

    fn error_of_linear(
        &self,
        linear: &LinearSpec,
        twin: &Twin,
        tolerance: Tolerance,
        want: &[f64],
    ) -> Result<Option<f64>> {
        if linear.activation() != Activation::Identity || linear.out().dtype() == DType::F16 {
            return Ok(None);
        }
        let Some(weight) = self.largest_weight(linear, twin)? else { return Ok(None) };
        let x = largest_mean(&self.numbers(twin, "x")?, linear.k());
        let (k, bias) = (linear.k().max(1) as f64, largest(&self.numbers(twin, "bias")?));
        // An added bias is rounded once, with the result.
        let size = ((x * weight).max(largest(want) / k.sqrt()) / WEIGHT_OF_CASES).max(bias / k);
        Ok(Some(tolerance.abs * size.max(LEAST)))
    }

    fn error_of_gemm(
        &self,
        gemm: &GemmSpec,
        twin: &Twin,
        tolerance: Tolerance,
        want: &[f64],
    ) -> Result<Option<f64>> {
        let exact = matches!(gemm.out().dtype(), DType::F16 | DType::I32);
        if gemm.activation() != Activation::Identity || exact {
            return Ok(None);
        }
        let (a, b) = (self.numbers(twin, "a")?, largest(&self.numbers(twin, "b")?));
        let k = gemm.k().max(1);
        let row = match gemm.form() {
            GemmForm::Nn | GemmForm::Nt => largest_mean(&a, k),
            // Rows of the product are columns of a.
            GemmForm::Tn => {
                let width = gemm.m().max(1);
                let column = |matrix: &[f64], at: usize| {
                    (matrix.iter().skip(at).step_by(width).map(|x| x * x).sum::<f64>() / k as f64).sqrt()
                };
                most(a.chunks(k * width).flat_map(|matrix| (0..width).map(move |at| column(matrix, at))))
            }
        };
        let (alpha, k) = (f64::from(gemm.alpha().abs()), k as f64);
        // What is added may hide how large a sum is.
        let added = f64::from(gemm.beta().abs()) * largest(&self.numbers(twin, "c")?)
            + largest(&self.numbers(twin, "bias")?);
        let size = (alpha * row * b).max((largest(want) + added) / k.sqrt());
        Ok(Some(tolerance.abs * size.max(LEAST)))
    }

    fn error_of_grouped(
        &self,
        grouped: &GroupedGemmSpec,
        twin: &Twin,
        tolerance: Tolerance,
        want: &[f64],
    ) -> Result<Option<f64>> {
        let Some(experts) = Self::experts_of(twin, &ExpertNames::WEIGHT)? else { return Ok(None) };
        if grouped.out().dtype() == DType::F16 || grouped.act_quant() != ActQuant::None {
            return Ok(None);
        }
        let (x, weight) = (self.numbers(twin, "x")?, self.largest_of_experts(&experts)?);
        let (width, k) = (grouped.weight().k(), grouped.weight().k().max(1) as f64);
        let sums = largest(want) + largest(&self.numbers(twin, "bias")?);
        let size = (largest_mean(&x, width) * weight).max(sums / k.sqrt()) / WEIGHT_OF_CASES;
        Ok(Some(tolerance.abs * size.max(LEAST)))
    }

    /// As the contract derives it, with the sizes that the second device finds on the way: `d` is what the gates and ups of
    /// one unit err by, `√(g² + u²)·d` a unit's hidden number (slopes of silu are at most 1.1) beside the 52 u of its own
    /// steps; these are as good as independent, so that they add up as `2·√I·w·` that in a second product, which errs by its
    /// own sums besides. Where what passes between the parts may be narrow, each is rounded: three times what makes a hidden
    /// number, once a result. All of it times the routing weights.
    fn error_of_experts(&self, spec: &ExpertFfnSpec, twin: &Twin) -> Result<Option<f64>> {
        let of = |columns| TensorSpec::of(DType::F32, &[1, columns]);
        let unit = SwigluSpec::fused(&of(spec.gate_up().n())?, &of(spec.inner())?)?;
        let plain = spec.gate_up_bias().is_none()
            && spec.down_bias().is_none()
            && spec.act_quant() == ActQuant::None
            && spec.unit(1)? == unit;
        let stacks = (Self::experts_of(twin, &GATE_UP)?, Self::experts_of(twin, &DOWN)?);
        let (Some(x), (Some(gate_up), Some(down))) = (Self::twin_of(twin, "x")?, stacks) else {
            return Ok(None);
        };
        if !plain || spec.out().dtype() == DType::F16 {
            return Ok(None);
        }
        let (second, k, inner) = (&self.log.second, spec.top_k().max(1), spec.inner().max(1));
        let ids = self.numbers(twin, "expert_ids")?;
        // Of the numbers between the products: the largest before the unit, its slopes, its result, the second product's.
        let [mut before, mut slope, mut hidden, mut result] = [0f64; 4];
        for expert in 0..spec.gate_up().count() {
            let places = ids.iter().enumerate().filter(|(_, id)| **id == expert as f64);
            let rows: Vec<i32> = places.map(|(place, _)| (place / k) as i32).collect();
            if rows.is_empty() {
                continue;
            }
            let rows = second.upload(&rows, &Shape::new(&[rows.len()])?)?;
            let rows = crate::ops::cast(second, &crate::ops::gather_rows(second, &x, &rows)?, DType::F32)?;
            let both = crate::ops::linear(second, &rows, &gate_up.expert(expert)?)?;
            let unit = crate::ops::swiglu(second, &both)?;
            let y = crate::ops::linear(second, &unit, &down.expert(expert)?)?;
            let both = self.made(&both)?;
            before = before.max(largest(&both));
            // Gates and ups of a row: the mean of g² + u² is twice that of all.
            slope = slope.max(1.1 * core::f64::consts::SQRT_2 * largest_mean(&both, 2 * inner));
            hidden = hidden.max(largest_mean(&self.made(&unit)?, inner));
            result = result.max(largest(&self.made(&y)?));
        }
        let (width, inner) = (spec.gate_up().k().max(1) as f64, inner as f64);
        let row = largest_mean(&self.numbers(twin, "x")?, spec.gate_up().k());
        let (first, second) = (self.largest_of_experts(&gate_up)?, self.largest_of_experts(&down)?);
        let routed = self.numbers(twin, "weights")?;
        let routed = most(routed.chunks(k).map(|row| row.iter().map(|w| w.abs()).sum()));
        let u = DType::F32.unit_roundoff();
        let narrow = if spec.between() == DType::F32 { 0.0 } else { spec.between().unit_roundoff() };
        let rounded = (52.0 * u + 3.0 * narrow) * hidden;
        let unit = slope * sum_of(width, (row * first).max(before / width.sqrt())) + rounded;
        let through = 2.0 * inner.sqrt() * second * unit;
        let own = sum_of(inner, (hidden * second).max(result / inner.sqrt()));
        let summed = (2.0 * (k as f64 + 2.0) * u + narrow) * result;
        Ok(Some((routed * (through + own + summed)).max(LEAST)))
    }

    /// As the contract derives it, for scores of up to `|scale|·‖q‖·‖k‖` and values of up to v: a score errs by
    /// `2·(d + 8)·u·|scale|·m`, a weight by twice that, and by the rounding of its exponent.
    fn error_of_attention(&self, spec: &AttentionSpec, twin: &Twin, operand: &str) -> Result<Option<f64>> {
        let query = spec.query();
        if !query.scores().is_plain() || spec.scales().is_some() || query.out().dtype() == DType::F16 {
            return Ok(None);
        }
        let lens = self.numbers(twin, "kv_lens")?;
        // What lies behind a sequence's end is nobody's.
        let of_sequences = |name: &str, extents: &[usize]| -> Result<Vec<f64>> {
            let all = self.numbers(twin, name)?;
            let [_, capacity, heads, width] = *extents else { return Ok(all) };
            let row = heads * width;
            let sequences = all.chunks((capacity * row).max(1)).zip(&lens);
            let kept =
                |(values, len): (&[f64], &f64)| values[..(*len as usize * row).min(values.len())].to_vec();
            Ok(sequences.flat_map(kept).collect())
        };
        let (k, v) = (of_sequences("k", spec.k().dims())?, of_sequences("v", spec.v().dims())?);
        let (width, u) = (query.head_dim(), DType::F32.unit_roundoff());
        let (d, scale) = (width.max(1) as f64, f64::from(query.scale().abs()));
        let (q_mean, k_mean) = (largest_mean(&self.numbers(twin, "q")?, width), largest_mean(&k, width));
        let product = d * q_mean * k_mean;
        let score =
            sum_of(d, (q_mean * largest(&k)).max(product / d.sqrt())) * scale + 2.0 * u * scale * product;
        let sums = 4.0 * most(lens.iter().copied()).sqrt() * u;
        if operand == "lse" {
            return Ok(Some(score + sums + 8.0 * u));
        }
        let weights = if query.q().dtype() == DType::F32 { 0.0 } else { query.q().dtype().unit_roundoff() };
        let error = largest(&v) * (2.0 * (score + 8.0 * u) + 2.0 * sums + weights);
        Ok(Some(error.max(LEAST)))
    }

    /// The weights of all experts as they were stored: those that were packed, or dense ones.
    fn experts_of(twin: &Twin, names: &ExpertNames) -> Result<Option<Experts>> {
        match (twin.stack(names), Self::twin_of(twin, names.dense)?) {
            (Some(experts), _) => Ok(Some(experts.clone())),
            (None, Some(weights)) => Experts::dense(weights).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// The largest number of any expert's weight.
    fn largest_of_experts(&self, experts: &Experts) -> Result<f64> {
        let Some(first) = experts.tensors().first() else { return Ok(0.0) };
        let (source, alone) = (first.buffer(), first.spec().layout().offset() == 0);
        let known = lock(&self.log.state).largest.get(&source.key()).and_then(|copied| copied.get(source));
        if let (Some(known), true) = (known, alone) {
            return Ok(known);
        }
        let mut found = 0f64;
        match (experts.spec().one(), experts.tensors()) {
            (WeightSpec::Dense(_), [all]) => found = largest(&self.made(all)?),
            _ => {
                for expert in 0..experts.spec().count() {
                    let Weight::Quant(quant) = experts.expert(expert)? else { continue };
                    let numbers = crate::ops::dequantize(&self.log.second, &quant, DType::F32)?;
                    found = found.max(largest(&self.made(&numbers)?));
                }
            }
        }
        if alone {
            lock(&self.log.state).largest.insert(source.key(), Copied::of(source, found));
        }
        Ok(found)
    }

    /// The largest number of a product's weight.
    fn largest_weight(&self, linear: &LinearSpec, twin: &Twin) -> Result<Option<f64>> {
        let source = twin.pairs.iter().find(|pair| pair.name.starts_with("weight"));
        let Some(source) = source.map(|pair| &pair.first) else { return Ok(None) };
        let known = lock(&self.log.state).largest.get(&source.key()).and_then(|copied| copied.get(source));
        if known.is_some() {
            return Ok(known);
        }
        let plain = match (twin.one(), linear.weight()) {
            (Some(weight), _) => self.log.second.unpack(weight)?,
            (None, WeightSpec::Dense(_)) => match twin.pairs.iter().find(|pair| pair.name == "weight") {
                Some(pair) => Weight::Dense(pair.twin()?),
                None => return Ok(None),
            },
            // Codes that are not packed: their scales are known to no one call.
            _ => return Ok(None),
        };
        let numbers = match &plain {
            Weight::Dense(tensor) => tensor.clone(),
            Weight::Quant(quant) => crate::ops::dequantize(&self.log.second, quant, DType::F32)?,
            Weight::Packed(_) => return Ok(None),
        };
        let span = numbers.spec().span_bytes();
        let host = HostTensor::from_bytes(numbers.spec(), self.second_bytes(numbers.buffer(), span)?)?;
        let found = largest(&host.to_f64());
        lock(&self.log.state).largest.insert(source.key(), Copied::of(source, found));
        Ok(Some(found))
    }
}
