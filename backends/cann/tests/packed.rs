//! Weights in the vendor's blocks: made and turned back without the change of a bit, multiplied as in rows, and only where
//! that is of use.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::sim::{Adversary, PlannedFault, SimOptions, SimWorld};
use portolan_conformance::check_round_trips;
use portolan_core::{Bind, HostBuffer, Op, OpKind, Stream, Support, Tensor, Weight};
use portolan_ops::kernel::Activation;
use portolan_ops::quant::{LinearSpec, PackedContent, WeightSpec};
use portolan_ops::{
    Access, Case, Cases, Contract, DType, Determinism, HostTensor, OpError, Shape, TensorSpec,
};
use rig::{assert_empties, open, options, stream, world};

/// A driver without these operators.
fn without(soc: &str, operators: &[&str]) -> SimWorld {
    let hidden = operators.iter().map(|name| format!("aclnn{name}GetWorkspaceSize")).collect();
    SimWorld::new(&SimOptions { hidden, ..options(soc, Adversary::Late, 0) }).unwrap()
}

/// The driver's operators whose names have this in them, as they were launched.
fn launched(world: &SimWorld, part: &str) -> Vec<String> {
    let calls = world.calls(0).unwrap().into_iter().map(|call| call.name);
    calls.filter(|name| name.contains(part) && !name.ends_with("GetWorkspaceSize")).collect()
}

#[test]
fn round_trips_change_no_bit_whatever_makes_the_blocks() {
    for (world, maker) in [
        (world("A3", Adversary::Late, 0), "NpuFormatCast"),
        (world("A2", Adversary::Seeded, 3), "NpuFormatCast"),
        (world("950", Adversary::Early, 0), "NpuFormatCast"),
        (without("A3", &["NpuFormatCast"]), "TransMatmulWeight"),
    ] {
        let device = open(&world);
        let outcome = check_round_trips(&stream(&device), 1).unwrap();
        assert!(outcome.failures.is_empty(), "{maker}: {:?}", outcome.failures.first());
        assert!(outcome.passed >= 8 && outcome.unsupported > outcome.passed, "{maker}: {}", outcome.passed);
        let made = ["NpuFormatCast", "TransMatmulWeight"].map(|name| launched(&world, name).len());
        let want = if maker == "NpuFormatCast" { [outcome.passed, 0] } else { [0, outcome.passed] };
        assert_eq!(made, want);
        drop(device);
        assert_empties(&world);
    }
}

/// A tensor with these elements.
fn upload(s: &Stream, spec: &TensorSpec, values: &[f64]) -> Result<Tensor, OpError> {
    let bytes = HostTensor::from_f64(spec, values, 0xA5)?.bytes().to_vec();
    let whole = TensorSpec::new(DType::U8, Shape::new(&[bytes.len()])?);
    let memory = s.upload_bytes(&whole, HostBuffer::from_bytes(&bytes)?, &"operand".into())?;
    Tensor::new(memory.buffer().clone(), *spec)
}

/// What a layer over its packed weight gives, and what the oracle says; `None` where there is no packed form.
fn over_packed(s: &Stream, case: &Case<LinearSpec>) -> Result<Option<[Vec<f64>; 2]>, OpError> {
    let layer = &case.contract;
    let (mut values, mut tensors) = (Vec::new(), Vec::new());
    let mut made = Ok(());
    layer.operands(&mut |part| {
        let drawn = case.fill_of(part.name).draw(part.spec, values.len() as u64 + 11);
        match upload(s, part.spec, &drawn) {
            Ok(tensor) => tensors.push(tensor),
            Err(error) => made = Err(error),
        }
        if part.access == Access::Read {
            values.push(drawn);
        }
    });
    made?;
    let weight = s.prepack(&Weight::Dense(tensors[1].clone()), OpKind::Linear)?;
    let Weight::Packed(_) = &weight else { return Ok(None) };
    tensors[1] = weight.tensors()[0].clone();
    let packed = layer.with_weight(&weight.spec()?)?;
    let operands: Vec<&Tensor> = tensors.iter().collect();
    s.run(packed.bind(&operands)?)?;
    let out = &tensors[tensors.len() - 1];
    let bytes = s.download_bytes(out.buffer())?.wait()?;
    let slices: Vec<&[f64]> = values.iter().map(Vec::as_slice).collect();
    Ok(Some([HostTensor::from_bytes(out.spec(), bytes)?.to_f64(), layer.reference(&slices).swap_remove(0)]))
}

