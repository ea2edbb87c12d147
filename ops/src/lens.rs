//! Lengths of the sequences of a ragged batch: on the device, with an optional copy on the host.
//!
//! Every attention operator takes two of them, a state-space operator one; the operator that uses a value names
//! its operand.

use crate::{DType, OpError, Result, TensorSpec, expect_dtype, expect_rank};
use std::sync::Arc;

/// Lengths that live on the device, one per sequence, and what is known of them before a launch.
///
/// The device copy is the truth. `max` bounds every length and sizes loops and scratch; a kernel that
/// meets a negative length or one above `max` reports a data fault. The host copy serves kernels that need
/// numbers on the host, and exact costs.
#[derive(Clone, Debug, PartialEq)]
pub struct LensSpec {
    device: TensorSpec,
    max: u32,
    host: Option<Arc<[u32]>>,
}

impl LensSpec {
    /// Lengths in an I32 tensor `[count]`, none above `max`. `op` and `arg` name the user in messages.
    ///
    /// # Errors
    /// `Shape`, `DType`; `Attribute` when `max` does not fit in an i32.
    pub fn new(op: &'static str, arg: &'static str, device: &TensorSpec, max: u32) -> Result<Self> {
        expect_rank(op, arg, device, 1)?;
        expect_dtype(op, arg, device, &[DType::I32])?;
        if max > i32::MAX as u32 {
            return Err(OpError::attribute(op, arg, format!("may be at most {}, got max {max}", i32::MAX)));
        }
        Ok(Self { device: *device, max, host: None })
    }

    /// Adds the host's copy of the lengths.
    ///
    /// # Errors
    /// `Shape` when their number differs, `Attribute` when one is above `max`.
    pub fn with_host(mut self, op: &'static str, arg: &'static str, host: Arc<[u32]>) -> Result<Self> {
        if host.len() != self.count() {
            return Err(OpError::shape(
                op,
                format!("{arg} has {} lengths on the host and {} on the device", host.len(), self.count()),
            ));
        }
        if let Some((i, len)) = host.iter().enumerate().find(|(_, len)| **len > self.max) {
            return Err(OpError::attribute(
                op,
                arg,
                format!("{i} is {len}, at most {} was stated", self.max),
            ));
        }
        self.host = Some(host);
        Ok(self)
    }

    /// Fails with `Attribute` when the host knows that the lengths add up to more than `tokens`.
    pub(crate) fn expect_fit(&self, op: &'static str, arg: &'static str, tokens: usize) -> Result<()> {
        match self.sum() {
            Some(sum) if sum > tokens as u64 => {
                Err(OpError::attribute(op, arg, format!("add up to {sum}, there are {tokens} tokens")))
            }
            _ => Ok(()),
        }
    }

    /// What the lengths add up to, if the host knows them.
    pub fn sum(&self) -> Option<u64> {
        self.host.as_ref().map(|host| host.iter().map(|&len| u64::from(len)).sum())
    }

    /// The device copy.
    pub fn device(&self) -> &TensorSpec {
        &self.device
    }

    /// Bound of every length.
    pub fn max(&self) -> u32 {
        self.max
    }

    /// The host's copy.
    pub fn host(&self) -> Option<&Arc<[u32]>> {
        self.host.as_ref()
    }

    /// Number of sequences.
    pub fn count(&self) -> usize {
        self.device.dims().first().copied().unwrap_or(0)
    }

    /// Length `i`: the host's copy if there is one, else `max`.
    pub fn bound(&self, i: usize) -> u32 {
        self.host.as_ref().and_then(|host| host.get(i).copied()).unwrap_or(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_copy_must_agree_in_number_and_respect_the_bound() {
        let device = TensorSpec::of(DType::I32, &[2]).unwrap();
        let lens = LensSpec::new("attention", "kv_lens", &device, 7).unwrap();
        assert_eq!(lens.bound(1), 7);
        assert!(lens.clone().with_host("attention", "kv_lens", [1, 2, 3].into()).is_err());
        let e = lens.clone().with_host("attention", "kv_lens", [1, 8].into()).unwrap_err();
        assert_eq!(e.to_string(), "attention: kv_lens 1 is 8, at most 7 was stated");
        assert_eq!(lens.with_host("attention", "kv_lens", [1, 3].into()).unwrap().bound(1), 3);
        assert!(LensSpec::new("attention", "kv_lens", &device, u32::MAX).is_err());
        let wide = TensorSpec::of(DType::I64, &[2]).unwrap();
        assert!(LensSpec::new("attention", "kv_lens", &wide, 7).is_err());
    }
}
