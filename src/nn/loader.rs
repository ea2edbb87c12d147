//! Weights from a file to a device, by canonical name, in the form the device computes on.

use crate::Error;
use crate::load::names::NameMap;
use crate::load::{HostQuant, HostWeight, LoadError, WeightSource};
use portolan_core::{HostBuffer, OpKind, QuantTensor, Stream, Tensor, Weight};
use portolan_ops::{ActQuant, HostTensor, Shape, TensorSpec};
use std::sync::Arc;

/// How products with quantized weights treat activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 activations; used for every comparison with other libraries.
    Exact,
    /// Activations rounded to int8 in groups of 32 where weights are quantized, and a half-width KV cache. Every
    /// such layer is rounded, the output too: no kind of layer alone makes most of the error.
    #[default]
    Fast,
}

/// Receives the bytes loaded so far and in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Reads a model's weights onto a device.
pub struct Loader<'a> {
    stream: &'a Stream,
    source: &'a dyn WeightSource,
    names: NameMap,
    precision: Precision,
    progress: Progress<'a>,
    loaded: u64,
    total: u64,
}

impl<'a> Loader<'a> {
    /// A loader for the tensors that `names` lists.
    pub fn new(
        stream: &'a Stream,
        source: &'a dyn WeightSource,
        names: NameMap,
        precision: Precision,
        progress: Progress<'a>,
    ) -> Self {
        let elements = |name: &&str| source.shape(name).map_or(0, |shape| shape.numel() as u64);
        let total = source.names().iter().map(elements).sum();
        Self { stream, source, names, precision, progress, loaded: 0, total }
    }

    /// The stream that weights are uploaded on.
    pub fn stream(&self) -> &Stream {
        self.stream
    }

    /// How products treat activations.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    fn file_name(&self, canonical: &str, layer: usize) -> Result<String, Error> {
        let name = self.names.name(self.source.naming(), canonical, layer);
        name.ok_or_else(|| {
            LoadError::tensor(self.source.path(), canonical, "is no name of this model family").into()
        })
    }

    /// Whether the file has a tensor.
    pub fn has(&self, canonical: &str, layer: usize) -> bool {
        self.file_name(canonical, layer).is_ok_and(|name| self.source.contains(&name))
    }

    /// A tensor on the host, which must have the extents the model expects.
    fn host(&mut self, canonical: &str, layer: usize, dims: &[usize]) -> Result<HostWeight, Error> {
        let name = self.file_name(canonical, layer)?;
        let shape = self.source.shape(&name)?;
        if shape.dims() != dims {
            let what = format!("is {shape}, the model's configuration makes it {dims:?}");
            return Err(LoadError::tensor(self.source.path(), &name, what).into());
        }
        let weight = self.source.load(&name)?;
        self.loaded += shape.numel() as u64;
        (self.progress)(self.loaded, self.total);
        Ok(weight)
    }

    /// A vector in f32: a norm's weight or a bias.
    pub fn vector(&mut self, canonical: &str, layer: usize, len: usize) -> Result<Tensor, Error> {
        let values = self.host(canonical, layer, &[len])?.to_f32();
        Ok(self.stream.upload(&values, &Shape::new(&[len])?)?)
    }

    /// Several vectors behind each other, in f32.
    pub fn vectors(&mut self, parts: &[(&str, usize)], layer: usize) -> Result<Tensor, Error> {
        let mut values = Vec::new();
        for &(canonical, len) in parts {
            values.extend(self.host(canonical, layer, &[len])?.to_f32());
        }
        Ok(self.stream.upload(&values, &Shape::new(&[values.len()])?)?)
    }

    /// A weight `[n, k]` as the file has it, for row look-ups.
    pub fn weight(&mut self, canonical: &str, layer: usize, n: usize, k: usize) -> Result<Weight, Error> {
        let host = self.host(canonical, layer, &[n, k])?;
        self.upload(&host, canonical)
    }

    /// The rows of several weights as one, packed for products; `None` when their formats differ.
    pub fn packed(
        &mut self,
        parts: &[(&str, usize)],
        layer: usize,
        k: usize,
    ) -> Result<Option<Weight>, Error> {
        let mut hosts = Vec::new();
        for &(canonical, n) in parts {
            hosts.push(self.host(canonical, layer, &[n, k])?);
        }
        let Some(host) = concat_rows(hosts)? else { return Ok(None) };
        let label = parts.first().map_or("weight", |(name, _)| name);
        let weight = self.upload(&host, label)?;
        Ok(Some(self.pack(&weight)?))
    }

    /// The weight in the device's form for products.
    pub fn pack(&self, weight: &Weight) -> Result<Weight, Error> {
        Ok(self.stream.prepack(weight, OpKind::Linear)?)
    }

    /// How a product with this weight treats activations.
    pub fn act_quant(&self, weight: &Weight) -> Result<ActQuant, Error> {
        let spec = weight.spec()?;
        // Float codes are multiplied as numbers: rounding activations would save nothing.
        let integers = spec.scheme().is_some_and(|scheme| !scheme.is_float());
        Ok(if self.precision == Precision::Fast && integers { ActQuant::INT8 } else { ActQuant::None })
    }

    fn upload(&self, host: &HostWeight, label: &str) -> Result<Weight, Error> {
        let label: Arc<str> = label.into();
        let part = |tensor: &HostTensor| {
            self.stream.upload_bytes(tensor.spec(), HostBuffer::from_bytes(tensor.bytes())?, &label)
        };
        Ok(match host {
            HostWeight::Dense(tensor) => Weight::Dense(part(tensor)?),
            HostWeight::Quant(quant) => Weight::Quant(QuantTensor::new(
                *quant.spec().scheme(),
                part(quant.codes())?,
                part(quant.scale())?,
                quant.offset().map(part).transpose()?,
                quant.outer().map(part).transpose()?,
                quant.outer_offset().map(part).transpose()?,
            )?),
        })
    }
}

