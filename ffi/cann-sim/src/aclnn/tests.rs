//! The protocol through the symbols of an operator of the tests' own: `out = x + 1`, with a workspace.

use super::{Context, Kind, Members, Opt, Plan, Str, T, TL};
use crate::error::{Fail, Result, code};
use crate::memory::POISON;
use crate::tensor::Tensor;
use crate::view::Dtype;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};

/// Exports an operator whose plan function takes its arguments as they are held.
macro_rules! operator {
    ($name:ident($($arg:ident: $kind:ty),*) => $plan:path) => {
        symbols! {
            $name($($arg $arg: $kind),*)
            || vec![$((stringify!($arg), <$kind as Kind>::show($arg))),*],
            |_: &Context| {
                // SAFETY: the caller passed each as what the row says it is.
                $(let $arg = unsafe { <$kind as Kind>::hold($arg, stringify!($arg)) }?;)*
                $plan($(&$arg),*)
            }
        }
    };
}
operator!(TestIncrement(x: T, out: T) => increment);
operator!(TestOther(x: T, list: TL, dim: i64, mode: Opt<Str>, extra: Opt<T>, out: T) => other);

const WORKSPACE: usize = 100;

fn increment(x: &Tensor, out: &Tensor) -> Result<Plan> {
    if x.dtype() != Dtype::F32 || out.shape() != x.shape() {
        return Err(Fail::invalid(format!("x is {x}, out is {out}; expected two FLOAT of one shape")));
    }
    let plan = Plan::new(|run| {
        // SAFETY: so many bytes are the workspace's.
        let workspace = unsafe { std::slice::from_raw_parts_mut(run.workspace, WORKSPACE) };
        if workspace.iter().any(|&byte| byte != POISON) {
            return Err(Fail::kernel("the workspace is not fresh poison"));
        }
        workspace.fill(0);
        let (x, out) = (run.operand(0)?, run.operand(1)?);
        for i in 0..x.bytes / 4 {
            // SAFETY: both are contiguous and of one shape; addresses are aligned to 32 bytes.
            unsafe { out.base.cast::<f32>().add(i).write(x.base.cast::<f32>().add(i).read() + 1.0) };
        }
        Ok(())
    });
    Ok(plan.reads(x).writes(out).workspace(WORKSPACE))
}

fn other(
    x: &Tensor,
    list: &Members,
    dim: &i64,
    mode: &Option<String>,
    extra: &Option<Tensor>,
    out: &Tensor,
) -> Result<Plan> {
    if (list.len(), *dim, mode.as_deref(), extra.is_some()) != (1, -7, Some("rint"), false) {
        return Err(Fail::invalid("not the arguments of the test"));
    }
    Ok(Plan::new(|_| Ok(())).reads(x).reads(&list[0]).updates(out).single_use())
}

unsafe extern "C" {
    fn aclrtSetDevice(id: i32) -> i32;
    fn aclrtMalloc(address: *mut *mut c_void, size: usize, policy: i32) -> i32;
    fn aclrtFree(address: *mut c_void) -> i32;
    fn aclrtMemcpy(to: *mut c_void, room: usize, from: *const c_void, bytes: usize, kind: i32) -> i32;
    fn aclrtCreateStream(stream: *mut *mut c_void) -> i32;
    fn aclrtSynchronizeStream(stream: *mut c_void) -> i32;
    fn aclGetRecentErrMsg() -> *const c_char;
    fn aclCreateTensor(
        view: *const i64,
        view_count: u64,
        dtype: i32,
        strides: *const i64,
        offset: i64,
        format: i32,
        storage: *const i64,
        storage_count: u64,
        data: *mut c_void,
    ) -> *mut c_void;
    fn aclCreateTensorList(members: *const *const c_void, count: u64) -> *mut c_void;
    fn aclDestroyTensor(tensor: *const c_void) -> i32;
    fn aclSetAclOpExecutorRepeatable(executor: *mut c_void) -> i32;
    fn aclDestroyAclOpExecutor(executor: *mut c_void) -> i32;
    fn aclSetOutputTensorAddr(
        executor: *mut c_void,
        index: usize,
        tensor: *mut c_void,
        to: *mut c_void,
    ) -> i32;
    fn aclnnTestIncrementGetWorkspaceSize(
        x: *const c_void,
        out: *const c_void,
        size: *mut u64,
        executor: *mut *mut c_void,
    ) -> i32;
    fn aclnnTestIncrement(
        workspace: *mut c_void,
        size: u64,
        executor: *mut c_void,
        stream: *mut c_void,
    ) -> i32;
    fn aclnnTestOtherGetWorkspaceSize(
        x: *const c_void,
        list: *const c_void,
        dim: i64,
        mode: *const c_char,
        extra: *const c_void,
        out: *const c_void,
        size: *mut u64,
        executor: *mut *mut c_void,
    ) -> i32;
    fn aclnnTestOther(workspace: *mut c_void, size: u64, executor: *mut c_void, stream: *mut c_void) -> i32;
}

