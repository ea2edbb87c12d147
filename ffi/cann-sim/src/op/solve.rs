//! Triangular systems of equations.

use super::{Args, Refusal, Run, run};
use crate::view::{Dtype, Tensor, broadcast_shape};

operators! {
    TriangularSolve(self: T, A: T, upper: B, transpose: B, unitriangular: B, xOut: O, mOut: O) = solve;
}

/// X with op(A) · X = self, one triangle of A being looked at; mOut is a copy of A.
fn solve(args: &Args) -> Result<Run, Refusal> {
    let (b, a) = (args.tensor("self")?, args.tensor("A")?);
    let (x, m) = (args.tensor("xOut")?.clone(), args.tensor("mOut")?.clone());
    args.one_of("self", b, &[Dtype::F32, Dtype::F64])?;
    for (name, tensor) in [("A", a), ("xOut", &x), ("mOut", &m)] {
        args.one_of(name, tensor, &[b.dtype])?;
    }
    args.ranked("A", a, 2, 8)?;
    args.ranked("self", b, 2, 8)?;
    let (n, k) = (a.shape[a.rank() - 1], b.shape[b.rank() - 1]);
    if a.shape[a.rank() - 2] != n || b.shape[b.rank() - 2] != n {
        return Err(args.invalid("A", format!("{:?} is no square matrix for self {:?}", a.shape, b.shape)));
    }
    let batch = broadcast_shape(&a.shape[..a.rank() - 2], &b.shape[..b.rank() - 2]).ok_or_else(|| {
        args.invalid("A", format!("{:?} does not broadcast with self {:?}", a.shape, b.shape))
    })?;
    let a = args.spread("A", a, &[&batch[..], &[n, n]].concat())?;
    let b = args.spread("self", b, &[&batch[..], &[n, k]].concat())?;
    args.shaped("xOut", &x, &b.shape)?;
    args.shaped("mOut", &m, &a.shape)?;
    let [upper, transpose, unit] = ["upper", "transpose", "unitriangular"].map(|name| args.flag(name));
    let (upper, transpose, unit) = (upper?, transpose?, unit?);
    let factor: Tensor = if transpose { a.transposed() } else { a.clone() };
    // The transpose of an upper triangle is a lower one.
    let forwards = upper == transpose;
    run(move |memory| {
        let (matrices, mut rows) = (factor.read_f64(memory)?, b.read_f64(memory)?);
        for (a, x) in matrices.chunks((n * n).max(1)).zip(rows.chunks_mut((n * k).max(1))) {
            for step in 0..n {
                let i = if forwards { step } else { n - 1 - step };
                for column in 0..k {
                    let known = if forwards { 0..i } else { i + 1..n };
                    let sum: f64 = known.map(|j| a[i * n + j] * x[j * k + column]).sum();
                    let rest = x[i * k + column] - sum;
                    x[i * k + column] = if unit { rest } else { rest / a[i * n + i] };
                }
            }
        }
        m.write_f64(memory, &a.read_f64(memory)?)?;
        x.write_f64(memory, &rows)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS, close, noise_of};
    use super::*;

    #[test]
    fn solutions_put_back_give_the_right_hand_side() {
        let (n, k) = (4, 3);
        let mut a = noise_of(Dtype::F32, 2 * n * n, 1);
        (0..2 * n).for_each(|i| a[i / n * n * n + i % n * (n + 1)] = 2.0 + i as f64 / 8.0);
        let b = noise_of(Dtype::F32, 2 * n * k, 2);
        for layout in LAYOUTS {
            for mode in 0..8 {
                let (upper, transpose, unit) = (mode & 1 != 0, mode & 2 != 0, mode & 4 != 0);
                let case = Case::new(Soc::A2, "TriangularSolve").laid(layout).input(
                    "self",
                    Dtype::F32,
                    &[2, n, k],
                    &b,
                );
                let case = case
                    .input("A", Dtype::F32, &[2, n, n], &a)
                    .flag("upper", upper)
                    .flag("transpose", transpose);
                let case = case.flag("unitriangular", unit).output("xOut", Dtype::F32, &[2, n, k]);
                let case = case.output("mOut", Dtype::F32, &[2, n, n]).done();
                let x = case.read("xOut");
                let at = |t: usize, i: usize, j: usize| {
                    let (i, j) = if transpose { (j, i) } else { (i, j) };
                    let seen = if upper { j > i } else { j < i };
                    if i == j {
                        if unit { 1.0 } else { a[t * n * n + i * n + j] }
                    } else if seen {
                        a[t * n * n + i * n + j]
                    } else {
                        0.0
                    }
                };
                for t in 0..2 {
                    let product = |i: usize, c: usize| {
                        (0..n).map(|j| at(t, i, j) * x[(t * n + j) * k + c]).sum::<f64>()
                    };
                    let got: Vec<f64> = (0..n * k).map(|i| product(i / k, i % k)).collect();
                    close(&got, &b[t * n * k..][..n * k], 1e-5);
                }
                assert_eq!(case.read("mOut"), a);
            }
        }
    }
}
