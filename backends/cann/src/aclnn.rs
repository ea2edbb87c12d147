//! The two-phase protocol, once: an operator is planned, gets its workspace, and is enqueued.
//!
//! The first phase checks the arguments and says how much workspace it wants; the second enqueues. The workspace is scratch
//! of the launch, which the pool reuses behind this work and not before it. Executors that may be launched again are kept,
//! with their descriptors, by the stream (`repeat.rs`). The others are used up by the second phase, and nothing that can fail
//! stands before it but the workspace, whose lack is `OutOfMemory`; their descriptors go behind it.

use crate::CannBackend;
use crate::context::OnDevice;
use crate::descriptor::{AclInts, AclScalar, AclTensor, AclTensors, Argument, Blocks, NotMade, View};
use crate::driver::Driver;
use crate::error;
use crate::product::Product;
use crate::queue::CannStream;
use crate::repeat::{self, Key, Made, Planned, Question};
use crate::version::Versions;
use portolan_cann_sys::bindings::{ACL_BOOL, ACL_FLOAT, ACL_INT64, aclOpExecutor, aclnnStatus, aclrtStream};
use portolan_cann_sys::{LoadError, Operators};
use portolan_core::sync::lock;
use portolan_core::{HostBuffer, Launch, Tensor};
use portolan_ops::{DType, Determinism, OpError, Result, TensorSpec, Unsupported};
use std::ffi::c_void;

/// What decides whether the device has a kernel: its product, the symbols of its driver, and what the caller asks.
#[derive(Clone, Copy)]
pub(crate) struct Soc<'a> {
    pub(crate) product: Product,
    pub(crate) operators: &'a Operators,
    pub(crate) determinism: Determinism,
    /// Whether products of f32 may be rounded to f16 where there are no others.
    pub(crate) half_products: bool,
}

/// What to do about a missing symbol.
pub(crate) const NEWER: &str = "install a CANN that has it";

/// What a plan says: nothing, or why there is no kernel.
pub(crate) type Plan = core::result::Result<(), Unsupported>;

impl Soc<'_> {
    /// Whether the driver has an operator's symbol.
    pub(crate) fn has(&self, symbol: &'static str) -> Plan {
        if self.operators.has(symbol) { Ok(()) } else { Err(Unsupported::Symbol(symbol)) }
    }

    /// Whether the driver has a version of an operator that can say what is wanted.
    pub(crate) fn has_version<V: Versions>(&self, says: impl Fn(V) -> bool) -> Plan {
        self.newest(says).map(drop)
    }

    /// Whether the product computes with elements of a type.
    pub(crate) fn computes(&self, dtype: DType) -> Plan {
        let computes = match dtype {
            DType::F32 | DType::F16 | DType::I64 | DType::I32 | DType::I8 | DType::U8 | DType::Bool => true,
            DType::BF16 => self.product != Product::P310,
            _ => false,
        };
        if computes { Ok(()) } else { Err(Unsupported::DType(dtype)) }
    }

    /// Whether the product computes with all of these.
    pub(crate) fn compute_all<'s>(&self, specs: impl IntoIterator<Item = &'s TensorSpec>) -> Plan {
        specs.into_iter().try_for_each(|spec| self.computes(spec.dtype()))
    }

    /// Whether the elements of all these can be moved as they are.
    pub(crate) fn moves<'s>(&self, specs: impl IntoIterator<Item = &'s TensorSpec>) -> Plan {
        specs.into_iter().try_for_each(|spec| View::bits(spec, self.product).map(drop))
    }

    /// Refuses levels that a vendor's kernel does not promise: a row's bits may depend on the rows beside it.
    pub(crate) fn promises_rows(&self) -> Plan {
        match self.determinism {
            Determinism::BatchInvariant => Err(Unsupported::Determinism(self.determinism)),
            _ => Ok(()),
        }
    }
}

impl Driver {
    /// What decides about kernels at a level.
    pub(crate) fn soc(&self, determinism: Determinism) -> Soc<'_> {
        Soc {
            product: self.product(),
            operators: &self.libraries.operators,
            determinism,
            half_products: self.half_products,
        }
    }
}

/// One launch of an operator: it may take several calls of the vendor's.
pub(crate) struct Run<'a, 'l> {
    launch: &'a Launch<'l>,
    driver: &'a Driver,
    /// Where the work goes; nowhere in a rehearsal, which looks for the symbols only.
    target: Option<(&'a CannStream, OnDevice<'a>)>,
}

