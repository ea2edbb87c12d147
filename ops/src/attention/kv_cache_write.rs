//! Writes new keys or values into a cache, contiguous or paged.
//!
//! What reads the cache is in `attention.rs` and `paged_attention.rs`.

use super::LensSpec;
use super::geometry::{DTYPES, GEOMETRIES};
use super::kv_scales::{expect_codes, row_scheme};
use super::paged_attention::{cache_room, paged_row};
use crate::codec::{Overflow, SmallFloat};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, QuantScheme, Result, TensorSpec,
    Tolerance, expect_dtype, expect_rank, expect_writable,
};

const NAME: &str = "kv_cache_write";

/// Writes the keys (or the values) of new tokens into a cache.
///
/// `cache[b, kv_len − q_len + t] = x[token]` for token t of sequence b; other entries keep their values.
///
/// Called once for keys and once for values, before the attention that reads them, with the same lengths. A cache of
/// codes takes those of each row (one token, one head) and its scale: `scale = block_scale(max|x|)`,
/// `codes = code_of(x, scale)` within ±top, by the f32 rules of [`QuantScheme::block_scale`] and
/// [`QuantScheme::code_of`]. A row that is not finite has the scale NaN and codes 0; one of zeros has codes 0. An f8
/// cache without scales takes the numbers themselves; those beyond its largest, infinities included, become that.
///
/// # Shapes
/// x `[tokens, num_kv_heads, head_dim]`, cache `[batch, max_len, num_kv_heads, head_dim]`, or
/// `[num_pages, page_size, num_kv_heads, head_dim]` with a block_table `[batch, max_pages]`; q_lens and kv_lens
/// `[batch]`, scale as cache less its last dimension. Rows of x past the last sequence are not written. Any extent
/// but page_size may be zero.
///
/// # DTypes
/// x f32, f16 or bf16; cache f32, f16, bf16, f8e4m3 or f8e5m2, or i8, f8e4m3 or f8e5m2 with an f32 scale; lengths and
/// block_table i32. A narrower cache rounds to nearest even.
///
/// # Layout
/// Any strides. The cache is one operand, read and written whole.
///
/// # Determinism
/// Exact at every level. Where two sequences share a page and both write one entry, either may stay.
///
/// # Cost
/// No operations; x, lengths and table read, as much of the cache written as x has.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (cache overlaps itself), `Attribute`. `Data` when a length is out of range, when
/// a q_len is above its kv_len, when q_lens add up to more than tokens, or when a page is absent.
///
/// # Source
/// vLLM's `reshape_and_cache`, with positions from lengths in place of a slot mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct KvCacheWriteSpec {
    x: TensorSpec,
    cache: TensorSpec,
    scale: Option<TensorSpec>,
    block_table: Option<TensorSpec>,
    q_lens: LensSpec,
    kv_lens: LensSpec,
}

impl KvCacheWriteSpec {
    /// Writes into a contiguous cache.
    pub fn new(x: &TensorSpec, cache: &TensorSpec, q_lens: &LensSpec, kv_lens: &LensSpec) -> Result<Self> {
        Self::checked(x, cache, [None, None], [q_lens, kv_lens])
    }

    /// Writes codes and scales into a contiguous cache.
    pub fn quantized(
        x: &TensorSpec,
        cache: &TensorSpec,
        scale: &TensorSpec,
        q_lens: &LensSpec,
        kv_lens: &LensSpec,
    ) -> Result<Self> {
        Self::checked(x, cache, [Some(scale), None], [q_lens, kv_lens])
    }

    /// Writes codes and scales into a paged cache.
    pub fn quantized_paged(
        x: &TensorSpec,
        cache: &TensorSpec,
        scale: &TensorSpec,
        block_table: &TensorSpec,
        q_lens: &LensSpec,
        kv_lens: &LensSpec,
    ) -> Result<Self> {
        Self::checked(x, cache, [Some(scale), Some(block_table)], [q_lens, kv_lens])
    }

    /// Writes into a paged cache.
    pub fn paged(
        x: &TensorSpec,
        cache: &TensorSpec,
        block_table: &TensorSpec,
        q_lens: &LensSpec,
        kv_lens: &LensSpec,
    ) -> Result<Self> {
        Self::checked(x, cache, [None, Some(block_table)], [q_lens, kv_lens])
    }

