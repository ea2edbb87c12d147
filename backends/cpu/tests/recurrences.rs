//! Operators with a state, cut anywhere: a sequence in one call, in parts of any length and token by token gives what the
//! oracle gives for the whole, behind the last token as well; chunks of any length are not seen.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::{Bind, Stream, Tensor, ops};
use portolan_cpu::{CpuOptions, Isa};
use portolan_ops::ssm::{CausalConv1dSpec, GatedDeltaRuleSpec, SelectiveScanSpec, SsdScanSpec};
use portolan_ops::{Contract, DType, Fill, Result, TensorSpec};

const TOKENS: usize = 70;
/// Parts end before, on and behind the boundaries of chunks of 16 and 32 tokens.
const CUTS: [&[usize]; 5] = [&[TOKENS], &[1; TOKENS], &[16, 16, 32, 6], &[15, 18, 31, 5, 1], &[69, 1]];

fn f32s(dims: &[usize]) -> Result<TensorSpec> {
    TensorSpec::of(DType::F32, dims)
}

/// What an operand that is read holds: decays forget, step sizes are above 0.
fn drawn(name: &str, spec: &TensorSpec) -> Vec<f64> {
    let fill = match name {
        "a" => Fill::Range(-2.0, -0.5),
        "g" => Fill::Range(-1.0, -0.1),
        "delta" | "beta" => Fill::Range(0.1, 0.9),
        _ => Fill::Unit,
    };
    let seed = name.bytes().map(u64::from).sum();
    fill.draw(spec, seed).into_iter().map(|x| f64::from(x as f32)).collect()
}

/// The tokens from `start` of an operand that has an entry for each; another one whole.
fn part(s: &Stream, name: &str, whole: &TensorSpec, start: usize, tokens: usize) -> Tensor {
    let values: Vec<f32> = drawn(name, whole).into_iter().map(|x| x as f32).collect();
    let x = s.upload(&values, whole.shape()).unwrap();
    match whole.dims() {
        [_, TOKENS, ..] => ops::contiguous(s, &x.narrow(1, start, tokens).unwrap()).unwrap(),
        _ => x,
    }
}

/// Results of all tokens, and the state behind them, of the operator that `of` makes for a number of tokens.
fn run<C: Contract + Bind>(s: &Stream, of: &dyn Fn(usize) -> Result<C>, parts: &[usize]) -> [Vec<f64>; 2] {
    let mut wholes: Vec<(String, TensorSpec)> = Vec::new();
    of(TOKENS).unwrap().operands(&mut |operand| wholes.push((operand.name.into(), *operand.spec)));
    let whole = |name: &str| wholes.iter().find(|(known, _)| known == name).unwrap().1;
    let state = part(s, "initial", &whole("initial"), 0, TOKENS);
    let mut results = Vec::new();
    let mut start = 0;
    for &tokens in parts {
        let spec = of(tokens).unwrap();
        let mut operands = Vec::new();
        spec.operands(&mut |operand| {
            operands.push(match operand.name {
                "initial" | "last" => state.clone(),
                "out" => s.empty(operand.spec).unwrap(),
                name => part(s, name, &whole(name), start, tokens),
            });
        });
        let names = wholes.iter().map(|(name, _)| name.as_str());
        results.extend(names.zip(&operands).find(|(name, _)| *name == "out").map(|(_, out)| out.clone()));
        s.run(spec.bind(&operands.iter().collect::<Vec<_>>()).unwrap()).unwrap();
        start += tokens;
    }
    assert_eq!(start, TOKENS);
    let all = ops::concat(s, &results.iter().collect::<Vec<_>>(), 1).unwrap();
    [&all, &state].map(|x| {
        let flat = x.reshape(&[x.numel()]).unwrap();
        rig::down(s, &flat).into_iter().map(f64::from).collect()
    })
}

/// Holds every cut to the oracle of the whole sequence, on every instruction set.
fn expect_cuts_to_agree<C: Contract + Bind>(name: &str, of: &dyn Fn(usize) -> Result<C>) {
    let whole = of(TOKENS).unwrap();
    let mut inputs = Vec::new();
    whole.operands(&mut |operand| {
        if operand.access.reads() {
            inputs.push(drawn(operand.name, operand.spec));
        }
    });
    let want = whole.reference(&inputs.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let tolerance = whole.tolerance();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.require().is_ok()) {
        let s = rig::stream(&rig::device_with(CpuOptions { isa: Some(isa), ..CpuOptions::default() }));
        for parts in CUTS {
            let got = run(&s, of, parts);
            for (place, what) in ["out", "last"].into_iter().enumerate() {
                let said = tolerance[place].check(&got[place], &want[place]);
                said.unwrap_or_else(|m| panic!("{name}, {isa:?}, {what} of {parts:?}: {m}"));
            }
        }
    }
}

#[test]
fn a_convolution_is_cut_anywhere() {
    expect_cuts_to_agree("causal_conv1d", &|tokens| {
        let (x, weight) = (f32s(&[2, tokens, 13])?, f32s(&[13, 4])?);
        let state = CausalConv1dSpec::state_spec(&x, &weight)?;
        let spec = CausalConv1dSpec::new(&x, &weight, &x)?.with_bias(&f32s(&[13])?)?.with_silu();
        spec.with_initial(&state)?.with_last(&state)
    });
}

#[test]
fn a_selective_scan_is_cut_anywhere() {
    expect_cuts_to_agree("selective_scan", &|tokens| {
        let (x, a, b) = (f32s(&[2, tokens, 19])?, f32s(&[19, 16])?, f32s(&[2, tokens, 16])?);
        let (each, state) = (f32s(&[19])?, SelectiveScanSpec::state_spec(&x, &a)?);
        let spec = SelectiveScanSpec::new(&x, &x, &a, &b, &b, &x)?.with_d(&each)?.with_z(&x)?;
        spec.with_delta_bias(&each)?.with_softplus().with_initial(&state)?.with_last(&state)
    });
}

#[test]
fn a_chunked_scan_is_cut_anywhere_whatever_its_chunk() {
    for chunk in [1, 7, 16, 32, 128] {
        expect_cuts_to_agree(&format!("ssd_scan by chunks of {chunk}"), &|tokens| {
            let (x, each) = (f32s(&[2, tokens, 4, 9])?, f32s(&[4])?);
            let (delta, b) = (f32s(&[2, tokens, 4])?, f32s(&[2, tokens, 2, 13])?);
            let state = SsdScanSpec::state_spec(&x, &b)?;
            let spec = SsdScanSpec::new(&x, &delta, &each, &b, &b, &x)?.with_d(&each)?;
            let spec = spec.with_delta_bias(&each)?.with_softplus().with_chunk(chunk)?;
            spec.with_initial(&state)?.with_last(&state)
        });
    }
}

#[test]
fn a_gated_delta_rule_is_cut_anywhere() {
    expect_cuts_to_agree("gated_delta_rule", &|tokens| {
        let (q, v) = (f32s(&[2, tokens, 2, 12])?, f32s(&[2, tokens, 4, 17])?);
        let (g, state) = (f32s(&[2, tokens, 4])?, GatedDeltaRuleSpec::state_spec(&q, &v)?);
        let spec = GatedDeltaRuleSpec::new(&q, &q, &v, &g, &g, &v)?.with_key_norm(1e-6)?;
        spec.with_initial(&state)?.with_last(&state)
    });
}
