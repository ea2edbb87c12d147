//! Linear layer: activations times a dense, quantized or packed weight, with bias and activation.
//!
//! One operator for every form of weight; the forms are in `weight.rs`, how codes become numbers in `scheme.rs`.

use super::weight::{PackedContent, QuantSpec, WeightSpec};
use super::{ActQuant, Offset, QuantScheme, ScaleKind};
use crate::kernel::Activation;
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, Shape, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_writable, streaming_cost,
};

const OP: &str = "linear";

/// Applies a linear layer.
///
/// `out[.., n] = act(Σ_k x[.., k] · w[n, k] + bias[n])`
///
/// With [`ActQuant::Int8`] or [`ActQuant::F8`], x is replaced by `scale · code`, rounded for each row and group by
/// [`ActQuant::round`] or [`ActQuant::round_f8`]; products of integer codes are summed in i32 over 32 columns at
/// least, then in f32.
///
/// # Shapes
/// x `[.., k]`, weight `[n, k]`, bias `[n]`, out `[.., n]` with x's leading extents. Any extent may be zero;
/// with `k = 0` the sum is 0.
///
/// # DTypes
/// x f32, f16 or bf16; out of x's type or f32; bias of out's type or f32. A dense weight (or what a packed
/// one was made from) is of x's type, or f16 or bf16 with x f32. Sums are f32.
///
/// Over a quantized weight ŵ and with x as it comes, x of 16 bits, a device may round ŵ to x's type before it
/// multiplies, as units for mixed precision do: out may then be off by up to `u·Σ_k |x[.., k]·ŵ[n, k]|` besides, u
/// being the unit roundoff of x's type, which has to hold ŵ. With x in f32, ŵ is never rounded.
///
/// # Layout
/// Any strides for x, a dense weight, bias and out; rows of a quantized weight's tensors are contiguous.
///
/// # Determinism
/// `RunToRun`: same bits for same shapes. `BatchInvariant`: a row of out depends on its own row of x only.
///
/// # Cost
/// `2·rows·n·k` operations, plus one per out element for each of bias and activation; the weight's bytes as
/// they are stored.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself), `Attribute` (rounded activations with a weight whose codes
/// are not of their kind, or in groups other than 32, 128 and a row).
///
/// # Composition
/// dequantize, then gemm_nt with the epilogue; dense weights need gemm_nt only.
///
/// # Source
/// Frantar et al. 2022 (grouped integer weights); the mixed-precision rule of GGUF's integer kernels; OCP
/// Microscaling formats 1.0; DeepSeek-V3 2024, 3.3 (f8 in blocks).
#[derive(Clone, Debug, PartialEq)]
pub struct LinearSpec {
    x: TensorSpec,
    weight: WeightSpec,
    out: TensorSpec,
    bias: Option<TensorSpec>,
    activation: Activation,
    act_quant: ActQuant,
}

impl LinearSpec {
    /// The layer without bias or activation, x as it comes.
    pub fn new(x: &TensorSpec, weight: &WeightSpec, out: &TensorSpec) -> Result<Self> {
        let want = Self::out_spec(x, weight)?;
        expect_dims(OP, "out", out, want.dims())?;
        expect_dtype(OP, "out", out, &[x.dtype(), DType::F32])?;
        expect_writable(OP, "out", out)?;
        Ok(Self {
            x: *x,
            weight: weight.clone(),
            out: *out,
            bias: None,
            activation: Activation::Identity,
            act_quant: ActQuant::None,
        })
    }

    /// The result: contiguous, of x's type.
    pub fn out_spec(x: &TensorSpec, weight: &WeightSpec) -> Result<TensorSpec> {
        expect_weight_dtype(OP, x, weight)?;
        let (n, k) = (weight.n(), weight.k());
        if x.rank() == 0 || x.shape().last() != k {
            let what = format!("x is {}, weight is [{n}, {k}]: the last extent of x must be {k}", x.shape());
            return Err(OpError::shape(OP, what));
        }
        Ok(TensorSpec::new(x.dtype(), x.shape().with_dim(x.rank() - 1, n)?))
    }

