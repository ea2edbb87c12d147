//! A sequence in one call, in parts whose states are carried, and token by token: the same results to rounding; and
//! the same bits for any number of threads. And several sequences one behind the other, which have the bits they have
//! alone.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan::call::{CausalConv1d, GatedDeltaRule, SelectiveScan, SsdScan};
use portolan::cpu::{CpuBackend, CpuOptions};
use portolan::{DType, Lens, Registry, Stream, StreamOptions, Tensor, TensorSpec};
use portolan_ops::{Fill, Result};

const TOKENS: usize = 75;
const BATCH: usize = 2;

/// Runs tokens from a state: `(inputs, parameters, lengths, states before and behind, out)`.
type Run = fn(&[Tensor], &[Tensor], Option<&Lens>, [&mut Tensor; 2], &mut Tensor, &Stream) -> Result<()>;

/// An operator, and what it is tried on.
struct Subject {
    name: &'static str,
    /// Extents behind batch and tokens, and the range of values; the first gives the result's.
    inputs: &'static [(&'static [usize], f64, f64)],
    out: &'static [usize],
    parameters: &'static [(&'static [usize], f64, f64)],
    /// Extents behind the batch.
    state: &'static [usize],
    run: Run,
}

const SUBJECTS: [Subject; 5] = [
    Subject {
        name: "causal_conv1d",
        inputs: &[(&[150], -1.0, 1.0)],
        out: &[150],
        parameters: &[(&[150, 4], -1.0, 1.0), (&[150], -1.0, 1.0)],
        state: &[3, 150],
        run: |x, w, lens, [before, behind], out, s| {
            let op = CausalConv1d::new(&x[0], &w[0], out)?.bias(&w[1])?.silu()?;
            let op = match lens {
                Some(lens) => op.lens(lens)?,
                None => op,
            };
            s.run(op.initial(before)?.last(behind)?)
        },
    },
    Subject {
        name: "selective_scan",
        inputs: &[
            (&[70], -1.0, 1.0),
            (&[70], -1.0, 1.0),
            (&[16], -1.0, 1.0),
            (&[16], -1.0, 1.0),
            (&[70], -2.0, 2.0),
        ],
        out: &[70],
        parameters: &[(&[70, 16], -2.0, -0.1), (&[70], -1.0, 1.0)],
        state: &[70, 16],
        run: |x, w, lens, [before, behind], out, s| {
            let op = SelectiveScan::new(&x[0], &x[1], &w[0], &x[2], &x[3], out)?;
            let op = op.z(&x[4])?.d(&w[1])?.delta_bias(&w[1])?.softplus()?;
            let op = match lens {
                Some(lens) => op.lens(lens)?,
                None => op,
            };
            s.run(op.initial(before)?.last(behind)?)
        },
    },
    Subject {
        name: "ssd_scan",
        inputs: &[(&[6, 20], -1.0, 1.0), (&[6], -1.0, 1.0), (&[2, 24], -1.0, 1.0), (&[2, 24], -1.0, 1.0)],
        out: &[6, 20],
        parameters: &[(&[6], -2.0, -0.1), (&[6], -1.0, 1.0)],
        state: &[6, 20, 24],
        run: |x, w, lens, [before, behind], out, s| {
            let op = SsdScan::new(&x[0], &x[1], &w[0], &x[2], &x[3], out)?;
            let op = op.d(&w[1])?.delta_bias(&w[1])?.softplus()?.chunk(16)?;
            let op = match lens {
                Some(lens) => op.lens(lens)?,
                None => op,
            };
            s.run(op.initial(before)?.last(behind)?)
        },
    },
    Subject {
        name: "ssd_scan in one chunk",
        inputs: &[(&[5, 17], -1.0, 1.0), (&[5], 0.0, 1.0), (&[1, 9], -1.0, 1.0), (&[1, 9], -1.0, 1.0)],
        out: &[5, 17],
        parameters: &[(&[5], -2.0, -0.1)],
        state: &[5, 17, 9],
        run: |x, w, lens, [before, behind], out, s| {
            let op = SsdScan::new(&x[0], &x[1], &w[0], &x[2], &x[3], out)?;
            let op = match lens {
                Some(lens) => op.lens(lens)?,
                None => op,
            };
            s.run(op.initial(before)?.last(behind)?)
        },
    },
    Subject {
        name: "gated_delta_rule",
        inputs: &[
            (&[4, 50], -1.0, 1.0),
            (&[2, 24], -1.0, 1.0),
            (&[2, 24], -1.0, 1.0),
            (&[4], -1.0, 0.0),
            (&[4], 0.0, 1.0),
        ],
        out: &[4, 50],
        parameters: &[],
        state: &[4, 24, 50],
        run: |x, _, lens, [before, behind], out, s| {
            let op = GatedDeltaRule::new(&x[1], &x[2], &x[0], &x[3], &x[4], out)?.key_norm(1e-6)?;
            let op = match lens {
                Some(lens) => op.lens(lens)?,
                None => op,
            };
            s.run(op.initial(before)?.last(behind)?)
        },
    },
];

