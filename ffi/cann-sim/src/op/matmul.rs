//! Products of matrices in floating point.
//!
//! Sixteen-bit factors are multiplied exactly and summed in f32, as the cube unit does, and the sum is rounded once. How a
//! sum is cut into partial sums depends on all three extents, as the vendor's tilings do: a row among others need not have
//! the bits that it has alone.

use super::promote::promote;
use super::{Args, FLOATS, Refusal, Run, Soc, run};
use crate::view::{Dtype, Fault, Format, Memory, Tensor, broadcast_shape, volume};
use core::ops::{AddAssign, Mul, Range};

operators! {
    Mm(self: T, mat2: T, out: O, cubeMathType: I8) = product;
    Matmul(self: T, mat2: T, out: O, cubeMathType: I8) = product;
    BatchMatMul(self: T, mat2: T, out: O, cubeMathType: I8) = product;
    MatmulWeightNz(self: T, mat2: T, out: O, cubeMathType: I8) = product_of_blocks;
    BatchMatMulWeightNz(self: T, mat2: T, out: O, cubeMathType: I8) = product_of_blocks;
    Addmm(self: T, mat1: T, mat2: T, beta: S, alpha: S, out: O, cubeMathType: I8) = add_product;
    Baddbmm(self: T, batch1: T, batch2: T, beta: S, alpha: S, out: O, cubeMathType: I8) = add_product;
    Mv(self: T, vec: T, out: O, cubeMathType: I8) = vector_product;
}

/// What the cube unit rounds its factors to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cube {
    /// The factors' common type.
    Exact,
    /// Eight bits of exponent and eleven of mantissa.
    Hf32,
    /// Half precision, the result too.
    Fp16,
}

impl Cube {
    /// What `cubeMathType` means for factors of a common type on a chip.
    pub(super) fn of(args: &Args, common: Dtype) -> Result<Cube, Refusal> {
        let mode = args.int("cubeMathType")?;
        let single = common == Dtype::F32;
        let old = args.soc == Soc::Ascend310P;
        match mode {
            0 | 4 if single && old => Err(args.invalid(
                "cubeMathType",
                format!("= {mode} keeps FLOAT, which Ascend310P does not multiply"),
            )),
            0 | 4 => Ok(Cube::Exact),
            1 if !single => Ok(Cube::Exact),
            1 if old => Ok(Cube::Fp16),
            1 => Ok(Cube::Hf32),
            2 if common == Dtype::Bf16 => {
                Err(args.invalid("cubeMathType", "= 2 (USE_FP16) does not take BF16"))
            }
            2 if single => Ok(Cube::Fp16),
            2 => Ok(Cube::Exact),
            3 if old => Err(args.invalid("cubeMathType", "= 3 (USE_HF32) does not exist on Ascend310P")),
            3 if single => Ok(Cube::Hf32),
            3 => Ok(Cube::Exact),
            mode => Err(args.unknown_mode("cubeMathType", mode)),
        }
    }

    fn round(self, row: &mut [f32]) {
        match self {
            Cube::Exact => {}
            // Twelve bits of the mantissa go, to nearest, ties to even.
            Cube::Hf32 => row.iter_mut().filter(|x| x.is_finite()).for_each(|x| {
                let bits = x.to_bits();
                *x = f32::from_bits((bits + 0x7ff + (bits >> 12 & 1)) & !0xfff);
            }),
            Cube::Fp16 => row.iter_mut().for_each(|x| *x = Dtype::F16.round(f64::from(*x)) as f32),
        }
    }

    /// Factors as the unit sees them.
    pub(super) fn factors(self, view: &Tensor, memory: &dyn Memory) -> Result<Vec<f32>, Fault> {
        let mut row = view.read_f32(memory)?;
        self.round(&mut row);
        Ok(row)
    }

    /// Results as the unit hands them over.
    pub(super) fn results(self, row: &mut [f32]) {
        if self == Cube::Fp16 {
            self.round(row);
        }
    }
}

/// Rows and columns of `b` that stay in the inner caches while all rows of `a` pass by.
const BLOCK: (usize, usize) = (32, 512);

/// With fewer tiles than there are cores, several cores share the terms of a sum.
const CORES: usize = 20;
/// Rows and columns of a tile.
const TILE: (usize, usize) = (16, 128);
/// Terms of a partial sum at least.
const TERMS: usize = 64;

