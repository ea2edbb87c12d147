//! Short elements as words of 32 bits, which is what is moved when rows are turned into columns.

use super::lanes::{Lanes, Stored};
use half::{bf16, f16};

/// An element type of 16 bits. Two are moved as one word and parted when they are used: half as much to be moved.
pub(crate) trait Short: Stored {
    /// The elements `4 · quad ..` of eight, exactly, from four turned words ([`Lanes::turn_fours`]); `quad` is 0 or 1.
    fn quad_of<L: Lanes>(words: &[L; 4], quad: usize) -> [L; 4];
}

impl Short for bf16 {
    #[inline(always)]
    fn quad_of<L: Lanes>(words: &[L; 4], quad: usize) -> [L; 4] {
        let (a, b) = (words[2 * quad].bits(), words[2 * quad + 1].bits());
        let high = L::splat_int(0xffff_0000u32.cast_signed());
        [
            L::from_bits(L::shl_int::<16>(a)),
            L::from_bits(L::and_int(a, high)),
            L::from_bits(L::shl_int::<16>(b)),
            L::from_bits(L::and_int(b, high)),
        ]
    }
}

impl Short for f16 {
    #[inline(always)]
    fn quad_of<L: Lanes>(words: &[L; 4], quad: usize) -> [L; 4] {
        let (a, b) = (words[2 * quad].bits(), words[2 * quad + 1].bits());
        [
            L::of_halves(a),
            L::of_halves(L::shr_int::<16>(a)),
            L::of_halves(b),
            L::of_halves(L::shr_int::<16>(b)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::{Kernel, dispatch};

    /// The elements of a block of rows, column after column.
    struct Turn<'a, T>(&'a [Vec<T>]);

    impl<T: Short> Kernel for Turn<'_, T> {
        type Output = (Vec<f32>, usize);

        #[inline(always)]
        fn run<L: Lanes>(self) -> (Vec<f32>, usize) {
            let rows: Vec<*mut u8> = self.0.iter().map(|row| row.as_ptr().cast_mut().cast()).collect();
            let mut columns = Vec::new();
            for at in (0..64).step_by(16) {
                // SAFETY: there are 16 rows of 64 bytes.
                let fours = [0, 1, 2, 3].map(|row| unsafe { L::load_fours(rows[row..].as_ptr(), at) });
                let words = L::turn_fours(fours);
                for column in [0, 1].into_iter().flat_map(|quad| T::quad_of(&words, quad)) {
                    columns.extend_from_slice(&column.to_array()[..L::LEN]);
                }
            }
            (columns, L::LEN)
        }
    }

    fn turns<T: Short>() {
        // No two alike in any of the types; one of them not a normal number of f16.
        let value = |row: usize, i: usize| match (row, i) {
            (3, 5) => -3.0e-5,
            _ => (32 * row + i) as f32 / 2.0,
        };
        let rows: Vec<Vec<T>> =
            (0..16).map(|row| (0..32).map(|i| T::of_f32(value(row, i))).collect()).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.require().is_ok()) {
            let (columns, len) = dispatch(isa, Turn(&rows));
            assert_eq!(columns.len(), 32 * len);
            for i in 0..32 {
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
    }
}
