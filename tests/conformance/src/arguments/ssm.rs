//! Arguments of state-space operators.

use super::{Arguments, Choices};
use portolan_ops::attention::LensSpec;
use portolan_ops::ssm::{CausalConv1dSpec, GatedDeltaRuleSpec, SelectiveScanSpec, SsdScanSpec};
use portolan_ops::{DType, Result, TensorSpec};

/// How many sequences there are in how many rows: in one, where they have lengths of their own.
struct Sequences {
    rows: usize,
    lens: Option<LensSpec>,
}

impl Sequences {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let rows = from.few();
        let lens = if from.byte().is_multiple_of(3) { Some(from.lens(rows)?) } else { None };
        Ok(Self { rows: if lens.is_some() { from.one_of(&[1, 1, 1, rows]) } else { rows }, lens })
    }

    /// A state for each, from one for each row.
    fn states(&self, state: &TensorSpec) -> Result<TensorSpec> {
        match &self.lens {
            Some(lens) => TensorSpec::of(state.dtype(), &[&[lens.count()], &state.dims()[1..]].concat()),
            None => Ok(*state),
        }
    }
}

impl Arguments for CausalConv1dSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let sequences = Sequences::arbitrary(from)?;
        let (dims, width) = ([sequences.rows, from.size(), from.size()], from.few());
        let dtype = from.dtype();
        let (x, weight) = (from.of(dtype, &dims)?, from.of(dtype, &[dims[2], width])?);
        let out = from.out(CausalConv1dSpec::out_spec(&x))?;
        let mut op = CausalConv1dSpec::new(&x, &weight, &out)?;
        if from.flag() {
            op = op.with_bias(&from.of(dtype, &dims[2..])?)?;
        }
        if from.flag() {
            op = op.with_silu();
        }
        let state = sequences.states(&CausalConv1dSpec::state_spec(&x, &weight)?)?;
        if let Some(lens) = &sequences.lens {
            op = op.with_lens(lens)?;
        }
        if from.flag() {
            op = op.with_initial(&from.like(&state)?)?;
        }
        if from.flag() { op.with_last(&from.like(&state)?) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (x, weight) = (TensorSpec::of(dtype, &[1, 2, 2])?, TensorSpec::of(dtype, &[2, 2])?);
        CausalConv1dSpec::new(&x, &weight, &x)
    }
}

impl Arguments for SelectiveScanSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let sequences = Sequences::arbitrary(from)?;
        let (dims, state) = ([sequences.rows, from.few(), from.size()], from.few());
        let dtype = from.dtype();
        let (x, delta) = (from.of(dtype, &dims)?, from.of(dtype, &dims)?);
        let a = from.of(DType::F32, &[dims[2], state])?;
        let factor = TensorSpec::of(dtype, &[dims[0], dims[1], state])?;
        let (b, c) = (from.like(&factor)?, from.like(&factor)?);
        let out = from.out(SelectiveScanSpec::out_spec(&x))?;
        let mut op = SelectiveScanSpec::new(&x, &delta, &a, &b, &c, &out)?;
        if from.flag() {
            op = op.with_d(&from.of(DType::F32, &dims[2..])?)?;
        }
        if from.flag() {
            op = op.with_z(&from.like(&x)?)?;
        }
        if from.flag() {
            op = op.with_delta_bias(&from.of(DType::F32, &dims[2..])?)?;
        }
        if from.flag() {
            op = op.with_softplus();
        }
        let state = sequences.states(&SelectiveScanSpec::state_spec(&x, &a)?)?;
        if let Some(lens) = &sequences.lens {
            op = op.with_lens(lens)?;
        }
        if from.flag() {
            op = op.with_initial(&from.like(&state)?)?;
        }
        if from.flag() { op.with_last(&from.like(&state)?) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (x, factor) = (TensorSpec::of(dtype, &[1, 2, 2])?, TensorSpec::of(dtype, &[1, 2, 1])?);
        let a = TensorSpec::of(DType::F32, &[2, 1])?;
        SelectiveScanSpec::new(&x, &x, &a, &factor, &factor, &x)
    }
}

impl Arguments for SsdScanSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let sequences = Sequences::arbitrary(from)?;
        let (batch, tokens, groups, each) = (sequences.rows, from.size(), from.few(), from.few());
        let (head_dim, state, dtype) = (from.few(), from.few(), from.dtype());
        let heads = groups.saturating_mul(each);
        let x = from.of(dtype, &[batch, tokens, heads, head_dim])?;
        let (delta, a) = (from.of(dtype, &[batch, tokens, heads])?, from.of(DType::F32, &[heads])?);
        let factor = TensorSpec::of(dtype, &[batch, tokens, groups, state])?;
        let (b, c) = (from.like(&factor)?, from.like(&factor)?);
        let out = from.out(SsdScanSpec::out_spec(&x))?;
        let mut op = SsdScanSpec::new(&x, &delta, &a, &b, &c, &out)?;
        if from.flag() {
            op = op.with_d(&from.of(DType::F32, &[heads])?)?;
        }
        if from.flag() {
            op = op.with_delta_bias(&from.of(DType::F32, &[heads])?)?;
        }
        if from.flag() {
            op = op.with_softplus();
        }
        if from.flag() {
            op = op.with_chunk(from.size())?;
        }
        let state = sequences.states(&SsdScanSpec::state_spec(&x, &b)?)?;
        if let Some(lens) = &sequences.lens {
            op = op.with_lens(lens)?;
        }
        if from.flag() {
            op = op.with_initial(&from.like(&state)?)?;
        }
        if from.flag() { op.with_last(&from.like(&state)?) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (x, delta) = (TensorSpec::of(dtype, &[1, 2, 1, 2])?, TensorSpec::of(dtype, &[1, 2, 1])?);
        SsdScanSpec::new(&x, &delta, &TensorSpec::of(DType::F32, &[1])?, &x, &x, &x)
    }
}

impl Arguments for GatedDeltaRuleSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let sequences = Sequences::arbitrary(from)?;
        let (batch, tokens, key_heads, each) = (sequences.rows, from.size(), from.few(), from.few());
        let (key_dim, value_dim, dtype) = (from.few(), from.few(), from.dtype());
        let heads = key_heads.saturating_mul(each);
        let keys = TensorSpec::of(dtype, &[batch, tokens, key_heads, key_dim])?;
        let (q, k) = (from.like(&keys)?, from.like(&keys)?);
        let v = from.of(dtype, &[batch, tokens, heads, value_dim])?;
        let gates = TensorSpec::of(DType::F32, &[batch, tokens, heads])?;
        let (g, beta) = (from.like(&gates)?, from.like(&gates)?);
        let out = from.out(GatedDeltaRuleSpec::out_spec(&v))?;
        let mut op = GatedDeltaRuleSpec::new(&q, &k, &v, &g, &beta, &out)?;
        if from.flag() {
            op = op.with_scale(from.real() as f32)?;
        }
        if from.flag() {
            op = op.with_key_norm(from.real() as f32)?;
        }
        let state = sequences.states(&GatedDeltaRuleSpec::state_spec(&k, &v)?)?;
        if let Some(lens) = &sequences.lens {
            op = op.with_lens(lens)?;
        }
        if from.flag() {
            op = op.with_initial(&from.like(&state)?)?;
        }
        if from.flag() { op.with_last(&from.like(&state)?) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (x, gate) = (TensorSpec::of(dtype, &[1, 2, 1, 2])?, TensorSpec::of(DType::F32, &[1, 2, 1])?);
        GatedDeltaRuleSpec::new(&x, &x, &x, &gate, &gate, &x)
    }
}
