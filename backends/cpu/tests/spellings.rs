//! What has no operator of its own: results of `ops::…` that are made of copies, fills and a few core operators, on
//! the CPU and on the reference device, against plain loops.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_conformance::ReferenceBackend;
use portolan_core::{Registry, Stream, Tensor, ops};
use portolan_ops::kernel::ScanKind;
use portolan_ops::sort::SortOrder;
use portolan_ops::{DType, ErrorKind, OpError, Shape, TensorSpec};
use proptest::prelude::*;
use rig::{queued, stream};

fn both_devices() -> [Stream; 2] {
    let reference = Registry::new().with(ReferenceBackend::new()).open("reference:0").unwrap();
    [stream(&queued()), stream(&reference)]
}

/// 0, 1, 2, … as f32, so that an element tells where it came from.
fn counted(s: &Stream, dims: &[usize]) -> Tensor {
    let shape = Shape::new(dims).unwrap();
    let values: Vec<f32> = (0..shape.numel()).map(|i| i as f32).collect();
    s.upload(&values, &shape).unwrap()
}

fn values(s: &Stream, x: &Tensor) -> Vec<f32> {
    s.download::<f32>(x).unwrap().wait().unwrap()
}

/// `f(index)` of every element of an extent, in logical order.
fn by_index(dims: &[usize], mut f: impl FnMut(&[usize]) -> f32) -> Vec<f32> {
    let numel: usize = dims.iter().product();
    let at = |mut i: usize| {
        let mut index = vec![0; dims.len()];
        for d in (0..dims.len()).rev() {
            index[d] = i % dims[d];
            i /= dims[d];
        }
        index
    };
    (0..numel).map(|i| f(&at(i))).collect()
}

/// The number that `counted` holds at an index.
fn count_at(dims: &[usize], index: &[usize]) -> f32 {
    index.iter().zip(dims).fold(0, |place, (&i, &d)| place * d + i) as f32
}

fn invalid(error: OpError) -> String {
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    error.to_string()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn rows_roll_turn_grow_and_join(
        dims in prop::collection::vec(0usize..5, 1..4), at in any::<prop::sample::Index>(), shift in -9isize..9,
        margins in prop::collection::vec((0usize..3, 0usize..3), 4), cut in any::<prop::sample::Index>(),
        swap in any::<bool>(),
    ) {
        let dim = at.index(dims.len());
        for s in both_devices() {
            // Strided, if it has dimensions to exchange.
            let stored: Vec<usize> =
                if swap { dims.iter().rev().copied().collect() } else { dims.clone() };
            let axes: Vec<usize> = (0..dims.len()).rev().collect();
            let x = counted(&s, &stored);
            let x = if swap { x.permute(&axes).unwrap() } else { x };
            let element = |index: &[usize]| match swap {
                true => count_at(&stored, &index.iter().rev().copied().collect::<Vec<_>>()),
                false => count_at(&stored, index),
            };
            let moved = |place: usize| {
                let element = &element;
                move |index: &[usize]| {
                    let mut from = index.to_vec();
                    from[dim] = place;
                    element(&from)
                }
            };

            let rolled = ops::roll(&s, &x, dim, shift).unwrap();
            let extent = dims[dim] as isize;
            let want = by_index(&dims, |i| moved((i[dim] as isize - shift).rem_euclid(extent) as usize)(i));
            prop_assert_eq!(values(&s, &rolled), want);

            let turned = ops::flip(&s, &x, dim).unwrap();
            prop_assert_eq!(values(&s, &turned), by_index(&dims, |i| moved(dims[dim] - 1 - i[dim])(i)));

            let padding = &margins[..dims.len()];
            let padded = ops::pad(&s, &x, padding, -1.0).unwrap();
            let wide: Vec<usize> = dims.iter().zip(padding).map(|(d, (a, b))| d + a + b).collect();
            let want = by_index(&wide, |i| {
                let inside: Option<Vec<usize>> = (0..i.len())
                    .map(|d| i[d].checked_sub(padding[d].0).filter(|&at| at < dims[d]))
                    .collect();
                inside.map_or(-1.0, |inside| element(&inside))
            });
            prop_assert_eq!(padded.dims(), &wide[..]);
            prop_assert_eq!(values(&s, &padded), want);

            let first = cut.index(dims[dim] + 1);
            let pieces = ops::split(&x, dim, &[first, dims[dim] - first]).unwrap();
            let joined = ops::concat(&s, &[&pieces[1], &pieces[0], &pieces[1]], dim).unwrap();
            let rest = dims[dim] - first;
            let mut long = dims.clone();
            long[dim] = dims[dim] + rest;
            let want = by_index(&long, |i| {
                moved(if i[dim] < rest { first + i[dim] } else { (i[dim] - rest) % dims[dim] })(i)
            });
            prop_assert_eq!(values(&s, &joined), want);
        }
    }

    #[test]
    fn a_sort_is_that_of_the_standard_library(
        x in prop::collection::vec(prop_oneof![-3.0f32..3.0, (-2i8..2).prop_map(f32::from), Just(f32::NAN)], 0..200),
    ) {
        let key = |x: f32| if x.is_nan() { f64::INFINITY } else { f64::from(x) };
        for s in both_devices() {
            let uploaded = s.upload(&x, &Shape::new(&[x.len()]).unwrap()).unwrap();
            let mut want: Vec<i32> = (0..x.len() as i32).collect();
            want.sort_by(|&i, &j| key(x[i as usize]).total_cmp(&key(x[j as usize])));
            // total_cmp orders −0 below 0, which the contract takes for equal: none is drawn but as a number.
            let got = ops::argsort(&s, SortOrder::Ascending, &uploaded).unwrap();
            prop_assert_eq!(s.download::<i32>(&got).unwrap().wait().unwrap(), &want[..]);
            want.sort_by(|&i, &j| key(x[j as usize]).total_cmp(&key(x[i as usize])).then(i.cmp(&j)));
            let (sorted, got) = ops::sort(&s, SortOrder::Descending, &uploaded).unwrap();
            prop_assert_eq!(s.download::<i32>(&got).unwrap().wait().unwrap(), &want[..]);
            for (&i, sorted) in want.iter().zip(values(&s, &sorted)) {
                prop_assert_eq!(x[i as usize].to_bits(), sorted.to_bits());
            }
        }
    }
}

