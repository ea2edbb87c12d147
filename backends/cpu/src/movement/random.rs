//! Random tensors: blocks of Philox numbers by logical position, normal ones in vectors.

use crate::elementwise::Exec;
use crate::elementwise::walk::{Base, Run, Walk};
use crate::simd::{Kernel, Lanes, dispatch, math};
use crate::value::{BLOCK, Value};
use portolan_ops::kernel::{RandomKind, RandomSpec};
use portolan_ops::{DType, Result, philox_block, unit_from_bits};

/// Runs `spec`; `counter` is read only where the spec has one.
///
/// # Safety
/// The pointers are the starts of buffers that hold the operands' spans, which do not overlap.
pub(crate) unsafe fn random(
    exec: Exec<'_>,
    spec: &RandomSpec,
    counter: *const u8,
    out: *mut u8,
) -> Result<()> {
    let base = match spec.counter() {
        // SAFETY: the caller's promise; the counter has one element.
        Some(c) => unsafe { counter.cast::<u64>().add(c.layout().offset()).read_unaligned() },
        None => 0,
    };
    let (kind, seed, block) = (spec.kind(), spec.seed(), base.wrapping_add(spec.offset()));
    let walk = Walk::logical(spec.out().shape(), [spec.out()])?;
    let out = Base::write(out);
    walk.run(exec, &|run| dispatch(exec.isa, Piece { kind, seed, block, out, run }));
    Ok(())
}

struct Piece {
    kind: RandomKind,
    seed: u64,
    block: u64,
    out: Base,
    run: Run<1>,
}

impl Kernel for Piece {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Run { len, places, strides, first } = self.run;
        let mut i = 0;
        while i < len {
            // From the start of the Philox block that holds the first element.
            let skip = (first + i) % 4;
            let n = (BLOCK - 4).min(len - i);
            let mut bits = [0u32; BLOCK];
            let start = self.block.wrapping_add(((first + i) / 4) as u64);
            for (b, lanes) in bits[..(skip + n).next_multiple_of(4)].chunks_exact_mut(4).enumerate() {
                lanes.copy_from_slice(&philox_block(self.seed, start.wrapping_add(b as u64)));
            }
            let (base, place, stride) = (self.out.start(), places[0] + i * strides[0], strides[0]);
            let mut values = [0.0f32; BLOCK];
            match self.kind {
                RandomKind::Bits => {
                    let mut wide = [0i64; BLOCK];
                    for (wide, &bits) in wide.iter_mut().zip(&bits) {
                        *wide = i64::from(bits);
                    }
                    // SAFETY: the run lies within the operand, as the caller of `random` promised.
                    unsafe { i64::store::<L>(DType::I32, base, place, stride, &wide[skip..skip + n]) };
                }
                RandomKind::Uniform => {
                    for (value, &bits) in values.iter_mut().zip(&bits) {
                        *value = unit_from_bits(bits);
                    }
                }
                RandomKind::Normal => normal::<L>(&bits, &mut values),
            }
            if self.kind != RandomKind::Bits {
                // SAFETY: as above.
                unsafe { f32::store::<L>(DType::F32, base, place, stride, &values[skip..skip + n]) };
            }
            i += n;
        }
    }
}

/// Pairs of numbers to pairs of normal ones.
#[inline(always)]
fn normal<L: Lanes>(bits: &[u32; BLOCK], values: &mut [f32; BLOCK]) {
    let mut radius = [0.0f32; BLOCK / 2];
    let mut turn = [0.0f32; BLOCK / 2];
    for ((radius, turn), pair) in radius.iter_mut().zip(&mut turn).zip(bits.chunks_exact(2)) {
        // In (0, 1]: 2^24 is exact in f32.
        *radius = ((pair[0] >> 8) + 1) as f32 * (1.0 / 16_777_216.0);
        *turn = unit_from_bits(pair[1]);
    }
    for at in (0..BLOCK / 2).step_by(L::LEN) {
        // SAFETY: the halves are a multiple of LEN long.
        unsafe {
            let length = math::log(L::load(radius.as_ptr().add(at))).mul(L::splat(-2.0)).sqrt();
            let angle = L::load(turn.as_ptr().add(at)).mul(L::splat(core::f32::consts::TAU));
            let (sin, cos) = math::sin_cos(angle);
            length.mul(cos).store(radius.as_mut_ptr().add(at));
            length.mul(sin).store(turn.as_mut_ptr().add(at));
        }
    }
    for (pair, (&cos, &sin)) in values.chunks_exact_mut(2).zip(radius.iter().zip(&turn)) {
        (pair[0], pair[1]) = (cos, sin);
    }
}
