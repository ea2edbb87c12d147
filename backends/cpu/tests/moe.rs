//! Mixtures of experts with memory: routings that are out of range, packed weights, and weights that nobody may
//! read.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::{ExpertFfn, GroupedGemm, MoeGate, MoePermute, MoeUnpermute};
use portolan_core::{Experts, HostBuffer, Op, OpKind, Stream, Tensor, ops};
use portolan_ops::moe::{ExpertNames, ExpertsSpec, GateScore};
use portolan_ops::quant::QuantScheme;
use portolan_ops::{Access, Contract, DType, Fill, HostTensor, OpError, Shape, TensorSpec};
use rig::{queued, stream, up};

fn ints(s: &Stream, dims: &[usize], data: &[i32]) -> Tensor {
    s.upload(data, &Shape::new(dims).unwrap()).unwrap()
}

fn empty(s: &Stream, dtype: DType, dims: &[usize]) -> Tensor {
    s.empty(&TensorSpec::of(dtype, dims).unwrap()).unwrap()
}

fn floats(s: &Stream, dims: &[usize]) -> Tensor {
    up(s, &vec![0.5; dims.iter().product()]).reshape(dims).unwrap()
}

/// What a stream says of an operator that meets what it may not.
fn fault(make: impl FnOnce(&Stream) -> portolan_ops::Result<()>) -> String {
    let s = stream(&queued());
    make(&s).unwrap();
    match s.synchronize().unwrap_err() {
        OpError::Poisoned { source, .. } => {
            assert!(matches!(*source, OpError::Data { .. }), "{source}");
            source.to_string()
        }
        other => panic!("{other}"),
    }
}

fn run(s: &Stream, op: portolan_ops::Result<impl Op>) -> portolan_ops::Result<()> {
    s.run(op?)
}

#[test]
fn a_token_or_an_expert_beyond_the_table_is_a_fault() {
    let route = |tokens: [i32; 2], table: [i32; 6]| {
        fault(|s| {
            let logits = floats(s, &[2, 4]);
            let (tokens, table) = (ints(s, &[2], &tokens), ints(s, &[3, 2], &table));
            let (mut weights, mut ids) = (empty(s, DType::F32, &[2, 2]), empty(s, DType::I32, &[2, 2]));
            run(s, MoeGate::hashed(GateScore::Sigmoid, &logits, &tokens, &table, &mut weights, &mut ids))
        })
    };
    let said = route([0, 3], [0, 1, 2, 3, 0, 1]);
    assert!(said.contains("token_ids[1] is 3, the table has 3 rows"), "{said}");
    let said = route([1, 2], [0, 1, 2, 4, 0, 1]);
    assert!(said.contains("table[1, 1] is 4, there are 4 experts"), "{said}");
}

#[test]
fn an_expert_that_does_not_exist_is_a_fault_of_the_permutation() {
    let said = fault(|s| {
        let (x, ids) = (floats(s, &[2, 3]), ints(s, &[2, 2], &[0, -1, 5, 1]));
        let (mut out, mut map) = (empty(s, DType::F32, &[4, 3]), empty(s, DType::I32, &[2, 2]));
        let mut offsets = empty(s, DType::I32, &[6]);
        run(s, MoePermute::contiguous(&x, &ids, &mut out, &mut map, &mut offsets))
    });
    assert!(said.contains("expert_ids[1, 0] is 5, there are 5 experts"), "{said}");
}

#[test]
fn a_row_that_does_not_exist_is_a_fault_of_the_way_back() {
    let said = fault(|s| {
        let (y, map) = (floats(s, &[4, 3]), ints(s, &[2, 2], &[0, -1, 3, 4]));
        run(s, MoeUnpermute::new(&y, &map, &mut empty(s, DType::F32, &[2, 3])))
    });
    assert!(said.contains("row_map[1, 1] is beyond the 4 rows of y"), "{said}");
}

