//! What the tests of the contract share: an open device, ways to fail, and work that takes its time.

use portolan_core::call::{Binary, Copy, Gather};
use portolan_core::{Backend, Device, Registry, Stream, StreamOptions, Tensor};
use portolan_ops::{DType, OpError, Shape, TensorSpec, Unsupported};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Why a test of the contract stopped.
#[derive(Clone, Debug)]
pub(crate) enum Stop {
    /// The device cannot do what the test is made of.
    Unsupported(String),
    /// The contract does not hold.
    Broken(String),
}

impl From<OpError> for Stop {
    fn from(error: OpError) -> Self {
        match error {
            OpError::Unsupported { .. } => Stop::Unsupported(error.to_string()),
            error => Stop::Broken(error.to_string()),
        }
    }
}

/// What a test of the contract ends with.
pub(crate) type Check<T = ()> = Result<T, Stop>;

/// Ends the test as broken unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err($crate::rig::Stop::Broken(format!($($what)+)));
        }
    };
}
pub(crate) use ensure;

/// Ends the test as broken unless both are equal.
macro_rules! ensure_eq {
    ($got:expr, $want:expr, $($what:tt)+) => {{
        let (got, want) = (&$got, &$want);
        $crate::rig::ensure!(got == want, "{}: got {got:?}, want {want:?}", format_args!($($what)+));
    }};
}
pub(crate) use ensure_eq;

/// The error of a call that has to fail.
pub(crate) fn refused<T>(result: Result<T, OpError>, what: &str) -> Check<OpError> {
    match result {
        Ok(_) => Err(Stop::Broken(format!("{what} was not refused"))),
        Err(error) => Ok(error),
    }
}

/// How long delayed work lasts at least: far longer than a host takes to enqueue what races with it.
const LATE: Duration = Duration::from_millis(8);
/// Elements of the tensors that delay.
const DELAY_LEN: usize = 1 << 16;

/// A freshly opened device.
pub(crate) struct Rig {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) device: Device,
    /// Whether the device tells of a fault when one waits, and no earlier.
    pub(crate) tells_late: bool,
    delays: OnceLock<usize>,
}

impl Rig {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Result<Self, OpError> {
        Self::on(backend, 0)
    }

    /// On the first device, which may tell of faults late.
    pub(crate) fn telling(backend: Arc<dyn Backend>, tells_late: bool) -> Result<Self, OpError> {
        Ok(Self { tells_late, ..Self::on(backend, 0)? })
    }

    /// On one of several devices.
    pub(crate) fn on(backend: Arc<dyn Backend>, ordinal: usize) -> Result<Self, OpError> {
        let name = format!("{}:{ordinal}", backend.name());
        let device = Registry::new().with(backend.clone()).open(&name)?;
        Ok(Self { backend, device, tells_late: false, delays: OnceLock::new() })
    }

    /// A stream whose waits end: work that is lost is a failure and not a hang.
    pub(crate) fn stream(&self) -> Result<Stream, OpError> {
        self.stream_with(StreamOptions::default())
    }

    pub(crate) fn stream_with(&self, options: StreamOptions) -> Result<Stream, OpError> {
        self.device.stream(StreamOptions { timeout: Duration::from_secs(60), ..options })
    }

    /// Whether results can be looked at.
    pub(crate) fn keeps_data(&self) -> bool {
        self.device.info().keeps_data
    }

    /// Work for `stream` that takes about [`LATE`] on this device, ready to be enqueued.
    pub(crate) fn delay(&self, stream: &Stream) -> Check<Delay> {
        let spec = f32s(DELAY_LEN)?;
        let (x, out) = (stream.upload(&vec![1f32; DELAY_LEN], spec.shape())?, stream.empty(&spec)?);
        let mut delay = Delay { x, out, times: 1 };
        delay.times = match self.delays.get() {
            Some(times) => *times,
            None => {
                let times = delay.calibrate(stream)?;
                *self.delays.get_or_init(|| times)
            }
        };
        stream.synchronize()?;
        Ok(delay)
    }

