//! The two-phase protocol: how a function from arguments to a checked plan becomes an operator's two symbols.
//!
//! An operator's row (see `op`) says its name and its phase-1 parameters; [`symbols!`] makes the two exported functions
//! of it, and the [`Kind`] of each parameter reads what C hands over:
//!
//! | kind | in C | held |
//! | --- | --- | --- |
//! | `T`, `S`, `TL`, `IA` | `aclTensor*`, `aclScalar*`, `aclTensorList*`, `aclIntArray*` | what they describe |
//! | `Str` | `char*` | `String` |
//! | `i8 i32 i64 u64 f64 bool` | the same; `int` and the enumerations are `i32` | the same |
//! | `Opt<X>` of a pointer | NULL means absent | `Option<…>` |
//!
//! A NULL that is not `Opt` is refused with 161001 before anything is planned, a destroyed or foreign handle with 161002.
//! Whether C says `const` makes no difference to the ABI, so a row does not say it.
//!
//! # A plan
//! [`Plan::new`] takes the closure that computes, once per launch, when the stream gets there. Operands are numbered in
//! the order of the `reads`, `writes` and `updates` calls; a tensor list adds its members in order. The closure sees
//! them as [`Operand`]s: the tensor's description, and its storage mapped into the host's memory, checked to lie in one
//! living allocation. It may touch nothing else: what it needs of scalars and arrays it takes along. Data it cannot work
//! with (an index out of range) is `Fail::kernel(…)`, which surfaces where the vendor's do, at a synchronise.
//! [`Plan::workspace`] asks for that many bytes; they come as [`Run::workspace`], filled with poison.
//!
//! Everything else of the protocol is here, once: NULL outputs, the executor that runs exactly once, the workspace's
//! address, size and alignment, the alignment of tensors, descriptors destroyed too early, the call log, planned faults.

use crate::call::{Call, Show, begin};
use crate::collective::{Place, Share};
use crate::error::{Fail, Result, code};
use crate::executor::Executor;
use crate::memory::{ALIGNMENT, POISON};
use crate::mistake::Plain;
use crate::op::Parcel;
use crate::order::Touch;
use crate::profile::Profile;
use crate::stream::Work;
use crate::tensor::{Descriptor, Scalar, Tensor, lookup, register, unregister};
use crate::tolerance::Rule;
use crate::world::{State, World, world};
use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

/// What a plan function may depend on beside its arguments.
pub(crate) struct Context {
    /// The product whose rules hold.
    pub(crate) profile: Profile,
    /// Rules that may be broken.
    pub(crate) tolerated: Vec<Rule>,
}

/// What a launch of an operator will touch and do.
pub(crate) struct Plan {
    pub(crate) operands: Vec<(Tensor, Access)>,
    /// The operator's tensors and lists of them, in order, with the numbers of their operands: none for what is left out.
    pub(crate) parameters: Vec<(Access, Vec<usize>)>,
    pub(crate) workspace: usize,
    pub(crate) repeatable: bool,
    pub(crate) body: Arc<Body>,
    /// The group that computes, where it is not one device alone.
    pub(crate) together: Option<Arc<Together>>,
}

/// One rank's side of an operator with communication in it.
pub(crate) struct Together {
    pub(crate) group: String,
    pub(crate) rank: i64,
    pub(crate) size: i64,
    /// Bytes that the communicator's buffer has to have.
    pub(crate) buffer: usize,
    /// What has to be the same on every rank.
    pub(crate) agreed: Vec<i64>,
    pub(crate) give: Box<Give>,
    pub(crate) take: Box<Take>,
}

/// Reads what a rank gives.
type Give = dyn Fn(&Run) -> Result<Parcel> + Send + Sync;
/// Writes what a rank makes of what all have given, rank by rank.
type Take = dyn Fn(&Run, &[Parcel]) -> Result + Send + Sync;

/// What computes.
pub(crate) type Body = dyn Fn(&Run) -> Result + Send + Sync;

/// How an operator touches a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Update,
}

impl Plan {
    /// A plan that computes with `body`.
    pub(crate) fn new(body: impl Fn(&Run) -> Result + Send + Sync + 'static) -> Self {
        let (body, together) = (Arc::new(body), None);
        let (operands, parameters) = (Vec::new(), Vec::new());
        Self { operands, parameters, workspace: 0, repeatable: true, body, together }
    }