#[test]
fn rows_that_leave_their_matrix_or_room_are_a_fault_of_the_products() {
    let contiguous = |offsets: [i32; 4]| {
        fault(|s| {
            let (x, weight) = (floats(s, &[5, 4]), Experts::dense(floats(s, &[3, 2, 4])).unwrap());
            let (offsets, mut out) = (ints(s, &[4], &offsets), empty(s, DType::F32, &[5, 2]));
            run(s, GroupedGemm::contiguous(&x, &weight, &offsets, &mut out))
        })
    };
    let said = contiguous([0, 2, 1, 5]);
    assert!(said.contains("offsets: expert 1 has rows 2 to 1, there are 5"), "{said}");
    let said = contiguous([0, 2, 4, 6]);
    assert!(said.contains("offsets: expert 2 has rows 4 to 6, there are 5"), "{said}");
    assert!(contiguous([-1, 2, 4, 5]).contains("rows -1 to 2"));
    let said = fault(|s| {
        let (x, weight) = (floats(s, &[3, 5, 4]), Experts::dense(floats(s, &[3, 2, 4])).unwrap());
        let (counts, mut out) = (ints(s, &[3], &[5, 0, 6]), empty(s, DType::F32, &[3, 5, 2]));
        run(s, GroupedGemm::masked(&x, &weight, &counts, &mut out))
    });
    assert!(said.contains("counts: expert 2 has rows 0 to 6, there are 5"), "{said}");
}

#[test]
fn an_expert_that_does_not_exist_is_a_fault_of_the_network() {
    let said = fault(|s| {
        let (x, ids) = (floats(s, &[2, 4]), ints(s, &[2, 2], &[0, -1, 2, 3]));
        let gate_up = Experts::dense(floats(s, &[3, 6, 4])).unwrap();
        let down = Experts::dense(floats(s, &[3, 4, 3])).unwrap();
        let mut out = empty(s, DType::F32, &[2, 4]);
        run(s, ExpertFfn::new(&x, &ids, &floats(s, &[2, 2]), &gate_up, &down, &mut out))
    });
    assert!(said.contains("expert_ids[1, 1] is 3, there are 3 experts"), "{said}");
}

/// The forms weights come in.
#[derive(Clone, Copy, Debug)]
enum Form {
    Dense(DType),
    Quant(QuantScheme),
}

const FORMS: [(&str, Form); 17] = [
    ("f32", Form::Dense(DType::F32)),
    ("f16", Form::Dense(DType::F16)),
    ("bf16", Form::Dense(DType::BF16)),
    ("q4_0", Form::Quant(QuantScheme::Q4_0)),
    ("q4_1", Form::Quant(QuantScheme::Q4_1)),
    ("q5_0", Form::Quant(QuantScheme::Q5_0)),
    ("q5_1", Form::Quant(QuantScheme::Q5_1)),
    ("q8_0", Form::Quant(QuantScheme::Q8_0)),
    ("q4_k", Form::Quant(QuantScheme::Q4_K)),
    ("q5_k", Form::Quant(QuantScheme::Q5_K)),
    ("q6_k", Form::Quant(QuantScheme::Q6_K)),
    ("i8_row", Form::Quant(QuantScheme::INT8_ROW)),
    ("f8_block", Form::Quant(QuantScheme::F8_BLOCK)),
    ("f8_block_e8m0", Form::Quant(QuantScheme::F8_BLOCK_E8M0)),
    ("f8_group", Form::Quant(QuantScheme::F8_GROUP)),
    ("mxfp8", Form::Quant(QuantScheme::MXFP8)),
    ("mxfp4", Form::Quant(QuantScheme::MXFP4)),
];

fn uploaded(s: &Stream, spec: &TensorSpec, fill: &Fill, seed: u64) -> Tensor {
    let host = HostTensor::from_f64(spec, &fill.draw(spec, seed), 0).unwrap();
    s.upload_bytes(spec, HostBuffer::from_bytes(host.bytes()).unwrap(), &"weights".into()).unwrap()
}

fn experts(s: &Stream, form: Form, count: usize, n: usize, k: usize) -> Experts {
    let scheme = match form {
        Form::Dense(dtype) => {
            let spec = TensorSpec::of(dtype, &[count, n, k]).unwrap();
            return Experts::dense(uploaded(s, &spec, &Fill::Unit, 7)).unwrap();
        }
        Form::Quant(scheme) => scheme,
    };
    let spec = ExpertsSpec::of(scheme, count, n, k).unwrap();
    let fills = spec.fills(&ExpertNames::WEIGHT);
    let mut parts: Vec<(&str, Tensor)> = Vec::new();
    spec.visit(&ExpertNames::WEIGHT, Access::Read, &mut |part| {
        let fill = fills.iter().find(|(name, _)| *name == part.name).map_or(&Fill::Unit, |(_, fill)| fill);
        parts.push((part.name, uploaded(s, part.spec, fill, 7)));
    });
    let part = |name: &str| parts.iter().find(|(known, _)| *known == name).map(|(_, part)| part.clone());
    let [codes, scale, offset, outer, outer_offset] = ExpertNames::WEIGHT.quant.map(part);
    Experts::quant(scheme, codes.unwrap(), scale.unwrap(), offset, outer, outer_offset).unwrap()
}

