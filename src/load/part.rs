//! Some rows and columns of a weight, in the format that the whole has: what a rank of several loads.

use super::form::WeightForm;
use super::weights::{HostQuant, HostWeight};
use core::ops::Range;
use portolan_ops::quant::{QuantScheme, QuantSpec};
use portolan_ops::{HostTensor, OpError, Shape, TensorSpec};

/// Rows and columns of a weight `[n, k]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) rows: Range<usize>,
    pub(crate) columns: Range<usize>,
}

impl Part {
    fn is_whole(&self, shape: &Shape) -> bool {
        self.rows == (0..shape.rows()) && self.columns == (0..shape.last())
    }

    /// The same part of what there is one of for every block of `[rows, columns]` of a weight.
    fn of_blocks(&self, whole: &Shape, block: [usize; 2]) -> Result<Part, OpError> {
        Ok(Part {
            rows: blocks(&self.rows, whole.rows(), block[0], "rows")?,
            columns: blocks(&self.columns, whole.last(), block[1], "columns")?,
        })
    }

    /// These elements of a tensor `[n, k]`, row by row.
    fn bytes(&self, tensor: &HostTensor) -> Result<Vec<u8>, OpError> {
        let spec = tensor.spec();
        let bits = spec.dtype().bits() as usize;
        let place = |element: usize| match (element * bits).is_multiple_of(8) {
            true => Ok(element * bits / 8),
            false => Err(wrong(format!("element {element} of {spec} does not begin at a byte"))),
        };
        let (width, mut bytes) = (spec.shape().last(), Vec::new());
        for row in self.rows.clone() {
            let (start, end) =
                (place(row * width + self.columns.start)?, place(row * width + self.columns.end)?);
            bytes.extend_from_slice(tensor.bytes().get(start..end).unwrap_or_default());
        }
        Ok(bytes)
    }
}

/// The blocks that a stretch of so many is in; it may be a part of one of them, or else whole ones.
fn blocks(stretch: &Range<usize>, extent: usize, block: usize, of: &str) -> Result<Range<usize>, OpError> {
    let Some(last) = stretch.end.checked_sub(1).filter(|last| *last >= stretch.start) else {
        return Ok(0..0);
    };
    let is_whole = |at: &usize| at.is_multiple_of(block) || *at == extent;
    let cut = [stretch.start, stretch.end].into_iter().find(|at| !is_whole(at));
    if let Some(cut) = cut.filter(|_| stretch.start / block != last / block) {
        return Err(wrong(format!("blocks of {block} {of} cannot be cut at {cut}; use fewer ranks")));
    }
    Ok(stretch.start / block..last / block + 1)
}

fn wrong(what: String) -> OpError {
    OpError::shape("weight", what)
}

/// The blocks that share an element of offset or scale, and of what these are multiplied by.
fn block_sizes(scheme: &QuantScheme) -> [[usize; 2]; 2] {
    let outer = scheme.scale.outer().map_or(1, |(_, outer_block)| outer_block);
    [scheme.block, [scheme.block[0], outer]]
}

impl WeightForm {
    /// The form of a part of the weight.
    ///
    /// # Errors
    /// `Shape` where blocks that share a scale would be cut.
    pub(crate) fn part(&self, part: &Part) -> Result<WeightForm, OpError> {
        if part.is_whole(self.shape()) {
            return Ok(self.clone());
        }
        let (n, k) = (part.rows.len(), part.columns.len());
        Ok(match self {
            WeightForm::Dense(spec) => WeightForm::Dense(TensorSpec::of(spec.dtype(), &[n, k])?),
            WeightForm::Quant(_, spec) => {
                for block in block_sizes(spec.scheme()) {
                    part.of_blocks(self.shape(), block)?;
                }
                WeightForm::Quant(Shape::new(&[n, k])?, Box::new(QuantSpec::of(*spec.scheme(), n, k)?))
            }
        })
    }
}

