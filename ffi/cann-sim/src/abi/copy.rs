//! Copies and fills, at once or on a stream.

use crate::call::driver;
use crate::error::{Fail, Result, code};
use crate::order::Touch;
use crate::stream::Work;
use crate::world::{State, World, world};
use std::ffi::c_void;
use std::sync::Arc;

/// A rectangle of bytes: `height` rows of `width` bytes, each `pitch` bytes from the one before.
#[derive(Clone, Copy)]
struct Rows {
    address: usize,
    pitch: usize,
}

#[derive(Clone, Copy)]
struct Copy2d {
    to: Rows,
    from: Rows,
    width: usize,
    height: usize,
}

/// `aclrtMemcpyKind`, as far as it says which side is where.
const HOST_TO_HOST: i32 = 0;
const HOST_TO_DEVICE: i32 = 1;
const DEVICE_TO_HOST: i32 = 2;
const DEVICE_TO_DEVICE: i32 = 3;
const DEFAULT: i32 = 4;
const HOST_TO_BUF_TO_DEVICE: i32 = 5;
const INNER_DEVICE_TO_DEVICE: i32 = 6;
const INTER_DEVICE_TO_DEVICE: i32 = 7;

impl Copy2d {
    fn line(to: *mut c_void, room: usize, from: *const c_void, bytes: usize) -> Result<Self> {
        if to.is_null() || from.is_null() {
            return Err(Fail::parameter("an address is NULL"));
        }
        if bytes > room {
            return Err(Fail::parameter(format!("{bytes} bytes do not fit in {room}")));
        }
        let rows = |address| Rows { address, pitch: bytes };
        Ok(Self { to: rows(to.addr()), from: rows(from.addr()), width: bytes, height: 1 })
    }

    fn rectangle(to: Rows, from: Rows, width: usize, height: usize) -> Result<Self> {
        if to.address == 0 || from.address == 0 {
            return Err(Fail::parameter("an address is NULL"));
        }
        if width > to.pitch || width > from.pitch {
            let text = format!("rows of {width} bytes at pitches {} and {}", to.pitch, from.pitch);
            return Err(Fail::parameter(text));
        }
        Ok(Self { to, from, width, height })
    }

    /// Bytes from the first to behind the last on one side.
    fn extent(&self, rows: Rows) -> Result<usize> {
        let last = self.height.saturating_sub(1).checked_mul(rows.pitch);
        last.and_then(|last| last.checked_add(self.width))
            .ok_or_else(|| Fail::parameter("a rectangle of more bytes than there are addresses"))
    }

    fn is_empty(&self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// Both sides as the simulator sees them, and what keeps them there.
    fn map(&self, state: &State, pinned: bool) -> Result<Mapped> {
        let side = |rows: Rows| -> Result<Side> {
            let bytes = self.extent(rows)?;
            if state.memory.is_device(rows.address) {
                let device = state.memory.block(rows.address, bytes)?.device;
                return Ok((state.memory.map(rows.address, bytes)?, None, Some(device)));
            }
            let holder = state.memory.pinned(rows.address, bytes);
            if pinned && holder.is_none() {
                let text = format!("the pinned memory at {:#x} was freed before the copy ran", rows.address);
                return Err(Fail::new(code::RT_AICORE_EXCEPTION, text));
            }
            Ok((core::ptr::with_exposed_provenance_mut(rows.address), holder, None))
        };
        let (to, to_holder, to_device) = side(self.to)?;
        let (from, from_holder, from_device) = side(self.from)?;
        if let (Some(a), Some(b)) = (from_device, to_device)
            && a != b
            && !state.peers.contains(&(b, a))
            && !state.peers.contains(&(a, b))
        {
            let text = format!("devices {a} and {b} have no access to each other; enable it first");
            return Err(Fail::parameter(text));
        }
        Ok(Mapped { to, from, _holders: [to_holder, from_holder] })
    }

    /// Copies.
    fn run(&self, mapped: &Mapped) {
        for row in 0..self.height {
            let (to, from) = (row * self.to.pitch, row * self.from.pitch);
            // SAFETY: device sides were checked to lie in one living allocation of the arena; host sides are the
            // caller's promise, or pinned memory that is held.
            unsafe { core::ptr::copy(mapped.from.add(from), mapped.to.add(to), self.width) };
        }
    }

    fn now(&self) -> Result {
        let state = world().state();
        state.current()?;
        state.refuse_while_capturing()?;
        if self.is_empty() {
            return Ok(());
        }
        let mapped = self.map(&state, false)?;
        drop(state);
        self.run(&mapped);
        Ok(())
    }

    /// Whether the sides are where the kind says.
    fn agrees(&self, state: &State, kind: i32) -> Result {
        let from = state.memory.is_device(self.from.address);
        let to = state.memory.is_device(self.to.address);
        let fits = match kind {
            HOST_TO_HOST => !from && !to,
            HOST_TO_DEVICE | HOST_TO_BUF_TO_DEVICE => !from && to,
            DEVICE_TO_HOST => from && !to,
            DEVICE_TO_DEVICE | INNER_DEVICE_TO_DEVICE | INTER_DEVICE_TO_DEVICE => from && to,
            DEFAULT => true,
            _ => return Err(Fail::parameter(format!("kind {kind} is unknown"))),
        };
        if !fits {
            let place = |device| if device { "device" } else { "host" };
            let text = format!("kind {kind} for a copy from {} to {}", place(from), place(to));
            return Err(Fail::parameter(text));
        }
        if !from && !to {
            return Err(Fail::new(code::RT_FEATURE_NOT_SUPPORT, "no asynchronous copies within the host"));
        }
        Ok(())
    }

    fn enqueue(self, name: &'static str, kind: i32, stream: *mut c_void) -> Result {
        let state = world().state();
        let id = state.stream_of(stream)?;
        self.agrees(&state, kind)?;
        if self.is_empty() {
            return Ok(());
        }
        // What cannot work now is refused now; what was freed meanwhile is found when it runs.
        self.map(&state, false)?;
        let host = [self.to, self.from].into_iter().find(|side| !state.memory.is_device(side.address));
        let pageable = match host {
            None => false,
            Some(side) => state.memory.pinned(side.address, self.extent(side)?).is_none(),
        };
        if pageable {
            state.refuse_while_capturing()?;
            // A graph would read or write it whenever it runs, and nobody promises that it is there then.
            if state.capture_on(id).is_some() {
                let text = "a graph cannot hold a copy from or to pageable memory; use aclrtMallocHost";
                return Err(Fail::new(code::RT_CAPTURE_MODE, text));
            }
        }
        let on_host = host.is_some();
        let action = move |world: &'static World| {
            let mapped = self.map(&world.state(), on_host && !pageable).map_err(as_fault)?;
            self.run(&mapped);
            Ok(())
        };
        let touches = [(self.to, true), (self.from, false)].into_iter();
        let touches = touches
            .filter(|(side, _)| state.memory.is_device(side.address))
            .map(|(side, writes)| Touch::rows(side.address, self.width, (self.height, side.pitch), writes));
        let touches = touches.collect();
        let point = world().submit_touching(state, id, name, Work::Copy(Arc::new(action)), touches)?;
        if pageable || kind == HOST_TO_BUF_TO_DEVICE {
            // Nobody holds such memory until later, so the copy is over before the call returns.
            drop(world().reach(world().state(), &[point], None)?);
        }
        Ok(())
    }
}