#[test]
fn counting_gives_the_nearest_numbers_of_every_type() {
    for s in both_devices() {
        for n in [0, 1, 5, 1000] {
            let want: Vec<i32> = (0..n as i32).collect();
            let of = |dtype| ops::iota(&s, dtype, n).unwrap();
            assert_eq!(s.download::<i32>(&of(DType::I32)).unwrap().wait().unwrap(), want);
            let wide: Vec<i64> = want.iter().map(|&i| i.into()).collect();
            assert_eq!(s.download::<i64>(&of(DType::I64)).unwrap().wait().unwrap(), wide);
            for dtype in [DType::F32, DType::F64] {
                let got = ops::cast(&s, &of(dtype), DType::I32).unwrap();
                assert_eq!(s.download::<i32>(&got).unwrap().wait().unwrap(), want, "{dtype}");
            }
        }
        assert!(invalid(ops::iota(&s, DType::U8, 3).unwrap_err()).starts_with("iota: "));
        let beyond = ops::iota(&s, DType::I32, (1 << 31) + 1).unwrap_err();
        assert!(invalid(beyond).contains("count in i64"));
    }
}

#[test]
fn one_place_a_row_is_hot_and_padding_none() {
    for s in both_devices() {
        let index = s.upload(&[2i32, -1, 0, 3], &Shape::new(&[2, 2]).unwrap()).unwrap();
        let hot = ops::one_hot(&s, &index, 3, DType::F32).unwrap();
        assert_eq!(hot.dims(), [2, 2, 3]);
        let want = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(values(&s, &hot), want);
        let mask = ops::one_hot(&s, &index, 3, DType::Bool).unwrap();
        assert_eq!(s.download::<bool>(&mask).unwrap().wait().unwrap(), want.map(|x| x == 1.0));
        assert_eq!(ops::one_hot(&s, &index, 0, DType::F32).unwrap().numel(), 0);
        let floats = counted(&s, &[2]);
        assert!(invalid(ops::one_hot(&s, &floats, 3, DType::F32).unwrap_err()).starts_with("one_hot: index"));
    }
}