    /// A plan that computes with all devices of a group.
    pub(crate) fn together(name: &'static str, together: Together) -> Self {
        let alone = move |_: &Run| Err(Fail::new(code::INTERNAL, format!("aclnn{name} without its group")));
        Self { together: Some(Arc::new(together)), ..Self::new(alone) }
    }

    /// The next operand is only read.
    pub(crate) fn reads(self, tensor: &Tensor) -> Self {
        self.touches(tensor, Access::Read)
    }

    /// The next operand is only written.
    pub(crate) fn writes(self, tensor: &Tensor) -> Self {
        self.touches(tensor, Access::Write)
    }

    /// The next operand is read and written.
    pub(crate) fn updates(self, tensor: &Tensor) -> Self {
        self.touches(tensor, Access::Update)
    }

    fn touches(mut self, tensor: &Tensor, access: Access) -> Self {
        self.parameters.push((access, vec![self.operands.len()]));
        self.operands.push((tensor.clone(), access));
        self
    }

    /// Needs so many bytes of device memory while it runs.
    pub(crate) fn workspace(mut self, bytes: usize) -> Self {
        self.workspace = bytes;
        self
    }

    /// `aclSetAclOpExecutorRepeatable` is refused: no operator here copies between host and device, which is why the
    /// vendor's refuse.
    #[cfg(test)]
    pub(crate) fn single_use(mut self) -> Self {
        self.repeatable = false;
        self
    }
}

/// One launch, when the stream has got there.
pub(crate) struct Run {
    pub(crate) operands: Vec<Operand>,
    pub(crate) workspace: *mut u8,
}

/// A tensor with its storage mapped.
pub(crate) struct Operand {
    /// Element type, shape, strides, offset, format.
    pub(crate) tensor: Tensor,
    /// Where the storage begins in the host's memory: the tensor's offset counts from here.
    pub(crate) base: *mut u8,
    /// Bytes from `base` that belong to the tensor: its storage, and the view where that reaches further.
    pub(crate) bytes: usize,
}

impl Run {
    /// The operand with this number.
    pub(crate) fn operand(&self, number: usize) -> Result<&Operand> {
        self.operands.get(number).ok_or_else(|| {
            Fail::new(code::INTERNAL, format!("operand {number} of {} asked for", self.operands.len()))
        })
    }
}

/// How an argument's kind reads what C hands over.
pub(crate) trait Kind {
    /// As it stands in the C signature.
    type C: Plain;
    /// Kept for the duration of the call.
    type Held;

