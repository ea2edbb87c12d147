//! Weights from a file to a device, by canonical name, in the form the device computes on.
//!
//! A device that keeps no data is given the same tensors, and nothing is read for it.

use crate::Error;
use crate::load::names::NameMap;
use crate::load::{HostWeight, LoadError, Part, WeightForm, WeightSource};
use crate::nn::Layout;
use core::ops::Range;
use portolan_core::{Experts, HostBuffer, OpKind, QuantTensor, Stream, Tensor, Weight, ops};
use portolan_ops::{ActQuant, DType, HostTensor, LinearSpec, OpError, Shape, TensorSpec};
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

impl Precision {
    /// The element type that keys and values are kept in.
    pub fn cache_dtype(self) -> DType {
        match self {
            Precision::Exact => DType::F32,
            Precision::Fast => DType::F16,
        }
    }
}

/// A weight `[n, k]` of the file, without `.weight` in its name, and what a rank takes of it.
#[derive(Clone, Debug)]
pub struct Share<'a> {
    name: &'a str,
    dims: [usize; 2],
    part: Part,
}

impl<'a> Share<'a> {
    /// All of it.
    pub fn whole(name: &'a str, n: usize, k: usize) -> Self {
        Self { name, dims: [n, k], part: Part { rows: 0..n, columns: 0..k } }
    }

    /// Some of its rows: outputs.
    pub fn rows(mut self, rows: Range<usize>) -> Self {
        self.part.rows = rows;
        self
    }

    /// Some of its columns: inputs.
    pub fn columns(mut self, columns: Range<usize>) -> Self {
        self.part.columns = columns;
        self
    }

    /// Some stretches of its rows, one behind the other; neighbouring ones are one.
    pub fn of_rows(name: &'a str, n: usize, k: usize, stretches: &[Range<usize>]) -> Vec<Self> {
        let mut shares: Vec<Self> = Vec::new();
        for rows in stretches {
            match shares.last_mut().filter(|share| share.part.rows.end == rows.start) {
                Some(share) => share.part.rows.end = rows.end,
                None => shares.push(Self::whole(name, n, k).rows(rows.clone())),
            }
        }
        shares
    }

    /// Rows taken.
    pub fn n(&self) -> usize {
        self.part.rows.len()
    }

    fn weight(&self) -> String {
        format!("{}.weight", self.name)
    }
}

