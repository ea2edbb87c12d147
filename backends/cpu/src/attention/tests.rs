//! What the cases of the contract, which run through it on every instruction set and number of threads, do not
//! show: equal bits for any split and any form of query block, data faults, and random ragged batches.

use super::*;
use crate::{Isa, Team};
use portolan_ops::attention::{
    AttentionMask, AttentionSpec, KvCacheWriteSpec, LensSpec, PagedAttentionSpec, SparseAttentionSpec,
};
use portolan_ops::{Access, Case, Cases, Contract, DType, ErrorKind, Fill, HostTensor, Result, TensorSpec};
use proptest::prelude::*;

const GUARD: u8 = 0xa5;

/// Operands in host memory, in the order of the contract.
#[derive(Clone)]
struct Bound {
    names: Vec<&'static str>,
    access: Vec<Access>,
    tensors: Vec<HostTensor>,
}

impl Bound {
    fn new<C: Contract>(case: &Case<C>, seed: u64) -> Self {
        let mut bound = Self { names: Vec::new(), access: Vec::new(), tensors: Vec::new() };
        case.contract.operands(&mut |operand| {
            let seed = seed + bound.names.len() as u64;
            let tensor = if operand.access.reads() {
                HostTensor::from_f64(
                    operand.spec,
                    &case.fill_of(operand.name).draw(operand.spec, seed),
                    GUARD,
                )
            } else {
                HostTensor::filled(operand.spec, GUARD)
            };
            bound.names.push(operand.name);
            bound.access.push(operand.access);
            bound.tensors.push(tensor.unwrap());
        });
        bound
    }

    fn base(&mut self, name: &str) -> *mut u8 {
        match self.names.iter().position(|n| *n == name) {
            Some(i) => self.tensors[i].bytes_mut().as_mut_ptr(),
            None => core::ptr::null_mut(),
        }
    }

    fn bases(&mut self) -> AttentionBases {
        AttentionBases {
            q: self.base("q"),
            k: self.base("k"),
            v: self.base("v"),
            q_lens: self.base("q_lens"),
            kv_lens: self.base("kv_lens"),
            out: self.base("out"),
            lse: self.base("lse"),
            attn_mask: self.base("attn_mask"),
            slopes: self.base("slopes"),
            sinks: self.base("sinks"),
            k_scale: self.base("k_scale"),
            v_scale: self.base("v_scale"),
        }
    }