/// Where the partial sums of a product begin and end.
fn partial_sums((m, k, n): (usize, usize, usize)) -> impl Iterator<Item = Range<usize>> {
    let tiles = m.div_ceil(TILE.0) * n.div_ceil(TILE.1);
    let parts = (CORES / tiles.max(1)).min(k / TERMS).max(1);
    (0..parts).map(move |part| k * part / parts..k * (part + 1) / parts)
}

/// `out[m][n] += a[m][k] · b[k][n]`, summed in the numbers' own type: partial sums in order of k, and then those.
pub(super) fn multiply<F: Copy + Default + Mul<Output = F> + AddAssign>(
    a: &[F],
    b: &[F],
    sizes: (usize, usize, usize),
    out: &mut [F],
) {
    let mut parts = partial_sums(sizes);
    parts.next().into_iter().for_each(|first| add_terms(a, b, sizes, first, out));
    let mut part = Vec::new();
    for terms in parts {
        part.clear();
        part.resize(out.len(), F::default());
        add_terms(a, b, sizes, terms, &mut part);
        out.iter_mut().zip(&part).for_each(|(sum, part)| *sum += *part);
    }
}

/// Some of the terms of every sum.
fn add_terms<F: Copy + Mul<Output = F> + AddAssign>(
    a: &[F],
    b: &[F],
    (m, k, n): (usize, usize, usize),
    terms: Range<usize>,
    out: &mut [F],
) {
    let blocks = (0..n)
        .step_by(BLOCK.1)
        .flat_map(|column| terms.clone().step_by(BLOCK.0).map(move |row| (row, column)));
    for (row, column) in blocks {
        let (rows, columns) = (BLOCK.0.min(terms.end - row), BLOCK.1.min(n - column));
        for (a, out) in a.chunks(k).zip(out.chunks_mut(n)).take(m) {
            let sums = &mut out[column..][..columns];
            let of = |p: usize| &b[p * n + column..][..columns];
            let mut p = row;
            // Four terms for each time that a sum is loaded and stored.
            for x in a[row..][..rows].chunks(4) {
                match *x {
                    [x0, x1, x2, x3] => {
                        let terms = of(p).iter().zip(of(p + 1)).zip(of(p + 2)).zip(of(p + 3));
                        for (sum, (((&y0, &y1), &y2), &y3)) in sums.iter_mut().zip(terms) {
                            *sum += x0 * y0;
                            *sum += x1 * y1;
                            *sum += x2 * y2;
                            *sum += x3 * y3;
                        }
                    }
                    _ => x.iter().enumerate().for_each(|(i, &x)| {
                        sums.iter_mut().zip(of(p + i)).for_each(|(sum, &y)| *sum += x * y);
                    }),
                }
                p += x.len();
            }
        }
    }
}

/// Factors and result as batches of matrices of one shape.
struct Product {
    a: Tensor,
    b: Tensor,
    out: Tensor,
    batch: Vec<usize>,
    sizes: (usize, usize, usize),
    cube: Cube,
}

/// Views as matrices: vectors get the dimension that `matmul` gives them, and the result loses it.
fn prepare(args: &Args, names: [&str; 2], ranks: (usize, usize)) -> Result<Product, Refusal> {
    let (a, b, out) = (args.tensor(names[0])?, args.tensor(names[1])?, args.tensor("out")?);
    for (name, tensor) in [(names[0], a), (names[1], b), ("out", out)] {
        args.one_of(name, tensor, FLOATS)?;
    }
    args.ranked(names[0], a, ranks.0, ranks.1)?;
    args.ranked(names[1], b, ranks.0, ranks.1)?;
    if a.format != Format::Nd || out.format != Format::Nd {
        return Err(args.invalid(names[0], "and out must be ND; only mat2 may be FRACTAL_NZ"));
    }
    if !out.is_contiguous() {
        return Err(args.invalid("out", format!("must be contiguous; it has strides {:?}", out.strides)));
    }
    let common = promote(a.dtype, b.dtype);
    let cube = Cube::of(args, common)?;
    let left = if a.rank() == 1 { a.unsqueeze(0) } else { a.clone() };
    let right = if b.rank() == 1 { b.unsqueeze(1) } else { b.clone() };
    let (la, lb) = (left.rank() - 2, right.rank() - 2);
    let (m, k, n) = (left.shape[la], left.shape[la + 1], right.shape[lb + 1]);
    if right.shape[lb] != k {
        let shapes = (&a.shape, &b.shape);
        return Err(
            args.invalid(names[1], format!("has {} rows for {k} columns: {shapes:?}", right.shape[lb]))
        );
    }
    let batch = broadcast_shape(&left.shape[..la], &right.shape[..lb]).ok_or_else(|| {
        args.invalid(names[1], format!("{:?} does not broadcast with {} {:?}", b.shape, names[0], a.shape))
    })?;
    let mut shape = batch.clone();
    shape.extend((a.rank() > 1).then_some(m));
    shape.extend((b.rank() > 1).then_some(n));
    args.shaped("out", out, &shape)?;
    Ok(Product { a: left, b: right, out: out.clone(), batch, sizes: (m, k, n), cube })
}

