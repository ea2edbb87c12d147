//! Keys and values of latent attention: one part of each row normalised, the other turned, both stored in caches.

use super::norm::rms_rows;
use super::rope::{Pairs, turn};
use super::{Args, Refusal, Run, run};
use crate::view::{Dtype, Fault, Tensor};

operators! {
    KvRmsNormRopeCache(kv: T, gamma: T, cos: T, sin: T, index: T, kCacheRef: U, ckvCacheRef: U, kRopeScaleOptional: T, cKvScaleOptional: T, kRopeOffsetOptional: T, cKvOffsetOptional: T, epsilon: F64, cacheModeOptional: CS, isOutputKv: B, kRopeOut: O, cKvOut: O) = store;
    KvRmsNormRopeCacheV2(kv: T, gamma: T, cos: T, sin: T, index: T, kCacheRef: U, ckvCacheRef: U, kRopeScaleOptional: T, cKvScaleOptional: T, kRopeOffsetOptional: T, cKvOffsetOptional: T, vOptional: T, epsilon: F64, cacheModeOptional: CS, isOutputKv: B, kRopeOut: O, cKvOut: O) = store;
}

/// How rows lie in a cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// [batch, 1, positions, width]: positions of each sequence.
    Rows,
    /// [blocks, block, 1, width]: slots over all blocks.
    Paged,
    /// The same, each block as [width / C0, block, C0] with 32 bytes in C0.
    Fractal,
}

struct Cache {
    view: Tensor,
    mode: Mode,
}

impl Cache {
    fn new(args: &Args, name: &str, mode: Mode, width: usize, dtype: Dtype) -> Result<Self, Refusal> {
        let view = args.tensor(name)?;
        args.one_of(name, view, &[dtype])?;
        args.ranked(name, view, 4, 4)?;
        let heads = if mode == Mode::Rows { view.shape[1] } else { view.shape[2] };
        if (heads, view.shape[3]) != (1, width) {
            return Err(
                args.invalid(name, format!("has shape {:?}; wanted: one head of {width}", view.shape))
            );
        }
        let piece = 256 / dtype.bits();
        if mode != Mode::Rows && !view.shape[1].is_multiple_of(piece) {
            return Err(
                args.invalid(name, format!("has blocks of {}; wanted: a multiple of {piece}", view.shape[1]))
            );
        }
        if mode == Mode::Fractal && !(width.is_multiple_of(piece) && view.is_contiguous()) {
            return Err(args.invalid(
                name,
                format!("has rows of {width}, or strides; wanted: whole pieces of 32 bytes"),
            ));
        }
        Ok(Self { view: view.clone(), mode })
    }

    /// The row of a sequence's position, or of a slot.
    fn row(&self, batch: usize, at: usize) -> Option<Tensor> {
        let [first, second, third, width] = self.view.shape[..] else { return None };
        match self.mode {
            Mode::Rows => {
                (batch < first && at < third).then(|| self.view.narrow(0, batch, 1, 1).narrow(2, at, 1, 1))
            }
            Mode::Paged => (at < first * second)
                .then(|| self.view.narrow(0, at / second, 1, 1).narrow(1, at % second, 1, 1)),
            Mode::Fractal => (at < first * second).then(|| {
                let piece = 256 / self.view.dtype.bits();
                let offset = self.view.offset + at / second * second * width + at % second * piece;
                let (shape, strides) = (vec![width / piece, piece], vec![second * piece, 1]);
                Tensor { shape, strides, offset, ..self.view.clone() }
            }),
        }
    }
}