/// Two tensors of four floats, a workspace and a stream.
struct Bench {
    memory: [*mut c_void; 2],
    tensors: [*mut c_void; 2],
    workspace: *mut c_void,
    stream: *mut c_void,
}

const BYTES: usize = 16;

/// The code of a call, which takes valid arguments or such as have to be refused.
macro_rules! call {
    ($name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: functions of this library, with the arguments they ask for or ones that they must refuse.
        unsafe { $name($($arg),*) }
    };
}

fn message() -> String {
    let text = call!(aclGetRecentErrMsg());
    // SAFETY: NULL or a text that lives until the next call.
    let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) });
    text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

fn allocate(bytes: usize) -> *mut c_void {
    let mut address = null_mut();
    assert_eq!(call!(aclrtMalloc(&mut address, bytes, 0)), 0, "{}", message());
    address
}

fn tensor(dtype: i32, data: *mut c_void) -> *mut c_void {
    let dims = [4i64];
    call!(aclCreateTensor(dims.as_ptr(), 1, dtype, null(), 0, 2, dims.as_ptr(), 1, data))
}

fn read(address: *mut c_void) -> [f32; 4] {
    let mut data = [0f32; 4];
    assert_eq!(call!(aclrtMemcpy(data.as_mut_ptr().cast(), BYTES, address, BYTES, 2)), 0, "{}", message());
    data
}

impl Bench {
    fn new() -> Self {
        assert_eq!(call!(aclrtSetDevice(0)), 0);
        let memory = [allocate(BYTES), allocate(BYTES)];
        let data = [1f32, 2.0, 3.0, 4.0];
        assert_eq!(call!(aclrtMemcpy(memory[0], BYTES, data.as_ptr().cast(), BYTES, 1)), 0);
        let mut stream = null_mut();
        assert_eq!(call!(aclrtCreateStream(&mut stream)), 0);
        Self { memory, tensors: memory.map(|data| tensor(0, data)), workspace: allocate(WORKSPACE), stream }
    }

    fn plan(&self) -> *mut c_void {
        let (mut size, mut executor) = (0, null_mut());
        let [x, out] = self.tensors;
        assert_eq!(
            call!(aclnnTestIncrementGetWorkspaceSize(x, out, &mut size, &mut executor)),
            0,
            "{}",
            message()
        );
        assert_eq!(size, WORKSPACE as u64);
        executor
    }

    fn launch(&self, executor: *mut c_void) -> i32 {
        call!(aclnnTestIncrement(self.workspace, WORKSPACE as u64, executor, self.stream))
    }

    fn synchronize(&self) -> i32 {
        call!(aclrtSynchronizeStream(self.stream))
    }
}

#[test]
fn an_operator_runs_on_its_stream_and_its_executor_once() {
    let bench = Bench::new();
    let executor = bench.plan();
    assert_eq!(bench.launch(executor), 0, "{}", message());
    // Descriptors may go as soon as phase 2 has returned.
    assert_eq!(call!(aclDestroyTensor(bench.tensors[0])), 0);
    assert!(read(bench.memory[1])[0].is_nan(), "it ran before anybody waited");
    assert_eq!(bench.synchronize(), 0, "{}", message());
    assert_eq!(read(bench.memory[1]), [2.0, 3.0, 4.0, 5.0]);
    assert_eq!(bench.launch(executor), code::ACLNN_EXECUTOR_NOT_HANDED_OVER);
    let said = message();
    assert!(said.contains("of aclnnTestIncrement has been launched, and is good for once"), "{said}");
}

#[test]
fn phase_two_refuses_what_phase_one_did_not_plan() {
    let bench = Bench::new();
    let size = WORKSPACE as u64;
    let refused = |workspace, size, what: &str| {
        let executor = bench.plan();
        assert_ne!(call!(aclnnTestIncrement(workspace, size, executor, bench.stream)), 0, "{what}");
        assert!(message().contains(what), "{what}");
        // A launch that was refused has not used the executor up.
        assert_eq!(bench.launch(executor), 0, "{}", message());
    };
    refused(bench.workspace, size - 1, "needs 100");
    refused(bench.workspace.wrapping_byte_add(32), size, "not aligned to 64");
    refused(null_mut(), size, "is no device address");
    let executor = bench.plan();
    assert_eq!(call!(aclnnTestOther(null_mut(), 0, executor, bench.stream)), code::ACLNN_PARAM_INVALID);
    assert!(message().contains("planned for aclnnTestIncrement, not aclnnTestOther"));
    assert_eq!(call!(aclDestroyTensor(bench.tensors[0])), 0);
    assert_eq!(bench.launch(executor), code::ACLNN_PARAM_INVALID);
    assert!(message().contains("was destroyed before its launch"));
}

