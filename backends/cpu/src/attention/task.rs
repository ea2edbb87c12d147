//! What an attention kernel is asked to do: raw operands beside the validated attributes.
//!
//! Made from a contract and base addresses, so that the operator layer passes nothing twice.

use super::scores::Scores;
use super::sequences::{BlockTable, Lengths};
use super::view::View;
use core::ops::Range;
use portolan_ops::attention::{
    AttentionMask, AttentionQuery, AttentionSpec, KvScales, MlaDecodeSpec, PagedAttentionSpec,
};
use portolan_ops::{Contract, Result, Unsupported};

/// The longest head a kernel keeps blocks of in cache: 128 rows of queries and results of it take 6 MiB.
const MAX_HEAD_DIM: usize = 4096;

/// Base addresses of the buffers of an attention call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionBases {
    pub(crate) q: *const u8,
    pub(crate) k: *const u8,
    pub(crate) v: *const u8,
    pub(crate) q_lens: *const u8,
    pub(crate) kv_lens: *const u8,
    pub(crate) out: *mut u8,
    /// Read only if the contract has an lse; so for what follows.
    pub(crate) lse: *mut u8,
    pub(crate) attn_mask: *const u8,
    pub(crate) slopes: *const u8,
    pub(crate) sinks: *const u8,
    pub(crate) k_scale: *const u8,
    pub(crate) v_scale: *const u8,
}

/// One attention call, contiguous or paged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionTask {
    pub(super) op: &'static str,
    pub(super) q: View<3>,
    pub(super) k: View<4>,
    pub(super) v: View<4>,
    /// The scales of keys and values, where these are codes.
    pub(super) scales: Option<[View<4>; 2]>,
    /// Values are the first columns of keys, and are not read again.
    pub(super) shared: bool,
    /// The positions of each token's keys, where these are listed.
    pub(super) lists: Option<View<2>>,
    pub(super) table: Option<BlockTable>,
    pub(super) lengths: Lengths,
    pub(super) out: View<3>,
    pub(super) lse: Option<View<2>>,
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) v_head_dim: usize,
    pub(super) mask: AttentionMask,
    pub(super) scale: f32,
    pub(super) scores: Scores,
}

/// Whether the kernels take this query: any layout and element type, heads up to a length.
pub(crate) fn plan(query: &AttentionQuery) -> core::result::Result<(), Unsupported> {
    plan_heads(query.head_dim().max(query.v_head_dim()))
}

/// Whether the kernels take heads of this length.
pub(crate) fn plan_heads(longest: usize) -> core::result::Result<(), Unsupported> {
    if longest > MAX_HEAD_DIM {
        return Err(Unsupported::Shape("head_dim and v_head_dim are at most 4096"));
    }
    Ok(())
}

impl AttentionTask {
    /// Over a contiguous cache.
    pub(crate) fn contiguous(spec: &AttentionSpec, bases: &AttentionBases) -> Self {
        let cache = [View::new(spec.k(), bases.k as *mut u8), View::new(spec.v(), bases.v as *mut u8)];
        let task = Self::new(spec.name(), spec.query(), cache, None, bases);
        Self { scales: spec.scales().map(|scales| scale_views(scales, bases)), ..task }
    }

    /// Over a paged cache, whose block table's buffer begins at `table`.
    pub(crate) fn paged(spec: &PagedAttentionSpec, table: *const u8, bases: &AttentionBases) -> Self {
        let pages = BlockTable {
            pages: View::new(spec.block_table(), table as *mut u8),
            page_size: spec.page_size(),
            num_pages: spec.k().dims()[0],
        };
        let cache = [View::new(spec.k(), bases.k as *mut u8), View::new(spec.v(), bases.v as *mut u8)];
        let task = Self::new(spec.name(), spec.query(), cache, Some(pages), bases);
        Self { scales: spec.scales().map(|scales| scale_views(scales, bases)), ..task }
    }

    /// Over a latent cache, whose address is `bases.k`, and that of its scales `bases.k_scale`; `table` as in [`AttentionTask::paged`] if it is paged.
    pub(crate) fn latent(spec: &MlaDecodeSpec, table: *const u8, bases: &AttentionBases) -> Result<Self> {
        let dims = spec.cache().dims();
        let cache = View::new(&spec.cache().reshape(&[dims[0], dims[1], 1, dims[2]])?, bases.k.cast_mut());
        let pages = spec.block_table().map(|pages| BlockTable {
            pages: View::new(pages, table.cast_mut()),
            page_size: dims[1],
            num_pages: dims[0],
        });
        let scales = spec.cache_scale().map(|scale| [View::new(scale, bases.k_scale.cast_mut()); 2]);
        let task = Self::new(spec.name(), spec.query(), [cache, cache], pages, bases);
        Ok(Self { shared: true, scales, ..task })
    }

    fn new(
        op: &'static str,
        query: &AttentionQuery,
        [k, v]: [View<4>; 2],
        table: Option<BlockTable>,
        bases: &AttentionBases,
    ) -> Self {
        Self {
            op,
            q: View::new(query.q(), bases.q as *mut u8),
            k,
            v,
            scales: None,
            shared: false,
            lists: None,
            table,
            lengths: Lengths {
                q: View::new(query.q_lens().device(), bases.q_lens as *mut u8),
                kv: View::new(query.kv_lens().device(), bases.kv_lens as *mut u8),
                batch: query.batch(),
                max: [query.q_lens().max(), query.kv_lens().max()],
                tokens: query.tokens(),
            },
            out: View::new(query.out(), bases.out),
            lse: query.lse().map(|lse| View::new(lse, bases.lse)),
            num_heads: query.num_heads(),
            num_kv_heads: query.num_kv_heads(),
            head_dim: query.head_dim(),
            v_head_dim: query.v_head_dim(),
            mask: query.mask(),
            scale: query.scale(),
            scores: Scores::new(query.scores(), bases),
        }
    }

    /// Query heads that share a key head.
    pub(super) fn group(&self) -> usize {
        self.num_heads.checked_div(self.num_kv_heads).unwrap_or(1)
    }

    /// head_dim, padded so that groups of 4 elements are whole.
    pub(super) fn padded_k(&self) -> usize {
        self.head_dim.next_multiple_of(4)
    }

    /// v_head_dim, padded likewise.
    pub(super) fn padded_v(&self) -> usize {
        self.v_head_dim.next_multiple_of(4)
    }

    /// The keys row `row` sees; rows of one sequence and key head are numbered token by token, then by head.
    pub(super) fn visible(&self, row: usize, q_len: usize, kv_len: usize) -> Range<usize> {
        self.mask.visible(row / self.group(), q_len, kv_len)
    }
}

/// The scales of keys and of values; each is found where its entry's first element would be.
fn scale_views(scales: &KvScales, bases: &AttentionBases) -> [View<4>; 2] {
    [View::new(scales.k(), bases.k_scale.cast_mut()), View::new(scales.v(), bases.v_scale.cast_mut())]
}
