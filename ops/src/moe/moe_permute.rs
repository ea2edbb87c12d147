//! Rows of tokens brought to their experts: each expert's side by side, in the order of the tokens.
//!
//! Two layouts, those of `grouped_gemm`: contiguous, one expert behind the other, and masked, a fixed room for each.

use crate::norm::FLOATS;
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_rank, expect_writable, streaming_cost,
};

const OP: &str = "moe_permute";

/// Where the rows of an expert lie.
#[derive(Clone, Debug, PartialEq)]
enum Placement {
    /// Behind those of the expert before.
    Contiguous { offsets: TensorSpec, capacity: Option<usize> },
    /// In a room of its own.
    Masked { counts: TensorSpec },
}

/// Copies every token's row to each of its experts, stably: an expert's rows are in the order of tokens, and of a
/// token's places.
///
/// `out[row_map[t, j], ..] = x[t, ..]` for expert `expert_ids[t, j]`; the other rows of out are 0
///
/// # Shapes
/// x `[T, H]`, expert_ids and row_map `[T, k]`; [`MoePermuteSpec::contiguous`]: out `[T·k, H]`, offsets `[E + 1]`,
/// where expert e has rows `offsets[e]` to `offsets[e + 1]`; [`MoePermuteSpec::masked`]: out `[E, C, H]`, counts
/// `[E]`, where expert e has the first `counts[e]` of its C rows, and row_map counts rows of `[E·C, H]`. dropped
/// `[E]`. Fewer than 2³¹ rows. Any extent may be zero.
///
/// # DTypes
/// x and out of one type out of f32, f16, bf16; the others i32. Bits are moved, never converted.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// Every level; all is exact.
///
/// # Cost
/// No arithmetic; reads and writes every operand once.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (a result overlaps itself). An expert id below zero is padding: it takes no row, and
/// its row_map is −1. With a capacity (in the masked layout the room is one) an expert takes that many rows, the
/// first to come; the others are dropped: their row_map is −1, and `dropped[e]` counts them. An expert id of E or
/// more is a data fault.
///
/// # Composition
/// compare with the experts' numbers and scan for places, reduce for counts, scatter of token numbers, gather of
/// rows.
///
/// # Source
/// The two layouts are those of DeepGEMM's grouped products; dropping by capacity is GShard's (Lepikhin et al. 2020).
#[derive(Clone, Debug, PartialEq)]
pub struct MoePermuteSpec {
    x: TensorSpec,
    expert_ids: TensorSpec,
    out: TensorSpec,
    row_map: TensorSpec,
    placement: Placement,
    dropped: Option<TensorSpec>,
}

impl MoePermuteSpec {
    /// The contiguous layout, without a capacity.
    pub fn contiguous(
        x: &TensorSpec,
        expert_ids: &TensorSpec,
        out: &TensorSpec,
        row_map: &TensorSpec,
        offsets: &TensorSpec,
    ) -> Result<Self> {
        expect_rank(OP, "expert_ids", expert_ids, 2)?;
        let rows = expert_ids.numel();
        expect_rank(OP, "out", out, 2)?;
        expect_dims(OP, "out", out, &[rows, out.dims()[1]])?;
        expect_rank(OP, "offsets", offsets, 1)?;
        if offsets.dims()[0] == 0 {
            return Err(OpError::shape(OP, "offsets is [0], expected one more than there are experts"));
        }
        let placement = Placement::Contiguous { offsets: *offsets, capacity: None };
        Self::checked(x, expert_ids, out, row_map, placement, ("offsets", offsets))
    }