/// One side as the simulator sees it, the pinned memory it lies in, and the device.
type Side = (*mut u8, Option<Arc<crate::memory::Pinned>>, Option<usize>);

struct Mapped {
    to: *mut u8,
    from: *mut u8,
    _holders: [Option<Arc<crate::memory::Pinned>>; 2],
}

/// What is wrong with memory when work runs is an exception of the device.
pub(crate) fn as_fault(fail: Fail) -> Fail {
    Fail::new(code::RT_AICORE_EXCEPTION, fail.text)
}

fn fill(address: *mut c_void, room: usize, value: i32, bytes: usize) -> Result<(usize, u8)> {
    if address.is_null() {
        return Err(Fail::parameter("the address is NULL"));
    }
    if bytes > room {
        return Err(Fail::parameter(format!("{bytes} bytes do not fit in {room}")));
    }
    // As memset takes it: the low byte.
    Ok((address.addr(), value.to_le_bytes()[0]))
}

driver! {
    fn aclrtMemcpy(to: *mut c_void, room: usize, from: *const c_void, bytes: usize, kind: i32) {
        Copy2d::line(to, room, from, bytes)?.now()
    }

    fn aclrtMemcpyAsync(
        to: *mut c_void,
        room: usize,
        from: *const c_void,
        bytes: usize,
        kind: i32,
        stream: *mut c_void,
    ) {
        Copy2d::line(to, room, from, bytes)?.enqueue("aclrtMemcpyAsync", kind, stream)
    }

    fn aclrtMemcpy2d(
        to: *mut c_void,
        to_pitch: usize,
        from: *const c_void,
        from_pitch: usize,
        width: usize,
        height: usize,
        kind: i32,
    ) {
        let (to, from) =
            (Rows { address: to.addr(), pitch: to_pitch }, Rows { address: from.addr(), pitch: from_pitch });
        Copy2d::rectangle(to, from, width, height)?.now()
    }

    fn aclrtMemcpy2dAsync(
        to: *mut c_void,
        to_pitch: usize,
        from: *const c_void,
        from_pitch: usize,
        width: usize,
        height: usize,
        kind: i32,
        stream: *mut c_void,
    ) {
        let (to, from) =
            (Rows { address: to.addr(), pitch: to_pitch }, Rows { address: from.addr(), pitch: from_pitch });
        Copy2d::rectangle(to, from, width, height)?.enqueue("aclrtMemcpy2dAsync", kind, stream)
    }

    fn aclrtMemset(address: *mut c_void, room: usize, value: i32, bytes: usize) {
        let (address, value) = fill(address, room, value, bytes)?;
        let state = world().state();
        state.current()?;
        state.refuse_while_capturing()?;
        let pointer = state.memory.map(address, bytes)?;
        // SAFETY: the range lies in one living allocation.
        unsafe { pointer.write_bytes(value, bytes) };
        Ok(())
    }

    fn aclrtMemsetAsync(address: *mut c_void, room: usize, value: i32, bytes: usize, stream: *mut c_void) {
        let (address, value) = fill(address, room, value, bytes)?;
        let state = world().state();
        let id = state.stream_of(stream)?;
        state.memory.map(address, bytes)?;
        let action = move |world: &'static World| {
            let pointer = world.state().memory.map(address, bytes).map_err(as_fault)?;
            // SAFETY: the range lies in one living allocation.
            unsafe { pointer.write_bytes(value, bytes) };
            Ok(())
        };
        let (work, touches) = (Work::Copy(Arc::new(action)), vec![Touch::bytes(address, bytes, true)]);
        world().submit_touching(state, id, "aclrtMemsetAsync", work, touches).map(drop)
    }
}
