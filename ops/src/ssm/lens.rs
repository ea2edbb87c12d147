//! Sequences that lie one behind the other in one row of tokens: what state-space operators share about their lengths.

use crate::{Case, Contract, Cost, DType, Fill, LensSpec, OpError, Result, TensorSpec};

/// Fails unless `x`, named `arg`, is one row of tokens, and the lengths that the host knows fit it.
pub(super) fn expect_packed(
    op: &'static str,
    arg: &'static str,
    x: &TensorSpec,
    lens: &LensSpec,
) -> Result<()> {
    match x.dims() {
        [1, tokens, ..] => lens.expect_fit(op, "lens", *tokens),
        _ => Err(OpError::shape(
            op,
            format!(
                "{arg} is {}: with lens the tokens of all sequences lie in one row, expected a first extent of 1",
                x.shape()
            ),
        )),
    }
}

/// The first row and the number of tokens of each sequence, rows being counted over the whole batch: `batch` times
/// `tokens` rows, or those that `lens` gives. Lengths out of range are clamped: what a faulty call gives is not
/// defined.
pub(super) fn sequences(batch: usize, tokens: usize, lens: Option<&[f64]>) -> Vec<(usize, usize)> {
    let Some(lens) = lens else { return (0..batch).map(|b| (b * tokens, tokens)).collect() };
    let mut first = 0;
    lens.iter()
        .map(|len| {
            let start = first;
            first = (first + len.max(0.0) as usize).min(tokens);
            (start, first - start)
        })
        .collect()
}

/// Each sequence's rows in order: `(sequence, row)`.
pub(super) fn rows_of(sequences: &[(usize, usize)]) -> impl Iterator<Item = (usize, usize)> {
    let each = |(sequence, &(first, tokens)): (usize, &(usize, usize))| {
        (first..first + tokens).map(move |row| (sequence, row))
    };
    sequences.iter().enumerate().flat_map(each)
}

/// What is left of the cost of `tokens` tokens if `lens` says which of them belong to a sequence: those that do not are
/// neither computed nor read. `read` are the operands with a row for each token.
pub(super) fn of_sequences(
    cost: Cost,
    lens: Option<&LensSpec>,
    tokens: usize,
    read: &[Option<&TensorSpec>],
) -> Cost {
    let (Some(lens), 1..) = (lens, tokens) else { return cost };
    let tokens = tokens as u64;
    let bound = (lens.count() as u64).saturating_mul(u64::from(lens.max()));
    let rows = lens.sum().unwrap_or(bound).min(tokens);
    let row: u64 = read.iter().flatten().map(|spec| spec.bytes() as u64 / tokens).sum();
    Cost {
        flops: cost.flops / tokens * rows,
        bytes_read: cost.bytes_read.saturating_sub(row.saturating_mul(tokens - rows)),
        ..cost
    }
}

/// Lengths of a case.
pub(super) struct Ragged {
    pub(super) name: &'static str,
    lens: &'static [u32],
    /// Tokens behind the last sequence.
    rest: usize,
    /// Whether the host knows the lengths.
    host: bool,
}

/// Batches that every operator is tried on: chunks of 16 and 32 tokens end before, on and behind sequences' ends, and
/// 8 tokens are as many as kernels begin to work by chunks with.
pub(super) const RAGGED: [Ragged; 7] = [
    Ragged { name: "no_sequences", lens: &[], rest: 3, host: true },
    Ragged { name: "empty_sequences", lens: &[0, 0], rest: 0, host: true },
    Ragged { name: "nothing_but_rest", lens: &[0, 0, 0], rest: 5, host: false },
    Ragged { name: "one_token_each", lens: &[1, 1, 1], rest: 0, host: true },
    Ragged { name: "one_sequence", lens: &[0, 0, 37, 0], rest: 0, host: false },
    Ragged { name: "unaligned", lens: &[5, 0, 13, 1, 22], rest: 3, host: false },
    Ragged { name: "around_chunks", lens: &[31, 32, 33, 7, 8, 16], rest: 0, host: true },
];

impl Ragged {
    pub(super) fn tokens(&self) -> usize {
        self.lens.iter().map(|&len| len as usize).sum::<usize>() + self.rest
    }

    pub(super) fn spec(&self, op: &'static str) -> Result<LensSpec> {
        let device = TensorSpec::of(DType::I32, &[self.lens.len()])?;
        let spec = LensSpec::new(op, "lens", &device, self.lens.iter().copied().max().unwrap_or(0))?;
        if self.host { spec.with_host(op, "lens", self.lens.into()) } else { Ok(spec) }
    }