    /// Adds `bias[n]` to every row.
    pub fn with_bias(mut self, bias: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "bias", bias, &[self.n()])?;
        expect_dtype(OP, "bias", bias, &[self.out.dtype(), DType::F32])?;
        self.bias = Some(*bias);
        Ok(self)
    }

    /// Applies a function last.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Sets the precision of the activations.
    ///
    /// # Errors
    /// `Attribute` for a weight without codes, for int8 with float codes and f8 with integer ones, and for groups
    /// other than 32, 128 and [`ActQuant::ROW`].
    pub fn with_act_quant(mut self, act_quant: ActQuant) -> Result<Self> {
        expect_act_quant(OP, &self.weight, act_quant)?;
        self.act_quant = act_quant;
        Ok(self)
    }

    /// The same layer over another form of its weight.
    ///
    /// # Errors
    /// As [`LinearSpec::new`] and [`LinearSpec::with_act_quant`], for a weight of other extents or content.
    pub fn with_weight(&self, weight: &WeightSpec) -> Result<Self> {
        let layer = Self::new(&self.x, weight, &self.out)?;
        Self { bias: self.bias, activation: self.activation, ..layer }.with_act_quant(self.act_quant)
    }

    /// Activations.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Weight.
    pub fn weight(&self) -> &WeightSpec {
        &self.weight
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Added row.
    pub fn bias(&self) -> Option<&TensorSpec> {
        self.bias.as_ref()
    }
    /// Function applied last.
    pub fn activation(&self) -> Activation {
        self.activation
    }
    /// Precision of the activations.
    pub fn act_quant(&self) -> ActQuant {
        self.act_quant
    }
    /// Rows of x: the product of its leading extents.
    pub fn rows(&self) -> usize {
        self.x.shape().rows()
    }
    /// Outputs of a row.
    pub fn n(&self) -> usize {
        self.weight.n()
    }
    /// Inputs of a row.
    pub fn k(&self) -> usize {
        self.weight.k()
    }

    /// x as the sums see it.
    fn seen(&self, x: &[f64]) -> Vec<f64> {
        let mut seen = Vec::with_capacity(x.len());
        x.chunks(self.k().max(1)).for_each(|row| self.act_quant.seen(row, &mut seen));
        seen
    }
}

/// Fails with `Attribute` unless a product with this weight may round its activations so.
pub(crate) fn expect_act_quant(op: &'static str, weight: &WeightSpec, act_quant: ActQuant) -> Result<()> {
    let Some(group) = act_quant.group() else { return Ok(()) };
    if ![32, 128, ActQuant::ROW].contains(&group) {
        let what = format!("groups {group} columns, expected 32, 128 or a row");
        return Err(OpError::attribute(op, "act_quant", what));
    }
    let (name, wanted) = match act_quant {
        ActQuant::F8 { .. } => ("f8", true),
        _ => ("int8", false),
    };
    match weight.content() {
        PackedContent::Dense(dtype) => {
            let what = format!(
                "is {name} with a dense {dtype} weight; it needs codes to multiply, quantize the weight or use none"
            );
            Err(OpError::attribute(op, "act_quant", what))
        }
        PackedContent::Quant(scheme) if scheme.is_float() != wanted => {
            let what = format!(
                "is {name} with {} weight codes, which it does not multiply; use the other or none",
                scheme.code
            );
            Err(OpError::attribute(op, "act_quant", what))
        }
        PackedContent::Quant(_) => Ok(()),
    }
}

/// Fails with `DType` unless activations of x's type go with this weight.
pub(crate) fn expect_weight_dtype(op: &'static str, x: &TensorSpec, weight: &WeightSpec) -> Result<()> {
    expect_dtype(op, "x", x, &[DType::F32, DType::F16, DType::BF16])?;
    if let PackedContent::Dense(dtype) = weight.content() {
        let narrow = x.dtype() == DType::F32 && matches!(dtype, DType::F16 | DType::BF16);
        if dtype != x.dtype() && !narrow {
            return Err(OpError::dtype(op, "weight", dtype, x.dtype().name()));
        }
    }
    Ok(())
}

/// The unit roundoff of the type that a device may round a weight to before it multiplies it by x: 0 where it may not.
fn expansion_roundoff(x: DType, weight: &WeightSpec, act_quant: ActQuant) -> f64 {
    let may = weight.scheme().is_some() && act_quant == ActQuant::None && x.bits() == 16;
    if may { x.unit_roundoff() } else { 0.0 }
}

