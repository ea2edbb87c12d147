//! Matrix product, plain and batched, with scaling, accumulation, bias and activation in its epilogue.

use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, Shape, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_writable, streaming_cost,
};

/// Which operand is stored transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GemmForm {
    /// `a [m, k]`, `b [k, n]`.
    Nn,
    /// `a [m, k]`, `b [n, k]`: weights as they are stored.
    Nt,
    /// `a [k, m]`, `b [k, n]`.
    Tn,
}

/// The function an epilogue applies last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x`.
    #[default]
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + e^−x)`.
    Silu,
    /// `x / 2 · (1 + erf(x / √2))`.
    Gelu,
    /// `x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
}

impl Activation {
    /// The function in f64.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Activation::Identity => x,
            // Not f64::max, which would turn a NaN into 0.
            Activation::Relu if x.is_nan() => x,
            Activation::Relu => x.max(0.0),
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => 0.5 * x * (1.0 + erf(x / core::f64::consts::SQRT_2)),
            Activation::GeluTanh => {
                let inner = (2.0 / core::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
        }
    }
}

/// The error function, to about 1e-15: the Maclaurin series below 3, the continued fraction of erfc above.
pub fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 3.0 {
        // erf z = 2/√π · e^(−z²) · Σ 2^n z^(2n+1) / (2n+1)!!, all terms positive: no cancellation.
        let (mut term, mut sum, mut n) = (z, z, 1.0);
        while term > sum * 1e-17 {
            term *= 2.0 * z * z / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        2.0 / core::f64::consts::PI.sqrt() * (-z * z).exp() * sum
    } else {
        let fraction = (1..60).rev().fold(z, |f, n| z + (n as f64 / 2.0) / f);
        1.0 - (-z * z).exp() / (core::f64::consts::PI.sqrt() * fraction)
    };
    value.copysign(x)
}

/// Multiplies matrices.
///
/// `out[m, n] = act(alpha · Σ_k a[m, k] · b[k, n] + beta · c[m, n] + bias[n])`
///
/// # Shapes
/// `nn`: a `[.., m, k]`, b `[.., k, n]`; `nt`: b `[.., n, k]`; `tn`: a `[.., k, m]`. out and c `[.., m, n]`, bias
/// `[n]`. Leading dimensions are a batch: equal in a and out; b may have none (shared by the batch). Any
/// extent may be zero; with `k = 0` the product is 0.
///
/// # DTypes
/// a and b of one type out of f64, f32, f16, bf16; also a f32 with b f16 or bf16 (weights kept narrow). out
/// of a's type or f32. a and b each f8e4m3, f8e5m2 or f4e2m1, in any pairing, with out f32, f16 or bf16; also a
/// f32, f16 or bf16 with b one of them. Products accumulate in f32 (f64 for f64); scales that hold for a whole
/// operand go into alpha. a and b i8 with out i32: exact i32 sums, wrapping on overflow; no epilogue. c is of
/// out's type, bias of out's type or f32.
///
/// # Layout
/// Any strides for a, b, c and out; rows of f4e2m1 are contiguous and start on a whole byte, as everywhere.
///
/// # Determinism
/// `RunToRun`: same bits for same shapes. `BatchInvariant`: a row of out depends on its own row of a only.
///
/// # Cost
/// `2·batch·m·n·k` operations, plus one per out element for each of alpha ≠ 1, c, bias and activation.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself).
///
/// # Source
/// BLAS xGEMM (Dongarra et al. 1990), with the epilogue of cuBLASLt and aclnnMatmul; 8-bit and 4-bit factors as in
/// cuBLASLt, formats of the OCP (8-bit Floating Point 1.0, Microscaling Formats 1.0).
#[derive(Clone, Debug, PartialEq)]
pub struct GemmSpec {
    form: GemmForm,
    a: TensorSpec,
    b: TensorSpec,
    out: TensorSpec,
    c: Option<TensorSpec>,
    bias: Option<TensorSpec>,
    alpha: f32,
    beta: f32,
    activation: Activation,
}

impl GemmSpec {
    /// The product in the given form.
    pub fn new(form: GemmForm, a: &TensorSpec, b: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        let op = op_name(form);
        let want = Self::out_spec(form, a, b)?;
        expect_dims(op, "out", out, want.dims())?;
        let outs: &[DType] = match a.dtype() {
            stored if CODES.contains(&stored) => &[DType::F32, DType::F16, DType::BF16],
            DType::F16 | DType::BF16 => &[want.dtype(), DType::F32],
            _ => &[want.dtype()],
        };
        expect_dtype(op, "out", out, outs)?;
        expect_writable(op, "out", out)?;
        Ok(Self {
            form,
            a: *a,
            b: *b,
            out: *out,
            c: None,
            bias: None,
            alpha: 1.0,
            beta: 0.0,
            activation: Activation::Identity,
        })
    }

