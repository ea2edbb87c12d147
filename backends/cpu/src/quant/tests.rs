//! The quantized kernels against the contract's oracle: every case, instruction set and form of weight.
//!
//! Bits are compared where they must not depend on something: threads, the batch, packing, the way back.

use super::{QuantParts, WeightData, dequantize_row, linear, packed_form, prepack, unpack};
use crate::{Isa, Team};
use portolan_ops::{
    Access, ActQuant, Case, Cases, Contract, DType, Fill, HostTensor, LinearSpec, Offset, PackedSpec,
    PrepackSpec, QuantScheme, QuantSpec, ScaleKind, TensorSpec, Tolerance, UnpackSpec, WeightSpec,
};

/// Filler of bytes that no element covers; a kernel that writes there is found out.
const GUARD: u8 = 0xA5;

/// The operands of a case that are read, with their names, drawn as the case says.
struct Drawn {
    operands: Vec<(&'static str, HostTensor)>,
    out: HostTensor,
}

fn draw(case: &Case<LinearSpec>) -> Drawn {
    let mut operands = Vec::new();
    let mut seed = case.name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    case.contract.operands(&mut |operand| {
        if operand.access.reads() {
            let values = case.fill_of(operand.name).draw(operand.spec, seed);
            operands.push((operand.name, HostTensor::from_f64(operand.spec, &values, GUARD).unwrap()));
            seed += 1;
        }
    });
    Drawn { operands, out: HostTensor::filled(case.contract.out(), GUARD).unwrap() }
}

impl Drawn {
    fn pointer(&self, name: &str) -> *const u8 {
        self.operands.iter().find(|(n, _)| *n == name).map_or(core::ptr::null(), |(_, t)| t.bytes().as_ptr())
    }

    fn parts(&self) -> QuantParts {
        QuantParts {
            codes: self.pointer("weight.codes"),
            scale: self.pointer("weight.scale"),
            offset: self.pointer("weight.offset"),
            outer: self.pointer("weight.outer"),
            outer_offset: self.pointer("weight.outer_offset"),
        }
    }

    fn want(&self, spec: &LinearSpec) -> Vec<f64> {
        let values: Vec<Vec<f64>> = self.operands.iter().map(|(_, t)| t.to_f64()).collect();
        let inputs: Vec<&[f64]> = values.iter().map(Vec::as_slice).collect();
        spec.reference(&inputs).remove(0)
    }

    fn run(&self, team: &Team, isa: Isa, spec: &LinearSpec, weight: WeightData) -> HostTensor {
        let mut out = self.out.clone();
        let (x, bias) = (self.pointer("x"), self.pointer("bias"));
        // SAFETY: every pointer is the storage of the operand the spec describes.
        unsafe { linear(team, usize::MAX, isa, spec, x, weight, bias, out.bytes_mut().as_mut_ptr()) }
            .unwrap();
        assert_eq!(out.overstepped(GUARD), None, "{spec:?}");
        out
    }
}

/// The packed form of a quantized weight, its bytes starting where nothing is aligned.
fn packed(team: &Team, weight: &WeightSpec, parts: QuantParts) -> (PackedSpec, Vec<u8>) {
    let (bytes, tag) = packed_form(weight.content(), weight.n(), weight.k()).unwrap().unwrap();
    let spec = PackedSpec::new(weight.content(), weight.n(), weight.k(), tag, bytes).unwrap();
    let mut memory = vec![GUARD; bytes + 1];
    let prepack_spec = PrepackSpec::new(weight, &spec).unwrap();
    // SAFETY: `parts` are the weight's tensors, the memory holds the packed bytes.
    unsafe { prepack(team, usize::MAX, &prepack_spec, parts, memory.as_mut_ptr().add(1)) }.unwrap();
    (spec, memory)
}

fn with_weight(spec: &LinearSpec, weight: &WeightSpec) -> LinearSpec {
    let mut other = LinearSpec::new(spec.x(), weight, spec.out()).unwrap().with_activation(spec.activation());
    if let Some(bias) = spec.bias() {
        other = other.with_bias(bias).unwrap();
    }
    other.with_act_quant(spec.act_quant()).unwrap()
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.require().is_ok())
}