/// One weight with the rows of all; `None` when element types or schemes differ.
fn concat_rows(hosts: Vec<HostWeight>) -> Result<Option<HostWeight>, Error> {
    if hosts.len() == 1 {
        return Ok(hosts.into_iter().next());
    }
    let rows: usize = hosts.iter().map(|h| h.shape().rows()).sum();
    let k = hosts.first().map_or(0, |h| h.shape().last());
    let dense: Option<Vec<&HostTensor>> =
        hosts.iter().map(|h| if let HostWeight::Dense(t) = h { Some(t) } else { None }).collect();
    if let Some(dense) = dense {
        if dense.iter().any(|t| t.spec().dtype() != dense[0].spec().dtype()) {
            return Ok(None);
        }
        let spec = TensorSpec::of(dense[0].spec().dtype(), &[rows, k])?;
        let bytes = dense.iter().flat_map(|t| t.bytes()).copied().collect();
        return Ok(Some(HostWeight::Dense(HostTensor::from_bytes(&spec, bytes)?)));
    }
    let quant: Option<Vec<&HostQuant>> =
        hosts.iter().map(|h| if let HostWeight::Quant(q) = h { Some(q.as_ref()) } else { None }).collect();
    let Some(quant) = quant else { return Ok(None) };
    let scheme = *quant[0].spec().scheme();
    // Rows that share a scale with a neighbour's cannot be cut from it.
    if scheme.block[0] != 1 || quant.iter().any(|q| *q.spec().scheme() != scheme) {
        return Ok(None);
    }
    let join = |get: fn(&HostQuant) -> Option<&HostTensor>| -> Vec<u8> {
        quant.iter().filter_map(|q| get(q)).flat_map(HostTensor::bytes).copied().collect()
    };
    let parts = [
        join(|q| Some(q.codes())),
        join(|q| Some(q.scale())),
        join(HostQuant::offset),
        join(HostQuant::outer),
        join(HostQuant::outer_offset),
    ];
    let spec = portolan_ops::quant::QuantSpec::of(scheme, rows, k)?;
    Ok(Some(HostWeight::Quant(Box::new(HostQuant::new(Shape::new(&[rows, k])?, spec, parts)?))))
}
