//! Which operators a device runs, as text: what `portolan ops` prints and `docs/operators.md` holds.

use portolan_core::{Device, OpKind, OpSupport, SupportCount, native_fused};
use portolan_ops::{DType, Determinism, Result};
use std::fmt::Write;

/// The level the tables are made at: what streams ask for unless they are told otherwise.
const LEVEL: Determinism = Determinism::RunToRun;

const LEGEND: &str = "\
A cell is about the operator's conformance cases that have an operand of that type: `n` all native, `c` all \
composed, `m` native or composed, `p` some refused, `–` all refused, empty: no case, as the contract does not take \
the type or only in the other operands' company.";

fn mark(count: &SupportCount) -> &'static str {
    match (count.native > 0, count.composed > 0, count.refused > 0) {
        (false, false, false) => "",
        (true, false, false) => "n",
        (false, true, false) => "c",
        (true, true, false) => "m",
        (false, false, true) => "–",
        _ => "p",
    }
}

/// Element types that any operator has a case of, widest first.
fn columns(table: &[OpSupport]) -> Vec<DType> {
    let used = |dtype: DType| {
        table.iter().any(|op| op.by_dtype.iter().any(|(d, count)| *d == dtype && !count.is_empty()))
    };
    DType::ALL.into_iter().filter(|&dtype| used(dtype)).collect()
}

fn cell(op: &OpSupport, dtype: DType) -> &'static str {
    op.by_dtype.iter().find(|(d, _)| *d == dtype).map_or("", |(_, count)| mark(count))
}

/// A device's table for a terminal.
///
/// # Errors
/// When an operator's own list of cases is not legal.
pub fn text(device: &Device) -> Result<String> {
    let table = device.support_table(LEVEL)?;
    let columns = columns(&table);
    let name_width = table.iter().map(|op| op.kind.name().len()).max().unwrap_or(0);
    let mut out = format!("{:name_width$}", "operator");
    for dtype in &columns {
        out.push_str(&format!(" {:>7}", dtype.name()));
    }
    out.push('\n');
    for op in &table {
        out.push_str(&format!("{:name_width$}", op.kind.name()));
        for &dtype in &columns {
            out.push_str(&format!(" {:>7}", cell(op, dtype)));
        }
        // Empty cells at the end of a line are no text.
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    let _ = writeln!(out, "n native, c composed, m either, p some refused, – refused, empty: no such case");
    Ok(out)
}

macro_rules! classes {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        /// The class of an operator: the module that its contract is in.
        fn class(kind: OpKind) -> &'static str {
            match kind {
                $( OpKind::$kind => module(stringify!($spec)), )*
                $( OpKind::$fkind => module(stringify!($fspec)), )*
                OpKind::Collective(_) => "comm",
                _ => "custom",
            }
        }
    };
}
portolan_core::for_each_op!(classes);

/// `norm` of `portolan_ops::norm::RmsNormSpec`.
fn module(path: &'static str) -> &'static str {
    path.split("::").nth(1).map_or(path, str::trim)
}

/// How a device runs the cases of each class of operators, and of all, for a terminal.
///
/// # Errors
/// As [`text`].
pub fn summary(device: &Device) -> Result<String> {
    // Operators and their cases, class by class, in the order of the table.
    let mut rows: Vec<(&str, usize, SupportCount)> = Vec::new();
    let mut all = ("all", 0, SupportCount::default());
    let table = device.support_table(LEVEL)?;
    let (native, fused) = native_fused(&table, DType::BF16);
    for op in table {
        let class = class(op.kind);
        let at = rows.iter().position(|(name, ..)| *name == class).unwrap_or_else(|| {
            rows.push((class, 0, SupportCount::default()));
            rows.len() - 1
        });
        for (_, operators, count) in [&mut rows[at], &mut all] {
            *operators += 1;
            count.native += op.total.native;
            count.composed += op.total.composed;
            count.refused += op.total.refused;
        }
    }
    let mut out =
        format!("{:12} {:>9} {:>7} {:>9} {:>7}\n", "class", "operators", "native", "composed", "refused");
    for (name, operators, SupportCount { native, composed, refused }) in rows.into_iter().chain([all]) {
        let _ = writeln!(out, "{name:12} {operators:>9} {native:>7} {composed:>9} {refused:>7}");
    }
    let _ = writeln!(out, "conformance cases run natively, composed from other operators, and refused");
    let _ = writeln!(out, "{native} of {fused} fused operators run a case with bf16 operands natively");
    Ok(out)
}

/// The page of the documentation: one table for each backend among the devices that computes, by its first device.
///
/// # Errors
/// As [`text`].
pub fn markdown(devices: &[Device]) -> Result<String> {
    let mut out = format!(
        "# Operators, element types and backends\n\n\
         <!-- Generated: cargo run -- ops --markdown > docs/operators.md -->\n\n\
         Made from what each backend's `support()` answers to every conformance case, at the determinism level \
         `RunToRun`.\n{LEGEND}\n"
    );
    let mut seen: Vec<String> = Vec::new();
    for device in devices {
        let backend = device.id().backend().to_owned();
        if seen.contains(&backend) || !device.info().keeps_data {
            continue;
        }
        let table = device.support_table(LEVEL)?;
        let columns = columns(&table);
        let names: Vec<&str> = columns.iter().map(|dtype| dtype.name()).collect();
        out.push_str(&format!("\n## {backend}\n\n| operator | {} |\n", names.join(" | ")));
        out.push_str(&format!("| --- |{}\n", " --- |".repeat(columns.len())));
        for op in &table {
            let cells: Vec<&str> = columns.iter().map(|&dtype| cell(op, dtype)).collect();
            out.push_str(&format!("| `{}` | {} |\n", op.kind.name(), cells.join(" | ")));
        }
        seen.push(backend);
    }
    Ok(out)
}
