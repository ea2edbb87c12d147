//! Random shapes and layouts: any legal views are computed as the oracle says.
//!
//! A case is one line of text, which is what a failure shrinks to and what [`Suite::replay`](crate::Suite::replay)
//! takes: an operator, its extents, and for each of three operands how its dimensions lie in memory (outermost
//! first), how many elements are left out behind each, which repeat one element, and the offset.
//!
//! ```text
//! add 3x5 order=1,0 skip=0,2 repeat=- at=1 order=0,1 skip=0,0 repeat=0 at=0 order=0,1 skip=0,0 repeat=- at=0
//! ```

use crate::{Failure, Promise, Subject, check_case};
use core::fmt;
use core::ops::RangeInclusive;
use core::str::FromStr;
use portolan_core::{Dispatch, OpKind, Stream};
use portolan_ops::activation::SwigluSpec;
use portolan_ops::kernel::{
    BinaryKind, BinarySpec, CastSpec, CompareKind, CompareSpec, CopySpec, FillSpec, GemmForm, GemmSpec,
    ReduceKind, ReduceSpec, ScanKind, ScanSpec, SelectSpec, UnaryKind, UnarySpec,
};
use portolan_ops::norm::{RmsNormSpec, SoftmaxSpec};
use portolan_ops::{Case, Contract, DType, Layout, OpError, Result, Shape, TensorSpec};

/// How one operand lies in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct View {
    /// Dimensions from the outermost in memory to the innermost.
    pub(crate) order: Vec<usize>,
    /// Elements left out behind each dimension, in the order of the shape.
    pub(crate) skip: Vec<usize>,
    /// Dimensions that repeat one element; outputs have none.
    pub(crate) repeat: Vec<usize>,
    pub(crate) at: usize,
}

impl View {
    fn spec(&self, dtype: DType, dims: &[usize], repeat: &[usize]) -> Result<TensorSpec> {
        let mut strides = vec![0; dims.len()];
        let mut step = 1usize;
        for &dim in self.order.iter().rev() {
            if !repeat.contains(&dim) {
                strides[dim] = step;
                step = step.saturating_mul(dims[dim] + self.skip[dim]);
            }
        }
        TensorSpec::with_layout(dtype, Shape::new(dims)?, Layout::new(&strides, self.at)?)
    }

    /// Whether it describes `rank` dimensions.
    fn fits(&self, rank: usize) -> bool {
        let mut order = self.order.clone();
        order.sort_unstable();
        order.into_iter().eq(0..rank) && self.skip.len() == rank && self.repeat.iter().all(|&dim| dim < rank)
    }
}

/// One operator on three views; which of them it uses is its own affair.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ViewCase {
    pub(crate) form: &'static Form,
    pub(crate) dims: Vec<usize>,
    pub(crate) views: [View; 3],
}

impl ViewCase {
    fn input(&self, view: usize, dtype: DType) -> Result<TensorSpec> {
        self.views[view].spec(dtype, &self.dims, &self.views[view].repeat)
    }
    fn a(&self, dtype: DType) -> Result<TensorSpec> {
        self.input(0, dtype)
    }
    fn b(&self, dtype: DType) -> Result<TensorSpec> {
        self.input(1, dtype)
    }
    fn out(&self, dtype: DType) -> Result<TensorSpec> {
        self.out_of(dtype, &self.dims)
    }
    /// An output of other extents and the same rank.
    fn out_of(&self, dtype: DType, dims: &[usize]) -> Result<TensorSpec> {
        self.views[2].spec(dtype, dims, &[])
    }
    fn last(&self) -> usize {
        self.dims.len().saturating_sub(1)
    }

    /// Runs it against the oracle; `None` when the operator does not take these views.
    pub(crate) fn check(&self, stream: &Stream) -> Option<core::result::Result<bool, Failure>> {
        (self.form.check)(self, stream).ok()
    }
}

/// What checking a case gives; the error says that there is no such legal call.
type Checked = Result<core::result::Result<bool, Failure>>;

