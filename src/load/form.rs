//! A weight without its elements: element type or scheme, and extents. What a file's head says of a tensor, and all
//! that a device without data needs of it.

use portolan_ops::quant::{QuantScheme, QuantSpec};
use portolan_ops::{OpError, Shape, TensorSpec};

/// How a weight is held: a [`HostWeight`](super::HostWeight) without its bytes.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub enum WeightForm {
    /// Plain elements.
    Dense(TensorSpec),
    /// Codes and scales. The shape is the file's; the parts have its leading extents as one.
    Quant(Shape, Box<QuantSpec>),
}

impl WeightForm {
    /// Extents as the file has them.
    pub fn shape(&self) -> &Shape {
        match self {
            WeightForm::Dense(spec) => spec.shape(),
            WeightForm::Quant(shape, _) => shape,
        }
    }

    /// The scheme of codes and scales.
    pub fn scheme(&self) -> Option<&QuantScheme> {
        match self {
            WeightForm::Dense(_) => None,
            WeightForm::Quant(_, spec) => Some(spec.scheme()),
        }
    }

    /// Its tensors, in the order of [`portolan_ops::quant::WeightSpec::visit`].
    pub fn parts(&self) -> Vec<TensorSpec> {
        match self {
            WeightForm::Dense(spec) => vec![*spec],
            WeightForm::Quant(_, spec) => {
                let parts = [
                    Some(spec.codes()),
                    Some(spec.scale()),
                    spec.offset(),
                    spec.outer(),
                    spec.outer_offset(),
                ];
                parts.into_iter().flatten().copied().collect()
            }
        }
    }

    /// Bytes of all of its tensors.
    pub fn bytes(&self) -> usize {
        self.parts().iter().map(TensorSpec::bytes).sum()
    }

    /// The rows of several weights as one weight; `None` when element types or schemes differ, or rows of one would
    /// share a block with its neighbour's.
    ///
    /// # Errors
    /// `Shape` when rows are not all of one length.
    pub fn concat_rows(forms: &[WeightForm]) -> Result<Option<WeightForm>, OpError> {
        let (first, others) = match forms {
            [] => return Ok(None),
            [one] => return Ok(Some(one.clone())),
            [first, others @ ..] => (first, others),
        };
        let k = first.shape().last();
        if let Some(other) = others.iter().find(|form| form.shape().last() != k) {
            let what = format!("rows of {} and {k} cannot stand in one weight", other.shape().last());
            return Err(OpError::shape("weight", what));
        }
        let rows = forms.iter().map(|form| form.shape().rows()).sum();
        Ok(match first {
            WeightForm::Dense(spec) => {
                let alike =
                    |form: &WeightForm| matches!(form, WeightForm::Dense(s) if s.dtype() == spec.dtype());
                let spec = TensorSpec::of(spec.dtype(), &[rows, k])?;
                others.iter().all(alike).then_some(WeightForm::Dense(spec))
            }
            WeightForm::Quant(_, spec) => {
                let scheme = *spec.scheme();
                let alike = others.iter().all(|form| form.scheme() == Some(&scheme));
                let whole = |form: &WeightForm| form.shape().rows().is_multiple_of(scheme.block[0]);
                if !alike || !forms[..forms.len() - 1].iter().all(whole) {
                    return Ok(None);
                }
                let spec = Box::new(QuantSpec::of(scheme, rows, k)?);
                Some(WeightForm::Quant(Shape::new(&[rows, k])?, spec))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_ops::DType;

    fn dense(dtype: DType, dims: &[usize]) -> WeightForm {
        WeightForm::Dense(TensorSpec::of(dtype, dims).unwrap())
    }

    fn q8_0(n: usize, k: usize) -> WeightForm {
        let spec = QuantSpec::of(QuantScheme::Q8_0, n, k).unwrap();
        WeightForm::Quant(Shape::new(&[n, k]).unwrap(), Box::new(spec))
    }

    #[test]
    fn rows_of_one_format_are_one_weight() {
        let joined = |forms: &[WeightForm]| WeightForm::concat_rows(forms).unwrap();
        let (a, b) = (dense(DType::BF16, &[4, 64]), dense(DType::BF16, &[2, 64]));
        assert_eq!(joined(&[a.clone(), b]), Some(dense(DType::BF16, &[6, 64])));
        assert_eq!(joined(&[q8_0(4, 64), q8_0(2, 64)]), Some(q8_0(6, 64)));
        let blocks = |n: usize| {
            let spec = QuantSpec::of(QuantScheme::F8_BLOCK, n, 200).unwrap();
            WeightForm::Quant(Shape::new(&[n, 200]).unwrap(), Box::new(spec))
        };
        assert_eq!(joined(&[blocks(128), blocks(256), blocks(3)]), Some(blocks(387)));
        assert_eq!(joined(&[blocks(128), blocks(3), blocks(128)]), None);
        // 34 bytes for 32 elements.
        assert_eq!(q8_0(6, 64).bytes(), 6 * 64 / 32 * 34);
        for other in [dense(DType::F16, &[2, 64]), q8_0(2, 64)] {
            assert_eq!(joined(&[a.clone(), other]), None);
        }
        assert_eq!(joined(std::slice::from_ref(&a)), Some(a.clone()));
        assert_eq!(joined(&[]), None);
        assert!(WeightForm::concat_rows(&[a, dense(DType::BF16, &[2, 32])]).is_err());
    }
}