impl Product {
    fn compute(&self, memory: &dyn Memory) -> Result<Vec<f32>, Fault> {
        let (m, k, n) = self.sizes;
        let (a, b) = (self.cube.factors(&self.a, memory)?, self.cube.factors(&self.b, memory)?);
        let mut out = vec![0f32; volume(&self.batch) * m * n];
        for i in 0..volume(&self.batch) {
            let at = |shape: &[usize]| batch_place(i, &self.batch, &shape[..shape.len() - 2]);
            let (x, y) = (at(&self.a.shape) * m * k, at(&self.b.shape) * k * n);
            multiply(&a[x..][..m * k], &b[y..][..k * n], self.sizes, &mut out[i * m * n..][..m * n]);
        }
        self.cube.results(&mut out);
        Ok(out)
    }
}

/// Which of its own batches a factor gives to batch `flat` of the result.
fn batch_place(flat: usize, batch: &[usize], own: &[usize]) -> usize {
    let (mut rest, mut step, mut place) = (flat, 1, 0);
    for axis in (0..batch.len()).rev() {
        let index = rest % batch[axis];
        rest /= batch[axis];
        if let Some(own_axis) = (axis + own.len()).checked_sub(batch.len()) {
            place += if own[own_axis] == 1 { 0 } else { index } * step;
            step *= own[own_axis];
        }
    }
    place
}

fn product(args: &Args) -> Result<Run, Refusal> {
    let ranks = match args.operator {
        "Mm" => (2, 2),
        "BatchMatMul" => (3, 3),
        _ => (1, 6),
    };
    computed(prepare(args, ["self", "mat2"], ranks)?)
}

fn computed(product: Product) -> Result<Run, Refusal> {
    run(move |memory| product.out.write_f32(memory, &product.compute(memory)?))
}

/// A weight in fractal blocks, of 16 bits as all the rest is; only the 950 hands sums over in f32.
fn product_of_blocks(args: &Args) -> Result<Run, Refusal> {
    let (a, b, out) = (args.tensor("self")?, args.tensor("mat2")?, args.tensor("out")?);
    args.one_of("self", a, &[Dtype::F16, Dtype::Bf16])?;
    args.one_of("mat2", b, &[a.dtype])?;
    let sums: &[Dtype] = if args.soc == Soc::Ascend950 { &[Dtype::F32] } else { &[] };
    args.one_of("out", out, &[&[a.dtype], sums].concat())?;
    let rank = if args.operator == "MatmulWeightNz" { 2 } else { 3 };
    args.ranked("self", a, rank, rank)?;
    args.ranked("mat2", b, rank, rank)?;
    args.blocks("mat2", b)?;
    if b.shape[rank - 2..].contains(&1) {
        return Err(
            args.invalid("mat2", format!("is {:?}: no dimension of a matrix in blocks may be 1", b.shape))
        );
    }
    if args.soc == Soc::Ascend950 && matches!(args.int("cubeMathType")?, 1 | 3 | 4) {
        return Err(args.invalid("cubeMathType", "= 1, 3 and 4 are not taken with blocks on Ascend950"));
    }
    computed(prepare(args, ["self", "mat2"], (rank, rank))?)
}

