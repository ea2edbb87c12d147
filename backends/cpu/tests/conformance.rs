//! The CPU backend against the whole suite, on its default executor.
#![allow(missing_docs)]

use portolan_cpu::{CpuBackend, CpuOptions};

portolan_conformance::suite! {
    backend: || CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }),
}