    /// Enqueues work that takes its time.
    pub(crate) fn keep_busy(&self, stream: &Stream) -> Check {
        Ok(self.delay(stream)?.run(stream)?)
    }

    /// Copies `x` to `out` after a while.
    pub(crate) fn slow_copy(&self, stream: &Stream, x: &Tensor, out: &Tensor) -> Check {
        self.keep_busy(stream)?;
        Ok(stream.run(Copy::new(x, &mut out.clone())?)?)
    }
}

/// Operators that keep a stream busy, over tensors of their own.
pub(crate) struct Delay {
    x: Tensor,
    out: Tensor,
    times: usize,
}

impl Delay {
    pub(crate) fn run(&self, stream: &Stream) -> Result<(), OpError> {
        (0..self.times).try_for_each(|_| stream.run(Binary::add(&self.x, &self.x, &mut self.out.clone())?))
    }

    /// How many operators take [`LATE`]: by the quicker of two trials, because a trial may be interrupted.
    fn calibrate(&mut self, stream: &Stream) -> Result<usize, OpError> {
        loop {
            let mut quickest = Duration::MAX;
            for _ in 0..2 {
                stream.synchronize()?;
                let start = Instant::now();
                self.run(stream)?;
                stream.synchronize()?;
                quickest = quickest.min(start.elapsed());
            }
            if quickest >= LATE || self.times >= 1 << 12 {
                return Ok(self.times);
            }
            self.times *= 2;
        }
    }
}

pub(crate) fn f32s(n: usize) -> Result<TensorSpec, OpError> {
    TensorSpec::of(DType::F32, &[n])
}

pub(crate) fn up(stream: &Stream, data: &[f32]) -> Result<Tensor, OpError> {
    stream.upload(data, &Shape::new(&[data.len()])?)
}

pub(crate) fn down(stream: &Stream, x: &Tensor) -> Result<Vec<f32>, OpError> {
    stream.download::<f32>(x)?.wait()
}

/// Ends the test as broken unless the tensor holds these values; for checks beside a test's own point, so that
/// the rest of it goes for devices without data too, where reading has to be refused for that reason.
pub(crate) fn ensure_holds(stream: &Stream, x: &Tensor, want: &[f32], what: &str) -> Check {
    if stream.device().info().keeps_data {
        ensure_eq!(down(stream, x)?, want, "{what}");
        return Ok(());
    }
    match refused(down(stream, x), what)? {
        OpError::Unsupported { reason: Unsupported::NoData, .. } => Ok(()),
        error => Err(Stop::Broken(format!("{what}: reading from a device without data gave: {error}"))),
    }
}

/// Ends the test as unsupported on a device without data.
pub(crate) fn expect_data(stream: &Stream) -> Result<(), OpError> {
    let device = stream.device();
    if device.info().keeps_data {
        return Ok(());
    }
    let (reason, hint) = (Unsupported::NoData, "this test is about data".into());
    Err(OpError::Unsupported { op: "test".into(), device: device.id(), reason, hint })
}

/// A gather that asks for row 9 of 4: legal to launch, a fault when it runs. Its output.
///
/// # Errors
/// `Unsupported` on a device without data, where no row can be missing.
pub(crate) fn launch_fault(stream: &Stream) -> Result<Tensor, OpError> {
    expect_data(stream)?;
    let x = stream.upload(&[1f32; 8], &Shape::new(&[4, 2])?)?;
    let index = stream.upload(&[0i32, 9], &Shape::new(&[2])?)?;
    let mut out = stream.empty(&TensorSpec::of(DType::F32, &[2, 2])?)?;
    stream.run(Gather::slices(&x, 0, &index, &mut out)?)?;
    Ok(out)
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % n.max(1) as u64) as usize
    }
}
