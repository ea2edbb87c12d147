//! Which instruction set the kernels use: the best this processor has, or one the caller forces.

use portolan_ops::{OpError, Result};

/// An instruction-set path. Every kernel exists for `Portable`; the others override where they are faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, vectorised by the compiler for the baseline target.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
}

impl Isa {
    /// Every path, narrowest first.
    pub const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// The widest path this processor can run.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            if avx2 && avx512 && has!("avx512vnni") {
                return Isa::Avx512;
            }
            if avx2 {
                return Isa::Avx2;
            }
        }
        Isa::Portable
    }

    /// This path, if the processor can run it.
    ///
    /// # Errors
    /// `Unavailable` when it cannot; the message names the widest path it can.
    pub fn require(self) -> Result<Isa> {
        let widest = Isa::detect();
        if self <= widest {
            return Ok(self);
        }
        Err(OpError::Unavailable {
            backend: "cpu".into(),
            what: format!("this processor has no {self:?} path; the widest it runs is {widest:?}"),
        })
    }
}
