//! Products of every expert's rows with that expert's weight, in one operator.
//!
//! The rows are laid out as `moe_permute` lays them out; how many an expert has is known to the device only.

use super::experts::{ExpertNames, ExpertsSpec};
use crate::quant::linear::{
    case_schemes, expanded_schemes, expect_act_quant, expect_weight_dtype, precisions, product_tolerance,
};
use crate::quant::{ActQuant, LinearSpec};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_rank, expect_writable, streaming_cost,
};
use core::ops::Range;

const OP: &str = "grouped_gemm";

/// How the rows of an expert are found.
#[derive(Clone, Debug, PartialEq)]
enum Grouping {
    /// Rows `offsets[e]..offsets[e + 1]` of one matrix.
    Contiguous(TensorSpec),
    /// The first `counts[e]` rows of each expert's room.
    Masked(TensorSpec),
}

/// Multiplies the rows of every expert by its weight.
///
/// `out[r, n] = Σ_k x[r, k] · weight[e, n, k] + bias[e, n]` for the rows r of expert e; the other rows of out are 0
///
/// # Shapes
/// [`GroupedGemmSpec::contiguous`]: x `[M, k]`, offsets `[E + 1]` rising within 0 to M, out `[M, n]`; expert e has
/// rows `offsets[e]` to `offsets[e + 1]`. [`GroupedGemmSpec::masked`]: x `[E, C, k]`, counts `[E]` of 0 to C, out
/// `[E, C, n]`; expert e has the first `counts[e]` of its C rows. weight `[E, n, k]` in any form, bias `[E, n]`. Any
/// extent may be zero; with `k = 0` a row is its bias.
///
/// # DTypes
/// As in linear: x f32, f16 or bf16; out of x's type or f32; bias of out's type or f32; a dense weight of x's type,
/// or f16 or bf16 with x f32. offsets and counts i32. Sums are f32; quantized weights may be rounded to x's type
/// before, where linear's may.
///
/// # Layout
/// Any strides for x, bias, out and dense weights; experts of any form may lie apart.
///
/// # Determinism
/// `RunToRun`: same bits for same shapes and counts. `BatchInvariant`: a row of out depends on its own row of x and
/// its expert only.
///
/// # Cost
/// `2·rows·n·k` operations (plus one per element of a row's bias), rows being those that were announced with
/// [`GroupedGemmSpec::with_expected_rows`], else all. The weights of as many experts are read as there are rows, at
/// most all of them: exact where rows are spread evenly. Weights of experts without rows are not read.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself), `Attribute` (rounded activations as in linear). Offsets that
/// fall or leave x, and counts beyond their room, are a data fault of native kernels; a composition takes them for
/// experts without rows.
///
/// # Composition
/// For each expert linear of all rows, of which select keeps its own.
///
/// # Source
/// The contiguous and masked layouts of DeepGEMM (DeepSeek 2025).
#[derive(Clone, Debug, PartialEq)]
pub struct GroupedGemmSpec {
    x: TensorSpec,
    weight: ExpertsSpec,
    grouping: Grouping,
    out: TensorSpec,
    bias: Option<TensorSpec>,
    act_quant: ActQuant,
    expected_rows: Option<usize>,
}

impl GroupedGemmSpec {
    /// The contiguous layout.
    pub fn contiguous(
        x: &TensorSpec,
        weight: &ExpertsSpec,
        offsets: &TensorSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        expect_rank(OP, "x", x, 2)?;
        expect_dims(OP, "offsets", offsets, &[weight.count().saturating_add(1)])?;
        Self::checked(x, weight, Grouping::Contiguous(*offsets), ("offsets", offsets), out)
    }