fn stream(threads: usize) -> Stream {
    let cpu = CpuBackend::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap();
    Registry::new().with(cpu).open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap()
}

fn numbers(s: &Stream, dims: &[usize], low: f64, high: f64, seed: u64) -> Tensor {
    let spec = TensorSpec::of(DType::F32, dims).unwrap();
    let values: Vec<f32> = Fill::Range(low, high).draw(&spec, seed).iter().map(|&x| x as f32).collect();
    s.upload(&values, spec.shape()).unwrap()
}

fn values(s: &Stream, x: &Tensor) -> Vec<f32> {
    s.download::<f32>(x).unwrap().wait().unwrap()
}

/// The result and the last state of a sequence that is cut into parts of these lengths. Parts after the first go on
/// in the state's own memory.
fn run(subject: &Subject, s: &Stream, parts: &[usize]) -> [Vec<f32>; 2] {
    assert_eq!(parts.iter().sum::<usize>(), TOKENS);
    let with = |dims: &[usize], tail: &[usize]| [dims, tail].concat();
    let inputs: Vec<Tensor> = (subject.inputs.iter().enumerate())
        .map(|(i, (tail, low, high))| numbers(s, &with(&[BATCH, TOKENS], tail), *low, *high, i as u64))
        .collect();
    let parameters: Vec<Tensor> = (subject.parameters.iter().enumerate())
        .map(|(i, (dims, low, high))| numbers(s, dims, *low, *high, 10 + i as u64))
        .collect();
    let out = numbers(s, &with(&[BATCH, TOKENS], subject.out), 0.0, 1.0, 20);
    let mut state = numbers(s, &with(&[BATCH], subject.state), -1.0, 1.0, 21);
    let mut first = 0;
    for &count in parts {
        let part = |x: &Tensor| x.narrow(1, first, count).unwrap();
        let inputs: Vec<Tensor> = inputs.iter().map(part).collect();
        let mut before = state.clone();
        let states = [&mut before, &mut state];
        (subject.run)(&inputs, &parameters, None, states, &mut part(&out), s).unwrap();
        first += count;
    }
    [values(s, &out), values(s, &state)]
}