impl HostWeight {
    /// A part of the weight.
    ///
    /// # Errors
    /// As [`WeightForm::part`].
    pub(crate) fn part(&self, part: &Part) -> Result<HostWeight, OpError> {
        if part.is_whole(self.shape()) {
            return Ok(self.clone());
        }
        let (n, k) = (part.rows.len(), part.columns.len());
        match self {
            HostWeight::Dense(tensor) => {
                let spec = TensorSpec::of(tensor.spec().dtype(), &[n, k])?;
                Ok(HostWeight::Dense(HostTensor::from_bytes(&spec, part.bytes(tensor)?)?))
            }
            HostWeight::Quant(quant) => {
                let scheme = quant.spec().scheme();
                let [inner, outer] = block_sizes(scheme).map(|block| part.of_blocks(self.shape(), block));
                let (inner, outer) = (inner?, outer?);
                let cut = |tensor: Option<&HostTensor>, part: &Part| {
                    tensor.map_or(Ok(Vec::new()), |tensor| part.bytes(tensor))
                };
                let parts = [
                    part.bytes(quant.codes())?,
                    inner.bytes(quant.scale())?,
                    cut(quant.offset(), &inner)?,
                    cut(quant.outer(), &outer)?,
                    cut(quant.outer_offset(), &outer)?,
                ];
                let spec = QuantSpec::of(*scheme, n, k)?;
                Ok(HostWeight::Quant(Box::new(HostQuant::new(Shape::new(&[n, k])?, spec, parts)?)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_ops::DType;

    fn part(rows: Range<usize>, columns: Range<usize>) -> Part {
        Part { rows, columns }
    }

    /// A weight whose every byte is its place.
    fn weight(scheme: QuantScheme, n: usize, k: usize) -> HostWeight {
        let spec = QuantSpec::of(scheme, n, k).unwrap();
        let bytes = |spec: Option<&TensorSpec>| {
            spec.map_or(Vec::new(), |spec| (0..spec.bytes()).map(|at| (at * 7 % 120) as u8).collect())
        };
        let parts =
            [Some(spec.codes()), Some(spec.scale()), spec.offset(), spec.outer(), spec.outer_offset()];
        let parts = parts.map(bytes);
        HostWeight::Quant(Box::new(HostQuant::new(Shape::new(&[n, k]).unwrap(), spec, parts).unwrap()))
    }

    #[test]
    fn a_part_is_the_same_numbers_in_the_same_format() {
        let fp8 = QuantScheme { block: [4, 8], ..QuantScheme::F8_BLOCK };
        for (scheme, n, k, part) in [
            (QuantScheme::Q4_1, 6, 128, part(1..4, 32..96)),
            (QuantScheme::Q8_0, 3, 64, part(2..3, 0..64)),
            (QuantScheme::Q4_K, 2, 1024, part(0..2, 256..768)),
            (QuantScheme::INT8_ROW, 4, 10, part(1..3, 3..7)),
            (fp8, 10, 20, part(4..10, 8..20)),
            (fp8, 10, 20, part(4..7, 0..20)),
            (fp8, 10, 20, part(5..6, 9..12)),
        ] {
            let whole = weight(scheme, n, k);
            let form = WeightForm::Quant(
                Shape::new(&[n, k]).unwrap(),
                Box::new(QuantSpec::of(scheme, n, k).unwrap()),
            );
            let (all, got) = (whole.to_f32(), whole.part(&part).unwrap());
            let want: Vec<f32> = part
                .rows
                .clone()
                .flat_map(|row| part.columns.clone().map(move |column| row * k + column))
                .map(|at| all[at])
                .collect();
            assert_eq!(got.to_f32().len(), want.len());
            for (got, want) in got.to_f32().iter().zip(&want) {
                assert_eq!(got.to_bits(), want.to_bits(), "{scheme:?} {part:?}");
            }
            let specs: Vec<TensorSpec> = got.parts().iter().map(|part| *part.spec()).collect();
            assert_eq!(form.part(&part).unwrap().parts(), specs);
        }
        let whole = part(0..6, 0..128);
        assert_eq!(
            weight(QuantScheme::Q4_1, 6, 128).part(&whole).unwrap(),
            weight(QuantScheme::Q4_1, 6, 128)
        );
    }

    #[test]
    fn blocks_are_not_cut() {
        let says = |scheme, part: Part| weight(scheme, 8, 512).part(&part).unwrap_err().to_string();
        assert!(
            says(QuantScheme::Q4_0, part(0..8, 16..64)).contains("blocks of 32 columns cannot be cut at 16")
        );
        assert!(
            says(QuantScheme::Q4_K, part(0..8, 32..512))
                .contains("blocks of 256 columns cannot be cut at 32")
        );
        let fp8 = QuantScheme { block: [4, 8], ..QuantScheme::F8_BLOCK };
        assert!(says(fp8, part(2..8, 0..8)).contains("blocks of 4 rows cannot be cut at 2"));
        let dense = TensorSpec::of(DType::F4E2M1, &[2, 6]).unwrap();
        let dense = HostWeight::Dense(HostTensor::from_bytes(&dense, vec![0; 6]).unwrap());
        assert!(dense.part(&part(0..2, 1..4)).unwrap_err().to_string().contains("does not begin at a byte"));
    }
}