#[test]
fn a_workspace_which_is_poisoned_before_its_use_holds_no_operand() {
    let mut bench = Bench::new();
    bench.tensors[1] = tensor(0, bench.workspace);
    assert_eq!(bench.launch(bench.plan()), code::ACLNN_PARAM_INVALID);
    assert!(message().contains("lies in the workspace"), "{}", message());
}

#[test]
fn addresses_are_aligned_and_alive_at_the_launch_and_when_it_runs() {
    let mut bench = Bench::new();
    let good = bench.tensors[0];
    bench.tensors[0] = tensor(0, bench.memory[0].wrapping_byte_add(4));
    assert_eq!(bench.launch(bench.plan()), code::RT_ADDR_UNALIGNED);
    assert!(message().contains("not aligned to 32 bytes"));
    // In order, but its end lies behind the allocation's.
    bench.tensors[0] = tensor(0, bench.memory[0].wrapping_byte_add(32));
    assert_ne!(bench.launch(bench.plan()), 0);
    bench.tensors[0] = good;
    assert_eq!(bench.launch(bench.plan()), 0);
    assert_eq!(call!(aclrtFree(bench.memory[1])), 0);
    assert_eq!(bench.synchronize(), code::RT_AICORE_EXCEPTION);
    let text = message();
    assert!(text.contains("aclnnTestIncrement") && text.contains("freed by call"), "{text}");
}

#[test]
fn a_repeatable_executor_runs_again_elsewhere_until_it_is_destroyed() {
    let bench = Bench::new();
    let executor = bench.plan();
    assert_eq!(call!(aclDestroyAclOpExecutor(executor)), code::ACLNN_PARAM_INVALID);
    assert_eq!(call!(aclSetAclOpExecutorRepeatable(executor)), 0);
    assert_eq!(bench.launch(executor), 0);
    let elsewhere = allocate(BYTES);
    assert_eq!(call!(aclSetOutputTensorAddr(executor, 0, bench.tensors[1], elsewhere)), 0);
    assert_eq!(bench.launch(executor), 0);
    assert_eq!(bench.synchronize(), 0, "{}", message());
    assert_eq!((read(bench.memory[1]), read(elsewhere)), ([2.0, 3.0, 4.0, 5.0], [2.0, 3.0, 4.0, 5.0]));
    assert_eq!(call!(aclDestroyAclOpExecutor(executor)), 0);
    assert_ne!(bench.launch(executor), 0);
}

#[test]
fn phase_one_refuses_null_foreign_handles_and_what_the_operator_does_not_take() {
    let bench = Bench::new();
    let [x, out] = bench.tensors;
    let (mut size, mut executor) = (0, null_mut());
    let mut plan = |x: *mut c_void, out: *mut c_void| {
        let code = call!(aclnnTestIncrementGetWorkspaceSize(x, out, &mut size, &mut executor));
        (code, message())
    };
    assert_eq!(plan(null_mut(), out).0, code::ACLNN_NULLPTR);
    assert!(plan(x, bench.workspace).1.contains("is no descriptor"));
    let half = tensor(1, bench.memory[0]);
    let (code, text) = plan(half, out);
    assert_eq!(code, code::ACLNN_PARAM_INVALID);
    assert!(text.contains("x is FLOAT16 [4]"), "{text}");
    let list = call!(aclCreateTensorList([half.cast_const()].as_ptr(), 1));
    assert!(plan(list, out).1.contains("x is an aclTensorList, expected an aclTensor"));
    assert_eq!(
        call!(aclnnTestIncrementGetWorkspaceSize(x, out, null_mut(), &mut executor)),
        code::ACLNN_NULLPTR
    );

    let mode = c"rint".as_ptr();
    let mut size = 9;
    let made =
        call!(aclnnTestOtherGetWorkspaceSize(x, list, -7, mode, null(), out, &mut size, &mut executor));
    assert_eq!((made, size), (0, 0), "{}", message());
    assert_eq!(call!(aclSetAclOpExecutorRepeatable(executor)), code::ACLNN_EXECUTOR_NOT_HANDED_OVER);
    // Without a workspace, NULL is one.
    assert_eq!(call!(aclnnTestOther(null_mut(), 0, executor, bench.stream)), 0, "{}", message());
    assert_eq!(bench.synchronize(), 0);
    let made =
        call!(aclnnTestOtherGetWorkspaceSize(x, list, -7, null(), null(), out, &mut size, &mut executor));
    assert_eq!(made, code::ACLNN_PARAM_INVALID);
}
