//! Products with weights, and rows of weights.

use crate::Error;
use crate::nn::{Loader, Share};
use portolan_core::{Stream, Tensor, Weight, call, ops};
use portolan_ops::kernel::Activation;
use portolan_ops::{ActQuant, DType, LinearSpec, TensorSpec};

/// `x · weightᵀ + bias`; the rows of several weights may stand in one.
#[derive(Clone, Debug)]
pub struct Linear {
    /// One weight, or several whose formats differ and whose results stand side by side.
    parts: Vec<(Weight, ActQuant)>,
    bias: Option<Tensor>,
    n: usize,
}

impl Linear {
    /// Loads `[n, k]` weights by canonical name as one layer with `Σ n` outputs; all have biases, or none.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load(
        loader: &mut Loader<'_>,
        names: &[(&str, usize)],
        layer: usize,
        k: usize,
        bias: bool,
    ) -> Result<Self, Error> {
        let shares: Vec<Share<'_>> = names.iter().map(|(name, n)| Share::whole(name, *n, k)).collect();
        Self::load_shares(loader, &shares, layer, bias)
    }

    /// Loads what a rank takes of weights; all have biases, or none.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load_shares(
        loader: &mut Loader<'_>,
        shares: &[Share<'_>],
        layer: usize,
        bias: bool,
    ) -> Result<Self, Error> {
        let mut parts = Vec::new();
        match loader.packed(shares, layer)? {
            Some(weight) => parts.push(weight),
            None => {
                for share in shares {
                    parts.extend(loader.packed(std::slice::from_ref(share), layer)?);
                }
            }
        }
        let parts = parts
            .into_iter()
            .map(|weight| loader.act_quant(&weight).map(|act_quant| (weight, act_quant)))
            .collect::<Result<Vec<_>, Error>>()?;
        let bias = if bias { Some(loader.biases(shares, layer)?) } else { None };
        Ok(Self { parts, bias, n: shares.iter().map(Share::n).sum() })
    }

    /// A layer of one weight that is on the device already (an output tied to the embedding).
    ///
    /// # Errors
    /// Those of the device.
    pub fn tied(loader: &Loader<'_>, weight: &Weight) -> Result<Self, Error> {
        let n = weight.spec()?.n();
        let packed = loader.pack(weight)?;
        let act_quant = loader.act_quant(&packed)?;
        Ok(Self { parts: vec![(packed, act_quant)], bias: None, n })
    }

    /// `[.., k]` to `[.., n]`.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, Error> {
        self.forward_activated(stream, x, Activation::Identity)
    }

    /// As [`forward`](Self::forward), with a function of every result last.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward_activated(
        &self,
        stream: &Stream,
        x: &Tensor,
        activation: Activation,
    ) -> Result<Tensor, Error> {
        let rank = x.shape().rank();
        let last = rank.saturating_sub(1);
        let out = stream.empty(&TensorSpec::new(x.dtype(), x.shape().with_dim(last, self.n)?))?;
        let mut start = 0;
        for (weight, act_quant) in &self.parts {
            let n = weight.spec()?.n();
            let mut part = if self.parts.len() == 1 { out.clone() } else { out.narrow(last, start, n)? };
            let mut op = call::Linear::new(x, weight, &mut part)?.activation(activation)?;
            if let Some(bias) = &self.bias {
                op = op.bias(&bias.narrow(0, start, n)?)?;
            }
            if *act_quant != ActQuant::None {
                op = op.act_quant(*act_quant)?;
            }
            stream.run(op)?;
            start += n;
        }
        Ok(out)
    }

    /// The result's extents for an input.
    ///
    /// # Errors
    /// As [`LinearSpec::out_spec`].
    pub fn out_spec(&self, x: &TensorSpec) -> Result<TensorSpec, Error> {
        match self.parts.as_slice() {
            [(weight, _)] => Ok(LinearSpec::out_spec(x, &weight.spec()?)?),
            _ => Ok(TensorSpec::new(x.dtype(), x.shape().with_dim(x.rank().saturating_sub(1), self.n)?)),
        }
    }
}

/// Rows of a weight, one a token.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Weight,
}

impl Embedding {
    /// Loads a `[vocab, hidden]` weight.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load(loader: &mut Loader<'_>, name: &str, vocab: usize, hidden: usize) -> Result<Self, Error> {
        Ok(Self { weight: loader.weight(name, 0, vocab, hidden)? })
    }

    /// The weight, for an output layer tied to it.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// `[tokens]` ids to `[tokens, hidden]` in f32.
    ///
    /// # Errors
    /// As [`Stream::run`]; an id outside of the vocabulary is a fault of the stream.
    pub fn forward(&self, stream: &Stream, ids: &Tensor) -> Result<Tensor, Error> {
        Ok(ops::embedding(stream, ids, &self.weight, DType::F32)?)
    }
}
