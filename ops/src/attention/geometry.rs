//! The batches that the attention operators are tested on, edges first.
//!
//! Contiguous and paged attention and cache writes run over the same ones.

use super::{AttentionMask, LensSpec};
use crate::{Case, Contract, DType, Fill, Result, TensorSpec};

/// Extents and lengths of one case.
pub(super) struct Geometry {
    pub(super) name: &'static str,
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) v_head_dim: usize,
    pub(super) mask: AttentionMask,
    /// (tokens, keys) of each sequence.
    pub(super) lens: &'static [(u32, u32)],
    /// Rows after the last sequence.
    pub(super) padding: usize,
    /// Whether what may be done to scores is tried on it.
    pub(super) scores: bool,
}

/// q, k and out types: what attention accepts.
pub(super) const DTYPES: [(DType, DType, DType); 6] = [
    (DType::F32, DType::F32, DType::F32),
    (DType::F16, DType::F16, DType::F16),
    (DType::BF16, DType::BF16, DType::BF16),
    (DType::BF16, DType::BF16, DType::F32),
    (DType::F32, DType::BF16, DType::F32),
    (DType::F32, DType::F16, DType::F32),
];

const fn of(
    name: &'static str,
    heads: [usize; 2],
    dims: [usize; 2],
    mask: AttentionMask,
    lens: &'static [(u32, u32)],
    padding: usize,
) -> Geometry {
    let ([num_heads, num_kv_heads], [head_dim, v_head_dim]) = (heads, dims);
    Geometry { name, num_heads, num_kv_heads, head_dim, v_head_dim, mask, lens, padding, scores: false }
}

/// The same batch, on which scores are varied.
const fn varied(geometry: Geometry) -> Geometry {
    Geometry { scores: true, ..geometry }
}

/// The batches, edges first.
pub(super) const GEOMETRIES: [Geometry; 26] = {
    use AttentionMask::{Causal, Full, Window};
    [
        of("empty_batch", [2, 1], [8, 8], Causal, &[], 0),
        of("empty_tokens", [2, 1], [8, 8], Causal, &[(0, 5), (0, 0)], 0),
        of("only_padding", [2, 1], [8, 8], Causal, &[], 3),
        varied(of("no_keys", [2, 2], [8, 8], Full, &[(2, 0)], 0)),
        varied(of("before_the_start", [2, 2], [8, 8], Causal, &[(5, 3), (2, 2)], 0)),
        of("one", [1, 1], [1, 1], Causal, &[(1, 1)], 0),
        of("unaligned", [3, 3], [19, 13], Causal, &[(7, 11)], 0),
        varied(of("unaligned_full", [3, 1], [33, 70], Full, &[(5, 37)], 1)),
        varied(of("ragged", [6, 2], [32, 32], Causal, &[(3, 9), (0, 4), (1, 33), (17, 17), (2, 90)], 2)),
        varied(of(
            "ragged_window",
            [6, 2],
            [32, 48],
            Window(8),
            &[(3, 9), (0, 4), (1, 33), (40, 65), (2, 5)],
            2,
        )),
        of("window_one", [2, 1], [16, 16], Window(1), &[(20, 20)], 0),
        of("window_wide", [2, 1], [16, 16], Window(4096), &[(20, 25)], 0),
        varied(of("cross", [4, 2], [24, 40], Full, &[(20, 6), (3, 55), (0, 9), (1, 49)], 1)),
        // Rows of a decoder over what an encoder left: more rows than keys, one row each, keys of several chunks.
        of("cross_more_rows", [4, 2], [32, 24], Full, &[(70, 13), (9, 1), (0, 20), (3, 0)], 0),
        varied(of("cross_decode", [8, 2], [64, 64], Full, &[(1, 129), (1, 0), (1, 260)], 1)),
        of("cross_long", [3, 1], [40, 24], Full, &[(5, 1100), (33, 500)], 0),
        of("mla_naive", [2, 2], [192, 128], Causal, &[(5, 60), (1, 9)], 0),
        of("mla_naive_decode", [4, 4], [192, 128], Causal, &[(1, 70), (1, 33)], 0),
        of("mqa", [8, 1], [40, 24], Causal, &[(19, 19), (1, 50)], 0),
        of("decode", [8, 2], [64, 64], Causal, &[(1, 70), (1, 1), (1, 129)], 0),
        of("decode_mha", [4, 4], [64, 64], Causal, &[(1, 40)], 0),
        varied(of("decode_long", [7, 1], [64, 80], Causal, &[(1, 1100)], 0)),
        of("decode_window", [4, 1], [64, 64], Window(100), &[(1, 1100)], 0),
        of("prefill", [4, 2], [64, 64], Causal, &[(150, 150)], 0),
        of("prefill_128", [2, 1], [128, 128], Causal, &[(70, 70)], 0),
        of("chunked_prefill", [4, 2], [64, 64], Causal, &[(45, 200), (33, 33)], 0),
    ]
};

