//! Calls of operators in tests: arguments by name, tensors in several layouts, results read back.

use super::{Args, Entry, Kind, Refusal, Run, Scalar, Soc, Value, find};
use crate::view::testing::{Arena, BASE};
use crate::view::{Dtype, Fault, Tensor, contiguous_strides, volume};

/// How tensors lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Contiguous,
    /// The last two dimensions exchanged in memory.
    Transposed,
    /// Every second element, one element into the storage.
    Stepped,
}

pub(crate) const LAYOUTS: [Layout; 3] = [Layout::Contiguous, Layout::Transposed, Layout::Stepped];

pub(crate) struct Case {
    entry: &'static Entry,
    args: Args,
    pub(crate) arena: Arena,
    used: usize,
    pub(crate) layout: Layout,
}

#[derive(Debug)]
pub(crate) enum Stop {
    Refused(Refusal),
    Failed(Fault),
}

impl Case {
    pub(crate) fn new(soc: Soc, name: &str) -> Case {
        let entry = find(name).unwrap_or_else(|| panic!("no operator {name}"));
        let empty = |kind: Kind| match kind {
            Kind::T | Kind::O | Kind::U => Value::Tensor(None),
            Kind::TL | Kind::OL => Value::Tensors(None),
            Kind::S => Value::Scalar(None),
            Kind::IA => Value::Ints(None),
            Kind::F64 => Value::Float(0.0),
            Kind::B => Value::Flag(false),
            Kind::CS => Value::Text(None),
            _ => Value::Int(0),
        };
        let values = entry.parameters.iter().map(|&(name, kind)| (name, empty(kind))).collect();
        let (tolerated, broken) = Default::default();
        let args = Args { operator: entry.name, soc, values, tolerated, broken };
        Case { entry, args, arena: Arena::new(1 << 20), used: 0, layout: Layout::Contiguous }
    }

    /// Goes on in the memory of a case before.
    pub(crate) fn after(mut self, before: Case) -> Case {
        (self.arena, self.used) = (before.arena, before.used);
        self
    }

    /// A rule may be broken.
    pub(crate) fn tolerating(mut self, rule: crate::tolerance::Rule) -> Case {
        self.args.tolerated.push(rule);
        self
    }

    pub(crate) fn laid(mut self, layout: Layout) -> Case {
        self.layout = layout;
        self
    }

    pub(crate) fn set(mut self, name: &str, value: Value) -> Case {
        let slot = self.args.values.iter_mut().find(|(have, _)| *have == name);
        let slot = slot.unwrap_or_else(|| panic!("{} has no parameter {name}", self.entry.name));
        assert_eq!(std::mem::discriminant(&slot.1), std::mem::discriminant(&value), "{name}");
        slot.1 = value;
        self
    }

    /// A tensor of the case's layout, uninitialised.
    pub(crate) fn allocate(&mut self, dtype: Dtype, shape: &[usize]) -> Tensor {
        let address = BASE + self.used as u64;
        let mut tensor = Tensor::contiguous(dtype, shape, address);
        match self.layout {
            Layout::Transposed if shape.len() > 1 => {
                let turned = tensor.transposed();
                tensor.strides = contiguous_strides(&turned.shape);
                let last = shape.len() - 1;
                tensor.strides.swap(last, last - 1);
            }
            Layout::Stepped => {
                tensor.strides.iter_mut().for_each(|stride| *stride *= 2);
                tensor.offset = 1;
            }
            _ => {}
        }
        self.used += ((2 * volume(shape) + 2) * dtype.bits()).div_ceil(8).next_multiple_of(32);
        tensor
    }

    /// A tensor with values.
    pub(crate) fn make(&mut self, dtype: Dtype, shape: &[usize], values: &[f64]) -> Tensor {
        let tensor = self.allocate(dtype, shape);
        tensor.write_f64(&self.arena, values).unwrap();
        tensor
    }

    pub(crate) fn input(mut self, name: &str, dtype: Dtype, shape: &[usize], values: &[f64]) -> Case {
        let tensor = self.make(dtype, shape, values);
        self.set(name, Value::Tensor(Some(tensor)))
    }

