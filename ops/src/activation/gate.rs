//! What gated units share: a gate and what it gates, as two tensors or within one; shapes, operands, cases.

use crate::norm::{EDGES, FLOATS, expect_rows, strided_pairs};
use crate::{
    Access, Case, Contract, DType, Fill, Layout, MAX_RANK, OpError, Operand, Result, Shape, TensorSpec,
    Tolerance, expect_dims, expect_dtype, expect_writable,
};

/// The operands of a gated unit, checked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gated {
    /// The tensor that holds both, if one does; `gate` and `up` are views of it then.
    gate_up: Option<TensorSpec>,
    gate: TensorSpec,
    up: TensorSpec,
    out: TensorSpec,
}

/// Where gate and up lie within one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrangement {
    /// The gate in the first half of the last dimension, up in the second.
    Halves,
    /// The gate at even places of the last dimension, up at odd ones.
    Interleaved,
}

impl Gated {
    /// Over two tensors.
    pub(super) fn separate(
        op: &'static str,
        gate: &TensorSpec,
        up: &TensorSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        expect_dtype(op, "gate", gate, &FLOATS)?;
        expect_rows(op, "gate", gate)?;
        expect_dims(op, "up", up, gate.dims())?;
        expect_dtype(op, "up", up, &[gate.dtype()])?;
        Self::checked(op, None, gate, up, out)
    }

    /// Over one tensor.
    pub(super) fn within(
        op: &'static str,
        arrangement: Arrangement,
        gate_up: &TensorSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        let want = Self::out_spec(op, gate_up)?;
        let (n, last) = (want.shape().last(), want.rank() - 1);
        let (gate, up) = match arrangement {
            Arrangement::Halves => (gate_up.narrow(last, 0, n)?, gate_up.narrow(last, n, n)?),
            Arrangement::Interleaved => (every_other(gate_up, 0)?, every_other(gate_up, 1)?),
        };
        Self::checked(op, Some(*gate_up), &gate, &up, out)
    }

    /// The result for one tensor that holds both: contiguous, half as wide.
    pub(super) fn out_spec(op: &'static str, gate_up: &TensorSpec) -> Result<TensorSpec> {
        expect_dtype(op, "gate_up", gate_up, &FLOATS)?;
        expect_rows(op, "gate_up", gate_up)?;
        let width = gate_up.shape().last();
        if width & 1 == 1 {
            let what = format!("gate_up is {}, expected an even last extent", gate_up.shape());
            return Err(OpError::shape(op, what));
        }
        let shape: Shape = gate_up.shape().with_dim(gate_up.rank() - 1, width / 2)?;
        Ok(TensorSpec::new(gate_up.dtype(), shape))
    }

    fn checked(
        op: &'static str,
        gate_up: Option<TensorSpec>,
        gate: &TensorSpec,
        up: &TensorSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        expect_dims(op, "out", out, gate.dims())?;
        expect_dtype(op, "out", out, &[gate.dtype()])?;
        expect_writable(op, "out", out)?;
        Ok(Self { gate_up, gate: *gate, up: *up, out: *out })
    }

    pub(super) fn gate(&self) -> &TensorSpec {
        &self.gate
    }
    pub(super) fn up(&self) -> &TensorSpec {
        &self.up
    }
    pub(super) fn gate_up(&self) -> Option<&TensorSpec> {
        self.gate_up.as_ref()
    }
    pub(super) fn out(&self) -> &TensorSpec {
        &self.out
    }

    pub(super) fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        match &self.gate_up {
            Some(spec) => visit(Operand { name: "gate_up", spec, access: Access::Read }),
            None => {
                visit(Operand { name: "gate", spec: &self.gate, access: Access::Read });
                visit(Operand { name: "up", spec: &self.up, access: Access::Read });
            }
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    pub(super) fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        match self.gate_up {
            None => &[("out", "gate"), ("out", "up")],
            Some(_) => &[],
        }
    }