fn store(args: &Args) -> Result<Run, Refusal> {
    args.absent(&["kRopeScale", "cKvScale", "kRopeOffset", "cKvOffset", "v"])?;
    let (kv, gamma) = (args.tensor("kv")?.clone(), args.tensor("gamma")?.clone());
    args.one_of("kv", &kv, &[Dtype::F16, Dtype::Bf16])?;
    args.one_of("gamma", &gamma, &[kv.dtype])?;
    args.ranked("kv", &kv, 4, 4)?;
    args.ranked("gamma", &gamma, 1, 1)?;
    let [batch, heads, positions, width] = kv.shape[..] else {
        return Err(args.invalid("kv", "has no rows"));
    };
    let latent = gamma.shape[0];
    let turned = width.saturating_sub(latent);
    if heads != 1 || turned == 0 || !turned.is_multiple_of(2) {
        let text = format!(
            "has shape {:?} beside a gamma of {latent}; wanted: one head, and an even rest",
            kv.shape
        );
        return Err(args.invalid("kv", text));
    }
    let mode = match args.text("cacheModeOptional")? {
        "" | "Norm" => Mode::Rows,
        "PA" | "PA_BNSD" => Mode::Paged,
        "PA_NZ" => Mode::Fractal,
        mode => return Err(args.unknown_mode("cacheMode", mode)),
    };
    let mut angles = Vec::new();
    for name in ["cos", "sin"] {
        let angle = args.tensor(name)?;
        args.one_of(name, angle, &[kv.dtype])?;
        angles.push(args.spread(name, angle, &[batch, 1, positions, turned])?);
    }
    let index = args.tensor("index")?.clone();
    args.one_of("index", &index, &[Dtype::I64])?;
    let wanted = if mode == Mode::Rows { vec![batch, positions] } else { vec![batch * positions] };
    args.shaped("index", &index, &wanted)?;
    let rope = Cache::new(args, "kCacheRef", mode, turned, kv.dtype)?;
    let norm = Cache::new(args, "ckvCacheRef", mode, latent, kv.dtype)?;
    let outs = match args.flag("isOutputKv")? {
        false => None,
        true => {
            let (rope, norm) = (args.tensor("kRopeOut")?.clone(), args.tensor("cKvOut")?.clone());
            for (name, out, width) in [("kRopeOut", &rope, turned), ("cKvOut", &norm, latent)] {
                args.one_of(name, out, &[kv.dtype])?;
                args.shaped(name, out, &[batch, 1, positions, width])?;
            }
            Some((rope, norm))
        }
    };
    let (epsilon, operator) = (args.float("epsilon")?, args.operator);
    run(move |memory| {
        let (rows, gamma, index) = (kv.read_f64(memory)?, gamma.read_f64(memory)?, index.read_i64(memory)?);
        let (cos, sin) = (angles[0].read_f64(memory)?, angles[1].read_f64(memory)?);
        let (mut all_turned, mut all_normed) = (Vec::new(), Vec::new());
        for (number, row) in rows.chunks(width).enumerate() {
            let (left, right) = row.split_at(latent);
            let of = |angle: &'_ [f64]| angle[number * turned..][..turned].to_vec();
            let k = turn(right, &of(&cos), &of(&sin), Pairs::InterleaveHalf);
            let (latent, _) = rms_rows(left, &gamma, epsilon);
            if index[number] != -1 {
                let at = usize::try_from(index[number]).ok();
                let place = |cache: &Cache| {
                    at.and_then(|at| cache.row(number / positions, at)).ok_or_else(|| {
                        Fault::exception(format!(
                            "aclnn{operator}: index {} is outside the cache",
                            index[number]
                        ))
                    })
                };
                place(&rope)?.write_f64(memory, &k)?;
                place(&norm)?.write_f64(memory, &latent)?;
            }
            all_turned.extend(k);
            all_normed.extend(latent);
        }
        let Some((rope, norm)) = &outs else { return Ok(()) };
        rope.write_f64(memory, &all_turned)?;
        norm.write_f64(memory, &all_normed)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, close, noise_of};
    use super::*;

    const LATENT: usize = 32;
    const TURNED: usize = 16;

    fn case(mode: &str, cache: [&[usize]; 2], index: &[f64]) -> (Case, Vec<f64>) {
        let kv = noise_of(Dtype::F16, 2 * (LATENT + TURNED), 1);
        let (cos, sin) = (noise_of(Dtype::F16, 2 * TURNED, 2), noise_of(Dtype::F16, 2 * TURNED, 3));
        let angles: &[usize] = &[1, 1, 2, TURNED];
        let case = Case::new(Soc::A3, "KvRmsNormRopeCache")
            .input("kv", Dtype::F16, &[1, 1, 2, LATENT + TURNED], &kv)
            .input("gamma", Dtype::F16, &[LATENT], &[2.0; LATENT])
            .input("cos", Dtype::F16, angles, &cos)
            .input("sin", Dtype::F16, angles, &sin);
        let shape: &[usize] = if mode == "Norm" { &[1, 2] } else { &[2] };
        let size = |shape: &[usize]| shape.iter().product::<usize>();
        let case = case
            .input("index", Dtype::I64, shape, index)
            .input("kCacheRef", Dtype::F16, cache[0], &vec![0.0; size(cache[0])])
            .input("ckvCacheRef", Dtype::F16, cache[1], &vec![0.0; size(cache[1])]);
        let case = case.float("epsilon", 1e-5).text("cacheModeOptional", mode).flag("isOutputKv", true);
        let case =
            case.output("kRopeOut", Dtype::F16, angles).output("cKvOut", Dtype::F16, &[1, 1, 2, LATENT]);
        // Position 1, straight from the formula.
        let (left, right) = kv[LATENT + TURNED..].split_at(LATENT);
        let root = (left.iter().map(|x| x * x).sum::<f64>() / LATENT as f64 + 1e-5).sqrt();
        let mut want: Vec<f64> = left.iter().map(|x| 2.0 * x / root).collect();
        let half = TURNED / 2;
        let (even, odd): (Vec<f64>, Vec<f64>) = (0..half).map(|i| (right[2 * i], right[2 * i + 1])).unzip();
        let (cos, sin) = (&cos[TURNED..], &sin[TURNED..]);
        want.extend((0..half).map(|i| even[i] * cos[i] - odd[i] * sin[i]));
        want.extend((0..half).map(|i| odd[i] * cos[half + i] + even[i] * sin[half + i]));
        (case, want)
    }

    #[test]
    fn one_part_is_normalised_the_other_turned_and_both_are_stored_by_mode() {
        // Where position 1 is: its row's first element, and the distance of its pieces of 16.
        for (mode, caches, index, row) in [
            ("Norm", [[1, 1, 4, TURNED], [1, 1, 4, LATENT]], [-1.0, 3.0], 3),
            ("PA", [[2, 16, 1, TURNED], [2, 16, 1, LATENT]], [-1.0, 17.0], 17),
            ("PA_NZ", [[2, 16, 1, TURNED], [2, 16, 1, LATENT]], [-1.0, 17.0], 17),
        ] {
            let (case, want) = case(mode, [&caches[0], &caches[1]], &index);
            let case = case.done();
            let (rope, norm) = (case.read("kCacheRef"), case.read("ckvCacheRef"));
            close(&case.read("kRopeOut")[TURNED..], &want[LATENT..], 2e-3);
            close(&case.read("cKvOut")[LATENT..], &want[..LATENT], 2e-3);
            let latent: Vec<f64> = match mode {
                // In block 1, row 1: both pieces of 16, a block's 16 rows of them apart.
                "PA_NZ" => (0..LATENT).map(|j| norm[16 * LATENT + j / 16 * 256 + 16 + j % 16]).collect(),
                _ => norm[row * LATENT..][..LATENT].to_vec(),
            };
            close(&latent, &want[..LATENT], 2e-3);
            close(&rope[row * TURNED..][..TURNED], &want[LATENT..], 2e-3);
            assert_eq!(rope.iter().filter(|x| **x != 0.0).count(), TURNED, "{mode}: −1 is not left out");
        }
        let (wrong, _) = case("Norm", [&[1, 1, 4, TURNED], &[1, 1, 4, TURNED]], &[0.0, 1.0]);
        assert!(wrong.refused().message.contains("ckvCacheRef"));
        let (unknown, _) = case("PA_BLK_NZ", [&[2, 16, 1, TURNED], &[2, 16, 1, LATENT]], &[0.0, 1.0]);
        assert!(unknown.refused().message.contains("cacheMode = PA_BLK_NZ"));
    }
}