/// What sums of products of x with a weight err by, for activations in [−1, 1] and weights as [`QuantSpec::fills`] has
/// them; derived at [`LinearSpec`]'s tolerance.
pub(crate) fn product_tolerance(x: DType, weight: &WeightSpec, act_quant: ActQuant, out: DType) -> Tolerance {
    let (u, k) = (DType::F32.unit_roundoff(), weight.k() as f64);
    let steps = if act_quant == ActQuant::None { 2.0 } else { 4.0 };
    let accumulated = steps * 3.0 * (k + 8.0) * u;
    let expanded = 3.0 * k.sqrt() * expansion_roundoff(x, weight, act_quant);
    Tolerance::rounded_to(out, (accumulated + expanded) * 1.13).plus(Tolerance { abs: 0.0, rel: 4.0 * u })
}

impl Contract for LinearSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        self.weight.visit(Access::Read, visit);
        if let Some(spec) = &self.bias {
            visit(Operand { name: "bias", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        let epilogue = u64::from(self.bias.is_some()) + u64::from(self.activation != Activation::Identity);
        streaming_cost(self, (self.out.numel() as u64).saturating_mul(2 * self.k() as u64 + epilogue))
    }

    /// As the contract says, for dense and quantized weights. A packed weight's bytes mean nothing outside
    /// its backend: the result is then empty, and the weight it was packed from is the oracle.
    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let parts = self.weight.parts();
        let Some(weights) = self.weight.dequantize_f64(&inputs[1..1 + parts]) else { return Vec::new() };
        let bias = self.bias.is_some().then(|| inputs[1 + parts]);
        let x = self.seen(inputs[0]);
        let (rows, n, k) = (self.rows(), self.n(), self.k());
        let mut out = Vec::with_capacity(rows * n);
        for row in 0..rows {
            for column in 0..n {
                let sum: f64 = (0..k).map(|i| x[row * k + i] * weights[column * k + i]).sum();
                out.push(self.activation.apply(sum + bias.map_or(0.0, |bias| bias[column])));
            }
        }
        vec![out]
    }

    /// Activations lie in [−1, 1] and weights, as the cases fill them, in [−3, 3] ([`QuantSpec::fills`]), so
    /// every product is at most 3 and an f32 sum with independent roundings errs by about `3·k·u/√3`. We
    /// allow `2·3·(k + 8)·u` (8 for the epilogue), and twice that for rounded activations, whose groups meet scale,
    /// minimum and activation scale in an order of the backend's choosing; then one rounding to the result's type.
    /// The codes of the activations are exact in the contract and carry no error. Slopes are at most 1.13.
    ///
    /// Where a weight may be rounded to x's type, of unit roundoff u, each is off by at most `3·u` and the result by
    /// `u·Σ|x·ŵ| ≤ 3·k·u`. The roundings know nothing of x, which is of either sign: k of them make about
    /// `3·u·√k/3` (root mean squares 1/√3 of x and of a rounding), and far less with the cases' weights, of which few
    /// are near 3. We allow `3·√k·u`: the bound itself for k = 1, a sixth of it for k = 32.
    fn tolerance(&self) -> Vec<Tolerance> {
        vec![product_tolerance(self.x.dtype(), &self.weight, self.act_quant, self.out.dtype())]
    }
}

