//! Blocks of fewer rows, for weights that stand one behind the other in one: none may share a scale across a seam.
//!
//! Nothing is rounded: a block that is cut stands for the same numbers if each of its pieces has its scale.

use super::form::WeightForm;
use super::weights::{HostQuant, HostWeight};
use portolan_ops::quant::{QuantScheme, QuantSpec};
use portolan_ops::{HostTensor, OpError};

impl WeightForm {
    /// The most rows that a block can have if each of several weights, one behind the other, is to begin with a block
    /// of its own: what divides the rows of blocks and of every weight but the last. 0 where none has blocks.
    pub(crate) fn rows_between_seams(forms: &[WeightForm]) -> usize {
        let blocks = forms.iter().filter_map(|form| form.scheme().map(|scheme| scheme.block[0]));
        let rows = forms.iter().rev().skip(1).map(|form| form.shape().rows());
        match blocks.fold(0, common_divisor) {
            0 => 0,
            block => rows.fold(block, common_divisor),
        }
    }

    /// The form in blocks of so many rows, which divide those that its blocks have; itself if they are as many, or if it
    /// has no blocks.
    ///
    /// # Errors
    /// `Shape` where they divide them not.
    pub(crate) fn in_blocks_of(&self, rows: usize) -> Result<WeightForm, OpError> {
        match self {
            WeightForm::Quant(shape, spec) if spec.scheme().block[0] != rows => {
                let finer = QuantSpec::of(cut(spec.scheme(), rows)?, spec.n(), spec.k())?;
                Ok(WeightForm::Quant(*shape, Box::new(finer)))
            }
            _ => Ok(self.clone()),
        }
    }
}

impl HostWeight {
    /// The same numbers in blocks of so many rows: [`WeightForm::in_blocks_of`] with the elements.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn in_blocks_of(self, rows: usize) -> Result<HostWeight, OpError> {
        let quant = match self {
            HostWeight::Quant(quant) if quant.spec().scheme().block[0] != rows => quant,
            other => return Ok(other),
        };
        let (scheme, n, k) = (quant.spec().scheme(), quant.spec().n(), quant.spec().k());
        let (finer, pieces) = (QuantSpec::of(cut(scheme, rows)?, n, k)?, scheme.block[0] / rows);
        let repeated = |tensor: Option<&HostTensor>| -> Vec<u8> {
            let Some(tensor) = tensor else { return Vec::new() };
            let entries = tensor.bytes().len() / tensor.spec().shape().rows().max(1);
            let pieces = (0..n.div_ceil(rows)).map(|row| row / pieces * entries);
            pieces.flat_map(|at| tensor.bytes().get(at..at + entries).unwrap_or_default()).copied().collect()
        };
        let parts = [
            quant.codes().bytes().to_vec(),
            repeated(Some(quant.scale())),
            repeated(quant.offset()),
            repeated(quant.outer()),
            repeated(quant.outer_offset()),
        ];
        Ok(HostWeight::Quant(Box::new(HostQuant::new(*quant.shape(), finer, parts)?)))
    }
}

/// The scheme with blocks of so many rows.
fn cut(scheme: &QuantScheme, rows: usize) -> Result<QuantScheme, OpError> {
    let [whole, columns] = scheme.block;
    if rows == 0 || !whole.is_multiple_of(rows) {
        let what = format!("blocks of {whole} rows cannot be cut into blocks of {rows}");
        return Err(OpError::shape("weight", what));
    }
    Ok(QuantScheme { block: [rows, columns], ..*scheme })
}

fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_ops::{Shape, TensorSpec};

    fn form(scheme: QuantScheme, n: usize, k: usize) -> WeightForm {
        let spec = QuantSpec::of(scheme, n, k).unwrap();
        WeightForm::Quant(Shape::new(&[n, k]).unwrap(), Box::new(spec))
    }

    /// A weight whose every byte is its place.
    fn weight(form: &WeightForm) -> HostWeight {
        let WeightForm::Quant(shape, spec) = form else { panic!("{form:?} has no codes") };
        let bytes = |spec: Option<&TensorSpec>| {
            spec.map_or(Vec::new(), |spec| (0..spec.bytes()).map(|at| (at * 7 % 120) as u8).collect())
        };
        let parts =
            [Some(spec.codes()), Some(spec.scale()), spec.offset(), spec.outer(), spec.outer_offset()];
        let quant = HostQuant::new(*shape, (**spec).clone(), parts.map(bytes)).unwrap();
        HostWeight::Quant(Box::new(quant))
    }

    fn block(rows: usize, columns: usize) -> QuantScheme {
        QuantScheme { block: [rows, columns], ..QuantScheme::F8_BLOCK }
    }

    #[test]
    fn smaller_blocks_stand_for_the_same_numbers() {
        let outer = QuantScheme { block: [6, 32], ..QuantScheme::Q4_K };
        for (scheme, n, k, rows) in [
            (block(6, 8), 20, 20, 3),
            (block(6, 8), 20, 20, 2),
            (block(6, 8), 4, 20, 1),
            (block(128, 128), 200, 130, 8),
            (block(6, 8), 20, 20, 6),
            (block(6, 8), 0, 20, 2),
            (outer, 8, 512, 2),
        ] {
            let form = form(scheme, n, k);
            let (whole, finer) = (weight(&form), weight(&form).in_blocks_of(rows).unwrap());
            let bits =
                |weight: &HostWeight| weight.to_f32().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(&finer), bits(&whole), "{scheme:?} [{n}, {k}] by {rows}");
            let specs: Vec<TensorSpec> = finer.parts().iter().map(|part| *part.spec()).collect();
            assert_eq!(form.in_blocks_of(rows).unwrap().parts(), specs);
        }
    }

    #[test]
    fn blocks_end_at_every_seam() {
        let rows = |forms: &[WeightForm]| WeightForm::rows_between_seams(forms);
        let of = |rows| form(block(128, 128), rows, 200);
        assert_eq!(rows(&[of(256), of(3)]), 128);
        assert_eq!(rows(&[of(192), of(192)]), 64);
        assert_eq!(rows(&[of(8), of(128), of(4)]), 8);
        assert_eq!(rows(&[of(7), of(7)]), 1);
        assert_eq!(rows(&[of(7)]), 128);
        let dense = WeightForm::Dense(TensorSpec::of(portolan_ops::DType::F32, &[7, 200]).unwrap());
        assert_eq!(rows(&[dense.clone(), dense.clone()]), 0);
        assert_eq!(dense.in_blocks_of(0).unwrap(), dense);
        let both = [of(192), of(192)].map(|form| form.in_blocks_of(64).unwrap());
        assert!(WeightForm::concat_rows(&both).unwrap().is_some());
        assert!(of(192).in_blocks_of(48).unwrap_err().to_string().contains("128 rows cannot be cut into"));
        assert!(of(192).in_blocks_of(0).is_err());
    }
}