    /// What the oracle gives for the operands as they are now.
    fn reference<C: Contract>(&self, contract: &C) -> Vec<Vec<f64>> {
        let read = self.access.iter().zip(&self.tensors).filter(|(a, _)| a.reads());
        let inputs: Vec<Vec<f64>> = read.map(|(_, t)| t.to_f64()).collect();
        contract.reference(&inputs.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    fn outputs(&self) -> impl Iterator<Item = &HostTensor> {
        self.access.iter().zip(&self.tensors).filter(|(a, _)| a.writes()).map(|(_, t)| t)
    }

    fn check<C: Contract>(&self, what: &str, contract: &C, want: &[Vec<f64>]) {
        for ((got, want), tolerance) in self.outputs().zip(want).zip(contract.tolerance()) {
            if let Err(mismatch) = tolerance.check(&got.to_f64(), want) {
                panic!("{what}: {mismatch}");
            }
            assert_eq!(got.overstepped(GUARD), None, "{what}: a byte outside of the result changed");
        }
    }

    fn bits(&self) -> Vec<Vec<u8>> {
        self.outputs().map(|t| t.bytes().to_vec()).collect()
    }
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.require().is_ok())
}

/// An operator that this module has a kernel for.
trait Runs: Cases {
    fn run(&self, team: &Team, isa: Isa, bound: &mut Bound) -> Result<()>;
}

impl Runs for AttentionSpec {
    fn run(&self, team: &Team, isa: Isa, bound: &mut Bound) -> Result<()> {
        let task = AttentionTask::contiguous(self, &bound.bases());
        // SAFETY: the operands are owned by `bound`.
        unsafe { attention(team, usize::MAX, isa, &task) }
    }
}

impl Runs for PagedAttentionSpec {
    fn run(&self, team: &Team, isa: Isa, bound: &mut Bound) -> Result<()> {
        let task = AttentionTask::paged(self, bound.base("block_table"), &bound.bases());
        // SAFETY: the operands are owned by `bound`.
        unsafe { attention(team, usize::MAX, isa, &task) }
    }
}

impl Runs for SparseAttentionSpec {
    fn run(&self, team: &Team, isa: Isa, bound: &mut Bound) -> Result<()> {
        let cache = [bound.base("cache"), bound.base("cache_scale")];
        let bases = AttentionBases { k: cache[0], k_scale: cache[1], ..bound.bases() };
        let task = SparseTask::new(self, bound.base("block_table"), bound.base("indices"), &bases)?;
        // SAFETY: the operands are owned by `bound`.
        unsafe { sparse_attention(team, usize::MAX, isa, task) }
    }
}

impl Runs for KvCacheWriteSpec {
    fn run(&self, team: &Team, isa: Isa, bound: &mut Bound) -> Result<()> {
        let lens = [bound.base("q_lens").cast_const(), bound.base("kv_lens").cast_const()];
        let (x, table) = (bound.base("x"), bound.base("block_table"));
        let task = CacheWriteTask::new(self, x, table, lens, [bound.base("cache"), bound.base("scale")]);
        // SAFETY: the operands are owned by `bound`.
        unsafe { kv_cache_write(team, usize::MAX, isa, &task) }
    }
}

/// One sequence over `kv` keys, its last `tokens` as queries; `q` holds the queries of all kv tokens.
fn last_rows(
    tokens: usize,
    kv: usize,
    heads: [usize; 2],
    d: usize,
    mask: AttentionMask,
) -> Case<AttentionSpec> {
    let f32s = |dims: &[usize]| TensorSpec::of(DType::F32, dims).unwrap();
    let whole = f32s(&[kv, heads[0], d]);
    let q = whole.narrow(0, kv - tokens, tokens).unwrap();
    let k = f32s(&[1, kv, heads[1], d]);
    let one = TensorSpec::of(DType::I32, &[1]).unwrap();
    let lens = LensSpec::new("attention", "lens", &one, kv as u32).unwrap();
    let out = f32s(&[tokens, heads[0], d]);
    let spec = AttentionSpec::new(&q, &k, &k, &lens, &lens, &out).unwrap().with_mask(mask).unwrap();
    let values: Vec<f64> = Fill::Unit.draw(&whole, 3)[(kv - tokens) * heads[0] * d..].to_vec();
    Case::new("last_rows", spec)
        .fill("q", Fill::Values(values))
        .fill("q_lens", Fill::Values(vec![tokens as f64]))
        .fill("kv_lens", Fill::Values(vec![kv as f64]))
}

#[test]
fn a_row_has_the_same_bits_in_prefill_in_any_chunk_of_it_and_in_decode() {
    let (kv, heads, d) = (1100, [6, 2], 36);
    let team = Team::new(2).unwrap();
    for mask in [AttentionMask::Causal, AttentionMask::Window(300)] {
        for isa in isas() {
            let run = |tokens: usize| {
                let case = last_rows(tokens, kv, heads, d, mask);
                let mut bound = Bound::new(&case, 11);
                case.contract.run(&team, isa, &mut bound).unwrap();
                bound.bits().remove(0)
            };
            let prefill = run(kv);
            for tokens in [1, 2, 3, 5, 6, 11, 64, 700] {
                let got = run(tokens);
                assert!(got == prefill[prefill.len() - got.len()..], "{isa:?} {mask:?} {tokens}");
            }
        }
    }
}

#[test]
fn heads_without_elements_score_all_keys_alike() {
    let f32s = |dims: &[usize]| TensorSpec::of(DType::F32, dims).unwrap();
    let one = TensorSpec::of(DType::I32, &[1]).unwrap();
    let lens = LensSpec::new("attention", "lens", &one, 53).unwrap();
    let team = Team::new(2).unwrap();
    // Few rows, and as many as take a lane each.
    for tokens in [1, 40] {
        let (q, out) = (f32s(&[tokens, 2, 0]), f32s(&[tokens, 2, 20]));
        let (k, v) = (f32s(&[1, 53, 1, 0]), f32s(&[1, 53, 1, 20]));
        let case = Case::new("no elements", AttentionSpec::new(&q, &k, &v, &lens, &lens, &out).unwrap())
            .fill("q_lens", Fill::Values(vec![tokens as f64]))
            .fill("kv_lens", Fill::Values(vec![53.0]));
        for isa in isas() {
            let mut bound = Bound::new(&case, 5);
            let want = bound.reference(&case.contract);
            case.contract.run(&team, isa, &mut bound).unwrap();
            bound.check("no elements", &case.contract, &want);
        }
    }
}

#[test]
fn data_faults_are_reported_and_nothing_is_written() {
    let team = Team::new(1).unwrap();
    let mut faults = Vec::new();
    for (name, lens) in [("q_lens", -1.0), ("kv_lens", -1.0), ("q_lens", 6.0), ("kv_lens", 41.0)] {
        let case = last_rows(5, 40, [2, 1], 8, AttentionMask::Causal).fill(name, Fill::Values(vec![lens]));
        let mut bound = Bound::new(&case, 1);
        let e = case.contract.run(&team, Isa::detect(), &mut bound).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidArgument);
        assert!(bound.bits()[0].iter().all(|b| *b == GUARD));
        faults.push(e.to_string());
    }
    assert_eq!(faults[0], "attention: q_lens[0] is -1, expected 0 to 40");
    assert_eq!(faults[2], "attention: q_lens up to 0 add up to 6, q has 5 tokens");