/// The schemes that cases run over: the file formats', integer groups with minima and zero points, per channel.
pub(crate) fn case_schemes(k: usize) -> Result<Vec<(&'static str, QuantScheme)>> {
    let group =
        |code, columns: usize, scale, offset| QuantScheme::new(code, [1, columns.max(1)], scale, offset);
    let (min, zero) = (Offset::Min, Offset::ZeroPoint);
    Ok(vec![
        ("q4_0", QuantScheme::Q4_0),
        ("q4_1", QuantScheme::Q4_1),
        ("q5_0", QuantScheme::Q5_0),
        ("q5_1", QuantScheme::Q5_1),
        ("q8_0", QuantScheme::Q8_0),
        ("q4_k", QuantScheme::Q4_K),
        ("q5_k", QuantScheme::Q5_K),
        ("q6_k", QuantScheme::Q6_K),
        ("u4_g64_f32_min", group(DType::U4, 64, ScaleKind::F32, min)?),
        ("u4_g128_f16_zero", group(DType::U4, 128, ScaleKind::F16, zero)?),
        ("i4_g32_bf16", group(DType::I4, 32, ScaleKind::BF16, Offset::None)?),
        ("i4_g32_f32_zero", group(DType::I4, 32, ScaleKind::F32, zero)?),
        ("u8_g64_bf16_min", group(DType::U8, 64, ScaleKind::BF16, min)?),
        ("u8_g32_f32_zero", group(DType::U8, 32, ScaleKind::F32, zero)?),
        ("i8_g24_f32", group(DType::I8, 24, ScaleKind::F32, Offset::None)?),
        ("i8_channel_f32", group(DType::I8, k, ScaleKind::F32, Offset::None)?),
        ("i8_channel_f32_zero", group(DType::I8, k, ScaleKind::F32, zero)?),
        ("u4_tile_f32_min", QuantScheme::new(DType::U4, [8, 32], ScaleKind::F32, min)?),
        ("i8_row_f32", QuantScheme::INT8_ROW),
        ("f8_block_f32", QuantScheme::F8_BLOCK),
        ("f8_block_e8m0", QuantScheme::F8_BLOCK_E8M0),
        ("f8_g48_bf16", group(DType::F8E4M3, 48, ScaleKind::BF16, Offset::None)?),
        ("f8e5m2_g64_f16", group(DType::F8E5M2, 64, ScaleKind::F16, Offset::None)?),
        ("mxfp8", QuantScheme::MXFP8),
        ("mxfp4", QuantScheme::MXFP4),
        ("f4_g16_f32", group(DType::F4E2M1, 16, ScaleKind::F32, Offset::None)?),
    ])
}