#[test]
fn every_case_meets_its_oracle_packed_and_as_it_is() {
    let team = Team::new(2).unwrap();
    let mut count = 0;
    for case in LinearSpec::cases().unwrap() {
        let spec = &case.contract;
        if spec.weight().scheme().is_none() {
            continue;
        }
        let drawn = draw(&case);
        let want = drawn.want(spec);
        let (packed_spec, bytes) = packed(&team, spec.weight(), drawn.parts());
        let on_packed = with_weight(spec, &packed_spec.into());
        for isa in isas() {
            let raw = drawn.run(&team, isa, spec, WeightData::Quant(drawn.parts()));
            let tolerance = spec.tolerance()[0];
            if let Err(mismatch) = tolerance.check(&raw.to_f64(), &want) {
                panic!("{} on {isa:?}: {mismatch}", case.name);
            }
            let bytes = WeightData::Packed(bytes[1..].as_ptr());
            let from_packed = drawn.run(&team, isa, &on_packed, bytes);
            assert!(raw.bytes() == from_packed.bytes(), "{} on {isa:?}: packed differs", case.name);
            count += 1;
        }
    }
    assert!(count > 400);
}

#[test]
fn unpacking_gives_back_every_bit() {
    let team = Team::new(3).unwrap();
    for case in LinearSpec::cases().unwrap() {
        let WeightSpec::Quant(quant) = case.contract.weight() else { continue };
        let drawn = draw(&case);
        let (packed_spec, bytes) = packed(&team, case.contract.weight(), drawn.parts());
        let plain = QuantSpec::of(*quant.scheme(), quant.n(), quant.k()).unwrap();
        let weight = WeightSpec::from(plain);
        let mut tensors: Vec<(&str, HostTensor)> = Vec::new();
        weight.visit(Access::Write, &mut |part| {
            tensors.push((part.name, HostTensor::filled(part.spec, GUARD).unwrap()));
        });
        let mut pointer = |name: &str| {
            let found = tensors.iter_mut().find(|(n, _)| *n == name);
            found.map_or(core::ptr::null(), |(_, t)| t.bytes_mut().as_mut_ptr().cast_const())
        };
        let parts = QuantParts {
            codes: pointer("weight.codes"),
            scale: pointer("weight.scale"),
            offset: pointer("weight.offset"),
            outer: pointer("weight.outer"),
            outer_offset: pointer("weight.outer_offset"),
        };
        let spec = UnpackSpec::new(&packed_spec, &weight).unwrap();
        // SAFETY: the bytes were packed from this content, the tensors are the spec's.
        unsafe { unpack(&team, usize::MAX, &spec, bytes[1..].as_ptr(), parts) }.unwrap();
        for (name, tensor) in &tensors {
            let (_, original) = drawn.operands.iter().find(|(n, _)| n == name).unwrap();
            let same = Tolerance::EXACT.check(&tensor.to_f64(), &original.to_f64());
            assert!(same.is_ok(), "{} {name}: {same:?}", case.name);
        }
    }
}

/// A layer of `m` rows with f32 activations and results.
fn layer(scheme: QuantScheme, m: usize, n: usize, k: usize, act_quant: ActQuant) -> Case<LinearSpec> {
    let weight = WeightSpec::from(QuantSpec::of(scheme, n, k).unwrap());
    let of = |last| TensorSpec::of(DType::F32, &[m, last]).unwrap();
    let spec = LinearSpec::new(&of(k), &weight, &of(n)).unwrap().with_act_quant(act_quant).unwrap();
    weight.fills().into_iter().fold(Case::new("layer", spec), |case, (name, fill)| case.fill(name, fill))
}