/// An operator that takes views.
pub(crate) struct Form {
    name: &'static str,
    pub(crate) kind: OpKind,
    pub(crate) ranks: RangeInclusive<usize>,
    check: fn(&ViewCase, &Stream) -> Checked,
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Form {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

fn run<C: Contract + Dispatch>(case: &ViewCase, stream: &Stream, contract: C) -> Checked {
    let case = Case::new(case.to_string(), contract);
    let checked = check_case(&Subject { stream, slack: 1.0 }, &case);
    Ok(checked.map_err(|failure| match failure.promise {
        Promise::Oracle => Failure { promise: Promise::Views, ..failure },
        _ => failure,
    }))
}

const F32: DType = DType::F32;
const I32: DType = DType::I32;

/// The operators that take views.
pub(crate) static FORMS: [Form; 16] = [
    Form {
        name: "neg",
        kind: OpKind::Unary,
        ranks: 0..=4,
        check: |c, s| run(c, s, UnarySpec::new(UnaryKind::Neg, &c.a(F32)?, &c.out(F32)?)?),
    },
    Form {
        name: "abs_i32",
        kind: OpKind::Unary,
        ranks: 0..=4,
        check: |c, s| run(c, s, UnarySpec::new(UnaryKind::Abs, &c.a(I32)?, &c.out(I32)?)?),
    },
    Form {
        name: "add",
        kind: OpKind::Binary,
        ranks: 0..=4,
        check: |c, s| run(c, s, BinarySpec::new(BinaryKind::Add, &c.a(F32)?, &c.b(F32)?, &c.out(F32)?)?),
    },
    Form {
        name: "mul_i32",
        kind: OpKind::Binary,
        ranks: 0..=4,
        check: |c, s| run(c, s, BinarySpec::new(BinaryKind::Mul, &c.a(I32)?, &c.b(I32)?, &c.out(I32)?)?),
    },
    Form {
        name: "less",
        kind: OpKind::Compare,
        ranks: 0..=4,
        check: |c, s| {
            run(c, s, CompareSpec::new(CompareKind::Lt, &c.a(F32)?, &c.b(F32)?, &c.out(DType::Bool)?)?)
        },
    },
    Form {
        name: "select",
        kind: OpKind::Select,
        ranks: 0..=4,
        check: |c, s| run(c, s, SelectSpec::new(&c.a(DType::Bool)?, &c.b(F32)?, &c.a(F32)?, &c.out(F32)?)?),
    },
    Form {
        name: "copy",
        kind: OpKind::Copy,
        ranks: 0..=4,
        check: |c, s| run(c, s, CopySpec::new(&c.a(F32)?, &c.out(F32)?)?),
    },
    Form {
        name: "copy_u8",
        kind: OpKind::Copy,
        ranks: 0..=4,
        check: |c, s| run(c, s, CopySpec::new(&c.a(DType::U8)?, &c.out(DType::U8)?)?),
    },
    Form {
        name: "cast",
        kind: OpKind::Cast,
        ranks: 0..=4,
        check: |c, s| run(c, s, CastSpec::new(&c.a(I32)?, &c.out(F32)?)?),
    },
    Form {
        name: "fill",
        kind: OpKind::Fill,
        ranks: 0..=4,
        check: |c, s| run(c, s, FillSpec::new(&c.out(F32)?, 2.5)?),
    },
    Form {
        name: "sum",
        kind: OpKind::Reduce,
        ranks: 1..=4,
        check: |c, s| {
            let mut kept = c.dims.clone();
            kept[c.last()] = 1;
            let out = c.out_of(F32, &kept)?;
            run(c, s, ReduceSpec::new(ReduceKind::Sum, &c.a(F32)?, &[c.last()], true, &out)?)
        },
    },
    Form {
        name: "cumulative_sum",
        kind: OpKind::Scan,
        ranks: 1..=4,
        check: |c, s| run(c, s, ScanSpec::cumulative(ScanKind::Sum, &c.a(F32)?, c.last(), &c.out(F32)?)?),
    },
    Form {
        name: "softmax",
        kind: OpKind::Softmax,
        ranks: 1..=3,
        check: |c, s| run(c, s, SoftmaxSpec::new(&c.a(F32)?, &c.out(F32)?)?),
    },
    Form {
        name: "rms_norm",
        kind: OpKind::RmsNorm,
        ranks: 1..=3,
        check: |c, s| run(c, s, RmsNormSpec::new(&c.a(F32)?, &c.out(F32)?, 1e-5)?),
    },
    Form {
        name: "swiglu",
        kind: OpKind::Swiglu,
        ranks: 1..=3,
        check: |c, s| run(c, s, SwigluSpec::new(&c.a(F32)?, &c.b(F32)?, &c.out(F32)?)?),
    },
    Form {
        name: "gemm_nt",
        kind: OpKind::Gemm,
        ranks: 2..=2,
        check: |c, s| {
            let out = c.out_of(F32, &[c.dims[0]; 2])?;
            run(c, s, GemmSpec::new(GemmForm::Nt, &c.a(F32)?, &c.b(F32)?, &out)?)
        },
    },
];

/// Numbers with a separator between them; a dash for none.
fn list(numbers: &[usize], separator: &str) -> String {
    let texts: Vec<String> = numbers.iter().map(usize::to_string).collect();
    if texts.is_empty() { "-".into() } else { texts.join(separator) }
}

fn unlist(text: &str, separator: char) -> Option<Vec<usize>> {
    match text {
        "-" => Some(Vec::new()),
        _ => text.split(separator).map(|part| part.parse().ok()).collect(),
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { order, skip, repeat, at } = self;
        write!(f, "order={} skip={} repeat={} at={at}", list(order, ","), list(skip, ","), list(repeat, ","))
    }
}

impl fmt::Display for ViewCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, out] = &self.views;
        write!(f, "{} {} {a} {b} {out}", self.form.name, list(&self.dims, "x"))
    }
}