    /// The masked layout.
    pub fn masked(
        x: &TensorSpec,
        weight: &ExpertsSpec,
        counts: &TensorSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        expect_rank(OP, "x", x, 3)?;
        expect_dims(OP, "x", x, &[weight.count(), x.dims()[1], x.dims()[2]])?;
        expect_dims(OP, "counts", counts, &[weight.count()])?;
        Self::checked(x, weight, Grouping::Masked(*counts), ("counts", counts), out)
    }

    fn checked(
        x: &TensorSpec,
        weight: &ExpertsSpec,
        grouping: Grouping,
        (arg, numbers): (&'static str, &TensorSpec),
        out: &TensorSpec,
    ) -> Result<Self> {
        let want = Self::out_spec(x, weight)?;
        expect_dtype(OP, arg, numbers, &[DType::I32])?;
        if x.shape().rows() > i32::MAX as usize {
            return Err(OpError::shape(OP, format!("x is {}, expected fewer than 2^31 rows", x.shape())));
        }
        expect_dims(OP, "out", out, want.dims())?;
        expect_dtype(OP, "out", out, &[x.dtype(), DType::F32])?;
        expect_writable(OP, "out", out)?;
        Ok(Self {
            x: *x,
            weight: weight.clone(),
            grouping,
            out: *out,
            bias: None,
            act_quant: ActQuant::None,
            expected_rows: None,
        })
    }

    /// The result: contiguous, of x's type.
    pub fn out_spec(x: &TensorSpec, weight: &ExpertsSpec) -> Result<TensorSpec> {
        expect_weight_dtype(OP, x, weight.one())?;
        let (n, k) = (weight.n(), weight.k());
        if x.rank() == 0 || x.shape().last() != k {
            let what =
                format!("x is {}, weights are [{n}, {k}]: the last extent of x must be {k}", x.shape());
            return Err(OpError::shape(OP, what));
        }
        Ok(TensorSpec::new(x.dtype(), x.shape().with_dim(x.rank() - 1, n)?))
    }

    /// Adds `bias[E, n]`, each expert's to its rows.
    pub fn with_bias(mut self, bias: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "bias", bias, &[self.weight.count(), self.weight.n()])?;
        expect_dtype(OP, "bias", bias, &[self.out.dtype(), DType::F32])?;
        self.bias = Some(*bias);
        Ok(self)
    }

    /// Sets the precision of the activations, as in linear.
    pub fn with_act_quant(mut self, act_quant: ActQuant) -> Result<Self> {
        expect_act_quant(OP, self.weight.one(), act_quant)?;
        self.act_quant = act_quant;
        Ok(self)
    }

    /// Announces how many rows all experts have together, for costs.
    pub fn with_expected_rows(mut self, rows: usize) -> Self {
        self.expected_rows = Some(rows.min(self.x.shape().rows()));
        self
    }

    /// The same product over another form of the same weights.
    ///
    /// # Errors
    /// As the constructors and setters, of the other form.
    pub fn with_weight(&self, weight: &ExpertsSpec) -> Result<Self> {
        let other = match &self.grouping {
            Grouping::Contiguous(offsets) => Self::contiguous(&self.x, weight, offsets, &self.out)?,
            Grouping::Masked(counts) => Self::masked(&self.x, weight, counts, &self.out)?,
        };
        let (bias, expected_rows) = (self.bias, self.expected_rows);
        Self { bias, expected_rows, ..other }.with_act_quant(self.act_quant)
    }

