//! Runs the cases of a contract on a kernel that takes raw pointers: oracle, tolerance, guard bytes, in place,
//! and the same bits for any number of threads. Tests of kernels call it; backends have their own suite.

use crate::{Isa, Team};
use portolan_ops::{Case, Cases, HostTensor, TensorSpec};

/// A kernel: operands in the order of the contract, one pointer to the start of each allocation.
pub(crate) type KernelUnderTest<C> = unsafe fn(&Team, Isa, &C, &[*mut u8]);

/// The instruction-set paths this processor can run.
pub(crate) fn available() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.require().is_ok())
}

const GUARD: u8 = 0xA5;
/// Bytes before and after every operand; a multiple of every element size.
const BAND: usize = 64;

struct Operands {
    names: Vec<&'static str>,
    specs: Vec<TensorSpec>,
    read: Vec<bool>,
    written: Vec<bool>,
    /// Each between two bands of guard bytes.
    memory: Vec<Vec<u8>>,
}

impl Operands {
    fn of<C: Cases>(case: &Case<C>) -> Self {
        let mut o = Self { names: vec![], specs: vec![], read: vec![], written: vec![], memory: vec![] };
        case.contract.operands(&mut |operand| {
            let spec = *operand.spec;
            let seed = 7 + o.names.len() as u64;
            let tensor = match operand.access.reads() {
                true => {
                    let values = case.fill_of(operand.name).draw(&spec, seed);
                    HostTensor::from_f64(&spec, &values, GUARD).unwrap()
                }
                false => HostTensor::filled(&spec, GUARD).unwrap(),
            };
            let band = [GUARD; BAND];
            o.memory.push([&band[..], tensor.bytes(), &band[..]].concat());
            o.names.push(operand.name);
            o.specs.push(spec);
            o.read.push(operand.access.reads());
            o.written.push(operand.access.writes());
        });
        o
    }

    fn tensor(&self, i: usize) -> HostTensor {
        let memory = &self.memory[i];
        HostTensor::from_bytes(&self.specs[i], memory[BAND..memory.len() - BAND].to_vec()).unwrap()
    }

    fn values_read(&self) -> Vec<Vec<f64>> {
        (0..self.names.len()).filter(|&i| self.read[i]).map(|i| self.tensor(i).to_f64()).collect()
    }

    fn run<C: Cases>(
        &mut self,
        team: &Team,
        isa: Isa,
        spec: &C,
        kernel: KernelUnderTest<C>,
        shared: Option<[usize; 2]>,
    ) {
        let mut pointers: Vec<*mut u8> =
            self.memory.iter_mut().map(|m| m.as_mut_ptr().wrapping_add(BAND)).collect();
        if let Some([out, input]) = shared {
            pointers[out] = pointers[input];
        }
        // SAFETY: every operand has its own allocation, as large as its spec says; a shared one is allowed.
        unsafe { kernel(team, isa, spec, &pointers) };
        if let Some([out, input]) = shared {
            self.memory[out] = self.memory[input].clone();
        }
    }

    fn assert_guards(&self, context: &str) {
        for (i, memory) in self.memory.iter().enumerate() {
            let (before, after) = (&memory[..BAND], &memory[memory.len() - BAND..]);
            let name = self.names[i];
            assert!(before.iter().chain(after).all(|&b| b == GUARD), "{context}: wrote outside {name}");
            assert_eq!(
                self.tensor(i).overstepped(GUARD),
                None,
                "{context}: wrote between elements of {name}"
            );
        }
    }
}

/// Holds every case of the contract against its oracle, and once more in place wherever that is allowed.
pub(crate) fn check_cases<C: Cases>(isa: Isa, kernel: KernelUnderTest<C>) {
    let team = Team::new(2).unwrap();
    for case in C::cases().unwrap() {
        let spec = &case.contract;
        let fresh = Operands::of(&case);
        let inputs = fresh.values_read();
        let want = spec.reference(&inputs.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let mut ways = vec![None];
        for (out, input) in spec.in_place() {
            let at = |name: &str| fresh.names.iter().position(|n| *n == name);
            if let (Some(out), Some(input)) = (at(out), at(input))
                && fresh.specs[out] == fresh.specs[input]
            {
                ways.push(Some([out, input]));
            }
        }
        for shared in ways {
            let context = format!("{} on {isa:?}, shared {shared:?}", case.name);
            let mut operands = Operands::of(&case);
            operands.run(&team, isa, spec, kernel, shared);
            operands.assert_guards(&context);
            let written = (0..operands.names.len()).filter(|&i| operands.written[i]);
            for ((i, want), tolerance) in written.zip(&want).zip(spec.tolerance()) {
                if let Err(mismatch) = tolerance.check(&operands.tensor(i).to_f64(), want) {
                    panic!("{context}, {}: {mismatch}", operands.names[i]);
                }
            }
        }
    }
}

/// Compares whole allocations after runs with 1, 2, 3 and 8 threads.
pub(crate) fn same_bits_for_any_threads<C: Cases>(kernel: KernelUnderTest<C>) {
    let teams = [1, 2, 3, 8].map(|threads| Team::new(threads).unwrap());
    let cases = C::cases().unwrap();
    for isa in available() {
        for case in cases.iter().step_by(5) {
            let [one, others @ ..] = teams.each_ref().map(|team| {
                let mut operands = Operands::of(case);
                operands.run(team, isa, &case.contract, kernel, None);
                operands.memory
            });
            assert!(others.iter().all(|other| *other == one), "{} on {isa:?}", case.name);
        }
    }
}