#[test]
fn a_sequence_may_be_cut_anywhere() {
    let s = stream(2);
    for subject in &SUBJECTS {
        let whole = run(subject, &s, &[TOKENS]);
        let single = vec![1; TOKENS];
        let cuts: [&[usize]; 6] = [&single, &[1, 74], &[16, 59], &[17, 0, 58], &[7, 8, 9, 51], &[74, 1]];
        for cut in cuts {
            for (got, want) in run(subject, &s, cut).iter().zip(&whole) {
                let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
                let apart = got.iter().zip(want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                // A hundred roundings of the largest number.
                assert!(apart <= 6e-6 * largest, "{} {cut:?}: {apart:e} of {largest}", subject.name);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for subject in &SUBJECTS {
        let mut seen = (1..=3).map(|threads| {
            let s = stream(threads);
            run(subject, &s, &[40, 35]).map(|x| x.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        });
        let one = seen.next().unwrap();
        assert!(seen.all(|other| other == one), "{}", subject.name);
    }
}

#[test]
fn the_length_of_a_chunk_is_not_seen() {
    let s = stream(1);
    let dims = [BATCH, TOKENS, 3, 10];
    let (x, delta) = (numbers(&s, &dims, -1.0, 1.0, 1), numbers(&s, &dims[..3], 0.0, 1.0, 2));
    let (a, factor) = (numbers(&s, &[3], -2.0, -0.1, 3), numbers(&s, &[BATCH, TOKENS, 1, 12], -1.0, 1.0, 4));
    let of = |chunk| {
        let mut out = s.empty(x.spec()).unwrap();
        let op = SsdScan::new(&x, &delta, &a, &factor, &factor, &mut out).unwrap();
        s.run(op.chunk(chunk).unwrap()).unwrap();
        values(&s, &out)
    };
    let want = of(1);
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    for chunk in [2, 3, 15, 16, 17, 32, 64, 74, 75, 76, 1024] {
        let apart = of(chunk).iter().zip(&want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(apart <= 6e-6 * largest, "{chunk}: {apart:e} of {largest}");
    }
}

/// Several sequences one behind the other.
struct Packed {
    inputs: Vec<Tensor>,
    parameters: Vec<Tensor>,
    out: Tensor,
    before: Tensor,
    behind: Tensor,
}

impl Packed {
    /// So many sequences among so many tokens; tokens from `used` on are not numbers.
    fn new(subject: &Subject, s: &Stream, sequences: usize, [tokens, used]: [usize; 2]) -> Self {
        let rows = |tail: &[usize]| [&[1, tokens], tail].concat();
        let states = [&[sequences], subject.state].concat();
        let inputs = subject.inputs.iter().enumerate().map(|(i, (tail, low, high))| {
            let spec = TensorSpec::of(DType::F32, &rows(tail)).unwrap();
            let mut values = Fill::Range(*low, *high).draw(&spec, 30 + i as u64);
            values[used * tail.iter().product::<usize>()..].fill(f64::NAN);
            s.upload(&values.iter().map(|&x| x as f32).collect::<Vec<_>>(), spec.shape()).unwrap()
        });
        let parameters = (subject.parameters.iter().enumerate())
            .map(|(i, (dims, low, high))| numbers(s, dims, *low, *high, 40 + i as u64));
        Self {
            inputs: inputs.collect(),
            parameters: parameters.collect(),
            out: numbers(s, &rows(subject.out), 0.0, 1.0, 50),
            before: numbers(s, &states, -1.0, 1.0, 51),
            behind: numbers(s, &states, -1.0, 1.0, 52),
        }
    }

    fn run(&mut self, subject: &Subject, s: &Stream, lens: &Lens) -> Result<[Vec<u32>; 2]> {
        let states = [&mut self.before, &mut self.behind];
        (subject.run)(&self.inputs, &self.parameters, Some(lens), states, &mut self.out, s)?;
        s.synchronize()?;
        Ok([&self.out, &self.behind].map(|x| bits(&values(s, x))))
    }

    /// Each sequence in a call of its own, by narrowed operands; 0 behind the last.
    fn run_alone(&mut self, subject: &Subject, s: &Stream, lens: &[u32]) -> [Vec<u32>; 2] {
        let mut first = 0;
        for (i, len) in lens.iter().map(|&len| len as usize).enumerate() {
            let part = |x: &Tensor| x.narrow(1, first, len).unwrap();
            let inputs: Vec<Tensor> = self.inputs.iter().map(part).collect();
            let [mut before, mut behind] = [&self.before, &self.behind].map(|x| x.narrow(0, i, 1).unwrap());
            let states = [&mut before, &mut behind];
            (subject.run)(&inputs, &self.parameters, None, states, &mut part(&self.out), s).unwrap();
            first += len;
        }
        let [mut out, behind] = [&self.out, &self.behind].map(|x| bits(&values(s, x)));
        let row: usize = subject.out.iter().product();
        out[first * row..].fill(0);
        [out, behind]
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_sequence_has_the_same_bits_among_others_as_alone_for_any_number_of_threads() {
    // None, empty ones, one token, one with all, and ends around those of chunks and of few tokens.
    let batches: [&[u32]; 6] =
        [&[], &[0, 0], &[1, 1, 1], &[0, 75, 0], &[7, 8, 0, 9, 1, 15, 16, 17], &[31, 32, 33, 5]];
    for subject in &SUBJECTS {
        for lens in batches {
            let used = lens.iter().sum::<u32>() as usize;
            for (threads, rest) in [(1, 0), (3, 2)] {
                let s = stream(threads);
                let new = || Packed::new(subject, &s, lens.len(), [used + rest, used]);
                let want = new().run_alone(subject, &s, lens);
                let longest = lens.iter().copied().max().unwrap_or(0);
                let known = Lens::upload(&s, lens, longest).unwrap();
                let device = Lens::new(known.tensor().clone(), longest + 9, None).unwrap();
                for lengths in [known, device] {
                    let got = new().run(subject, &s, &lengths).unwrap();
                    assert!(got == want, "{} {lens:?}, {threads} threads, {rest} more", subject.name);
                }
            }
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused_on_the_host_or_found_on_the_device() {
    for subject in &SUBJECTS {
        let s = stream(1);
        let mut packed = Packed::new(subject, &s, 2, [9, 9]);
        let known = Lens::upload(&s, &[4, 6], 6).unwrap();
        let refused = packed.run(subject, &s, &known).unwrap_err();
        assert!(refused.to_string().ends_with("lens add up to 10, there are 9 tokens"), "{refused}");
        let two = Lens::upload(&s, &[4, 5], 5).unwrap();
        Packed::new(subject, &s, 2, [9, 9]).run(subject, &s, &two).unwrap();
        for (lens, what) in [
            ([4, 6], "lens up to 1 add up to 10, there are 9 tokens"),
            ([-1, 6], "lens[0] is -1, expected 0 to 7"),
            ([1, 8], "lens[1] is 8, expected 0 to 7"),
        ] {
            // A fault is the stream's end.
            let s = stream(1);
            let device = s.upload(&lens, &portolan::Shape::new(&[2]).unwrap()).unwrap();
            let lens = Lens::new(device, 7, None).unwrap();
            let fault = Packed::new(subject, &s, 2, [9, 9]).run(subject, &s, &lens).unwrap_err();
            assert!(fault.to_string().contains(what), "{fault}");
        }
        let wide = numbers(&s, &[2, 9, 3], -1.0, 1.0, 1);
        let weight = numbers(&s, &[3, 2], -1.0, 1.0, 2);
        let op = CausalConv1d::new(&wide, &weight, &mut s.empty(wide.spec()).unwrap()).unwrap();
        let refused = op.lens(&two).unwrap_err().to_string();
        assert!(refused.contains("expected a first extent of 1"), "{refused}");
    }
}