#[test]
fn layers_over_blocks_are_the_oracles() {
    for soc in ["A3", "A2", "950"] {
        let world = world(soc, Adversary::Late, 1);
        let device = open(&world);
        let s = stream(&device);
        let (mut alone, mut with_rows) = (0, 0);
        for case in LinearSpec::cases().unwrap() {
            let layer = &case.contract;
            let WeightSpec::Dense(weight) = layer.weight() else { continue };
            if weight.dtype() == DType::F32 || layer.rows() == 0 {
                continue;
            }
            let before = launched(&world, "MatmulWeightNz").len();
            let Some([got, want]) = over_packed(&s, &case).unwrap() else { continue };
            let checked = layer.tolerance()[0].check(&got, &want);
            assert!(checked.is_ok(), "{soc} {}: {}", case.name, checked.unwrap_err());
            let plain = layer.bias().is_none() && layer.activation() == Activation::Identity;
            let sums = soc == "950" && layer.out().dtype() == DType::F32;
            let same = PackedContent::Dense(layer.x().dtype()) == layer.weight().content();
            let is_product = plain && same && (layer.out().dtype() == layer.x().dtype() || sums);
            assert_eq!(
                launched(&world, "MatmulWeightNz").len() - before,
                usize::from(is_product),
                "{}",
                case.name
            );
            *if is_product { &mut alone } else { &mut with_rows } += 1;
        }
        println!("{soc}: {alone} layers over blocks, {with_rows} over rows made of them");
        assert!(alone >= 6 && with_rows >= 6, "{soc}: {alone} {with_rows}");
        drop((s, device));
        assert_empties(&world);
    }
}

/// A dense weight `[n, k]`, as it is packed for layers of these types.
fn packed_for(s: &Stream, dtype: DType, [n, k]: [usize; 2], types: Option<[DType; 2]>) -> Option<usize> {
    let weight = Weight::Dense(s.empty(&TensorSpec::of(dtype, &[n, k]).unwrap()).unwrap());
    let packed = match types {
        None => s.prepack(&weight, OpKind::Linear).unwrap(),
        Some([x, out]) => {
            let row = |dtype, n| TensorSpec::of(dtype, &[3, n]).unwrap();
            let call = LinearSpec::new(&row(x, k), &weight.spec().unwrap(), &row(out, n)).unwrap();
            s.prepack(&weight, &call).unwrap()
        }
    };
    match packed {
        Weight::Packed(packed) => Some(packed.spec().bytes().numel()),
        _ => None,
    }
}

#[test]
fn weights_are_packed_for_products_that_read_blocks() {
    use DType::{BF16, F16, F32};
    let whole = world("A3", Adversary::Late, 0);
    let new = world("950", Adversary::Late, 0);
    let (device, newer) = (open(&whole), open(&new));
    let (s, on_950) = (stream(&device), stream(&newer));
    // 40 rows and 20 columns are 3 × 2 blocks of 512 bytes.
    for (stream, dtype, types, want) in [
        (&s, BF16, None, Some(3072)),
        (&s, BF16, Some([BF16, BF16]), Some(3072)),
        (&s, F16, Some([F16, F16]), Some(3072)),
        // Models have activations in f32, which no product over blocks takes.
        (&s, BF16, Some([F32, F32]), None),
        (&s, BF16, Some([BF16, F32]), None),
        (&on_950, BF16, Some([BF16, F32]), Some(3072)),
        (&s, F32, None, None),
    ] {
        assert_eq!(packed_for(stream, dtype, [40, 20], types), want, "{dtype} {types:?}");
    }
    for dims in [[1, 20], [20, 1], [0, 20], [20, 0]] {
        assert_eq!(packed_for(&s, BF16, dims, None), None, "{dims:?}");
    }
    let weight = Weight::Dense(s.empty(&TensorSpec::of(BF16, &[40, 20]).unwrap()).unwrap());
    assert!(matches!(s.prepack(&weight, OpKind::GroupedGemm).unwrap(), Weight::Dense(_)));
    for old in [
        without("A3", &["MatmulWeightNz"]),
        without("A3", &["NpuFormatCast", "TransMatmulWeight"]),
        without("950", &["NpuFormatCast"]),
        world("310P", Adversary::Late, 0),
    ] {
        let device = open(&old);
        assert_eq!(packed_for(&stream(&device), F16, [40, 20], None), None);
        drop(device);
        assert_empties(&old);
    }
    drop((weight, s, on_950, device, newer));
    assert_empties(&whole);
    assert_empties(&new);
}

