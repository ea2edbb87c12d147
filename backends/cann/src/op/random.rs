//! Random numbers. The vendor's generators are others than the contract's, and there is no shift or exclusive or to compose
//! it from on every product: the host draws the numbers, as a function of the call alone, and uploads them.

use super::Native;
use crate::aclnn::{Plan, Run, Soc};
use portolan_core::Call;
use portolan_ops::kernel::{RandomKind, RandomSpec};
use portolan_ops::{Contract, Result, Unsupported};

impl Native for RandomSpec {
    fn plan(&self, _soc: &Soc<'_>) -> Plan {
        Err(Unsupported::HostGenerated)
    }

    /// The host does not know a counter that is on the device.
    fn stands_in(&self, _why: &Unsupported) -> bool {
        self.counter().is_none()
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, out) = (op.spec(), op.require("out")?);
        let numbers = spec.reference(&[]).into_iter().flatten();
        let bytes: Vec<u8> = match spec.kind() {
            RandomKind::Bits => numbers.flat_map(|number| (number as i32).to_le_bytes()).collect(),
            _ => numbers.flat_map(|number| (number as f32).to_le_bytes()).collect(),
        };
        let drawn = run.scratch(out.dtype(), out.dims())?;
        run.upload(&bytes, &drawn)?;
        run.copy(&drawn, &out)
    }
}