/// A function's second phase; all have this form.
pub(crate) type Enqueue =
    unsafe extern "C" fn(*mut c_void, u64, *mut aclOpExecutor, aclrtStream) -> aclnnStatus;

impl<'a, 'l> Run<'a, 'l> {
    /// The device is current on this thread afterwards.
    pub(crate) fn begin(backend: &'a CannBackend, launch: &'a Launch<'l>) -> Result<Self> {
        let stream = CannStream::of(launch)?;
        let driver = backend.driver()?;
        let on = stream.enter(driver)?;
        Ok(Self { launch, driver, target: Some((stream, on)) })
    }

    /// A launch on a stream of this device, which is current.
    pub(crate) fn on(
        driver: &'a Driver,
        launch: &'a Launch<'l>,
        stream: &'a CannStream,
        on: OnDevice<'a>,
    ) -> Self {
        Self { launch, driver, target: Some((stream, on)) }
    }

    /// A launch that calls nothing.
    pub(crate) fn rehearse(driver: &'a Driver, launch: &'a Launch<'l>) -> Self {
        Self { launch, driver, target: None }
    }

    /// Whether nothing is to be called.
    pub(crate) fn is_rehearsal(&self) -> bool {
        self.target.is_none()
    }

    pub(crate) fn launch(&self) -> &'a Launch<'l> {
        self.launch
    }

    /// The stream, and its device, which is current; nowhere in a rehearsal.
    pub(crate) fn target(&self) -> Option<(&'a CannStream, &OnDevice<'a>)> {
        self.target.as_ref().map(|(stream, on)| (*stream, on))
    }