    /// The masked layout: the experts and the capacity of each are out's first extents.
    pub fn masked(
        x: &TensorSpec,
        expert_ids: &TensorSpec,
        out: &TensorSpec,
        row_map: &TensorSpec,
        counts: &TensorSpec,
        dropped: &TensorSpec,
    ) -> Result<Self> {
        expect_rank(OP, "expert_ids", expert_ids, 2)?;
        expect_rank(OP, "out", out, 3)?;
        expect_dims(OP, "counts", counts, &out.dims()[..1])?;
        let placement = Placement::Masked { counts: *counts };
        Self::checked(x, expert_ids, out, row_map, placement, ("counts", counts))?.counting(dropped)
    }

    fn checked(
        x: &TensorSpec,
        expert_ids: &TensorSpec,
        out: &TensorSpec,
        row_map: &TensorSpec,
        placement: Placement,
        (arg, numbers): (&'static str, &TensorSpec),
    ) -> Result<Self> {
        expect_rank(OP, "x", x, 2)?;
        expect_dtype(OP, "x", x, &FLOATS)?;
        let width = x.dims()[1];
        expect_dims(OP, "expert_ids", expert_ids, &[x.dims()[0], expert_ids.dims()[1]])?;
        expect_dtype(OP, "expert_ids", expert_ids, &[DType::I32])?;
        let rows = out.shape().rows();
        if out.shape().last() != width || rows.max(expert_ids.numel()) > i32::MAX as usize {
            let what =
                format!("out is {}, expected rows of {width} elements and fewer than 2^31", out.shape());
            return Err(OpError::shape(OP, what));
        }
        expect_dtype(OP, "out", out, &[x.dtype()])?;
        expect_dims(OP, "row_map", row_map, expert_ids.dims())?;
        for (arg, spec) in [("row_map", row_map), (arg, numbers)] {
            expect_dtype(OP, arg, spec, &[DType::I32])?;
            expect_writable(OP, arg, spec)?;
        }
        expect_writable(OP, "out", out)?;
        let (x, expert_ids, out, row_map) = (*x, *expert_ids, *out, *row_map);
        Ok(Self { x, expert_ids, out, row_map, placement, dropped: None })
    }

    fn counting(mut self, dropped: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "dropped", dropped, &[self.num_experts()])?;
        expect_dtype(OP, "dropped", dropped, &[DType::I32])?;
        expect_writable(OP, "dropped", dropped)?;
        self.dropped = Some(*dropped);
        Ok(self)
    }

    /// Gives each expert of the contiguous layout at most `capacity` rows, and counts in `dropped[E]` what it
    /// would have had beyond.
    pub fn with_capacity(mut self, capacity: usize, dropped: &TensorSpec) -> Result<Self> {
        match &mut self.placement {
            Placement::Contiguous { capacity: slot, .. } => *slot = Some(capacity),
            Placement::Masked { .. } => {
                let what = "is given by the room of the masked layout, which is out's second extent";
                return Err(OpError::attribute(OP, "capacity", what));
            }
        }
        self.counting(dropped)
    }

    /// Rows of tokens.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// The experts of each token.
    pub fn expert_ids(&self) -> &TensorSpec {
        &self.expert_ids
    }
    /// Rows of experts.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Which row of out each token's place went to.
    pub fn row_map(&self) -> &TensorSpec {
        &self.row_map
    }
    /// Where each expert's rows begin, in the contiguous layout.
    pub fn offsets(&self) -> Option<&TensorSpec> {
        match &self.placement {
            Placement::Contiguous { offsets, .. } => Some(offsets),
            Placement::Masked { .. } => None,
        }
    }
    /// How many rows each expert has, in the masked layout.
    pub fn counts(&self) -> Option<&TensorSpec> {
        match &self.placement {
            Placement::Contiguous { .. } => None,
            Placement::Masked { counts } => Some(counts),
        }
    }
    /// How many rows of each expert found no room.
    pub fn dropped(&self) -> Option<&TensorSpec> {
        self.dropped.as_ref()
    }
    /// Rows an expert has at most, where that is bounded.
    pub fn capacity(&self) -> Option<usize> {
        match &self.placement {
            Placement::Contiguous { capacity, .. } => *capacity,
            Placement::Masked { .. } => Some(self.out.dims()[1]),
        }
    }
    /// Number of experts.
    pub fn num_experts(&self) -> usize {
        match &self.placement {
            Placement::Contiguous { offsets, .. } => offsets.dims()[0] - 1,
            Placement::Masked { counts } => counts.dims()[0],
        }
    }
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.x.dims()[0]
    }
    /// Experts of each token.
    pub fn top_k(&self) -> usize {
        self.expert_ids.dims()[1]
    }
}