impl FromStr for ViewCase {
    type Err = OpError;

    fn from_str(line: &str) -> Result<Self> {
        parse(line).ok_or_else(|| {
            let wanted = "is no case; expected a line as a failure prints it";
            OpError::attribute("replay", "line", format!("{line:?} {wanted}"))
        })
    }
}

fn parse(line: &str) -> Option<ViewCase> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let form = FORMS.iter().find(|form| form.name == name)?;
    let dims = unlist(words.next()?, 'x')?;
    let mut view = || {
        let mut field = |key: &str| words.next()?.strip_prefix(key)?.strip_prefix('=');
        let order = unlist(field("order")?, ',')?;
        let skip = unlist(field("skip")?, ',')?;
        let repeat = unlist(field("repeat")?, ',')?;
        let at = field("at")?.parse().ok()?;
        let view = View { order, skip, repeat, at };
        view.fits(dims.len()).then_some(view)
    };
    let views = [view()?, view()?, view()?];
    (words.next().is_none() && form.ranks.contains(&dims.len())).then_some(ViewCase { form, dims, views })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReferenceBackend;
    use portolan_core::{Registry, StreamOptions};

    const LINE: &str = "add 3x5 order=1,0 skip=0,2 repeat=- at=1 order=0,1 skip=0,0 repeat=0 at=0 \
                        order=0,1 skip=1,0 repeat=- at=0";

    #[test]
    fn a_case_is_the_line_it_prints() {
        let case: ViewCase = LINE.parse().unwrap();
        assert_eq!(case.to_string(), LINE);
        let scalar =
            "neg - order=- skip=- repeat=- at=2 order=- skip=- repeat=- at=0 order=- skip=- repeat=- at=0";
        assert_eq!(scalar.parse::<ViewCase>().unwrap().to_string(), scalar);
        for wrong in ["", "add", "add 3x5", "sum - x", &LINE.replace("1,0", "1,1"), &format!("{LINE} 1")] {
            assert!(wrong.parse::<ViewCase>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_views_are_those_the_line_says() {
        let case: ViewCase = LINE.parse().unwrap();
        let (a, b, out) = (case.a(F32).unwrap(), case.b(F32).unwrap(), case.out(F32).unwrap());
        assert_eq!((a.strides(), a.layout().offset()), (&[1, 3][..], 1));
        assert_eq!((b.strides(), out.strides()), (&[0, 1][..], &[5, 1][..]));
        let device = Registry::new().with(ReferenceBackend::new()).open("reference").unwrap();
        let stream = device.stream(StreamOptions::default()).unwrap();
        assert!(case.check(&stream).unwrap().unwrap());
    }
}