    /// Memory at an address as a tensor, its elements as numbers.
    pub(crate) fn memory(&self, spec: &TensorSpec, address: usize) -> Result<AclTensor<'_>> {
        self.at(View::typed(spec), address)
    }

    /// Bytes that a matrix in blocks has, as that.
    pub(crate) fn blocks(&self, bytes: &Tensor, blocks: Blocks) -> Result<AclTensor<'_>> {
        self.at(View::blocks(blocks), bytes.buffer().address() + bytes.spec().byte_range().0)
    }

    /// Bytes that a matrix in blocks will have, as the rows that it is made from in its place.
    pub(crate) fn to_be_blocks(&self, bytes: &Tensor, blocks: Blocks) -> Result<AclTensor<'_>> {
        self.at(View::to_be_blocks(blocks), bytes.buffer().address() + bytes.spec().byte_range().0)
    }

    /// Copies bytes of the host into a tensor whose elements lie one behind the other.
    pub(crate) fn upload(&self, bytes: &[u8], tensor: &Tensor) -> Result<()> {
        let Some((stream, _)) = &self.target else { return Ok(()) };
        let address = tensor.buffer().address() + tensor.spec().byte_range().0;
        stream.upload(self.launch, &HostBuffer::from_bytes(bytes)?, address)
    }

    pub(crate) fn operators(&self) -> &'a Operators {
        &self.driver.libraries.operators
    }

    /// What decides about kernels.
    pub(crate) fn soc(&self) -> Soc<'_> {
        self.driver.soc(self.launch.determinism())
    }

    /// The version of an operator to call: the plan's, asked for again.
    pub(crate) fn newest<V: Versions>(&self, says: impl Fn(V) -> bool) -> Result<V> {
        let launch = self.launch;
        self.soc().newest(says).map_err(|why| launch.unsupported(launch.op_name(), why, NEWER))
    }

    /// The error for a function the driver does not have.
    pub(crate) fn missing(&self, missing: LoadError) -> OpError {
        let reason = match missing {
            LoadError::Symbol { symbol, .. } => Unsupported::Symbol(symbol),
            LoadError::Library { name, .. } => Unsupported::Symbol(name),
        };
        OpError::Unsupported {
            op: self.launch.op_name(),
            device: self.launch.device().id(),
            reason,
            hint: NEWER.into(),
        }
    }

    fn made<T>(&self, made: core::result::Result<T, NotMade>) -> Result<T> {
        made.map_err(|why| match why {
            NotMade::Missing(missing) => self.missing(missing),
            NotMade::Refused(function) => {
                let message = self.driver.libraries.recent_message().unwrap_or_default();
                OpError::internal(self.launch.op_name(), format!("{function} gave nothing: {message}"))
            }
        })
    }

    fn at(&self, view: core::result::Result<View, Unsupported>, address: usize) -> Result<AclTensor<'_>> {
        let view = view.map_err(|why| {
            self.launch.unsupported(self.launch.op_name(), why, "cast to a type that the device has")
        })?;
        Ok(self.driver.tensor(view, address))
    }

    fn viewed(
        &self,
        view: core::result::Result<View, Unsupported>,
        tensor: &Tensor,
    ) -> Result<AclTensor<'_>> {
        self.at(view, tensor.buffer().address())
    }

    /// The tensor, its elements as numbers.
    pub(crate) fn tensor(&self, tensor: &Tensor) -> Result<AclTensor<'_>> {
        self.viewed(View::typed(tensor.spec()), tensor)
    }

    /// The tensor, its last two dimensions exchanged.
    pub(crate) fn turned(&self, tensor: &Tensor) -> Result<AclTensor<'_>> {
        self.viewed(View::turned(tensor.spec()), tensor)
    }

    /// The tensor, its elements as bits to be moved.
    pub(crate) fn bits(&self, tensor: &Tensor) -> Result<AclTensor<'_>> {
        self.viewed(View::bits(tensor.spec(), self.driver.product()), tensor)
    }

    /// The bytes of elements of at most 8 bits, as numbers.
    pub(crate) fn stored(&self, tensor: &Tensor) -> Result<AclTensor<'_>> {
        self.viewed(View::stored(tensor.spec()), tensor)
    }

    /// Several tensors.
    pub(crate) fn tensors(&self, tensors: &[&Tensor]) -> Result<AclTensors<'_>> {
        let members = tensors.iter().map(|tensor| self.tensor(tensor)).collect::<Result<_>>()?;
        Ok(self.list(members))
    }

    /// Several descriptors as one.
    pub(crate) fn list<'b>(&'b self, members: Vec<AclTensor<'b>>) -> AclTensors<'b> {
        self.driver.tensors(members)
    }

    /// A number for elements of `dtype`: f32 for floats, whole otherwise.
    pub(crate) fn scalar(&self, dtype: DType, value: f64) -> Result<AclScalar<'_>> {
        let driver = self.driver;
        Ok(match dtype {
            DType::Bool => driver.scalar([u8::from(value != 0.0)], ACL_BOOL),
            dtype if dtype.is_int() => driver.scalar((value as i64).to_le_bytes(), ACL_INT64),
            _ => driver.scalar((value as f32).to_le_bytes(), ACL_FLOAT),
        })
    }

    /// Numbers that stay on the host.
    pub(crate) fn ints(&self, values: &[i64]) -> Result<AclInts<'_>> {
        Ok(self.driver.ints(values))
    }

    /// Memory for this launch alone.
    pub(crate) fn scratch(&self, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        self.launch.scratch(&TensorSpec::of(dtype, dims)?)
    }

    /// Both phases: the first is left out where an executor of the same question is kept, and pointed at these tensors.
    pub(crate) fn call(
        &self,
        symbols: [&'static str; 2],
        enqueue: Enqueue,
        arguments: &[&dyn Argument],
        plan: impl FnOnce(&mut u64, &mut *mut aclOpExecutor) -> aclnnStatus,
    ) -> Result<()> {
        let Some((stream, on)) = &self.target else { return Ok(()) };
        let kept = match stream.is_recorded() || !repeat::is_known(self.driver) {
            true => None,
            false => Question::of(symbols[1]).map(|mut question| {
                arguments.iter().for_each(|argument| argument.describe(&mut question));
                question.asked()
            }),
        };
        let found = kept.as_ref().and_then(|(key, _)| lock(&stream.executors).take(key));
        if let (Some((_, addresses)), Some(mut planned)) = (&kept, found) {
            let pointed = planned.point_at(addresses);
            let (executor, bytes) = planned.executor();
            let done = pointed.and_then(|()| self.enqueue((symbols[1], enqueue), bytes, executor));
            match kept.filter(|_| done.is_ok()) {
                Some((key, _)) => stream.keep(key, planned),
                None => stream.release(planned),
            }
            return done;
        }
        arguments.iter().try_for_each(|argument| self.made(argument.make()))?;
        let (mut bytes, mut executor) = (0, core::ptr::null_mut());
        let planned = plan(&mut bytes, &mut executor);
        let checked = self.driver.libraries.check(symbols[0], planned);
        checked.map_err(|failed| error::driver(on.device, failed))?;
        let repeatable = kept.and_then(|(key, _)| self.repeatable((executor, bytes), key, arguments));
        let done = self.enqueue((symbols[1], enqueue), bytes, executor);
        match (repeatable, &done) {
            (Some((key, planned)), Ok(())) => stream.keep(key, planned),
            (Some((_, planned)), Err(_)) => stream.release(planned),
            (None, _) => {}
        }
        done
    }

    /// An executor for more than one launch, with its descriptors, where the driver repeats this operator.
    fn repeatable(
        &self,
        (executor, bytes): (*mut aclOpExecutor, u64),
        key: Key,
        arguments: &[&dyn Argument],
    ) -> Option<(Key, Planned)> {
        let (stream, on) = self.target.as_ref()?;
        if !lock(&stream.executors).may_repeat(&key) {
            return None;
        }
        if let Made::Once = repeat::make_repeatable(self.driver, executor) {
            lock(&stream.executors).is_once(&key);
            return None;
        }
        let (mut slots, mut kept) = (Vec::new(), Vec::new());
        let operands = arguments.iter().filter(|argument| argument.is_operand());
        operands.enumerate().for_each(|(operand, argument)| argument.slots(operand, &mut slots));
        arguments.iter().for_each(|argument| argument.keep(&mut kept));
        Some((key, Planned::new(on, (executor, bytes), slots, kept)))
    }

    /// The second phase: the workspace that the first asked for, and the call that enqueues.
    fn enqueue(
        &self,
        (symbol, enqueue): (&'static str, Enqueue),
        bytes: u64,
        executor: *mut aclOpExecutor,
    ) -> Result<()> {
        let Some((to, on)) = &self.target else { return Ok(()) };
        let libraries = &self.driver.libraries;
        let workspace = match usize::try_from(bytes).unwrap_or(usize::MAX) {
            0 => None,
            bytes => Some(self.scratch(DType::U8, &[bytes])?),
        };
        let address = workspace.as_ref().map_or(0, |workspace| workspace.buffer().address());
        to.submit(self.launch, |stream| {
            let address = core::ptr::without_provenance_mut(address);
            // SAFETY: an executor of this function's first phase, launched once unless it was made repeatable; so much
            // device memory as it asked for, which stream order protects until this work is done; a living stream of
            // the current device.
            let code = unsafe { enqueue(address, bytes, executor, stream) };
            libraries.check(symbol, code).map_err(|failed| error::driver(on.device, failed))
        })
    }
}

/// Runs an operator: both phases' symbols, then the arguments of the first, which get names in C's order.
macro_rules! aclnn {
    ($run:expr, $plan:ident, $enqueue:ident, $($arg:expr),* $(,)?) => {
        $crate::aclnn::aclnn!(@ ($run, $plan, $enqueue) [] [
            a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 a10 a11 a12 a13 a14 a15 a16 a17 a18 a19 a20 a21 a22 a23 a24 a25 a26 a27 a28 a29
            a30 a31 a32 a33 a34 a35 a36 a37 a38 a39 a40 a41 a42 a43 a44 a45 a46 a47 a48 a49 a50 a51 a52 a53 a54 a55
        ] $($arg,)*)
    };
    (@ $call:tt [$($bound:tt)*] [$name:ident $($names:ident)*] $arg:expr, $($rest:tt)*) => {
        $crate::aclnn::aclnn!(@ $call [$($bound)* ($name $arg)] [$($names)*] $($rest)*)
    };
    (@ ($run:expr, $plan:ident, $enqueue:ident) [$(($name:ident $arg:expr))*] [$($unused:ident)*]) => {{
        let run: &$crate::aclnn::Run<'_, '_> = $run;
        let operators = run.operators();
        match (operators.$plan(), operators.$enqueue()) {
            (Ok(_), Ok(_)) if run.is_rehearsal() => Ok(()),
            (Ok(plan), Ok(enqueue)) => {
                let ($($name,)*) = ($(&$arg,)*);
                run.call(
                    [stringify!($plan), stringify!($enqueue)],
                    enqueue,
                    &[$($name as &dyn $crate::descriptor::Argument),*],
                    // SAFETY: arguments of the types that the vendor declares, made by now, which live to the end of
                    // this block or as long as the executor; places for the results, which are written. The device is
                    // current.
                    |bytes, executor| unsafe { plan($($crate::descriptor::Arg::raw($name),)* bytes, executor) },
                )
            }
            (Err(missing), _) | (_, Err(missing)) => Err(run.missing(missing)),
        }
    }};
}
pub(crate) use aclnn;
