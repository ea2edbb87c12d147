//! Experts spread over ranks: the ranks together give what one device with all experts gives.

use super::ranks::{PATIENCE, Peer, on_ranks};
use crate::rig::{Check, Rig, Stop, down, ensure, ensure_eq, refused};
use portolan_core::{ExpertParallel, Experts, Stream, StreamOptions, Tensor, ops};
use portolan_ops::moe::{ExpertFfnSpec, ExpertsSpec};
use portolan_ops::{Contract, DType, Determinism, Fill, OpError, Shape, TensorSpec, Tolerance};

const HIDDEN: usize = 12;
const INNER: usize = 20;

/// A mixture and the tokens of every rank.
struct Layer {
    name: &'static str,
    experts: usize,
    k: usize,
    /// The experts of the tokens' places, rank by rank.
    ids: Vec<Vec<i32>>,
}

impl Layer {
    fn tokens(&self, rank: usize) -> usize {
        self.ids[rank].len().checked_div(self.k).unwrap_or(0)
    }
}

fn values(dims: &[usize], seed: u64) -> Check<Vec<f32>> {
    let spec = TensorSpec::of(DType::F32, dims)?;
    Ok(Fill::Unit.draw(&spec, seed).into_iter().map(|x| x as f32).collect())
}

fn floats(stream: &Stream, dims: &[usize], seed: u64) -> Check<Tensor> {
    Ok(stream.upload(&values(dims, seed)?, &Shape::new(dims)?)?)
}

/// The weights of some of the experts; they are the same numbers wherever they are.
fn experts(stream: &Stream, of: core::ops::Range<usize>, dims: [usize; 2], seed: u64) -> Check<Experts> {
    let mut all = Vec::new();
    for expert in of.clone() {
        all.extend(values(&dims, seed + expert as u64)?);
    }
    Ok(Experts::dense(stream.upload(&all, &Shape::new(&[of.len(), dims[0], dims[1]])?)?)?)
}

const GATE_UP: ([usize; 2], u64) = ([2 * INNER, HIDDEN], 100);
const DOWN: ([usize; 2], u64) = ([HIDDEN, INNER], 900);

/// What the tokens of a rank should become, in f64, and how far from it an operator with all experts may be.
fn oracle(layer: &Layer, rank: usize) -> Check<(Vec<f64>, Tolerance)> {
    let (tokens, k, count) = (layer.tokens(rank), layer.k, layer.experts);
    let f32s = |dims: &[usize]| TensorSpec::of(DType::F32, dims);
    let (x, out) = (f32s(&[tokens, HIDDEN])?, f32s(&[tokens, HIDDEN])?);
    let ids = TensorSpec::of(DType::I32, &[tokens, k])?;
    let stacked = |dims: [usize; 2]| ExpertsSpec::dense(&f32s(&[count, dims[0], dims[1]])?);
    let spec =
        ExpertFfnSpec::new(&x, &ids, &f32s(&[tokens, k])?, &stacked(GATE_UP.0)?, &stacked(DOWN.0)?, &out)?;
    let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
    let weights = |(dims, seed): ([usize; 2], u64)| -> Check<Vec<f64>> {
        let mut all = Vec::new();
        for expert in 0..count {
            all.extend(wide(values(&dims, seed + expert as u64)?));
        }
        Ok(all)
    };
    let x = wide(values(&[tokens, HIDDEN], rank as u64)?);
    let ids: Vec<f64> = layer.ids[rank].iter().map(|id| f64::from(*id)).collect();
    let shares = wide(values(&[tokens, k], 50 + rank as u64)?);
    let (gate_up, down) = (weights(GATE_UP)?, weights(DOWN)?);
    let want = spec.reference(&[&x, &ids, &shares, &gate_up, &down]).remove(0);
    let tolerance = spec.tolerance().first().copied();
    let tolerance = tolerance.ok_or_else(|| Stop::Broken("expert_ffn has no tolerance".into()))?;
    Ok((want, tolerance))
}

