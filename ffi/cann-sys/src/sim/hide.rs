//! Takes symbols out of a copy of a shared library, so that looking them up fails as it does in an older one.
//!
//! A symbol whose section is *undefined* is one that the library asks for, not one that it has; that is two bytes of its
//! entry in the dynamic symbol table of an ELF file with 64-bit addresses, little-endian.

/// Bytes of an entry in the section table, and in the symbol table.
const SECTION: usize = 64;
const SYMBOL: usize = 24;
/// A section that holds dynamic symbols.
const DYNSYM: u32 = 11;

fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    let slice = at.checked_add(N).and_then(|end| bytes.get(at..end));
    slice.and_then(|slice| slice.try_into().ok()).ok_or_else(|| format!("the file ends before byte {at}"))
}

fn half(bytes: &[u8], at: usize) -> Result<usize, String> {
    number(bytes, at).map(|raw| usize::from(u16::from_le_bytes(raw)))
}

fn word(bytes: &[u8], at: usize) -> Result<u32, String> {
    number(bytes, at).map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Result<usize, String> {
    let value = u64::from_le_bytes(number(bytes, at)?);
    usize::try_from(value).map_err(|error| error.to_string())
}

/// Whether the text at `at` is `name` and ends there.
fn is_named(bytes: &[u8], at: usize, name: &str) -> bool {
    let text = bytes.get(at..).unwrap_or_default();
    text.starts_with(name.as_bytes()) && text.get(name.len()) == Some(&0)
}

/// Hides symbols in the bytes of a library; each has to be there.
pub(super) fn symbols(bytes: &mut [u8], names: &[String]) -> Result<(), String> {
    if names.is_empty() {
        return Ok(());
    }
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Err("not a library of 64-bit little-endian ELF".into());
    }
    let (table, count) = (long(bytes, 40)?, half(bytes, 60)?);
    let section = |index: usize| table + index * SECTION;
    let mut hidden = vec![false; names.len()];
    for index in 0..count {
        if word(bytes, section(index) + 4)? != DYNSYM {
            continue;
        }
        let (start, length) = (long(bytes, section(index) + 24)?, long(bytes, section(index) + 32)?);
        let strings = long(bytes, section(word(bytes, section(index) + 40)? as usize) + 24)?;
        for entry in (start..start + length).step_by(SYMBOL) {
            let name = strings + word(bytes, entry)? as usize;
            if let Some(which) = names.iter().position(|wanted| is_named(bytes, name, wanted)) {
                // Section 0 and address 0: undefined.
                bytes[entry + 6..entry + 16].fill(0);
                hidden[which] = true;
            }
        }
    }
    match hidden.iter().position(|done| !done) {
        None => Ok(()),
        Some(which) => Err(format!("{} is no symbol of the simulator", names[which])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_library_is_refused() {
        let mut bytes = b"#!/bin/sh".to_vec();
        assert!(symbols(&mut bytes, &["f".into()]).is_err());
        assert!(symbols(&mut bytes, &[]).is_ok());
        let mut cut = b"\x7fELF\x02\x01".to_vec();
        assert!(symbols(&mut cut, &["f".into()]).is_err());
    }
}