/// The precisions of activations that go with a scheme.
pub(crate) fn precisions(scheme: &QuantScheme) -> [(&'static str, ActQuant); 3] {
    let rounded = match (scheme.is_float(), scheme.block[1] == usize::MAX) {
        (true, _) => [("f8", ActQuant::F8_GROUP), ("f8_row", ActQuant::F8_ROW)],
        (false, true) => [("int8_g128", ActQuant::Int8 { group: 128 }), ("int8_row", ActQuant::INT8_ROW)],
        (false, false) => [("int8", ActQuant::INT8), ("int8_row", ActQuant::INT8_ROW)],
    };
    [("none", ActQuant::None), rounded[0], rounded[1]]
}

impl Cases for LinearSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let edges: [(&str, usize, usize, usize); 11] = [
            ("empty_m", 0, 5, 64),
            ("empty_n", 3, 0, 64),
            ("empty_k", 3, 4, 0),
            ("one", 1, 1, 1),
            ("one_group", 1, 1, 32),
            ("vector", 1, 33, 256),
            ("two_rows", 2, 16, 96),
            ("three_rows", 3, 19, 288),
            ("ragged", 4, 17, 83),
            ("rows", 17, 35, 320),
            ("typical", 40, 64, 576),
        ];
        let types =
            |i: usize| [(DType::F32, DType::F32), (DType::F16, DType::F16), (DType::BF16, DType::F32)][i % 3];
        for (edge, m, n, k) in edges {
            for (i, (scheme_name, scheme)) in case_schemes(k)?.into_iter().enumerate() {
                let weight = WeightSpec::from(QuantSpec::of(scheme, n, k)?);
                for (precision, act_quant) in precisions(&scheme) {
                    let (x, out) = if edge == "typical" { types(i) } else { types(0) };
                    let spec = plain(&weight, x, out, m)?.with_act_quant(act_quant)?;
                    cases.push(filled(format!("linear/{scheme_name}/{precision}/{edge}"), spec));
                }
            }
            for (x, w, out) in [
                (DType::F32, DType::F32, DType::F32),
                (DType::F32, DType::BF16, DType::F32),
                (DType::F16, DType::F16, DType::F16),
                (DType::BF16, DType::BF16, DType::BF16),
            ] {
                let weight = WeightSpec::dense(&TensorSpec::of(w, &[n, k])?)?;
                cases.push(filled(format!("linear/{x}_{w}_{out}/{edge}"), plain(&weight, x, out, m)?));
            }
        }
        for activation in [Activation::Relu, Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            let weight = WeightSpec::dense(&TensorSpec::of(DType::F32, &[21, 33])?)?;
            let spec = plain(&weight, DType::F32, DType::F32, 5)?
                .with_bias(&TensorSpec::of(DType::F32, &[21])?)?
                .with_activation(activation);
            let mut x: Vec<f64> = (0..5 * 33).map(|i| f64::from(i % 13) / 8.0 - 0.75).collect();
            x[70] = f64::NAN;
            let faulty = filled(format!("linear/f32_f32_f32/nan_{activation:?}"), spec);
            cases.push(faulty.fill("x", Fill::Values(x)));
        }
        // A code that is no number spoils its own output, and a row of x that is not finite its own row.
        for (name, scheme) in [("f8_block_f32", QuantScheme::F8_BLOCK), ("mxfp4", QuantScheme::MXFP4)] {
            let weight = WeightSpec::from(QuantSpec::of(scheme, 18, 160)?);
            let codes = |i: usize| if i == 3 * 160 + 70 { f64::NAN } else { (i % 5) as f64 - 2.0 };
            let x = |i: usize| if i == 160 + 9 { f64::INFINITY } else { (i % 7) as f64 / 8.0 };
            for (precision, act_quant) in precisions(&scheme) {
                let spec = plain(&weight, DType::F32, DType::F32, 3)?.with_act_quant(act_quant)?;
                let case = filled(format!("linear/{name}/{precision}/no_numbers"), spec);
                let case = case.fill("x", Fill::Values((0..3 * 160).map(x).collect()));
                cases.push(match scheme.code {
                    DType::F8E4M3 => {
                        case.fill("weight.codes", Fill::Values((0..18 * 160).map(codes).collect()))
                    }
                    _ => case,
                });
            }
        }
        // Codes on both sides and 16 bits around them: what products of codes on devices take and give.
        for x in [DType::F16, DType::BF16] {
            for (edge, m, n, k, out) in [
                ("one", 1, 1, 1, x),
                ("vector", 1, 33, 256, x),
                ("rows", 17, 35, 320, x),
                ("f32", 5, 21, 96, DType::F32),
            ] {
                let weight = WeightSpec::from(QuantSpec::of(QuantScheme::INT8_ROW, n, k)?);
                let spec = plain(&weight, x, out, m)?.with_act_quant(ActQuant::INT8_ROW)?;
                let as_it_comes = spec.clone().with_act_quant(ActQuant::None)?;
                cases.push(filled(format!("linear/i8_row_{x}/none/{edge}"), as_it_comes));
                cases.push(filled(format!("linear/i8_row_{x}/int8_row/{edge}"), spec.clone()));
                if edge == "rows" {
                    // Rows of zeros and rows that hold no number.
                    let x = |i: usize| match (i / k, i % k) {
                        (3, _) => 0.0,
                        (5, 7) => f64::NAN,
                        (9, 300) => f64::NEG_INFINITY,
                        (_, column) => (column % 7) as f64 / 8.0 - 0.375,
                    };
                    let case = filled(format!("linear/i8_row_{}/int8_row/no_numbers", spec.x.dtype()), spec);
                    cases.push(case.fill("x", Fill::Values((0..m * k).map(x).collect())));
                }
            }
        }
        cases.extend(expanded()?);
        // Every epilogue and type of result, three-dimensional x, and rows with gaps on every side.
        for (name, scheme) in [("q4_1", QuantScheme::Q4_1), ("q6_k", QuantScheme::Q6_K)] {
            let weight = WeightSpec::from(QuantSpec::of(scheme, 21, 288)?);
            for (index, activation) in
                [Activation::Relu, Activation::Silu, Activation::Gelu, Activation::GeluTanh]
                    .into_iter()
                    .enumerate()
            {
                let (x, out) = types(index);
                for act_quant in [ActQuant::None, ActQuant::INT8] {
                    let spec = plain(&weight, x, out, 5)?
                        .with_bias(&TensorSpec::of(DType::F32, &[21])?)?
                        .with_activation(activation)
                        .with_act_quant(act_quant)?;
                    let label = format!("linear/{name}/{{}}_{activation:?}_{act_quant:?}");
                    let bias = (0..21).map(|i| if i == 17 { f64::NAN } else { -0.25 }).collect();
                    let faulty = filled(label.replace("{}", "nan_bias"), spec.clone());
                    cases.push(faulty.fill("bias", Fill::Values(bias)));
                    cases.push(filled(label.replace("{}", "epilogue"), spec));
                }
            }
            let x = TensorSpec::of(DType::F32, &[4, 3, 300])?.transpose(0, 1)?.narrow(2, 5, 288)?;
            let out = TensorSpec::of(DType::F32, &[3, 30, 4])?.transpose(1, 2)?.narrow(2, 2, 21)?;
            let whole = QuantSpec::of(scheme, 30, 512)?;
            let rows = |spec: &TensorSpec| spec.narrow(0, 4, 21)?.narrow(1, 0, spec.dims()[1].min(288));
            let columns = |spec: &TensorSpec, block: usize| {
                spec.narrow(0, 4, 21)?.narrow(1, 0, 288usize.div_ceil(block))
            };
            let outer_columns = scheme.scale.outer().map_or(1, |(_, block)| block);
            let part = |spec: Option<&TensorSpec>, block| spec.map(|s| columns(s, block)).transpose();
            let strided = QuantSpec::new(
                scheme,
                &rows(whole.codes())?,
                &columns(whole.scale(), scheme.block[1])?,
                part(whole.offset(), scheme.block[1])?.as_ref(),
                part(whole.outer(), outer_columns)?.as_ref(),
                part(whole.outer_offset(), outer_columns)?.as_ref(),
            )?;
            for act_quant in [ActQuant::None, ActQuant::INT8] {
                let spec = LinearSpec::new(&x, &strided.clone().into(), &out)?;
                let spec = spec.with_act_quant(act_quant)?;
                cases.push(filled(format!("linear/{name}/strided_{act_quant:?}"), spec));
            }
        }
        Ok(cases)
    }
}