    /// The result of the product in the given form: contiguous, of a's type (i32 for i8, f32 for floats of 8 or
    /// 4 bits).
    pub fn out_spec(form: GemmForm, a: &TensorSpec, b: &TensorSpec) -> Result<TensorSpec> {
        let op = op_name(form);
        let [e4m3, e5m2, e2m1] = CODES;
        expect_dtype(
            op,
            "a",
            a,
            &[DType::F64, DType::F32, DType::F16, DType::BF16, e4m3, e5m2, e2m1, DType::I8],
        )?;
        let seconds: &[DType] = match a.dtype() {
            DType::F32 => &[DType::F32, DType::F16, DType::BF16, e4m3, e5m2, e2m1],
            half @ (DType::F16 | DType::BF16) => &[half, e4m3, e5m2, e2m1],
            stored if CODES.contains(&stored) => &CODES,
            other => &[other],
        };
        expect_dtype(op, "b", b, seconds)?;
        let mismatch =
            |what: String| OpError::shape(op, format!("a is {}, b is {}: {what}", a.shape(), b.shape()));
        if a.rank() < 2 || b.rank() < 2 {
            return Err(mismatch("both need at least 2 dimensions".into()));
        }
        let (batch, [a0, a1]) = split(a);
        let (b_batch, [b0, b1]) = split(b);
        let (m, k) = if form == GemmForm::Tn { (a1, a0) } else { (a0, a1) };
        let (n, b_k) = if form == GemmForm::Nt { (b0, b1) } else { (b1, b0) };
        if k != b_k {
            return Err(mismatch(format!("k differs ({k} vs {b_k})")));
        }
        if !b_batch.is_empty() && b_batch != batch {
            return Err(mismatch("batch dimensions differ".into()));
        }
        let mut dims: smallvec::SmallVec<[usize; 8]> = batch.into();
        dims.extend([m, n]);
        let dtype = match a.dtype() {
            DType::I8 => DType::I32,
            stored if CODES.contains(&stored) => DType::F32,
            float => float,
        };
        Ok(TensorSpec::new(dtype, Shape::new(&dims)?))
    }

    /// Scales the product.
    pub fn with_alpha(mut self, alpha: f32) -> Result<Self> {
        self.float_epilogue("alpha")?;
        self.alpha = alpha;
        Ok(self)
    }

    /// Adds `beta · c`. c may be the very view `out` (accumulation in place).
    pub fn with_accumulate(mut self, c: &TensorSpec, beta: f32) -> Result<Self> {
        self.float_epilogue("c")?;
        expect_dims(self.name(), "c", c, self.out.dims())?;
        expect_dtype(self.name(), "c", c, &[self.out.dtype()])?;
        self.c = Some(*c);
        self.beta = beta;
        Ok(self)
    }

    /// Adds `bias[n]` to every row.
    pub fn with_bias(mut self, bias: &TensorSpec) -> Result<Self> {
        self.float_epilogue("bias")?;
        expect_dims(self.name(), "bias", bias, &[self.n()])?;
        expect_dtype(self.name(), "bias", bias, &[self.out.dtype(), DType::F32])?;
        self.bias = Some(*bias);
        Ok(self)
    }

    /// Applies a function last.
    pub fn with_activation(mut self, activation: Activation) -> Result<Self> {
        self.float_epilogue("activation")?;
        self.activation = activation;
        Ok(self)
    }

    fn float_epilogue(&self, arg: &'static str) -> Result<()> {
        match self.out.dtype() {
            DType::I32 => Err(OpError::attribute(
                self.name(),
                arg,
                "is not available for integer products; cast the result first",
            )),
            _ => Ok(()),
        }
    }