    pub(crate) fn output(mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Case {
        let tensor = self.allocate(dtype, shape);
        self.set(name, Value::Tensor(Some(tensor)))
    }

    pub(crate) fn list(mut self, name: &str, tensors: &[(Dtype, &[usize], &[f64])]) -> Case {
        let list = tensors.iter().map(|(dtype, shape, values)| self.make(*dtype, shape, values)).collect();
        self.set(name, Value::Tensors(Some(list)))
    }

    pub(crate) fn outputs(mut self, name: &str, tensors: &[(Dtype, &[usize])]) -> Case {
        let list = tensors.iter().map(|(dtype, shape)| self.allocate(*dtype, shape)).collect();
        self.set(name, Value::Tensors(Some(list)))
    }

    /// A scalar of type FLOAT.
    pub(crate) fn scalar(self, name: &str, value: f64) -> Case {
        let scalar = Scalar::new(Dtype::F32, Dtype::F32.encode(value));
        self.set(name, Value::Scalar(Some(scalar)))
    }

    pub(crate) fn int_scalar(self, name: &str, value: i64) -> Case {
        self.set(name, Value::Scalar(Some(Scalar::new(Dtype::I64, value as u64))))
    }

    pub(crate) fn int(self, name: &str, value: i64) -> Case {
        self.set(name, Value::Int(value))
    }

    pub(crate) fn float(self, name: &str, value: f64) -> Case {
        self.set(name, Value::Float(value))
    }

    pub(crate) fn flag(self, name: &str, value: bool) -> Case {
        self.set(name, Value::Flag(value))
    }

    pub(crate) fn ints(self, name: &str, values: &[i64]) -> Case {
        self.set(name, Value::Ints(Some(values.to_vec())))
    }

    pub(crate) fn text(self, name: &str, text: &str) -> Case {
        self.set(name, Value::Text(Some(text.to_string())))
    }

    pub(crate) fn run(&self) -> Result<(), Stop> {
        let run = (self.entry.operator)(&self.args).map_err(Stop::Refused)?;
        match run {
            Run::Alone(body) => body(&self.arena).map_err(Stop::Failed),
            Run::Together(_) => panic!("{} needs a group", self.entry.name),
        }
    }

    /// Runs; what it cannot do is a failed test.
    pub(crate) fn done(self) -> Case {
        self.run().unwrap_or_else(|stop| panic!("{}: {stop:?}", self.entry.name));
        self
    }

    /// The refusal that planning must end in.
    pub(crate) fn refused(&self) -> Refusal {
        match self.run() {
            Err(Stop::Refused(refusal)) => refusal,
            other => panic!("{}: {other:?} instead of a refusal", self.entry.name),
        }
    }

    pub(crate) fn tensor(&self, name: &str) -> &Tensor {
        match self.args.values.iter().find(|(have, _)| *have == name) {
            Some((_, Value::Tensor(Some(tensor)))) => tensor,
            other => panic!("{name}: {other:?}"),
        }
    }

    pub(crate) fn tensors(&self, name: &str) -> &[Tensor] {
        match self.args.values.iter().find(|(have, _)| *have == name) {
            Some((_, Value::Tensors(Some(list)))) => list,
            other => panic!("{name}: {other:?}"),
        }
    }

    pub(crate) fn read(&self, name: &str) -> Vec<f64> {
        self.tensor(name).read_f64(&self.arena).unwrap()
    }
}

/// Numbers without a pattern, in [-1, 1).
pub(crate) fn noise(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        })
        .collect()
}

/// The same, as an element type would hold them.
pub(crate) fn noise_of(dtype: Dtype, count: usize, seed: u64) -> Vec<f64> {
    noise(count, seed).into_iter().map(|x| dtype.round(x)).collect()
}

#[track_caller]
pub(crate) fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let good = g == w || (g.is_nan() && w.is_nan()) || (g - w).abs() <= tolerance * (1.0 + w.abs());
        assert!(good, "element {i}: {g} instead of {w}");
    }
}
