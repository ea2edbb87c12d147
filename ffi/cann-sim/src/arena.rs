//! Device memory: one file in memory, mapped twice. Programs get addresses of a mapping that nobody may touch; the
//! simulator works through the other. A host that follows a device address faults, and is told what it touched.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

/// The smallest piece that can be given back to the system.
pub(crate) const PAGE: usize = 4096;

/// The two mappings.
pub(crate) struct Arena {
    file: Option<OwnedFd>,
    /// Where device addresses begin.
    device: usize,
    /// Where the simulator sees the same bytes.
    host: usize,
    bytes: usize,
}

impl Arena {
    /// An arena of `bytes` bytes, none of which takes memory before it is written.
    pub(crate) fn new(bytes: usize) -> Result<Self, String> {
        let failed = |what: &str| format!("{what}: {}", std::io::Error::last_os_error());
        // SAFETY: a literal name, and the descriptor is owned at once.
        let file = unsafe {
            let raw = libc::memfd_create(c"portolan-cann-sim".as_ptr(), libc::MFD_CLOEXEC);
            if raw < 0 {
                return Err(failed("memfd_create"));
            }
            OwnedFd::from_raw_fd(raw)
        };
        let length =
            libc::off_t::try_from(bytes).map_err(|_| "more bytes than a file can have".to_owned())?;
        // SAFETY: the descriptor is ours.
        if unsafe { libc::ftruncate(file.as_raw_fd(), length) } != 0 {
            return Err(failed("ftruncate"));
        }
        let map = |protection| {
            let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
            // SAFETY: a new mapping wherever the system likes, of a file that is long enough.
            let at =
                unsafe { libc::mmap(core::ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0) };
            if at == libc::MAP_FAILED { Err(failed("mmap")) } else { Ok(at.addr()) }
        };
        let device = map(libc::PROT_NONE)?;
        let host = map(libc::PROT_READ | libc::PROT_WRITE)?;
        watch(device, bytes);
        Ok(Self { file: Some(file), device, host, bytes })
    }

    /// An arena without a byte.
    pub(crate) fn none() -> Self {
        Self { file: None, device: 0, host: 0, bytes: 0 }
    }

    /// The first device address.
    pub(crate) fn base(&self) -> usize {
        self.device
    }

    /// Whether an address is one of the device's.
    pub(crate) fn contains(&self, address: usize) -> bool {
        address.wrapping_sub(self.device) < self.bytes
    }

    /// Where the simulator sees a device address; meaningless for any other.
    pub(crate) fn pointer(&self, address: usize) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.host.wrapping_add(address.wrapping_sub(self.device)))
    }

    /// Fills `bytes` bytes from `address` on.
    pub(crate) fn fill(&self, address: usize, bytes: usize, value: u8) {
        debug_assert!(self.contains(address) && bytes <= self.device + self.bytes - address);
        // SAFETY: inside the arena, which is mapped for as long as the process lives.
        unsafe { self.pointer(address).write_bytes(value, bytes) };
    }

    /// How many of `bytes` bytes from `address` on are not `value`.
    pub(crate) fn differs(&self, address: usize, bytes: usize, value: u8) -> usize {
        // SAFETY: as in `fill`; kernels that would write here meanwhile are what is looked for.
        (0..bytes).filter(|&i| unsafe { self.pointer(address + i).read() } != value).count()
    }

    /// Gives whole pages back to the system; they read as zeros.
    pub(crate) fn discard(&self, address: usize, bytes: usize) {
        let Some(file) = &self.file else { return };
        let (offset, length) = (address - self.device, bytes);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a range of our own file. Failing costs memory and nothing else.
        let _ = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) };
    }
}

static WATCHED: OnceLock<(usize, usize)> = OnceLock::new();
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// From now on, a fault at a device address is explained before it ends the program.
fn watch(device: usize, bytes: usize) {
    if WATCHED.set((device, bytes)).is_err() {
        return;
    }
    // SAFETY: all zeros is a valid `sigaction`; the handler is one, and what it replaces is called by it.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        let mut before: libc::sigaction = core::mem::zeroed();
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        if libc::sigaction(libc::SIGSEGV, core::ptr::null(), &mut before) == 0 {
            let _ = BEFORE.set(before);
            libc::sigaction(libc::SIGSEGV, &action, core::ptr::null_mut());
        }
    }
}

/// A line of text that takes no memory: a handler must not allocate.
pub(crate) struct Line {
    bytes: [u8; 600],
    len: usize,
}

impl core::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.len() - self.len;
        let taken = text.len().min(room);
        self.bytes[self.len..self.len + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken;
        Ok(())
    }
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    use core::fmt::Write;
    // SAFETY: the system passes a valid description of the fault.
    let address = unsafe { (*info).si_addr() }.addr();
    let ours = WATCHED.get().is_some_and(|&(device, bytes)| address.wrapping_sub(device) < bytes);
    if ours {
        let mut line = Line { bytes: [0; 600], len: 0 };
        let _ = write!(line, "simulated CANN: the host touched device address {address:#x}");
        crate::world::explain_fault(address, &mut line);
        let _ = line.write_str("; copy with aclrtMemcpy instead\n");
        // SAFETY: writing a buffer of ours to standard error is allowed in a handler.
        unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.len) };
    }
    match BEFORE.get() {
        Some(before) if before.sa_sigaction != libc::SIG_DFL && before.sa_sigaction != libc::SIG_IGN => {
            // SAFETY: what was installed before us, called as the system would have called it.
            unsafe {
                if before.sa_flags & libc::SA_SIGINFO != 0 {
                    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                        core::mem::transmute(before.sa_sigaction);
                    handler(signal, info, context);
                } else {
                    let handler: extern "C" fn(i32) = core::mem::transmute(before.sa_sigaction);
                    handler(signal);
                }
            }
        }
        // SAFETY: the default action; returning runs the faulting instruction again, which now ends the program.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
        },
    }
}
