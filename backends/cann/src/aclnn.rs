//! The two-phase protocol, once: an operator is planned, gets its workspace, and is enqueued.
//!
//! The first phase checks the arguments and says how much workspace it wants; the second enqueues and uses the
//! executor up. The workspace is scratch of the launch, which the pool reuses behind this work and not before it.
//! Descriptors are lent to both and go afterwards. An executor that was planned is always launched: nothing that can
//! fail stands between the phases but the workspace, whose lack is `OutOfMemory`.

use crate::CannBackend;
use crate::context::OnDevice;
use crate::descriptor::{AclInts, AclScalar, AclTensor, AclTensors, NotMade, View};
use crate::driver::Driver;
use crate::error;
use crate::product::Product;
use crate::queue::CannStream;
use portolan_cann_sys::bindings::{ACL_BOOL, ACL_FLOAT, ACL_INT64, aclOpExecutor, aclnnStatus, aclrtStream};
use portolan_cann_sys::{LoadError, Operators};
use portolan_core::{HostBuffer, Launch, Tensor};
use portolan_ops::{DType, Determinism, OpError, Result, TensorSpec, Unsupported};
use std::ffi::c_void;

/// What decides whether the device has a kernel: its product, the symbols of its driver, and what the caller asks.
#[derive(Clone, Copy)]
pub(crate) struct Soc<'a> {
    pub(crate) product: Product,
    pub(crate) operators: &'a Operators,
    pub(crate) determinism: Determinism,
}

/// What a plan says: nothing, or why there is no kernel.
pub(crate) type Plan = core::result::Result<(), Unsupported>;

impl Soc<'_> {
    /// Whether the driver has an operator's symbol.
    pub(crate) fn has(&self, symbol: &'static str) -> Plan {
        if self.operators.has(symbol) { Ok(()) } else { Err(Unsupported::Symbol(symbol)) }
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
        Soc { product: self.product(), operators: &self.libraries.operators, determinism }
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
        let view = View::typed(spec).map_err(|why| {
            self.launch.unsupported(self.launch.op_name(), why, "cast to a type that the device has")
        })?;
        self.made(self.driver.tensor(&view, address))
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
            hint: "install a CANN that has it".into(),
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

    fn viewed(
        &self,
        view: core::result::Result<View, Unsupported>,
        tensor: &Tensor,
    ) -> Result<AclTensor<'_>> {
        let view = view.map_err(|why| {
            self.launch.unsupported(self.launch.op_name(), why, "cast to a type that the device has")
        })?;
        self.made(self.driver.tensor(&view, tensor.buffer().address()))
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
        self.list(tensors.iter().map(|tensor| self.tensor(tensor)).collect::<Result<_>>()?)
    }

    /// Several descriptors as one.
    pub(crate) fn list(&self, members: Vec<AclTensor<'_>>) -> Result<AclTensors<'_>> {
        self.made(self.driver.tensors(members))
    }

    /// A number for elements of `dtype`: f32 for floats, whole otherwise.
    pub(crate) fn scalar(&self, dtype: DType, value: f64) -> Result<AclScalar<'_>> {
        let driver = self.driver;
        self.made(match dtype {
            DType::Bool => driver.scalar(value != 0.0, ACL_BOOL),
            dtype if dtype.is_int() => driver.scalar(value as i64, ACL_INT64),
            _ => driver.scalar(value as f32, ACL_FLOAT),
        })
    }

    /// Numbers that stay on the host.
    pub(crate) fn ints(&self, values: &[i64]) -> Result<AclInts<'_>> {
        self.made(self.driver.ints(values))
    }

    /// Memory for this launch alone.
    pub(crate) fn scratch(&self, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        self.launch.scratch(&TensorSpec::of(dtype, dims)?)
    }

    /// The second phase: the workspace that the first asked for, and the call that enqueues.
    pub(crate) fn enqueue(
        &self,
        planned: (&'static str, aclnnStatus),
        enqueue: (&'static str, Enqueue),
        bytes: u64,
        executor: *mut aclOpExecutor,
    ) -> Result<()> {
        let Some((to, on)) = &self.target else { return Ok(()) };
        let libraries = &self.driver.libraries;
        let failed = |failed| error::driver(on.device, failed);
        libraries.check(planned.0, planned.1).map_err(failed)?;
        let workspace = match usize::try_from(bytes).unwrap_or(usize::MAX) {
            0 => None,
            bytes => Some(self.scratch(DType::U8, &[bytes])?),
        };
        let address = workspace.as_ref().map_or(0, |workspace| workspace.buffer().address());
        to.submit(self.launch, |stream| {
            let address = core::ptr::without_provenance_mut(address);
            // SAFETY: the executor of this function's first phase, launched once; so much device memory as it asked
            // for, which stream order protects until this work is done; a living stream of the current device.
            let code = unsafe { enqueue.1(address, bytes, executor, stream) };
            libraries.check(enqueue.0, code).map_err(failed)
        })
    }
}

/// Runs an operator: both phases' symbols, then the arguments of the first.
macro_rules! aclnn {
    ($run:expr, $plan:ident, $enqueue:ident, $($arg:expr),* $(,)?) => {{
        let run: &$crate::aclnn::Run<'_, '_> = $run;
        let operators = run.operators();
        match (operators.$plan(), operators.$enqueue()) {
            (Ok(_), Ok(_)) if run.is_rehearsal() => Ok(()),
            (Ok(plan), Ok(enqueue)) => {
                let (mut bytes, mut executor) = (0u64, core::ptr::null_mut());
                // SAFETY: arguments of the types that the vendor declares, which live to the end of this block, behind
                // both phases; places of our own for the results, read when the first phase has written them. The
                // device is current.
                unsafe {
                    run.enqueue(
                        (
                            stringify!($plan),
                            plan($( $crate::descriptor::Arg::raw(&$arg), )* &mut bytes, &mut executor),
                        ),
                        (stringify!($enqueue), enqueue),
                        bytes,
                        executor,
                    )
                }
            }
            (Err(missing), _) | (_, Err(missing)) => Err(run.missing(missing)),
        }
    }};
}
pub(crate) use aclnn;
