//! Rows stored in and taken from paged caches of keys and values.

use super::{Args, INDICES, Refusal, Run, run};
use crate::view::{Dtype, Fault, Memory, Tensor};

operators! {
    ScatterPaKvCache(key: T, keyCacheRef: U, slotMapping: T, value: T, valueCacheRef: U, compressLensOptional: T, compressSeqOffsetOptional: T, seqLensOptional: T, cacheModeOptional: CS, scatterModeOptional: CS, stridesOptional: IA, offsetsOptional: IA) = store_both;
    ScatterPaCache(key: T, keyCacheRef: U, slotMapping: T, compressLensOptional: T, compressSeqOffsetOptional: T, seqLensOptional: T, cacheMode: CS) = store;
    GatherPaKvCache(keyCache: T, valueCache: T, blockTables: T, seqLens: T, keyRef: U, valueRef: U, seqOffsetOptional: T, cacheMode: CS, isSeqLensCumsum: B) = fetch;
}

/// A cache as [blocks, positions of a block, elements of a row].
///
/// `Norm` is [blocks, positions, heads, dim]; `PA_NZ` is [blocks, heads · dim / C0, positions, C0], C0 being 32 bytes.
fn cache(args: &Args, name: &str, cache: &Tensor, mode: &str, width: usize) -> Result<Cache, Refusal> {
    args.ranked(name, cache, 4, 4)?;
    let [_, b, c, d] = cache.shape[..] else { return Err(args.invalid(name, "has no blocks")) };
    let (positions, fractal, row) = match mode {
        "" | "Norm" => (b, false, c * d),
        "PA_NZ" => (c, true, b * d),
        mode => return Err(args.unknown_mode("cacheMode", mode)),
    };
    if row != width {
        return Err(
            args.invalid(name, format!("has rows of {row} in shape {:?}; wanted: {width}", cache.shape))
        );
    }
    if fractal && cache.shape[3] != 256 / cache.dtype.bits() {
        return Err(args.invalid(name, format!("has pieces of {}; wanted: 32 bytes of them", cache.shape[3])));
    }
    Ok(Cache { view: cache.clone(), positions, fractal })
}

struct Cache {
    view: Tensor,
    positions: usize,
    fractal: bool,
}

impl Cache {
    /// The row of a slot.
    fn row(&self, operator: &str, slot: i64) -> Result<Tensor, Fault> {
        let bound = self.view.shape[0] * self.positions;
        let slot = usize::try_from(slot).ok().filter(|slot| *slot < bound);
        let slot =
            slot.ok_or_else(|| Fault::exception(format!("aclnn{operator}: a slot lies outside {bound}")))?;
        let axis = if self.fractal { 2 } else { 1 };
        Ok(self.view.narrow(0, slot / self.positions, 1, 1).narrow(axis, slot % self.positions, 1, 1))
    }
}

/// Rows [tokens, heads, dim] with their cache.
fn pair(args: &Args, rows: &str, into: &str, mode: &str) -> Result<(Tensor, Cache), Refusal> {
    let (tokens, target) = (args.tensor(rows)?, args.tensor(into)?);
    args.ranked(rows, tokens, 3, 3)?;
    args.one_of(into, target, &[tokens.dtype])?;
    Ok((tokens.clone(), cache(args, into, target, mode, tokens.shape[1] * tokens.shape[2])?))
}

/// One slot a token; −1 leaves the token out.
fn slots(args: &Args, tokens: usize) -> Result<Tensor, Refusal> {
    let slots = args.tensor("slotMapping")?;
    args.one_of("slotMapping", slots, INDICES)?;
    args.shaped("slotMapping", slots, &[tokens])?;
    Ok(slots.clone())
}

fn store_rows(
    operator: &str,
    (rows, cache): &(Tensor, Cache),
    slots: &[i64],
    memory: &dyn Memory,
) -> Result<(), Fault> {
    for (token, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != -1) {
        let row = rows.narrow(0, token, 1, 1).read_bits(memory)?;
        cache.row(operator, slot)?.write_bits(memory, &row)?;
    }
    Ok(())
}

const COMPRESSION: &[&str] = &["compressLens", "compressSeqOffset", "seqLens", "strides", "offsets"];

fn store_both(args: &Args) -> Result<Run, Refusal> {
    args.absent(COMPRESSION)?;
    match args.text("scatterModeOptional")? {
        "" | "None" => {}
        mode => return Err(args.unknown_mode("scatterMode", mode)),
    }
    let mode = args.text("cacheModeOptional")?;
    let (keys, values) =
        (pair(args, "key", "keyCacheRef", mode)?, pair(args, "value", "valueCacheRef", mode)?);
    if values.0.shape[..2] != keys.0.shape[..2] {
        return Err(args.invalid("value", format!("has shape {:?}, key {:?}", values.0.shape, keys.0.shape)));
    }
    let (slots, operator) = (slots(args, keys.0.shape[0])?, args.operator);
    run(move |memory| {
        let slots = slots.read_i64(memory)?;
        store_rows(operator, &keys, &slots, memory)?;
        store_rows(operator, &values, &slots, memory)
    })
}