/// A routing of 6 tokens to experts 1 and 4 of 6.
const ROUTED: [i32; 12] = [4, 1, 1, -1, 4, 4, 1, 4, -1, 4, 4, 1];

fn network(s: &Stream, gate_up: &Experts, down: &Experts) -> (ExpertFfn, Tensor) {
    let x = uploaded(s, &TensorSpec::of(DType::F32, &[6, gate_up.spec().k()]).unwrap(), &Fill::Unit, 3);
    let (ids, weights) = (ints(s, &[6, 2], &ROUTED), floats(s, &[6, 2]));
    let mut out = empty(s, DType::F32, &[6, down.spec().n()]);
    (ExpertFfn::new(&x, &ids, &weights, gate_up, down, &mut out).unwrap(), out)
}

fn products(s: &Stream, weight: &Experts) -> (GroupedGemm, Tensor) {
    let x = uploaded(s, &TensorSpec::of(DType::F32, &[10, weight.spec().k()]).unwrap(), &Fill::Unit, 3);
    let offsets = ints(s, &[7], &[0, 0, 4, 4, 4, 10, 10]);
    let mut out = empty(s, DType::F32, &[10, weight.spec().n()]);
    (GroupedGemm::contiguous(&x, weight, &offsets, &mut out).unwrap(), out)
}

#[test]
fn packed_experts_give_what_the_plain_ones_give() {
    let s = stream(&queued());
    for (name, form) in FORMS {
        let (gate_up, down) = (experts(&s, form, 6, 68, 256), experts(&s, form, 6, 40, 34));
        let packed = |experts: &Experts, kind| {
            let packed = s.prepack_experts(experts, kind).unwrap();
            assert_eq!(packed.tensors().len(), 1, "{name} has a packed form");
            // Each expert's is a weight of its own, which comes back bit for bit.
            let unpacked = s.unpack(&packed.expert(2).unwrap()).unwrap();
            for (back, was) in unpacked.tensors().iter().zip(experts.expert(2).unwrap().tensors()) {
                assert_eq!(bytes(&s, back), bytes(&s, was), "{name}");
            }
            packed
        };
        let numbers = |(out, tolerance): (Tensor, portolan_ops::Tolerance)| {
            (down_f64(&s, &out), tolerance.plus(tolerance))
        };
        let network_of = |gate_up: &Experts, down: &Experts| {
            let (op, out) = network(&s, gate_up, down);
            let tolerance = op.spec().tolerance()[0];
            s.run(op).unwrap();
            numbers((out, tolerance))
        };
        let products_of = |weight: &Experts| {
            let (op, out) = products(&s, weight);
            let tolerance = op.spec().tolerance()[0];
            s.run(op).unwrap();
            numbers((out, tolerance))
        };
        let (plain, tolerance) = products_of(&gate_up);
        assert!(plain.iter().any(|&v| v != 0.0));
        tolerance.check(&products_of(&packed(&gate_up, OpKind::GroupedGemm)).0, &plain).unwrap();
        let (plain, tolerance) = network_of(&gate_up, &down);
        let kind = OpKind::ExpertFfn;
        let got = network_of(&packed(&gate_up, kind), &packed(&down, kind)).0;
        tolerance.check(&got, &plain).unwrap_or_else(|m| panic!("{name}: {m}"));
    }
}

/// The bytes of a tensor's elements.
fn bytes(s: &Stream, x: &Tensor) -> Vec<u8> {
    let whole = ops::contiguous(s, x).unwrap();
    let len = whole.spec().span_bytes();
    s.download_bytes(whole.buffer()).unwrap().wait().unwrap()[..len].to_vec()
}

