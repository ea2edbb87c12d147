//! Elements as words of 32 bits, which is what is moved when rows are turned into columns.

use super::lanes::{Lanes, Stored};
use half::{bf16, f16};

/// An element type whose rows can be turned.
pub(crate) trait Words: Stored {
    /// Elements of a word.
    const PER_WORD: usize;

    /// Reads `LEN` words.
    ///
    /// # Safety
    /// Their elements are readable; any alignment.
    unsafe fn load_words<L: Lanes>(from: *const Self) -> L;

    /// Reads `n` words, 0 to `LEN`; the other lanes are 0.
    ///
    /// # Safety
    /// Their elements are readable; any alignment.
    unsafe fn load_some_words<L: Lanes>(from: *const Self, n: usize) -> L;

    /// The elements `4 · quad ..` of each row, exactly, from vectors of turned words.
    ///
    /// # Safety
    /// The words with these elements are there.
    unsafe fn quad_of<L: Lanes>(words: *const L, quad: usize) -> [L; 4];
}

macro_rules! one_a_word {
    ($type:ty) => {
        impl Words for $type {
            const PER_WORD: usize = 1;

            #[inline(always)]
            unsafe fn load_words<L: Lanes>(from: *const Self) -> L {
                // SAFETY: the caller's promise.
                unsafe { Self::load(from) }
            }

            #[inline(always)]
            unsafe fn load_some_words<L: Lanes>(from: *const Self, n: usize) -> L {
                // SAFETY: the caller's promise.
                unsafe { Self::load_partial(from, n) }
            }

            #[inline(always)]
            unsafe fn quad_of<L: Lanes>(words: *const L, quad: usize) -> [L; 4] {
                // SAFETY: the caller's promise.
                unsafe { words.add(4 * quad).cast::<[L; 4]>().read() }
            }
        }
    };
}
one_a_word!(f32);
one_a_word!(f16);

/// Two are moved as one word and parted when they are used: half as much to be moved.
impl Words for bf16 {
    const PER_WORD: usize = 2;

    #[inline(always)]
    unsafe fn load_words<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promise; only bits are moved.
        unsafe { L::load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_some_words<L: Lanes>(from: *const Self, n: usize) -> L {
        // SAFETY: as above.
        unsafe { L::load_partial(from.cast(), n) }
    }

    #[inline(always)]
    unsafe fn quad_of<L: Lanes>(words: *const L, quad: usize) -> [L; 4] {
        // SAFETY: the caller's promise.
        let [a, b] = unsafe { words.add(2 * quad).cast::<[L; 2]>().read() }.map(L::bits);
        let high = L::splat_int(0xffff_0000u32.cast_signed());
        [L::shl_int::<16>(a), L::and_int(a, high), L::shl_int::<16>(b), L::and_int(b, high)].map(L::from_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::{Kernel, dispatch};

    /// The elements of a block of rows, column after column.
    struct Turn<'a, T>(&'a [Vec<T>]);

    impl<T: Words> Kernel for Turn<'_, T> {
        type Output = (Vec<f32>, usize);

        #[inline(always)]
        fn run<L: Lanes>(self) -> (Vec<f32>, usize) {
            let mut fours = [L::zero(); 16];
            for group in 0..L::LEN / 4 {
                // SAFETY: each row has 32 elements, at least LEN words.
                let rows = [0, 1, 2, 3].map(|row| unsafe { T::load_words(self.0[4 * group + row].as_ptr()) });
                fours[4 * group..][..4].copy_from_slice(&L::turn_fours(rows));
            }
            let mut words = [L::zero(); 16];
            for i in 0..4 {
                let column = L::gather_fours(core::array::from_fn(|group| fours[4 * group + i]));
                for (m, word) in column.into_iter().enumerate().take(L::LEN / 4) {
                    words[4 * m + i] = word;
                }
            }
            // SAFETY: LEN words are there.
            let quad = |quad| unsafe { T::quad_of(words.as_ptr(), quad) };
            let columns = (0..L::LEN * T::PER_WORD / 4).flat_map(quad);
            (columns.flat_map(|column| column.to_array().into_iter().take(L::LEN)).collect(), L::LEN)
        }
    }

    fn turns<T: Words>() {
        // No two alike in any of the types; one of them not a normal number of f16.
        let value = |row: usize, i: usize| match (row, i) {
            (3, 5) => -3.0e-5,
            _ => (32 * row + i) as f32 / 2.0,
        };
        let rows: Vec<Vec<T>> =
            (0..16).map(|row| (0..32).map(|i| T::of_f32(value(row, i))).collect()).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.require().is_ok()) {
            let (columns, len) = dispatch(isa, Turn(&rows));
            assert_eq!(columns.len(), len * len * T::PER_WORD);
            for i in 0..len * T::PER_WORD {
                for row in 0..len {
                    assert_eq!(
                        columns[i * len + row],
                        rows[row][i].to_f32(),
                        "{isa:?} row {row} element {i}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_are_turned_on_every_path() {
        turns::<f16>();
        turns::<bf16>();
        turns::<f32>();
    }
}