fn store(args: &Args) -> Result<Run, Refusal> {
    args.absent(COMPRESSION)?;
    let keys = pair(args, "key", "keyCacheRef", args.text("cacheMode")?)?;
    let (slots, operator) = (slots(args, keys.0.shape[0])?, args.operator);
    run(move |memory| store_rows(operator, &keys, &slots.read_i64(memory)?, memory))
}

/// Positions 0, 1, … of every sequence, sequence after sequence.
fn fetch(args: &Args) -> Result<Run, Refusal> {
    args.absent(&["seqOffset"])?;
    let mode = args.text("cacheMode")?;
    let keys = pair(args, "keyRef", "keyCache", mode)?;
    let values = pair(args, "valueRef", "valueCache", mode)?;
    let (table, lengths) = (args.tensor("blockTables")?.clone(), args.tensor("seqLens")?.clone());
    args.one_of("blockTables", &table, &[Dtype::I32])?;
    args.one_of("seqLens", &lengths, &[Dtype::I32])?;
    args.ranked("blockTables", &table, 2, 2)?;
    let (sums, operator) = (args.flag("isSeqLensCumsum")?, args.operator);
    args.shaped("seqLens", &lengths, &[table.shape[0] + usize::from(sums)])?;
    run(move |memory| {
        let (table_row, blocks) = (table.shape[1], table.read_i64(memory)?);
        let lengths = lengths.read_i64(memory)?;
        let lengths = if sums { lengths.windows(2).map(|pair| pair[1] - pair[0]).collect() } else { lengths };
        for (rows, cache) in [&keys, &values] {
            let mut token = 0;
            for (sequence, &length) in lengths.iter().enumerate() {
                for position in 0..usize::try_from(length).unwrap_or(0) {
                    let block = position / cache.positions;
                    let stop = || {
                        Fault::exception(format!(
                            "aclnn{operator}: sequence {sequence} of {length} does not fit"
                        ))
                    };
                    if block >= table_row || token >= rows.shape[0] {
                        return Err(stop());
                    }
                    let first = blocks[sequence * table_row + block] * cache.positions as i64;
                    let row = cache
                        .row(operator, first + (position % cache.positions) as i64)?
                        .read_bits(memory)?;
                    rows.narrow(0, token, 1, 1).write_bits(memory, &row)?;
                    token += 1;
                }
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, noise_of};
    use super::*;

    #[test]
    fn rows_stored_by_slot_are_fetched_by_table() {
        let (k, v) = (noise_of(Dtype::F16, 3 * 32, 1), noise_of(Dtype::F16, 3 * 32, 2));
        for (mode, shape) in [("", [4, 2, 2, 16]), ("PA_NZ", [4, 2, 2, 16])] {
            let case = Case::new(Soc::A2, "ScatterPaKvCache").text("cacheModeOptional", mode);
            let case =
                case.input("key", Dtype::F16, &[3, 2, 16], &k).input("value", Dtype::F16, &[3, 2, 16], &v);
            let zeros = vec![0.0; 4 * 64];
            let case = case.input("keyCacheRef", Dtype::F16, &shape, &zeros).input(
                "valueCacheRef",
                Dtype::F16,
                &shape,
                &zeros,
            );
            // Positions 0, 1 and 2 of a sequence in blocks 3 and 0.
            let case = case.input("slotMapping", Dtype::I32, &[3], &[6.0, 7.0, 0.0]).done();
            let (keys, values) = (case.tensor("keyCacheRef").clone(), case.tensor("valueCacheRef").clone());
            let case = Case::new(Soc::A2, "GatherPaKvCache").after(case).text("cacheMode", mode);
            let some = |tensor: Tensor| super::super::Value::Tensor(Some(tensor));
            let case = case.set("keyCache", some(keys)).set("valueCache", some(values));
            let case = case.input("blockTables", Dtype::I32, &[1, 2], &[3.0, 0.0]).input(
                "seqLens",
                Dtype::I32,
                &[1],
                &[3.0],
            );
            let case = case
                .output("keyRef", Dtype::F16, &[3, 2, 16])
                .output("valueRef", Dtype::F16, &[3, 2, 16])
                .done();
            assert_eq!((case.read("keyRef"), case.read("valueRef")), (k.clone(), v.clone()), "{mode}");
        }
    }

    #[test]
    fn a_slot_of_minus_one_is_left_out() {
        let case =
            Case::new(Soc::A3, "ScatterPaCache").input("key", Dtype::I8, &[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
        let case = case.input("keyCacheRef", Dtype::I8, &[1, 2, 1, 2], &[9.0; 4]).input(
            "slotMapping",
            Dtype::I64,
            &[2],
            &[-1.0, 1.0],
        );
        assert_eq!(case.done().read("keyCacheRef"), [9.0, 9.0, 3.0, 4.0]);
        let mode = Case::new(Soc::A3, "ScatterPaCache")
            .input("key", Dtype::I8, &[1, 1, 2], &[1.0, 2.0])
            .text("cacheMode", "Other");
        assert!(
            mode.input("keyCacheRef", Dtype::I8, &[1, 1, 1, 2], &[0.0; 2])
                .refused()
                .message
                .contains("cacheMode = Other")
        );
    }
}