fn down_f64(s: &Stream, x: &Tensor) -> Vec<f64> {
    rig::down(s, &x.reshape(&[x.numel()]).unwrap()).into_iter().map(f64::from).collect()
}

/// Weights that no page may be read of, in a process of their own: a read there ends it.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod unrouted {
    use super::*;
    use std::process::{Command, ExitStatus};

    /// What the child is to do: format, forms (`plain`, `packed` or both), and the experts to protect.
    const TASK: &str = "PORTOLAN_TEST_UNROUTED";
    const PAGE: usize = 4096;

    unsafe extern "C" {
        fn mprotect(address: *mut core::ffi::c_void, len: usize, protection: i32) -> i32;
    }

    /// Forbids every access to the whole pages of an expert's weight; how many there are.
    fn forbid(experts: &Experts, expert: usize) -> usize {
        let mut pages = 0;
        for part in experts.tensors() {
            let own = part.select(0, expert).unwrap();
            let (start, end) = own.spec().byte_range();
            let base = own.buffer().address();
            let (start, end) = ((base + start).next_multiple_of(PAGE), (base + end) / PAGE * PAGE);
            // Factors of scales are fewer than a page holds.
            if start >= end {
                continue;
            }
            // SAFETY: the pages lie within the device's own segment, which this process never gives back.
            let done = unsafe { mprotect(start as *mut _, end - start, 0) };
            assert_eq!(done, 0, "mprotect was refused");
            pages += (end - start) / PAGE;
        }
        assert!(pages > 0);
        pages
    }

    /// Runs both operators, forbids pages, runs them again; the results must be the same bits.
    #[test]
    fn child() {
        let Ok(task) = std::env::var(TASK) else { return };
        let mut words = task.split(' ');
        let (name, forms) = words.next().zip(words.next()).unwrap();
        let forbidden: Vec<usize> = words.map(|word| word.parse().unwrap()).collect();
        let s = stream(&queued());
        let format = FORMS.iter().find(|(known, _)| *known == name).unwrap().1;
        let plain = [experts(&s, format, 6, 1024, 512), experts(&s, format, 6, 512, 512)];
        // Both are made before anything is forbidden.
        let packed = plain.each_ref().map(|stack| s.prepack_experts(stack, OpKind::ExpertFfn).unwrap());
        for (form, stacks) in [("plain", &plain), ("packed", &packed)] {
            if !forms.split(',').any(|wanted| wanted == form) {
                continue;
            }
            let [gate_up, down] = stacks;
            let bits = || {
                let ((product, a), (ffn, b)) = (products(&s, gate_up), network(&s, gate_up, down));
                s.run(product).unwrap();
                s.run(ffn).unwrap();
                let mut bits = down_f64(&s, &a);
                bits.extend(down_f64(&s, &b));
                bits
            };
            let before = bits();
            let pages: usize = forbidden.iter().flat_map(|&e| stacks.iter().map(move |s| forbid(s, e))).sum();
            let after = bits();
            assert!(before.iter().any(|&v| v != 0.0) && before == after, "{name} {form}");
            println!("{pages} pages of {form} weights were not read");
        }
        // Without giving memory back: that may touch it.
        std::process::exit(0);
    }

    fn run_child(name: &str, forms: &str, forbidden: &str) -> (ExitStatus, String) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "unrouted::child", "--nocapture", "--test-threads=1"]);
        // Under AddressSanitizer a fault would else be an ordinary exit.
        command.env("ASAN_OPTIONS", "handle_segv=0:handle_sigbus=0");
        let output = command.env(TASK, format!("{name} {forms} {forbidden}")).output().unwrap();
        (output.status, String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn weights_of_experts_without_tokens_are_not_read() {
        for (name, _) in FORMS {
            let (status, said) = run_child(name, "plain,packed", "0 2 3 5");
            let shown = |form| said.contains(&format!("pages of {form} weights were not read"));
            assert!(status.success() && shown("plain") && shown("packed"), "{name}: {status} {said}");
        }
        // The same with an expert that has tokens must end the process, else nothing was shown.
        for form in ["plain", "packed"] {
            let (status, said) = run_child("f32", form, "0 4");
            assert!(status.code().is_none() && !said.contains("were not read"), "{form}: {status} {said}");
        }
    }
}