/// A peer's part of a layer.
struct Part<'a> {
    peer: &'a Peer,
    stream: Stream,
    parallel: ExpertParallel,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: Experts,
    down: Experts,
}

impl<'a> Part<'a> {
    fn new(peer: &'a Peer, layer: &Layer) -> Check<Self> {
        let options = StreamOptions { determinism: Determinism::BatchInvariant, ..StreamOptions::default() };
        let (stream, rank) = (peer.rig.stream_with(options)?, peer.rank());
        let (tokens, k) = (layer.tokens(rank), layer.k);
        let parallel = ExpertParallel::new(&stream, &peer.comm, layer.experts)?;
        let here = parallel.experts();
        Ok(Self {
            x: floats(&stream, &[tokens, HIDDEN], rank as u64)?,
            ids: stream.upload(&layer.ids[rank], &Shape::new(&[tokens, k])?)?,
            weights: floats(&stream, &[tokens, k], 50 + rank as u64)?,
            gate_up: experts(&stream, here.clone(), GATE_UP.0, GATE_UP.1)?,
            down: experts(&stream, here, DOWN.0, DOWN.1)?,
            peer,
            stream,
            parallel,
        })
    }

    /// The layer with rooms for `capacity` rows: the result, and what this rank dropped.
    fn fixed(&self, capacity: usize) -> Check<(Tensor, Tensor)> {
        let sent = self.parallel.dispatch(&self.stream, &self.x, &self.ids, capacity)?;
        ensure_eq!(sent.x().dims(), [self.peer.world() * capacity, HIDDEN], "the rows that came");
        let y = self.parallel.expert_ffn(&self.stream, &sent, &self.gate_up, &self.down)?;
        let Some(dropped) = sent.dropped() else {
            return Err(Stop::Broken("nothing counts what is dropped".into()));
        };
        Ok((self.parallel.combine(&self.stream, &sent, &y, &self.weights)?, dropped.clone()))
    }

    /// The layer in one operator.
    fn whole(&self, most_tokens: usize) -> Result<Tensor, OpError> {
        let tokens = (&self.x, &self.ids, &self.weights);
        self.parallel.whole(&self.stream, most_tokens, tokens, &self.gate_up, &self.down)
    }