/// Receives the bytes loaded so far and in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Reads a model's weights onto a device.
pub struct Loader<'a> {
    stream: &'a Stream,
    source: &'a dyn WeightSource,
    names: NameMap,
    precision: Precision,
    layout: Layout,
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
        let layout = Layout::default();
        Self { stream, source, names, precision, layout, progress, loaded: 0, total }
    }

    /// Loads what one rank has. Every rank reads the weights that it takes a part of whole.
    pub fn of_rank(mut self, layout: &Layout) -> Self {
        self.layout = layout.clone();
        self
    }

    /// How layers are shared out among ranks.
    pub fn layout(&self) -> &Layout {
        &self.layout
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
        self.expert_file_name(canonical, layer, 0)
    }

    fn expert_file_name(&self, canonical: &str, layer: usize, expert: usize) -> Result<String, Error> {
        let name = self.names.expert_name(self.source.naming(), canonical, layer, expert);
        name.ok_or_else(|| {
            LoadError::tensor(self.source.path(), canonical, "is no name of this model family").into()
        })
    }

    /// Whether the file has a tensor.
    pub fn has(&self, canonical: &str, layer: usize) -> bool {
        self.file_name(canonical, layer).is_ok_and(|name| self.source.contains(&name))
    }

    /// How the tensor of a canonical name is held.
    fn form(&self, canonical: &str, layer: usize, dims: &[usize]) -> Result<WeightForm, Error> {
        self.form_of(&self.file_name(canonical, layer)?, dims)
    }

    /// How a tensor of the file is held, which must have the extents the model expects.
    fn form_of(&self, name: &str, dims: &[usize]) -> Result<WeightForm, Error> {
        let form = self.source.form(name, &Shape::new(dims)?)?;
        if form.shape().dims() != dims {
            let what = format!("is {}, the model's configuration makes it {dims:?}", form.shape());
            return Err(LoadError::tensor(self.source.path(), name, what).into());
        }
        if let WeightForm::Dense(spec) = &form
            && spec.dtype().bits() < 16
        {
            let what = format!(
                "is {} without scales: `quantization_config` in config.json says nothing of them; use the model's f32, f16 or \
                 bf16 weights",
                spec.dtype()
            );
            return Err(LoadError::tensor(self.source.path(), name, what).into());
        }
        Ok(form)
    }

    /// The elements of a tensor whose form was asked for; none for a device that would not keep them.
    fn read(
        &mut self,
        canonical: &str,
        layer: usize,
        form: &WeightForm,
    ) -> Result<Option<HostWeight>, Error> {
        let name = self.file_name(canonical, layer)?;
        self.read_of(&name, form)
    }

    fn read_of(&mut self, name: &str, form: &WeightForm) -> Result<Option<HostWeight>, Error> {
        let host = if self.keeps_data() { Some(self.source.load(name)?) } else { None };
        self.loaded += form.shape().numel() as u64;
        // Parts of a weight that do not lie together are read one by one, each time all of it.
        (self.progress)(self.loaded.min(self.total), self.total);
        Ok(host)
    }

    fn keeps_data(&self) -> bool {
        self.stream.device().info().keeps_data
    }

    /// A vector in f32: a norm's weight or a bias.
    pub fn vector(&mut self, canonical: &str, layer: usize, len: usize) -> Result<Tensor, Error> {
        self.vectors(&[(canonical, len)], layer)
    }

    /// Parameters of any extents that are no weight of a product, in f32: stretches of their rows behind each other.
    pub fn parameters(
        &mut self,
        canonical: &str,
        layer: usize,
        dims: &[usize],
        rows: &[Range<usize>],
    ) -> Result<Tensor, Error> {
        let form = self.form(canonical, layer, dims)?;
        let each: usize = dims.iter().skip(1).product();
        let mut values = Vec::new();
        if let Some(host) = self.read(canonical, layer, &form)? {
            let all = host.to_f32();
            let stretches = rows.iter().map(|rows| all.get(rows.start * each..rows.end * each));
            values.extend(stretches.flatten().flatten());
        }
        let count = rows.iter().map(Range::len).sum();
        let dims = [&[count], dims.get(1..).unwrap_or_default()].concat();
        self.floats(values, &dims)
    }

    /// Several vectors behind each other, in f32.
    pub fn vectors(&mut self, parts: &[(&str, usize)], layer: usize) -> Result<Tensor, Error> {
        let whole: Vec<_> = parts.iter().map(|&(canonical, len)| (canonical, len, 0..len)).collect();
        self.stretches(&whole, layer)
    }

    /// The biases of the rows that shares have.
    pub fn biases(&mut self, shares: &[Share<'_>], layer: usize) -> Result<Tensor, Error> {
        let names: Vec<String> = shares.iter().map(|share| format!("{}.bias", share.name)).collect();
        let rows = names.iter().zip(shares);
        let rows: Vec<_> =
            rows.map(|(name, share)| (name.as_str(), share.dims[0], share.part.rows.clone())).collect();
        self.stretches(&rows, layer)
    }

    /// Stretches of vectors of so many elements behind each other.
    fn stretches(&mut self, parts: &[(&str, usize, Range<usize>)], layer: usize) -> Result<Tensor, Error> {
        let (mut values, mut numel) = (Vec::new(), 0);
        for (canonical, len, stretch) in parts {
            let form = self.form(canonical, layer, &[*len])?;
            let host = self.read(canonical, layer, &form)?;
            let taken = |host: &HostWeight| host.to_f32().get(stretch.clone()).unwrap_or_default().to_vec();
            values.extend(host.iter().flat_map(taken));
            numel += stretch.len();
        }
        self.floats(values, &[numel])
    }

    /// Numbers on the device, or memory alone where they would not be kept.
    fn floats(&self, values: Vec<f32>, dims: &[usize]) -> Result<Tensor, Error> {
        let shape = Shape::new(dims)?;
        Ok(match self.keeps_data() {
            true => self.stream.upload(&values, &shape)?,
            false => self.stream.empty(&TensorSpec::new(DType::F32, shape))?,
        })
    }

    /// A weight `[n, k]` as the file has it, for row look-ups.
    pub fn weight(&mut self, canonical: &str, layer: usize, n: usize, k: usize) -> Result<Weight, Error> {
        let form = self.form(canonical, layer, &[n, k])?;
        let host = self.read(canonical, layer, &form)?;
        self.upload(&form, host.as_slice(), canonical)
    }

    /// A weight `[n, k]` in the float type that the file has it in, for products with parts of it; f32 for float codes with
    /// scales, which parts could not be taken of.
    pub fn dense(&mut self, share: &Share<'_>, layer: usize) -> Result<Tensor, Error> {
        let (form, host) = self.share(share, layer)?;
        match self.upload(&form, host.as_slice(), share.name)? {
            Weight::Dense(weight) => Ok(weight),
            Weight::Quant(quant) if quant.spec().scheme().is_float() => {
                Ok(ops::dequantize(self.stream, &quant, DType::F32)?)
            }
            _ => {
                let what = "is quantized; it is read in float types only";
                Err(LoadError::tensor(self.source.path(), share.name, what).into())
            }
        }
    }

    /// The rows of several weights as one, packed for products; `None` when their formats differ.
    pub fn packed(&mut self, shares: &[Share<'_>], layer: usize) -> Result<Option<Weight>, Error> {
        let forms = shares.iter().map(|share| self.form_of_share(share, layer));
        let forms = forms.collect::<Result<Vec<_>, Error>>()?;
        let Some(whole) = WeightForm::concat_rows(&forms)? else { return Ok(None) };
        let mut hosts = Vec::new();
        for share in shares {
            hosts.extend(self.share(share, layer)?.1);
        }
        let label = shares.first().map_or("weight".into(), Share::weight);
        let weight = self.upload(&whole, &hosts, &label)?;
        Ok(Some(self.pack(&weight)?))
    }

    fn form_of_share(&self, share: &Share<'_>, layer: usize) -> Result<WeightForm, Error> {
        let name = self.file_name(&share.weight(), layer)?;
        let form = self.form_of(&name, &share.dims)?.part(&share.part);
        form.map_err(|error| LoadError::tensor(self.source.path(), &name, error.to_string()).into())
    }

    /// What a rank takes of a weight.
    fn share(&mut self, share: &Share<'_>, layer: usize) -> Result<(WeightForm, Option<HostWeight>), Error> {
        let form = self.form_of_share(share, layer)?;
        let whole = self.form(&share.weight(), layer, &share.dims)?;
        let host = self.read(&share.weight(), layer, &whole)?;
        Ok((form, host.map(|host| host.part(&share.part)).transpose()?))
    }

    /// The weights of experts of a layer, packed for the feed-forward network; of each expert the rows of `parts` behind
    /// each other, named by patterns with `{e}`. Where blocks of rows that share a scale do not end with a part, all are in
    /// smaller blocks here, which is exact: a part's last block may be cut short, and the next part begins with its own.
    pub fn experts(
        &mut self,
        parts: &[(&str, usize)],
        layer: usize,
        experts: Range<usize>,
        k: usize,
    ) -> Result<Experts, Error> {
        let count = experts.len();
        let (source, label) = (self.source, parts.first().map_or("experts", |(name, _)| name));
        let refuse = |what: &str| Error::from(LoadError::tensor(source.path(), label, what));
        let (mut one, mut hosts) = (None, Vec::new());
        for expert in experts {
            let named = parts.iter().map(|&(canonical, n)| {
                let name = self.expert_file_name(canonical, layer, expert)?;
                Ok((self.form_of(&name, &[n, k])?, name))
            });
            let named = named.collect::<Result<Vec<_>, Error>>()?;
            let (forms, names): (Vec<_>, Vec<_>) = named.into_iter().unzip();
            let rows = WeightForm::rows_between_seams(&forms);
            let forms = forms.iter().map(|form| form.in_blocks_of(rows)).collect::<Result<Vec<_>, _>>()?;
            let Some(form) = WeightForm::concat_rows(&forms)? else {
                return Err(refuse(
                    "cannot stand in one weight with its other half: they differ in type; convert the experts to one type",
                ));
            };
            if *one.get_or_insert_with(|| form.clone()) != form {
                return Err(refuse("is not of the type of the other experts; convert them to one type"));
            }
            for (name, form) in names.iter().zip(&forms) {
                let host = self.read_of(name, form)?;
                hosts.extend(host.map(|host| host.in_blocks_of(rows)).transpose()?);
            }
        }
        let Some(one) = one else { return Err(refuse("is of a layer without experts")) };
        let stacked = one
            .parts()
            .into_iter()
            .map(|part| TensorSpec::of(part.dtype(), &[&[count], part.dims()].concat()));
        let tensors = self.tensors(stacked.collect::<Result<_, OpError>>()?, &hosts, label)?;
        let (first, [scale, offset, outer, outer_offset]) = in_slots(&one, tensors)?;
        let experts = match (&one, scale) {
            (WeightForm::Quant(_, spec), Some(scale)) => {
                Experts::quant(*spec.scheme(), first, scale, offset, outer, outer_offset)?
            }
            _ => Experts::dense(first)?,
        };
        Ok(self.stream.prepack_experts(&experts, OpKind::ExpertFfn)?)
    }

    /// The weight in the device's form for products with the activations that models have, in f32.
    pub fn pack(&self, weight: &Weight) -> Result<Weight, Error> {
        let spec = weight.spec()?;
        let row = |n| TensorSpec::of(DType::F32, &[1, n]);
        let call = LinearSpec::new(&row(spec.k())?, &spec, &row(spec.n())?)?;
        Ok(self.stream.prepack(weight, &call)?)
    }

    /// How a product with this weight treats activations.
    pub fn act_quant(&self, weight: &Weight) -> Result<ActQuant, Error> {
        let spec = weight.spec()?;
        // Float codes are multiplied as numbers: rounding activations would save nothing.
        let integers = spec.scheme().is_some_and(|scheme| !scheme.is_float());
        Ok(if self.precision == Precision::Fast && integers { ActQuant::INT8 } else { ActQuant::None })
    }

    /// A weight on the device: the rows of the hosts one behind the other, or memory alone where there are none.
    fn upload(&self, form: &WeightForm, hosts: &[HostWeight], label: &str) -> Result<Weight, Error> {
        let tensors = self.tensors(form.parts(), hosts, label)?;
        let (first, [scale, offset, outer, outer_offset]) = in_slots(form, tensors)?;
        Ok(match (form, scale) {
            (WeightForm::Quant(_, spec), Some(scale)) => {
                QuantTensor::new(*spec.scheme(), first, scale, offset, outer, outer_offset)?.into()
            }
            _ => Weight::Dense(first),
        })
    }

    /// Tensors of these specs, each of the bytes of one part of all hosts.
    fn tensors(
        &self,
        specs: Vec<TensorSpec>,
        hosts: &[HostWeight],
        label: &str,
    ) -> Result<Vec<Tensor>, Error> {
        let label: Arc<str> = label.into();
        let parts: Vec<Vec<&HostTensor>> = hosts.iter().map(HostWeight::parts).collect();
        let tensor = |(at, spec): (usize, &TensorSpec)| {
            if hosts.is_empty() {
                return self.stream.empty_labelled(spec, &label);
            }
            let bytes: Vec<&[u8]> = parts.iter().filter_map(|p| p.get(at)).map(|part| part.bytes()).collect();
            self.stream.upload_bytes(spec, joined(&bytes)?, &label)
        };
        Ok(specs.iter().enumerate().map(tensor).collect::<Result<_, OpError>>()?)
    }
}

/// The tensors of a form: its elements or codes, and scale, offset, outer and outer offset where it has them.
fn in_slots(form: &WeightForm, tensors: Vec<Tensor>) -> Result<(Tensor, [Option<Tensor>; 4]), Error> {
    let mut tensors = tensors.into_iter();
    let first = tensors.next().ok_or_else(|| OpError::internal("weight", "a weight without a tensor"))?;
    let slots = match form {
        WeightForm::Dense(_) => [false; 4],
        WeightForm::Quant(_, spec) => {
            [true, spec.offset().is_some(), spec.outer().is_some(), spec.outer_offset().is_some()]
        }
    };
    Ok((first, slots.map(|has| if has { tensors.next() } else { None })))
}

/// Bytes behind each other, in memory that a copy may use.
fn joined(parts: &[&[u8]]) -> Result<HostBuffer, OpError> {
    let mut host = HostBuffer::zeroed(parts.iter().map(|part| part.len()).sum())?;
    if let Some(mut room) = host.bytes_mut() {
        for part in parts {
            let (here, rest) = room.split_at_mut(part.len());
            here.copy_from_slice(part);
            room = rest;
        }
    }
    Ok(host)
}