#[test]
fn a_mask_fills_and_does_not_widen() {
    for s in both_devices() {
        let x = counted(&s, &[2, 3]);
        let mask = s.upload(&[true, false, true], &Shape::new(&[3]).unwrap()).unwrap();
        let filled = ops::masked_fill(&s, &x, &mask, f64::NEG_INFINITY).unwrap();
        let low = f32::NEG_INFINITY;
        assert_eq!(values(&s, &filled), [low, 1.0, low, low, 4.0, low]);
        let row = counted(&s, &[3]);
        let wide = mask.broadcast_to(&[2, 3]).unwrap();
        let e = ops::masked_fill(&s, &row, &wide, 0.0).unwrap_err();
        assert_eq!(invalid(e), "masked_fill: x is [3], mask is [2, 3]: it does not broadcast to x");
        let ints = ops::cast(&s, &x, DType::I32).unwrap();
        invalid(ops::masked_fill(&s, &ints, &mask, 0.5).unwrap_err());
    }
}

#[test]
fn running_values_are_allocated_in_the_type_of_their_operand() {
    for s in both_devices() {
        let x = s.upload(&[3u8, 1, 200, 7], &Shape::new(&[2, 2]).unwrap()).unwrap();
        let top = ops::cumulative(&s, ScanKind::Max, &x, 1).unwrap();
        assert_eq!(s.download::<u8>(&top).unwrap().wait().unwrap(), [3, 3, 200, 200]);
        invalid(ops::cumulative(&s, ScanKind::Sum, &x, 1).unwrap_err());
        let x = counted(&s, &[2, 3]);
        assert_eq!(
            values(&s, &ops::cumulative(&s, ScanKind::Sum, &x, 0).unwrap()),
            [0.0, 1.0, 2.0, 3.0, 5.0, 7.0]
        );
        let a = ops::full(&s, DType::F32, &Shape::new(&[1]).unwrap(), 2.0).unwrap();
        let h = ops::linear_scan(&s, &a, &x, 1).unwrap();
        assert_eq!(values(&s, &h), [0.0, 1.0, 4.0, 3.0, 10.0, 25.0]);
    }
}

#[test]
fn groups_of_a_row_are_normalised_alone() {
    for s in both_devices() {
        let x = s.upload(&[3f32, 3.0, -5.0, 5.0], &Shape::new(&[1, 4]).unwrap()).unwrap();
        let weight = s.upload(&[1f32, 2.0, 3.0, 4.0], &Shape::new(&[4]).unwrap()).unwrap();
        let out = ops::group_rms_norm(&s, &x, 2, Some(&weight), 0.0).unwrap();
        assert_eq!((out.dims(), values(&s, &out)), (&[1usize, 4][..], vec![1.0, 2.0, -3.0, 4.0]));
        for groups in [0, 3] {
            let e = ops::group_rms_norm(&s, &x, groups, None, 0.0).unwrap_err();
            assert!(invalid(e).contains("equal groups"));
        }
        let square = weight.reshape(&[2, 2]).unwrap();
        invalid(ops::group_rms_norm(&s, &x, 2, Some(&square), 0.0).unwrap_err());
    }
}

#[test]
fn dimensions_that_are_not_there_are_named() {
    let s = stream(&queued());
    let x = counted(&s, &[2, 3]);
    for error in [
        ops::roll(&s, &x, 2, 1).unwrap_err(),
        ops::flip(&s, &x, 2).unwrap_err(),
        ops::split(&x, 2, &[1]).unwrap_err(),
        ops::concat(&s, &[&x], 2).unwrap_err(),
    ] {
        assert!(invalid(error).ends_with("[2, 3] has no dimension 2"));
    }
    invalid(ops::concat(&s, &[], 0).unwrap_err());
    invalid(ops::pad(&s, &x, &[(1, 1)], 0.0).unwrap_err());
    // Mirrored rows of a type without whole bytes are refused by the operator that moves them.
    let nibbles = s.empty(&TensorSpec::of(DType::U4, &[2, 4]).unwrap()).unwrap();
    invalid(ops::flip(&s, &nibbles, 0).unwrap_err());
}