    /// The layer with as many rows as there are.
    fn exact(&self) -> Check<Tensor> {
        let counts = self.parallel.dispatch_counts(&self.stream, &self.ids)?;
        let sent = self.parallel.dispatch_v(&self.stream, &self.x, &counts)?;
        ensure_eq!(sent.x().dims()[0], counts.recv().iter().sum::<usize>(), "the rows that came");
        ensure!(sent.dropped().is_none(), "the exact form drops nothing");
        let y = self.parallel.expert_ffn(&self.stream, &sent, &self.gate_up, &self.down)?;
        Ok(self.parallel.combine(&self.stream, &sent, &y, &self.weights)?)
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Layers for a group, edges first; tokens differ in number from rank to rank.
fn layers(world: usize) -> Vec<Layer> {
    let ids = |k: usize, id: &dyn Fn(usize, usize, usize) -> i32| -> Vec<Vec<i32>> {
        let tokens = |rank: usize| 5 + 3 * rank;
        (0..world)
            .map(|rank| {
                (0..tokens(rank))
                    .flat_map(|t| (0..k).map(move |j| (rank, t, j)))
                    .map(|(r, t, j)| id(r, t, j))
                    .collect()
            })
            .collect()
    };
    let spread =
        |experts: usize| move |r: usize, t: usize, j: usize| ((7 * r + 5 * t + 3 * j) % experts) as i32;
    let mut first_only = ids(2, &spread(8));
    first_only.iter_mut().skip(1).for_each(Vec::clear);
    vec![
        Layer { name: "no tokens", experts: 8, k: 2, ids: vec![Vec::new(); world] },
        Layer { name: "tokens on one rank only", experts: 8, k: 2, ids: first_only },
        Layer { name: "no places", experts: 8, k: 0, ids: vec![Vec::new(); world] },
        Layer { name: "all to one expert", experts: 8, k: 1, ids: ids(1, &|_, _, _| 6) },
        Layer { name: "empty experts", experts: 8, k: 2, ids: ids(2, &|_, t, j| ((t + j) % 2 * 3) as i32) },
        Layer { name: "every expert", experts: 4, k: 4, ids: ids(4, &|_, t, j| ((t + j) % 4) as i32) },
        Layer {
            name: "padding",
            experts: 8,
            k: 3,
            ids: ids(3, &|r, t, j| if (t + j) % 3 == 0 { -1 } else { spread(8)(r, t, j) }),
        },
        Layer { name: "uneven shares", experts: 7, k: 2, ids: ids(2, &spread(7)) },
        Layer { name: "fewer experts than ranks", experts: 3, k: 2, ids: ids(2, &spread(3)) },
        Layer { name: "typical", experts: 8, k: 2, ids: ids(2, &spread(8)) },
    ]
}

pub(crate) fn ranks_together_give_what_one_device_with_all_experts_gives(rig: &Rig) -> Check {
    for world in [1, 2, 4] {
        let layers = layers(world as usize);
        let expected = layers
            .iter()
            .map(|layer| (0..world as usize).map(|rank| oracle(layer, rank)).collect::<Check<Vec<_>>>());
        let expected = expected.collect::<Check<Vec<_>>>()?;
        on_ranks(rig, world, PATIENCE, |peer| {
            for (layer, expected) in layers.iter().zip(&expected) {
                let said = |what: String| Stop::Broken(format!("{} on {world}: {what}", layer.name));
                let part = Part::new(&peer, layer)?;
                // Room for every place of every token.
                let (fixed, dropped) = part.fixed(layer.ids.iter().map(Vec::len).max().unwrap_or(0))?;
                let exact = part.exact()?;
                let (want, tolerance) = &expected[peer.rank()];
                let (fixed, exact) = (down(&part.stream, &fixed)?, down(&part.stream, &exact)?);
                let whole = part.whole(layer.ids.iter().map(Vec::len).max().unwrap_or(0));
                let whole = match layer.experts.is_multiple_of(peer.world()) {
                    true => down(&part.stream, &whole?)?,
                    false => {
                        let error = refused(whole, "experts that cannot be shared out equally")?;
                        ensure!(matches!(error, OpError::Attribute { .. }), "not Attribute: {error}");
                        exact.clone()
                    }
                };
                for (form, got) in [("dispatch", &fixed), ("dispatch_v", &exact), ("whole", &whole)] {
                    let got: Vec<f64> = got.iter().map(|x| f64::from(*x)).collect();
                    tolerance.check(&got, want).map_err(|mismatch| said(format!("{form}: {mismatch}")))?;
                }
                // A token depends on its own row and its experts, and not on who else is in the room.
                for (form, got) in [("dispatch", &fixed), ("whole", &whole)] {
                    let same = bits(got) == bits(&exact);
                    ensure!(same, "{} on {world}: {form} and dispatch_v differ", layer.name);
                }
                let dropped = part.stream.download::<i32>(&dropped)?.wait()?;
                ensure!(dropped.iter().all(|n| *n == 0), "{}: dropped {dropped:?}", layer.name);
                // All experts on this device alone.
                let alone = alone(&part, layer)?;
                let alone: Vec<f64> = alone.iter().map(|x| f64::from(*x)).collect();
                tolerance.check(&alone, want).map_err(|mismatch| said(format!("alone: {mismatch}")))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The tokens of one rank through all experts on its own device.
fn alone(part: &Part<'_>, layer: &Layer) -> Check<Vec<f32>> {
    let s = &part.stream;
    let gate_up = experts(s, 0..layer.experts, GATE_UP.0, GATE_UP.1)?;
    let all_down = experts(s, 0..layer.experts, DOWN.0, DOWN.1)?;
    Ok(down(s, &ops::expert_ffn(s, &part.x, &part.ids, &part.weights, &gate_up, &all_down)?)?)
}

pub(crate) fn rows_beyond_the_capacity_are_dropped_and_counted(rig: &Rig) -> Check {
    const CAPACITY: usize = 3;
    let world = 2;
    // Of four experts two are on each rank. Rank 0 has seven rows for rank 1, of which three fit.
    let ids = vec![vec![2, 3, 0, 3, 2, 2, 1, -1, 3, 2], vec![0, -1, 1, 3, 2, 0]];
    let layer = Layer { name: "overflow", experts: 4, k: 2, ids };
    // The same without what does not fit: the first to come are taken, in the order of tokens and places.
    let kept = vec![vec![2, 3, 0, 3, -1, -1, 1, -1, -1, -1], vec![0, -1, 1, 3, 2, 0]];
    let kept = Layer { name: "what fits", experts: 4, k: 2, ids: kept };
    on_ranks(rig, world, PATIENCE, |peer| {
        let part = Part::new(&peer, &layer)?;
        let (out, dropped) = part.fixed(CAPACITY)?;
        let dropped = part.stream.download::<i32>(&dropped)?.wait()?;
        ensure_eq!(dropped, [[0, 4], [0, 0]][peer.rank()], "rows dropped for each rank");
        let (want, tolerance) = oracle(&kept, peer.rank())?;
        let got: Vec<f64> = down(&part.stream, &out)?.into_iter().map(f64::from).collect();
        tolerance.check(&got, &want).map_err(|mismatch| Stop::Broken(mismatch.to_string()))?;
        // Rank by rank in the order of tokens, counted from this rank's first expert; nobody's rows are nobody's.
        let sent = part.parallel.dispatch(&part.stream, &part.x, &part.ids, CAPACITY)?;
        let came = part.stream.download::<i32>(sent.expert_ids())?.wait()?;
        ensure_eq!(came, [[0, 1, -1, 0, 1, 0], [0, 1, 1, 1, 0, -1]][peer.rank()], "the experts of the rows");
        // Without any room all is dropped, and nothing is what comes back.
        let (out, dropped) = part.fixed(0)?;
        ensure!(
            down(&part.stream, &out)?.iter().all(|x| *x == 0.0),
            "something came out of rooms for nothing"
        );
        let dropped: i32 = part.stream.download::<i32>(&dropped)?.wait()?.iter().sum();
        let places = layer.ids[peer.rank()].iter().filter(|id| **id >= 0).count();
        ensure_eq!(dropped, places as i32, "what was dropped");
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn the_form_of_fixed_capacity_is_captured_and_the_exact_one_refuses(rig: &Rig) -> Check {
    let layer = layers(2).pop().ok_or_else(|| Stop::Broken("there is no layer".into()))?;
    on_ranks(rig, 2, PATIENCE, |peer| {
        let part = Part::new(&peer, &layer)?;
        let (eager, _) = part.fixed(64)?;
        let want = bits(&down(&part.stream, &eager)?);
        let mut out = part.stream.empty(eager.spec())?;
        let mut stopped = None;
        let graph = part.stream.capture(|stream| {
            let (now, _) = part.fixed(64).map_err(|stop| {
                stopped = Some(stop);
                OpError::internal("test", "the layer was not captured")
            })?;
            stream.run(portolan_core::call::Copy::new(&now, &mut out)?)
        });
        if let Some(stop) = stopped {
            return Err(stop);
        }
        let graph = graph?;
        for _ in 0..3 {
            graph.replay(&part.stream)?;
            ensure!(bits(&down(&part.stream, &out)?) == want, "a replay differs from the eager layer");
        }
        let captured =
            part.stream.capture(|_| part.parallel.dispatch_counts(&part.stream, &part.ids).map(drop));
        let error = refused(captured, "reading counts during a capture")?;
        ensure!(matches!(error, OpError::Capture { .. }), "not Capture: {error}");
        Ok(())
    })?;
    Ok(())
}