    /// # Safety
    /// `raw` is what a caller passed as an argument of this kind; pointers to text are NULL or end in a zero byte.
    unsafe fn hold(raw: Self::C, name: &'static str) -> Result<Self::Held>;

    /// For the call log.
    fn show(raw: Self::C) -> serde_json::Value;
}

macro_rules! plain_kinds {
    ($($ty:ty),*) => {$(
        impl Kind for $ty {
            type C = $ty;
            type Held = $ty;
            unsafe fn hold(raw: $ty, _name: &'static str) -> Result<$ty> {
                Ok(raw)
            }
            fn show(raw: $ty) -> serde_json::Value {
                raw.into()
            }
        }
    )*};
}
plain_kinds!(i8, i32, i64, u64, f64, bool);

/// `char *`, text.
pub(crate) enum Str {}

impl Kind for Str {
    type C = *const c_char;
    type Held = String;
    unsafe fn hold(raw: *const c_char, name: &'static str) -> Result<String> {
        if raw.is_null() {
            return Err(Fail::null(name));
        }
        // SAFETY: not NULL, and the caller vouches for the final zero byte.
        let text = unsafe { CStr::from_ptr(raw) };
        text.to_str()
            .map(str::to_owned)
            .map_err(|_| Fail::invalid(format!("{name} is {text:?}, which is not UTF-8")))
    }
    fn show(raw: *const c_char) -> serde_json::Value {
        // SAFETY: the log shows arguments of this call; they are what `hold` takes.
        unsafe { Self::hold(raw, "") }.map_or(serde_json::Value::Null, serde_json::Value::String)
    }
}

macro_rules! descriptor_kinds {
    ($( $(#[$doc:meta])* $kind:ident, $variant:ident, $held:ty, $name:literal; )*) => {$(
        $(#[$doc])*
        pub(crate) enum $kind {}

        impl Kind for $kind {
            type C = *const c_void;
            type Held = $held;
            unsafe fn hold(raw: *const c_void, name: &'static str) -> Result<$held> {
                if raw.is_null() {
                    return Err(Fail::null(name));
                }
                match lookup(raw).map_err(|fail| Fail::invalid(format!("{name}: {}", fail.text)))? {
                    Descriptor::$variant(held) => Ok(held.into()),
                    other => {
                        Err(Fail::invalid(format!("{name} is an {}, expected an {}", other.type_name(), $name)))
                    }
                }
            }
            fn show(raw: *const c_void) -> serde_json::Value {
                show_descriptor(raw)
            }
        }
    )*};
}

descriptor_kinds! {
    /// `aclTensor *`.
    T, Tensor, Tensor, "aclTensor";
    /// `aclScalar *`.
    S, Scalar, Arc<Scalar>, "aclScalar";
    /// `aclIntArray *`.
    IA, IntArray, Arc<[i64]>, "aclIntArray";
    /// `aclTensorList *`.
    TL, TensorList, Members, "aclTensorList";
}

/// The tensors of a list.
pub(crate) struct Members(Vec<Tensor>);

impl From<Arc<[(usize, Tensor)]>> for Members {
    fn from(list: Arc<[(usize, Tensor)]>) -> Self {
        Self(list.iter().map(|(_, tensor)| tensor.clone()).collect())
    }
}

impl core::ops::Deref for Members {
    type Target = [Tensor];
    fn deref(&self) -> &[Tensor] {
        &self.0
    }
}

fn show_descriptor(raw: *const c_void) -> serde_json::Value {
    if raw.is_null() {
        return serde_json::Value::Null;
    }
    match lookup(raw) {
        Ok(Descriptor::Tensor(tensor)) => format!("{tensor} at {:#x}", tensor.address()).into(),
        Ok(Descriptor::Scalar(scalar)) => match scalar.bits() {
            Some((dtype, bits)) => format!("{} {}", dtype.decode(bits), scalar.dtype().name()).into(),
            None => scalar.dtype().name().into(),
        },
        Ok(Descriptor::IntArray(values)) => values.to_vec().into(),
        Ok(Descriptor::FloatArray(values)) => values.to_vec().into(),
        Ok(Descriptor::BoolArray(values)) => values.to_vec().into(),
        Ok(Descriptor::TensorList(list)) => {
            list.iter().map(|(_, tensor)| tensor.to_string()).collect::<Vec<_>>().into()
        }
        Ok(other) => other.type_name().into(),
        Err(fail) => fail.text.into(),
    }
}

/// A pointer that may be NULL.
pub(crate) struct Opt<K>(core::convert::Infallible, core::marker::PhantomData<K>);

impl<K: Kind<C = *const P>, P> Kind for Opt<K> {
    type C = *const P;
    type Held = Option<K::Held>;
    unsafe fn hold(raw: *const P, name: &'static str) -> Result<Self::Held> {
        // SAFETY: the same argument, under the same promise.
        (!raw.is_null()).then(|| unsafe { K::hold(raw, name) }).transpose()
    }
    fn show(raw: *const P) -> serde_json::Value {
        K::show(raw)
    }
}

/// Exports an operator's two symbols: the arguments of the first with the vendor's names and their kinds, then closures
/// to the arguments for the log and, in the context, to the plan. Arguments have names of their own too, since the vendor
/// calls some `self`.
macro_rules! symbols {
    ($name:ident ( $( $arg:ident $parameter:ident : $kind:ty ),* $(,)? ) $arguments:expr, $plan:expr) => {
        const _: () = {
            const NAME: &str = concat!("aclnn", stringify!($name));

            #[allow(clippy::too_many_arguments)]
            #[unsafe(export_name = concat!("aclnn", stringify!($name), "GetWorkspaceSize"))]
            unsafe extern "C" fn get_workspace_size(
                $( $arg: <$kind as $crate::aclnn::Kind>::C, )*
                workspace_size: *mut u64,
                executor: *mut *mut core::ffi::c_void,
            ) -> i32 {
                const PLANNING: &str = concat!("aclnn", stringify!($name), "GetWorkspaceSize");
                let call = $crate::call::begin(PLANNING);
                $( let $arg = call.argument(stringify!($parameter), $arg); )*
                let (arguments, plan) = ($arguments, $plan);
                // SAFETY: the last two arguments are the caller's places for the results.
                unsafe { $crate::aclnn::phase_one(call, NAME, arguments, plan, workspace_size, executor) }
            }

            #[unsafe(export_name = concat!("aclnn", stringify!($name)))]
            unsafe extern "C" fn launch(
                workspace: *mut core::ffi::c_void,
                workspace_size: u64,
                executor: *mut core::ffi::c_void,
                stream: *mut core::ffi::c_void,
            ) -> i32 {
                $crate::aclnn::phase_two(NAME, workspace, workspace_size, executor, stream)
            }
        };
    };
}
pub(crate) use symbols;

/// Phase 1: checks, plans, and hands out an executor.
///
/// # Safety
/// `workspace_size` and `executor` are NULL or may be written.
pub(crate) unsafe fn phase_one(
    call: Call,
    name: &'static str,
    arguments: impl FnOnce() -> Vec<(&'static str, serde_json::Value)>,
    plan: impl FnOnce(&Context) -> Result<Plan>,
    workspace_size: *mut u64,
    executor: *mut *mut c_void,
) -> i32 {
    call.run(arguments, || {
        if workspace_size.is_null() {
            return Err(Fail::null("workspaceSize"));
        }
        if executor.is_null() {
            return Err(Fail::null("executor"));
        }
        let context = {
            let state = world().state();
            Context { profile: state.profile, tolerated: state.tolerated.keys().copied().collect() }
        };
        let plan = plan(&context)?;
        let bytes = plan.workspace as u64;
        let handle = register(Descriptor::Executor(Arc::new(Executor::new(name, plan))));
        // SAFETY: neither is NULL, and the caller vouches for the rest.
        unsafe {
            workspace_size.write(bytes);
            executor.write(handle);
        }
        Ok(())
    })
}

/// Phase 2: enqueues what was planned, once.
pub(crate) fn phase_two(
    name: &'static str,
    workspace: *mut c_void,
    workspace_size: u64,
    executor: *mut c_void,
    stream: *mut c_void,
) -> i32 {
    let call = begin(name);
    let (workspace, workspace_size) =
        (call.argument("workspace", workspace), call.argument("workspaceSize", workspace_size));
    let (executor, stream) = (call.argument("executor", executor), call.argument("stream", stream));
    let arguments = || {
        vec![
            ("workspace", workspace.show()),
            ("workspaceSize", workspace_size.show()),
            ("executor", executor.show()),
            ("stream", stream.show()),
        ]
    };
    call.run(arguments, || {
        if executor.is_null() {
            return Err(Fail::null("executor"));
        }
        let Descriptor::Executor(planned) = lookup(executor.cast_const())? else {
            return Err(Fail::invalid("executor is a descriptor of another type"));
        };
        if planned.name != name {
            return Err(Fail::invalid(format!("the executor was planned for {}, not {name}", planned.name)));
        }
        enqueue(&planned, workspace.addr(), workspace_size, stream)?;
        if !planned.is_repeatable() {
            unregister(executor.cast_const())?;
        }
        Ok(())
    })
}

/// Puts a planned operator on a stream.
fn enqueue(planned: &Arc<Executor>, workspace: usize, size: u64, stream: *mut c_void) -> Result {
    let name = planned.name;
    let mut state = world().state();
    let id = state.stream_of(stream)?;
    let needed = planned.plan.workspace;
    if size < needed as u64 {
        return Err(Fail::invalid(format!("a workspace of {size} bytes, {name} needs {needed}")));
    }
    if needed > 0 {
        if !workspace.is_multiple_of(ALIGNMENT) {
            let text = format!("the workspace at {workspace:#x} is not aligned to {ALIGNMENT} bytes");
            return Err(Fail::new(code::RT_ADDR_UNALIGNED, text));
        }
        state
            .memory
            .map(workspace, needed)
            .map_err(|fail| Fail::invalid(format!("workspace: {}", fail.text)))?;
    }
    let addresses = planned.launch()?;
    check_padding(&mut state, planned, &addresses, (workspace, needed));
    let (mut poisoned, mut touches) = (needed, Vec::new());
    touches.extend((needed > 0).then(|| Touch::bytes(workspace, needed, true)));
    for ((tensor, access), &address) in planned.plan.operands.iter().zip(&addresses) {
        // Nothing is at the address of a tensor without elements.
        if tensor.numel() == 0 {
            continue;
        }
        if !address.is_multiple_of(TENSOR_ALIGNMENT) {
            let text = format!("{tensor} at {address:#x} is not aligned to {TENSOR_ALIGNMENT} bytes");
            if !state.tolerates(Rule::TensorAlignment, name, &text) {
                return Err(Fail::new(code::RT_ADDR_UNALIGNED, text));
            }
        }
        let bytes = tensor.span_bytes()?;
        if let Err(fail) = state.memory.map(address, bytes) {
            let text = format!("{tensor}, an operand of {name}: {}", fail.text);
            let loose = state.tolerated.contains_key(&Rule::AllocationBounds);
            if !(loose && state.memory.overrun(address, bytes)) {
                return Err(Fail::invalid(text));
            }
            state.tolerates(Rule::AllocationBounds, name, &text);
        }
        if address < workspace + needed && workspace < address + bytes {
            let text = format!("{tensor}, an operand of {name}, lies in the workspace at {workspace:#x}");
            if !state.tolerates(Rule::WorkspaceApart, name, &text) {
                return Err(Fail::invalid(text));
            }
            poisoned = 0;
        }
        touches.extend(Touch::view(tensor, address, bytes, *access != Access::Read));
    }
    let planned = planned.clone();
    let prepare = {
        let planned = planned.clone();
        move |world: &'static World| -> Result<Run> {
            let state = world.state();
            let operands = planned.plan.operands.iter().zip(&addresses).map(|((tensor, _), &address)| {
                let bytes = if tensor.numel() == 0 { 0 } else { tensor.span_bytes()? };
                let base = match bytes {
                    0 => core::ptr::dangling_mut::<u128>().cast(),
                    _ => state
                        .memory
                        .map(address, bytes)
                        .map_err(|fail| Fail::kernel(format!("{tensor}: {}", fail.text)))?,
                };
                Ok(Operand { tensor: tensor.clone(), base, bytes })
            });
            let operands = operands.collect::<Result<Vec<_>>>()?;
            let workspace = match needed {
                0 => core::ptr::null_mut(),
                _ => state
                    .memory
                    .map(workspace, needed)
                    .map_err(|fail| Fail::kernel(format!("workspace: {}", fail.text)))?,
            };
            let run = Run { operands, workspace };
            if poisoned > 0 {
                // SAFETY: so many bytes of one living allocation.
                unsafe { run.workspace.write_bytes(POISON, poisoned) };
            }
            Ok(run)
        }
    };
    if let Some(together) = &planned.plan.together {
        let comm = state.comm_named(together)?;
        let share = Share::Operator { name, together: together.clone(), prepare: Arc::new(prepare) };
        let work = Work::Meet { comm, rank: 0, shares: [(Place::All, share)].into(), keys: Vec::new() };
        // Ranks that do not fit together are found where their group is; an operator has codes of its own.
        let enqueued = world().submit(state, id, name, work).map(drop);
        return enqueued.map_err(|fail| match fail.code {
            0..=99 => Fail::new(code::ACLNN_RUNTIME, fail.text),
            _ => fail,
        });
    }
    let action = move |world: &'static World| (planned.plan.body)(&prepare(world)?);
    world().submit_touching(state, id, name, Work::Kernel(Arc::new(action)), touches).map(drop)
}

/// Books a workspace within the padding that an operand ends with: pools that hand out pieces of an allocation have to keep
/// it between them. Operands may be parts of one piece, side by side; a workspace is a piece of its own.
fn check_padding(state: &mut State, planned: &Executor, addresses: &[usize], workspace: (usize, usize)) {
    let padding = state.profile.padding();
    if padding == 0 || workspace.1 == 0 {
        return;
    }
    let operands = planned.plan.operands.iter().zip(addresses).map(|((tensor, _), &at)| (tensor, at));
    for (tensor, address) in operands.filter(|(tensor, _)| tensor.numel() > 0) {
        let Ok(bytes) = tensor.span_bytes() else { continue };
        let tail = address + bytes..address + bytes.next_multiple_of(TENSOR_ALIGNMENT) + padding;
        if !tail.contains(&workspace.0) {
            continue;
        }
        let text = format!(
            "the workspace at {:#x} is within the padding of {tensor}, which ends at {:#x}: vector units may read to {:#x}",
            workspace.0, tail.start, tail.end
        );
        if !state.tolerates(Rule::TailPadding, planned.name, &text) {
            state.violate(text);
        }
        return;
    }
}

/// What addresses of tensors are multiples of.
const TENSOR_ALIGNMENT: usize = 32;

#[cfg(test)]
mod tests;
