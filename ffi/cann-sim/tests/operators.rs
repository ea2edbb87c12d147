//! Operators through their exported symbols: planned, launched on a stream, seen after a synchronise.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::bindings::*;
use rig::{World, call, operator};
use std::ptr::{null, null_mut};

#[test]
fn a_sum_is_there_after_the_stream_has_passed() {
    let world = World::of("A3");
    let stream = world.stream();
    let (x, y, out) = (world.upload(&[1f32, 2.0, 3.0, 4.0]), world.upload(&[10f32, 20.0]), world.memory(16));
    // The transpose of x, and y along its rows.
    let turned = world.strided(ACL_FLOAT, &[2, 2], &[1, 2], ACL_FORMAT_ND, x);
    let (row, sum) = (world.tensor(ACL_FLOAT, &[2], y), world.tensor(ACL_FLOAT, &[2, 2], out));
    let alpha = world.scalar(0.5);
    let code = operator!(world, stream, aclnnAddGetWorkspaceSize, aclnnAdd, turned, row, alpha, sum);
    assert_eq!(code, 0, "{}", world.message());
    assert_eq!(world.synchronize(stream), 0);
    assert_eq!(world.floats(out, 4), [6.0, 13.0, 7.0, 14.0]);
}

#[test]
fn wrong_arguments_are_refused_in_phase_one_by_name() {
    let world = World::of("310P");
    let stream = world.stream();
    let memory = world.memory(64);
    let (x, y) = (world.tensor(ACL_BF16, &[2], memory), world.tensor(ACL_FLOAT, &[3], memory));
    let alpha = world.scalar(1.0);
    let code = operator!(world, stream, aclnnAddGetWorkspaceSize, aclnnAdd, x, x, alpha, x);
    assert_eq!(code, 161002);
    let message = world.message();
    assert!(message.contains("aclnnAdd: self has type BF16") && message.contains("310P"), "{message}");
    let code = operator!(world, stream, aclnnAddGetWorkspaceSize, aclnnAdd, null(), y, alpha, y);
    assert_eq!(code, 161001);
    assert!(world.message().contains("self is a null pointer"));
}

/// The bits of 1 and 2 in half precision, and the number itself: 2 at every seventh place.
fn entry(place: i64) -> (u16, f32) {
    if place % 7 == 0 { (0x4000, 2.0) } else { (0x3c00, 1.0) }
}

#[test]
fn a_weight_turned_into_blocks_multiplies_as_before() {
    let world = World::of("A2");
    let stream = world.stream();
    let (n, k) = (18i64, 20i64);
    let x = world.upload(&(0..k).map(|i| entry(i).0).collect::<Vec<u16>>());
    let mut weights: Vec<u16> = (0..n * k).map(|i| entry(i).0).collect();
    let dims = [n, k];
    let shape = call!(world.0.libraries().descriptors, aclCreateIntArray(dims.as_ptr(), 2));
    let mut elements = 0;
    let operators = &world.0.libraries().operators;
    let code = call!(operators, aclnnCalculateMatmulWeightSizeV2(shape, ACL_FLOAT16, &mut elements));
    assert_eq!((code, elements), (0, 32 * 32));
    weights.resize(elements as usize, 0);
    let (plain, blocks) = (world.upload(&weights), world.upload(&weights));
    let rows = world.tensor(ACL_FLOAT16, &[n, k], blocks);
    let code = operator!(world, stream, aclnnTransMatmulWeightGetWorkspaceSize, aclnnTransMatmulWeight, rows);
    assert_eq!(code, 0, "{}", world.message());
    let mut results = Vec::new();
    for (format, at) in [(ACL_FORMAT_ND, plain), (ACL_FORMAT_FRACTAL_NZ, blocks)] {
        let out = world.memory(4 * n as usize);
        let weight = world.strided(ACL_FLOAT16, &[k, n], &[1, k], format, at);
        let (x, y) = (world.tensor(ACL_FLOAT16, &[1, k], x), world.tensor(ACL_FLOAT, &[1, n], out));
        let code = operator!(world, stream, aclnnMmGetWorkspaceSize, aclnnMm, x, weight, y, 0);
        assert_eq!(code, 0, "{}", world.message());
        assert_eq!(world.synchronize(stream), 0, "{}", world.message());
        results.push(world.floats(out, n as usize));
    }
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0][3], (0..k).map(|p| entry(p).1 * entry(3 * k + p).1).sum::<f32>());
}

#[test]
fn an_index_outside_shows_at_the_synchronise() {
    let world = World::of("A3");
    let stream = world.stream();
    let (table, index, out) = (world.upload(&[1f32, 2.0]), world.upload(&[5i64]), world.memory(32));
    let (table, index) = (world.tensor(ACL_FLOAT, &[2, 1], table), world.tensor(ACL_INT64, &[1], index));
    let out = world.tensor(ACL_FLOAT, &[1, 1], out);
    let code = operator!(world, stream, aclnnEmbeddingGetWorkspaceSize, aclnnEmbedding, table, index, out);
    assert_eq!(code, 0);
    assert_eq!(world.synchronize(stream), 507035);
    assert!(world.message().contains("index 5 is outside"));
}

#[test]
fn a_repeatable_executor_reads_where_it_is_pointed() {
    let world = World::of("A3");
    let stream = world.stream();
    let (first, second, out) = (world.upload(&[1f32, 2.0]), world.upload(&[-3f32, 4.0]), world.memory(32));
    let (x, y) = (world.tensor(ACL_FLOAT, &[2], first), world.tensor(ACL_FLOAT, &[2], out));
    let (mut size, mut executor) = (0, null_mut());
    let libraries = world.0.libraries();
    assert_eq!(call!(libraries.operators, aclnnNegGetWorkspaceSize(x, y, &mut size, &mut executor)), 0);
    assert_eq!(call!(libraries.descriptors, aclSetAclOpExecutorRepeatable(executor)), 0);
    for (at, want) in [(first, [-1.0, -2.0]), (second, [3.0, -4.0])] {
        assert_eq!(
            call!(libraries.descriptors, aclSetTensorAddr(executor, 0, x, at)),
            0,
            "{}",
            world.message()
        );
        assert_eq!(call!(libraries.operators, aclnnNeg(null_mut(), 0, executor, stream)), 0);
        assert_eq!(world.synchronize(stream), 0);
        assert_eq!(world.floats(out, 2), want);
    }
    // An index is that of the very tensor, among both sides or one of them.
    let functions = &libraries.descriptors;
    assert_ne!(call!(functions, aclSetTensorAddr(executor, 1, x, second)), 0);
    assert!(world.message().contains("index 1 of aclnnNeg is"));
    assert_ne!(call!(functions, aclSetTensorAddr(executor, 2, x, second)), 0);
    assert!(world.message().contains("none at index 2 of 2"));
    assert_ne!(call!(functions, aclSetOutputTensorAddr(executor, 0, x, second)), 0);
    assert_eq!(call!(functions, aclSetOutputTensorAddr(executor, 0, y, out)), 0);
    assert_eq!(call!(libraries.descriptors, aclDestroyAclOpExecutor(executor)), 0);
}