    /// The case with these lengths.
    pub(super) fn fill<C: Contract>(&self, case: Case<C>) -> Case<C> {
        case.fill("lens", Fill::Values(self.lens.iter().map(|&len| f64::from(len)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssm::{CausalConv1dSpec, SelectiveScanSpec};

    fn f32s(dims: &[usize]) -> TensorSpec {
        TensorSpec::of(DType::F32, dims).unwrap()
    }

    fn lens(max: u32, host: Option<&[u32]>, count: usize) -> LensSpec {
        let spec = LensSpec::new("any", "lens", &TensorSpec::of(DType::I32, &[count]).unwrap(), max).unwrap();
        match host {
            Some(host) => spec.with_host("any", "lens", host.into()).unwrap(),
            None => spec,
        }
    }

    fn conv(tokens: usize, lens: Option<&LensSpec>, sequences: usize) -> CausalConv1dSpec {
        let (x, state) = (f32s(&[1, tokens, 2]), f32s(&[sequences, 2, 2]));
        let spec = CausalConv1dSpec::new(&x, &f32s(&[2, 3]), &x).unwrap();
        let spec = lens.map_or(Ok(spec.clone()), |lens| spec.with_lens(lens)).unwrap();
        spec.with_initial(&state).unwrap().with_last(&state).unwrap()
    }

    #[test]
    fn the_oracle_of_several_sequences_is_that_of_each() {
        let draw = |dims: &[usize], seed| Fill::Unit.draw(&f32s(dims), seed);
        let (mut x, weight, states) = (draw(&[7, 2], 1), draw(&[2, 3], 2), draw(&[3, 2, 2], 3));
        // The last token is nobody's.
        x[12..].fill(f64::NAN);
        let whole = conv(7, Some(&lens(4, None, 3)), 3).reference(&[&x, &weight, &[2.0, 0.0, 4.0], &states]);
        let mut want = [Vec::new(), Vec::new()];
        for (i, tokens) in [0..2, 2..2, 2..6].into_iter().enumerate() {
            let part = [&x[2 * tokens.start..2 * tokens.end], &weight, &states[4 * i..4 * i + 4]];
            for (want, one) in want.iter_mut().zip(conv(tokens.len(), None, 1).reference(&part)) {
                want.extend(one);
            }
        }
        want[0].extend([0.0, 0.0]);
        assert_eq!(whole, want);
    }

    #[test]
    fn only_tokens_of_sequences_cost_what_the_host_knows_or_the_bound_allows() {
        // 2 channels, 3 factors: 12 operations a token, 8 bytes read; the filter, 3 lengths and 12 states beside them.
        let cost = |lens: &LensSpec| conv(10, Some(lens), 3).cost();
        let at = |rows: u64| (12 * rows, 8 * rows + 24 + 12 + 48, 80 + 48);
        for (lens, rows) in [
            (lens(5, Some(&[2, 0, 5]), 3), 7),
            (lens(9, None, 3), 10),
            (lens(3, None, 3), 9),
            (lens(0, None, 3), 0),
        ] {
            let cost = cost(&lens);
            assert_eq!((cost.flops, cost.bytes_read, cost.bytes_written), at(rows), "{lens:?}");
        }
    }

    #[test]
    fn lengths_are_of_one_row_and_come_before_states() {
        let (x, factor) = (f32s(&[2, 4, 3]), f32s(&[2, 4, 1]));
        let new = |x: &TensorSpec, factor: &TensorSpec| {
            SelectiveScanSpec::new(x, x, &f32s(&[3, 1]), factor, factor, x).unwrap()
        };
        let e = new(&x, &factor).with_lens(&lens(4, None, 2)).unwrap_err();
        let want = "selective_scan: x is [2, 4, 3]: with lens the tokens of all sequences lie in one row, expected a \
                    first extent of 1";
        assert_eq!(e.to_string(), want);
        let (x, factor) = (f32s(&[1, 4, 3]), f32s(&[1, 4, 1]));
        let e = new(&x, &factor).with_lens(&lens(4, Some(&[4, 1]), 2)).unwrap_err();
        assert_eq!(e.to_string(), "selective_scan: lens add up to 5, there are 4 tokens");
        let with_state = new(&x, &factor).with_last(&f32s(&[1, 3, 1])).unwrap();
        assert!(with_state.clone().with_lens(&lens(4, None, 1)).is_ok());
        let e = with_state.with_lens(&lens(4, None, 2)).unwrap_err();
        assert_eq!(e.to_string(), "selective_scan: last is [1, 3, 1], expected [2, 3, 1]");
    }
}