/// Schemes whose scales are of a type of activations: what a device may expand to that type.
pub(crate) fn expanded_schemes(x: DType, k: usize) -> Result<Vec<(&'static str, QuantScheme)>> {
    let scale = if x == DType::F16 { ScaleKind::F16 } else { ScaleKind::BF16 };
    let group = |code, columns: usize, offset| QuantScheme::new(code, [1, columns.max(1)], scale, offset);
    Ok(vec![
        ("i4_g32", group(DType::I4, 32, Offset::None)?),
        ("i4_g64_zero", group(DType::I4, 64, Offset::ZeroPoint)?),
        ("i4_channel", group(DType::I4, k, Offset::None)?),
        ("i8_g32_zero", group(DType::I8, 32, Offset::ZeroPoint)?),
        ("i8_g64", group(DType::I8, 64, Offset::None)?),
        ("i8_channel_zero", group(DType::I8, k, Offset::ZeroPoint)?),
        ("f8_channel", group(DType::F8E4M3, k, Offset::None)?),
        ("f8_g64", group(DType::F8E4M3, 64, Offset::None)?),
        ("mxfp4", QuantScheme::MXFP4),
    ])
}

/// 16 bits around weights that a device may expand to them: every scheme in one shape, then biases, rows that lie apart,
/// and groups that do not fill a row.
fn expanded() -> Result<Vec<Case<LinearSpec>>> {
    let mut cases = Vec::new();
    for x in [DType::F16, DType::BF16] {
        for (m, n, k) in [(1, 33, 256), (17, 36, 320)] {
            for (name, scheme) in expanded_schemes(x, k)? {
                let weight = WeightSpec::from(QuantSpec::of(scheme, n, k)?);
                cases.push(filled(format!("linear/{name}_{x}/none/expanded_{m}"), plain(&weight, x, x, m)?));
            }
        }
        for (name, scheme) in expanded_schemes(x, 100)?.into_iter().step_by(3) {
            let weight = WeightSpec::from(QuantSpec::of(scheme, 9, 100)?);
            cases.push(filled(format!("linear/{name}_{x}/none/expanded_ragged"), plain(&weight, x, x, 3)?));
        }
        let (name, scheme) = expanded_schemes(x, 96)?.swap_remove(0);
        let weight = WeightSpec::from(QuantSpec::of(scheme, 21, 96)?);
        for bias in [x, DType::F32] {
            let spec = plain(&weight, x, x, 5)?.with_bias(&TensorSpec::of(bias, &[21])?)?;
            cases.push(filled(format!("linear/{name}_{x}/none/expanded_bias_{bias}"), spec));
        }
        let rows = TensorSpec::of(x, &[4, 3, 100])?.transpose(0, 1)?.narrow(2, 2, 96)?;
        let out = TensorSpec::of(x, &[3, 4, 24])?.narrow(2, 1, 21)?;
        let apart = LinearSpec::new(&rows, &weight, &out)?;
        cases.push(filled(format!("linear/{name}_{x}/none/expanded_strided"), apart));
    }
    Ok(cases)
}