    fn checked(
        x: &TensorSpec,
        cache: &TensorSpec,
        [scale, block_table]: [Option<&TensorSpec>; 2],
        [q_lens, kv_lens]: [&LensSpec; 2],
    ) -> Result<Self> {
        let capacity = cache_room(NAME, ("cache", cache), 4, block_table, ("kv_lens", kv_lens))?;
        let floats = [DType::F32, DType::F16, DType::BF16];
        expect_rank(NAME, "x", x, 3)?;
        expect_dtype(NAME, "x", x, &floats)?;
        match scale {
            None => {
                let types = [&floats[..], &[DType::F8E4M3, DType::F8E5M2]].concat();
                expect_dtype(NAME, "cache", cache, &types)?;
            }
            Some(scale) => expect_codes(NAME, cache, scale)?,
        }
        expect_writable(NAME, "cache", cache)?;
        if x.dims()[1..] != cache.dims()[2..] {
            return Err(OpError::shape(
                NAME,
                format!("x is {}, cache is {}: the last two dimensions differ", x.shape(), cache.shape()),
            ));
        }
        if q_lens.count() != kv_lens.count() {
            return Err(OpError::shape(
                NAME,
                format!("q_lens has {} sequences, kv_lens {}", q_lens.count(), kv_lens.count()),
            ));
        }
        q_lens.expect_fit(NAME, "q_lens", x.dims()[0])?;
        if kv_lens.max() as usize > capacity {
            return Err(OpError::attribute(
                NAME,
                "kv_lens",
                format!("may reach {}, the cache holds {capacity}", kv_lens.max()),
            ));
        }
        Ok(Self {
            x: *x,
            cache: *cache,
            scale: scale.copied(),
            block_table: block_table.copied(),
            q_lens: q_lens.clone(),
            kv_lens: kv_lens.clone(),
        })
    }

    /// New rows.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// The cache.
    pub fn cache(&self) -> &TensorSpec {
        &self.cache
    }
    /// Scales of a cache of codes.
    pub fn scale(&self) -> Option<&TensorSpec> {
        self.scale.as_ref()
    }
    /// How rows become codes, of a cache with scales.
    pub fn scheme(&self) -> Option<QuantScheme> {
        self.scale.map(|_| row_scheme(self.cache.dtype()))
    }
    /// Pages of each sequence, of a paged cache.
    pub fn block_table(&self) -> Option<&TensorSpec> {
        self.block_table.as_ref()
    }
    /// Tokens of each sequence in this call.
    pub fn q_lens(&self) -> &LensSpec {
        &self.q_lens
    }
    /// Keys of each sequence, this call's included.
    pub fn kv_lens(&self) -> &LensSpec {
        &self.kv_lens
    }
}