/// The batches of latent attention: (heads, 1 key head), (width, rank).
pub(super) const MLA_GEOMETRIES: [Geometry; 12] = {
    use AttentionMask::{Causal, Full, Window};
    [
        of("empty_batch", [2, 1], [8, 6], Causal, &[], 0),
        of("empty_rank", [2, 1], [8, 0], Causal, &[(1, 5)], 0),
        of("only_padding", [2, 1], [8, 8], Causal, &[], 3),
        varied(of("no_keys", [2, 1], [8, 4], Full, &[(2, 0)], 0)),
        of("one", [1, 1], [1, 1], Causal, &[(1, 1)], 0),
        varied(of("unaligned", [3, 1], [23, 17], Causal, &[(4, 11), (0, 3), (1, 50)], 1)),
        of("few_heads", [2, 1], [36, 32], Causal, &[(1, 130)], 0),
        varied(of("window", [20, 1], [36, 32], Window(9), &[(3, 60), (1, 4)], 0)),
        of("long", [40, 1], [24, 16], Causal, &[(1, 1100)], 0),
        of("prefill", [16, 1], [48, 32], Causal, &[(30, 30), (9, 70)], 2),
        of("deepseek", [128, 1], [576, 512], Causal, &[(1, 61), (1, 5)], 0),
        of("deepseek_draft", [16, 1], [576, 512], Causal, &[(3, 52)], 0),
    ]
};

impl Geometry {
    /// Number of query rows.
    pub(super) fn tokens(&self) -> usize {
        self.lens.iter().map(|(q, _)| *q as usize).sum::<usize>() + self.padding
    }

    /// Room for the longest sequence and a little more, which stays unread.
    pub(super) fn max_len(&self) -> usize {
        self.lens.iter().map(|(_, kv)| *kv as usize).max().unwrap_or(0) + 3
    }

    /// `q_lens` and `kv_lens`, with the host's copy where `host` says so.
    pub(super) fn lens(&self, op: &'static str, host: bool) -> Result<[LensSpec; 2]> {
        let device = TensorSpec::of(DType::I32, &[self.lens.len()])?;
        let make = |arg, pick: fn(&(u32, u32)) -> u32| {
            let values: Vec<u32> = self.lens.iter().map(pick).collect();
            let spec = LensSpec::new(op, arg, &device, values.iter().copied().max().unwrap_or(0))?;
            if host { spec.with_host(op, arg, values.into()) } else { Ok(spec) }
        };
        Ok([make("q_lens", |l| l.0)?, make("kv_lens", |l| l.1)?])
    }

    /// A case with this batch's lengths.
    pub(super) fn case<C: Contract>(&self, name: String, contract: C) -> Case<C> {
        let [q_fill, kv_fill] = self.fills();
        Case::new(name, contract).fill("q_lens", q_fill).fill("kv_lens", kv_fill)
    }

    /// Fillings of `q_lens` and `kv_lens`.
    pub(super) fn fills(&self) -> [Fill; 2] {
        let values = |pick: fn(&(u32, u32)) -> u32| {
            Fill::Values(self.lens.iter().map(|l| f64::from(pick(l))).collect())
        };
        [values(|l| l.0), values(|l| l.1)]
    }

    /// A block table `[batch, max_pages]` that hands out pages from the last to the first, −1 where no key
    /// lies, and the number of pages.
    pub(super) fn block_table(&self, page_size: usize) -> (Vec<f64>, usize, usize) {
        let max_pages = self.max_len().div_ceil(page_size);
        let used: usize = self.lens.iter().map(|(_, kv)| (*kv as usize).div_ceil(page_size)).sum();
        let num_pages = used + 1;
        let mut next = num_pages;
        let table = self
            .lens
            .iter()
            .flat_map(|(_, kv)| {
                let needed = (*kv as usize).div_ceil(page_size);
                (0..max_pages).map(move |page| page < needed).collect::<Vec<_>>()
            })
            .map(|needed| {
                if needed {
                    next -= 1;
                    next as f64
                } else {
                    -1.0
                }
            })
            .collect();
        (table, max_pages, num_pages)
    }
}