    let cases = PagedAttentionSpec::cases().unwrap();
    let case = cases.iter().find(|c| c.name.contains("/decode/page_16")).unwrap();
    for bad in [-1.0, 1e6] {
        let case = case.clone().fill("block_table", Fill::Values(vec![bad]));
        let e = case.contract.run(&team, Isa::detect(), &mut Bound::new(&case, 1)).unwrap_err();
        assert!(e.to_string().starts_with("paged_attention: block_table[0, 0] is"), "{e}");
    }
    let cases = SparseAttentionSpec::cases().unwrap();
    let case = cases.iter().find(|c| c.name.contains("/unaligned/contiguous")).unwrap();
    let case = case.clone().fill("indices", Fill::Values(vec![-1.0, 53.0]));
    let mut bound = Bound::new(&case, 1);
    let e = case.contract.run(&team, Isa::detect(), &mut bound).unwrap_err();
    assert_eq!(e.to_string(), "sparse_attention: indices[0, 1] is 53, a sequence has room for 53");
    assert!(bound.bits()[0].iter().all(|b| *b == GUARD));
    let cases = KvCacheWriteSpec::cases().unwrap();
    let case = cases.iter().find(|c| c.name.contains("/decode/paged")).unwrap();
    let case = case.clone().fill("block_table", Fill::Values(vec![-1.0]));
    assert!(case.contract.run(&team, Isa::detect(), &mut Bound::new(&case, 1)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn random_ragged_batches_agree_with_the_oracle(
        lens in prop::collection::vec((0u32..30, 0u32..140), 0..5),
        kv_heads in 1usize..4, group in 1usize..6, d in 1usize..70, dv in 1usize..70,
        mask in 0u32..80, page in prop::sample::select(vec![None, Some(16usize), Some(32)]), isa in 0usize..3, seed in 0u64..1000,
    ) {
        let isa = Isa::ALL[isa].min(Isa::detect());
        let mask = match mask {
            0..20 => AttentionMask::Full,
            20..50 => AttentionMask::Causal,
            w => AttentionMask::Window(w - 49),
        };
        let tokens = lens.iter().map(|l| l.0 as usize).sum::<usize>() + 1;
        let max = lens.iter().map(|l| l.1).max().unwrap_or(0).next_multiple_of(32);
        let f32s = |dims: &[usize]| TensorSpec::of(DType::F32, dims).unwrap();
        let device = TensorSpec::of(DType::I32, &[lens.len()]).unwrap();
        let lens_spec = LensSpec::new("attention", "lens", &device, max.max(30)).unwrap();
        let kv_lens = LensSpec::new("attention", "lens", &device, max).unwrap();
        let (q, out) = (f32s(&[tokens, kv_heads * group, d]), f32s(&[tokens, kv_heads * group, dv]));
        let lse = f32s(&[tokens, kv_heads * group]);
        let fills = [|l: &(u32, u32)| f64::from(l.0), |l: &(u32, u32)| f64::from(l.1)]
            .map(|pick| Fill::Values(lens.iter().map(pick).collect()));
        let [q_fill, kv_fill] = fills;
        let team = Team::new(2).unwrap();
        if let Some(page) = page {
            let pages = lens.len() * max as usize / page;
            let (k, v) = (f32s(&[pages, page, kv_heads, d]), f32s(&[pages, page, kv_heads, dv]));
            let table = TensorSpec::of(DType::I32, &[lens.len(), max as usize / page]).unwrap();
            let spec = PagedAttentionSpec::new(&q, &k, &v, &table, &lens_spec, &kv_lens, &out).unwrap();
            let order: Vec<f64> = (0..pages).map(|i| ((i * 7 + seed as usize) % pages) as f64).collect();
            let case = Case::new("random", spec.with_mask(mask).unwrap().with_lse(&lse).unwrap())
                .fill("q_lens", q_fill).fill("kv_lens", kv_fill).fill("block_table", Fill::Values(order));
            let mut bound = Bound::new(&case, seed);
            let want = bound.reference(&case.contract);
            case.contract.run(&team, isa, &mut bound).unwrap();
            bound.check("random paged", &case.contract, &want);
        } else {
            let (k, v) = (f32s(&[lens.len(), max as usize, kv_heads, d]), f32s(&[lens.len(), max as usize, kv_heads, dv]));
            let spec = AttentionSpec::new(&q, &k, &v, &lens_spec, &kv_lens, &out).unwrap();
            let case = Case::new("random", spec.with_mask(mask).unwrap().with_lse(&lse).unwrap())
                .fill("q_lens", q_fill).fill("kv_lens", kv_fill);
            let mut bound = Bound::new(&case, seed);
            let want = bound.reference(&case.contract);
            case.contract.run(&team, isa, &mut bound).unwrap();
            bound.check("random", &case.contract, &want);
        }
    }
}
