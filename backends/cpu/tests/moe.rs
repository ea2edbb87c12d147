//! Mixtures of experts with memory: routings that are out of range.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::{MoeGate, MoePermute, MoeUnpermute};
use portolan_core::{Op, Stream, Tensor};
use portolan_ops::moe::GateScore;
use portolan_ops::{DType, OpError, Shape, TensorSpec};
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
