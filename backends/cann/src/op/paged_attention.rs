//! Attention over paged caches: the same fused kernel, with a table of pages.

use super::Native;
use super::attention::{Fused, plan_heads, plan_pages, plan_query};
use crate::aclnn::{Plan, Run, Soc};
use portolan_core::Call;
use portolan_ops::Result;
use portolan_ops::attention::PagedAttentionSpec;

impl Native for PagedAttentionSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        plan_heads(self.query())?;
        plan_query(soc, self.query(), [self.k(), self.v()], false)?;
        plan_pages(self.page_size())
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let spec = op.spec();
        let (pages, heads) = (spec.k().dims()[0], spec.query().num_kv_heads());
        let (page, d) = (spec.page_size(), spec.query().head_dim());
        // A page's positions each with all heads, as one row.
        let rows = |name| -> Result<_> {
            super::scatter::contiguous(run, &op.require(name)?)?.reshape(&[pages, page, heads * d])
        };
        let call = Fused {
            query: spec.query(),
            keys: rows("k")?,
            values: rows("v")?,
            rotary: None,
            table: Some(op.require("block_table")?),
            page: page as i64,
            lse: op.tensor("lse"),
        };
        call.launch(run, &op.require("q")?, &op.require("out")?)
    }
}
