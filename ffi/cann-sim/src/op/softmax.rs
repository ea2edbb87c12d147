//! Normalised exponentials.

use super::reduce::lanes_along;
use super::{Args, FLOATS, Refusal, Run, run};
use crate::view::Dtype;

operators! {
    Softmax(self: T, dim: I64, out: O) = softmax;
    LogSoftmax(self: T, dim: I64, out: O) = softmax;
    SoftmaxCrossEntropyWithLogits(features: T, labels: T, loss: O, backprop: O) = cross_entropy;
}

/// Logarithms of the softmax of a lane. A lane of −∞ alone has no distribution: NaN.
pub(super) fn log_softmax(lane: &[f64]) -> Vec<f64> {
    let largest = lane.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = lane.iter().map(|x| (x - largest).exp()).sum();
    lane.iter().map(|x| x - largest - sum.ln()).collect()
}

pub(super) fn softmax_of(lane: &[f64]) -> Vec<f64> {
    let largest = lane.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = lane.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|x| x / sum).collect()
}

fn softmax(args: &Args) -> Result<Run, Refusal> {
    let (a, out) = (args.tensor("self")?, args.tensor("out")?);
    let dtypes = [FLOATS, &[Dtype::F64]].concat();
    args.one_of("self", a, &dtypes)?;
    args.one_of("out", out, &dtypes)?;
    args.shaped("out", out, &a.shape)?;
    let axis = args.axis("dim", args.int("dim")?, a.rank())?;
    let ((from, count), (to, _)) = (lanes_along(a, axis), lanes_along(out, axis));
    let lane_of = if args.operator == "LogSoftmax" { log_softmax } else { softmax_of };
    run(move |memory| {
        let row = from.read_f64(memory)?;
        to.write_f64(memory, &row.chunks(count.max(1)).flat_map(lane_of).collect::<Vec<_>>())
    })
}

/// loss = −Σ labels · log softmax(features) per row; backprop = softmax(features) − labels.
fn cross_entropy(args: &Args) -> Result<Run, Refusal> {
    let (features, labels) = (args.tensor("features")?.clone(), args.tensor("labels")?.clone());
    let (loss, backprop) = (args.tensor("loss")?.clone(), args.tensor("backprop")?.clone());
    args.ranked("features", &features, 2, 2)?;
    args.shaped("labels", &labels, &features.shape)?;
    args.shaped("backprop", &backprop, &features.shape)?;
    args.shaped("loss", &loss, &features.shape[..1])?;
    for (name, tensor) in
        [("features", &features), ("labels", &labels), ("loss", &loss), ("backprop", &backprop)]
    {
        args.one_of(name, tensor, FLOATS)?;
    }
    let count = features.shape[1];
    if count == 0 {
        return Err(args.invalid("features", "has no classes"));
    }
    run(move |memory| {
        let (x, y) = (features.read_f64(memory)?, labels.read_f64(memory)?);
        let lanes = || x.chunks(count).zip(y.chunks(count));
        // A class without weight costs nothing, however unlikely it is.
        let cost = |(log, label): (f64, &f64)| if *label == 0.0 { 0.0 } else { -log * label };
        let losses = lanes().map(|(x, y)| log_softmax(x).into_iter().zip(y).map(cost).sum());
        loss.write_f64(memory, &losses.collect::<Vec<f64>>())?;
        let slopes = lanes().flat_map(|(x, y)| softmax_of(x).into_iter().zip(y).map(|(p, y)| p - y));
        backprop.write_f64(memory, &slopes.collect::<Vec<f64>>())
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS, close, noise};
    use super::*;

    #[test]
    fn rows_sum_to_one_and_elements_follow_the_formula() {
        let x: Vec<f64> = noise(24, 7).iter().map(|x| x * 50.0).collect();
        for layout in LAYOUTS {
            let case = |name: &str| {
                let case = Case::new(Soc::A2, name).laid(layout).input("self", Dtype::F32, &[2, 3, 4], &x);
                case.int("dim", 1).output("out", Dtype::F32, &[2, 3, 4]).done().read("out")
            };
            let (p, log_p) = (case("Softmax"), case("LogSoftmax"));
            for (i, k) in [(0, 0), (1, 3)] {
                let at = |j: usize| i * 12 + j * 4 + k;
                close(&[(0..3).map(|j| p[at(j)]).sum()], &[1.0], 1e-6);
                let x = |j: usize| f64::from(x[at(j)] as f32);
                let want = 1.0 / (0..3).map(|j| (x(j) - x(1)).exp()).sum::<f64>();
                close(&[p[at(1)], log_p[at(1)]], &[want, want.ln()], 1e-6);
            }
        }
        let masked =
            Case::new(Soc::A2, "Softmax").input("self", Dtype::F16, &[3], &[f64::NEG_INFINITY, 1.0, 1.0]);
        assert_eq!(masked.int("dim", -1).output("out", Dtype::F16, &[3]).done().read("out"), [0.0, 0.5, 0.5]);
    }

    #[test]
    fn cross_entropy_of_equal_logits_is_the_logarithm_of_their_number() {
        let case = Case::new(Soc::A2, "SoftmaxCrossEntropyWithLogits")
            .input("features", Dtype::F32, &[2, 4], &[3.0; 8])
            .input("labels", Dtype::F32, &[2, 4], &[1.0, 0.0, 0.0, 0.0, 0.25, 0.25, 0.25, 0.25])
            .output("loss", Dtype::F32, &[2])
            .output("backprop", Dtype::F32, &[2, 4])
            .done();
        close(&case.read("loss"), &[4f64.ln(), 4f64.ln()], 1e-6);
        close(&case.read("backprop"), &[-0.75, 0.25, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0], 1e-6);
    }
}