fn plain(weight: &WeightSpec, x: DType, out: DType, m: usize) -> Result<LinearSpec> {
    let dims = |last| Shape::new(&[m, last]);
    LinearSpec::new(&TensorSpec::new(x, dims(weight.k())?), weight, &TensorSpec::new(out, dims(weight.n())?))
}

fn filled(name: String, spec: LinearSpec) -> Case<LinearSpec> {
    let fills = spec.weight.fills();
    fills.into_iter().fold(Case::new(name, spec), |case, (operand, fill)| case.fill(operand, fill))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quant(scheme: QuantScheme, n: usize, k: usize) -> WeightSpec {
        WeightSpec::from(QuantSpec::of(scheme, n, k).unwrap())
    }

    #[test]
    fn a_small_layer_by_hand() {
        let scheme = QuantScheme::new(DType::U4, [1, 2], ScaleKind::F32, Offset::Min).unwrap();
        let spec = plain(&quant(scheme, 1, 4), DType::F32, DType::F32, 1).unwrap();
        let inputs: [&[f64]; 4] = [&[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0, 3.0, 4.0], &[0.5, 2.0], &[1.0, -1.0]];
        assert_eq!(spec.reference(&inputs), [vec![1.5 + 4.0 + 15.0 + 28.0]]);
        let int8 = spec.with_act_quant(ActQuant::INT8).unwrap().reference(&inputs)[0][0];
        let scale = f64::from(4.0f32 / 127.0);
        assert_eq!(int8, scale * (32.0 * 1.5 + 64.0 * 2.0 + 95.0 * 5.0 + 127.0 * 7.0));
    }

    #[test]
    fn int8_activations_need_integer_weights() {
        let dense = WeightSpec::dense(&TensorSpec::of(DType::F32, &[4, 64]).unwrap()).unwrap();
        let e = plain(&dense, DType::F32, DType::F32, 2).unwrap().with_act_quant(ActQuant::INT8).unwrap_err();
        assert!(matches!(e, OpError::Attribute { .. }), "{e}");
        let spec = plain(&quant(QuantScheme::Q8_0, 4, 64), DType::F32, DType::F32, 2).unwrap();
        assert!(spec.clone().with_act_quant(ActQuant::Int8 { group: 64 }).is_err());
        assert!(spec.with_act_quant(ActQuant::F8_GROUP).is_err());
        let spec = plain(&quant(QuantScheme::MXFP4, 4, 64), DType::F32, DType::F32, 2).unwrap();
        assert!(spec.clone().with_act_quant(ActQuant::F8_ROW).is_ok());
        let e = spec.with_act_quant(ActQuant::INT8).unwrap_err();
        assert!(e.to_string().contains("int8 with f4e2m1 weight codes"), "{e}");
    }

    #[test]
    fn extents_and_types_that_do_not_fit_are_refused() {
        let weight = quant(QuantScheme::Q4_0, 4, 64);
        let of = |dtype, dims: &[usize]| TensorSpec::of(dtype, dims).unwrap();
        let new = |x: &TensorSpec, out: &TensorSpec| LinearSpec::new(x, &weight, out);
        assert!(new(&of(DType::F32, &[2, 3, 64]), &of(DType::F32, &[2, 3, 4])).is_ok());
        assert!(new(&of(DType::F32, &[64]), &of(DType::F32, &[4])).is_ok());
        assert!(new(&of(DType::F32, &[]), &of(DType::F32, &[4])).is_err());
        assert!(new(&of(DType::F32, &[2, 63]), &of(DType::F32, &[2, 4])).is_err());
        assert!(new(&of(DType::F64, &[2, 64]), &of(DType::F64, &[2, 4])).is_err());
        assert!(new(&of(DType::F32, &[2, 64]), &of(DType::F16, &[2, 4])).is_err());
        let spec = new(&of(DType::F16, &[2, 64]), &of(DType::F16, &[2, 4])).unwrap();
        assert!(spec.clone().with_bias(&of(DType::BF16, &[4])).is_err());
        assert!(spec.with_bias(&of(DType::F16, &[5])).is_err());
    }

    #[test]
    fn the_cost_counts_the_weight_as_it_is_stored() {
        let spec = plain(&quant(QuantScheme::Q4_1, 64, 96), DType::F32, DType::F32, 3).unwrap();
        let cost = spec.cost();
        assert_eq!(cost.flops, 2 * 3 * 64 * 96);
        assert_eq!(cost.bytes_read, 3 * 96 * 4 + 64 * 3 * 20);
        assert_eq!(cost.bytes_written, 3 * 64 * 4);
    }

    #[test]
    fn weights_rounded_to_the_activations_type_are_within_the_tolerance_and_one_wrong_scale_is_not() {
        let (m, n, k) = (4, 24, 320);
        for x_type in [DType::F16, DType::BF16] {
            let rounded = |values: Vec<f64>| -> Vec<f64> {
                values.into_iter().map(|x| crate::host::rounded(x_type, x)).collect()
            };
            for (name, scheme) in expanded_schemes(x_type, k).unwrap() {
                let weight = QuantSpec::of(scheme, n, k).unwrap();
                let spec = plain(&weight.clone().into(), x_type, x_type, m).unwrap();
                let x = Fill::Unit.draw(spec.x(), 3);
                let parts = [Some(weight.codes()), Some(weight.scale()), weight.offset()];
                let fills = weight.fills().into_iter().zip(parts.into_iter().flatten());
                let drawn: Vec<Vec<f64>> = fills.map(|((_, fill), part)| fill.draw(part, 7)).collect();
                let product = |parts: &[Vec<f64>]| -> Vec<f64> {
                    let parts: Vec<&[f64]> = parts.iter().map(Vec::as_slice).collect();
                    let w = rounded(weight.dequantize_f64(&parts));
                    let at = |i: usize| (0..k).map(|j| x[i / n * k + j] * w[i % n * k + j]).sum();
                    rounded((0..m * n).map(at).collect())
                };
                let inputs: Vec<&[f64]> = core::iter::once(&x).chain(&drawn).map(Vec::as_slice).collect();
                let (want, tolerance) = (spec.reference(&inputs).swap_remove(0), spec.tolerance()[0]);
                let worst = |got: &[f64]| {
                    got.iter().zip(&want).map(|(&g, &w)| tolerance.excess(g, w)).fold(0.0, f64::max)
                };
                let expanded = worst(&product(&drawn));
                assert!(expanded < 0.7, "{name} with {x_type}: {expanded} of the tolerance");
                let mut wrong = drawn.clone();
                let largest = wrong[1].iter_mut().max_by(|a, b| a.total_cmp(b)).unwrap();
                *largest /= 2.0;
                let found = worst(&product(&wrong));
                assert!(found > 2.0, "{name} with {x_type}: a wrong scale is {found} of the tolerance");
            }
        }
    }

    #[test]
    fn only_quantized_weights_under_sixteen_bits_have_room_for_expansion() {
        let int4 = quant(QuantScheme::Q4_0, 4, 64);
        let dense = |x| WeightSpec::dense(&TensorSpec::of(x, &[4, 64]).unwrap()).unwrap();
        let room = |weight: &WeightSpec, x, act_quant| {
            plain(weight, x, DType::F32, 2).unwrap().with_act_quant(act_quant).unwrap().tolerance()[0].abs
        };
        let exact = room(&int4, DType::F32, ActQuant::None);
        assert_eq!(room(&dense(DType::F16), DType::F16, ActQuant::None), exact);
        assert_eq!(room(&int4, DType::F16, ActQuant::INT8), 2.0 * exact);
        let [half, brain] = [DType::F16, DType::BF16].map(|x| room(&int4, x, ActQuant::None) - exact);
        assert!((half - 1.13 * 24.0 / 2048.0).abs() < 1e-12 && (brain - 8.0 * half).abs() < 1e-12);
    }

    #[test]
    fn every_case_is_legal() {
        assert!(LinearSpec::cases().unwrap().len() > 400);
    }
}