    /// Which operand is stored transposed.
    pub fn form(&self) -> GemmForm {
        self.form
    }
    /// First factor.
    pub fn a(&self) -> &TensorSpec {
        &self.a
    }
    /// Second factor.
    pub fn b(&self) -> &TensorSpec {
        &self.b
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Added matrix.
    pub fn c(&self) -> Option<&TensorSpec> {
        self.c.as_ref()
    }
    /// Added row.
    pub fn bias(&self) -> Option<&TensorSpec> {
        self.bias.as_ref()
    }
    /// Factor of the product.
    pub fn alpha(&self) -> f32 {
        self.alpha
    }
    /// Factor of `c`.
    pub fn beta(&self) -> f32 {
        self.beta
    }
    /// Function applied last.
    pub fn activation(&self) -> Activation {
        self.activation
    }
    /// Number of products: the leading extents of a.
    pub fn batch(&self) -> usize {
        split(&self.a).0.iter().product()
    }
    /// Rows of a product.
    pub fn m(&self) -> usize {
        split(&self.out).1[0]
    }
    /// Columns of a product.
    pub fn n(&self) -> usize {
        split(&self.out).1[1]
    }
    /// Length of the sums.
    pub fn k(&self) -> usize {
        split(&self.a).1[if self.form == GemmForm::Tn { 0 } else { 1 }]
    }
}

/// Floats of 8 and 4 bits, which factors may be stored in.
const CODES: [DType; 3] = [DType::F8E4M3, DType::F8E5M2, DType::F4E2M1];

fn op_name(form: GemmForm) -> &'static str {
    match form {
        GemmForm::Nn => "gemm_nn",
        GemmForm::Nt => "gemm_nt",
        GemmForm::Tn => "gemm_tn",
    }
}

/// Leading extents, and the last two (1 where missing).
fn split(spec: &TensorSpec) -> (&[usize], [usize; 2]) {
    match spec.dims() {
        [batch @ .., rows, columns] => (batch, [*rows, *columns]),
        _ => (&[], [1, 1]),
    }
}

impl Contract for GemmSpec {
    fn name(&self) -> &'static str {
        op_name(self.form)
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "a", spec: &self.a, access: Access::Read });
        visit(Operand { name: "b", spec: &self.b, access: Access::Read });
        if let Some(spec) = &self.c {
            visit(Operand { name: "c", spec, access: Access::Read });
        }
        if let Some(spec) = &self.bias {
            visit(Operand { name: "bias", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "c")]
    }

    fn cost(&self) -> Cost {
        let epilogue = [
            self.alpha != 1.0,
            self.c.is_some(),
            self.bias.is_some(),
            self.activation != Activation::Identity,
        ];
        let per_element = 2 * self.k() as u64 + epilogue.iter().filter(|&&on| on).count() as u64;
        streaming_cost(self, (self.out.numel() as u64).saturating_mul(per_element))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (batch, m, n, k) = (self.batch(), self.m(), self.n(), self.k());
        let (a, b) = (inputs[0], inputs[1]);
        let c = self.c.is_some().then(|| inputs[2]);
        let bias = self.bias.is_some().then(|| inputs[inputs.len() - 1]);
        let shared = self.b.rank() == 2;
        let mut out = vec![0.0; batch * m * n];
        for (index, value) in out.iter_mut().enumerate() {
            let (p, row, column) = (index / (m * n), index / n % m, index % n);
            let b0 = if shared { 0 } else { p * k * n };
            let sum: f64 = (0..k)
                .map(|i| {
                    let a_at = if self.form == GemmForm::Tn { i * m + row } else { row * k + i };
                    let b_at = if self.form == GemmForm::Nt { column * k + i } else { i * n + column };
                    a[p * m * k + a_at] * b[b0 + b_at]
                })
                .sum();
            let added =
                c.map_or(0.0, |c| f64::from(self.beta) * c[index]) + bias.map_or(0.0, |bias| bias[column]);
            *value = self.activation.apply(f64::from(self.alpha) * sum + added);
        }
        vec![out]
    }

    /// Factors lie in [−1, 1], so each of the k products is at most 1 and every partial sum at most k. (Products of
    /// floats of 8 bits or fewer are exact: significands of at most 4 bits.) An
    /// f32 sum in any order errs by at most `k·u·Σ|a·b|` ≤ `k²·u`; with independent roundings of partial
    /// sums of size √k the error is about `k·u/√3`. We allow `2·(k + 8)·u` (8 for the epilogue), times
    /// alpha, and one rounding to the result's type. Activations have slope at most 1.13.
    fn tolerance(&self) -> Vec<Tolerance> {
        if self.out.dtype() == DType::I32 {
            return vec![Tolerance::EXACT];
        }
        let u = if self.out.dtype() == DType::F64 { DType::F64 } else { DType::F32 }.unit_roundoff();
        let scale = f64::from(self.alpha.abs()).max(1.0) + f64::from(self.beta.abs());
        let accumulated = 2.0 * (self.k() as f64 + 8.0) * u * scale * 1.13;
        vec![Tolerance::rounded_to(self.out.dtype(), accumulated).plus(Tolerance { abs: 0.0, rel: 4.0 * u })]
    }
}