#[test]
fn what_support_says_of_packed_weights_is_what_runs() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let s = stream(&device);
    let dense = Weight::Dense(s.empty(&TensorSpec::of(DType::BF16, &[40, 20]).unwrap()).unwrap());
    let weight = s.prepack(&dense, OpKind::Linear).unwrap();
    for x in [DType::BF16, DType::F32] {
        let x = s.empty(&TensorSpec::of(x, &[3, 20]).unwrap()).unwrap();
        let mut out = s.empty(&TensorSpec::of(x.dtype(), &[3, 40]).unwrap()).unwrap();
        let layer = portolan_core::call::Linear::new(&x, &weight, &mut out).unwrap();
        assert_eq!(device.support(&layer.query(Determinism::RunToRun)), Support::Native);
        let refused = device.support(&layer.query(Determinism::BatchInvariant));
        assert!(matches!(refused, Support::No(_)), "{refused:?}");
        s.run(layer).unwrap();
        s.synchronize().unwrap();
    }
    assert_eq!(launched(&world, "MatmulWeightNz").len(), 1);
    drop((dense, weight, s, device));
    assert_empties(&world);
}

/// A product over blocks of ones and twos, on a driver where this call of the backend's is not carried out.
fn faulty(world: &SimWorld, fault: &[PlannedFault]) -> Result<Vec<f64>, OpError> {
    world.plan(fault).unwrap();
    let s = stream(&open(world));
    let spec = |n| TensorSpec::of(DType::F16, &[n, 24]).unwrap();
    let ones: Vec<f64> = (0..40 * 24).map(|i| f64::from(1 + i % 2 + i / 24 % 3)).collect();
    let (x, weight) = (upload(&s, &spec(1), &ones[..24])?, upload(&s, &spec(40), &ones)?);
    let weight = s.prepack(&Weight::Dense(weight), OpKind::Linear)?;
    let mut out = s.empty(&TensorSpec::of(DType::F16, &[1, 40])?)?;
    s.run(portolan_core::call::Linear::new(&x, &weight, &mut out)?)?;
    let bytes = s.download_bytes(out.buffer())?.wait()?;
    Ok(HostTensor::from_bytes(out.spec(), bytes)?.to_f64())
}

#[test]
fn rows_that_are_said_to_be_blocks_are_caught() {
    let whole = || world("A3", Adversary::Late, 0);
    let older = || without("A3", &["NpuFormatCast"]);
    let want = faulty(&whole(), &[]).unwrap();
    assert_eq!(faulty(&older(), &[]).unwrap(), want);
    let omitted = |call: &str| PlannedFault::Call { call: call.into(), at: 1, code: 0 };
    // The blocks that are made in place stay rows, and the others what the memory was.
    assert_ne!(faulty(&older(), &[omitted("aclnnTransMatmulWeight")]).unwrap(), want);
    assert_ne!(faulty(&whole(), &[omitted("aclnnNpuFormatCast")]).unwrap(), want);
    // Descriptors: two of the copy that turns the weight, two of the cast, then x, the weight and the result.
    let told = |at, format| PlannedFault::Argument {
        call: "aclCreateTensor".into(),
        at,
        argument: "format".into(),
        instead: portolan_cann_sys::sim::Instead::Number(format),
    };
    for (at, format, by) in [
        (3, 29, "aclnnNpuFormatCast: srcTensor has storage [960]"),
        (4, 2, "aclnnNpuFormatCast: dstTensor has the format of srcTensor"),
        (6, 2, "aclnnMatmulWeightNz: mat2 must be FRACTAL_NZ"),
        (5, 29, "aclnnMatmulWeightNz: self"),
    ] {
        let error = faulty(&whole(), &[told(at, format)]).unwrap_err().to_string();
        assert!(error.contains(by), "{at} {format}: {error}");
    }
}
