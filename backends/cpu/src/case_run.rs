//! Runs an operator's own cases on a kernel of this crate, without the layers above: every instruction set,
//! one and several threads, reference and tolerance from the contract, guard bytes around every output.

use crate::elementwise::Exec;
use crate::{Isa, Team};
use portolan_ops::{Access, Cases, HostTensor, Result, TensorSpec};

/// What unwritten bytes hold.
const GUARD: u8 = 0xA5;
/// Guard bytes after an operand's span.
const TAIL: usize = 64;

/// An execution on one thread of the widest path.
pub(crate) fn with_exec<R>(f: impl FnOnce(Exec<'_>) -> R) -> R {
    f(Exec { team: &Team::new(1).unwrap(), max_threads: 1, isa: Isa::detect() })
}

/// A kernel: execution, operator, the operands' first bytes in the order of the contract.
pub(crate) type Runner<'a, C> = &'a dyn Fn(Exec<'_>, &C, &[*mut u8]) -> Result<()>;

/// Runs every case of `C` on every instruction set this processor has.
pub(crate) fn check_cases<C: Cases>(kernel: Runner<'_, C>) {
    let teams = [Team::new(1).unwrap(), Team::new(3).unwrap()];
    for case in C::cases().unwrap() {
        let mut operands: Vec<(&'static str, TensorSpec, Access)> = Vec::new();
        case.contract.operands(&mut |o| operands.push((o.name, *o.spec, o.access)));
        let seed = case.name.bytes().fold(0, |h: u64, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let start: Vec<HostTensor> = operands
            .iter()
            .enumerate()
            .map(|(i, (name, spec, access))| {
                let tensor = match access.reads() {
                    true => {
                        let values = case.fill_of(name).draw(spec, seed + i as u64);
                        HostTensor::from_f64(spec, &values, GUARD).unwrap()
                    }
                    false => HostTensor::filled(spec, GUARD).unwrap(),
                };
                let bytes = [tensor.bytes(), &[GUARD; TAIL]].concat();
                HostTensor::from_bytes(spec, bytes).unwrap()
            })
            .collect();
        let read: Vec<Vec<f64>> =
            start.iter().zip(&operands).filter(|(_, o)| o.2.reads()).map(|(t, _)| t.to_f64()).collect();
        let inputs: Vec<&[f64]> = read.iter().map(Vec::as_slice).collect();
        let want = case.contract.reference(&inputs);
        let tolerance = case.contract.tolerance();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.require().is_ok()) {
            let mut bits_of_one_thread: Option<Vec<Vec<u8>>> = None;
            for team in &teams {
                let mut tensors = start.clone();
                let pointers: Vec<*mut u8> = tensors.iter_mut().map(|t| t.bytes_mut().as_mut_ptr()).collect();
                let exec = Exec { team, max_threads: usize::MAX, isa };
                kernel(exec, &case.contract, &pointers)
                    .unwrap_or_else(|e| panic!("{} {isa:?}: {e}", case.name));
                let mut written = 0;
                for ((tensor, before), (name, _, access)) in tensors.iter().zip(&start).zip(&operands) {
                    if !access.writes() {
                        assert_eq!(tensor, before, "{} {isa:?}: {name} was written", case.name);
                        continue;
                    }
                    assert_eq!(tensor.overstepped(GUARD), None, "{} {isa:?}: guard of {name}", case.name);
                    if let Err(e) = tolerance[written].check(&tensor.to_f64(), &want[written]) {
                        panic!("{} {isa:?}: {name}: {e}", case.name);
                    }
                    written += 1;
                }
                let bits: Vec<Vec<u8>> = tensors.iter().map(|t| t.bytes().to_vec()).collect();
                match &bits_of_one_thread {
                    None => bits_of_one_thread = Some(bits),
                    Some(one) => assert!(*one == bits, "{} {isa:?}: bits differ with threads", case.name),
                }
            }
        }
    }
}