/// Schemes of every family and mode of the kernels, and one that follows no boundary.
fn schemes() -> Vec<QuantScheme> {
    let group = |code, columns, offset| QuantScheme::new(code, [1, columns], ScaleKind::F32, offset).unwrap();
    vec![
        QuantScheme::Q4_0,
        QuantScheme::Q4_1,
        QuantScheme::Q5_0,
        QuantScheme::Q5_1,
        QuantScheme::Q8_0,
        QuantScheme::Q4_K,
        QuantScheme::Q5_K,
        QuantScheme::Q6_K,
        group(DType::U4, 64, Offset::ZeroPoint),
        group(DType::I8, 1 << 20, Offset::ZeroPoint),
        group(DType::U8, 32, Offset::ZeroPoint),
        group(DType::U8, 12, Offset::Min),
        group(DType::I4, 16, Offset::Min),
        QuantScheme::INT8_ROW,
        QuantScheme::F8_BLOCK,
        QuantScheme::F8_BLOCK_E8M0,
        QuantScheme::MXFP8,
        QuantScheme::MXFP4,
        group(DType::F8E5M2, 16, Offset::None),
        group(DType::F4E2M1, 12, Offset::None),
    ]
}

/// What activations may be rounded to beside weights of the scheme.
fn act_quants(scheme: &QuantScheme) -> [ActQuant; 3] {
    match scheme.is_float() {
        true => [ActQuant::None, ActQuant::F8_GROUP, ActQuant::F8_ROW],
        false => [ActQuant::None, ActQuant::INT8, ActQuant::INT8_ROW],
    }
}