    /// `f(gate, up)` of every element, in logical order.
    pub(super) fn map(&self, inputs: &[&[f64]], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        let Some(gate_up) = &self.gate_up else {
            return inputs[0].iter().zip(inputs[1]).map(|(&g, &u)| f(g, u)).collect();
        };
        let n = self.out.shape().last();
        // Views of the halves have their tensor's stride, views of every other element twice that.
        let halves = self.gate.strides().last() == gate_up.strides().last();
        let pair = |i| if halves { (i, n + i) } else { (2 * i, 2 * i + 1) };
        let of_row = |row: &[f64]| (0..n).map(|i| f(row[pair(i).0], row[pair(i).1])).collect::<Vec<_>>();
        inputs[0].chunks(2 * n.max(1)).flat_map(of_row).collect()
    }

    /// A result computed in f32 to within `units` roundoffs of it and `abs` of 1, then rounded to its type,
    /// which errs by half a spacing of denormals below its normal range.
    pub(super) fn tolerance(&self, units: f64, abs: f64) -> Tolerance {
        let u = DType::F32.unit_roundoff();
        let spacing = if self.out.dtype() == DType::F16 { 2f64.powi(-25) } else { 2f64.powi(-126) };
        Tolerance::rounded_to(self.out.dtype(), spacing).plus(Tolerance { abs: abs * u, rel: units * u })
    }
}

/// The view of the even (`first` 0) or odd (1) places of the last dimension.
fn every_other(spec: &TensorSpec, first: usize) -> Result<TensorSpec> {
    let last = spec.rank() - 1;
    let shape = spec.shape().with_dim(last, spec.shape().last() / 2)?;
    let mut strides = [0; MAX_RANK];
    strides[..=last].copy_from_slice(spec.strides());
    let step = strides[last];
    strides[last] = step.saturating_mul(2);
    let offset = spec.layout().offset() + if shape.is_empty() { 0 } else { first * step };
    TensorSpec::with_layout(spec.dtype(), shape, Layout::new(&strides[..=last], offset)?)
}

