//! What the tests of the contract share: devices with a chosen executor, and kernels that are slow, faulty or
//! curious on purpose.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use portolan_core::call::Gather;
use portolan_core::{CustomOp, Device, Registry, Stream, StreamOptions, Tensor};
use portolan_cpu::{CpuBackend, CpuKernel, CpuOperand, CpuOptions, Executor};
use portolan_ops::{Access, Cost, DType, Result, Shape, TensorSpec, Tolerance};
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn device_with(options: CpuOptions) -> Device {
    Registry::new().with(CpuBackend::new(options).unwrap()).open("cpu").unwrap()
}

pub(crate) fn device(executor: Executor) -> Device {
    device_with(CpuOptions {
        executor,
        threads: Some(1),
        memory_limit: Some(1 << 30),
        ..CpuOptions::default()
    })
}

pub(crate) fn queued() -> Device {
    device(Executor::Queued)
}

/// The queued executor, and the chaotic one under `seeds` seeds.
pub(crate) fn racing(seeds: u64) -> impl Iterator<Item = (Executor, Device)> {
    let chaotic = (0..seeds).map(|seed| Executor::Chaotic { seed });
    [Executor::Queued].into_iter().chain(chaotic).map(|executor| (executor, device(executor)))
}

pub(crate) fn every_executor() -> impl Iterator<Item = Device> {
    [Executor::Inline, Executor::Queued, Executor::Chaotic { seed: 3 }].into_iter().map(device)
}

pub(crate) fn stream(device: &Device) -> Stream {
    device.stream(StreamOptions::default()).unwrap()
}

pub(crate) fn f32s(n: usize) -> TensorSpec {
    TensorSpec::of(DType::F32, &[n]).unwrap()
}

pub(crate) fn up(stream: &Stream, data: &[f32]) -> Tensor {
    stream.upload(data, &Shape::new(&[data.len()]).unwrap()).unwrap()
}

pub(crate) fn down(stream: &Stream, x: &Tensor) -> Vec<f32> {
    stream.download::<f32>(x).unwrap().wait().unwrap()
}

/// A custom operator with a kernel for the CPU; the reference is never asked.
pub(crate) fn custom(
    name: &'static str,
    operands: Vec<(Tensor, Access)>,
    kernel: impl Fn(&mut [CpuOperand<'_>]) -> Result<()> + Send + Sync + 'static,
) -> CustomOp {
    let reference = Arc::new(|_: &[&[f64]]| Vec::new());
    let op = CustomOp::new(name, operands, Cost::default(), Tolerance::EXACT, reference).unwrap();
    op.with_kernel("cpu", CpuKernel::new(kernel).into())
}

/// Copies `x` to `out` after a while.
pub(crate) fn slow_copy(x: &Tensor, out: &Tensor, delay: Duration) -> CustomOp {
    let operands = vec![(x.clone(), Access::Read), (out.clone(), Access::Write)];
    custom("slow_copy", operands, move |operands| {
        std::thread::sleep(delay);
        let [x, out] = operands else { unreachable!() };
        out.write::<f32>()?.copy_from_slice(x.read::<f32>()?);
        Ok(())
    })
}

/// Writes nothing, after a while.
pub(crate) fn sleeper(out: &Tensor, delay: Duration) -> CustomOp {
    custom("sleeper", vec![(out.clone(), Access::ReadWrite)], move |_| {
        std::thread::sleep(delay);
        Ok(())
    })
}

/// A gather that asks for row 9 of 4: legal to launch, a fault when it runs. Its output.
pub(crate) fn launch_fault(stream: &Stream) -> Result<Tensor> {
    let x = stream.upload(&[1f32; 8], &Shape::new(&[4, 2])?)?;
    let index = stream.upload(&[0i32, 9], &Shape::new(&[2])?)?;
    let mut out = stream.empty(&TensorSpec::of(DType::F32, &[2, 2])?)?;
    stream.run(Gather::slices(&x, 0, &index, &mut out)?)?;
    Ok(out)
}
