//! Products against the f64 oracle, on every instruction set this processor has, and what their bits depend on.
//!
//! Cases of the contract first; then sizes larger than the blocks, weights packed once, rows on their own.

use super::{Bias, Factor, GemmTask, Operands, gemm, pack_b, packed_bytes, unpack_b};
use crate::{Isa, Team};
use portolan_ops::codec::code_value;
use portolan_ops::kernel::{GemmForm, GemmSpec};
use portolan_ops::{Case, Cases, Contract, DType, HostTensor, TensorSpec};

/// What bytes no element covers hold, and what out holds before: a NaN in every float type.
const GUARD: u8 = 0xff;

fn isas() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.require().is_ok()).collect()
}

/// The operands that are read, filled as the case says.
fn inputs(case: &Case<GemmSpec>) -> Vec<(&'static str, HostTensor)> {
    let mut inputs = Vec::new();
    case.contract.operands(&mut |operand| {
        if operand.access.reads() {
            let values = case.fill_of(operand.name).draw(operand.spec, inputs.len() as u64 + 7);
            inputs.push((operand.name, HostTensor::from_f64(operand.spec, &values, GUARD).unwrap()));
        }
    });
    inputs
}

/// The allocation a case wrote, after running it.
fn run(
    case: &Case<GemmSpec>,
    inputs: &[(&'static str, HostTensor)],
    team: &Team,
    isa: Isa,
    mut change: impl FnMut(&mut GemmTask),
) -> HostTensor {
    let mut out = HostTensor::filled(case.contract.out(), GUARD).unwrap();
    let pointer = |name: &str| {
        inputs.iter().find(|(n, _)| *n == name).map_or(std::ptr::null(), |(_, t)| t.bytes().as_ptr())
    };
    let operands = Operands {
        a: pointer("a"),
        b: pointer("b"),
        c: pointer("c"),
        bias: pointer("bias"),
        out: out.bytes_mut().as_mut_ptr(),
    };
    let mut task = GemmTask::of(&case.contract, &operands, false);
    change(&mut task);
    // SAFETY: all operands are alive and as large as their specs say.
    unsafe { gemm(team, usize::MAX, isa, &task) };
    out
}

/// What the oracle makes of the inputs.
fn expected(case: &Case<GemmSpec>, inputs: &[(&'static str, HostTensor)]) -> Vec<f64> {
    let values: Vec<Vec<f64>> = inputs.iter().map(|(_, tensor)| tensor.to_f64()).collect();
    let slices: Vec<&[f64]> = values.iter().map(|v| &v[..]).collect();
    case.contract.reference(&slices).remove(0)
}

/// Checks a result against the oracle's and its guard bytes.
fn check(case: &Case<GemmSpec>, want: &[f64], out: &HostTensor, isa: Isa) {
    if let Err(mismatch) = case.contract.tolerance()[0].check(&out.to_f64(), want) {
        panic!("{} on {isa:?}: {mismatch}", case.name);
    }
    assert_eq!(out.overstepped(GUARD), None, "{} on {isa:?} wrote outside of out", case.name);
}

fn product(form: GemmForm, types: [DType; 3], m: usize, n: usize, k: usize) -> Case<GemmSpec> {
    let a = TensorSpec::of(types[0], &if form == GemmForm::Tn { [k, m] } else { [m, k] }).unwrap();
    let b = TensorSpec::of(types[1], &if form == GemmForm::Nt { [n, k] } else { [k, n] }).unwrap();
    let out = TensorSpec::of(types[2], &[m, n]).unwrap();
    let spec = GemmSpec::new(form, &a, &b, &out).unwrap();
    Case::new(format!("{} {types:?} {m}x{n}x{k}", spec.name()), spec)
}

const FORMS: [GemmForm; 3] = [GemmForm::Nn, GemmForm::Nt, GemmForm::Tn];
const ROUTES: [[DType; 3]; 11] = [
    [DType::F32, DType::F32, DType::F32],
    [DType::F64, DType::F64, DType::F64],
    [DType::BF16, DType::BF16, DType::BF16],
    [DType::F16, DType::F16, DType::F16],
    [DType::F32, DType::BF16, DType::F32],
    [DType::F32, DType::F16, DType::F32],
    [DType::I8, DType::I8, DType::I32],
    [DType::F8E4M3, DType::F8E4M3, DType::F32],
    [DType::F8E5M2, DType::F8E4M3, DType::BF16],
    [DType::F4E2M1, DType::F4E2M1, DType::F32],
    [DType::BF16, DType::F8E5M2, DType::BF16],
];

#[test]
fn every_case_of_the_contract_agrees_with_its_oracle_on_every_instruction_set() {
    let team = Team::new(2).unwrap();
    for case in GemmSpec::cases().unwrap() {
        let inputs = inputs(&case);
        let want = expected(&case, &inputs);
        for isa in isas() {
            for invariant in [false, true] {
                check(&case, &want, &run(&case, &inputs, &team, isa, |t| t.invariant = invariant), isa);
            }
        }
    }
}

#[test]
fn products_larger_than_the_blocks_agree_with_the_oracle() {
    let team = Team::new(3).unwrap();
    for form in FORMS {
        for types in ROUTES {
            let deep = if types[0] == DType::I8 { 1100 } else { 530 };
            for (m, n, k) in [(301, 40, 270), (15, 523, 260), (15, 35, deep)] {
                let case = product(form, types, m, n, k);
                let inputs = inputs(&case);
                let want = expected(&case, &inputs);
                for isa in isas() {
                    check(&case, &want, &run(&case, &inputs, &team, isa, |_| ()), isa);
                }
            }
        }
    }
}

#[test]
fn few_rows_agree_with_the_oracle() {
    let team = Team::new(2).unwrap();
    for form in FORMS {
        for types in ROUTES {
            for (m, n, k) in [(1, 600, 300), (2, 97, 531), (3, 64, 64), (5, 33, 1025), (8, 130, 77)] {
                let case = product(form, types, m, n, k);
                let inputs = inputs(&case);
                let want = expected(&case, &inputs);
                for isa in isas() {
                    check(&case, &want, &run(&case, &inputs, &team, isa, |_| ()), isa);
                }
            }
        }
    }
}

#[test]
fn integer_products_are_exact_at_the_ends_of_the_range() {
    let team = Team::new(1).unwrap();
    for form in FORMS {
        for low in [[-128.0, -128.0], [-128.0, 127.0], [127.0, 127.0]] {
            let case = product(form, [DType::I8, DType::I8, DType::I32], 7, 37, 1031);
            let case = case
                .fill("a", portolan_ops::Fill::Values(vec![low[0]]))
                .fill("b", portolan_ops::Fill::Values(vec![low[1], low[1], low[0]]));
            let inputs = inputs(&case);
            let want = expected(&case, &inputs);
            for isa in isas() {
                check(&case, &want, &run(&case, &inputs, &team, isa, |_| ()), isa);
            }
        }
    }
}

#[test]
fn products_of_any_two_codes_are_exact() {
    let team = Team::new(1).unwrap();
    let stored = [DType::F8E4M3, DType::F8E5M2, DType::F4E2M1];
    let numbers = |dtype: DType| -> Vec<f64> {
        (0..1u16 << dtype.bits()).map(|c| code_value(dtype, c as u8).unwrap().into()).collect()
    };
    for (form, k) in [(GemmForm::Nn, 1), (GemmForm::Nt, 2), (GemmForm::Tn, 2)] {
        for a in stored {
            for b in stored {
                // Behind each code come zeros, which infinities and NaN meet too.
                let (x, y) = (numbers(a), numbers(b));
                let spread = |x: &[f64], across: bool| -> Vec<f64> {
                    let zeros = vec![0.0; x.len() * (k - 1)];
                    match across {
                        true => x.iter().copied().chain(zeros).collect(),
                        false => {
                            x.iter().flat_map(|&x| std::iter::once(x).chain((1..k).map(|_| 0.0))).collect()
                        }
                    }
                };
                let case = product(form, [a, b, DType::F32], x.len(), y.len(), k)
                    .fill("a", portolan_ops::Fill::Values(spread(&x, form == GemmForm::Tn)))
                    .fill("b", portolan_ops::Fill::Values(spread(&y, form == GemmForm::Nn)));
                let inputs = inputs(&case);
                let want = expected(&case, &inputs);
                for isa in isas() {
                    let got = run(&case, &inputs, &team, isa, |_| ()).to_f64();
                    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                        assert!(
                            got == want || got.is_nan() && want.is_nan(),
                            "{} at {i}: {got} for {want}",
                            case.name
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn infinities_and_nan_reach_exactly_their_row_and_column() {
    let team = Team::new(1).unwrap();
    for types in [ROUTES[0], ROUTES[1], ROUTES[2], ROUTES[5], ROUTES[8]] {
        let mut a = vec![0.5; 20 * 300];
        (a[3 * 300 + 299], a[17 * 300]) = (f64::NAN, f64::INFINITY);
        let case = product(GemmForm::Nt, types, 20, 40, 300)
            .fill("a", portolan_ops::Fill::Values(a))
            .fill("b", portolan_ops::Fill::Range(0.25, 1.0));
        let inputs = inputs(&case);
        let want = expected(&case, &inputs);
        for isa in isas() {
            check(&case, &want, &run(&case, &inputs, &team, isa, |_| ()), isa);
        }
    }
}

#[test]
fn strided_operands_agree_with_the_oracle() {
    let team = Team::new(2).unwrap();
    // Two elements to a byte must be side by side.
    for types in ROUTES.into_iter().filter(|types| !types[0].is_sub_byte()) {
        let (m, n, k) = (31, 71, 300);
        // Every dimension of every operand has a stride of its own, and none is 1.
        let apart = |dtype, rows: usize, columns: usize| {
            let wide = TensorSpec::of(dtype, &[rows, columns, 3]).unwrap();
            wide.select(2, 1).unwrap()
        };
        let (a, b, out) = (apart(types[0], m, k), apart(types[1], k, n), apart(types[2], m, n));
        let case =
            Case::new(format!("strided {types:?}"), GemmSpec::new(GemmForm::Nn, &a, &b, &out).unwrap());
        let inputs = inputs(&case);
        let want = expected(&case, &inputs);
        for isa in isas() {
            check(&case, &want, &run(&case, &inputs, &team, isa, |_| ()), isa);
        }
    }
}

#[test]
fn a_batch_that_is_one_tall_matrix_and_one_that_is_not_agree_with_the_oracle() {
    let team = Team::new(2).unwrap();
    let of = |dims: &[usize]| TensorSpec::of(DType::F32, dims).unwrap();
    let tall = [of(&[3, 2, 9, 40]), of(&[40, 33]), of(&[3, 2, 9, 33])];
    let turned = of(&[2, 3, 9, 33]).transpose(0, 1).unwrap();
    for (a, b, out) in [
        (tall[0], tall[1], tall[2]),
        (tall[0], tall[1], turned),
        (tall[0], of(&[3, 2, 40, 33]), tall[2]),
        (tall[0], of(&[3, 1, 40, 33]).broadcast_to(of(&[3, 2, 40, 33]).shape()).unwrap(), turned),
    ] {
        let spec = GemmSpec::new(GemmForm::Nn, &a, &b, &out).unwrap();
        let case = Case::new(format!("{a} {b} {out}"), spec);
        let inputs = inputs(&case);
        let want = expected(&case, &inputs);
        for isa in isas() {
            check(&case, &want, &run(&case, &inputs, &team, isa, |_| ()), isa);
        }
    }
}

#[test]
fn out_may_be_the_accumulated_matrix() {
    let team = Team::new(2).unwrap();
    for types in [ROUTES[0], ROUTES[2]] {
        let mut case = product(GemmForm::Nt, types, 40, 70, 600);
        let c = *case.contract.out();
        case.contract = case.contract.with_accumulate(&c, 0.75).unwrap();
        let inputs = inputs(&case);
        let want = expected(&case, &inputs);
        for isa in isas() {
            let apart = run(&case, &inputs, &team, isa, |_| ());
            check(&case, &want, &apart, isa);
            let together = run(&case, &inputs, &team, isa, |task| {
                let c = &inputs[2].1;
                // SAFETY: out is as large as c.
                unsafe { std::ptr::copy_nonoverlapping(c.bytes().as_ptr(), task.out.ptr, c.bytes().len()) };
                task.c = Some(task.out);
            });
            assert_eq!(apart.bytes(), together.bytes());
        }
    }
}

#[test]
fn results_have_the_same_bits_on_any_number_of_threads() {
    let teams: Vec<Team> = [1, 2, 3, 8].map(|threads| Team::new(threads).unwrap()).into();
    for types in ROUTES {
        for (form, m, n, k) in [
            (GemmForm::Nn, 300, 130, 270),
            (GemmForm::Nt, 1, 700, 800),
            (GemmForm::Nn, 1, 700, 800),
            (GemmForm::Nt, 5, 600, 300),
        ] {
            let case = product(form, types, m, n, k);
            let inputs = inputs(&case);
            for isa in isas() {
                let first = run(&case, &inputs, &teams[0], isa, |_| ());
                for team in &teams[1..] {
                    let other = run(&case, &inputs, team, isa, |_| ());
                    assert!(
                        first.bytes() == other.bytes(),
                        "{} on {isa:?}, {} threads",
                        case.name,
                        team.threads()
                    );
                }
            }
        }
    }
}

#[test]
fn an_invariant_row_has_the_same_bits_whatever_rows_are_with_it() {
    let team = Team::new(2).unwrap();
    let (n, k) = (75, 700);
    for form in FORMS {
        for types in ROUTES {
            if form == GemmForm::Tn && types[0].is_sub_byte() {
                // Rows are places in a byte there, and no view starts at an odd one.
                continue;
            }
            let whole = product(form, types, 40, n, k);
            let all = inputs(&whole);
            for isa in isas() {
                let expected = run(&whole, &all, &team, isa, |t| t.invariant = true);
                let expected = expected.bytes();
                let row_bytes = types[2].bytes_for(n);
                for (first, rows) in [(0, 1), (39, 1), (3, 2), (7, 8), (1, 15), (2, 33)] {
                    let part = product(form, types, rows, n, k);
                    let out = run(&part, &all, &team, isa, |task| {
                        task.invariant = true;
                        let a =
                            TensorSpec::of(types[0], &if form == GemmForm::Tn { [k, 40] } else { [40, k] });
                        let strides = a.unwrap();
                        let strides = strides.strides();
                        (task.a.row_stride, task.a.col_stride) = match form {
                            GemmForm::Tn => (strides[1], strides[0]),
                            _ => (strides[0], strides[1]),
                        };
                        // SAFETY: rows `first..first + rows` of the whole exist.
                        task.a.ptr = unsafe { task.a.at(0, first, 0) };
                    });
                    let want = &expected[first * row_bytes..][..rows * row_bytes];
                    assert!(out.bytes() == want, "{} rows {first}+{rows} on {isa:?}", whole.name);
                }
            }
        }
    }
}

#[test]
fn a_packed_factor_gives_the_bits_of_the_plain_invariant_product_and_unpacks_to_itself() {
    let team = Team::new(2).unwrap();
    for types in [ROUTES[0], ROUTES[4], ROUTES[5], ROUTES[2]] {
        for form in [GemmForm::Nn, GemmForm::Nt] {
            for (m, n, k) in [(1, 100, 600), (1, 0, 5), (3, 32, 0), (33, 41, 1), (50, 1, 257), (290, 600, 64)]
            {
                let case = product(form, types, m, n, k);
                let inputs = inputs(&case);
                for isa in isas() {
                    let mut packed = vec![GUARD; packed_bytes(isa, types[1], n, k)];
                    let mut unpacked = vec![0u8; inputs[1].1.bytes().len()];
                    let plain = run(&case, &inputs, &team, isa, |task| {
                        task.invariant = true;
                        let Factor::Plain(mut b) = task.b else { return };
                        // SAFETY: b is alive; the buffers are as large as asked for.
                        unsafe { pack_b(isa, &b, n, k, packed.as_mut_ptr()) };
                        b.ptr = unpacked.as_mut_ptr();
                        // SAFETY: as above.
                        unsafe { unpack_b(isa, packed.as_ptr(), n, k, &b) };
                    });
                    assert!(unpacked == inputs[1].1.bytes(), "{}", case.name);
                    let out = run(&case, &inputs, &team, isa, |task| {
                        task.b = Factor::Packed { ptr: packed.as_ptr(), dtype: types[1] };
                    });
                    assert!(out.bytes() == plain.bytes(), "{} on {isa:?}", case.name);
                }
            }
        }
    }
}

#[test]
fn a_product_packed_in_slabs_has_the_bits_of_one_packed_before() {
    let team = Team::new(2).unwrap();
    // Two blocks of rows, and more columns than a slab has.
    let (m, n, k) = (285, 1100, 2100);
    let bias: Vec<f32> = (0..n).map(|j| j as f32 / 64.0 - 3.0).collect();
    for (form, types) in [(GemmForm::Nn, ROUTES[0]), (GemmForm::Nt, ROUTES[0]), (GemmForm::Nn, ROUTES[5])] {
        let case = product(form, types, m, n, k);
        let inputs = inputs(&case);
        for isa in isas().into_iter().filter(|&isa| isa != Isa::Portable) {
            let mut packed = vec![GUARD; packed_bytes(isa, types[1], n, k)];
            let with_bias = |task: &mut GemmTask| {
                task.bias = Some(Bias { ptr: bias.as_ptr().cast(), dtype: DType::F32, stride: 1 });
            };
            let plain = run(&case, &inputs, &team, isa, |task| {
                with_bias(task);
                let Factor::Plain(b) = task.b else { return };
                // SAFETY: b is alive; the buffer is as large as asked for.
                unsafe { pack_b(isa, &b, n, k, packed.as_mut_ptr()) };
            });
            let out = run(&case, &inputs, &team, isa, |task| {
                with_bias(task);
                task.b = Factor::Packed { ptr: packed.as_ptr(), dtype: types[1] };
            });
            assert!(out.bytes() == plain.bytes(), "{} on {isa:?}", case.name);
        }
    }
}