#[test]
fn neither_threads_nor_packing_change_a_bit() {
    let teams: Vec<Team> = [1, 2, 3, 8].into_iter().map(|threads| Team::new(threads).unwrap()).collect();
    for scheme in schemes() {
        for act_quant in act_quants(&scheme) {
            for m in [1, 5, 29] {
                let case = layer(scheme, m, 70, 608, act_quant);
                let drawn = draw(&case);
                let (packed_spec, bytes) = packed(&teams[0], case.contract.weight(), drawn.parts());
                let on_packed = with_weight(&case.contract, &packed_spec.into());
                for isa in isas() {
                    let weight = WeightData::Quant(drawn.parts());
                    let one = drawn.run(&teams[0], isa, &case.contract, weight);
                    // Of packed strips a single row takes several at once, as many as a task has.
                    for team in &teams {
                        let packed = WeightData::Packed(bytes[1..].as_ptr());
                        let other = drawn.run(team, isa, &on_packed, packed);
                        assert!(
                            one.bytes() == other.bytes(),
                            "{scheme:?} {act_quant:?} m {m} {isa:?} packed"
                        );
                    }
                    for team in &teams[1..] {
                        let other = drawn.run(team, isa, &case.contract, weight);
                        assert!(one.bytes() == other.bytes(), "{scheme:?} {act_quant:?} m {m} {isa:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let team = Team::new(2).unwrap();
    let (n, k, most) = (37, 352, 29);
    for scheme in schemes() {
        for act_quant in act_quants(&scheme) {
            let whole = layer(scheme, most, n, k, act_quant);
            let drawn = draw(&whole);
            for isa in isas() {
                let all = drawn.run(&team, isa, &whole.contract, WeightData::Quant(drawn.parts()));
                for m in [1, 2, 3, 4, 11, 12, 13, 17] {
                    let x = whole.contract.x().narrow(0, most - m, m).unwrap();
                    let out = whole.contract.out().narrow(0, most - m, m).unwrap();
                    let spec = LinearSpec::new(&x, whole.contract.weight(), &out).unwrap();
                    let spec = spec.with_act_quant(act_quant).unwrap();
                    let mut part = HostTensor::filled(whole.contract.out(), GUARD).unwrap();
                    let weight = WeightData::Quant(drawn.parts());
                    let (x, to) = (drawn.pointer("x"), part.bytes_mut().as_mut_ptr());
                    // SAFETY: views of the drawn tensors.
                    unsafe { linear(&team, usize::MAX, isa, &spec, x, weight, core::ptr::null(), to) }
                        .unwrap();
                    let tail = (most - m) * n * 4;
                    assert!(
                        part.bytes()[tail..] == all.bytes()[tail..],
                        "{scheme:?} {act_quant:?} {m} {isa:?}"
                    );
                    assert!(part.bytes()[..tail].iter().all(|&b| b == GUARD));
                }
            }
        }
    }
}

#[test]
fn unrounded_products_use_the_exact_weights() {
    // A row of x with a single 1 reads a column of the weight: it must be the contract's f32, bit for bit.
    let team = Team::new(1).unwrap();
    let (n, k) = (19, 300);
    for scheme in schemes() {
        let case = layer(scheme, k, n, k, ActQuant::None);
        let mut identity = vec![0.0; k * k];
        (0..k).for_each(|i| identity[i * k + i] = 1.0);
        let drawn = draw(&case.fill("x", Fill::Values(identity)));
        let spec = layer(scheme, k, n, k, ActQuant::None).contract;
        let WeightSpec::Quant(quant) = spec.weight() else { panic!() };
        for isa in isas() {
            let got = drawn.run(&team, isa, &spec, WeightData::Quant(drawn.parts())).to_f64();
            assert_eq!(got, drawn.want(&spec), "{scheme:?} on {isa:?}");
        }
        for row in 0..n {
            // Aligned, so that every other row goes past the caches.
            let mut room = vec![0f32; k + 16];
            let start = room.as_ptr().align_offset(64);
            let line = &mut room[start..start + k];
            let want = drawn.want(&spec);
            for isa in isas() {
                // SAFETY: the parts are the weight's, the row exists.
                unsafe { dequantize_row(isa, quant, &drawn.parts(), row, line, row % 2 == 0) };
                assert!(
                    (0..k).all(|c| f64::from(line[c]) == want[c * n + row]),
                    "{scheme:?} {isa:?} row {row}"
                );
            }
        }
    }
}

#[test]
fn power_of_two_scales_are_exact() {
    let scheme = QuantScheme::new(DType::I4, [1, 32], ScaleKind::E8M0, Offset::None).unwrap();
    let weight = WeightSpec::from(QuantSpec::of(scheme, 1, 64).unwrap());
    let of = |last| TensorSpec::of(DType::F32, &[1, last]).unwrap();
    let spec = LinearSpec::new(&of(64), &weight, &of(1)).unwrap();
    let (x, codes, scales) = ([1f32; 64], [0x21u8; 32], [128u8, 126]);
    let parts = QuantParts {
        codes: codes.as_ptr(),
        scale: scales.as_ptr(),
        offset: core::ptr::null(),
        outer: core::ptr::null(),
        outer_offset: core::ptr::null(),
    };
    for isa in isas() {
        for act_quant in [ActQuant::None, ActQuant::INT8] {
            let spec = spec.clone().with_act_quant(act_quant).unwrap();
            let mut out = 0f32;
            let (x, to) = (x.as_ptr().cast(), (&raw mut out).cast());
            let team = Team::new(1).unwrap();
            // SAFETY: the arrays are the spec's operands.
            unsafe {
                linear(&team, usize::MAX, isa, &spec, x, WeightData::Quant(parts), core::ptr::null(), to)
            }
            .unwrap();
            // 16 ones and 16 twos, doubled in the first group and halved in the second.
            assert!((out - 120.0).abs() < 1e-4, "{isa:?} {act_quant:?}: {out}");
        }
    }
}

#[test]
fn every_float_code_multiplies_as_its_number() {
    // Codes 0 to 255 of one row, read one by one through rows of x with a single 1: zeros elsewhere would turn
    // an infinity or a NaN into NaN everywhere, so each code stands alone in its row.
    let team = Team::new(1).unwrap();
    for (code, count) in [(DType::F8E4M3, 256usize), (DType::F8E5M2, 256), (DType::F4E2M1, 16)] {
        let scheme = QuantScheme::new(code, [1, 32], ScaleKind::F32, Offset::None).unwrap();
        let weight = WeightSpec::from(QuantSpec::of(scheme, count, 1).unwrap());
        let of = |dims: &[usize]| TensorSpec::of(DType::F32, dims).unwrap();
        let codes: Vec<u8> = (0..count).map(|i| i as u8).collect();
        let (scales, x) = (vec![0.75f32; count], [1f32; 5]);
        let parts = QuantParts {
            codes: codes.as_ptr(),
            scale: scales.as_ptr().cast(),
            offset: core::ptr::null(),
            outer: core::ptr::null(),
            outer_offset: core::ptr::null(),
        };
        for (isa, m) in isas().flat_map(|isa| [(isa, 1), (isa, 5)]) {
            let spec = LinearSpec::new(&of(&[m, 1]), &weight, &of(&[m, count])).unwrap();
            let mut out = vec![0f32; m * count];
            let (x, to) = (x.as_ptr().cast(), out.as_mut_ptr().cast());
            // SAFETY: the arrays are the spec's operands.
            unsafe { linear(&team, 2, isa, &spec, x, WeightData::Quant(parts), core::ptr::null(), to) }
                .unwrap();
            for (i, got) in out.into_iter().enumerate() {
                let want = portolan_ops::codec::code_value(code, (i % count) as u8).unwrap() * 0.75;
                assert!(got == want || (got.is_nan() && want.is_nan()), "{code} {i} {isa:?}: {got} {want}");
            }
        }
    }
}

#[test]
fn a_code_out_of_its_range_is_a_data_error() {
    let weight = WeightSpec::from(QuantSpec::of(QuantScheme::Q6_K, 2, 32).unwrap());
    let (codes, scale, outer) = ([40i8; 64], [1i8; 4], [0u16; 2]);
    let parts = QuantParts {
        codes: codes.as_ptr().cast(),
        scale: scale.as_ptr().cast(),
        offset: core::ptr::null(),
        outer: outer.as_ptr().cast(),
        outer_offset: core::ptr::null(),
    };
    let (bytes, tag) = packed_form(weight.content(), 2, 32).unwrap().unwrap();
    let packed = PackedSpec::new(weight.content(), 2, 32, tag, bytes).unwrap();
    let mut memory = vec![0u8; bytes];
    let spec = PrepackSpec::new(&weight, &packed).unwrap();
    let team = Team::new(1).unwrap();
    // SAFETY: the arrays are the weight's tensors, the memory holds the packed bytes.
    let e = unsafe { prepack(&team, usize::MAX, &spec, parts, memory.as_mut_ptr()) }.unwrap_err();
    assert!(e.to_string().contains("code 40 at [0, 0], the scheme promises -32 to 31"), "{e}");
}

#[test]
fn packed_bytes_are_those_of_the_file_format() {
    for (scheme, per_256) in [
        (QuantScheme::Q4_0, 144),
        (QuantScheme::Q4_1, 160),
        (QuantScheme::Q5_0, 176),
        (QuantScheme::Q5_1, 192),
        (QuantScheme::Q8_0, 272),
        (QuantScheme::Q6_K, 210),
        (QuantScheme::MXFP4, 136),
        (QuantScheme::MXFP8, 264),
    ] {
        let weight = WeightSpec::from(QuantSpec::of(scheme, 32, 2048).unwrap());
        let (bytes, _) = packed_form(weight.content(), 32, 2048).unwrap().unwrap();
        assert_eq!(bytes, 32 * 8 * per_256, "{scheme:?}");
    }
    let scheme = portolan_ops::PackedContent::Quant(QuantScheme::Q4_1);
    assert!(packed_form(scheme, usize::MAX, 32).is_err());
    assert!(packed_form(scheme, 32, usize::MAX).is_err());
}