impl Contract for MoePermuteSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "expert_ids", spec: &self.expert_ids, access: Access::Read });
        let mut write = |name, spec| visit(Operand { name, spec, access: Access::Write });
        write("out", &self.out);
        write("row_map", &self.row_map);
        match &self.placement {
            Placement::Contiguous { offsets, .. } => write("offsets", offsets),
            Placement::Masked { counts } => write("counts", counts),
        }
        if let Some(dropped) = &self.dropped {
            write("dropped", dropped);
        }
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, 0)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (experts, k, width) = (self.num_experts(), self.top_k(), self.x.dims()[1]);
        let capacity = self.capacity().unwrap_or(usize::MAX);
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); experts];
        let mut dropped = vec![0.0; experts];
        for (pair, &id) in inputs[1].iter().enumerate().filter(|(_, id)| **id >= 0.0) {
            match members[id as usize].len() < capacity {
                true => members[id as usize].push(pair),
                false => dropped[id as usize] += 1.0,
            }
        }
        let mut out = vec![0.0; self.out.numel()];
        let mut row_map = vec![-1.0; self.row_map.numel()];
        let (mut offsets, mut next) = (vec![0.0], 0);
        for (expert, pairs) in members.iter().enumerate() {
            let first = if self.counts().is_some() { expert * capacity } else { next };
            for (i, &pair) in pairs.iter().enumerate() {
                let (row, token) = (first + i, pair / k);
                out[row * width..(row + 1) * width]
                    .copy_from_slice(&inputs[0][token * width..(token + 1) * width]);
                row_map[pair] = row as f64;
            }
            next += pairs.len();
            offsets.push(next as f64);
        }
        let numbers = match &self.placement {
            Placement::Contiguous { .. } => offsets,
            Placement::Masked { .. } => members.iter().map(|pairs| pairs.len() as f64).collect(),
        };
        [Some(out), Some(row_map), Some(numbers), self.dropped.map(|_| dropped)]
            .into_iter()
            .flatten()
            .collect()
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT; if self.dropped.is_some() { 4 } else { 3 }]
    }
}

/// Routings of `pairs` places to `experts`: spread, all to one, only the last, half of it padding.
pub(super) fn routings(pairs: usize, experts: usize) -> Vec<(&'static str, Vec<f64>)> {
    if experts == 0 {
        return vec![("padding", vec![-1.0; pairs])];
    }
    let each = |f: &dyn Fn(usize) -> f64| (0..pairs).map(f).collect();
    vec![
        ("spread", each(&|i| ((i * 7 + i / 5) % experts) as f64)),
        ("to_one", each(&|_| (experts / 2) as f64)),
        ("sparse", each(&|i| if i % 3 == 0 { 0.0 } else { (experts - 1) as f64 })),
        ("padding", each(&|i| if i % 2 == 0 { -1.0 - (i % 4) as f64 } else { (i % experts) as f64 })),
    ]
}