    /// Rows of all experts.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Weights of all experts.
    pub fn weight(&self) -> &ExpertsSpec {
        &self.weight
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Where each expert's rows begin, in the contiguous layout.
    pub fn offsets(&self) -> Option<&TensorSpec> {
        match &self.grouping {
            Grouping::Contiguous(offsets) => Some(offsets),
            Grouping::Masked(_) => None,
        }
    }
    /// How many rows each expert has, in the masked layout.
    pub fn counts(&self) -> Option<&TensorSpec> {
        match &self.grouping {
            Grouping::Contiguous(_) => None,
            Grouping::Masked(counts) => Some(counts),
        }
    }
    /// Added rows.
    pub fn bias(&self) -> Option<&TensorSpec> {
        self.bias.as_ref()
    }
    /// Precision of the activations.
    pub fn act_quant(&self) -> ActQuant {
        self.act_quant
    }

    /// The layer of rows `rows` (of one matrix, or of the expert's room) of `expert`, with the weight of the first
    /// expert: what a kernel runs on that expert's own weight.
    ///
    /// # Errors
    /// `Shape` when there are no such rows.
    pub fn layer(&self, expert: usize, rows: Range<usize>) -> Result<LinearSpec> {
        let own = |spec: &TensorSpec| -> Result<TensorSpec> {
            let rows_of = match self.grouping {
                Grouping::Contiguous(_) => *spec,
                Grouping::Masked(_) => spec.select(0, expert)?,
            };
            rows_of.narrow(0, rows.start, rows.len())
        };
        let layer = LinearSpec::new(&own(&self.x)?, self.weight.one(), &own(&self.out)?)?;
        let layer = layer.with_act_quant(self.act_quant)?;
        match &self.bias {
            Some(bias) => layer.with_bias(&bias.select(0, expert)?),
            None => Ok(layer),
        }
    }

    /// The rows of each expert in `[M]` or `[E·C]`, by offsets or counts as they are; none for those that are wrong.
    fn ranges(&self, numbers: &[f64]) -> Vec<Range<usize>> {
        let count = self.weight.count();
        let inside = |start: f64, end: f64, limit: usize| match start >= 0.0 && start <= end {
            true if end <= limit as f64 => start as usize..end as usize,
            _ => 0..0,
        };
        match &self.grouping {
            Grouping::Contiguous(_) => {
                numbers.windows(2).map(|pair| inside(pair[0], pair[1], self.x.dims()[0])).collect()
            }
            Grouping::Masked(_) => {
                let room = self.x.dims()[1];
                let shifted = |(expert, &rows): (usize, &f64)| {
                    let rows = inside(0.0, rows, room);
                    expert * room..expert * room + rows.len()
                };
                numbers.iter().take(count).enumerate().map(shifted).collect()
            }
        }
    }
}

impl Contract for GroupedGemmSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        self.weight.visit(&ExpertNames::WEIGHT, Access::Read, visit);
        match &self.grouping {
            Grouping::Contiguous(spec) => visit(Operand { name: "offsets", spec, access: Access::Read }),
            Grouping::Masked(spec) => visit(Operand { name: "counts", spec, access: Access::Read }),
        }
        if let Some(spec) = &self.bias {
            visit(Operand { name: "bias", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        let rows = self.expected_rows.unwrap_or(self.x.shape().rows());
        let each = 2 * self.weight.k() as u64 + u64::from(self.bias.is_some());
        let products = (rows as u64).saturating_mul(self.weight.n() as u64).saturating_mul(each);
        let mut cost = streaming_cost(self, products);
        let unread = |all: usize, read: usize, bytes: usize| {
            (all.saturating_sub(read) as u64).saturating_mul(bytes as u64)
        };
        let count = self.weight.count();
        let weights = unread(count, count.min(rows), self.weight.bytes_each());
        let row_bytes = self.x.dtype().bytes_for(self.weight.k());
        let x = unread(self.x.shape().rows(), rows, row_bytes);
        cost.bytes_read = cost.bytes_read.saturating_sub(weights).saturating_sub(x);
        cost
    }

    /// As the contract says, for dense and quantized weights; empty for packed ones, as in linear.
    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (n, k, parts) = (self.weight.n(), self.weight.k(), self.weight.parts());
        let mut out = vec![0.0; self.out.numel()];
        for (expert, rows) in self.ranges(inputs[1 + parts]).into_iter().enumerate() {
            let Some(weights) = self.weight.dequantize_f64(expert, &inputs[1..1 + parts]) else {
                return Vec::new();
            };
            for row in rows {
                let mut x = Vec::with_capacity(k);
                self.act_quant.seen(&inputs[0][row * k..(row + 1) * k], &mut x);
                for column in 0..n {
                    let sum: f64 = (0..k).map(|i| x[i] * weights[column * k + i]).sum();
                    let bias = self.bias.map_or(0.0, |_| inputs[2 + parts][expert * n + column]);
                    out[row * n + column] = sum + bias;
                }
            }
        }
        vec![out]
    }

    /// As in linear: an expert's rows are a layer.
    fn tolerance(&self) -> Vec<Tolerance> {
        vec![product_tolerance(self.x.dtype(), self.weight.one(), self.act_quant, self.out.dtype())]
    }
}

/// How many of `rows` rows each of `experts` has: spread with a rest left over, all for one, none.
fn shares(rows: usize, experts: usize) -> Vec<(&'static str, Vec<usize>)> {
    let each = rows / experts.max(1);
    let spread = (0..experts).map(|e| if e % 3 == 1 { 0 } else { each - e % 2 * each.min(1) }).collect();
    let one = (0..experts).map(|e| if e == experts / 2 { rows } else { 0 }).collect();
    vec![("spread", spread), ("to_one", one), ("none", vec![0; experts])]
}

/// A contract in one of the layouts, and the numbers that say whose rows are whose.
struct LaidOut {
    layout: &'static str,
    spec: GroupedGemmSpec,
    numbers: (&'static str, Vec<f64>),
}

/// Both layouts of one set of shares.
fn layouts(
    weight: &ExpertsSpec,
    [x_type, out_type]: [DType; 2],
    rows: usize,
    share: &[usize],
) -> Result<[LaidOut; 2]> {
    let (experts, n, k) = (weight.count(), weight.n(), weight.k());
    let of = |dtype, dims: &[usize]| TensorSpec::of(dtype, dims);
    let contiguous = GroupedGemmSpec::contiguous(
        &of(x_type, &[rows, k])?,
        weight,
        &of(DType::I32, &[experts + 1])?,
        &of(out_type, &[rows, n])?,
    )?;
    // The first row is left out where there is room, so that rows before the first expert are seen too.
    let mut offsets = vec![usize::from(share.iter().sum::<usize>() < rows)];
    share.iter().for_each(|&rows| offsets.push(offsets[offsets.len() - 1] + rows));
    let room = share.iter().copied().max().unwrap_or(0);
    let masked = GroupedGemmSpec::masked(
        &of(x_type, &[experts, room, k])?,
        weight,
        &of(DType::I32, &[experts])?,
        &of(out_type, &[experts, room, n])?,
    )?;
    let numbers = |values: &[usize]| values.iter().map(|&v| v as f64).collect();
    Ok([
        LaidOut { layout: "contiguous", spec: contiguous, numbers: ("offsets", numbers(&offsets)) },
        LaidOut { layout: "masked", spec: masked, numbers: ("counts", numbers(share)) },
    ])
}

fn filled(name: String, spec: GroupedGemmSpec, numbers: (&'static str, Vec<f64>)) -> Case<GroupedGemmSpec> {
    let fills = spec.weight.fills(&ExpertNames::WEIGHT);
    let case = Case::new(name, spec).fill(numbers.0, Fill::Values(numbers.1));
    fills.into_iter().fold(case, |case, (operand, fill)| case.fill(operand, fill))
}

impl Cases for GroupedGemmSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        // Rows, experts, n, k.
        let edges: [(&str, [usize; 4]); 9] = [
            ("no_rows", [0, 3, 5, 64]),
            ("no_experts", [3, 0, 5, 64]),
            ("no_outputs", [3, 2, 0, 64]),
            ("no_inputs", [3, 2, 4, 0]),
            ("one", [1, 1, 1, 1]),
            ("one_row_each", [4, 4, 33, 96]),
            ("ragged", [23, 4, 17, 83]),
            ("many", [70, 64, 19, 64]),
            ("typical", [90, 3, 48, 320]),
        ];
        let types = [
            [DType::F32, DType::F32, DType::F32],
            [DType::F32, DType::BF16, DType::F32],
            [DType::F16, DType::F16, DType::F16],
            [DType::BF16, DType::BF16, DType::F32],
        ];
        for (edge, [rows, experts, n, k]) in edges {
            for (share_name, share) in shares(rows, experts) {
                for [x, w, out] in types {
                    let weight = ExpertsSpec::dense(&TensorSpec::of(w, &[experts, n, k])?)?;
                    for LaidOut { layout, spec, numbers } in layouts(&weight, [x, out], rows, &share)? {
                        let name = format!("grouped_gemm/{layout}/{x}_{w}_{out}/{edge}/{share_name}");
                        cases.push(filled(name, spec, numbers));
                    }
                }
            }
        }
        for (edge, [rows, experts, n, k]) in [("one_row_each", [3, 3, 18, 96]), ("ragged", [17, 3, 21, 290])]
        {
            for (index, (scheme_name, scheme)) in case_schemes(k)?.into_iter().enumerate() {
                let weight = ExpertsSpec::of(scheme, experts, n, k)?;
                let x = if edge == "ragged" {
                    [DType::F32, DType::F16, DType::BF16][index % 3]
                } else {
                    DType::F32
                };
                let (share_name, share) = shares(rows, experts).swap_remove(index % 2);
                for (precision, act_quant) in precisions(&scheme) {
                    for LaidOut { layout, spec, numbers } in layouts(&weight, [x, DType::F32], rows, &share)?
                    {
                        let name =
                            format!("grouped_gemm/{layout}/{scheme_name}/{precision}/{edge}/{share_name}");
                        let spec = spec.with_act_quant(act_quant)?;
                        let spec = match index % 2 {
                            0 => spec,
                            _ => spec.with_bias(&TensorSpec::of(DType::F32, &[experts, n])?)?,
                        };
                        cases.push(filled(name, spec, numbers));
                    }
                }
            }
        }
        // Experts of one block of rows and a part of the next.
        let weight = ExpertsSpec::of(crate::quant::QuantScheme::F8_BLOCK, 3, 150, 140)?;
        let (share_name, share) = shares(17, 3).swap_remove(0);
        for LaidOut { layout, spec, numbers } in layouts(&weight, [DType::F32; 2], 17, &share)? {
            let name = format!("grouped_gemm/{layout}/f8_block_f32/none/cut_blocks/{share_name}");
            cases.push(filled(name, spec, numbers));
        }
        // Codes on both sides and 16 bits around them: what products of codes on devices take and give.
        for x in [DType::F16, DType::BF16] {
            for (edge, [rows, experts, n, k]) in
                [("one_row_each", [3, 3, 18, 96]), ("ragged", [17, 3, 21, 290]), ("many", [70, 64, 19, 64])]
            {
                let weight = ExpertsSpec::of(crate::quant::QuantScheme::INT8_ROW, experts, n, k)?;
                let (share_name, share) = shares(rows, experts).swap_remove(0);
                for LaidOut { layout, spec, numbers } in layouts(&weight, [x, x], rows, &share)? {
                    let name = format!("grouped_gemm/{layout}/i8_row_{x}/int8_row/{edge}/{share_name}");
                    cases.push(filled(name, spec.with_act_quant(ActQuant::INT8_ROW)?, numbers));
                }
            }
        }
        // 16 bits around weights that a device may expand to them.
        for x in [DType::F16, DType::BF16] {
            let [rows, experts, n, k] = [17, 3, 20, 192];
            for (index, (scheme_name, scheme)) in expanded_schemes(x, k)?.into_iter().enumerate() {
                let weight = ExpertsSpec::of(scheme, experts, n, k)?;
                let (share_name, share) = shares(rows, experts).swap_remove(index % 2);
                for LaidOut { layout, spec, numbers } in layouts(&weight, [x, x], rows, &share)? {
                    let name = format!("grouped_gemm/{layout}/{scheme_name}_{x}/none/expanded/{share_name}");
                    cases.push(filled(name, spec, numbers));
                }
            }
        }
        cases.extend(strided()?);
        Ok(cases)
    }
}

/// Gaps between experts, rows and elements on every side.
fn strided() -> Result<Vec<Case<GroupedGemmSpec>>> {
    let (experts, room, n, k) = (3, 6, 21, 64);
    let f32s = |dims: &[usize]| TensorSpec::of(DType::F32, dims);
    let dense =
        ExpertsSpec::dense(&f32s(&[5, k, n + 2])?.transpose(1, 2)?.narrow(1, 1, n)?.narrow(0, 2, experts)?)?;
    let whole = ExpertsSpec::of(crate::quant::QuantScheme::Q4_1, experts + 2, n + 3, k)?;
    let mut parts = Vec::new();
    whole.visit(&ExpertNames::WEIGHT, Access::Read, &mut |part| parts.push(*part.spec));
    let part = |spec: &TensorSpec| spec.narrow(0, 1, experts)?.narrow(1, 2, n);
    let scheme = crate::quant::QuantScheme::Q4_1;
    let quant = ExpertsSpec::quant(
        scheme,
        &part(&parts[0])?,
        &part(&parts[1])?,
        Some(&part(&parts[2])?),
        None,
        None,
    )?;
    let mut cases = Vec::new();
    for (form, weight) in [("dense", dense), ("q4_1", quant)] {
        let bias = f32s(&[n, experts + 1])?.transpose(0, 1)?.narrow(0, 1, experts)?;
        let offsets = TensorSpec::of(DType::I32, &[experts + 1, 2])?.select(1, 1)?;
        let x = f32s(&[20, k + 5])?.narrow(1, 3, k)?;
        let out = f32s(&[n, 20])?.transpose(0, 1)?;
        let spec = GroupedGemmSpec::contiguous(&x, &weight, &offsets, &out)?.with_bias(&bias)?;
        let numbers = ("offsets", vec![2.0, 9.0, 9.0, 18.0]);
        cases.push(filled(format!("grouped_gemm/contiguous/strided_{form}"), spec, numbers));
        let counts = TensorSpec::of(DType::I32, &[experts, 2])?.select(1, 1)?;
        let x = f32s(&[room, experts, k])?.transpose(0, 1)?;
        let out = f32s(&[experts, room + 1, n + 4])?.narrow(1, 1, room)?.narrow(2, 2, n)?;
        let spec = GroupedGemmSpec::masked(&x, &weight, &counts, &out)?.with_bias(&bias)?;
        cases.push(filled(
            format!("grouped_gemm/masked/strided_{form}"),
            spec,
            ("counts", vec![4.0, 0.0, 6.0]),
        ));
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(dtype: DType, dims: &[usize]) -> TensorSpec {
        TensorSpec::of(dtype, dims).unwrap()
    }

    fn dense(experts: usize, n: usize, k: usize) -> ExpertsSpec {
        ExpertsSpec::dense(&of(DType::F32, &[experts, n, k])).unwrap()
    }

    #[test]
    fn each_row_meets_the_weight_of_its_expert() {
        let (weight, offsets) = (dense(3, 1, 2), of(DType::I32, &[4]));
        let (x, out) = (of(DType::F32, &[4, 2]), of(DType::F32, &[4, 1]));
        let spec = GroupedGemmSpec::contiguous(&x, &weight, &offsets, &out).unwrap();
        let spec = spec.with_bias(&of(DType::F32, &[3, 1])).unwrap();
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let weights = [1.0, 1.0, 0.0, 0.0, 10.0, 0.0];
        let got = spec.reference(&[&x, &weights, &[0.0, 2.0, 2.0, 3.0], &[0.5, 9.0, 0.25]]);
        assert_eq!(got[0], [3.5, 7.5, 50.25, 0.0]);
        // Falling offsets leave the expert without rows.
        let got = spec.reference(&[&x, &weights, &[0.0, 2.0, 1.0, 9.0], &[0.5, 9.0, 0.25]]);
        assert_eq!(got[0], [3.5, 7.5, 0.0, 0.0]);
    }

    #[test]
    fn a_mask_keeps_the_first_rows_of_each_room() {
        let (weight, counts) = (dense(2, 1, 1), of(DType::I32, &[2]));
        let room = of(DType::F32, &[2, 2, 1]);
        let spec = GroupedGemmSpec::masked(&room, &weight, &counts, &room).unwrap();
        let got = spec.reference(&[&[1.0, 2.0, 3.0, f64::NAN], &[10.0, 100.0], &[2.0, 1.0]]);
        assert_eq!(got[0], [10.0, 20.0, 300.0, 0.0]);
        let layer = spec.layer(1, 0..1).unwrap();
        assert_eq!((layer.x().layout().offset(), layer.rows()), (2, 1));
    }

    #[test]
    fn the_cost_counts_experts_that_rows_reach() {
        let (weight, offsets) = (dense(64, 8, 4), of(DType::I32, &[65]));
        let (x, out) = (of(DType::F32, &[6, 4]), of(DType::F32, &[6, 8]));
        let cost = GroupedGemmSpec::contiguous(&x, &weight, &offsets, &out).unwrap().cost();
        assert_eq!(cost.flops, 2 * 6 * 8 * 4);
        assert_eq!(cost.bytes_read, 6 * 4 * 4 + 6 * 8 * 4 * 4 + 65 * 4);
        let counts = of(DType::I32, &[64]);
        let (x, out) = (of(DType::F32, &[64, 10, 4]), of(DType::F32, &[64, 10, 8]));
        let masked = GroupedGemmSpec::masked(&x, &weight, &counts, &out).unwrap().with_expected_rows(6);
        assert_eq!(masked.cost().flops, 2 * 6 * 8 * 4);
        assert_eq!(masked.cost().bytes_read, 6 * 4 * 4 + 6 * 8 * 4 * 4 + 64 * 4);
    }

    #[test]
    fn extents_and_types_that_do_not_fit_are_refused() {
        let weight = dense(3, 5, 4);
        let (x, offsets, out) = (of(DType::F32, &[6, 4]), of(DType::I32, &[4]), of(DType::F32, &[6, 5]));
        let new = |x: &TensorSpec, offsets: &TensorSpec, out: &TensorSpec| {
            GroupedGemmSpec::contiguous(x, &weight, offsets, out)
        };
        let spec = new(&x, &offsets, &out).unwrap();
        assert!(spec.clone().with_bias(&of(DType::F32, &[5])).is_err());
        let e = spec.with_act_quant(ActQuant::INT8).unwrap_err();
        assert!(e.to_string().starts_with("grouped_gemm"), "{e}");
        assert!(new(&x, &of(DType::I32, &[3]), &out).is_err());
        assert!(new(&x, &of(DType::F32, &[4]), &out).is_err());
        assert!(new(&of(DType::F32, &[6, 3]), &offsets, &out).is_err());
        assert!(new(&of(DType::F16, &[6, 4]), &offsets, &out).is_err());
        assert!(new(&x, &offsets, &of(DType::F32, &[5, 5])).is_err());
        let room = of(DType::F32, &[2, 6, 4]);
        assert!(GroupedGemmSpec::masked(&room, &weight, &of(DType::I32, &[3]), &room).is_err());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(GroupedGemmSpec::cases().unwrap().len() > 400);
    }
}