/// beta · self + alpha · product; a beta of 0 keeps whatever self holds out of the result.
fn add_product(args: &Args) -> Result<Run, Refusal> {
    let batched = args.operator == "Baddbmm";
    let names = if batched { ["batch1", "batch2"] } else { ["mat1", "mat2"] };
    let product = prepare(args, names, if batched { (3, 3) } else { (2, 2) })?;
    let addend = args.tensor("self")?;
    args.one_of("self", addend, FLOATS)?;
    let addend = args.spread("self", addend, &product.out.shape)?;
    let (beta, alpha) = (args.scalar("beta")?.float as f32, args.scalar("alpha")?.float as f32);
    run(move |memory| {
        let mut row = product.compute(memory)?;
        let addend = addend.read_f32(memory)?;
        for (x, y) in row.iter_mut().zip(addend) {
            *x = alpha * *x + if beta == 0.0 { 0.0 } else { beta * y };
        }
        product.out.write_f32(memory, &row)
    })
}

fn vector_product(args: &Args) -> Result<Run, Refusal> {
    args.ranked("self", args.tensor("self")?, 2, 2)?;
    args.ranked("vec", args.tensor("vec")?, 1, 1)?;
    let product = prepare(args, ["self", "vec"], (1, 2))?;
    run(move |memory| product.out.write_f32(memory, &product.compute(memory)?))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, LAYOUTS, Layout, close, noise_of};
    use super::*;

    /// The formula, in f64, with batches of both factors equal.
    fn direct(a: &[f64], b: &[f64], batch: usize, (m, k, n): (usize, usize, usize)) -> Vec<f64> {
        let mut out = Vec::new();
        for t in 0..batch {
            for i in 0..m {
                for j in 0..n {
                    out.push((0..k).map(|p| a[(t * m + i) * k + p] * b[(t * k + p) * n + j]).sum());
                }
            }
        }
        out
    }

    #[test]
    fn products_agree_with_the_formula_in_any_layout() {
        for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::F16, 1e-3), (Dtype::Bf16, 8e-3)] {
            let (m, k, n) = (3, 17, 5);
            let (a, b) = (noise_of(dtype, 2 * m * k, 1), noise_of(dtype, 2 * k * n, 2));
            for layout in LAYOUTS {
                let mut case = Case::new(Soc::A2, "BatchMatMul").laid(layout);
                case = case.input("self", dtype, &[2, m, k], &a).input("mat2", dtype, &[2, k, n], &b);
                case.layout = Layout::Contiguous;
                let got = case.output("out", dtype, &[2, m, n]).done().read("out");
                close(&got, &direct(&a, &b, 2, (m, k, n)), tolerance);
            }
        }
    }

    #[test]
    fn blocks_add_up_in_the_order_of_k() {
        for (m, k, n) in [(1, 1, 1), (2, 5, BLOCK.1 + 3), (3, 2 * BLOCK.0 + 7, 2 * BLOCK.1 + 1)] {
            let (a, b) = (noise_of(Dtype::F32, m * k, 5), noise_of(Dtype::F32, k * n, 6));
            let mut out = vec![0.5; m * n];
            multiply(&a, &b, (m, k, n), &mut out);
            let sum = |i: usize, j: usize| (0..k).fold(0.5, |sum, p| sum + a[i * k + p] * b[p * n + j]);
            assert_eq!(out, (0..m * n).map(|at| sum(at / n, at % n)).collect::<Vec<f64>>(), "{m} {k} {n}");
        }
    }

    #[test]
    fn a_row_among_others_is_summed_in_other_parts_than_alone() {
        let (rows, k, n) = (40, 16 * TERMS + 3, 3);
        let (a, b) = (noise_of(Dtype::F32, rows * k, 7), noise_of(Dtype::F32, k * n, 8));
        let single = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        let (a32, b32) = (single(&a), single(&b));
        let product = |rows: usize| {
            let mut out = vec![0f32; rows * n];
            multiply(&a32[..rows * k], &b32, (rows, k, n), &mut out);
            out
        };
        let (alone, among) = (product(1), product(rows));
        assert_ne!(alone, among[..n]);
        let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        close(&wide(&alone), &direct(&a[..k], &b, 1, (1, k, n)), 1e-5);
        close(&wide(&among), &direct(&a, &b, 1, (rows, k, n)), 1e-5);
        // Every term once.
        for sizes in [(1, k, n), (rows, k, n), (1, 0, 1), (1, 1, 1), (4096, k, 4096)] {
            let terms: Vec<usize> = partial_sums(sizes).flatten().collect();
            assert_eq!(terms, (0..sizes.1).collect::<Vec<usize>>(), "{sizes:?}");
        }
    }

    #[test]
    fn batches_broadcast_and_vectors_lose_their_dimension() {
        let (a, b) = (noise_of(Dtype::F32, 24, 3), noise_of(Dtype::F32, 12, 4));
        let case = Case::new(Soc::A2, "Matmul").input("self", Dtype::F32, &[2, 1, 3, 4], &a);
        let case =
            case.input("mat2", Dtype::F32, &[4, 3], &b).output("out", Dtype::F32, &[2, 1, 3, 3]).done();
        close(&case.read("out"), &direct(&a, &b, 1, (6, 4, 3)), 1e-5);
        let case = Case::new(Soc::A2, "Matmul").input("self", Dtype::F32, &[4], &a[..4]);
        let case = case.input("mat2", Dtype::F32, &[4, 3], &b).output("out", Dtype::F32, &[3]).done();
        close(&case.read("out"), &direct(&a[..4], &b, 1, (1, 4, 3)), 1e-5);
        let case = Case::new(Soc::A2, "Mv").input("self", Dtype::F32, &[3, 4], &b);
        let case = case.input("vec", Dtype::F32, &[4], &a[..4]).output("out", Dtype::F32, &[3]).done();
        close(&case.read("out"), &direct(&b, &a[..4], 1, (3, 4, 1)), 1e-5);
        let empty = Case::new(Soc::A2, "Mm").input("self", Dtype::F32, &[2, 0], &[]);
        let empty = empty.input("mat2", Dtype::F32, &[0, 3], &[]).output("out", Dtype::F32, &[2, 3]).done();
        assert_eq!(empty.read("out"), [0.0; 6]);
    }

    #[test]
    fn the_cube_rounds_its_factors_as_its_mode_says() {
        // 1 + 2⁻¹⁰ survives every rounding, 1 + 2⁻¹³ neither of the narrow ones, 1 + 2⁻¹¹ only HF32's.
        let value = |soc, mode, x: f64| {
            let case =
                Case::new(soc, "Mm").input("self", Dtype::F32, &[1, 1], &[x]).int("cubeMathType", mode);
            let case = case.input("mat2", Dtype::F32, &[1, 1], &[1.0]).output("out", Dtype::F32, &[1, 1]);
            case.done().read("out")[0] - 1.0
        };
        let (tenth, eleventh, thirteenth) = (2f64.powi(-10), 2f64.powi(-11), 2f64.powi(-13));
        for (soc, mode, want) in [
            (Soc::A2, 0, [tenth, eleventh, thirteenth]),
            (Soc::A2, 1, [tenth, eleventh, 0.0]),
            (Soc::Ascend950, 3, [tenth, eleventh, 0.0]),
            (Soc::A3, 2, [tenth, 0.0, 0.0]),
            (Soc::Ascend310P, 1, [tenth, 0.0, 0.0]),
        ] {
            assert_eq!(
                [tenth, eleventh, thirteenth].map(|x| value(soc, mode, 1.0 + x)),
                want,
                "{soc:?} {mode}"
            );
        }
        let refused = |soc, dtype, mode| {
            let case = Case::new(soc, "Mm").input("self", dtype, &[1, 1], &[1.0]).int("cubeMathType", mode);
            case.input("mat2", dtype, &[1, 1], &[1.0]).output("out", dtype, &[1, 1]).refused().message
        };
        assert!(refused(Soc::A2, Dtype::Bf16, 2).contains("USE_FP16"));
        assert!(refused(Soc::Ascend310P, Dtype::F32, 0).contains("Ascend310P"));
        assert!(refused(Soc::A2, Dtype::F16, 9).contains("cubeMathType = 9"));
    }

    #[test]
    fn sums_with_a_product_scale_both() {
        let case = Case::new(Soc::A2, "Addmm")
            .input("self", Dtype::F32, &[2], &[1.0, f64::NAN])
            .input("mat1", Dtype::F32, &[1, 2], &[1.0, 2.0])
            .input("mat2", Dtype::F32, &[2, 2], &[1.0, 0.0, 0.0, 1.0])
            .output("out", Dtype::F32, &[1, 2]);
        let none = case.scalar("beta", 0.0).scalar("alpha", 3.0).done();
        assert_eq!(none.read("out"), [3.0, 6.0]);
        let some = none.scalar("beta", 2.0).done().read("out");
        assert!(some[0] == 5.0 && some[1].is_nan());
    }
}