impl Contract for KvCacheWriteSpec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        if let Some(spec) = &self.block_table {
            visit(Operand { name: "block_table", spec, access: Access::Read });
        }
        visit(Operand { name: "q_lens", spec: self.q_lens.device(), access: Access::Read });
        visit(Operand { name: "kv_lens", spec: self.kv_lens.device(), access: Access::Read });
        visit(Operand { name: "cache", spec: &self.cache, access: Access::ReadWrite });
        if let Some(spec) = &self.scale {
            visit(Operand { name: "scale", spec, access: Access::ReadWrite });
        }
    }

    fn cost(&self) -> Cost {
        let table = self.block_table.map_or(0, |table| table.bytes());
        let lens = self.q_lens.device().bytes() + self.kv_lens.device().bytes();
        let read = self.x.bytes().saturating_add(table).saturating_add(lens);
        let scales = if self.scale.is_some() { 4 * self.x.dims()[0] * self.x.dims()[1] } else { 0 };
        let written = self.cache.dtype().bytes_for(self.x.numel()).saturating_add(scales);
        Cost { bytes_read: read as u64, bytes_written: written as u64, ..Cost::default() }
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let behind = inputs.len() - usize::from(self.scale.is_some());
        let [q_lens, kv_lens, cache] = [behind - 3, behind - 2, behind - 1].map(|i| inputs[i]);
        let c = self.cache.dims();
        let (dims, heads, dim) = ([c[0], c[1], c[2], c[3]], c[2], c[3]);
        let (mut out, mut scales, mut token) = (cache.to_vec(), inputs[inputs.len() - 1].to_vec(), 0);
        let (scheme, format) = (self.scheme(), SmallFloat::of(self.cache.dtype()));
        for b in 0..self.q_lens.count() {
            let (q_len, kv_len) = (q_lens[b].max(0.0) as usize, kv_lens[b].max(0.0) as usize);
            for t in 0..q_len {
                let row = (kv_len + t).checked_sub(q_len).and_then(|pos| match &self.block_table {
                    Some(table) => {
                        paged_row(inputs[1], [dims[0], dims[1], 1, 1], [table.dims()[1], b, pos, 0])
                    }
                    None => (pos < dims[1]).then_some(b * dims[1] + pos),
                });
                let Some(row) = row.filter(|_| token + t < self.x.dims()[0]) else { continue };
                for head in 0..heads {
                    let (from, to) = ((token + t) * heads + head, row * heads + head);
                    let x = &inputs[0][from * dim..(from + 1) * dim];
                    let out = &mut out[to * dim..(to + 1) * dim];
                    if dim == 0 {
                        continue;
                    } else if let Some(scheme) = scheme {
                        let scale = row_scale(&scheme, x);
                        scales[to] = f64::from(scale);
                        for (out, &x) in out.iter_mut().zip(x) {
                            let top = scheme.symmetric_top();
                            *out = f64::from(scheme.code_of(x as f32, scale, 0.0).clamp(-top, top));
                        }
                    } else if let Some(format) = format {
                        for (out, &x) in out.iter_mut().zip(x) {
                            *out = f64::from(format.decode(format.encode(x, Overflow::Saturate)));
                        }
                    } else {
                        out.copy_from_slice(x);
                    }
                }
            }
            token += q_len;
        }
        if self.scale.is_some() { vec![out, scales] } else { vec![out] }
    }

    /// Codes, with scales or without, and scales are defined to the bit. Else one rounding to the cache's type, exact where that type holds
    /// x's: entries that keep their value are exact too. Below f16's normal range, where numbers are 2^−24 apart,
    /// half that step.
    fn tolerance(&self) -> Vec<Tolerance> {
        if self.scale.is_some() {
            return vec![Tolerance::EXACT; 2];
        }
        let (from, to) = (self.x.dtype(), self.cache.dtype());
        if from == to || to == DType::F32 || SmallFloat::of(to).is_some() {
            return vec![Tolerance::EXACT];
        }
        vec![Tolerance::rounded_to(to, if to == DType::F16 { (0.5f64).powi(25) } else { 0.0 })]
    }
}

/// The scale of a row; NaN where an element is no finite number.
fn row_scale(scheme: &QuantScheme, x: &[f64]) -> f32 {
    let finite = x.iter().all(|x| x.is_finite());
    let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs() as f32));
    scheme.block_scale(if finite { largest } else { f32::NAN })
}

