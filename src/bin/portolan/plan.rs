//! `portolan plan`: what a forward pass of a model would cost, by operator, without running it.

use crate::args::{PlanArgs, precision_name};
use crate::failure::Failure;
use portolan::fetch::{FetchOptions, resolve_model};
use portolan::meta::Count;
use portolan::plan::{Plan, PlanOptions, plan};
use portolan::{Cost, load};
use std::io::Write;
use std::path::Path;

pub(crate) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let fetch = FetchOptions { cache: args.cache.clone(), ..FetchOptions::default() };
    let path = resolve_model(&args.model, &fetch)?;
    let source = load::open_specs(&path)?;
    let options = PlanOptions {
        tokens: args.tokens as usize,
        cached: args.cached as usize,
        batch: args.batch as usize,
        ranks: args.ranks,
        precision: args.precision.precision(),
        count: if args.composed { Count::Composed } else { Count::Fused },
    };
    let plan = plan(source.as_ref(), &options)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match args.json {
        true => writeln!(out, "{}", json(args, &path, &plan))?,
        false => write!(out, "{}", text(args, &path, &plan))?,
    }
    Ok(out.flush()?)
}

fn json(args: &PlanArgs, path: &Path, plan: &Plan) -> serde_json::Value {
    let with = |mut row: serde_json::Value, cost: Cost| {
        row["flops"] = cost.flops.into();
        row["bytes_read"] = cost.bytes_read.into();
        row["bytes_written"] = cost.bytes_written.into();
        row["bytes_comm"] = cost.bytes_comm.into();
        row
    };
    let rows = plan
        .operators
        .iter()
        .map(|row| with(serde_json::json!({"operator": row.kind.name(), "calls": row.calls}), row.cost));
    let calls: u64 = plan.operators.iter().map(|row| row.calls).sum();
    serde_json::json!({
        "model": path.display().to_string(),
        "precision": precision_name(args.precision),
        "batch": args.batch,
        "ranks": args.ranks,
        "tokens": args.tokens,
        "cached": args.cached,
        "counted": if args.composed { "composed" } else { "fused" },
        "routing": "balanced",
        "operators": rows.collect::<Vec<_>>(),
        "total": with(serde_json::json!({"calls": calls}), plan.total),
        "weight_bytes": plan.weight_bytes,
        "kv_bytes": plan.kv_bytes,
        "peak_bytes": plan.peak_bytes,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

fn text(args: &PlanArgs, path: &Path, plan: &Plan) -> String {
    let how = match args.composed {
        true => "fused operators through the parts they are composed from",
        false => "every operator as one kernel",
    };
    let mut out = format!("model    {}, precision {}\n", path.display(), precision_name(args.precision));
    if args.ranks > 1 {
        out.push_str(&format!("ranks    {}; what the first of them has and does\n", args.ranks));
    }
    out.push_str(&format!(
        "pass     {} x {} tokens behind {} cached, logits of the last one\ncounted  {how}; experts as evenly used\n\n",
        args.batch, args.tokens, args.cached
    ));
    out.push_str(&line(
        &["operator", "calls", "FLOP", "read", "written", "sent", "FLOP/B"].map(String::from),
    ));
    for row in &plan.operators {
        out.push_str(&costs(row.kind.name(), row.calls, row.cost));
    }
    out.push_str(&costs("total", plan.operators.iter().map(|row| row.calls).sum(), plan.total));
    for (name, bytes) in
        [("\nweights ", plan.weight_bytes), ("kv cache", plan.kv_bytes), ("peak    ", plan.peak_bytes)]
    {
        out.push_str(&format!("{name}  {}B\n", scaled(bytes as u64)));
    }
    out
}

fn costs(name: &str, calls: u64, cost: Cost) -> String {
    let bytes = cost.bytes_read.saturating_add(cost.bytes_written);
    let intensity = if bytes == 0 { "-".into() } else { format!("{:.1}", cost.flops as f64 / bytes as f64) };
    let moved = [cost.bytes_read, cost.bytes_written, cost.bytes_comm].map(|bytes| scaled(bytes) + "B");
    let [read, written, sent] = moved;
    line(&[
        name.to_owned(),
        calls.to_string(),
        scaled(cost.flops).trim_end().into(),
        read,
        written,
        sent,
        intensity,
    ])
}

fn line([name, calls, flops, read, written, sent, intensity]: &[String; 7]) -> String {
    format!("{name:<18} {calls:>6} {flops:>10} {read:>10} {written:>10} {sent:>10} {intensity:>8}\n")
}

/// Four digits at most, with a decimal unit to be followed by its name.
fn scaled(value: u64) -> String {
    let (mut scaled, mut units) = (value as f64, ["k", "M", "G", "T", "P", "E"].into_iter());
    if value < 1000 {
        return format!("{value} ");
    }
    let mut unit = "";
    // Rounded to one digit behind the point, so that nothing reads 1000.0.
    while scaled >= 999.95 {
        scaled /= 1000.0;
        unit = units.next().unwrap_or("E");
    }
    format!("{scaled:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::scaled;

    #[test]
    fn numbers_have_units_that_fit() {
        let cases = [
            (0, "0 "),
            (999, "999 "),
            (1000, "1.0 k"),
            (999_949, "999.9 k"),
            (999_951, "1.0 M"),
            (13_476_831_232, "13.5 G"),
            (u64::MAX, "18.4 E"),
        ];
        for (value, text) in cases {
            assert_eq!(scaled(value), text);
        }
    }
}