/// Cases of one gated unit over every element type, edges first; a gate of its own is drawn from ±`gate`, both
/// within one tensor from ±`both`.
pub(super) fn cases<C: Contract>(
    label: &str,
    gate: f64,
    both: f64,
    build: impl Fn(Gated) -> Result<C>,
) -> Result<Vec<Case<C>>> {
    use Arrangement::{Halves, Interleaved};
    let op = "gated_unit";
    let mut cases = Vec::new();
    for dtype in FLOATS {
        let mut add = |name: &str, gated: Gated| -> Result<()> {
            let case = Case::new(format!("{label}/{dtype}/{name}"), build(gated)?);
            let case = case.fill("gate", Fill::Range(-gate, gate));
            cases.push(case.fill("gate_up", Fill::Range(-both, both)));
            Ok(())
        };
        for (name, dims) in EDGES {
            let x = TensorSpec::of(dtype, dims)?;
            add(name, Gated::separate(op, &x, &x, &x)?)?;
            let both = TensorSpec::new(dtype, x.shape().with_dim(x.rank() - 1, 2 * x.shape().last())?);
            add(&format!("fused_{name}"), Gated::within(op, Halves, &both, &x)?)?;
            add(&format!("interleaved_{name}"), Gated::within(op, Interleaved, &both, &x)?)?;
        }
        for (name, gate, out) in strided_pairs(dtype)? {
            add(name, Gated::separate(op, &gate, &out, &out)?)?;
        }
        let gate_up = TensorSpec::of(dtype, &[5, 3, 70])?.narrow(2, 3, 66)?.transpose(0, 1)?;
        let out = TensorSpec::of(dtype, &[3, 5, 33])?;
        let apart = TensorSpec::of(dtype, &[3, 66, 5])?.transpose(1, 2)?;
        for (arrangement, name) in [(Halves, "fused"), (Interleaved, "interleaved")] {
            add(&format!("{name}_strided"), Gated::within(op, arrangement, &gate_up, &out)?)?;
            add(&format!("{name}_apart"), Gated::within(op, arrangement, &apart, &out)?)?;
        }
        // Rows longer than what one task of a kernel takes.
        let long = TensorSpec::of(dtype, &[1, 9001])?;
        add("pieces", Gated::separate(op, &long, &long, &long)?)?;
        let both = TensorSpec::of(dtype, &[1, 18_002])?;
        add("interleaved_pieces", Gated::within(op, Interleaved, &both, &long)?)?;
        let x = TensorSpec::of(dtype, &[37])?;
        let edges = vec![f64::INFINITY, f64::NAN, -0.0, 1e4, -1e4, 80.0, -80.0, 1e-7];
        let name = format!("{label}/{dtype}/not_finite");
        let case = Case::new(name, build(Gated::separate(op, &x, &x, &x)?)?);
        cases.push(case.fill("gate", Fill::Values(edges)).fill("up", Fill::Range(1.0, 2.0)));
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(dims: &[usize]) -> TensorSpec {
        TensorSpec::of(DType::F32, dims).unwrap()
    }

    #[test]
    fn the_three_forms_pair_the_same_elements() {
        let out = spec(&[2, 2]);
        let pairs = |gated: Gated, inputs: &[&[f64]]| gated.map(inputs, |g, u| 10.0 * g + u);
        let separate = Gated::separate("t", &out, &out, &out).unwrap();
        let want = [15.0, 26.0, 37.0, 48.0];
        assert_eq!(pairs(separate, &[&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]]), want);
        let both = spec(&[2, 4]);
        let halves = Gated::within("t", Arrangement::Halves, &both, &out).unwrap();
        assert_eq!((halves.gate().strides(), halves.up().layout().offset()), (&[4usize, 1][..], 2));
        assert_eq!(pairs(halves, &[&[1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]]), want);
        let mixed = Gated::within("t", Arrangement::Interleaved, &both, &out).unwrap();
        assert_eq!((mixed.gate().strides(), mixed.up().layout().offset()), (&[4usize, 2][..], 1));
        assert_eq!(pairs(mixed, &[&[1.0, 5.0, 2.0, 6.0, 3.0, 7.0, 4.0, 8.0]]), want);
    }

    proptest! {
        #[test]
        fn views_of_one_tensor_cover_it_once(
            lead in prop::collection::vec(0usize..4, 0..3), n in 0usize..6, cut in 0usize..3, flip in any::<bool>(),
        ) {
            let dims = [&lead[..], &[2 * n + cut]].concat();
            let whole = spec(&dims).narrow(lead.len(), cut, 2 * n).unwrap();
            let whole = if flip && lead.len() > 1 { whole.transpose(0, 1).unwrap() } else { whole };
            let out = Gated::out_spec("t", &whole).unwrap();
            for arrangement in [Arrangement::Halves, Arrangement::Interleaved] {
                let gated = Gated::within("t", arrangement, &whole, &out).unwrap();
                prop_assert_eq!(gated.gate().dims(), out.dims());
                prop_assert_eq!(gated.up().dims(), out.dims());
                let (start, end) = whole.byte_range();
                for view in [gated.gate(), gated.up()] {
                    let range = view.byte_range();
                    prop_assert!(view.numel() == 0 || (range.0 >= start && range.1 <= end));
                }
            }
        }

        #[test]
        fn wrong_shapes_types_and_widths_are_refused(width in 0usize..9, other in 0usize..9) {
            let (a, b) = (spec(&[2, width]), spec(&[2, other]));
            prop_assert_eq!(Gated::separate("t", &a, &b, &a).is_ok(), width == other);
            prop_assert_eq!(Gated::separate("t", &a, &a, &b).is_ok(), width == other);
            prop_assert_eq!(Gated::out_spec("t", &a).is_ok(), width % 2 == 0);
            let narrow = TensorSpec::of(DType::F16, &[2, width]).unwrap();
            prop_assert!(Gated::separate("t", &a, &narrow, &a).is_err());
            prop_assert!(Gated::separate("t", &a, &a, &narrow).is_err());
            let ints = TensorSpec::of(DType::I32, &[2, width]).unwrap();
            prop_assert!(Gated::separate("t", &ints, &ints, &ints).is_err());
        }
    }
}