impl Cases for KvCacheWriteSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let types = DTYPES.map(|(x, cache, _)| (x, cache)).into_iter().chain([
            (DType::BF16, DType::F32),
            (DType::F32, DType::F8E4M3),
            (DType::BF16, DType::F8E5M2),
        ]);
        for (x_type, cache_type) in types {
            for g in GEOMETRIES.iter().filter(|g| g.lens.iter().all(|(q, kv)| q <= kv)) {
                let x = TensorSpec::of(x_type, &[g.tokens(), g.num_kv_heads, g.head_dim])?;
                let tail = [g.num_kv_heads, g.head_dim];
                let [q_lens, kv_lens] = g.lens(NAME, true)?;
                let [q_fill, kv_fill] = g.fills();
                let flat = TensorSpec::of(cache_type, &[g.lens.len(), g.max_len(), tail[0], tail[1]])?;
                let (table, max_pages, num_pages) = g.block_table(16);
                let pages = TensorSpec::of(cache_type, &[num_pages, 16, tail[0], tail[1]])?;
                let block_table = TensorSpec::of(DType::I32, &[g.lens.len(), max_pages])?;
                for (form, spec) in [
                    ("contiguous", Self::new(&x, &flat, &q_lens, &kv_lens)?),
                    ("paged", Self::paged(&x, &pages, &block_table, &q_lens, &kv_lens)?),
                ] {
                    cases.push(
                        Case::new(format!("{NAME}/{x_type}_{cache_type}/{}/{form}", g.name), spec)
                            .fill("block_table", Fill::Values(table.clone()))
                            .fill("q_lens", q_fill.clone())
                            .fill("kv_lens", kv_fill.clone()),
                    );
                }
            }
        }
        for (x_type, code) in [
            (DType::F32, DType::I8),
            (DType::F16, DType::I8),
            (DType::BF16, DType::I8),
            (DType::F32, DType::F8E4M3),
            (DType::BF16, DType::F8E4M3),
            (DType::F16, DType::F8E5M2),
        ] {
            for g in GEOMETRIES.iter().filter(|g| g.lens.iter().all(|(q, kv)| q <= kv)) {
                let x = TensorSpec::of(x_type, &[g.tokens(), g.num_kv_heads, g.head_dim])?;
                let tail = [g.num_kv_heads, g.head_dim];
                let [q_lens, kv_lens] = g.lens(NAME, true)?;
                let codes = |outer, inner| TensorSpec::of(code, &[outer, inner, tail[0], tail[1]]);
                let scales = |outer, inner| TensorSpec::of(DType::F32, &[outer, inner, tail[0]]);
                let (table, max_pages, num_pages) = g.block_table(16);
                let block_table = TensorSpec::of(DType::I32, &[g.lens.len(), max_pages])?;
                let (rows, len) = (g.lens.len(), g.max_len());
                let (flat, pages) = (codes(rows, len)?, codes(num_pages, 16)?);
                let (own, of_pages) = (scales(rows, len)?, scales(num_pages, 16)?);
                for (form, spec) in [
                    ("contiguous", Self::quantized(&x, &flat, &own, &q_lens, &kv_lens)?),
                    ("paged", Self::quantized_paged(&x, &pages, &of_pages, &block_table, &q_lens, &kv_lens)?),
                ] {
                    let case = g.case(format!("{NAME}/{x_type}_{code}_scaled/{}/{form}", g.name), spec);
                    cases.push(case.fill("block_table", Fill::Values(table.clone())));
                }
            }
        }
        // Rows of zeros have the scale 0, rows without a finite largest element the scale NaN; all codes 0.
        let x = TensorSpec::of(DType::F32, &[4, 1, 3])?;
        let lens = LensSpec::new(NAME, "lens", &TensorSpec::of(DType::I32, &[1])?, 5)?;
        let scale = TensorSpec::of(DType::F32, &[1, 5, 1])?;
        let odd = vec![0.0, -0.0, 0.0, 1.0, f64::NAN, 2.0, f64::INFINITY, 1.0, 0.0, 1.0, -0.5, 63.5 / 127.0];
        // Without scales: what is beyond the largest number, and NaN, which stays.
        let beyond = [449.0, 464.0, -480.0, 57344.0, 61440.0, -65536.0, f64::NEG_INFINITY, f64::NAN, 17.0];
        let beyond = [&beyond[..], &[2f64.powi(-10), 3.0 * 2f64.powi(-10), 2f64.powi(-17)]].concat();
        for code in [DType::I8, DType::F8E4M3, DType::F8E5M2] {
            let cache = TensorSpec::of(code, &[1, 5, 1, 3])?;
            // No stride of codes is 1.
            let apart = TensorSpec::of(code, &[1, 3, 5, 1])?.permute(&[0, 2, 3, 1])?;
            let mut odd_cases = vec![
                ("odd", Self::quantized(&x, &cache, &scale, &lens, &lens)?, odd.clone()),
                ("odd_strided", Self::quantized(&x, &apart, &scale, &lens, &lens)?, odd.clone()),
            ];
            if code != DType::I8 {
                odd_cases.push(("beyond", Self::new(&x, &cache, &lens, &lens)?, beyond.clone()));
                odd_cases.push(("beyond_strided", Self::new(&x, &apart, &lens, &lens)?, beyond.clone()));
            }
            for (name, spec, values) in odd_cases {
                cases.push(
                    Case::new(format!("{NAME}/{code}_{name}"), spec)
                        .fill("x", Fill::Values(values))
                        .fill("q_lens", Fill::Values(vec![4.0]))
                        .fill("kv_lens", Fill::Values(vec![5.0])),
                );
            }
        }
        // Heads outside of positions, and x a slice of a fused projection.
        let x = TensorSpec::of(DType::F32, &[5, 6, 8])?.narrow(1, 2, 2)?;
        let cache = TensorSpec::of(DType::BF16, &[1, 2, 9, 8])?.transpose(1, 2)?;
        let lens = TensorSpec::of(DType::I32, &[1])?;
        let lens = |arg| LensSpec::new(NAME, arg, &lens, 9);
        let spec = Self::new(&x, &cache, &lens("q_lens")?, &lens("kv_lens")?)?;
        cases.push(
            Case::new(format!("{NAME}/strided"), spec)
                .fill("q_lens", Fill::Values(vec![4.0]))
                .fill("kv_lens", Fill::Values(vec![7.0])),
        );
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_to_their_positions_and_the_rest_stays() {
        let spec = |dtype, dims: &[usize]| TensorSpec::of(dtype, dims).unwrap();
        let lens = LensSpec::new(NAME, "kv_lens", &spec(DType::I32, &[1]), 4).unwrap();
        let x = spec(DType::F32, &[3, 1, 1]);
        let flat = KvCacheWriteSpec::new(&x, &spec(DType::F32, &[1, 4, 1, 1]), &lens, &lens).unwrap();
        let got = flat.reference(&[&[1.0, 2.0, 3.0], &[2.0], &[3.0], &[9.0; 4]]);
        assert_eq!(got, [vec![9.0, 1.0, 2.0, 9.0]]);
        let table = spec(DType::I32, &[1, 2]);
        let paged =
            KvCacheWriteSpec::paged(&x, &spec(DType::F32, &[2, 2, 1, 1]), &table, &lens, &lens).unwrap();
        let got = paged.reference(&[&[1.0, 2.0, 3.0], &[1.0, 0.0], &[2.0], &[3.0], &[9.0; 4]]);
        assert_eq!(got, [vec![2.0, 9.0, 9.0, 1.0]]);
    }

    #[test]
    fn rows_of_codes_by_hand() {
        let spec = |dtype, dims: &[usize]| TensorSpec::of(dtype, dims).unwrap();
        let lens = LensSpec::new(NAME, "kv_lens", &spec(DType::I32, &[1]), 1).unwrap();
        let (x, scale) = (spec(DType::F32, &[1, 1, 3]), spec(DType::F32, &[1, 1, 1]));
        let write = |code, x_values: [f64; 3], scaled: bool| {
            let cache = spec(code, &[1, 1, 1, 3]);
            let inputs: [&[f64]; 5] = [&x_values, &[1.0], &[1.0], &[0.0; 3], &[0.0]];
            if scaled {
                KvCacheWriteSpec::quantized(&x, &cache, &scale, &lens, &lens).unwrap().reference(&inputs)
            } else {
                KvCacheWriteSpec::new(&x, &cache, &lens, &lens).unwrap().reference(&inputs[..4])
            }
        };
        assert_eq!(write(DType::I8, [254.0, 1.0, 3.0], true), [vec![127.0, 0.0, 2.0], vec![2.0]]);
        // 17 lies between 16 and 18 of f8e4m3, 36 between 32 and 40 of f8e5m2: the even mantissas are 16's, 32's.
        assert_eq!(write(DType::F8E4M3, [-896.0, 34.0, 38.0], true), [vec![-448.0, 16.0, 20.0], vec![2.0]]);
        assert_eq!(write(DType::F8E5M2, [114688.0, 72.0, 1.0], true), [vec![57344.0, 32.0, 0.5], vec![2.0]]);
        assert_eq!(write(DType::F8E4M3, [1e9, -0.3, 17.0], false), [vec![448.0, -0.3125, 16.0]]);
        assert_eq!(write(DType::F8E5M2, [f64::NEG_INFINITY, 36.0, 1.0], false), [vec![-57344.0, 32.0, 1.0]]);
        let none = write(DType::F8E4M3, [1.0, f64::INFINITY, 2.0], true);
        assert!(none[0] == [0.0; 3] && none[1][0].is_nan());
        let words = KvCacheWriteSpec::new(&x, &spec(DType::I8, &[1, 1, 1, 3]), &lens, &lens).unwrap_err();
        assert!(words.to_string().contains("cache is i8"), "{words}");
    }

    #[test]
    fn every_case_is_legal() {
        assert!(KvCacheWriteSpec::cases().unwrap().len() > 100);
    }
}