impl Cases for MoePermuteSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        // Tokens, places, experts, width, capacity.
        let edges: [(&str, [usize; 5]); 9] = [
            ("no_tokens", [0, 2, 4, 8, 3]),
            ("no_places", [3, 0, 4, 8, 3]),
            ("no_experts", [2, 1, 0, 8, 3]),
            ("no_width", [3, 2, 4, 0, 3]),
            ("no_room", [3, 2, 4, 8, 0]),
            ("one", [1, 1, 1, 1, 1]),
            ("all_experts", [5, 6, 6, 13, 4]),
            ("unaligned", [17, 3, 7, 37, 5]),
            ("typical", [67, 6, 64, 64, 8]),
        ];
        let i32s = |dims: &[usize]| TensorSpec::of(DType::I32, dims);
        for dtype in FLOATS {
            for (edge, [tokens, k, experts, width, capacity]) in edges {
                let (x, ids) = (TensorSpec::of(dtype, &[tokens, width])?, i32s(&[tokens, k])?);
                let (numbers, dropped) = (i32s(&[experts])?, i32s(&[experts])?);
                let out = TensorSpec::of(dtype, &[tokens * k, width])?;
                let contiguous = Self::contiguous(&x, &ids, &out, &ids, &i32s(&[experts + 1])?)?;
                let room = TensorSpec::of(dtype, &[experts, capacity, width])?;
                let specs = [
                    ("contiguous", contiguous.clone()),
                    ("capacity", contiguous.with_capacity(capacity, &dropped)?),
                    ("masked", Self::masked(&x, &ids, &room, &ids, &numbers, &dropped)?),
                ];
                for (routing, fill) in routings(tokens * k, experts) {
                    for (layout, spec) in &specs {
                        let name = format!("moe_permute/{layout}/{dtype}/{edge}/{routing}");
                        cases.push(
                            Case::new(name, spec.clone()).fill("expert_ids", Fill::Values(fill.clone())),
                        );
                    }
                }
            }
            let x = TensorSpec::of(dtype, &[23, 9])?.transpose(0, 1)?.narrow(1, 2, 19)?;
            let ids = i32s(&[3, 9])?.transpose(0, 1)?;
            let row_map = i32s(&[9, 5])?.narrow(1, 1, 3)?;
            let numbers = |len: usize| i32s(&[len, 2])?.select(1, 1);
            let out = TensorSpec::of(dtype, &[27, 40])?.narrow(1, 3, 19)?;
            let spec = Self::contiguous(&x, &ids, &out, &row_map, &numbers(6)?)?;
            let spec = spec.with_capacity(6, &numbers(5)?)?;
            let unbounded = spec.clone().with_capacity(usize::MAX, &numbers(5)?)?;
            let room = TensorSpec::of(dtype, &[4, 19, 5])?.permute(&[2, 0, 1])?;
            let masked = Self::masked(&x, &ids, &room, &row_map, &numbers(5)?, &numbers(5)?)?;
            for (layout, spec) in [("capacity", spec), ("unbounded", unbounded), ("masked", masked)] {
                let name = format!("moe_permute/{layout}/{dtype}/strided");
                let fill = (0..27).map(|i| f64::from(i * 5 % 7 - 1).min(4.0)).collect();
                cases.push(Case::new(name, spec).fill("expert_ids", Fill::Values(fill)));
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(dtype: DType, dims: &[usize]) -> TensorSpec {
        TensorSpec::of(dtype, dims).unwrap()
    }

    fn contiguous(tokens: usize, k: usize, experts: usize) -> MoePermuteSpec {
        let ids = of(DType::I32, &[tokens, k]);
        let (x, out) = (of(DType::F32, &[tokens, 1]), of(DType::F32, &[tokens * k, 1]));
        MoePermuteSpec::contiguous(&x, &ids, &out, &ids, &of(DType::I32, &[experts + 1])).unwrap()
    }

    #[test]
    fn rows_keep_the_order_of_tokens_and_padding_takes_none() {
        let got = contiguous(3, 2, 3).reference(&[&[10.0, 20.0, 30.0], &[2.0, 0.0, -1.0, 2.0, 0.0, 2.0]]);
        assert_eq!(got[0], [10.0, 30.0, 10.0, 20.0, 30.0, 0.0]);
        assert_eq!(got[1], [2.0, 0.0, -1.0, 3.0, 1.0, 4.0]);
        assert_eq!(got[2], [0.0, 2.0, 2.0, 5.0]);
    }

    #[test]
    fn what_is_beyond_the_capacity_is_dropped_and_counted() {
        let spec = contiguous(4, 1, 2).with_capacity(2, &of(DType::I32, &[2])).unwrap();
        let got = spec.reference(&[&[1.0, 2.0, 3.0, 4.0], &[1.0, 1.0, 1.0, 0.0]]);
        assert_eq!(got[0], [4.0, 1.0, 2.0, 0.0]);
        assert_eq!(got[1], [1.0, 2.0, -1.0, 0.0]);
        assert_eq!((&got[2][..], &got[3][..]), (&[0.0, 1.0, 3.0][..], &[0.0, 1.0][..]));
        let (ids, numbers) = (of(DType::I32, &[4, 1]), of(DType::I32, &[2]));
        let room = of(DType::F32, &[2, 2, 1]);
        let masked =
            MoePermuteSpec::masked(&of(DType::F32, &[4, 1]), &ids, &room, &ids, &numbers, &numbers).unwrap();
        let got = masked.reference(&[&[1.0, 2.0, 3.0, 4.0], &[1.0, 1.0, 1.0, 0.0]]);
        assert_eq!(got[0], [4.0, 0.0, 1.0, 2.0]);
        assert_eq!(got[1], [2.0, 3.0, -1.0, 0.0]);
        assert_eq!((&got[2][..], &got[3][..]), (&[1.0, 2.0][..], &[0.0, 1.0][..]));
        assert!(masked.with_capacity(1, &numbers).is_err());
    }

    #[test]
    fn extents_and_types_that_do_not_fit_are_refused() {
        let (x, ids) = (of(DType::F32, &[3, 4]), of(DType::I32, &[3, 2]));
        let out = of(DType::F32, &[6, 4]);
        let new = |out: &TensorSpec, map: &TensorSpec, offsets: &TensorSpec| {
            MoePermuteSpec::contiguous(&x, &ids, out, map, offsets)
        };
        let offsets = of(DType::I32, &[5]);
        assert!(new(&out, &ids, &offsets).is_ok());
        assert!(new(&of(DType::F32, &[5, 4]), &ids, &offsets).is_err());
        assert!(new(&of(DType::F16, &[6, 4]), &ids, &offsets).is_err());
        assert!(new(&of(DType::F32, &[6, 3]), &ids, &offsets).is_err());
        assert!(new(&out, &of(DType::I32, &[2, 3]), &offsets).is_err());
        assert!(new(&out, &ids, &of(DType::I32, &[0])).is_err());
        assert!(new(&out, &ids, &of(DType::I64, &[5])).is_err());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(MoePermuteSpec::cases().unwrap().len() > 300);
    }

    proptest! {
        #[test]
        fn every_pair_has_a_row_of_its_own_within_its_expert(ids in prop::collection::vec(-1i32..5, 0..24)) {
            let ids: Vec<f64> = ids[..ids.len() / 2 * 2].iter().map(|&id| f64::from(id)).collect();
            let x: Vec<f64> = (0..ids.len() / 2).map(|t| t as f64).collect();
            let got = contiguous(x.len(), 2, 5).reference(&[&x, &ids]);
            let mut taken: Vec<usize> = Vec::new();
            for (pair, (&row, &id)) in got[1].iter().zip(&ids).enumerate() {
                prop_assert_eq!(row < 0.0, id < 0.0);
                if row >= 0.0 {
                    prop_assert_eq!(got[0][row as usize], x[pair / 2]);
                    let range = got[2][id as usize]..got[2][id as usize + 1];
                    prop_assert!(range.contains(&row));
                    taken.push(row as usize);
                }
            }
            taken.sort_unstable();
            prop_assert!(taken.iter().copied().eq(0..taken.len()));
        }
    }
}