impl Cases for GemmSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        use GemmForm::{Nn, Nt, Tn};
        let mut cases = Vec::new();
        let edges: [(&str, usize, usize, usize); 10] = [
            ("empty_m", 0, 5, 3),
            ("empty_n", 5, 0, 3),
            ("empty_k", 4, 3, 0),
            ("one", 1, 1, 1),
            ("row", 1, 33, 65),
            ("column", 37, 1, 19),
            ("unaligned", 7, 13, 29),
            ("typical", 33, 48, 64),
            ("deep", 3, 17, 1031),
            ("wide", 130, 67, 40),
        ];
        let dtypes = [
            (DType::F64, DType::F64, DType::F64),
            (DType::F32, DType::F32, DType::F32),
            (DType::F16, DType::F16, DType::F16),
            (DType::BF16, DType::BF16, DType::BF16),
            (DType::BF16, DType::BF16, DType::F32),
            (DType::F32, DType::BF16, DType::F32),
            (DType::F32, DType::F16, DType::F32),
            (DType::I8, DType::I8, DType::I32),
            (DType::F8E4M3, DType::F8E4M3, DType::F32),
            (DType::F8E5M2, DType::F8E4M3, DType::BF16),
            (DType::F4E2M1, DType::F4E2M1, DType::F16),
            (DType::BF16, DType::F8E5M2, DType::BF16),
            (DType::F32, DType::F4E2M1, DType::F32),
        ];
        let plain = |form, m, n, k, (a, b, out): (DType, DType, DType)| -> Result<GemmSpec> {
            let a = TensorSpec::of(a, &if form == Tn { [k, m] } else { [m, k] })?;
            let b = TensorSpec::of(b, &if form == Nt { [n, k] } else { [k, n] })?;
            GemmSpec::new(form, &a, &b, &TensorSpec::of(out, &[m, n])?)
        };
        for form in [Nn, Nt, Tn] {
            for types in dtypes {
                for (name, m, n, k) in edges {
                    let spec = plain(form, m, n, k, types)?;
                    cases.push(Case::new(
                        format!("{}/{}_{}_{}/{name}", spec.name(), types.0, types.1, types.2),
                        spec,
                    ));
                }
            }
            for types in [dtypes[1], dtypes[3], dtypes[9]] {
                let spec = plain(form, 9, 20, 31, types)?;
                let c = TensorSpec::of(types.2, &[9, 20])?;
                let bias = TensorSpec::of(DType::F32, &[20])?;
                let name = format!("{}/{}", spec.name(), types.0);
                for activation in [
                    Activation::Identity,
                    Activation::Relu,
                    Activation::Silu,
                    Activation::Gelu,
                    Activation::GeluTanh,
                ] {
                    let full = spec
                        .clone()
                        .with_alpha(-0.5)?
                        .with_accumulate(&c, 2.0)?
                        .with_bias(&bias)?
                        .with_activation(activation)?;
                    // One row of the first factor, or one column of the result, is not a number.
                    let mut values: Vec<f64> = (0..9 * 31).map(|i| f64::from(i % 17) / 8.0 - 1.0).collect();
                    values[40] = f64::NAN;
                    let faulty = Case::new(format!("{name}/nan_{activation:?}"), full.clone());
                    cases.push(faulty.fill("a", Fill::Values(values)));
                    let bias: Vec<f64> = (0..20).map(|i| if i == 13 { f64::NAN } else { 0.25 }).collect();
                    let faulty = Case::new(format!("{name}/nan_bias_{activation:?}"), full.clone());
                    cases.push(faulty.fill("bias", Fill::Values(bias)));
                    cases.push(Case::new(format!("{name}/epilogue_{activation:?}"), full));
                }
                cases.push(Case::new(format!("{name}/alpha_zero"), spec.clone().with_alpha(0.0)?));
            }
            // Rows with gaps, columns apart, and every second matrix of a batch.
            for (stored, prefix) in [(DType::F32, ""), (DType::F8E4M3, "f8e4m3/")] {
                let a = TensorSpec::of(stored, &[4, 12, 10])?.narrow(1, 2, 7)?.narrow(2, 1, 7)?;
                let b = TensorSpec::of(stored, &[4, 7, 7])?.transpose(1, 2)?;
                let out = TensorSpec::of(DType::F32, &[7, 4, 8])?.transpose(0, 1)?.narrow(2, 0, 7)?;
                let spec = GemmSpec::new(form, &a, &b, &out)?;
                cases.push(Case::new(format!("{}/{prefix}strided_batch", spec.name()), spec));
                let shared = GemmSpec::new(form, &a, &b.select(0, 1)?, &out)?;
                cases.push(Case::new(format!("{}/{prefix}shared_b", shared.name()), shared));
            }
            // Every second row of a tensor of two to a byte, from an even place on.
            let a = TensorSpec::of(DType::F4E2M1, &[14, 24])?.reshape(&[7, 48])?.narrow(1, 2, 19)?;
            let b = TensorSpec::of(DType::F4E2M1, &if form == Nt { [40, 22] } else { [22, 40] })?;
            let k = if form == Tn { 7 } else { 19 };
            let b = b.narrow(usize::from(form == Nt), 2, k)?;
            let out = GemmSpec::out_spec(form, &a, &b)?;
            let spec = GemmSpec::new(form, &a, &b, &out)?;
            cases.push(Case::new(format!("{}/f4e2m1/strided", spec.name()), spec));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dtype: DType, dims: &[usize]) -> TensorSpec {
        TensorSpec::of(dtype, dims).unwrap()
    }

    #[test]
    fn a_small_product_by_hand() {
        let g = GemmSpec::new(
            GemmForm::Nn,
            &spec(DType::F32, &[1, 2]),
            &spec(DType::F32, &[2, 2]),
            &spec(DType::F32, &[1, 2]),
        );
        let out = g.unwrap().reference(&[&[2.0, 3.0], &[1.0, 10.0, 100.0, 1000.0]]);
        assert_eq!(out, [vec![302.0, 3020.0]]);
    }

    #[test]
    fn the_message_names_both_shapes_and_the_difference() {
        let e = GemmSpec::out_spec(GemmForm::Nt, &spec(DType::F32, &[4, 8]), &spec(DType::F32, &[16, 9]))
            .unwrap_err();
        assert_eq!(e.to_string(), "gemm_nt: a is [4, 8], b is [16, 9]: k differs (8 vs 9)");
    }

    #[test]
    fn floats_of_a_byte_and_of_half_a_byte_pair_with_each_other_and_under_wider_ones() {
        let stored = [DType::F8E4M3, DType::F8E5M2, DType::F4E2M1];
        let of = |a, b| GemmSpec::out_spec(GemmForm::Nt, &spec(a, &[2, 4]), &spec(b, &[6, 4]));
        for a in stored {
            for b in stored {
                assert_eq!(of(a, b).unwrap(), spec(DType::F32, &[2, 6]));
                for (out, legal) in [(DType::F16, true), (DType::BF16, true), (DType::F64, false), (b, false)]
                {
                    let (a, b) = (spec(a, &[2, 4]), spec(b, &[6, 4]));
                    assert_eq!(
                        GemmSpec::new(GemmForm::Nt, &a, &b, &spec(out, &[2, 6])).is_ok(),
                        legal,
                        "{out}"
                    );
                }
            }
            for wide in [DType::F32, DType::F16, DType::BF16] {
                assert_eq!(of(wide, a).unwrap().dtype(), wide);
                assert!(of(a, wide).is_err() && of(DType::F64, a).is_err() && of(DType::I8, a).is_err());
            }
        }
        let e = of(DType::F8E4M3, DType::E8M0).unwrap_err().to_string();
        assert_eq!(e, "gemm_nt: b is e8m0, expected f8e4m3 or f8e5m2 or f4e2m1");
    }

    #[test]
    fn integer_products_take_no_epilogue() {
        let g = GemmSpec::new(
            GemmForm::Nn,
            &spec(DType::I8, &[2, 3]),
            &spec(DType::I8, &[3, 2]),
            &spec(DType::I32, &[2, 2]),
        )
        .unwrap();
        assert!(g.with_alpha(2.0).is_err());
    }

    #[test]
    fn erf_agrees_with_known_values() {
        // Abramowitz and Stegun, table 7.1.
        for (x, y) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_8),
            (1.0, 0.842_700_792_9),
            (2.0, 0.995_322_265_0),
            (3.5, 0.999_999_256_9),
        ] {
            assert!((erf(x) - y).abs() < 2e-10, "{x}");
            assert!((erf(-x) + y).abs() < 2e-10, "{x}");
        }
    }

    #[test]
    fn every_case_is_legal() {
        assert!(GemmSpec::cases().unwrap().len() > 200);
    }
}
